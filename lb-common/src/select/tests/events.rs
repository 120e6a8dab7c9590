//! Tests of the events that an observer gets: one table by situation.

use super::*;
use crate::{AffinityOutcome::*, MAGLEV_LEN, Reason as By, SelectEvent as E, hash::fold};

/// A client on this node or outside, with an address if it sends packets. Its random number is 0.
struct Asker {
    client: super::super::Client,
    host: bool,
    origin: Origin,
    bypassed: bool,
    now: u64,
}

const SOCKET: Asker =
    Asker { client: super::super::Client::of_netns(7), host: false, origin: Origin::Node, bypassed: false, now: 0 };

fn outside(addr: &str) -> Asker {
    let client = super::super::Client::of_addr(ip(addr));
    Asker { client, origin: Origin::Outside, ..SOCKET }
}

impl Caller for Asker {
    fn random(&self) -> u32 {
        0
    }
    fn client(&self) -> super::super::Client {
        self.client
    }
    fn is_host(&self) -> bool {
        self.host
    }
    fn origin(&self) -> Origin {
        self.origin
    }
    fn is_bypassed(&self) -> bool {
        self.bypassed
    }
    fn now(&self) -> u64 {
        self.now
    }
}

fn ip(text: &str) -> Addr {
    text.parse::<IpAddr>().expect("an address").into()
}

/// The events of a choice; checks that the last one is the verdict, and that [`select`] agrees.
fn events(mem: &Mem, asker: &Asker, dest: &FrontendKey, avoid: u32) -> Vec<E> {
    let (turns, affinity) = (mem.turns.clone(), mem.affinity.clone());
    let seen = RefCell::new(Vec::new());
    let verdict = select_observed(mem, asker, dest, avoid, &|event| seen.borrow_mut().push(event));
    let seen = seen.into_inner();
    let last = match seen.last().expect("a verdict") {
        E::NoFrontend | E::NotServedAt { .. } | E::Bypassed | E::UnknownSource => Verdict::NotService,
        E::Refused(service, cause) => Verdict::Refused(*service, *cause),
        E::Chosen(choice) => Verdict::Backend(*choice),
        other => panic!("no verdict: {other:?}"),
    };
    assert_eq!(last, verdict);
    // The same state once more, without an observer.
    mem.turns.swap(&turns);
    mem.affinity.swap(&affinity);
    assert_eq!(select(mem, asker, dest, avoid), verdict);
    seen
}

/// The events between the frontend and the verdict.
fn middle(mem: &Mem, asker: &Asker, avoid: u32) -> Vec<E> {
    let seen = events(mem, asker, &vip(80), avoid);
    assert!(matches!(seen[0], E::Frontend { matched: Match::Exact, .. }), "{seen:?}");
    seen[1..seen.len() - 1].to_vec()
}

fn list(list: List, reason: ListReason, len: u32) -> E {
    E::List { list, reason, len }
}

fn internal(len: u32) -> E {
    list(List::Cluster, ListReason::InternalCluster, len)
}

#[test]
fn an_observer_learns_the_frontend_or_the_reason_for_none() {
    let mut mem = plain(Kind::ClusterIp, 1, 0, 0);
    let node_port = Frontend::new(1, Kind::NodePort);
    mem.frontends.insert(key("0.0.0.0", 30080), node_port);
    let host_only = NodeAddr { flags: NodeAddrFlags::HOST_ONLY };
    mem.node_addrs.extend([(ip("192.0.2.1"), NodeAddr::default()), (ip("127.0.0.1"), host_only)]);
    let host = Asker { host: true, ..SOCKET };
    let bypassed = Asker { bypassed: true, ..SOCKET };
    let exact = E::Frontend { frontend: Frontend::new(1, Kind::ClusterIp), matched: Match::Exact };
    let by_port = E::Frontend { frontend: node_port, matched: Match::PortOfNode };
    let elsewhere = |node_addr| E::NotServedAt { frontend: node_port, node_addr };
    let cases: [(&Asker, FrontendKey, &[E]); 8] = [
        (&SOCKET, vip(80), &[exact]),
        (&SOCKET, vip(81), &[E::NoFrontend]),
        (&SOCKET, key("192.0.2.1", 30080), &[by_port]),
        (&SOCKET, key("192.0.2.2", 30080), &[elsewhere(None)]),
        (&SOCKET, key("127.0.0.1", 30080), &[elsewhere(Some(host_only))]),
        (&SOCKET, key("0.0.0.0", 30080), &[elsewhere(Some(host_only))]),
        (&host, key("127.0.0.1", 30080), &[by_port]),
        (&bypassed, vip(80), &[exact, E::Bypassed]),
    ];
    for (asker, dest, expected) in cases {
        assert_eq!(events(&mem, asker, &dest, 0)[..expected.len()], *expected, "{dest}");
    }
}

