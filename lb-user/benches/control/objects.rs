//! Clusters of any size, as the sources deliver them: the objects share no memory yet.

use std::net::{IpAddr, Ipv4Addr};

use lb_common::Proto;
use lb_core::{
    event::{Event, Object, ObjectKind},
    objects::{
        Endpoint, EndpointGroup, EndpointPort, EndpointSlice, Key, Selector, Service, ServicePort, SliceManager,
    },
};

/// Nodes of the endpoints.
const NODES: u32 = 200;

/// The lists of all kinds.
pub fn cluster(services: u32, endpoints: u32) -> Vec<Event> {
    vec![
        Event::Replace(ObjectKind::Service, (0..services).map(|number| Object::Service(service(number))).collect()),
        Event::Replace(
            ObjectKind::EndpointSlice,
            (0..services).map(|number| slice(number, addresses(number, endpoints))).collect(),
        ),
        Event::Replace(ObjectKind::Endpoints, Vec::new()),
        Event::Replace(ObjectKind::Node, Vec::new()),
    ]
}

/// The numbers of the endpoints of a Service.
pub fn addresses(service: u32, endpoints: u32) -> impl Iterator<Item = u32> {
    service * endpoints..(service + 1) * endpoints
}

/// The slice of a Service, with endpoints by number.
pub fn slice(service: u32, numbers: impl Iterator<Item = u32>) -> Object {
    let port = EndpointPort { name: "http".into(), proto: Proto::Tcp, port: 8080.try_into().expect("not 0") };
    Object::EndpointSlice(EndpointSlice {
        key: Key::new("bench", &format!("service-{service:05}-x7k2p")),
        service: Some(Key::new("bench", &format!("service-{service:05}"))),
        manager: SliceManager::Selecting,
        group: EndpointGroup { ports: [port].into(), endpoints: numbers.map(endpoint).collect() },
        triggered: None,
        problems: Vec::new(),
    })
}

/// A tenant's Service without a selector, and its slice, which names the pod of a number.
pub fn cross_namespace(number: u32) -> [Object; 2] {
    let service = Service {
        cluster_ips: vec![ip([10, 97, 0, 0], 0)],
        ports: [ServicePort::new("http", Proto::Tcp, 80.try_into().expect("not 0"))].into(),
        ..Service::new(Key::new("tenant", "borrowed"))
    };
    let Object::EndpointSlice(slice) = slice(0, [number].into_iter()) else { unreachable!("a slice") };
    let key = Key::new("tenant", "borrowed-1");
    let slice = EndpointSlice { key, service: Some(service.key.clone()), manager: SliceManager::Other, ..slice };
    [Object::Service(service), Object::EndpointSlice(slice)]
}

fn service(number: u32) -> Service {
    Service {
        created: Some(1_700_000_000),
        cluster_ips: vec![ip([10, 96, 0, 0], number)],
        ports: [ServicePort::new("http", Proto::Tcp, 80.try_into().expect("not 0"))].into(),
        selector: Selector::Some,
        ..Service::new(Key::new("bench", &format!("service-{number:05}")))
    }
}

fn endpoint(number: u32) -> Endpoint {
    Endpoint { node: Some(format!("node-{}", number % NODES).into()), ..Endpoint::new(ip([10, 128, 0, 0], number)) }
}

fn ip(network: [u8; 4], number: u32) -> IpAddr {
    Ipv4Addr::from_bits(Ipv4Addr::from(network).to_bits() + number).into()
}
