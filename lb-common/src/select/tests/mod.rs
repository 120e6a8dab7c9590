//! Tests of choices over maps in memory: lists, schedulers, affinity, NodePorts.

mod ejection;
mod events;
mod port_ranges;
mod shared_affinity;

use super::{schedule::is_better, *};
use crate::{
    Affinity, AffinityKey, Backend, BackendFlags, EjectionKey, Ejections, Hold, MaglevKey, NodeAddr, Proto, Scheduler,
    hash::splitmix,
};
use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    net::IpAddr,
    vec::Vec,
};

#[derive(Default)]
struct Mem {
    frontends: BTreeMap<FrontendKey, Frontend>,
    /// Blocks, and the entry of each.
    blocks: Vec<(FrontendKey, Frontend)>,
    services: BTreeMap<u32, ServiceEntry>,
    slots: BTreeMap<SlotKey, Slot>,
    backends: BTreeMap<u32, Backend>,
    node_addrs: BTreeMap<Addr, NodeAddr>,
    ranges: Vec<crate::RangeKey>,
    maglev: BTreeMap<MaglevKey, Vec<u32>>,
    open: RefCell<BTreeMap<u32, u64>>,
    turns: RefCell<BTreeMap<(u32, List), u32>>,
    affinity: RefCell<BTreeMap<AffinityKey, Affinity>>,
    ejections: RefCell<BTreeMap<EjectionKey, Ejections>>,
}

impl Tables for Mem {
    fn frontend(&self, key: &FrontendKey) -> Option<Frontend> {
        self.frontends.get(key).copied()
    }
    fn port_range(&self, dest: &FrontendKey) -> Option<Frontend> {
        let covering = self.blocks.iter().filter(|(block, _)| block.covers(dest));
        covering.min_by_key(|(block, _)| block.block).map(|(_, frontend)| *frontend)
    }
    fn may_have(&self, key: &FrontendKey) -> bool {
        let mut keys = self.frontends.keys().chain(self.blocks.iter().map(|(block, _)| block));
        keys.any(|other| other.bit() == key.bit())
    }
    fn service(&self, id: u32) -> Option<ServiceEntry> {
        self.services.get(&id).copied()
    }
    fn slot(&self, key: &SlotKey) -> Option<Slot> {
        self.slots.get(key).copied()
    }
    fn backend(&self, id: u32) -> Option<Backend> {
        self.backends.get(&id).copied()
    }
    fn node_addr(&self, addr: &Addr) -> Option<NodeAddr> {
        self.node_addrs.get(addr).copied()
    }
    fn in_source_ranges(&self, service: u32, addr: &Addr) -> bool {
        self.ranges.iter().any(|range| range.range.service == service && range.has(addr))
    }
    fn maglev(&self, key: &MaglevKey, place: u32) -> Option<u32> {
        self.maglev.get(key)?.get(place as usize).copied()
    }
}

impl State for Mem {
    fn open_sockets(&self, backend: u32) -> u64 {
        self.open.borrow().get(&backend).copied().unwrap_or(0)
    }
    fn turn(&self, service: u32, list: List, len: u32, stride: u32) -> Option<u32> {
        let mut turns = self.turns.borrow_mut();
        let turn = turns.entry((service, list)).or_default();
        let (index, next) = take_turn(*turn, len, stride);
        *turn = next;
        Some(index)
    }
    fn affinity(&self, key: &AffinityKey) -> Option<Affinity> {
        self.affinity.borrow().get(key).copied()
    }
    fn set_affinity(&self, key: &AffinityKey, backend: u32, now: u64) {
        self.affinity.borrow_mut().insert(*key, Affinity { used: now, backend, _pad: 0 });
    }
    fn hold(&self, client: &EjectionKey, backend: u32, most: u32, now: u64) -> Hold {
        self.ejections.borrow().get(client).map_or(Hold::Free, |seen| seen.hold(backend, most, now))
    }
    fn begin_trial(&self, client: &EjectionKey, backend: u32, now: u64) {
        if let Some(seen) = self.ejections.borrow_mut().get_mut(client) {
            seen.begin_trial(backend, now);
        }
    }
}

const SECOND: u64 = 1_000_000_000;

/// A client with a fixed sequence of random numbers.
struct Client {
    netns: u64,
    host: bool,
    now: u64,
    random: Cell<u64>,
}

impl Client {
    fn new(netns: u64) -> Self {
        Self { netns, host: false, now: 0, random: Cell::new(netns) }
    }
}

