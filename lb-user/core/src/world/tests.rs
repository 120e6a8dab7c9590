//! The Services that a change marks as dirty.

use super::*;
use crate::label_selector::LabelSelector;
use crate::objects::{Endpoint, EndpointPort, Hints, SliceManager};

fn key(name: &str) -> Key {
    Key::new("default", name)
}

fn service(name: &str) -> Object {
    Object::Service(Service::new(key(name)))
}

fn group(last: u8, zone: Option<&str>) -> EndpointGroup {
    let endpoint = Endpoint {
        hints: zone.map(|zone| Box::new(Hints { zones: vec![zone.into()], nodes: Vec::new() })),
        ..Endpoint::new([10, 0, 0, last].into())
    };
    let port = EndpointPort { name: "".into(), proto: lb_common::Proto::Tcp, port: 80.try_into().expect("not 0") };
    EndpointGroup { ports: [port].into(), endpoints: vec![endpoint] }
}

fn slice(name: &str, service: &str, last: u8) -> Object {
    hinted(name, service, last, None)
}

fn hinted(name: &str, service: &str, last: u8, zone: Option<&str>) -> Object {
    let service = (!service.is_empty()).then(|| key(service));
    let group = group(last, zone);
    Object::EndpointSlice(EndpointSlice {
        key: key(name),
        service,
        manager: SliceManager::Other,
        group,
        triggered: None,
        problems: Vec::new(),
    })
}

fn endpoints(name: &str, last: u8) -> Object {
    let groups = vec![group(last, None)];
    Object::Endpoints(Endpoints { key: key(name), mirrorable: true, groups, triggered: None, problems: Vec::new() })
}

fn node(name: &str, zone: &str) -> Object {
    Object::Node(Node {
        name: name.into(),
        zone: Some(zone.into()),
        internal_ips: Vec::new(),
        leaving: false,
        attracts: true,
        ready: true,
        labels: Labels::new(),
    })
}

fn dirty(world: &mut World, event: Event) -> String {
    world.apply(event);
    let mut dirty = world.take_dirty();
    dirty.sort();
    dirty.iter().map(Key::name).collect::<Vec<_>>().join(" ")
}

#[test]
fn a_change_marks_the_services_whose_objects_differ() {
    let world = &mut World::new("node-1");
    let steps = [
        (Event::Apply(service("a")), "a"),
        (Event::Apply(service("a")), ""),
        (Event::Apply(slice("x", "a", 1)), "a"),
        (Event::Apply(slice("x", "a", 1)), ""),
        (Event::Apply(slice("x", "a", 2)), "a"),
        (Event::Apply(slice("x", "b", 2)), "a b"),
        (Event::Apply(slice("x", "", 2)), "b"),
        (Event::Apply(slice("x", "", 3)), ""),
        (Event::Delete(ObjectKind::EndpointSlice, key("x")), ""),
        (Event::Apply(endpoints("a", 1)), "a"),
        (Event::Apply(endpoints("a", 1)), ""),
        (Event::Delete(ObjectKind::Endpoints, key("a")), "a"),
        (Event::Delete(ObjectKind::Endpoints, key("a")), ""),
        (Event::Replace(ObjectKind::Service, vec![service("a"), service("b")]), "b"),
        (Event::Replace(ObjectKind::EndpointSlice, vec![slice("x", "a", 1), slice("y", "b", 2)]), "a b"),
        (Event::Replace(ObjectKind::EndpointSlice, vec![slice("y", "b", 2), slice("z", "b", 3)]), "a b"),
        (Event::Replace(ObjectKind::EndpointSlice, vec![slice("z", "b", 3), slice("y", "b", 2)]), ""),
        (Event::Replace(ObjectKind::Service, vec![service("b")]), "a"),
        (Event::Delete(ObjectKind::Service, key("b")), "b"),
    ];
    for (number, (event, expected)) in steps.into_iter().enumerate() {
        assert_eq!(dirty(world, event), expected, "step {number}");
    }
}

