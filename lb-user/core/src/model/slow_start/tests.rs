//! Slow start over time, and over the maps of the agent before.

use lb_common::{AddrPort, BackendFlags, Family, Proto, Scheduler};

use super::*;
use crate::{
    objects::Drain,
    plan::{OnOrphan, Scope, plan},
    spec::{PortKey, PortSpec},
    store::{Limits, MemoryStore, Store as _},
};

const SECOND: Duration = Duration::from_secs(1);

fn key() -> Key {
    Key::new("default", "a")
}

fn target(last: u8) -> AddrPort {
    AddrPort { addr: std::net::IpAddr::from([10, 0, 0, last]).into(), port: 80 }
}

/// The spec of a Service with endpoints by last octet and weight.
fn spec(endpoints: &[(u8, u16)]) -> ServiceSpec {
    let port = PortSpec {
        key: PortKey { service: key(), name: "".into(), proto: Proto::Tcp, family: Family::V4 },
        frontends: Vec::new(),
        backends: endpoints
            .iter()
            .map(|&(last, weight)| Member { target: target(last), flags: BackendFlags::CLUSTER, weight })
            .collect(),
        flags: 0,
        ranges: Vec::new(),
        scheduler: Scheduler::Random,
        affinity_seconds: 0,
        drain: Drain::Never,
        eject: None,
    };
    ServiceSpec { ports: vec![port], ..ServiceSpec::gone(key()) }
}

fn weights(starts: &SlowStarts, endpoints: &[(u8, u16)]) -> Vec<u16> {
    let mut members = spec(endpoints).ports.remove(0).backends;
    starts.apply(&key(), &mut members);
    members.iter().map(|member| member.weight).collect()
}

const TEN: Option<NonZeroU32> = NonZeroU32::new(10);

#[test]
fn the_weight_of_a_new_endpoint_rises_in_tenths() {
    let mut starts = SlowStarts::default();
    let two = [(1, 1), (2, 1)];
    // The first endpoints begin at once.
    assert!(!starts.observe(&spec(&two), TEN, None));
    assert_eq!((weights(&starts, &two), starts.next()), (vec![1, 1], None));
    assert!(starts.rising.is_empty() && starts.services.len() == 1);
    let three = [(1, 1), (2, 1), (3, 1)];
    assert!(starts.observe(&spec(&three), TEN, None));
    let mut seen = vec![weights(&starts, &three)];
    let mut steps = 0;
    while let Some(next) = starts.next() {
        assert_eq!(starts.set_time(next), [key()]);
        starts.observe(&spec(&three), TEN, None);
        seen.push(weights(&starts, &three));
        steps += 1;
        assert!(next <= 11 * SECOND, "{next:?}");
    }
    let expected: Vec<_> = (1..10).map(|step| vec![10, 10, step]).chain([vec![10, 10, 10], vec![1, 1, 1]]).collect();
    assert!(starts.rising.is_empty() && starts.services.len() == 1, "it costs nothing any more");
    // The last step leaves the weights as they are.
    let expected: Vec<_> = expected.into_iter().filter(|weights| *weights != [10, 10, 10]).collect();
    seen.dedup();
    assert_eq!((seen, steps), (expected, 10));
}

#[test]
fn an_endpoint_that_comes_back_begins_again() {
    let mut starts = SlowStarts::default();
    let (one, two) = ([(1, 1)], [(1, 1), (2, 1)]);
    starts.observe(&spec(&two), TEN, None);
    starts.observe(&spec(&one), TEN, None);
    assert_eq!(weights(&starts, &one), [1]);
    assert!(starts.observe(&spec(&two), TEN, None));
    assert_eq!(weights(&starts, &two), [10, 1]);
    assert_eq!(starts.rise(&key(), &target(1)), None);
    let rise = starts.rise(&key(), &target(2)).expect("it is new");
    assert_eq!((rise.step.get(), rise.left), (1, 10 * SECOND));
    assert_eq!(starts.set_time(5 * SECOND), [key()]);
    assert_eq!(weights(&starts, &two), [10, 6]);
    // Without the annotation all have their weight at once.
    assert!(starts.observe(&spec(&two), None, None));
    assert_eq!((weights(&starts, &two), starts.next()), (vec![1, 1], None));
    assert!(!starts.observe(&spec(&two), None, None));
}

#[test]
fn weights_of_their_own_are_tenths_too_and_fit() {
    let mut starts = SlowStarts::default();
    starts.observe(&spec(&[(1, 3)]), TEN, None);
    for (of, expected) in [
        ([(1, 3), (2, 2)], [30, 2]),
        ([(1, 65_535), (2, 65_535)], [65_535, 6_553]),
        ([(1, 65_535), (2, 1)], [65_535, 1]),
    ] {
        starts.observe(&spec(&of), TEN, None);
        assert_eq!(weights(&starts, &of), expected);
    }
}

/// The maps that an agent leaves with these endpoints and slots.
fn maps(endpoints: &[(u8, u16)]) -> Shadow {
    let mut store = MemoryStore::default();
    let empty = Shadow::default();
    let plan = plan(&empty, &[spec(endpoints)], None, Scope::World, OnOrphan::Keep, &Limits::DEFAULT);
    store.apply(&plan.ops).expect("room");
    Shadow::from_dump(&store.dump().expect("a dump")).0
}

#[test]
fn a_starting_agent_goes_on_where_the_maps_are() {
    let whole = [(1, 1), (2, 1), (3, 1)];
    for (slots, expected) in [
        // The third has 4 tenths; they go on from there.
        (vec![(1, 10), (2, 10), (3, 4)], vec![10, 10, 4]),
        (vec![(1, 5), (2, 5), (3, 2)], vec![10, 10, 4]),
        (vec![(1, 1), (2, 1), (3, 1)], vec![1, 1, 1]),
        // The third came meanwhile.
        (vec![(1, 1), (2, 1)], vec![10, 10, 1]),
    ] {
        let mut starts = SlowStarts::default();
        starts.observe(&spec(&whole), TEN, Some(&maps(&slots)));
        assert_eq!(weights(&starts, &whole), expected, "{slots:?}");
    }
    let mut starts = SlowStarts::default();
    starts.observe(&spec(&whole), TEN, Some(&maps(&[(1, 10), (2, 10), (3, 4)])));
    assert_eq!(starts.rise(&key(), &target(3)).expect("it rises").left, 7 * SECOND);
    assert_eq!(starts.set_time(8 * SECOND), [key()]);
    assert_eq!(starts.rise(&key(), &target(3)), None);
    // All endpoints of a Service that the maps do not have begin at once.
    let mut starts = SlowStarts::default();
    assert!(!starts.observe(&spec(&whole), TEN, Some(&Shadow::default())));
}
