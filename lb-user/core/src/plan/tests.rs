//! The planner: how many writes, in which order, and what happens without room.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
};

use lb_common::{BackendFlags, FIRST_SCOPE, Kind, Proto, SCOPE_SIZE, Scheduler, ServiceFlags};

use super::*;
use crate::{
    ids::block_of,
    objects::Drain,
    spec::{Member, PortKey, PortSpec},
    store::{Dump, MemoryStore, Store as _},
};
use lb_common::{AddrPort, Family};

fn target(n: usize) -> AddrPort {
    let addr = Ipv4Addr::from(0x0a00_0000 + u32::try_from(n).expect("small"));
    AddrPort { addr: addr.into(), port: 8080 }
}

fn member(n: usize, flags: u16) -> Member {
    Member { target: target(n), flags, weight: 1 }
}

fn frontend(vip: u8) -> (FrontendKey, Kind) {
    (FrontendKey::new(Ipv4Addr::new(10, 96, 0, vip).into(), 80, Proto::Tcp), Kind::ClusterIp)
}

fn spec(name: &str, vips: &[u8], backends: impl IntoIterator<Item = usize>) -> ServiceSpec {
    let key = Key::new("default", name);
    let port = PortSpec {
        key: PortKey { service: key.clone(), name: "".into(), proto: Proto::Tcp, family: Family::V4 },
        frontends: vips.iter().map(|&vip| frontend(vip)).collect(),
        backends: backends.into_iter().map(|n| member(n, BackendFlags::CLUSTER)).collect(),
        flags: 0,
        ranges: Vec::new(),
        scheduler: Scheduler::Random,
        affinity_seconds: 0,
        drain: Drain::Never,
        eject: None,
    };
    ServiceSpec { ports: vec![port], ..ServiceSpec::gone(key) }
}

/// As `spec`, in another namespace.
fn in_namespace(namespace: &str, mut spec: ServiceSpec) -> ServiceSpec {
    spec.key = Key::new(namespace, spec.key.name());
    spec.ports[0].key.service = spec.key.clone();
    spec
}

fn gone(name: &str) -> ServiceSpec {
    ServiceSpec::gone(Key::new("default", name))
}

struct Maps {
    store: MemoryStore,
    shadow: Shadow,
}

impl Maps {
    fn new(limits: Limits) -> Self {
        Self { store: MemoryStore::new(limits), shadow: Shadow::default() }
    }

    fn plan(&mut self, desired: &[ServiceSpec]) -> Plan {
        self.plan_with(desired, Scope::Some, OnOrphan::Keep)
    }

    fn plan_with(&mut self, desired: &[ServiceSpec], scope: Scope, on_orphan: OnOrphan) -> Plan {
        let plan = plan(&self.shadow, desired, None, scope, on_orphan, &self.store.limits);
        self.store.apply(&plan.ops).expect("no faults here");
        plan.ops.iter().for_each(|op| self.shadow.apply(op));
        assert_eq!(self.shadow.to_dump(), self.store.dump);
        plan
    }
}

#[test]
fn i14_k_changes_in_a_list_of_n_cost_as_many_writes_whatever_n_is() {
    // Each backend that comes: itself and its slot; each that goes: itself and the slot at the end; once the length.
    let cases: [(&str, usize, usize, usize); 6] = [
        ("one comes", 1, 0, 3),
        ("one goes", 0, 1, 4),
        ("one for one", 1, 1, 3),
        ("five come", 5, 0, 11),
        ("five for five", 5, 5, 15),
        ("five go and one comes", 1, 5, 16),
    ];
    for n in [10, 100, 1000, 10_000] {
        for (what, come, go, most) in cases {
            for first in [0, n / 2, n - go] {
                let mut maps = Maps::new(Limits::DEFAULT);
                maps.plan(&[spec("a", &[1], 0..n)]);
                let stay = (0..n).filter(|at| !(first..first + go).contains(at));
                let wanted = [spec("a", &[1], stay.chain(n..n + come))];
                let writes = maps.plan(&wanted).ops.len();
                assert!(writes <= most, "{what} of {n}: {writes} writes");
                assert_eq!(maps.plan(&wanted), Plan::default());
            }
        }
    }
}