#[test]
fn a_new_zone_of_this_node_marks_the_services_with_hints() {
    let world = &mut World::new("node-1");
    for object in [service("a"), slice("x", "a", 1), service("b"), hinted("y", "b", 2, Some("z1"))] {
        world.apply(Event::Apply(object));
    }
    world.take_dirty();
    assert_eq!(dirty(world, Event::Apply(node("node-2", "z1"))), "");
    assert_eq!(dirty(world, Event::Apply(node("node-1", "z1"))), "b");
    assert_eq!(dirty(world, Event::Replace(ObjectKind::Node, vec![node("node-2", "z2"), node("node-1", "z1")])), "");
    assert_eq!(world.zone(), Some("z1"));
    assert_eq!(dirty(world, Event::Delete(ObjectKind::Node, Key::new("", "node-2"))), "");
    assert_eq!(dirty(world, Event::Replace(ObjectKind::Node, Vec::new())), "b");
}

#[test]
fn a_service_of_other_nodes_is_exempt_until_a_label_of_this_node_fits() {
    let world = &mut World::new("node-1");
    let node = |value: &str| {
        let labels = [("service.cilium.io/node".to_owned(), value.to_owned())].into();
        Object::Node(Node {
            name: "node-1".into(),
            zone: None,
            internal_ips: Vec::new(),
            leaving: false,
            attracts: true,
            ready: true,
            labels,
        })
    };
    let selective = |name: &str| match service(name) {
        Object::Service(service) => {
            let nodes = Some(LabelSelector::equals("service.cilium.io/node", "beefy"));
            let tuning = Some(Box::new(crate::objects::Tuning { nodes, ..Default::default() }));
            Object::Service(crate::objects::Service { tuning, ..service })
        }
        other => other,
    };
    let exempt = |world: &World| world.view(&key("a")).and_then(|view| view.service.exempt);
    world.apply(Event::Apply(service("b")));
    assert_eq!(dirty(world, Event::Apply(selective("a"))), "a b");
    assert_eq!(exempt(world), Some(Exempt::OtherNodes), "no Node is known");
    assert_eq!(dirty(world, Event::Apply(selective("a"))), "", "the same again");
    assert_eq!(dirty(world, Event::Apply(node("beefy"))), "a");
    assert_eq!(exempt(world), None);
    assert_eq!(dirty(world, Event::Apply(selective("a"))), "");
    assert_eq!(dirty(world, Event::Apply(node("slow"))), "a");
    assert_eq!(exempt(world), Some(Exempt::OtherNodes));
    assert_eq!(dirty(world, Event::Apply(service("a"))), "a", "without the annotation");
    assert_eq!(exempt(world), None);
}

#[test]
fn i5_it_is_ready_when_every_kind_was_listed() {
    let mut world = World::new("node-1");
    world.apply(Event::Apply(service("a")));
    for kind in ObjectKind::OF_SERVICES {
        assert!(!world.ready(), "before {kind:?}");
        assert!(world.missing().contains(&kind));
        world.apply(Event::Replace(kind, Vec::new()));
    }
    assert!(world.ready());
    assert!(world.pods().is_none(), "pods are listed independently");
}

