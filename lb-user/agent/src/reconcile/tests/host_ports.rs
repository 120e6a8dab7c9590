//! hostPorts: changes after which a pod is compiled again, and its warnings.

use std::net::IpAddr;

use lb_common::{NodeAddr, NodeAddrFlags};
use lb_core::{
    event::{Event, Object, ObjectKind},
    objects::{HostPort, Pod},
};

use super::*;

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn pod(name: &str, last: u8, host_ip: &str, port: u16) -> Object {
    let number = |number: u16| number.try_into().expect("not 0");
    let addr = (!host_ip.is_empty()).then(|| ip(host_ip));
    let host_port = HostPort { addr, port: number(port), container_port: number(80), proto: Proto::Tcp };
    Object::Pod(Pod {
        key: Key::new("default", name),
        uid: None,
        created: Some(last.into()),
        terminating: false,
        node: Some("node-1".into()),
        host_network: false,
        started: true,
        ips: vec![[10, 0, 0, last].into()],
        host_ports: vec![host_port],
        host_port_problems: Vec::new(),
        mode: None,
        netns: None,
        problems: Vec::new(),
    })
}

fn node_port(number: u16) -> Object {
    let Object::Service(mut service) = service("a", 1) else { unreachable!("a Service") };
    let port = ServicePort { node_port: number.try_into().ok(), ..service.ports[0].clone() };
    service.ports = [port].into();
    Object::Service(service)
}

/// A reconciler with the flag, at 192.0.2.1, 192.0.2.2 and 127.0.0.1; NodePorts answer at the first.
fn reconciler() -> Reconciler<MemoryStore> {
    let nodeport_addresses = "192.0.2.1/32".parse().expect("a list");
    let settings = Settings { host_ports: true, nodeport_addresses, ..Settings::default() };
    let mut reconciler = Reconciler::new(MemoryStore::new(Limits::DEFAULT), "node-1", settings);
    reconciler.handle(ObjectKind::OF_SERVICES.map(|kind| Event::Replace(kind, Vec::new())));
    reconciler.handle([Event::NodeAddresses(["192.0.2.1", "192.0.2.2", "127.0.0.1"].map(ip).into_iter().collect())]);
    reconciler
}

/// Runs a pass; returns the frontends with their backends, and the warnings.
fn settle(reconciler: &mut Reconciler<MemoryStore>) -> (Vec<String>, Vec<String>) {
    assert!(reconciler.pass().failure.is_none());
    let dump = &reconciler.store().dump;
    let of_pod = |frontend: &lb_common::Frontend| frontend.kind == Kind::HostPort as u8;
    let frontends = dump.frontends.iter().filter(|(_, frontend)| of_pod(frontend));
    let frontends = frontends.map(|(key, frontend)| format!("{key} {}", dump.names[&frontend.service].service.name()));
    let warnings = reconciler.warnings().iter();
    let warnings =
        warnings.flat_map(|(key, warnings)| warnings.iter().map(move |text| format!("{}: {text}", key.name())));
    (frontends.collect(), warnings.collect())
}

#[test]
fn i5_no_map_is_written_before_pods_were_listed_where_host_ports_are_served() {
    let mut reconciler = reconciler();
    assert_eq!(reconciler.pass().waiting, [ObjectKind::Pod]);
    reconciler.handle([Event::Replace(ObjectKind::Pod, vec![pod("web", 1, "", 8080)])]);
    assert_eq!(settle(&mut reconciler).0, ["0.0.0.0:8080/TCP pod/web"]);
    // Lists of other kinds leave it alone.
    reconciler.handle(ObjectKind::OF_SERVICES.map(|kind| Event::Replace(kind, Vec::new())));
    assert_eq!(reconciler.pass().writes, 0);
    // A restart over the maps writes nothing, and waits for the pods.
    let settings = reconciler.settings.clone();
    let mut restarted = Reconciler::new(reconciler.into_store(), "node-1", settings);
    restarted.handle(ObjectKind::OF_SERVICES.map(|kind| Event::Replace(kind, Vec::new())));
    restarted.handle([Event::NodeAddresses(["192.0.2.1", "192.0.2.2", "127.0.0.1"].map(ip).into_iter().collect())]);
    assert_eq!((restarted.pass().writes, restarted.store().dump.frontends.len()), (0, 1));
    restarted.handle([Event::Replace(ObjectKind::Pod, vec![pod("web", 1, "", 8080)])]);
    let report = restarted.pass();
    assert_eq!((report.writes, report.waiting.len()), (0, 0));
    restarted.handle([Event::Delete(ObjectKind::Pod, Key::new("default", "web"))]);
    assert_eq!(settle(&mut restarted).0, Vec::<String>::new(), "the port is free");
}

#[test]
fn without_the_flag_a_pod_asks_for_nothing() {
    let mut reconciler = Reconciler::new(MemoryStore::new(Limits::DEFAULT), "node-1", Settings::default());
    reconciler.handle(ObjectKind::OF_SERVICES.map(|kind| Event::Replace(kind, Vec::new())));
    reconciler.handle([Event::Apply(pod("web", 1, "", 8080))]);
    assert_eq!(settle(&mut reconciler), (Vec::new(), Vec::new()));
}

