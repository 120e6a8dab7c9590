//! Joins a TCP socket's connect with the result of its handshake, by the cookie of the socket.

use std::time::Duration;

use foldhash::{HashMap, HashMapExt as _};
use lb_common::{Proto, WatchKind, WatchRecord};

/// Usual time after which a connect without a result is told, before its result.
pub const RESULT_TIMEOUT: Duration = Duration::from_secs(1);

/// Time after which the result of a handshake is no longer expected: its record was lost. Linux sends SYNs for two
/// minutes (net.ipv4.tcp_syn_retries).
const FORGET: Duration = Duration::from_mins(10);

/// Most handshakes followed at a time; those of others are told without a result.
const MAX_FOLLOWED: usize = 200_000;

/// State of a handshake.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Handshake {
    /// The backend answered.
    Established,
    /// The backend, or a firewall, answered with a reset.
    Refused,
    /// No answer: the client's kernel gave up, or got an ICMP error.
    Unanswered,
    /// The application closed the socket before an answer, such as by a time-out of its own.
    GivenUp,
    /// No answer yet.
    Pending,
}

impl Handshake {
    /// True if no connection came about.
    #[must_use]
    pub const fn is_failed(self) -> bool {
        matches!(self, Self::Refused | Self::Unanswered | Self::GivenUp)
    }
}

/// A call or packet, with the state of its handshake.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// Record of the call or packet.
    pub record: WatchRecord,
    /// State of the handshake, its time since the call, and the number of SYN segments. `None` without a handshake, or
    /// if it is not followed.
    pub handshake: Option<(Handshake, Duration, u8)>,
    /// False if the same call was told before, with [`Handshake::Pending`].
    pub is_first: bool,
}

/// A connect without a result.
struct Followed {
    record: WatchRecord,
    is_told: bool,
    is_given_up: bool,
}

/// Connects without a result.
pub struct Follower {
    /// By the cookie of the socket.
    followed: HashMap<u64, Followed>,
    /// False if the kernel tells no results.
    has_results: bool,
    /// Age at which a connect without a result is told.
    timeout: Option<Duration>,
}

impl Follower {
    /// Begins. `has_results` is false if no records of handshakes come. A connect older than `timeout` is told before
    /// its result; without `timeout`, with its result only.
    #[must_use]
    pub fn new(has_results: bool, timeout: Option<Duration>) -> Self {
        Self { followed: HashMap::new(), has_results, timeout }
    }

    /// Takes the next record by time, and returns what is known now.
    #[must_use]
    pub fn take(&mut self, record: WatchRecord) -> Vec<Outcome> {
        let alone = Outcome { record, handshake: None, is_first: true };
        let handshake = match WatchKind::from_number(record.kind) {
            None => return Vec::new(),
            Some(WatchKind::Connect) if self.is_followed(&record) => return self.follow(record),
            Some(WatchKind::Connect | WatchKind::Unfollowed | WatchKind::Datagram | WatchKind::Packet) => {
                return vec![alone];
            }
            Some(WatchKind::GivenUp) => {
                if let Some(followed) = self.followed.get_mut(&record.socket) {
                    followed.is_given_up = true;
                }
                return Vec::new();
            }
            Some(WatchKind::Established) => Handshake::Established,
            Some(WatchKind::Failed) if record.answers > 0 => Handshake::Refused,
            Some(WatchKind::Failed) => Handshake::Unanswered,
        };
        // The connect was before the watch.
        let Some(followed) = self.followed.remove(&record.socket) else { return Vec::new() };
        let handshake = if followed.is_given_up { Handshake::GivenUp } else { handshake };
        vec![followed.outcome(handshake, record.time, record.syns)]
    }

    /// Returns the connects without a result that have not been told, `now` (CLOCK_MONOTONIC, ns) being later than
    /// every record taken.
    #[must_use]
    pub fn overdue(&mut self, now: u64) -> Vec<Outcome> {
        let age = |followed: &Followed| Duration::from_nanos(now.saturating_sub(followed.record.time));
        self.followed.retain(|_, followed| age(followed) < FORGET);
        let Some(timeout) = self.timeout else { return Vec::new() };
        let overdue = self.followed.values_mut().filter(|followed| !followed.is_told && age(followed) >= timeout);
        sorted(overdue.map(|followed| followed.tell(now)).collect())
    }

    /// Returns all connects without a result that have not been told.
    #[must_use]
    pub fn finish(&mut self, now: u64) -> Vec<Outcome> {
        let rest = self.followed.values_mut().filter(|followed| !followed.is_told);
        sorted(rest.map(|followed| followed.tell(now)).collect())
    }

    fn is_followed(&self, record: &WatchRecord) -> bool {
        self.has_results
            && record.proto == Proto::Tcp as u8
            && record.refusal == 0
            && self.followed.len() < MAX_FOLLOWED
    }

    fn follow(&mut self, record: WatchRecord) -> Vec<Outcome> {
        let new = Followed { record, is_told: false, is_given_up: false };
        // Another connect of the socket: the result of the first one was lost, or it is a connect that goes on.
        let before = self.followed.insert(record.socket, new);
        before.filter(|before| !before.is_told).map(|mut before| before.tell(record.time)).into_iter().collect()
    }
}

