//! Times of probes and results, over answers and use.

use std::net::Ipv4Addr;

use lb_core::{objects::ProbeQuestion, spec::ProbeTargets};

use super::*;
use crate::probes::Probed;

const SECOND: Duration = Duration::from_secs(1);

fn key() -> Key {
    Key::new("default", "a")
}

fn target(last: u8) -> AddrPort {
    AddrPort { addr: Ipv4Addr::new(10, 0, 0, last).into(), port: 80 }
}

fn services(every: u32, fail: u8, pass: u8, targets: &[u8]) -> ProbedServices {
    let number = |number: u8| NonZeroU8::new(number).expect("not 0");
    let probe = Probe {
        question: ProbeQuestion::Tcp,
        every: every.try_into().expect("not 0"),
        timeout: 1.try_into().expect("not 0"),
        fail: number(fail),
        pass: number(pass),
    };
    let targets = ProbeTargets { probe, targets: targets.iter().copied().map(target).collect() };
    Arc::new([(key(), Probed { targets, ids: vec![7] })].into())
}

/// A schedule with a clock.
struct Fixture {
    schedule: Schedule,
    now: Duration,
}

impl Fixture {
    fn new(services: &ProbedServices) -> Self {
        let mut schedule = Schedule::default();
        assert_eq!(schedule.set(services, Duration::ZERO), []);
        Self { schedule, now: Duration::ZERO }
    }

    /// Waits for the next probe, and records an answer that comes at once. Returns the endpoint, the time since the
    /// last one, and a new result: true if it passes.
    fn step(&mut self, answers: impl Fn(AddrPort) -> bool) -> (AddrPort, Duration, Option<bool>) {
        let next = self.schedule.next().expect("a probe").max(self.now);
        let waited = next - self.now;
        self.now = next;
        let due = self.schedule.take_due(next).expect("it is due");
        let answer = if answers(due.target) { Ok(()) } else { Err("connection refused".to_owned()) };
        let change = self.schedule.record(&due, answer, next);
        let passes = change.map(|change| match change.verdict.expect("it is probed") {
            ProbeVerdict::Passes => true,
            ProbeVerdict::Fails(cause) => {
                assert_eq!(&*cause, "connection refused");
                false
            }
        });
        (due.target, waited, passes)
    }
}

fn assert_about(actual: Duration, seconds: u32) {
    let expected = seconds * SECOND;
    assert!(actual >= expected * 9 / 10 && actual <= expected * 11 / 10, "{actual:?} is not about {expected:?}");
}

#[test]
fn an_endpoint_fails_after_failures_in_a_row_and_passes_after_passes_in_a_row() {
    let mut fixture = Fixture::new(&services(5, 3, 2, &[1]));
    let (_, first, passes) = fixture.step(|_| true);
    assert!(first <= SECOND && passes == Some(true), "the first answer counts at once");
    // Answers, the time before each in seconds, and new results.
    for (answer, waited, expected) in [
        (true, 5, None),
        (false, 5, None),
        (false, 1, None),
        (true, 1, None),
        (false, 5, None),
        (false, 1, None),
        (false, 1, Some(false)),
        (false, 5, None),
        (true, 5, None),
        (false, 1, None),
        (true, 5, None),
        (true, 1, Some(true)),
        (true, 5, None),
    ] {
        let (_, time, passes) = fixture.step(|_| answer);
        assert_about(time, waited);
        assert_eq!(passes, expected, "{answer} after {waited}");
        // The Service is in use.
        fixture.schedule.services.get_mut(&key()).expect("it is there").used = fixture.now;
    }
}

#[test]
fn an_endpoint_that_never_passed_fails_after_as_many_failures() {
    let mut fixture = Fixture::new(&services(5, 3, 1, &[1]));
    let results: Vec<_> = (0..4).map(|_| fixture.step(|_| false).2).collect();
    assert_eq!(results, [None, None, Some(false), None]);
    assert!(fixture.now < 8 * SECOND, "within three seconds, and then after the period: {:?}", fixture.now);
}

