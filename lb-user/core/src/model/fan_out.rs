//! The Services that must be compiled again when the claims of others change.

use std::collections::BTreeSet;

use foldhash::{HashMap, HashSet};
use lb_common::{Addr, Family, FrontendKey, Proto};

use super::{
    ExternalIps,
    claims::{ClaimChanges, Claims},
    cross_namespace::CrossNamespaceIndex,
    frontends::{FrontendRequest, request, unspecified},
};
use crate::{
    objects::{Key, Service},
    world::World,
};

/// The Services and frontends that changed claims affect.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Affected {
    /// Services to compile again, in no order; some may be listed twice.
    pub services: Vec<Key>,
    /// Frontends that no Service claims any more. A Service that still has one in the maps must drop it: its
    /// owner-to-be never had room.
    pub unclaimed: Vec<FrontendKey>,
}

/// Records the claims of the Services `keys` as they are in `world`. Returns the request of each that exists, and the
/// changes of claims.
pub fn record(
    claims: &mut Claims,
    world: &World,
    keys: &[Key],
    external_ips: &ExternalIps,
    cross_namespace: &CrossNamespaceIndex,
) -> (HashMap<Key, FrontendRequest>, ClaimChanges) {
    let (mut requests, mut changes) = (HashMap::default(), ClaimChanges::default());
    let (mut claimed, mut ranges) = (Vec::new(), Vec::new());
    requests.reserve(keys.len());
    claims.reserve(keys.len());
    for key in keys {
        let service = world.view(key).map(|view| view.service);
        let request = service.map(|service| request(service, external_ips, cross_namespace));
        claimed.clear();
        let frontends = request.iter().flat_map(|request| &request.frontends);
        claimed.extend(frontends.map(|frontend| (frontend.key, frontend.kind)));
        let created = service.and_then(|service| service.created);
        changes.append(claims.set(key, created, &claimed));
        ranges.clear();
        ranges.extend(request.iter().flat_map(|request| &request.ranges).map(|range| range.claim));
        changes.append(claims.set_ranges(key, created, &ranges));
        if let Some(request) = request {
            requests.insert(key.clone(), request);
        }
    }
    (requests, changes)
}

/// Finds what `changes`, which led to `claims`, affect: claimants of a frontend that moved, and Services with an
/// endpoint at a frontend that moved, appeared or has gone, since such an endpoint is refused and the warning names the
/// owner.
#[must_use]
pub fn affected(changes: ClaimChanges, claims: &Claims, world: &World, node_ports: &BTreeSet<Addr>) -> Affected {
    let ClaimChanges { mut moved, mut appeared_or_gone, services: of_ranges, mut range_addrs } = changes;
    moved.sort_unstable();
    moved.dedup();
    // The address itself, for all ports, has no warning that would name its owner.
    let claimants = |key: &FrontendKey| if key.is_address() { 1 } else { usize::MAX };
    let claimants = moved.iter().flat_map(|key| claims.claimants(key).take(claimants(key))).cloned();
    let mut services: Vec<Key> = of_ranges.into_iter().chain(claimants).collect();
    appeared_or_gone.append(&mut moved);
    let changed = appeared_or_gone;
    // Single ports at addresses with port ranges, and the ranges.
    range_addrs.sort_unstable();
    range_addrs.dedup();
    for addr in &range_addrs {
        services.extend(claims.claimants(&FrontendKey::new(*addr, 0, Proto::Tcp).external_address()).cloned());
    }
    services.extend(changed.iter().flat_map(|key| claims.range_claimants(key.addr)).cloned());
    let mut addrs: HashSet<Addr> = changed.iter().map(|key| key.addr).collect();
    for family in Family::ALL {
        // A NodePort is a frontend at each of the node's addresses.
        if addrs.remove(&unspecified(family)) {
            addrs.extend(node_ports.iter().filter(|addr| Family::of(addr) == family));
        }
    }
    let changed_ports: HashSet<_> = changed.iter().map(|key| (key.port, key.proto)).collect();
    // A hostPort depends on the claims to its port at all addresses of the node.
    services.extend(world.host_port_services().filter(|service| has_port(service, &changed_ports)).map(key_of));
    if !addrs.is_empty() {
        services.extend(world.services_with_endpoints_at(&addrs));
    }
    Affected { services, unclaimed: changed.into_iter().filter(|key| claims.owner(key).is_none()).collect() }
}

