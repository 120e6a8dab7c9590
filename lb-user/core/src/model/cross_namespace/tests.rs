//! Hand-written addresses and addresses of pods that come and go in any order.

use super::*;
use crate::{
    event::{Event, Object, ObjectKind},
    objects::{Endpoint, EndpointGroup, EndpointPort, EndpointSlice, Endpoints, Service, SliceManager},
};
use lb_common::Proto;

#[derive(Default)]
struct Cluster {
    world: Option<World>,
    index: CrossNamespaceIndex,
}

impl Cluster {
    /// Takes events in; returns the Services to evaluate again.
    fn apply(&mut self, events: impl IntoIterator<Item = Event>) -> String {
        let world = self.world.get_or_insert_with(|| World::new("here"));
        events.into_iter().for_each(|event| world.apply(event));
        let mut changed = world.take_dirty();
        changed.sort_unstable();
        let mut affected = self.index.update(world, &changed);
        affected.sort_unstable();
        affected.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    }

    /// Returns the owner of the pod at 10.0.0.N, seen from a namespace.
    fn owner(&self, last: u8, namespace: &str) -> Option<String> {
        self.index.owner(&addr(last), namespace).map(ToString::to_string)
    }
}

fn addr(last: u8) -> Addr {
    Addr::from(std::net::Ipv4Addr::new(10, 0, 0, last))
}

fn key(text: &str) -> Key {
    let (namespace, name) = text.split_once('/').expect("NAMESPACE/NAME");
    Key::new(namespace, name)
}

fn service(name: &str, selector: Selector) -> Service {
    Service { selector, ..Service::new(key(name)) }
}

fn put(service: Service) -> Event {
    Event::Apply(Object::Service(service))
}

fn group(last: &[u8]) -> EndpointGroup {
    let port = EndpointPort { name: "".into(), proto: Proto::Tcp, port: 8080.try_into().expect("not 0") };
    let endpoints = last.iter().map(|&last| Endpoint::new([10, 0, 0, last].into())).collect();
    EndpointGroup { ports: [port].into(), endpoints }
}

fn slice(service: &str, manager: SliceManager, last: &[u8]) -> Event {
    let key = key(service);
    Event::Apply(Object::EndpointSlice(EndpointSlice {
        key: Key::new(key.namespace(), &format!("{}-1", key.name())),
        service: Some(key),
        manager,
        group: group(last),
        triggered: None,
        problems: Vec::new(),
    }))
}

fn endpoints(service: &str, last: &[u8]) -> Event {
    Event::Apply(Object::Endpoints(Endpoints {
        key: key(service),
        mirrorable: true,
        groups: vec![group(last)],
        triggered: None,
        problems: Vec::new(),
    }))
}

#[test]
fn the_order_in_which_services_appear_does_not_matter() {
    let by_hand = || [put(service("a/hand", Selector::None)), slice("a/hand", SliceManager::Other, &[1, 2])];
    let pods = || [put(service("b/pods", Selector::Some)), slice("b/pods", SliceManager::Selecting, &[1, 3])];
    let mut cluster = Cluster::default();
    assert_eq!(cluster.apply(by_hand()), "");
    assert_eq!(cluster.apply(pods()), "a/hand");
    assert_eq!(
        (cluster.owner(1, "a"), cluster.owner(2, "a"), cluster.owner(3, "a")),
        (Some("b/pods".to_owned()), None, None)
    );
    let mut cluster = Cluster::default();
    assert_eq!(cluster.apply(pods()), "");
    assert_eq!(cluster.apply(by_hand()), "a/hand");
    assert_eq!(cluster.owner(1, "a").as_deref(), Some("b/pods"));
    assert_eq!(cluster.apply([slice("b/pods", SliceManager::Selecting, &[3])]), "a/hand", "the pod goes");
    assert_eq!(cluster.owner(1, "a"), None);
    assert_eq!(
        cluster.apply([slice("b/pods", SliceManager::Selecting, &[2])]),
        "a/hand",
        "another takes the other address"
    );
    assert_eq!(cluster.apply([Event::Delete(ObjectKind::Service, key("b/pods"))]), "a/hand");
    assert_eq!(cluster.apply(pods()), "a/hand");
    assert_eq!(cluster.apply([Event::Delete(ObjectKind::Service, key("a/hand"))]), "a/hand");
    assert!(cluster.index.shared.is_empty());
}

#[test]
fn only_slices_of_the_controller_for_a_selector_prove_a_pod() {
    let external_name = Service { exempt: Some(Exempt::ExternalName), ..service("b/x", Selector::Some) };
    let cases = [
        ("a selector's", service("b/x", Selector::Some), SliceManager::Selecting, Some("b/x")),
        ("no selector", service("b/x", Selector::None), SliceManager::Selecting, None),
        ("no label", service("b/x", Selector::Some), SliceManager::Other, None),
        ("mirrored", service("b/x", Selector::Some), SliceManager::Mirroring, None),
        ("the controller leaves it alone", external_name, SliceManager::Selecting, None),
        (
            "headless",
            Service { exempt: Some(Exempt::Headless), ..service("b/x", Selector::Some) },
            SliceManager::Selecting,
            Some("b/x"),
        ),
    ];
    for (case, other, manager, expected) in cases {
        let mut cluster = Cluster::default();
        cluster.apply([put(service("a/hand", Selector::None)), endpoints("a/hand", &[1])]);
        cluster.apply([put(other), slice("b/x", manager, &[1])]);
        assert_eq!(cluster.owner(1, "a").as_deref(), expected, "{case}");
    }
}

