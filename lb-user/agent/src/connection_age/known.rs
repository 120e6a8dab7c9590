//! The ages of TCP sockets, counted from the first sight of each. Time is passed in.

use std::{collections::BTreeMap, time::Duration};

use foldhash::HashMap;
use lb_common::{AddrPort, Translation, hash::splitmix};
use lb_core::objects::ConnectionAge;
use lb_dataplane::sockets::Aged;

/// Sockets end spread over this share of the age before and after it: one part of these.
const JITTER: u32 = 10;

/// Salt of the spread.
const SALT: u32 = 0x61_67_65_73;

/// The sockets of Services with an age, by cookie.
#[derive(Default)]
pub(super) struct KnownSockets(HashMap<u64, Known>);

/// A socket since the first sight of its translation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Known {
    backend: u32,
    since: Duration,
}

impl KnownSockets {
    /// Takes over the `sockets` at the time `now`, and forgets all others. Returns the sockets whose time is over.
    /// `ages` are those of service ports, by id.
    pub(super) fn observe(
        &mut self,
        sockets: &[(u64, Translation)],
        ages: &BTreeMap<u32, ConnectionAge>,
        now: Duration,
    ) -> HashMap<u64, Aged> {
        let mut known = HashMap::default();
        let mut over = HashMap::default();
        for (cookie, translation) in sockets {
            let Translation { service, backend, backend_addr, backend_port, .. } = *translation;
            let Some(age) = ages.get(&service) else { continue };
            // A socket may connect again after a failure.
            let before = self.0.get(cookie).filter(|known| known.backend == backend);
            let socket = before.copied().unwrap_or(Known { backend, since: now });
            known.insert(*cookie, socket);
            let end = socket.since + jittered(Duration::from_secs(age.seconds.get().into()), *cookie);
            if end <= now {
                let last = age.grace.map(|grace| end + Duration::from_secs(grace.into()));
                let peer = AddrPort { addr: backend_addr, port: backend_port };
                let must_end = last.is_some_and(|last| last <= now);
                over.insert(*cookie, Aged { peer, service, must_end });
            }
        }
        self.0 = known;
        over
    }

    /// Forgets all sockets, and frees their memory.
    pub(super) fn clear(&mut self) {
        self.0 = HashMap::default();
    }
}

/// Returns the age of a socket between 90 and 110 per cent of `age`, by its cookie.
fn jittered(age: Duration, cookie: u64) -> Duration {
    let spread = age / JITTER;
    age - spread + (2 * spread).mul_f64(f64::from(splitmix(cookie, SALT)) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_common::{Choice, Reason};
    use std::{net::Ipv4Addr, num::NonZeroU32};

    fn socket(cookie: u64, service: u32, backend: u32) -> (u64, Translation) {
        let choice = Choice {
            service,
            backend,
            addr: Ipv4Addr::new(10, 0, 0, 1).into(),
            port: 8080,
            followed: None,
            reason: Reason::Random,
        };
        (cookie, Translation::new(Ipv4Addr::new(10, 96, 0, 1).into(), 80, &choice, 1))
    }

    fn ages(seconds: u32, grace: Option<u32>) -> BTreeMap<u32, ConnectionAge> {
        let seconds = NonZeroU32::new(seconds).expect("not 0");
        [(1, ConnectionAge { seconds, grace })].into()
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn sockets_are_over_their_age_spread_over_a_fifth_of_it() {
        let mut known = KnownSockets::default();
        let sockets: Vec<_> = (0..1000).map(|cookie| socket(cookie, 1, 7)).collect();
        let ages = ages(100, None);
        let mut counts = Vec::new();
        for second in 0..=110 {
            counts.push(known.observe(&sockets, &ages, second * SECOND).len());
        }
        assert_eq!((counts[89], counts[110]), (0, 1000));
        let each: Vec<_> = counts[90..].windows(2).map(|two| two[1] - two[0]).collect();
        assert!(each.iter().all(|count| (20..90).contains(count)), "{each:?}");
    }

    #[test]
    fn the_age_counts_from_the_first_sight_and_again_after_another_connect() {
        let mut known = KnownSockets::default();
        let ages = ages(10, Some(5));
        let mut over = |sockets: &[(u64, Translation)], second: u32| {
            let over = known.observe(sockets, &ages, second * SECOND);
            over.get(&3).map(|aged| aged.must_end)
        };
        let (first, second) = (socket(3, 1, 7), socket(3, 1, 8));
        assert_eq!(over(&[first], 100), None);
        assert_eq!(over(&[first], 111), Some(false));
        assert_eq!(over(&[first], 117), Some(true), "the grace is over");
        assert_eq!(over(&[second], 117), None, "it has connected again");
        assert_eq!(over(&[second], 128), Some(false));
        assert_eq!(over(&[], 129), None);
        assert_eq!(over(&[second], 130), None, "another socket of this cookie");
        assert_eq!(over(&[socket(3, 2, 8)], 300), None, "another Service");
    }

    #[test]
    fn a_busy_socket_without_a_grace_stays() {
        let mut known = KnownSockets::default();
        let ages = ages(10, None);
        known.observe(&[socket(3, 1, 7)], &ages, SECOND);
        let over = known.observe(&[socket(3, 1, 7)], &ages, 1_000_000 * SECOND);
        assert_eq!(over.get(&3).map(|aged| aged.must_end), Some(false));
        known.clear();
        assert!(known.observe(&[socket(3, 1, 7)], &ages, 1_000_000 * SECOND).is_empty());
    }
}