impl Caller for Client {
    const IS_FOLLOWED: bool = true;

    fn random(&self) -> u32 {
        self.random.set(self.random.get().wrapping_add(0x9e37_79b9_7f4a_7c15));
        splitmix(self.random.get(), 0)
    }
    fn client(&self) -> super::Client {
        super::Client::of_netns(self.netns)
    }
    fn is_host(&self) -> bool {
        self.host
    }
    fn ejection_key(&self, service: u32) -> Option<EjectionKey> {
        Some(EjectionKey { netns: self.netns, cgroup: 0, service, _pad: 0 })
    }
    fn now(&self) -> u64 {
        self.now
    }
}

/// A client with one random number.
struct Fixed(u32);

impl Caller for Fixed {
    fn random(&self) -> u32 {
        self.0
    }
    fn client(&self) -> super::Client {
        super::Client::of_netns(1)
    }
    fn is_host(&self) -> bool {
        false
    }
    fn now(&self) -> u64 {
        0
    }
}

fn key(addr: &str, port: u16) -> FrontendKey {
    FrontendKey::new(addr.parse::<IpAddr>().expect("an address").into(), port, Proto::Tcp)
}

fn vip(port: u16) -> FrontendKey {
    key("10.96.0.1", port)
}

/// A service port with backends 10, 11, … in the cluster list and 100, 101, … in the local list, with `weights`, or 1.
fn mem(kind: Kind, cluster: u32, local: u32, service: ServiceEntry, weights: &[u16]) -> Mem {
    let mut mem = Mem::default();
    mem.frontends.insert(vip(80), Frontend::new(1, kind));
    let mut lens = [0; 2];
    for (list, len, base) in [(List::Cluster, cluster, 10), (List::Local, local, 100)] {
        for nth in 0..len {
            let addr = IpAddr::from([10, 0, 0, u8::try_from(nth + 1).expect("few")]).into();
            let (weight, backend) = (weights.get(nth as usize).copied().unwrap_or(1), base + nth);
            let flags = BackendFlags::of(list);
            mem.backends.insert(backend, Backend { addr, port: 8080, flags, service: 1 });
            for _ in 0..weight {
                let index = &mut lens[list as usize];
                mem.slots.insert(SlotKey::new(1, list, *index), Slot { addr, port: 8080, weight, backend });
                *index += 1;
            }
        }
    }
    let [cluster_len, local_len] = lens;
    let strides = |len: u32| if len > 2 { len - 1 } else { 1 };
    let (cluster_stride, local_stride) = (strides(cluster_len), strides(local_len));
    mem.services.insert(1, ServiceEntry { cluster_len, local_len, cluster_stride, local_stride, ..service });
    mem
}

fn plain(kind: Kind, cluster: u32, local: u32, flags: u32) -> Mem {
    mem(kind, cluster, local, ServiceEntry { flags, ..ServiceEntry::default() }, &[])
}

fn scheduled(scheduler: Scheduler, cluster: u32, weights: &[u16]) -> Mem {
    mem(Kind::ClusterIp, cluster, 0, ServiceEntry { scheduler: scheduler as u32, ..ServiceEntry::default() }, weights)
}

fn backend(verdict: Verdict) -> Option<u32> {
    match verdict {
        Verdict::Backend(choice) => Some(choice.backend),
        _ => None,
    }
}

fn pick(mem: &Mem, random: u32) -> Option<u32> {
    backend(select(mem, &Fixed(random), &vip(80), 0))
}

/// Opens `count` sockets, which stay open; the number of sockets by backend.
fn open_many(mem: &Mem, client: &Client, count: u32) -> BTreeMap<u32, u32> {
    let mut sockets = BTreeMap::new();
    for _ in 0..count {
        let id = backend(select(mem, client, &vip(80), 0)).expect("a backend");
        *sockets.entry(id).or_default() += 1;
        *mem.open.borrow_mut().entry(id).or_default() += 1;
    }
    sockets
}

#[test]
fn a_destination_without_a_frontend_is_no_service() {
    assert_eq!(select(&plain(Kind::ClusterIp, 1, 0, 0), &Fixed(0), &vip(81), 0), Verdict::NotService);
}

#[test]
fn random_numbers_reach_every_slot_and_none_beyond() {
    let mem = plain(Kind::ClusterIp, 3, 0, 0);
    assert_eq!(pick(&mem, 0), Some(10));
    assert_eq!(pick(&mem, u32::MAX / 2), Some(11));
    assert_eq!(pick(&mem, u32::MAX), Some(12));
}