/// A Service with ports that share affinity: of TCP, of UDP, and of IPv6, each with its backends.
fn sharing(ports: &[(Proto, Family, &[usize])]) -> ServiceSpec {
    let one = spec("a", &[], []);
    let port = |&(proto, family, backends): &(Proto, Family, &[usize])| {
        let mut port = spec("a", &[1], backends.iter().copied()).ports.remove(0);
        (port.key.proto, port.key.family, port.affinity_seconds) = (proto, family, 60);
        port.flags = ServiceFlags::SHARED_AFFINITY;
        port.frontends = vec![(FrontendKey::new(port.frontends[0].0.addr, 80 + proto as u16, proto), Kind::ClusterIp)];
        if family == Family::V6 {
            let by_v6 = |nth: usize| IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, u16::try_from(nth).expect("few")]).into();
            port.backends.iter_mut().zip(backends).for_each(|(member, nth)| member.target.addr = by_v6(*nth));
        }
        port
    };
    ServiceSpec { ports: ports.iter().map(port).collect(), ..one }
}

/// The block of each backend by its address, for each service port with its block.
fn blocks(maps: &Maps) -> BTreeMap<(u8, u32), BTreeMap<AddrPort, u32>> {
    let names = maps.store.dump.names.iter();
    let ids = names.map(|(id, key)| ((key.proto as u8, block_of(*id)), *id));
    let of_port = |id: u32| {
        let slots = maps.store.dump.slots.iter().filter(move |(key, _)| key.service == id);
        let checked = slots.inspect(move |(_, slot)| assert_eq!(slot.backend % SCOPE_SIZE, id % SCOPE_SIZE));
        checked.map(|(_, slot)| (AddrPort { addr: slot.addr, port: slot.port }, block_of(slot.backend))).collect()
    };
    ids.map(|(name, id)| (name, of_port(id))).collect()
}

#[test]
fn service_ports_that_share_affinity_have_backends_of_one_address_in_one_block() {
    let (tcp, udp, sctp) = (Proto::Tcp, Proto::Udp, Proto::Sctp);
    let mut maps = Maps::new(Limits::DEFAULT);
    let check = |maps: &Maps, count: usize| {
        let blocks = blocks(maps);
        assert_eq!(blocks.len(), count);
        let first = blocks.first_key_value().expect("a port");
        for ((_, block), backends) in &blocks {
            assert_eq!(*block, first.0.1, "one block of service ports: {blocks:?}");
            for (target, id) in backends {
                assert!(first.1.get(target).is_none_or(|of_first| of_first == id), "{target}: {blocks:?}");
            }
        }
    };
    // The annotation comes later.
    let mut plain = sharing(&[(tcp, Family::V4, &[1, 2]), (udp, Family::V4, &[1, 2])]);
    plain.ports.iter_mut().for_each(|port| port.flags = 0);
    maps.plan(&[plain.clone()]);
    for ports in [
        &[(tcp, Family::V4, &[1, 2][..]), (udp, Family::V4, &[1, 2])][..],
        &[(tcp, Family::V4, &[1, 2, 3]), (udp, Family::V4, &[2, 3])],
        // A port that is new has the backends of the others.
        &[(tcp, Family::V4, &[1, 2, 3]), (udp, Family::V4, &[2, 3, 4]), (sctp, Family::V4, &[1, 2, 3, 4])],
        // The first port goes.
        &[(udp, Family::V4, &[2, 3, 4]), (sctp, Family::V4, &[1, 2, 3, 4, 5])],
        &[(tcp, Family::V4, &[1, 5]), (udp, Family::V4, &[5]), (sctp, Family::V4, &[1, 5])],
    ] {
        let wanted = [sharing(ports)];
        maps.plan(&wanted);
        check(&maps, ports.len());
        assert_eq!(maps.plan(&wanted), Plan::default());
        maps.shadow = Shadow::from_dump(&maps.store.dump).0;
        assert_eq!(maps.plan(&wanted), Plan::default(), "after a restart");
    }
    // Another family has blocks of its own.
    maps.plan(&[sharing(&[(tcp, Family::V4, &[1]), (tcp, Family::V6, &[1])])]);
    let of_tcp: BTreeSet<u32> = blocks(&maps).into_keys().map(|(_, block)| block).collect();
    assert_eq!(of_tcp.len(), 2, "{of_tcp:?}");
    // Without the annotation they have single ids.
    maps.plan(&[plain]);
    assert!(maps.store.dump.names.keys().chain(maps.store.dump.backends.keys()).all(|id| *id < FIRST_SCOPE));
}

