//! Tests of choices while a client's failures hold backends back.

use super::*;
use crate::EjectPolicy;

/// "1 in 10s for 30s", in a list of so many backends.
fn policy(backends: usize) -> EjectPolicy {
    let most = u16::try_from(backends / 2).expect("few");
    EjectPolicy { failures: 1, window: 10, seconds: 30, cluster_most: most, local_most: 0, _pad: 0 }
}

fn ejecting(scheduler: Scheduler, weights: &[u16]) -> Mem {
    let mut mem = scheduled(scheduler, u32::try_from(weights.len()).expect("few"), weights);
    mem.services.get_mut(&1).expect("the service port").eject = policy(weights.len());
    mem
}

/// A connect of the client to a backend fails.
fn fail(mem: &Mem, client: &Client, backend: u32) {
    let key = client.ejection_key(1).expect("a key");
    let policy = mem.services[&1].eject;
    mem.ejections.borrow_mut().entry(key).or_insert(Ejections::EMPTY).fail(backend, &policy, client.now);
}

fn at(netns: u64, seconds: u64) -> Client {
    Client { now: (1_000 + seconds) * SECOND, ..Client::new(netns) }
}

/// Backends of many choices, each once.
fn chosen(mem: &Mem, client: &Client) -> Vec<u32> {
    let ids: std::collections::BTreeSet<u32> =
        (0..200).map(|_| backend(select(mem, client, &vip(80), 0)).expect("a backend")).collect();
    ids.into_iter().collect()
}

#[test]
fn an_ejected_backend_gets_no_socket_of_its_client_and_all_of_others_with_every_scheduler() {
    for scheduler in Scheduler::ALL {
        let mut mem = ejecting(scheduler, &[1, 1, 1, 1]);
        if scheduler == Scheduler::Mh {
            mem.maglev.insert(MaglevKey { service: 1, list: 0 }, (0..MAGLEV).map(|n| 10 + n % 4).collect());
        }
        let client = at(7, 0);
        fail(&mem, &client, 11);
        fail(&mem, &client, 12);
        // Hashes of one client or destination lead to one backend.
        let seen = chosen(&mem, &client);
        assert!(!seen.is_empty() && seen.iter().all(|id| [10, 13].contains(id)), "{scheduler:?}: {seen:?}");
        let of_others: Vec<u32> = (0..60).flat_map(|netns| chosen(&mem, &at(100 + netns, 0))).collect();
        let varies = scheduler != Scheduler::Dh;
        assert!(!varies || (10..14).all(|id| of_others.contains(&id)), "{scheduler:?}: {of_others:?}");
    }
}

const MAGLEV: u32 = crate::MAGLEV_LEN as u32;

#[test]
fn a_backend_comes_back_with_one_connect() {
    let mem = ejecting(Scheduler::Rr, &[1, 1]);
    fail(&mem, &at(7, 0), 10);
    assert_eq!(chosen(&mem, &at(7, 29)), [11]);
    let client = at(7, 30);
    let first: Vec<u32> = (0..40).filter_map(|_| backend(select(&mem, &client, &vip(80), 0))).collect();
    assert_eq!(first.iter().filter(|id| **id == 10).count(), 1, "{first:?}");
    // Without a result another one tries.
    assert_eq!(chosen(&mem, &at(7, 32)), [10, 11]);
    let key = client.ejection_key(1).expect("a key");
    mem.ejections.borrow_mut().get_mut(&key).expect("an entry").succeed(10, client.now);
    let both: Vec<u32> = (0..4).filter_map(|_| backend(select(&mem, &client, &vip(80), 0))).collect();
    assert_eq!(both.iter().filter(|id| **id == 10).count(), 2, "{both:?}");
}