/// True if a pod has a hostPort with one of these ports and protocols.
fn has_port(service: &Service, ports: &HashSet<(u16, u8)>) -> bool {
    let mut own = service.pod.iter().flat_map(|pod| &pod.host_ports);
    own.any(|host_port| ports.contains(&(host_port.port.get(), host_port.proto as u8)))
}

fn key_of(service: &Service) -> Key {
    service.key.clone()
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::{
        event::{Event, Object, ObjectKind},
        objects::{Endpoint, EndpointGroup, EndpointPort, EndpointSlice, Service, ServicePort, SliceManager},
    };

    fn key(name: &str) -> Key {
        Key::new("default", name)
    }

    fn addr(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    /// Port 80 at a cluster IP and at external IPs.
    fn service(name: &str, created: i64, cluster_ip: &str, external_ips: &[&str]) -> Service {
        Service {
            created: Some(created),
            cluster_ips: vec![addr(cluster_ip)],
            external_ips: external_ips.iter().map(|ip| addr(ip)).collect(),
            ports: [ServicePort::new("", Proto::Tcp, 80.try_into().expect("not 0"))].into(),
            ..Service::new(key(name))
        }
    }

    fn put(service: Service) -> Event {
        Event::Apply(Object::Service(service))
    }

    fn slice(service: &str, endpoint: &str) -> Event {
        let port = EndpointPort { name: "".into(), proto: Proto::Tcp, port: 80.try_into().expect("not 0") };
        Event::Apply(Object::EndpointSlice(EndpointSlice {
            key: key(&format!("{service}-1")),
            service: Some(key(service)),
            manager: SliceManager::Other,
            group: EndpointGroup { ports: [port].into(), endpoints: vec![Endpoint::new(addr(endpoint))] },
            triggered: None,
            problems: Vec::new(),
        }))
    }

    #[test]
    fn i6_services_affected_by_a_change_of_claims_are_compiled_again() {
        let node_ports = BTreeSet::from([addr("192.0.2.1").into()]);
        let (mut world, mut claims, index) = (World::new("here"), Claims::default(), CrossNamespaceIndex::default());
        let mut step = |event: Event| {
            world.apply(event);
            let keys = world.take_dirty();
            let (requests, changes) = record(&mut claims, &world, &keys, &ExternalIps::Any, &index);
            let Affected { mut services, unclaimed } = affected(changes, &claims, &world, &node_ports);
            services.sort_unstable();
            services.dedup();
            let services: Vec<_> = services.iter().map(Key::name).collect();
            (requests.len(), services.join(" "), unclaimed.len())
        };
        let node_port = || {
            let port = ServicePort::new("", Proto::Tcp, 80.try_into().expect("not 0"));
            let ports = [ServicePort { node_port: 30_080.try_into().ok(), ..port }].into();
            Service { ports, ..service("n", 1, "10.96.0.9", &[]) }
        };
        let cases = [
            ("a first Service", put(service("b", 2, "10.96.0.2", &["192.0.2.7"])), (1, "", 0)),
            ("the same again", put(service("b", 2, "10.96.0.2", &["192.0.2.7"])), (0, "", 0)),
            ("a younger claimant loses", put(service("c", 3, "10.96.0.3", &["192.0.2.7"])), (1, "", 0)),
            ("an older claimant wins", put(service("a", 1, "10.96.0.1", &["192.0.2.7"])), (1, "a b c", 0)),
            ("the owner claims less", put(service("a", 1, "10.96.0.1", &[])), (1, "b c", 0)),
            ("an endpoint at a future frontend", slice("b", "10.0.0.8"), (1, "", 0)),
            ("the frontend appears", put(service("a", 1, "10.0.0.8", &[])), (1, "b", 2)),
            ("the frontend is gone", Event::Delete(ObjectKind::Service, key("a")), (0, "b", 2)),
            ("an endpoint at the node's address", slice("c", "192.0.2.1"), (1, "", 0)),
            ("a NodePort appears", put(node_port()), (1, "c", 0)),
            ("the NodePort is gone", Event::Delete(ObjectKind::Service, key("n")), (0, "c", 3)),
            ("a Service without frontends", put(Service::new(key("d"))), (1, "", 0)),
        ];
        for (case, event, (requests, services, unclaimed)) in cases {
            assert_eq!(step(event), (requests, services.to_owned(), unclaimed), "{case}");
        }
    }
}
