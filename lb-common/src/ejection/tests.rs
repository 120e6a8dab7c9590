//! Tests of a client's verdicts on backends over time.

use super::*;
use crate::FIRST_SCOPE;
use proptest::prelude::*;
use std::{vec, vec::Vec};

/// "3 in 10s for 30s", in a list of four backends.
const POLICY: EjectPolicy =
    EjectPolicy { failures: 3, window: 10, seconds: 30, cluster_most: 2, local_most: 0, _pad: 0 };
const MAX_EJECTED: u32 = POLICY.cluster_most as u32;

fn at(seconds: u64) -> u64 {
    1_000 * SECOND + seconds * SECOND
}

/// Fails three times at once; true if that ejects the backend.
fn fail(seen: &mut Ejections, backend: u32, now: u64) -> bool {
    (0..3).map(|_| seen.fail(backend, &POLICY, now)).fold(false, |ejects, one| ejects | one)
}

#[test]
fn a_backend_is_ejected_by_failures_in_a_row_within_the_window() {
    let mut seen = Ejections::EMPTY;
    assert!(!seen.fail(7, &POLICY, at(0)) && !seen.fail(7, &POLICY, at(5)));
    assert_eq!(seen.hold(7, MAX_EJECTED, at(5)), Hold::Free);
    assert!(seen.fail(7, &POLICY, at(10)), "the third in ten seconds");
    assert_eq!(seen.hold(7, MAX_EJECTED, at(39)), Hold::Held);
    assert_eq!(seen.hold(7, MAX_EJECTED, at(40)), Hold::Trial);
    // The window is over before the third.
    let mut seen = Ejections::EMPTY;
    assert!(!seen.fail(7, &POLICY, at(0)) && !seen.fail(7, &POLICY, at(5)) && !seen.fail(7, &POLICY, at(11)));
    // A success in between.
    let mut seen = Ejections::EMPTY;
    assert!(!seen.fail(7, &POLICY, at(0)) && !seen.fail(7, &POLICY, at(1)));
    seen.succeed(7, at(2));
    assert!(!seen.fail(7, &POLICY, at(3)));
    assert_eq!(seen.hold(7, MAX_EJECTED, at(3)), Hold::Free);
}

#[test]
fn one_connect_at_a_time_tries_a_backend_whose_time_is_over() {
    let mut seen = Ejections::EMPTY;
    assert!(fail(&mut seen, 7, at(0)));
    seen.begin_trial(7, at(30));
    assert_eq!(seen.hold(7, MAX_EJECTED, at(31)), Hold::Held, "others wait");
    // Without a result another connect tries.
    assert_eq!(seen.hold(7, MAX_EJECTED, at(32)), Hold::Trial);
    seen.begin_trial(7, at(32));
    seen.succeed(7, at(32));
    assert_eq!(seen.hold(7, MAX_EJECTED, at(32)), Hold::Free);
    assert!(!seen.fail(7, &POLICY, at(33)), "in use again, one failure ejects no more");
}

#[test]
fn a_failed_trial_ejects_for_twice_the_time_up_to_sixteen_times() {
    let mut seen = Ejections::EMPTY;
    let mut now = at(0);
    assert!(fail(&mut seen, 7, now));
    for times in [1, 2, 4, 8, 16, 16] {
        now += 30 * times * SECOND;
        assert_eq!(seen.hold(7, MAX_EJECTED, now - 1), Hold::Held, "{times}");
        assert_eq!(seen.hold(7, MAX_EJECTED, now), Hold::Trial, "{times}");
        seen.begin_trial(7, now);
        assert!(seen.fail(7, &POLICY, now));
    }
}

#[test]
fn a_return_is_forgotten_after_ten_times_the_time() {
    let again = |after: u64| {
        let mut seen = Ejections::EMPTY;
        assert!(fail(&mut seen, 7, at(0)));
        seen.begin_trial(7, at(30));
        seen.succeed(7, at(30));
        assert!(fail(&mut seen, 7, at(30 + after)));
        (1..).find(|seconds| seen.hold(7, MAX_EJECTED, at(30 + after + seconds)) == Hold::Trial)
    };
    assert_eq!(again(300), Some(60));
    assert_eq!(again(301), Some(30));
}