#[test]
fn backends_that_share_affinity_go_on_in_one_block_when_a_target_port_changes() {
    let mut maps = Maps::new(Limits::DEFAULT);
    // The target ports of TCP, at the addresses 1 and 2; that of UDP stays.
    let wanted = |targets: &[u16]| {
        let mut spec = sharing(&[(Proto::Tcp, Family::V4, &[1, 2]), (Proto::Udp, Family::V4, &[1, 2])]);
        let port = &mut spec.ports[0];
        let members = port.backends.iter().flat_map(|member| {
            targets.iter().map(|&port| Member { target: AddrPort { port, ..member.target }, ..*member })
        });
        port.backends = members.collect();
        [spec]
    };
    for targets in [&[8080][..], &[8081], &[8081, 8082], &[8082], &[8080, 8082, 8083], &[8080]] {
        maps.plan(&wanted(targets));
        assert_eq!(maps.plan(&wanted(targets)), Plan::default());
        let blocks = blocks(&maps);
        let [tcp, udp] = [Proto::Tcp, Proto::Udp].map(|proto| {
            blocks.iter().find(|((of, _), _)| *of == proto as u8).map(|(_, of)| of).expect("a service port")
        });
        for (AddrPort { addr, .. }, block) in udp {
            let same = tcp.iter().filter(|(target, of)| target.addr == *addr && *of == block);
            assert_eq!(same.count(), 1, "{targets:?}: {blocks:?}");
        }
    }
}

#[test]
fn service_ports_that_share_affinity_leave_a_block_without_room() {
    let mut maps = Maps::new(Limits::DEFAULT);
    let of = |numbers: std::ops::Range<u16>| {
        let one = sharing(&[(Proto::Tcp, Family::V4, &[1])]);
        let port = |number: u16| {
            let mut port = one.ports[0].clone();
            port.key.name = format!("p{number}").into();
            port.frontends[0].0 = FrontendKey::new(port.frontends[0].0.addr, number, Proto::Tcp);
            port
        };
        [ServiceSpec { ports: numbers.map(port).collect(), ..one.clone() }]
    };
    for numbers in [1..60, 1..65, 50..114, 200..264] {
        let wanted = of(numbers);
        maps.plan(&wanted);
        assert_eq!(maps.plan(&wanted), Plan::default());
        let blocks: BTreeSet<u32> = maps.store.dump.names.keys().map(|id| block_of(*id)).collect();
        assert_eq!(blocks.len(), 1, "{blocks:?}");
        let blocks: BTreeSet<u32> = maps.store.dump.backends.keys().map(|id| block_of(*id)).collect();
        assert_eq!(blocks.len(), 1, "{blocks:?}");
    }
}

