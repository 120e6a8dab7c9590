//! Text of traces over hand-made maps, and of events that a snapshot cannot show.

use std::{collections::BTreeMap, net::IpAddr};

use expect_test::{Expect, expect};
use lb_common::{
    Addr, Affinity, Backend, BackendFlags, BackendStats, ClusterRanges, Family, Frontend, Name, NodeAddr, Pair,
    PodModeEntry, ServiceFlags,
};
use lb_core::{objects::Key, spec::PortKey, store::Dump};
use lb_dataplane::stats::Stats;

use super::*;

const SECOND: u64 = 1_000_000_000;
const NOW: u64 = 100 * SECOND;
const POD: u64 = 7;

fn addr(text: &str) -> Addr {
    text.parse::<IpAddr>().expect("an address").into()
}

/// `default/web`, service port 1: a cluster IP, a NodePort at 192.0.2.1, a backend on this node and another elsewhere.
/// The pod of network namespace 7 has a mode.
fn snapshot(service: ServiceEntry, mode: Option<PodMode>) -> Snapshot {
    let mut dump = Dump::default();
    let key = |text, port| FrontendKey::new(addr(text), port, Proto::Tcp);
    dump.frontends.insert(key("10.96.0.1", 80), Frontend::new(1, Kind::ClusterIp));
    dump.frontends.insert(key("10.96.0.1", 80).address(), Frontend::new(1, Kind::Address));
    dump.frontends.insert(key("0.0.0.0", 30080), Frontend::new(1, Kind::NodePort));
    dump.node_addrs.insert(addr("192.0.2.1"), NodeAddr { flags: 0 });
    set_bits(&mut dump);
    let name = PortKey { service: Key::new("default", "web"), name: "".into(), proto: Proto::Tcp, family: Family::V4 };
    dump.names.insert(1, name);
    dump.services.insert(1, service);
    let both = BackendFlags::CLUSTER | BackendFlags::LOCAL | BackendFlags::ON_NODE;
    for (id, text, flags) in [(1, "10.0.0.1", both), (2, "10.0.0.2", BackendFlags::CLUSTER)] {
        dump.backends.insert(id, Backend { addr: addr(text), port: 8080, flags, service: 1 });
    }
    let slots = [(List::Cluster, 0, 1), (List::Cluster, 1, 2), (List::Local, 0, 1)];
    for (list, index, backend) in slots.into_iter().filter(|(list, index, _)| *index < service.len(*list)) {
        let slot = Slot { addr: dump.backends[&backend].addr, port: 8080, weight: 1, backend };
        dump.slots.insert(SlotKey::new(1, list, index), slot);
    }
    let mut stats = Stats::default();
    stats.backends.insert(2, BackendStats { open: 3, ..BackendStats::default() });
    let pod = |mode| PodModeEntry {
        v4: addr("10.0.0.9"),
        v6: Addr::default(),
        namespace: Name::new("apps").expect("short"),
        name: Name::new("a").expect("short"),
        device: 3,
        path: mode as u8,
        by_namespace: 0,
        _pad: 0,
    };
    let pod_modes = mode.map(|mode| (POD, pod(mode))).into_iter().collect();
    Snapshot {
        dump,
        stats,
        affinity: BTreeMap::new(),
        ejections: BTreeMap::new(),
        cluster_ranges: ClusterRanges::default(),
        pod_modes,
    }
}

fn service() -> ServiceEntry {
    let random = Scheduler::Random as u32;
    ServiceEntry {
        cluster_len: 2,
        cluster_stride: 1,
        local_len: 1,
        local_stride: 1,
        scheduler: random,
        ..ServiceEntry::default()
    }
}

const HOST: TraceClient = TraceClient::socket(1, true, NOW);
const IN_POD: TraceClient = TraceClient::socket(POD, false, NOW);

fn outside(text: &str) -> TraceClient {
    TraceClient::outside(addr(text), NOW)
}

/// Sets the bits of all frontends, as a plan does.
fn set_bits(dump: &mut Dump) {
    for (word, bit) in dump.frontends.keys().map(FrontendKey::bit) {
        *dump.frontend_bits.entry(word).or_default() |= bit;
    }
}