impl Followed {
    fn tell(&mut self, now: u64) -> Outcome {
        let outcome = self.outcome(Handshake::Pending, now, 0);
        self.is_told = true;
        outcome
    }

    fn outcome(&self, handshake: Handshake, at: u64, syns: u8) -> Outcome {
        let after = Duration::from_nanos(at.saturating_sub(self.record.time));
        Outcome { record: self.record, handshake: Some((handshake, after, syns)), is_first: !self.is_told }
    }
}

fn sorted(mut outcomes: Vec<Outcome>) -> Vec<Outcome> {
    outcomes.sort_by_key(|outcome| outcome.record.time);
    outcomes
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn record(kind: WatchKind, socket: u64, time: u64) -> WatchRecord {
        WatchRecord { kind: kind as u8, socket, time, proto: Proto::Tcp as u8, backend: 1, ..WatchRecord::EMPTY }
    }

    fn states(outcomes: &[Outcome]) -> Vec<Option<(Handshake, u128)>> {
        outcomes.iter().map(|outcome| outcome.handshake.map(|(state, after, _)| (state, after.as_millis()))).collect()
    }

    #[test]
    fn a_connect_is_told_with_the_result_of_its_handshake() {
        for (end, answers, given_up, expected) in [
            (WatchKind::Established, 1, false, Handshake::Established),
            (WatchKind::Failed, 1, false, Handshake::Refused),
            (WatchKind::Failed, 0, false, Handshake::Unanswered),
            (WatchKind::Failed, 0, true, Handshake::GivenUp),
        ] {
            let mut follower = Follower::new(true, Some(RESULT_TIMEOUT));
            assert_eq!(follower.take(record(WatchKind::Connect, 7, MS)), []);
            if given_up {
                assert_eq!(follower.take(record(WatchKind::GivenUp, 7, 2 * MS)), []);
            }
            let told = follower.take(WatchRecord { answers, ..record(end, 7, 3 * MS) });
            assert_eq!(states(&told), [Some((expected, 2))]);
            assert!(told.iter().all(|outcome| outcome.is_first && outcome.record.backend == 1));
            assert_eq!(follower.finish(4 * MS), [], "told once");
        }
    }

    #[test]
    fn a_connect_without_a_result_is_told_after_a_second_and_again_with_its_result() {
        let mut follower = Follower::new(true, Some(RESULT_TIMEOUT));
        assert_eq!(follower.take(record(WatchKind::Connect, 7, 0)), []);
        assert_eq!(follower.overdue(999 * MS), []);
        assert_eq!(states(&follower.overdue(1000 * MS)), [Some((Handshake::Pending, 1000))]);
        assert_eq!(follower.overdue(2000 * MS), [], "told once");
        let told = follower.take(record(WatchKind::Established, 7, 3000 * MS));
        assert_eq!(states(&told), [Some((Handshake::Established, 3000))]);
        assert!(told.iter().all(|outcome| !outcome.is_first));
    }

    #[test]
    fn without_a_timeout_a_connect_is_told_with_its_result_only() {
        let mut follower = Follower::new(true, None);
        assert_eq!(follower.take(record(WatchKind::Connect, 7, 0)), []);
        assert_eq!(follower.overdue(2000 * MS), []);
        let told = follower.take(record(WatchKind::Failed, 7, 3000 * MS));
        assert_eq!(states(&told), [Some((Handshake::Unanswered, 3000))]);
        assert!(told.iter().all(|outcome| outcome.is_first));
    }

    #[test]
    fn another_connect_of_a_socket_tells_the_first() {
        let mut follower = Follower::new(true, Some(RESULT_TIMEOUT));
        assert_eq!(follower.take(record(WatchKind::Connect, 7, 0)), []);
        assert_eq!(states(&follower.take(record(WatchKind::Connect, 7, MS))), [Some((Handshake::Pending, 1))]);
        assert_eq!(states(&follower.finish(3 * MS)), [Some((Handshake::Pending, 2))]);
    }

    #[test]
    fn calls_without_a_handshake_are_told_at_once() {
        let mut follower = Follower::new(true, Some(RESULT_TIMEOUT));
        let udp = WatchRecord { proto: Proto::Udp as u8, ..record(WatchKind::Connect, 7, 0) };
        let refused = WatchRecord { refusal: 1, ..record(WatchKind::Connect, 7, 0) };
        let mptcp = record(WatchKind::Unfollowed, 7, 0);
        for record in [udp, refused, mptcp, record(WatchKind::Datagram, 7, 0)] {
            assert_eq!(states(&follower.take(record)), [None]);
        }
        assert_eq!(states(&Follower::new(false, Some(RESULT_TIMEOUT)).take(record(WatchKind::Connect, 7, 0))), [None]);
        assert_eq!(follower.take(record(WatchKind::Established, 8, 0)), [], "a connect before the watch");
    }

    #[test]
    fn a_handshake_whose_result_is_lost_is_forgotten() {
        let mut follower = Follower::new(true, Some(RESULT_TIMEOUT));
        assert_eq!(follower.take(record(WatchKind::Connect, 7, 0)), []);
        assert_eq!(follower.overdue(1000 * MS).len(), 1);
        assert_eq!(follower.overdue(601_000 * MS), []);
        assert_eq!(follower.take(record(WatchKind::Established, 7, 602_000 * MS)), []);
    }
}