#[test]
fn i2_a_plan_does_not_depend_on_the_order_in_which_ids_got_their_names() {
    let names = [2, 3].map(|id| {
        let name = format!("p{id}").into();
        let key = PortKey { service: Key::new("default", "a"), name, proto: Proto::Tcp, family: Family::V4 };
        Op::PutName(id, Box::new(key))
    });
    let planned = |names: &[&Op]| {
        let mut shadow = Shadow::default();
        names.iter().for_each(|op| shadow.apply(op));
        plan(&shadow, &[gone("a")], None, Scope::Some, OnOrphan::Keep, &Limits::DEFAULT).ops
    };
    let [two, three] = &names;
    assert_eq!(planned(&[two, three]), planned(&[three, two]));
}

#[test]
fn i2_equal_specs_need_no_write() {
    let mut maps = Maps::new(Limits::DEFAULT);
    let both = [spec("a", &[1, 2], 0..3), spec("b", &[3], [])];
    assert_eq!(maps.plan(&both).changed.len(), 2);
    assert_eq!(maps.plan_with(&both, Scope::World, OnOrphan::Keep), Plan::default());
}

#[test]
fn i15_what_does_not_fit_stays_at_its_old_version_and_others_go_on() {
    let mut maps = Maps::new(Limits { slots: 4, backends: 4, ..Limits::DEFAULT });
    maps.plan(&[spec("a", &[1], 0..2), spec("b", &[2], 2..3)]);
    let plan = maps.plan(&[spec("a", &[1, 4], 0..4), spec("b", &[2], 4..5)]);
    let refused = Refused { service: Key::new("default", "a"), table: Table::Slots, size: 4 };
    assert_eq!(
        refused.to_string(),
        "the map SLOTS has 4 entries and no room for default/a, which stays as it was; raise it with --map-size slots=8"
    );
    assert_eq!(plan.refused, [refused]);
    assert_eq!(plan.changed.len(), 1);
    assert_eq!(maps.shadow.frontend(&frontend(4).0), None);
    assert_eq!(maps.plan(&[gone("b")]).refused, []);
    assert_eq!(maps.plan(&[spec("a", &[1, 4], 0..4)]).refused, []);
}

#[test]
fn i15_a_frontend_stays_with_its_owner_until_the_next_one_has_room() {
    let mut maps = Maps::new(Limits { services: 1, ..Limits::DEFAULT });
    maps.plan(&[spec("b", &[1], 0..1)]);
    let of = |maps: &Maps| maps.shadow.frontend(&frontend(1).0).map(|frontend| frontend.service);
    let owner = of(&maps);
    // A Service of another namespace takes over no id.
    let a = || in_namespace("other", spec("a", &[1], 1..2));
    // The loser lives on.
    let plan = maps.plan(&[spec("b", &[2], 0..1), a()]);
    assert_eq!((plan.refused.len(), plan.held.len()), (1, 0));
    assert_eq!(of(&maps), owner);
    // The loser has gone: it serves on, until nothing else helps.
    let plan = maps.plan(&[gone("b"), a()]);
    assert_eq!((plan.refused.len(), plan.held), (1, vec![Key::new("default", "b")]));
    assert_eq!(of(&maps), owner);
    let plan = maps.plan_with(&[gone("b"), a()], Scope::Some, OnOrphan::Remove);
    assert_eq!((plan.refused.len(), of(&maps)), (1, None));
    assert_eq!(maps.plan(&[a()]).refused, []);
    assert!(of(&maps).is_some_and(|id| Some(id) != owner));
}

#[test]
fn a_service_port_without_a_service_is_deleted_by_a_plan_of_the_world_only() {
    let mut maps = Maps::new(Limits::DEFAULT);
    maps.plan(&[spec("a", &[1], 0..2), spec("b", &[2], 0..2)]);
    maps.plan(&[spec("a", &[1], 0..2)]);
    assert_eq!(maps.store.dump.services.len(), 2);
    let plan = maps.plan_with(&[spec("a", &[1], 0..2)], Scope::World, OnOrphan::Keep);
    let [change] = &*plan.changed else { panic!("one change: {:?}", plan.changed) };
    assert_eq!((change.service.name(), change.added, change.removed, change.writes), ("b", 0, 2, 7));
    assert_eq!(maps.store.dump.services.len(), 1);
    maps.plan_with(&[], Scope::World, OnOrphan::Keep);
    assert_eq!(maps.store.dump, Dump::default());
}