#[test]
fn rule_5_no_endpoint_refuses_and_no_local_endpoint_is_unreachable() {
    let cases = [
        (Kind::ClusterIp, 0, 0, 0, Some(Cause::NoEndpoints)),
        (Kind::ClusterIp, 0, 0, ServiceFlags::INTERNAL_LOCAL, Some(Cause::NoEndpoints)),
        (Kind::ClusterIp, 2, 0, ServiceFlags::INTERNAL_LOCAL, Some(Cause::NoLocalEndpoints)),
        (Kind::ExternalIp, 2, 0, ServiceFlags::INTERNAL_LOCAL, None),
        (Kind::LoadBalancer, 0, 0, 0, Some(Cause::NoEndpoints)),
    ];
    for (kind, cluster, local, flags, cause) in cases {
        let got = match select(&plain(kind, cluster, local, flags), &Fixed(0), &vip(80), 0) {
            Verdict::Refused(1, cause) => Some(cause),
            _ => None,
        };
        assert_eq!(got, cause, "{kind:?} {cluster} {local} {flags}");
    }
    assert_eq!(Cause::NoEndpoints.errno(), 111);
    assert_eq!(Cause::NoLocalEndpoints.errno(), 113);
}

#[test]
fn rule_4_internal_local_takes_the_local_list_and_external_frontends_do_not() {
    assert_eq!(pick(&plain(Kind::ClusterIp, 2, 1, ServiceFlags::INTERNAL_LOCAL), u32::MAX), Some(100));
    for kind in [Kind::ExternalIp, Kind::LoadBalancer] {
        assert_eq!(pick(&plain(kind, 2, 1, ServiceFlags::INTERNAL_LOCAL), u32::MAX), Some(11));
    }
}

#[test]
fn rule_11_a_retry_avoids_the_backend_that_failed_when_there_is_another() {
    for scheduler in Scheduler::ALL {
        let two = scheduled(scheduler, 2, &[]);
        for (avoid, expected) in [(10, 11), (11, 10)] {
            for random in [0, u32::MAX] {
                let got = backend(select(&two, &Fixed(random), &vip(80), avoid));
                assert_eq!(got, Some(expected), "{scheduler:?}");
            }
        }
        let one = scheduled(scheduler, 1, &[]);
        assert_eq!(backend(select(&one, &Fixed(0), &vip(80), 10)), Some(10));
    }
}

#[test]
fn i1_a_missing_slot_is_not_a_refusal() {
    let mut mem = plain(Kind::ClusterIp, 3, 0, 0);
    mem.slots.remove(&SlotKey::new(1, List::Cluster, 2));
    assert_eq!(pick(&mem, u32::MAX), Some(10));
}

#[test]
fn rule_6_a_node_port_answers_at_the_nodes_own_addresses_only() {
    let mut mem = plain(Kind::ClusterIp, 1, 0, 0);
    for addr in ["0.0.0.0", "::"] {
        mem.frontends.insert(key(addr, 30080), Frontend::new(1, Kind::NodePort));
    }
    let own = |addr: &str| addr.parse::<IpAddr>().expect("an address").into();
    for addr in ["192.0.2.1", "fd00::1"] {
        mem.node_addrs.insert(own(addr), NodeAddr::default());
    }
    for addr in ["127.0.0.1", "::1"] {
        mem.node_addrs.insert(own(addr), NodeAddr { flags: NodeAddrFlags::HOST_ONLY });
    }
    let pod = Client::new(7);
    let host = Client { host: true, ..Client::new(1) };
    let cases = [
        ("192.0.2.1", 30080, true, true),
        ("fd00::1", 30080, true, true),
        // The loopback address of a pod is its own; so is the unspecified address, which means loopback.
        ("127.0.0.1", 30080, false, true),
        ("::1", 30080, false, true),
        ("0.0.0.0", 30080, false, true),
        ("::", 30080, false, true),
        ("127.0.0.2", 30080, false, false),
        ("192.0.2.2", 30080, false, false),
        ("192.0.2.1", 30081, false, false),
    ];
    for (addr, port, for_pod, for_host) in cases {
        let found = |client: &Client| backend(select(&mem, client, &key(addr, port), 0)).is_some();
        assert_eq!((found(&pod), found(&host)), (for_pod, for_host), "{addr}:{port}");
    }
    // CVE-2019-9946: the exact address and port of a Service come before a NodePort.
    mem.frontends.insert(key("192.0.2.1", 30080), Frontend::new(2, Kind::ExternalIp));
    mem.services.insert(2, ServiceEntry::default());
    let verdict = select(&mem, &pod, &key("192.0.2.1", 30080), 0);
    assert_eq!(verdict, Verdict::Refused(2, Cause::NoEndpoints));
}