#[test]
fn never_more_than_half_and_never_the_last_is_held() {
    for scheduler in Scheduler::ALL {
        for count in 1..6_u16 {
            let mem = ejecting(scheduler, &[1; 5][..count.into()]);
            let client = at(7, 0);
            let all = 10..10 + u32::from(count);
            all.clone().for_each(|backend| fail(&mem, &client, backend));
            let seen = chosen(&mem, &client);
            let [most, left] = [u32::from(count / 2), u32::from(count - count / 2)];
            assert!(
                seen.iter().all(|id| (10 + most..10 + most + left).contains(id)),
                "{scheduler:?} {count}: {seen:?}"
            );
        }
    }
}

#[test]
fn affinity_leaves_an_ejected_backend_for_good() {
    let mut mem = ejecting(Scheduler::Random, &[1, 1, 1, 1]);
    mem.services.get_mut(&1).expect("the service port").affinity_seconds = 10_000;
    let client = at(7, 0);
    let first = backend(select(&mem, &client, &vip(80), 0)).expect("a backend");
    assert_eq!(chosen(&mem, &client), [first]);
    fail(&mem, &client, first);
    let other = chosen(&mem, &client);
    assert!(other.len() == 1 && other[0] != first, "{other:?}");
    assert_eq!(chosen(&mem, &at(7, 60)), other);
    // The client's only choice by affinity is tried when its time is over, by one connect.
    let mem = ejecting(Scheduler::Random, &[1, 1]);
    let key = client.client().affinity_key(1);
    mem.affinity.borrow_mut().insert(key, Affinity { used: client.now, backend: 10, _pad: 0 });
    fail(&mem, &client, 10);
    assert_eq!(chosen(&mem, &client), [11]);
}

#[test]
fn a_heavy_backend_is_ejected_too_and_open_sockets_do_not_bring_it_back() {
    for scheduler in [Scheduler::Wrr, Scheduler::Wlc, Scheduler::Sed, Scheduler::Nq] {
        let mem = ejecting(scheduler, &[6, 1, 1]);
        let client = at(7, 0);
        mem.open.borrow_mut().extend([(11, 50), (12, 50)]);
        assert!(chosen(&mem, &client).contains(&10));
        fail(&mem, &client, 10);
        let seen = chosen(&mem, &client);
        assert!(!seen.contains(&10), "{scheduler:?}: {seen:?}");
    }
}

#[test]
fn a_service_port_without_the_annotation_asks_nothing() {
    let mem = scheduled(Scheduler::Rr, 2, &[]);
    let client = at(7, 0);
    let key = client.ejection_key(1).expect("a key");
    let mut seen = Ejections::EMPTY;
    seen.fail(10, &policy(2), client.now);
    mem.ejections.borrow_mut().insert(key, seen);
    assert_eq!(chosen(&mem, &client), [10, 11]);
    let Verdict::Backend(choice) = select(&mem, &client, &vip(80), 0) else { panic!("a backend") };
    assert_eq!(choice.followed, None);
    let Verdict::Backend(choice) = select(&ejecting(Scheduler::Rr, &[1]), &client, &vip(80), 0) else {
        panic!("a backend")
    };
    assert_eq!(choice.followed, Some(Followed::In(List::Cluster)));
}

#[test]
fn an_observer_learns_which_backends_are_ejected_and_tried() {
    let mem = ejecting(Scheduler::Rr, &[1, 1]);
    fail(&mem, &at(7, 0), 10);
    let steps = |client: &Client| {
        mem.turns.borrow_mut().clear();
        let seen = RefCell::new(Vec::new());
        select_observed(&mem, client, &vip(80), 0, &|event| seen.borrow_mut().push(event));
        let seen = seen.into_inner();
        seen[3..seen.len() - 1].to_vec()
    };
    assert_eq!(steps(&at(7, 0)), [SelectEvent::Ejected { backend: 10 }]);
    assert_eq!(steps(&at(7, 30)), [SelectEvent::Trial { backend: 10 }]);
    assert_eq!(steps(&at(8, 0)), []);
}