#[test]
fn a_frontend_bit_is_set_before_its_first_key_and_cleared_after_its_last() {
    let mut maps = Maps::new(Limits::DEFAULT);
    let order = |plan: &Plan| {
        let frontends = plan.ops.iter().filter(|op| matches!(op.table(), Table::Frontends | Table::FrontendBits));
        frontends.map(ToString::to_string).collect::<Vec<_>>()
    };
    // Both VIPs have port 80, and so one bit: bit 16 of word 1.
    let plan = maps.plan(&[spec("a", &[1, 2], 0..1)]);
    assert_eq!(order(&plan)[0], "put FRONTEND_BITS 1 = 0x10000");
    assert_eq!(order(&plan).len(), 3);
    let plan = maps.plan(&[spec("a", &[2], 0..1)]);
    assert_eq!(order(&plan), ["delete FRONTENDS 10.96.0.1:80/TCP"]);
    let plan = maps.plan(&[gone("a")]);
    assert_eq!(order(&plan), ["delete FRONTENDS 10.96.0.2:80/TCP", "put FRONTEND_BITS 1 = 0x0"]);
}

#[test]
fn wrong_frontend_bits_are_corrected_by_a_plan_of_the_world() {
    let mut maps = Maps::new(Limits::DEFAULT);
    let specs = [spec("a", &[1], 0..1)];
    maps.plan(&specs);
    for wrong in [0, 0x10000 | 1 << 9] {
        let damage = Op::PutFrontendBits(1, wrong);
        maps.store.apply(std::slice::from_ref(&damage)).expect("no faults here");
        maps.shadow.apply(&damage);
        assert_eq!(maps.plan_with(&specs, Scope::Some, OnOrphan::Keep).ops, [], "some Services say nothing of others");
        let plan = maps.plan_with(&specs, Scope::World, OnOrphan::Keep);
        assert_eq!(plan.ops, [Op::PutFrontendBits(1, 0x10000)]);
    }
}

#[test]
fn both_lists_share_a_backend() {
    let mut maps = Maps::new(Limits::DEFAULT);
    let local = |cluster: std::ops::Range<usize>, local: std::ops::Range<usize>| {
        let mut spec = spec("a", &[1], cluster);
        for n in local {
            let backends = &mut spec.ports[0].backends;
            match backends.iter_mut().find(|member| member.target == target(n)) {
                Some(member) => member.flags |= BackendFlags::LOCAL,
                None => backends.push(member(n, BackendFlags::LOCAL)),
            }
        }
        spec.ports[0].flags = ServiceFlags::INTERNAL_LOCAL;
        [spec]
    };
    maps.plan(&local(0..3, 1..2));
    assert_eq!((maps.store.dump.backends.len(), maps.store.dump.slots.len()), (3, 4));
    // From one list to the other, without a new backend.
    let plan = maps.plan(&local(0..1, 1..3));
    assert_eq!(plan.changed.first().map(|change| (change.added, change.removed)), Some((0, 0)));
    let plan = maps.plan(&local(0..3, 0..0));
    assert_eq!(plan.changed.first().map(|change| (change.added, change.removed)), Some((0, 0)));
    maps.plan(&local(0..0, 4..5));
    assert_eq!((maps.store.dump.backends.len(), maps.store.dump.slots.len()), (1, 1));
}