#[test]
fn endpoints_outside_the_controllers_slices_and_external_ips_are_hand_written() {
    let pods = || [put(service("b/pods", Selector::Some)), slice("b/pods", SliceManager::Selecting, &[1])];
    let affected = |events: Vec<Event>| {
        let mut cluster = Cluster::default();
        cluster.apply(pods());
        cluster.apply(events)
    };
    let by_hand = |name: &str| put(service(name, Selector::None));
    let selecting = || put(service("a/x", Selector::Some));
    assert_eq!(affected(vec![by_hand("a/x"), endpoints("a/x", &[1])]), "a/x");
    assert_eq!(affected(vec![by_hand("a/x"), slice("a/x", SliceManager::Mirroring, &[1])]), "a/x");
    assert_eq!(
        affected(vec![by_hand("a/x"), slice("a/x", SliceManager::Selecting, &[1])]),
        "a/x",
        "the controller does not write it, whatever its label says"
    );
    assert_eq!(affected(vec![selecting(), slice("a/x", SliceManager::Other, &[1])]), "a/x", "beside the controller's");
    assert_eq!(affected(vec![selecting(), slice("a/x", SliceManager::Selecting, &[1])]), "");
    assert_eq!(affected(vec![selecting(), endpoints("a/x", &[1])]), "", "it has no effect");
    assert_eq!(
        affected(vec![by_hand("default/kubernetes"), slice("default/kubernetes", SliceManager::Other, &[1])]),
        ""
    );
    assert_eq!(affected(vec![by_hand("b/x"), endpoints("b/x", &[1])]), "", "its own namespace");
    let external = Service { external_ips: vec![[10, 0, 0, 1].into()], ..service("a/x", Selector::Some) };
    assert_eq!(affected(vec![put(external)]), "a/x");
}

#[test]
fn an_address_with_pods_of_two_namespaces_belongs_to_both() {
    let mut cluster = Cluster::default();
    for pods in ["a/pods", "b/pods"] {
        cluster.apply([put(service(pods, Selector::Some)), slice(pods, SliceManager::Selecting, &[1])]);
    }
    cluster.apply([put(service("a/hand", Selector::None)), endpoints("a/hand", &[1])]);
    assert_eq!(cluster.owner(1, "a"), None);
    assert_eq!(cluster.owner(1, "c").as_deref(), Some("a/pods"));
}

#[test]
fn an_external_ip_is_denied_only_at_the_port_of_the_pod() {
    let external = Service { external_ips: vec![[10, 0, 0, 1].into()], ..service("a/x", Selector::Some) };
    let mut cluster = Cluster::default();
    cluster.apply([
        put(external),
        put(service("b/pods", Selector::Some)),
        slice("b/pods", SliceManager::Selecting, &[1]),
    ]);
    let at = |port, proto| cluster.index.listener(&FrontendKey::new(addr(1), port, proto), "a").map(Key::name);
    assert_eq!((at(8080, Proto::Tcp), at(8080, Proto::Udp), at(80, Proto::Tcp)), (Some("pods"), None, None));
}

/// Returns the shortest time of a patch of a slice by which a tenant names the pods of other namespaces, one after the
/// other, in a cluster of so many endpoints.
fn time_of_a_patch(services: u16) -> std::time::Duration {
    let address = |service: u16, endpoint: u16| [10, 1 + endpoint as u8, (service >> 8) as u8, service as u8];
    let slice_at = |service: &str, manager, octets: Vec<[u8; 4]>| {
        let port = EndpointPort { name: "".into(), proto: Proto::Tcp, port: 8080.try_into().expect("not 0") };
        let endpoints = octets.into_iter().map(|octets| Endpoint::new(octets.into())).collect();
        let key = key(service);
        Event::Apply(Object::EndpointSlice(EndpointSlice {
            key: Key::new(key.namespace(), &format!("{}-1", key.name())),
            service: Some(key),
            manager,
            group: EndpointGroup { ports: [port].into(), endpoints },
            triggered: None,
            problems: Vec::new(),
        }))
    };
    let mut cluster = Cluster::default();
    for number in 0..services {
        let name = format!("b/{number}");
        let pods = (0..10).map(|endpoint| address(number, endpoint)).collect();
        cluster.apply([put(service(&name, Selector::Some)), slice_at(&name, SliceManager::Selecting, pods)]);
    }
    cluster.apply([put(service("a/hand", Selector::None))]);
    let patch = |number: u16| {
        let start = std::time::Instant::now();
        let affected = cluster.apply([slice_at("a/hand", SliceManager::Other, vec![address(number, number % 10)])]);
        assert_eq!(affected, if number == 0 { "a/hand" } else { "a/hand a/hand" });
        start.elapsed()
    };
    (0..100).map(patch).min().expect("a time")
}

#[test]
fn a_patch_costs_the_same_in_a_cluster_of_any_size() {
    let (small, large) = (time_of_a_patch(200), time_of_a_patch(10_000));
    println!("a patch at 2,000 endpoints: {small:?}, at 100,000: {large:?}");
    assert!(large < 5 * small, "{large:?} at 100,000 endpoints, {small:?} at 2,000");
}