#[test]
fn a_failure_of_a_connect_from_before_does_not_lengthen_an_ejection() {
    let mut seen = Ejections::EMPTY;
    assert!(fail(&mut seen, 7, at(0)));
    assert!(!fail(&mut seen, 7, at(10)));
    assert_eq!(seen.hold(7, MAX_EJECTED, at(30)), Hold::Trial);
    // A late answer ends it.
    seen.succeed(7, at(11));
    assert_eq!(seen.hold(7, MAX_EJECTED, at(11)), Hold::Free);
}

#[test]
fn never_more_than_half_of_a_list_is_held_whatever_its_length_becomes() {
    let mut seen = Ejections::EMPTY;
    for backend in 1..=4 {
        assert!(fail(&mut seen, backend, at(0)));
    }
    let held = |seen: &Ejections, most| {
        (1..=4).filter(|backend| seen.hold(*backend, most, at(1)) != Hold::Free).collect::<Vec<_>>()
    };
    assert_eq!(held(&seen, 2), [1, 2], "those ejected first");
    assert_eq!(held(&seen, 1), [1], "a list of two or three");
    assert_eq!(held(&seen, 0), [] as [u32; 0], "the last one");
}

#[test]
fn backends_share_places_and_ejected_ones_keep_theirs() {
    let mut seen = Ejections::EMPTY;
    let alike = (4..).filter(|id| Ejections::first(*id) == Ejections::first(3));
    let [a, b, c] = [vec![3], alike.take(2).collect()].concat().try_into().expect("three");
    assert!(fail(&mut seen, a, at(0)) && fail(&mut seen, b, at(0)));
    assert!(!fail(&mut seen, c, at(0)), "no place");
    assert_eq!([a, b, c].map(|backend| seen.hold(backend, MAX_EJECTED, at(1))), [Hold::Held, Hold::Held, Hold::Free]);
    seen.succeed(b, at(1));
    assert!(fail(&mut seen, c, at(1)));
    assert_eq!([a, b, c].map(|backend| seen.hold(backend, MAX_EJECTED, at(1))), [Hold::Held, Hold::Free, Hold::Held]);
}

#[test]
fn backends_of_service_ports_that_share_affinity_have_places_of_their_own() {
    let mut seen = Ejections::EMPTY;
    let backends: Vec<u32> = (1..=20).map(|block| FIRST_SCOPE + block * SCOPE_SIZE + 5).collect();
    assert!(backends.iter().all(|backend| fail(&mut seen, *backend, at(0))));
    assert!(backends.iter().all(|backend| seen.hold(*backend, 20, at(1)) == Hold::Held));
}

#[test]
fn an_entry_is_over_when_its_longest_memory_is() {
    let mut seen = Ejections::EMPTY;
    seen.fail(7, &POLICY, at(0));
    assert!(!seen.is_over(&POLICY, at(790)) && seen.is_over(&POLICY, at(791)));
    assert!(seen.is_over(&EjectPolicy::default(), at(0)));
}

proptest! {
    /// The promise of `beeline.io/eject`: never more than half of a list, never the last.
    #[test]
    fn no_history_holds_more_than_half_of_a_list(
        len in 1..12_u32,
        steps in proptest::collection::vec((0..12_u32, 0..4_u8, 0..40_u64), 1..300),
    ) {
        let mut seen = Ejections::EMPTY;
        let policy = EjectPolicy { failures: 1, ..POLICY };
        let mut now = at(0);
        for (backend, action, seconds) in steps {
            let backend = backend % len + 1;
            match action {
                0 | 1 => {
                    seen.fail(backend, &policy, now);
                }
                2 if seen.hold(backend, len / 2, now) == Hold::Trial => seen.begin_trial(backend, now),
                2 => {}
                _ => seen.succeed(backend, now),
            }
            now += if seconds < 30 { 0 } else { seconds * SECOND };
            let held = (1..=len).filter(|backend| seen.hold(*backend, len / 2, now) == Hold::Held).count();
            prop_assert!(held <= len as usize / 2, "{held} of {len}");
        }
    }
}