fn check(snapshot: &Snapshot, client: &TraceClient, destination: &str, expected: &Expect) {
    let Traced { text, .. } = trace(snapshot, client, destination.parse().expect("an address and port"), Proto::Tcp);
    expected.assert_eq(&format!("{destination}\n{text}"));
}

#[test]
fn a_socket_gets_a_backend_of_the_cluster_list() {
    check(
        &snapshot(service(), None),
        &HOST,
        "10.96.0.1:80",
        &expect![[r"
            10.96.0.1:80
              frontend   ClusterIP of default/web/TCP
              list       cluster: 2 backends
              scheduler  random: any of them, by chance
              backend    10.0.0.1:8080  50.0 %  0 open sockets
              backend    10.0.0.2:8080  50.0 %  3 open sockets
              verdict    goes there; the application sees 10.96.0.1:80 as its peer
        "]],
    );
}

#[test]
fn a_frontend_without_its_bit_is_as_hidden_as_to_the_programs() {
    let mut damaged = snapshot(service(), None);
    damaged.dump.frontend_bits.clear();
    check(
        &damaged,
        &HOST,
        "10.96.0.1:80",
        &expect![[r"
            10.96.0.1:80
              verdict    no Service answers here: the call goes on unchanged
              hint       a clear bit of FRONTEND_BITS hides its frontend: beeline doctor names the cure
        "]],
    );
    let verdict = |to: &str| trace(&damaged, &HOST, to.parse().expect("an address and port"), Proto::Tcp);
    assert!(verdict("192.0.2.1:30080").text.contains("a clear bit of FRONTEND_BITS"));
    assert!(!verdict("192.0.2.1:30081").text.contains("FRONTEND_BITS"));
}

#[test]
fn a_preference_that_narrows_the_list_is_named() {
    let preferring = ServiceEntry { flags: ServiceFlags::PREFERS_LOCAL, cluster_len: 1, ..service() };
    check(
        &snapshot(preferring, None),
        &HOST,
        "10.96.0.1:80",
        &expect![[r"
            10.96.0.1:80
              frontend   ClusterIP of default/web/TCP
              list       cluster, of this node only by beeline.io/prefer-local: 1 backend
              scheduler  random: any of them, by chance
              backend    10.0.0.1:8080  100.0 %  0 open sockets
              verdict    goes there; the application sees 10.96.0.1:80 as its peer
        "]],
    );
}

#[test]
fn an_address_of_the_node_is_noted_for_callers_on_the_node() {
    let mut snapshot = snapshot(service(), None);
    let key = FrontendKey::new(addr("10.96.0.1"), 80, Proto::Tcp).address();
    snapshot.dump.frontends.insert(key, Frontend::new(1, Kind::OwnAddress));
    set_bits(&mut snapshot.dump);
    let has_note = |client: &TraceClient| {
        let Traced { text, .. } =
            trace(&snapshot, client, "10.96.0.1:80".parse().expect("an address and port"), Proto::Tcp);
        text.contains(
            "  note       an interface of this node has the address: a process of the node that listens there",
        )
    };
    assert!(has_note(&HOST) && has_note(&IN_POD) && !has_note(&outside("198.51.100.7")));
}

#[test]
fn policies_and_masquerade_of_clients_outside_are_named() {
    let flags = ServiceFlags::EXTERNAL_LOCAL;
    let local = snapshot(ServiceEntry { flags, scheduler: Scheduler::Rr as u32, ..service() }, None);
    check(
        &local,
        &outside("198.51.100.7"),
        "192.0.2.1:30080",
        &expect![[r"
            192.0.2.1:30080
              frontend   NodePort of default/web/TCP
              list       local, by externalTrafficPolicy Local: 1 backend
              scheduler  rr: each in turn
              backend    10.0.0.1:8080  100.0 %  0 open sockets
              choice     10.0.0.1:8080, whose turn it is
              verdict    goes there
        "]],
    );
    check(
        &local,
        &HOST,
        "192.0.2.1:30080",
        &expect![[r"
            192.0.2.1:30080
              frontend   NodePort of default/web/TCP
              list       cluster, as always for callers on this node: 2 backends
              scheduler  rr: each in turn
              backend    10.0.0.1:8080  50.0 %  0 open sockets
              backend    10.0.0.2:8080  50.0 %  3 open sockets
              choice     10.0.0.1:8080, whose turn it is
              verdict    goes there; the application sees 192.0.2.1:30080 as its peer
        "]],
    );
}

#[test]
fn refusals_have_their_cause_and_are_described_once() {
    let empty = snapshot(ServiceEntry { cluster_len: 0, local_len: 0, ..service() }, None);
    check(
        &empty,
        &HOST,
        "10.96.0.1:80",
        &expect![[r#"
            10.96.0.1:80
              frontend   ClusterIP of default/web/TCP
              reason     the service port has no endpoint that is ready, on any node
              verdict    refused: the application sees ECONNREFUSED ("Connection refused"; EPERM on kernels before 5.18)
        "#]],
    );
    let flags = ServiceFlags::UDP_CONNECT;
    let empty = snapshot(ServiceEntry { cluster_len: 0, local_len: 0, flags, ..service() }, None);
    let noted = |client: &TraceClient| {
        trace(&empty, client, "10.96.0.1:80".parse().expect("an address"), Proto::Tcp)
            .text
            .contains("connect() succeeds")
    };
    assert_eq!((noted(&HOST), noted(&TraceClient::socket(7, false, NOW))), (false, true));
    let flags = ServiceFlags::EXTERNAL_LOCAL;
    check(
        &snapshot(ServiceEntry { local_len: 0, flags, ..service() }, None),
        &outside("198.51.100.7"),
        "192.0.2.1:30080",
        &expect![[r"
            192.0.2.1:30080
              frontend   NodePort of default/web/TCP
              reason     the traffic policy is Local, and no endpoint is on this node
              verdict    dropped: the client gets no answer
        "]],
    );
}

#[test]
fn affinity_is_shown_with_its_outcome() {
    let mut snapshot = snapshot(ServiceEntry { affinity_seconds: 30, ..service() }, None);
    let key = HOST.client().affinity_key(1);
    let mut outcome = |entry: Option<(u32, u64)>| {
        let entry = entry.map(|(backend, used)| Affinity { backend, _pad: 0, used });
        snapshot.affinity = entry.map(|entry| (key, entry)).into_iter().collect();
        let Traced { text, .. } = trace(&snapshot, &HOST, "10.96.0.1:80".parse().expect("an address"), Proto::Tcp);
        let line = text.lines().find(|line| line.starts_with("  affinity ")).expect("a line").to_owned();
        (line, text.contains("choice     10.0.0.2:8080, by affinity"))
    };
    let line = |rest: &str| format!("  affinity   ClientIP, 30 s after the last connect; this client {rest}");
    assert_eq!(outcome(None), (line("has no backend yet"), false));
    assert_eq!(outcome(Some((2, NOW - 5 * SECOND))), (line("got backend 2 5 s ago: keeps it"), true));
    assert_eq!(outcome(Some((2, NOW - 40 * SECOND))), (line("got backend 2 40 s ago: time-out is over"), false));
    assert_eq!(outcome(Some((9, NOW - 5 * SECOND))), (line("got backend 9 5 s ago: it has left the list"), false));
}

#[test]
fn destinations_without_a_service_have_hints() {
    let snapshot = snapshot(service(), None);
    check(
        &snapshot,
        &HOST,
        "10.96.0.1:81",
        &expect![[r#"
            10.96.0.1:81
              reason     no Service has this port of the cluster IP
              verdict    refused: the application sees ECONNREFUSED ("Connection refused"; EPERM on kernels before 5.18)
              hint       the address is a VIP, with other ports: 10.96.0.1:80/TCP
        "#]],
    );
    let Traced { text, .. } =
        trace(&snapshot, &outside("198.51.100.7"), "10.96.0.1:81".parse().expect("an address"), Proto::Tcp);
    assert!(text.starts_with("  verdict    no Service answers here: packets are rejected"), "{text}");
    let mut ranged = self::snapshot(service(), None);
    ranged.cluster_ranges = lb_core::model::cluster_ranges::value(&["10.96.0.0/16".parse().expect("a range")]);
    check(
        &ranged,
        &HOST,
        "10.96.0.7:80",
        &expect![[r#"
            10.96.0.7:80
              reason     the address is in a range of cluster IPs, and no Service has it
              verdict    refused: the application sees EHOSTUNREACH ("No route to host"; EPERM on kernels before 5.18)
        "#]],
    );
    let mut external = self::snapshot(service(), None);
    let address =
        FrontendKey::new("203.0.113.9".parse::<std::net::IpAddr>().expect("an address").into(), 0, Proto::Tcp);
    external.dump.frontends.insert(address.external_address(), Frontend::new(1, Kind::ExternalAddress));
    set_bits(&mut external.dump);
    let Traced { text, .. } =
        trace(&external, &outside("198.51.100.7"), "203.0.113.9:81".parse().expect("an address"), Proto::Tcp);
    assert!(text.contains("packets go where the routes lead them"), "{text}");
    check(
        &snapshot,
        &HOST,
        "203.0.113.9:30080",
        &expect![[r"
            203.0.113.9:30080
              verdict    no Service answers here: the call goes on unchanged
              hint       the port is a NodePort of default/web/TCP, but not at this address (--nodeport-addresses)
        "]],
    );
}

#[test]
fn the_mode_of_a_pod_decides_where_it_is_translated() {
    let head = "  mode       packet, by the label of the pod: pod apps/a\n  frontend   ClusterIP of default/web/TCP\n";
    let packet = snapshot(service(), Some(PodMode::Packet));
    let dest = "10.96.0.1:80".parse().expect("an address");
    for client in [IN_POD, outside("10.0.0.9")] {
        let Traced { text, verdict, .. } = trace(&packet, &client, dest, Proto::Tcp);
        assert!(text.starts_with(head) && text.contains("goes there"), "{text}");
        assert!(matches!(verdict, Verdict::Backend(_)));
    }
    let off = snapshot(service(), Some(PodMode::Off));
    let head = "  mode       off, by the label of the pod: pod apps/a\n";
    // `select` reports the frontend, then that it is bypassed.
    for (client, frontend) in [(IN_POD, "  frontend   ClusterIP of default/web/TCP\n"), (outside("10.0.0.9"), "")] {
        let expected = format!("{head}{frontend}{LEFT_ALONE}");
        let Traced { text, verdict, .. } = trace(&off, &client, dest, Proto::Tcp);
        assert_eq!((text, verdict), (expected, Verdict::NotService));
    }
    let Traced { text, .. } = trace(&off, &HOST, dest, Proto::Tcp);
    assert!(text.starts_with("  frontend "), "another client has no mode: {text}");
}

#[test]
fn events_of_a_changing_list_are_described() {
    let snapshot = snapshot(service(), None);
    let destination = "10.96.0.1:80".parse().expect("an address");
    let dest = FrontendKey::new(addr("10.96.0.1"), 80, Proto::Tcp);
    let choosing = Choosing { snapshot: &snapshot, client: HOST, destination, dest };
    let frontend = Frontend::new(1, Kind::ClusterIp);
    let choice =
        Choice { service: 1, backend: 1, addr: addr("10.0.0.1"), port: 8080, followed: None, reason: Reason::Random };
    let (text, _) = choosing.describe(&[
        SelectEvent::SecondLook,
        SelectEvent::Frontend { frontend, matched: lb_common::Match::Exact },
        SelectEvent::List { list: List::Local, reason: ListReason::InternalLocal, len: 1 },
        SelectEvent::SlotMissing,
        SelectEvent::Scheduled { backend: 1, reason: Reason::Turn },
        SelectEvent::Compared(Pair { scheduled: 1, other: 2, taken: 1 }),
        SelectEvent::Chosen(choice),
    ]);
    expect![[r"
        events
          frontend   ClusterIP of default/web/TCP
          list       local, by internalTrafficPolicy Local: 1 backend
          scheduler  random: any of them, by chance
          note       an entry is missing: the agent is changing the list
          backend    10.0.0.1:8080  100.0 %  0 open sockets
          verdict    goes there; the application sees 10.96.0.1:80 as its peer
    "]]
    .assert_eq(&format!("events\n{text}"));
}