#[test]
fn the_order_of_all_writes_is_the_order_of_the_phases() {
    let mut maps = Maps::new(Limits::DEFAULT);
    maps.plan(&[spec("a", &[1], 0..3), spec("b", &[2, 9], 0..1), spec("c", &[3], 0..1)]);
    let plan = maps.plan(&[spec("a", &[1], 3..4), gone("b"), spec("c", &[3], []), spec("d", &[2], 5..6)]);
    let text: Vec<_> = plan.ops.iter().map(ToString::to_string).collect();
    expect_test::expect![[r#"
        put NAMES 4 = default/d/TCP
        put BACKENDS 6 = 10.0.0.3:8080 of service port 1, flags 0x1
        put BACKENDS 7 = 10.0.0.5:8080 of service port 4, flags 0x1
        put SLOTS 4 0 0 = 10.0.0.5:8080 backend 7
        put SLOTS 1 0 0 = 10.0.0.3:8080 backend 6
        put SERVICES 1 = cluster 1 local 0 flags 0x0
        put SERVICES 4 = cluster 1 local 0 flags 0x0
        put FRONTENDS 10.96.0.2:80/TCP = service port 4, ClusterIP
        delete FRONTENDS 10.96.0.9:80/TCP
        put SERVICES 3 = cluster 0 local 0 flags 0x0
        delete SERVICES 2
        delete SLOTS 1 0 1
        delete SLOTS 1 0 2
        delete SLOTS 3 0 0
        delete SLOTS 2 0 0
        delete BACKENDS 1
        delete BACKENDS 2
        delete BACKENDS 3
        delete BACKENDS 5
        delete BACKENDS 4
        delete NAMES 2"#]]
    .assert_eq(&text.join("\n"));
}

/// As `spec`, with another name of the port.
fn named(port: &str, mut spec: ServiceSpec) -> ServiceSpec {
    spec.ports[0].key.name = port.into();
    spec
}

#[test]
fn a_port_or_a_service_is_renamed_with_one_write_and_all_ids_stay() {
    let rename = |wanted: &[ServiceSpec], scope| {
        let mut maps = Maps::new(Limits::DEFAULT);
        maps.plan(&[spec("b", &[1, 2], 0..3)]);
        texts(&maps.plan_with(wanted, scope, OnOrphan::Keep))
    };
    let port = rename(&[named("dns", spec("b", &[1, 2], 0..3))], Scope::Some);
    assert_eq!(port, "put NAMES 1 = default/b:dns/TCP\n");
    for name in ["a", "c"] {
        let mut both = vec![gone("b"), spec(name, &[1, 2], 0..3)];
        both.sort_by(|a, b| a.key.cmp(&b.key));
        let expected = format!("put NAMES 1 = default/{name}/TCP\n");
        assert_eq!(rename(&both, Scope::Some), expected);
        assert_eq!(rename(&[spec(name, &[1, 2], 0..3)], Scope::World), expected, "after a restart");
    }
    // One endpoint more and one VIP more: as for a Service that keeps its name.
    let more = rename(&[named("dns", spec("b", &[1, 2, 3], 0..4))], Scope::Some);
    assert_eq!(more.lines().count(), 5, "{more}");
}

#[test]
fn an_id_is_taken_over_only_from_a_service_port_that_goes_away_with_all_its_frontends() {
    let over_udp = |mut spec: ServiceSpec| {
        spec.ports[0].key.proto = Proto::Udp;
        spec
    };
    let b = || spec("b", &[1, 2], 0..3);
    let cases = [
        ("the old one lives", vec![spec("b", &[], 0..3), spec("c", &[1, 2], 0..3)]),
        ("the old one lives and is not in this plan", vec![spec("c", &[1, 2], 0..3)]),
        ("another port of the Service lives", vec![spec("b", &[3], 0..3), spec("c", &[1, 2], 0..3)]),
        ("a frontend goes away", vec![gone("b"), spec("c", &[1], 0..3)]),
        ("another namespace", vec![gone("b"), in_namespace("other", spec("c", &[1, 2], 0..3))]),
        ("another protocol", vec![named("udp", over_udp(b()))]),
        ("two successors", vec![gone("b"), spec("c", &[1], 0..3), spec("d", &[2], 0..3)]),
    ];
    for (what, wanted) in cases {
        let mut maps = Maps::new(Limits::DEFAULT);
        maps.plan(&[b()]);
        let text = texts(&maps.plan(&wanted));
        assert!(text.contains("put NAMES 2 = "), "{what}: {text}");
        assert!(!text.contains("put NAMES 1 = "), "{what}: {text}");
    }
}

#[test]
fn i15_an_id_is_not_taken_over_by_a_service_that_does_not_fit() {
    let mut maps = Maps::new(Limits { slots: 2, ..Limits::DEFAULT });
    maps.plan(&[spec("b", &[1], 0..2)]);
    let before = maps.store.dump.clone();
    for wanted in [[gone("b"), spec("c", &[1], 0..3)].as_slice(), &[named("dns", spec("b", &[1], 0..3))]] {
        assert_eq!(maps.plan(wanted).refused.len(), 1);
        assert_eq!(maps.store.dump, before);
    }
    assert_eq!(texts(&maps.plan(&[gone("b"), spec("c", &[1], 0..2)])), "put NAMES 1 = default/c/TCP\n");
}

#[test]
fn i7_ids_wrap_around_past_ids_in_use() {
    let last = FIRST_SCOPE - 1;
    let mut maps = Maps::new(Limits::DEFAULT);
    maps.plan(&[spec("a", &[1], 0..1)]);
    let mut dump = maps.store.dump.clone();
    dump.names.insert(last, PortKey { service: Key::new("default", "z"), ..dump.names[&1].clone() });
    dump.services.insert(last, dump.services[&1]);
    let slot = dump.slots[&SlotKey::new(1, List::Cluster, 0)];
    dump.slots.insert(SlotKey::new(last, List::Cluster, 0), lb_common::Slot { backend: last, ..slot });
    dump.backends.insert(last, lb_common::Backend { service: last, ..dump.backends[&1] });
    let (shadow, oddities) = Shadow::from_dump(&dump);
    assert_eq!(oddities, [""; 0]);
    (maps.store.dump, maps.shadow) = (dump, shadow);
    maps.plan(&[spec("b", &[2], 0..1)]);
    assert_eq!(maps.store.dump.services.keys().copied().collect::<Vec<_>>(), [1, 2, last]);
    assert_eq!(maps.store.dump.backends.keys().copied().collect::<Vec<_>>(), [1, 2, last]);
}

/// The spec of `a` with these source ranges, at an address of a load balancer; without any it has neither.
fn bound(ranges: &[&str], backends: std::ops::Range<usize>) -> [ServiceSpec; 1] {
    let mut spec = spec("a", &[1], backends);
    let port = &mut spec.ports[0];
    if !ranges.is_empty() {
        port.frontends.push((frontend(9).0, Kind::LoadBalancer));
        port.flags = ServiceFlags::SOURCE_RANGES;
        port.ranges = ranges.iter().map(|range| range.parse().expect("a network")).collect();
    }
    [spec]
}

fn texts(plan: &Plan) -> String {
    plan.ops.iter().map(|op| format!("{op}\n")).collect()
}

#[test]
fn source_ranges_are_there_before_anything_is_bound_and_go_after_it() {
    let mut maps = Maps::new(Limits::DEFAULT);
    maps.plan(&bound(&[], 0..1));
    let come = texts(&maps.plan(&bound(&["192.0.2.0/24", "198.51.100.0/24"], 0..1)));
    expect_test::expect![[r"
        put SOURCE_RANGES 1 192.0.2.0/24
        put SOURCE_RANGES 1 198.51.100.0/24
        put SERVICES 1 = cluster 1 local 0 flags 0x4
        put FRONTENDS 10.96.0.9:80/TCP = service port 1, LoadBalancer
    "]]
    .assert_eq(&come);
    let change = texts(&maps.plan(&bound(&["192.0.2.0/24", "203.0.113.0/24"], 0..1)));
    expect_test::expect![[r"
        put SOURCE_RANGES 1 203.0.113.0/24
        delete SOURCE_RANGES 1 198.51.100.0/24
    "]]
    .assert_eq(&change);
    // The address goes too: it is bound as long as it is there.
    let go = texts(&maps.plan(&bound(&[], 0..1)));
    expect_test::expect![[r"
        delete FRONTENDS 10.96.0.9:80/TCP
        put SERVICES 1 = cluster 1 local 0 flags 0x0
        delete SOURCE_RANGES 1 192.0.2.0/24
        delete SOURCE_RANGES 1 203.0.113.0/24
    "]]
    .assert_eq(&go);
    // The source ranges come while the backends go.
    let empty = texts(&maps.plan(&bound(&["192.0.2.0/24"], 0..0)));
    expect_test::expect![[r"
        put SOURCE_RANGES 1 192.0.2.0/24
        put SERVICES 1 = cluster 1 local 0 flags 0x4
        put FRONTENDS 10.96.0.9:80/TCP = service port 1, LoadBalancer
        put SERVICES 1 = cluster 0 local 0 flags 0x4
        delete SLOTS 1 0 0
        delete BACKENDS 1
    "]]
    .assert_eq(&empty);
    maps.plan_with(&[], Scope::World, OnOrphan::Keep);
    assert_eq!(maps.store.dump, Dump::default());
}

#[test]
fn i14_k_ranges_cost_k_writes_and_a_list_of_mh_one_more() {
    let mut maps = Maps::new(Limits::DEFAULT);
    let ranges: Vec<_> = (0..1_000).map(|n| format!("10.{}.{}.0/24", n / 250, n % 250)).collect();
    let ranges: Vec<_> = ranges.iter().map(String::as_str).collect();
    maps.plan(&bound(&ranges[..997], 0..1));
    assert_eq!(maps.plan(&bound(&ranges[2..], 0..1)).ops.len(), 5);
    let hashed = |backends| {
        let mut spec = spec("b", &[2], backends);
        spec.ports[0].scheduler = Scheduler::Mh;
        [spec]
    };
    maps.plan(&hashed(0..100));
    assert_eq!(maps.plan(&hashed(0..100)), Plan::default());
    // The backend, its slot, the length, and the table.
    assert_eq!(maps.plan(&hashed(0..101)).ops.len(), 4);
    let more = lb_common::MAGLEV_LEN + 1;
    assert!(maps.plan(&hashed(0..more)).ops.iter().any(|op| matches!(op, Op::DeleteMaglev(_))), "too many for a table");
    assert_eq!(maps.plan(&hashed(0..more)), Plan::default());
}

#[test]
fn i15_a_full_map_of_ranges_or_tables_keeps_the_old_version() {
    let mut maps = Maps::new(Limits { source_ranges: 1, maglev: 0, ..Limits::DEFAULT });
    maps.plan(&bound(&["192.0.2.0/24"], 0..1));
    let before = maps.store.dump.clone();
    let mut hashed = spec("b", &[2], 0..1);
    hashed.ports[0].scheduler = Scheduler::Mh;
    let [bound] = bound(&["192.0.2.0/24", "198.51.100.0/24"], 0..2);
    let refused = maps.plan(&[bound, hashed]).refused;
    let said: Vec<_> = refused.iter().map(ToString::to_string).collect();
    assert!(said[0].ends_with("raise it with --map-size source_ranges=2"), "{said:?}");
    assert!(said[1].ends_with("raise it with --map-size maglev=1"), "{said:?}");
    assert_eq!(maps.store.dump, before);
}