#[test]
fn host_ports_answer_at_addresses_that_node_ports_leave_out() {
    let mut reconciler = reconciler();
    reconciler.handle([Event::Replace(ObjectKind::Pod, vec![])]);
    settle(&mut reconciler);
    let expected = [
        ("127.0.0.1", NodeAddrFlags::HOST_ONLY | NodeAddrFlags::NO_NODE_PORTS),
        ("192.0.2.1", 0),
        ("192.0.2.2", NodeAddrFlags::NO_NODE_PORTS),
    ];
    let expected = expected.map(|(addr, flags)| (Addr::from(ip(addr)), NodeAddr { flags }));
    assert!(reconciler.store().dump.node_addrs.clone().into_iter().eq(expected));
    // Without the flag the map has the addresses of NodePorts alone.
    let settings = Settings { host_ports: false, ..reconciler.settings.clone() };
    let own = reconciler.world.addresses().expect("known").all();
    assert_eq!(settings.node_addrs(&own, &[]).keys().map(ToString::to_string).collect::<Vec<_>>(), ["192.0.2.1"]);
}

#[test]
fn a_node_port_goes_before_a_host_port_where_it_answers_whichever_comes_first() {
    let taken = "pod/exact: 192.0.2.1:30080/TCP (HostPort) belongs to the Service default/a: Services go before \
                 hostPorts; use another hostPort or hostIP";
    for node_port_first in [true, false] {
        let mut reconciler = reconciler();
        let pods = vec![
            pod("any", 1, "", 30080),
            pod("exact", 2, "192.0.2.1", 30080),
            pod("left-out", 3, "192.0.2.2", 30080),
            pod("other-port", 4, "192.0.2.1", 30081),
        ];
        let events = [Event::Apply(node_port(30080)), Event::Replace(ObjectKind::Pod, pods)];
        if node_port_first {
            reconciler.handle(events);
        } else {
            reconciler.handle(events.into_iter().rev().take(1));
            settle(&mut reconciler);
            reconciler.handle([Event::Apply(node_port(30080))]);
        }
        let (frontends, warnings) = settle(&mut reconciler);
        assert_eq!(frontends, ["192.0.2.1:30081/TCP pod/other-port", "192.0.2.2:30080/TCP pod/left-out"]);
        assert!(warnings.iter().any(|warning| warning == taken), "{warnings:?}");
        assert!(warnings.iter().any(|warning| warning.starts_with("pod/any: 0.0.0.0:30080/TCP (HostPort) belongs")));
        // The NodePort goes, and both get theirs.
        reconciler.handle([Event::Delete(ObjectKind::Service, Key::new("default", "a"))]);
        let (frontends, warnings) = settle(&mut reconciler);
        assert_eq!(frontends.len(), 4, "{frontends:?}");
        assert!(!warnings.iter().any(|warning| warning.starts_with("pod/exact")), "{warnings:?}");
    }
}

#[test]
fn an_address_that_node_ports_get_later_is_taken_from_a_host_port() {
    let mut reconciler = reconciler();
    reconciler.settings.nodeport_addresses = "primary".parse().expect("a keyword");
    let pods = vec![pod("exact", 2, "192.0.2.1", 30080)];
    reconciler.handle([Event::Apply(node_port(30080)), Event::Replace(ObjectKind::Pod, pods)]);
    assert_eq!(settle(&mut reconciler).0.len(), 1);
    let node = lb_core::objects::Node {
        name: "node-1".into(),
        zone: None,
        internal_ips: vec![ip("192.0.2.1")],
        leaving: false,
        attracts: true,
        ready: true,
        labels: lb_core::label_selector::Labels::default(),
    };
    reconciler.handle([Event::Apply(Object::Node(node))]);
    assert_eq!(settle(&mut reconciler).0.len(), 0);
}

#[test]
fn a_pod_with_a_host_ip_takes_precedence_and_the_other_pod_gets_a_warning() {
    let mut reconciler = reconciler();
    reconciler.handle([Event::Replace(ObjectKind::Pod, vec![pod("any", 1, "", 8080)])]);
    assert_eq!(settle(&mut reconciler).1, Vec::<String>::new());
    reconciler.handle([Event::Apply(pod("exact", 2, "127.0.0.1", 8080))]);
    let (frontends, warnings) = settle(&mut reconciler);
    assert_eq!(frontends, ["0.0.0.0:8080/TCP pod/any", "127.0.0.1:8080/TCP pod/exact"]);
    assert_eq!(
        warnings,
        ["pod/any: 127.0.0.1:8080/TCP (HostPort) belongs to the pod default/exact, whose hostIP names this address; \
             use another hostPort or hostIP"]
    );
    // At an address that the node does not have it takes nothing.
    reconciler.handle([Event::Apply(pod("exact", 2, "192.0.2.9", 8080))]);
    assert_eq!(settle(&mut reconciler).1, Vec::<String>::new());
}

#[test]
fn the_successor_of_a_pod_gets_its_port_in_the_same_pass() {
    let mut reconciler = reconciler();
    let Object::Pod(old) = pod("old", 1, "", 8080) else { unreachable!("a Pod") };
    reconciler.handle([Event::Replace(ObjectKind::Pod, vec![Object::Pod(old.clone())])]);
    settle(&mut reconciler);
    let new = pod("new", 2, "", 8080);
    // While the old one terminates it serves, until another one asks for the port.
    reconciler.handle([Event::Apply(Object::Pod(Pod { terminating: true, ..old }))]);
    assert_eq!(settle(&mut reconciler).0, ["0.0.0.0:8080/TCP pod/old"]);
    reconciler.handle([Event::Apply(new)]);
    let (frontends, warnings) = settle(&mut reconciler);
    assert_eq!(frontends, ["0.0.0.0:8080/TCP pod/new"]);
    assert!(warnings[0].contains("belongs to the pod default/new now, since this pod terminates"), "{warnings:?}");
    reconciler.handle([Event::Delete(ObjectKind::Pod, Key::new("default", "old"))]);
    assert_eq!(settle(&mut reconciler), (vec!["0.0.0.0:8080/TCP pod/new".to_owned()], Vec::new()));
}
