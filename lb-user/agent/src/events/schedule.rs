//! When which problem is told. Time is passed in.
//!
//! All nodes find what is wrong with an object, and one Event is enough: each asks at a moment of its own, and who hears that
//! the Event is there already asks ever more rarely. Who made it makes it again when the API server has let it go, while
//! the problem stands: so a few nodes keep Events alive, and a thousand others are nearly silent.

use std::collections::{BTreeMap, BTreeSet};

use tokio::time::{Duration, Instant};

use super::problem::{ServiceEvent, digest};
use lb_core::objects::Key;

/// A problem that is over sooner is told nobody.
const SETTLE: Duration = Duration::from_secs(1);
/// Over which the first questions of all nodes are spread.
const SPREAD: Duration = Duration::from_secs(10);
/// For so long an API server keeps an Event (`--event-ttl` of kube-apiserver).
const KEPT: Duration = Duration::from_secs(3600);
/// The longest time until a problem that stands is told again.
const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// After a failure.
const AGAIN: Duration = Duration::from_secs(60);
/// Until a Service is asked for again that was not there.
const NO_SERVICE: Duration = Duration::from_secs(600);
/// While the API server refuses.
const REFUSED: Duration = Duration::from_secs(600);
/// Of each Service, no more than [`FEW`] are told in so long: its problems may change all the time.
const WINDOW: Duration = Duration::from_secs(600);
const FEW: u32 = 10;

/// What came of telling a problem.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Said {
    /// The Event is new.
    New,
    /// It was there already.
    Known,
    /// There is no such Service any more, or its namespace is going.
    NoService,
    /// The API server does not let the agent make Events.
    Refused,
    /// The server takes no such Event.
    Invalid,
    /// It did not work this time.
    Failed,
}

impl Said {
    /// Whether it needs not be tried again.
    pub(super) fn is_over(self) -> bool {
        matches!(self, Self::New | Self::Known | Self::NoService | Self::Invalid)
    }
}

/// What is to be done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Due {
    /// This is to be told.
    Now(ServiceEvent),
    /// Something is, then.
    At(Instant),
    /// Nothing is wrong.
    Nothing,
}

/// What was told when.
pub(super) struct Schedule {
    node: String,
    known: BTreeMap<u64, Turn>,
    /// How many were told of a Service since when.
    told: BTreeMap<Key, (Instant, u32)>,
    /// Nothing is told before.
    from: Option<Instant>,
}

struct Turn {
    next: Instant,
    /// From the last one to it.
    wait: Duration,
    /// Whether it was ever told.
    is_told: bool,
}

impl Schedule {
    pub(super) fn new(node: &str) -> Self {
        Self { node: node.to_owned(), known: BTreeMap::new(), told: BTreeMap::new(), from: None }
    }

    /// What is due of all that stands.
    pub(super) fn due(&mut self, standing: &[ServiceEvent], now: Instant) -> Due {
        let ids: Vec<u64> = standing.iter().map(|announcement| announcement.id(&self.node)).collect();
        let present: BTreeSet<u64> = ids.iter().copied().collect();
        // What has gone and comes back is told no sooner than if it had stayed.
        self.known.retain(|id, turn| present.contains(id) || (turn.is_told && turn.next > now));
        self.told.retain(|_, (since, _)| now.duration_since(*since) < WINDOW);
        let mut first: Option<(Instant, &ServiceEvent)> = None;
        for (id, announcement) in ids.into_iter().zip(standing) {
            let begins = || Turn { next: now + SETTLE + part(&self.node, id, SPREAD), wait: KEPT, is_told: false };
            let mut at = self.known.entry(id).or_insert_with(begins).next;
            if let Some((since, FEW..)) = self.told.get(&announcement.service) {
                at = at.max(*since + WINDOW);
            }
            at = at.max(self.from.unwrap_or(at));
            if first.is_none_or(|(earliest, _)| at < earliest) {
                first = Some((at, announcement));
            }
        }
        match first {
            None => Due::Nothing,
            Some((at, announcement)) if at <= now => Due::Now(announcement.clone()),
            Some((at, _)) => Due::At(at),
        }
    }

    /// It was told, and this came of it.
    pub(super) fn said(&mut self, announcement: &ServiceEvent, said: Said, now: Instant) {
        let id = announcement.id(&self.node);
        let old = self.known.get(&id).map_or(KEPT, |turn| turn.wait);
        let (wait, pause) = match said {
            Said::New => (KEPT, KEPT),
            Said::Known => ((old * 2).min(LONGEST), old),
            Said::NoService => (KEPT, NO_SERVICE),
            Said::Invalid => (LONGEST, LONGEST),
            Said::Refused => (old, REFUSED),
            Said::Failed => (old, AGAIN),
        };
        if matches!(said, Said::Refused | Said::Failed) {
            // Of the others none would fare better.
            self.from = Some(now + pause);
        } else {
            self.told.entry(announcement.service.clone()).or_insert((now, 0)).1 += 1;
        }
        // A little later each time, and on each node.
        let next = now + pause + part(&self.node, id, pause / 4);
        self.known.insert(id, Turn { next, wait, is_told: true });
    }
}

