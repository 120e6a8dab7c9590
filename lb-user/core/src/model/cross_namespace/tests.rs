//! Addresses by hand and addresses of pods, coming and going in any order.

use super::*;
use crate::{
    event::{Event, Kind, Object},
    objects::{Endpoint, EndpointGroup, EndpointPort, EndpointSlice, Endpoints, Manager, Service},
};
use lb_common::Proto;

#[derive(Default)]
struct Seen {
    world: Option<World>,
    strangers: CrossNamespaceIndex,
}

impl Seen {
    /// Takes events in; who is to be judged again.
    fn apply(&mut self, events: impl IntoIterator<Item = Event>) -> String {
        let world = self.world.get_or_insert_with(|| World::new("here"));
        events.into_iter().for_each(|event| world.apply(event));
        let mut changed = world.take_dirty();
        changed.sort_unstable();
        let mut concerned = self.strangers.update(world, &changed);
        concerned.sort_unstable();
        concerned.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    }

    /// To whom 10.0.0.N leads, seen from a namespace.
    fn at(&self, last: u8, own: &str) -> Option<String> {
        self.strangers.at(&addr(last), own).map(ToString::to_string)
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

fn slice(service: &str, manager: Manager, last: &[u8]) -> Event {
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
fn it_does_not_matter_who_comes_first() {
    let by_hand = || [put(service("a/hand", Selector::None)), slice("a/hand", Manager::Other, &[1, 2])];
    let pods = || [put(service("b/pods", Selector::Some)), slice("b/pods", Manager::Selecting, &[1, 3])];
    let mut seen = Seen::default();
    assert_eq!(seen.apply(by_hand()), "");
    assert_eq!(seen.apply(pods()), "a/hand");
    assert_eq!((seen.at(1, "a"), seen.at(2, "a"), seen.at(3, "a")), (Some("b/pods".to_owned()), None, None));
    let mut seen = Seen::default();
    assert_eq!(seen.apply(pods()), "");
    assert_eq!(seen.apply(by_hand()), "a/hand");
    assert_eq!(seen.at(1, "a").as_deref(), Some("b/pods"));
    assert_eq!(seen.apply([slice("b/pods", Manager::Selecting, &[3])]), "a/hand", "the pod goes");
    assert_eq!(seen.at(1, "a"), None);
    assert_eq!(seen.apply([slice("b/pods", Manager::Selecting, &[2])]), "a/hand", "another takes the other address");
    assert_eq!(seen.apply([Event::Delete(Kind::Service, key("b/pods"))]), "a/hand");
    assert_eq!(seen.apply(pods()), "a/hand");
    assert_eq!(seen.apply([Event::Delete(Kind::Service, key("a/hand"))]), "a/hand");
    assert!(seen.strangers.found.is_empty());
}

#[test]
fn whoever_says_so_is_not_the_controller() {
    let external_name = Service { exempt: Some(Exempt::ExternalName), ..service("b/x", Selector::Some) };
    let cases = [
        ("a selector's", service("b/x", Selector::Some), Manager::Selecting, Some("b/x")),
        ("no selector", service("b/x", Selector::None), Manager::Selecting, None),
        ("no label", service("b/x", Selector::Some), Manager::Other, None),
        ("mirrored", service("b/x", Selector::Some), Manager::Mirroring, None),
        ("the controller leaves it alone", external_name, Manager::Selecting, None),
        (
            "headless",
            Service { exempt: Some(Exempt::Headless), ..service("b/x", Selector::Some) },
            Manager::Selecting,
            Some("b/x"),
        ),
    ];
    for (what, other, manager, expected) in cases {
        let mut seen = Seen::default();
        seen.apply([put(service("a/hand", Selector::None)), endpoints("a/hand", &[1])]);
        seen.apply([put(other), slice("b/x", manager, &[1])]);
        assert_eq!(seen.at(1, "a").as_deref(), expected, "{what}");
    }
}

#[test]
fn what_counts_as_written_by_hand() {
    let pods = || [put(service("b/pods", Selector::Some)), slice("b/pods", Manager::Selecting, &[1])];
    let concerned = |events: Vec<Event>| {
        let mut seen = Seen::default();
        seen.apply(pods());
        seen.apply(events)
    };
    let by_hand = |name: &str| put(service(name, Selector::None));
    let selecting = || put(service("a/x", Selector::Some));
    assert_eq!(concerned(vec![by_hand("a/x"), endpoints("a/x", &[1])]), "a/x");
    assert_eq!(concerned(vec![by_hand("a/x"), slice("a/x", Manager::Mirroring, &[1])]), "a/x");
    assert_eq!(concerned(vec![by_hand("a/x"), slice("a/x", Manager::Selecting, &[1])]), "a/x", "its label is a lie");
    assert_eq!(concerned(vec![selecting(), slice("a/x", Manager::Other, &[1])]), "a/x", "beside the controller's");
    assert_eq!(concerned(vec![selecting(), slice("a/x", Manager::Selecting, &[1])]), "");
    assert_eq!(concerned(vec![selecting(), endpoints("a/x", &[1])]), "", "it has no effect");
    assert_eq!(concerned(vec![by_hand("default/kubernetes"), slice("default/kubernetes", Manager::Other, &[1])]), "");
    assert_eq!(concerned(vec![by_hand("b/x"), endpoints("b/x", &[1])]), "", "its own namespace");
    let external = Service { external_ips: vec![[10, 0, 0, 1].into()], ..service("a/x", Selector::Some) };
    assert_eq!(concerned(vec![put(external)]), "a/x");
}

#[test]
fn an_address_of_two_namespaces_is_no_stranger_to_either() {
    let mut seen = Seen::default();
    for pods in ["a/pods", "b/pods"] {
        seen.apply([put(service(pods, Selector::Some)), slice(pods, Manager::Selecting, &[1])]);
    }
    seen.apply([put(service("a/hand", Selector::None)), endpoints("a/hand", &[1])]);
    assert_eq!(seen.at(1, "a"), None);
    assert_eq!(seen.at(1, "c").as_deref(), Some("a/pods"));
}

#[test]
fn only_the_port_counts_at_which_a_pod_listens() {
    let external = Service { external_ips: vec![[10, 0, 0, 1].into()], ..service("a/x", Selector::Some) };
    let mut seen = Seen::default();
    seen.apply([put(external), put(service("b/pods", Selector::Some)), slice("b/pods", Manager::Selecting, &[1])]);
    let at = |port, proto| seen.strangers.listening(&FrontendKey::new(addr(1), port, proto), "a").map(Key::name);
    assert_eq!((at(8080, Proto::Tcp), at(8080, Proto::Udp), at(80, Proto::Tcp)), (Some("pods"), None, None));
}

#[test]
fn a_filter_forgets_nobody() {
    let mut filter = Filter::default();
    assert!(filter.is_empty() && !filter.may_hold(&addr(1)));
    (0..200).for_each(|last| filter.note(&addr(last)));
    assert!((0..200).all(|last| filter.may_hold(&addr(last))));
    assert!((200..=255).all(|last| !filter.may_hold(&addr(last))));
}
