//! Schedule of Events. Time is passed in.
//!
//! All nodes find the same problems in the objects, and one Event is enough. Each node sends at its own time; a node
//! whose Event exists already sends ever more rarely. The node that created an Event creates it again after the API
//! server has deleted it, while the problem is open. So a few nodes keep Events alive, and a thousand others send next
//! to nothing.

use std::collections::{BTreeMap, BTreeSet};

use tokio::time::{Duration, Instant};

use super::problem::{ServiceEvent, hash};
use lb_core::objects::Key;

/// Minimum age of a problem before its first Event.
const SETTLE: Duration = Duration::from_secs(1);
/// Window over which all nodes spread their first Event of a problem.
const SPREAD: Duration = Duration::from_secs(10);
/// Lifetime of an Event in the API server (`--event-ttl` of kube-apiserver).
const EVENT_TTL: Duration = Duration::from_secs(3600);
/// Maximum interval between two Events of an open problem.
const MAX_INTERVAL: Duration = Duration::from_secs(24 * 3600);
/// Delay after a failure.
const RETRY: Duration = Duration::from_secs(60);
/// Delay before the next Event for a Service that was not found.
const SERVICE_MISSING: Duration = Duration::from_secs(600);
/// Delay while the API server forbids Events.
const FORBIDDEN: Duration = Duration::from_secs(600);
/// Window of the rate limit: at most [`MAX_EVENTS`] for one Service, whose problems may change all the time.
const RATE_WINDOW: Duration = Duration::from_secs(600);
const MAX_EVENTS: u32 = 10;

/// Outcome of sending an Event.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Outcome {
    Created,
    Exists,
    /// The Service, or its namespace, was deleted.
    NoService,
    /// The account may not create Events.
    Forbidden,
    /// The API server rejects the content.
    Invalid,
    /// A failure that may pass.
    Failed,
}

impl Outcome {
    /// True if the Event needs no retry.
    pub(super) fn is_final(self) -> bool {
        matches!(self, Self::Created | Self::Exists | Self::NoService | Self::Invalid)
    }
}

/// Next action of the sending task.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Next {
    Send(ServiceEvent),
    /// Wait until then, or until a problem changes.
    WaitUntil(Instant),
    /// Wait until there is a problem.
    WaitForProblem,
}

/// Times of past and future Events.
pub(super) struct Schedule {
    node: String,
    /// Entries by id of the problem.
    entries: BTreeMap<u64, Entry>,
    /// Start of each Service's rate window, and its Events since.
    sent: BTreeMap<Key, (Instant, u32)>,
    /// End of a pause of all Events, after a failure.
    paused_until: Option<Instant>,
}

struct Entry {
    next: Instant,
    /// Delay that led to `next`, without jitter.
    interval: Duration,
    was_sent: bool,
}

impl Schedule {
    pub(super) fn new(node: &str) -> Self {
        Self { node: node.to_owned(), entries: BTreeMap::new(), sent: BTreeMap::new(), paused_until: None }
    }

    /// Returns the next action for the `open` problems.
    pub(super) fn next(&mut self, open: &[ServiceEvent], now: Instant) -> Next {
        let ids: Vec<u64> = open.iter().map(|event| event.id(&self.node)).collect();
        let present: BTreeSet<u64> = ids.iter().copied().collect();
        // A problem that goes and comes back keeps its next time.
        self.entries.retain(|id, entry| present.contains(id) || (entry.was_sent && entry.next > now));
        self.sent.retain(|_, (since, _)| now.duration_since(*since) < RATE_WINDOW);
        let mut first: Option<(Instant, &ServiceEvent)> = None;
        for (id, event) in ids.into_iter().zip(open) {
            let new =
                || Entry { next: now + SETTLE + jitter(&self.node, id, SPREAD), interval: EVENT_TTL, was_sent: false };
            let mut at = self.entries.entry(id).or_insert_with(new).next;
            if let Some((since, MAX_EVENTS..)) = self.sent.get(&event.service) {
                at = at.max(*since + RATE_WINDOW);
            }
            at = at.max(self.paused_until.unwrap_or(at));
            if first.is_none_or(|(earliest, _)| at < earliest) {
                first = Some((at, event));
            }
        }
        match first {
            None => Next::WaitForProblem,
            Some((at, event)) if at <= now => Next::Send(event.clone()),
            Some((at, _)) => Next::WaitUntil(at),
        }
    }

    /// Records the outcome of sending `event`.
    pub(super) fn record(&mut self, event: &ServiceEvent, outcome: Outcome, now: Instant) {
        let id = event.id(&self.node);
        let old = self.entries.get(&id).map_or(EVENT_TTL, |entry| entry.interval);
        let (interval, delay) = match outcome {
            Outcome::Created => (EVENT_TTL, EVENT_TTL),
            Outcome::Exists => ((old * 2).min(MAX_INTERVAL), old),
            Outcome::NoService => (EVENT_TTL, SERVICE_MISSING),
            Outcome::Invalid => (MAX_INTERVAL, MAX_INTERVAL),
            Outcome::Forbidden => (old, FORBIDDEN),
            Outcome::Failed => (old, RETRY),
        };
        if matches!(outcome, Outcome::Forbidden | Outcome::Failed) {
            // Any other Event would fail as well.
            self.paused_until = Some(now + delay);
        } else {
            self.sent.entry(event.service.clone()).or_insert((now, 0)).1 += 1;
        }
        let next = now + delay + jitter(&self.node, id, delay / 4);
        self.entries.insert(id, Entry { next, interval, was_sent: true });
    }
}