#[test]
fn an_unused_service_is_asked_rarely_until_it_is_used() {
    let mut fixture = Fixture::new(&services(5, 3, 1, &[1]));
    fixture.schedule.observe_use(|ids| if ids == [7] { 10 } else { 0 }, fixture.now);
    let mut times = Vec::new();
    while fixture.now < 200 * SECOND {
        times.push(fixture.step(|_| true).1.as_secs());
        fixture.schedule.observe_use(|_| 10, fixture.now);
    }
    assert!(times.len() < 18 && times.last().is_some_and(|last| *last >= 54), "{times:?}");
    // A failure is checked at once, in use or not.
    let (_, _, result) = fixture.step(|_| false);
    assert_eq!((result, fixture.step(|_| false).2, fixture.step(|_| false).2), (None, None, Some(false)));
    assert_about(fixture.schedule.next().expect("a probe") - fixture.now, 60);
    // A new connection: the period has passed already.
    fixture.now += 10 * SECOND;
    fixture.schedule.observe_use(|_| 11, fixture.now);
    assert_eq!(fixture.step(|_| true).1, Duration::ZERO);
    assert_about(fixture.step(|_| true).1, 5);
}

#[test]
fn a_service_is_asked_at_most_twenty_times_a_second_and_holds_no_other_up() {
    let all: Vec<u8> = (0..=255).collect();
    let probed = services(1, 3, 1, &all)[&key()].clone();
    let other = Probed { targets: services(1, 3, 1, &[1])[&key()].targets.clone(), ids: vec![8] };
    let mut fixture = Fixture::new(&Arc::new([(key(), probed), (Key::new("default", "b"), other)].into()));
    let (mut of_first, mut of_other) = (0, 0);
    while fixture.now < 30 * SECOND {
        let next = fixture.schedule.next().expect("a probe").max(fixture.now);
        fixture.now = next;
        let due = fixture.schedule.take_due(next).expect("it is due");
        if due.service == key() {
            of_first += 1;
        } else {
            of_other += 1;
        }
        fixture.schedule.record(&due, Ok(()), next);
    }
    assert!((500..=601).contains(&of_first) && (27..=34).contains(&of_other), "{of_first} {of_other}");
}

#[test]
fn probes_of_many_endpoints_are_spread() {
    let all: Vec<u8> = (0..15).collect();
    let mut fixture = Fixture::new(&services(10, 3, 1, &all));
    let mut starts: BTreeMap<AddrPort, Vec<Duration>> = BTreeMap::new();
    while fixture.now < 30 * SECOND {
        let (target, ..) = fixture.step(|_| true);
        starts.entry(target).or_default().push(fixture.now);
    }
    let firsts: Vec<_> = starts.values().filter_map(|of| of.first()).collect();
    let early = firsts.iter().filter(|first| ***first < SECOND / 2).count();
    assert!(firsts.len() == 15 && (3..=12).contains(&early), "{early}");
    assert!(starts.values().all(|of| (3..=4).contains(&of.len())), "{starts:?}");
}

#[test]
fn endpoints_that_go_lose_their_result_and_others_keep_it() {
    let mut fixture = Fixture::new(&services(5, 1, 1, &[1, 2, 3]));
    let unknown = {
        let counts = ProbeCounts::default();
        fixture.schedule.count(&counts);
        counts.unknown.load(Ordering::Relaxed)
    };
    assert_eq!(unknown, 3);
    for _ in 0..2 {
        fixture.step(|_| true);
    }
    let known: Vec<AddrPort> = fixture.schedule.services[&key()]
        .targets
        .iter()
        .filter(|(_, state)| state.passes.is_some())
        .map(|(target, _)| *target)
        .collect();
    let kept = known[0];
    let last = kept.addr.octets[15];
    let gone = fixture.schedule.set(&services(5, 1, 1, &[last, 9]), fixture.now);
    assert_eq!(gone, [Change { service: key(), target: known[1], verdict: None, is_back: false }]);
    assert_eq!(fixture.schedule.services[&key()].targets[&kept].passes, Some(true));
    // The answer to an endpoint that has gone meanwhile is dropped.
    let next = fixture.schedule.next().expect("a probe");
    let due = fixture.schedule.take_due(next).expect("it is due");
    let _gone = fixture.schedule.set(&ProbedServices::default(), next);
    assert_eq!(fixture.schedule.record(&due, Ok(()), next), None);
    assert!(fixture.schedule.is_empty() && fixture.schedule.next().is_none());
}