#[test]
fn an_observer_learns_the_list_and_its_policy() {
    use ListReason::{ExternalCluster, ExternalLocal, InternalCluster, InternalLocal, OnNode};
    const BOTH: u32 = ServiceFlags::INTERNAL_LOCAL | ServiceFlags::EXTERNAL_LOCAL;
    let far = outside("192.0.2.9");
    let cases = [
        (Kind::ClusterIp, 0, &SOCKET, InternalCluster),
        (Kind::ClusterIp, BOTH, &SOCKET, InternalLocal),
        (Kind::ClusterIp, BOTH, &far, InternalLocal),
        (Kind::LoadBalancer, BOTH, &SOCKET, OnNode),
        (Kind::ExternalIp, 0, &SOCKET, OnNode),
        (Kind::ExternalIp, ServiceFlags::INTERNAL_LOCAL, &far, ExternalCluster),
        (Kind::LoadBalancer, BOTH, &far, ExternalLocal),
    ];
    for (kind, flags, asker, reason) in cases {
        let expected = match reason {
            InternalLocal | ExternalLocal => list(List::Local, reason, 1),
            InternalCluster | ExternalCluster | OnNode => list(List::Cluster, reason, 2),
        };
        assert_eq!(middle(&plain(kind, 2, 1, flags), asker, 0)[0], expected, "{kind:?} {flags}");
    }
}

#[test]
fn an_observer_learns_the_rule_of_the_scheduler() {
    let far = outside("192.0.2.9");
    let sh = scale(splitmix(fold(&SOCKET.client.addr), 1), 3);
    let dh = scale(splitmix(fold(&vip(80).addr), 1), 3);
    let by = |index, reason| E::Scheduled { backend: 10 + index, reason };
    let pair = |scheduled, other, taken| E::Compared(Pair { scheduled, other, taken });
    let cases: [(Scheduler, &Asker, &[E]); 11] = [
        (Scheduler::Random, &SOCKET, &[by(0, By::Random)]),
        (Scheduler::Random, &far, &[by(0, By::Random)]),
        (Scheduler::Rr, &SOCKET, &[by(0, By::Turn)]),
        (Scheduler::Wrr, &far, &[by(0, By::Turn)]),
        (Scheduler::Lc, &SOCKET, &[by(0, By::Random), pair(10, 11, 11)]),
        (Scheduler::Wlc, &far, &[by(0, By::Random), pair(10, 11, 11)]),
        (Scheduler::Sed, &SOCKET, &[by(0, By::Random), pair(10, 11, 11)]),
        (Scheduler::Nq, &SOCKET, &[by(0, By::Random), pair(10, 11, 11)]),
        (Scheduler::Sh, &SOCKET, &[by(sh, By::ClientHash)]),
        (Scheduler::Dh, &SOCKET, &[by(dh, By::DestinationHash)]),
        // Without a table, as for a list that has just been added.
        (Scheduler::Mh, &far, &[by(0, By::Random)]),
    ];
    for (scheduler, asker, expected) in cases {
        let mem = scheduled(scheduler, 3, &[]);
        mem.open.borrow_mut().insert(10, 5);
        assert_eq!(middle(&mem, asker, 0), [&[internal(3)], expected].concat(), "{scheduler:?}");
    }
    let mut mem = scheduled(Scheduler::Mh, 3, &[]);
    mem.maglev.insert(MaglevKey { service: 1, list: 0 }, std::vec![12; MAGLEV_LEN]);
    assert_eq!(middle(&mem, &far, 0), [internal(3), by(2, By::MaglevTable)]);
}

#[test]
fn an_observer_learns_which_backend_was_avoided() {
    let mem = scheduled(Scheduler::Random, 2, &[]);
    let scheduled = E::Scheduled { backend: 10, reason: By::Random };
    let avoided = E::Avoided(Pair { scheduled: 10, other: 11, taken: 11 });
    assert_eq!(middle(&mem, &SOCKET, 10), [internal(2), scheduled, avoided]);
    assert_eq!(middle(&mem, &SOCKET, 11), [internal(2), scheduled]);
    let mem = self::scheduled(Scheduler::Lc, 2, &[]);
    mem.open.borrow_mut().insert(10, 5);
    let avoided = E::Avoided(Pair { scheduled: 10, other: 11, taken: 10 });
    assert_eq!(middle(&mem, &SOCKET, 11), [internal(2), scheduled, avoided]);
}