/// Returns a fraction of `whole` that is fixed for this node and problem.
fn jitter(node: &str, id: u64, whole: Duration) -> Duration {
    let share = hash(id, node) >> 32;
    whole.mul_f64(share as f64 / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::problem::ProblemOrigin;
    use lb_core::warning::Warning;

    fn event(name: &str, text: &str) -> ServiceEvent {
        let warning = Warning::InvalidValue { object: None, problem: text.to_owned() };
        ServiceEvent { service: Key::new("default", name), origin: ProblemOrigin::Objects, warning }
    }

    /// Sends all Events that are due from `from` until `end`, each with the next outcome; returns their times.
    fn send_all(
        schedule: &mut Schedule,
        open: &[ServiceEvent],
        from: Instant,
        end: Instant,
        mut outcome: impl FnMut() -> Outcome,
    ) -> Vec<Instant> {
        let (mut now, mut times) = (from, Vec::new());
        loop {
            match schedule.next(open, now) {
                Next::Send(event) => {
                    schedule.record(&event, outcome(), now);
                    times.push(now);
                }
                Next::WaitUntil(at) if at <= end => now = at,
                Next::WaitUntil(_) | Next::WaitForProblem => return times,
            }
        }
    }

    #[test]
    fn an_open_problem_is_sent_once_per_lifetime_of_its_event() {
        let (mut schedule, start) = (Schedule::new("n1"), Instant::now());
        let times = send_all(&mut schedule, &[event("a", "x")], start, start + EVENT_TTL, || Outcome::Created);
        assert_eq!(times.len(), 1);
        assert!(times[0] >= start + SETTLE && times[0] <= start + SETTLE + SPREAD, "at this node's own time");
        let (from, end) = (start + EVENT_TTL, start + 4 * EVENT_TTL);
        let later = send_all(&mut schedule, &[event("a", "x")], from, end, || Outcome::Created);
        assert!((2..=3).contains(&later.len()), "again after the Event has expired: {}", later.len());
    }

    #[test]
    fn a_node_whose_event_exists_sends_ever_more_rarely() {
        let (mut schedule, start) = (Schedule::new("n1"), Instant::now());
        let times = send_all(&mut schedule, &[event("a", "x")], start, start + 10 * MAX_INTERVAL, || Outcome::Exists);
        let waits: Vec<_> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(waits.windows(2).all(|pair| pair[1] >= pair[0]), "{waits:?}");
        assert!(waits.last().is_some_and(|last| *last >= MAX_INTERVAL) && times.len() < 16, "{waits:?}");
    }

    #[test]
    fn a_thousand_nodes_do_not_send_at_once() {
        let start = Instant::now();
        let mut seconds = BTreeMap::<u64, u32>::new();
        for node in 0..1000 {
            let mut schedule = Schedule::new(&format!("node-{node}"));
            let end = start + EVENT_TTL / 2;
            let at = send_all(&mut schedule, &[event("a", "x")], start, end, || Outcome::Exists)[0];
            *seconds.entry((at - start).as_secs()).or_default() += 1;
        }
        assert!(seconds.values().all(|nodes| *nodes < 200), "{seconds:?}");
    }

    #[test]
    fn a_short_problem_is_not_sent_and_a_recurring_one_is_sent_once() {
        let (mut schedule, start) = (Schedule::new("n1"), Instant::now());
        let open = [event("a", "x")];
        assert!(matches!(schedule.next(&open, start), Next::WaitUntil(_)));
        assert_eq!(schedule.next(&[], start + SETTLE), Next::WaitForProblem);
        assert!(schedule.entries.is_empty(), "no entry stays");
        let mut now = start;
        let mut count = 0;
        while now < start + EVENT_TTL {
            let end = now + Duration::from_secs(30);
            count += send_all(&mut schedule, &open, now, end, || Outcome::Created).len();
            now += Duration::from_secs(30);
            assert_eq!(schedule.next(&[], now), Next::WaitForProblem);
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
            let open: Vec<_> = (0..10).map(|i| event("a", &format!("{minute} {i}"))).collect();
            count += send_all(&mut schedule, &open, now, now + Duration::from_secs(59), || Outcome::Created).len();
        }
        assert!(count <= 60 + 10, "{count} in an hour");
        assert!(schedule.entries.len() <= 80 && schedule.sent.len() == 1, "{}", schedule.entries.len());
    }

    #[test]
    fn a_forbidden_event_pauses_all_events() {
        let (mut schedule, start) = (Schedule::new("n1"), Instant::now());
        let open: Vec<_> = (0..100).map(|number| event(&number.to_string(), "x")).collect();
        let times = send_all(&mut schedule, &open, start, start + EVENT_TTL, || Outcome::Forbidden);
        assert!(times.len() <= 6, "{}", times.len());
    }
}