#[test]
fn a_host_port_answers_at_every_address_of_the_node_and_one_with_a_host_ip_at_that_alone() {
    let mut mem = plain(Kind::ClusterIp, 1, 0, 0);
    for (addr, port) in [("0.0.0.0", 8080), ("127.0.0.1", 8081), ("192.0.2.1", 8082), ("198.51.100.1", 8083)] {
        mem.frontends.insert(key(addr, port), Frontend::new(1, Kind::HostPort));
    }
    mem.frontends.insert(key("0.0.0.0", 30080), Frontend::new(1, Kind::NodePort));
    let own = |addr: &str| addr.parse::<IpAddr>().expect("an address").into();
    mem.node_addrs.insert(own("192.0.2.1"), NodeAddr::default());
    mem.node_addrs.insert(own("192.0.2.2"), NodeAddr { flags: NodeAddrFlags::NO_NODE_PORTS });
    mem.node_addrs
        .insert(own("127.0.0.1"), NodeAddr { flags: NodeAddrFlags::HOST_ONLY | NodeAddrFlags::NO_NODE_PORTS });
    let pod = Client::new(7);
    let host = Client { host: true, ..Client::new(1) };
    let cases = [
        ("192.0.2.1", 8080, true, true),
        // --nodeport-addresses leaves it out, which is no matter of hostPorts.
        ("192.0.2.2", 8080, true, true),
        ("192.0.2.2", 30080, false, false),
        ("127.0.0.1", 30080, false, false),
        ("192.0.2.3", 8080, false, false),
        // The loopback address of a pod is its own; so is the unspecified address, which means loopback.
        ("127.0.0.1", 8080, false, true),
        ("0.0.0.0", 8080, false, true),
        ("127.0.0.1", 8081, false, true),
        ("192.0.2.1", 8081, false, false),
        ("192.0.2.1", 8082, true, true),
        ("192.0.2.2", 8082, false, false),
        ("127.0.0.1", 8082, false, false),
        // No address of the node: a pod does not take what is sent elsewhere.
        ("198.51.100.1", 8083, false, false),
    ];
    for (addr, port, for_pod, for_host) in cases {
        let found = |client: &Client| backend(select(&mem, client, &key(addr, port), 0)).is_some();
        assert_eq!((found(&pod), found(&host)), (for_pod, for_host), "{addr}:{port}");
    }
}

#[test]
fn a_listener_of_the_node_gives_way_except_at_loopback_and_at_addresses_of_services() {
    let mut mem = plain(Kind::ClusterIp, 1, 0, 0);
    mem.frontends.insert(key("0.0.0.0", 8080), Frontend::new(1, Kind::HostPort));
    mem.frontends.insert(key("127.0.0.1", 8081), Frontend::new(1, Kind::HostPort));
    mem.frontends.insert(key("0.0.0.0", 30080), Frontend::new(1, Kind::NodePort));
    for (addr, port, expected) in [
        ("192.0.2.1", 8080, true),
        ("127.0.0.1", 8080, false),
        ("127.0.0.1", 8081, false),
        ("192.0.2.1", 30080, true),
        ("127.0.0.1", 30080, true),
        ("10.96.0.1", 80, false),
        ("192.0.2.1", 1, false),
    ] {
        assert_eq!(goes_before_listener(&mem, &key(addr, port)), expected, "{addr}:{port}");
    }
}