#[test]
fn an_observer_learns_the_use_of_affinity() {
    let service = ServiceEntry { affinity_seconds: 10, ..ServiceEntry::default() };
    let mut mem = mem(Kind::ClusterIp, 3, 0, service, &[]);
    let key = SOCKET.client.affinity_key(1);
    let scheduled = E::Scheduled { backend: 10, reason: By::Random };
    let at = |seconds: u64| Asker { now: seconds * SECOND, ..SOCKET };
    let event = |entry, outcome| E::Affinity { key, entry, outcome };
    let used = |seconds: u64| Some(Affinity { used: seconds * SECOND, backend: 10, _pad: 0 });
    assert_eq!(middle(&mem, &at(1), 0), [internal(3), event(None, New), scheduled]);
    assert_eq!(middle(&mem, &at(9), 0), [internal(3), event(used(1), Kept)]);
    assert_eq!(middle(&mem, &at(20), 0), [internal(3), event(used(9), Expired), scheduled]);
    mem.backends.get_mut(&10).expect("it exists").flags = 0;
    assert_eq!(middle(&mem, &at(21), 0), [internal(3), event(used(20), NotInList), scheduled]);
    mem.backends.remove(&10);
    assert_eq!(middle(&mem, &at(22), 0), [internal(3), event(used(21), NotInList), scheduled]);
}

#[test]
fn an_observer_learns_the_cause_of_a_refusal_after_a_second_look() {
    let far = outside("192.0.2.9");
    let mut ranges = plain(Kind::LoadBalancer, 1, 0, ServiceFlags::SOURCE_RANGES);
    let denied = E::SourceRange { client: ip("192.0.2.9"), access: Access::Denied };
    let local = list(List::Local, ListReason::InternalLocal, 0);
    let cases = [
        (plain(Kind::ClusterIp, 0, 0, 0), &SOCKET, internal(0), Cause::NoEndpoints),
        (plain(Kind::ClusterIp, 1, 0, ServiceFlags::INTERNAL_LOCAL), &SOCKET, local, Cause::NoLocalEndpoints),
    ];
    for (mem, asker, step, cause) in cases {
        let seen = events(&mem, asker, &vip(80), 0);
        assert_eq!(seen, [seen[0], step, E::SecondLook, seen[0], step, E::Refused(1, cause)]);
    }
    let seen = events(&ranges, &far, &vip(80), 0);
    let refused = E::Refused(1, Cause::SourceRange);
    assert_eq!(seen, [seen[0], denied, E::SecondLook, seen[0], denied, refused]);
    assert_eq!(events(&ranges, &SOCKET, &vip(80), 0)[1..], [E::UnknownSource], "its packets are checked");
    let range = crate::Range { service: 1, addr: ip("192.0.2.0") };
    ranges.ranges.push(crate::RangeKey { prefix_len: 32 + 96 + 24, range });
    assert_eq!(middle(&ranges, &far, 0)[0], E::SourceRange { client: ip("192.0.2.9"), access: Access::Allowed });
}

#[test]
fn an_observer_learns_of_entries_that_are_being_removed() {
    let mut mem = plain(Kind::ClusterIp, 2, 0, 0);
    mem.slots.remove(&SlotKey::new(1, List::Cluster, 0));
    let seen = events(&mem, &SOCKET, &vip(80), 0);
    let look = [seen[0], internal(2), E::SlotMissing];
    let refused = [E::Refused(1, Cause::NoEndpoints)];
    assert_eq!(seen, [&look[..], &[E::SecondLook], &look, &refused].concat());
    mem.services.clear();
    let seen = events(&mem, &SOCKET, &vip(80), 0);
    let look = [seen[0], E::NoService(1)];
    assert_eq!(seen, [&look[..], &[E::SecondLook], &look, &refused].concat());
}

#[test]
fn a_cluster_ip_is_known_by_its_address_for_any_port() {
    let mut mem = plain(Kind::ClusterIp, 1, 0, 0);
    assert_eq!(crate::vip(&mem, &vip(81)), None);
    mem.frontends.insert(vip(81).address(), Frontend::new(1, Kind::Address));
    assert_eq!(crate::vip(&mem, &vip(81)), Some(Vip::Cluster));
    assert_eq!(crate::vip(&mem, &key("10.96.0.2", 81)), None);
    mem.frontends.insert(vip(81).address(), Frontend::new(1, Kind::OwnAddress));
    assert_eq!(crate::vip(&mem, &vip(81)), None, "an address of the node");
}

#[test]
fn an_external_address_is_known_for_any_port_and_is_no_cluster_ip() {
    let mut mem = plain(Kind::LoadBalancer, 1, 0, 0);
    assert_eq!(crate::vip(&mem, &vip(81)), None);
    mem.frontends.insert(vip(81).external_address(), Frontend::new(1, Kind::ExternalAddress));
    assert_eq!(crate::vip(&mem, &vip(81)), Some(Vip::External));
}