#[test]
fn endpoints_are_found_by_their_address() {
    let mut world = World::new("node-1");
    for object in [slice("x", "a", 1), slice("y", "b", 2), endpoints("c", 1)] {
        world.apply(Event::Apply(object));
    }
    let at = |addr: &str| {
        let addr: std::net::IpAddr = addr.parse().expect("an address");
        let mut found = world.services_with_endpoints_at(&[Addr::from(addr)].into_iter().collect());
        found.sort();
        found.iter().map(Key::name).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(at("10.0.0.1"), "a c");
    assert_eq!(at("10.0.0.2"), "b");
    assert_eq!(at("10.0.0.3"), "");
    assert_eq!(at("10.96.0.1"), "");
    assert_eq!(at("fd00::1"), "");
}

#[test]
fn the_index_by_address_follows_every_change_of_an_object() {
    let mut world = World::new("node-1");
    let addr = |last: u8| Addr::from(std::net::Ipv4Addr::new(10, 0, 0, last));
    let at = |world: &World, last: u8| {
        let found = world.services_at(&[addr(last)].into_iter().collect());
        found.iter().map(Key::name).collect::<Vec<_>>().join(" ")
    };
    let external = |name: &str, last: u8| match service(name) {
        Object::Service(service) => {
            Object::Service(crate::objects::Service { external_ips: vec![[10, 0, 0, last].into()], ..service })
        }
        other => other,
    };
    world.apply(Event::Apply(slice("x", "a", 1)));
    assert_eq!(at(&world, 1), "a", "the first look-up builds the index");
    let steps: [(Event, [&str; 3]); 12] = [
        (Event::Apply(slice("y", "a", 1)), ["a", "", ""]),
        (Event::Apply(slice("x", "a", 2)), ["a", "a", ""]),
        (Event::Delete(ObjectKind::EndpointSlice, key("y")), ["", "a", ""]),
        (Event::Apply(slice("x", "b", 2)), ["", "b", ""]),
        (Event::Apply(endpoints("c", 2)), ["", "b c", ""]),
        (Event::Apply(endpoints("c", 1)), ["c", "b", ""]),
        (Event::Apply(external("d", 1)), ["c d", "b", ""]),
        (Event::Apply(external("d", 3)), ["c", "b", "d"]),
        (Event::Replace(ObjectKind::EndpointSlice, vec![slice("z", "a", 3)]), ["c", "", "a d"]),
        (Event::Delete(ObjectKind::Endpoints, key("c")), ["", "", "a d"]),
        (Event::Delete(ObjectKind::Service, key("d")), ["", "", "a"]),
        (Event::Replace(ObjectKind::EndpointSlice, Vec::new()), ["", "", ""]),
    ];
    for (number, (event, expected)) in steps.into_iter().enumerate() {
        world.apply(event);
        world.take_dirty();
        assert_eq!([1, 2, 3].map(|last| at(&world, last)), expected, "step {number}");
    }
}

#[test]
fn changes_are_counted_and_repeats_are_not() {
    let world = &mut World::new("node-1");
    let changes = |world: &World| (world.changes().services, world.changes().endpoints);
    for object in [service("a"), service("a"), slice("x", "a", 1), slice("x", "a", 1), endpoints("b", 1)] {
        world.apply(Event::Apply(object));
    }
    assert_eq!(changes(world), (1, 2));
    world.apply(Event::Replace(ObjectKind::Service, vec![service("a"), service("b")]));
    world.apply(Event::Replace(ObjectKind::EndpointSlice, vec![slice("y", "a", 1)]));
    assert_eq!(changes(world), (2, 4), "one Service came, and one slice replaced another");
    world.apply(Event::Delete(ObjectKind::Endpoints, key("b")));
    world.apply(Event::Delete(ObjectKind::Endpoints, key("b")));
    world.apply(Event::Apply(node("node-1", "z1")));
    assert_eq!(changes(world), (2, 5));
}

#[test]
fn triggers_are_those_of_changes_after_the_start() {
    let start = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(100);
    let at = |seconds| Some(SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds));
    let triggered = |name, last, at| match slice(name, "a", last) {
        Object::EndpointSlice(slice) => Event::Apply(Object::EndpointSlice(EndpointSlice { triggered: at, ..slice })),
        _ => unreachable!("a slice"),
    };
    let world = &mut World::new("node-1");
    world.apply(triggered("x", 1, at(101)));
    assert_eq!(world.take_triggers(), [], "triggers are not kept yet");
    world.keep_triggers(start);
    world.apply(triggered("x", 2, at(100)));
    world.apply(triggered("x", 3, at(102)));
    // A new time alone is no change.
    world.apply(triggered("x", 3, at(103)));
    world.apply(triggered("x", 4, None));
    assert_eq!(world.take_triggers(), [at(102).expect("a time")]);
    assert_eq!(world.take_triggers(), []);
    world.apply(triggered("x", 5, at(104)));
    world.apply(Event::Delete(ObjectKind::EndpointSlice, key("x")));
    assert_eq!(world.take_triggers(), []);
}