#[test]
fn rule_7_a_client_sticks_to_a_backend_of_the_list_in_use_until_its_time_is_over() {
    let service = ServiceEntry { affinity_seconds: 10, flags: ServiceFlags::INTERNAL_LOCAL, ..ServiceEntry::default() };
    let mut mem = mem(Kind::ExternalIp, 8, 2, service, &[]);
    mem.frontends.insert(vip(81), Frontend::new(1, Kind::ClusterIp));
    let at = |seconds: u64, netns| Client {
        now: seconds * SECOND,
        random: Cell::new(seconds * 31 + netns * 7),
        ..Client::new(netns)
    };
    let ask = |mem: &Mem, client: &Client, port| backend(select(mem, client, &vip(port), 0)).expect("a backend");
    let first = ask(&mem, &at(0, 1), 80);
    assert!((1..9).all(|second| ask(&mem, &at(second, 1), 80) == first));
    // Each connect refreshes affinity: used last at 8 s, it lasts until 18 s.
    assert_eq!(ask(&mem, &at(17, 1), 80), first);
    let others: Vec<_> = (0..20).map(|n| ask(&mem, &at(30 + 11 * n, 1), 80)).collect();
    assert!(others.iter().any(|&other| other != first), "after the time-out the choice is new");
    // Clients are independent of each other, and a failed connect moves no client.
    let many: Vec<_> = (2..40).map(|netns| ask(&mem, &at(300, netns), 80)).collect();
    assert!(many.iter().any(|&other| other != many[0]));
    assert_eq!(backend(select(&mem, &at(301, 2), &vip(80), many[0])), Some(many[0]));
    // The frontend with the local list cannot use a backend of the cluster list.
    assert!(ask(&mem, &at(302, 2), 81) >= 100);
    // A backend that has left the list is replaced.
    let stuck = ask(&mem, &at(303, 3), 80);
    mem.backends.get_mut(&stuck).expect("it is there").flags = 0;
    mem.slots.retain(|_, slot| slot.backend != stuck);
    for (index, slot) in mem.slots.clone().into_values().filter(|slot| slot.backend < 100).enumerate() {
        mem.slots.insert(SlotKey::new(1, List::Cluster, u32::try_from(index).expect("few")), slot);
    }
    mem.services.get_mut(&1).expect("it is there").cluster_len -= 1;
    let next = ask(&mem, &at(304, 3), 80);
    assert_ne!(next, stuck);
    assert_eq!(ask(&mem, &at(305, 3), 80), next);
}

#[test]
fn rule_7_affinity_lasts_its_seconds_and_0_seconds_are_no_affinity() {
    let lasts = |seconds, idle: u64| Affinity { used: 5, backend: 1, _pad: 0 }.lasts(seconds, 5 + idle);
    assert!(lasts(10, 10 * SECOND - 1));
    assert!(!lasts(10, 10 * SECOND));
    assert!(!lasts(0, 0));
}

#[test]
fn rule_10_rr_gives_each_backend_its_turn_within_one_over_any_window() {
    for count in [1, 2, 3, 7, 16] {
        let mem = scheduled(Scheduler::Rr, count, &[]);
        let client = Client::new(1);
        let order: Vec<_> = (0..200).map(|_| backend(select(&mem, &client, &vip(80), 0)).expect("one")).collect();
        for window in [1, 5, 16, 33, 100] {
            for part in order.windows(window) {
                let each = (10..10 + count).map(|id| part.iter().filter(|&&chosen| chosen == id).count());
                let (least, most) = (each.clone().min().expect("some"), each.max().expect("some"));
                assert!(most - least <= 1, "{count} backends, window {window}: {part:?}");
            }
        }
    }
}

/// A socket of a pod with another mode than `socket`.
struct Bypassed;

impl Caller for Bypassed {
    fn random(&self) -> u32 {
        0
    }
    fn client(&self) -> super::Client {
        super::Client::of_netns(1)
    }
    fn is_host(&self) -> bool {
        false
    }
    fn is_bypassed(&self) -> bool {
        true
    }
    fn now(&self) -> u64 {
        0
    }
}

#[test]
fn a_socket_of_a_pod_with_another_mode_gets_no_backend_and_takes_no_turn() {
    let service = ServiceEntry { affinity_seconds: 9, ..scheduled(Scheduler::Rr, 2, &[]).services[&1] };
    let mut mem = scheduled(Scheduler::Rr, 2, &[]);
    mem.services.insert(1, service);
    assert_eq!(select(&mem, &Bypassed, &vip(80), 0), Verdict::NotService);
    assert!(mem.turns.borrow().is_empty() && mem.affinity.borrow().is_empty());
    // No refusal either, without an endpoint.
    assert_eq!(select(&plain(Kind::ClusterIp, 0, 0, 0), &Bypassed, &vip(80), 0), Verdict::NotService);
    assert!(matches!(select(&mem, &Fixed(0), &vip(80), 0), Verdict::Backend(_)));
}