/// A part of a time, which this node has of this problem.
fn part(node: &str, id: u64, whole: Duration) -> Duration {
    let share = digest(id, node) >> 32;
    whole.mul_f64(share as f64 / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::problem::Origin;
    use lb_core::warning::Warning;

    fn about(name: &str, text: &str) -> ServiceEvent {
        let warning = Warning::InvalidValue { object: None, problem: text.to_owned() };
        ServiceEvent { service: Key::new("default", name), origin: Origin::Objects, warning }
    }

    /// Tells all that is due until `end`, each time with what `answer` says; returns when.
    fn told(
        schedule: &mut Schedule,
        standing: &[ServiceEvent],
        from: Instant,
        end: Instant,
        mut answer: impl FnMut() -> Said,
    ) -> Vec<Instant> {
        let (mut now, mut times) = (from, Vec::new());
        loop {
            match schedule.due(standing, now) {
                Due::Now(announcement) => {
                    schedule.said(&announcement, answer(), now);
                    times.push(now);
                }
                Due::At(at) if at <= end => now = at,
                Due::At(_) | Due::Nothing => return times,
            }
        }
    }

    #[test]
    fn what_stands_is_told_once_while_its_event_is_kept() {
        let (mut schedule, start) = (Schedule::new("n1"), Instant::now());
        let times = told(&mut schedule, &[about("a", "x")], start, start + KEPT, || Said::New);
        assert_eq!(times.len(), 1);
        assert!(times[0] >= start + SETTLE && times[0] <= start + SETTLE + SPREAD, "at a moment of its own");
        let later = told(&mut schedule, &[about("a", "x")], start + KEPT, start + 4 * KEPT, || Said::New);
        assert!((2..=3).contains(&later.len()), "again when it has gone: {}", later.len());
    }

    #[test]
    fn who_hears_that_it_is_known_asks_ever_more_rarely() {
        let (mut schedule, start) = (Schedule::new("n1"), Instant::now());
        let times = told(&mut schedule, &[about("a", "x")], start, start + 10 * LONGEST, || Said::Known);
        let waits: Vec<_> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(waits.windows(2).all(|pair| pair[1] >= pair[0]), "{waits:?}");
        assert!(waits.last().is_some_and(|last| *last >= LONGEST) && times.len() < 16, "{waits:?}");
    }

    #[test]
    fn a_thousand_nodes_do_not_ask_at_once() {
        let start = Instant::now();
        let mut seconds = BTreeMap::<u64, u32>::new();
        for node in 0..1000 {
            let mut schedule = Schedule::new(&format!("node-{node}"));
            let at = told(&mut schedule, &[about("a", "x")], start, start + KEPT / 2, || Said::Known)[0];
            *seconds.entry((at - start).as_secs()).or_default() += 1;
        }
        assert!(seconds.values().all(|nodes| *nodes < 200), "{seconds:?}");
    }

    #[test]
    fn what_is_over_in_a_moment_is_told_nobody_and_what_comes_back_is_not_told_twice() {
        let (mut schedule, start) = (Schedule::new("n1"), Instant::now());
        let all = [about("a", "x")];
        assert!(matches!(schedule.due(&all, start), Due::At(_)));
        assert_eq!(schedule.due(&[], start + SETTLE), Due::Nothing);
        assert!(schedule.known.is_empty(), "nothing is kept of it");
        let mut now = start;
        let mut count = 0;
        while now < start + KEPT {
            count += told(&mut schedule, &all, now, now + Duration::from_secs(30), || Said::New).len();
            now += Duration::from_secs(30);
            assert_eq!(schedule.due(&[], now), Due::Nothing);
            now += Duration::from_secs(30);
        }
        assert_eq!(count, 1);
    }

    #[test]
    fn a_service_whose_problems_change_all_the_time_does_not_flood() {
        let (mut schedule, start) = (Schedule::new("n1"), Instant::now());
        let mut count = 0;
        for minute in 0..60 {
            let now = start + Duration::from_secs(minute * 60);
            let all: Vec<_> = (0..10).map(|i| about("a", &format!("{minute} {i}"))).collect();
            count += told(&mut schedule, &all, now, now + Duration::from_secs(59), || Said::New).len();
        }
        assert!(count <= 60 + 10, "{count} in an hour");
        assert!(schedule.known.len() <= 80 && schedule.told.len() == 1, "{}", schedule.known.len());
    }

    #[test]
    fn a_refusal_is_met_with_patience_for_all() {
        let (mut schedule, start) = (Schedule::new("n1"), Instant::now());
        let all: Vec<_> = (0..100).map(|number| about(&number.to_string(), "x")).collect();
        let times = told(&mut schedule, &all, start, start + KEPT, || Said::Refused);
        assert!(times.len() <= 6, "{}", times.len());
    }
}