#[test]
fn rule_10_wrr_gives_each_backend_its_share() {
    let mem = scheduled(Scheduler::Wrr, 3, &[1, 2, 5]);
    let counts = open_many(&mem, &Client::new(1), 800);
    assert_eq!(counts.into_values().collect::<Vec<_>>(), [100, 200, 500]);
}

#[test]
fn rule_10_random_gives_each_backend_about_its_share() {
    let mem = scheduled(Scheduler::Random, 3, &[1, 2, 5]);
    let counts = open_many(&mem, &Client::new(2), 8000);
    for (id, share) in [(10, 1000), (11, 2000), (12, 5000)] {
        assert!(counts[&id].abs_diff(share) < 150, "{counts:?}");
    }
}

#[test]
fn rule_10_lc_balances_evenly_and_wlc_sed_and_nq_by_weight() {
    let even = open_many(&scheduled(Scheduler::Lc, 8, &[]), &Client::new(3), 8000);
    assert!(even.len() == 8 && even.values().all(|&count| count.abs_diff(1000) <= 5), "{even:?}");
    for scheduler in [Scheduler::Wlc, Scheduler::Sed, Scheduler::Nq] {
        let counts = open_many(&scheduled(scheduler, 4, &[1, 2, 3, 4]), &Client::new(3), 10_000);
        for (id, share) in [(10, 1000), (11, 2000), (12, 3000), (13, 4000)] {
            assert!(counts[&id].abs_diff(share) <= 20, "{scheduler:?} {counts:?}");
        }
    }
}

#[test]
fn rule_10_of_two_backends_the_choice_is_that_of_ipvs() {
    let state = |a: u64, b: u64| {
        let mem = Mem::default();
        mem.open.borrow_mut().extend([(1, a), (2, b)]);
        mem
    };
    let slot = |backend, weight| Slot { addr: vip(1).addr, port: 1, weight, backend };
    // Open sockets and weights of two, and true if lc, wlc, sed and nq prefer the first.
    let cases = [
        ((0, 1), (0, 1), [false; 4]),
        ((1, 1), (2, 1), [true; 4]),
        ((2, 1), (1, 1), [false; 4]),
        ((1, 1), (2, 4), [true, false, false, false]),
        ((3, 4), (1, 1), [false, true, true, true]),
        // The idle backend has the lower weight: sed does not take it.
        ((0, 1), (1, 4), [true, true, false, true]),
        ((1, 4), (0, 1), [false, false, true, false]),
        ((0, 4), (0, 1), [false, false, true, false]),
    ];
    for ((open_a, weight_a), (open_b, weight_b), expected) in cases {
        let state = state(open_a, open_b);
        let schedulers = [Scheduler::Lc, Scheduler::Wlc, Scheduler::Sed, Scheduler::Nq];
        let got =
            schedulers.map(|scheduler| is_better(&state, scheduler as u32, &slot(1, weight_a), &slot(2, weight_b)));
        assert_eq!(got, expected, "{open_a}/{weight_a} against {open_b}/{weight_b}");
    }
}

#[test]
fn rule_10_sh_follows_the_client_and_dh_the_frontend() {
    let mut sh = scheduled(Scheduler::Sh, 8, &[]);
    sh.frontends.insert(key("192.0.2.1", 80), Frontend::new(1, Kind::ExternalIp));
    let ask = |mem: &Mem, netns, dest: &FrontendKey| backend(select(mem, &Client::new(netns), dest, 0));
    let clients: Vec<_> = (0..64).map(|netns| ask(&sh, netns, &vip(80))).collect();
    assert!((0..64).all(|netns| ask(&sh, netns as u64, &key("192.0.2.1", 80)) == clients[netns]));
    assert!((10..18).all(|id| clients.contains(&Some(id))), "{clients:?}");
    let mut dh = scheduled(Scheduler::Dh, 8, &[]);
    let vips: Vec<_> = (0..64).map(|last| key(&std::format!("192.0.2.{last}"), 80)).collect();
    dh.frontends.extend(vips.iter().map(|vip| (*vip, Frontend::new(1, Kind::ExternalIp))));
    let chosen: Vec<_> = vips.iter().map(|vip| ask(&dh, 1, vip)).collect();
    assert!(vips.iter().zip(&chosen).all(|(vip, chosen)| ask(&dh, 99, vip) == *chosen));
    assert!((10..18).all(|id| chosen.contains(&Some(id))), "{chosen:?}");
}
