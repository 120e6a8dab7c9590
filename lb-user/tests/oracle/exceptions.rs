//! Differences from kube-proxy that Beeline intends. Each has a name, its reason and the condition under which answers
//! may differ; every other difference is a defect.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use ipnet::IpNet;
use lb_common::{Kind, Proto};
use lb_core::{
    event::Object,
    objects::{Endpoint, EndpointPort, EndpointSlice, Key, Service},
};

use crate::{
    answer::{Origin, Packet},
    objects::NODE,
    world::SERVICE_RANGES,
};

/// An intended difference.
pub struct Exception {
    pub name: &'static str,
    applies: fn(&Facts, &Packet<'_>) -> bool,
}

/// The whole table.
pub const EXCEPTIONS: [Exception; 9] = [
    // kube-proxy's rules hold the claimant that it happens to visit last. Beeline has an order (invariant I6).
    Exception { name: "two Services claim a frontend", applies: |facts, packet| facts.claimants(packet).len() > 1 },
    // kube-proxy's nftables mode prefers the load balancer address, then the external IP; its iptables mode and Beeline
    // the cluster IP.
    Exception {
        name: "a Service has one address as two kinds",
        applies: |facts, packet| facts.claimants(packet).iter().any(|(service, _)| has_two_kinds(service, packet)),
    },
    // kube-proxy: the last copy that does not terminate, by chance if they are in two slices. Beeline: the best one.
    Exception {
        name: "an endpoint has unequal copies",
        applies: |facts, packet| facts.endpoints(packet).any(|copies| has_unequal_copies(&copies)),
    },
    // The API server refuses these endpoints, but for cluster IPs, which the documentation forbids.
    Exception {
        name: "an endpoint cannot be a backend",
        applies: |facts, packet| facts.endpoints(packet).any(|copies| facts.is_unusable(&copies, packet)),
    },
    // The API server refuses these frontends.
    Exception {
        name: "a frontend of a special address",
        applies: |_, packet| is_special(packet.to.ip()) && !packet.to.ip().is_loopback(),
    },
    // Otherwise the author of a Service could take the packets to a pod of another namespace (CVE-2020-8554).
    Exception {
        name: "an external IP and port at which a pod of another namespace listens",
        applies: |facts, packet| facts.claimants(packet).iter().any(|(service, _)| facts.is_listener(service, packet)),
    },
    // kube-proxy drops these packets, and Beeline answers that the host is unreachable.
    Exception {
        name: "packets to a cluster IP that no Service has",
        applies: |facts, packet| packet.origin == Origin::Outside && facts.is_unallotted(packet.to.ip()),
    },
    // kube-proxy lets every client in.
    Exception {
        name: "no source range is readable",
        applies: |facts, packet| facts.claimants(packet).iter().any(|(service, _)| service.source_ranges_unreadable),
    },
    // kube-proxy's nftables mode does not serve these.
    Exception { name: "a NodePort at localhost", applies: |_, packet| packet.to.ip().is_loopback() },
];

/// The exception that allows a difference, if there is one.
pub fn exception(facts: &Facts, packet: &Packet<'_>) -> Option<&'static str> {
    EXCEPTIONS.iter().find(|exception| (exception.applies)(facts, packet)).map(|exception| exception.name)
}

/// Destination address, port and protocol; the unspecified address for NodePorts.
type FrontendOf = (SocketAddr, Proto);

/// The objects of a generation, by frontend.
pub struct Facts {
    services: BTreeMap<Key, Service>,
    slices: Vec<EndpointSlice>,
    claims: BTreeMap<FrontendOf, BTreeMap<(Key, usize), Kind>>,
}

/// Copies of one endpoint, by slice, and its address and port.
struct Copies<'a> {
    target: SocketAddr,
    service: &'a Key,
    by_slice: Vec<Vec<&'a Endpoint>>,
}

impl Facts {
    pub fn new(objects: Vec<Object>) -> Self {
        let (mut services, mut slices) = (BTreeMap::new(), Vec::new());
        for object in objects {
            match object {
                Object::Service(service) => _ = services.insert(service.key.clone(), service),
                Object::EndpointSlice(slice) => slices.push(slice),
                _ => {}
            }
        }
        let mut claims: BTreeMap<FrontendOf, BTreeMap<(Key, usize), Kind>> = BTreeMap::new();
        for service in services.values().filter(|service| service.exempt.is_none()) {
            for (index, port) in service.ports.iter().enumerate() {
                let lists = [
                    (&service.external_ips, Kind::ExternalIp),
                    (&service.ingress_ips, Kind::LoadBalancer),
                    (&service.cluster_ips, Kind::ClusterIp),
                ];
                let mut claim = |ip: IpAddr, number: u16, kind| {
                    let claims = claims.entry((SocketAddr::new(ip, number), port.proto)).or_default();
                    claims.insert((service.key.clone(), index), kind);
                };
                for (ips, kind) in lists {
                    ips.iter().for_each(|&ip| claim(ip, port.port.get(), kind));
                }
                for ip in service.cluster_ips.iter().filter(|_| port.node_port.is_some()) {
                    claim(unspecified(*ip), port.node_port.map_or(0, std::num::NonZero::get), Kind::NodePort);
                }
            }
        }
        Self { services, slices, claims }
    }

    /// True if a Service claims the destination of a packet.
    pub fn claims(&self, packet: &Packet<'_>, service: &Key) -> bool {
        let is_own = |key: &FrontendOf| self.claims.get(key).is_some_and(|of| of.keys().any(|(key, _)| key == service));
        is_own(&(packet.to, packet.proto)) || is_own(&node_port(packet))
    }

    /// The service ports that claim the destination of a packet.
    fn claimants(&self, packet: &Packet<'_>) -> Vec<(&Service, usize)> {
        let claims = self.claims.get(&(packet.to, packet.proto)).or_else(|| self.claims.get(&node_port(packet)));
        claims.into_iter().flat_map(BTreeMap::keys).map(|(key, index)| (&self.services[key], *index)).collect()
    }

    /// The endpoints of the service ports that claim the destination of a packet, in its family.
    fn endpoints(&self, packet: &Packet<'_>) -> impl Iterator<Item = Copies<'_>> {
        let is_v4 = packet.to.is_ipv4();
        let of_port = move |(service, index): (&Service, usize)| {
            let port = &service.ports[index];
            let mut all: BTreeMap<SocketAddr, Vec<Vec<&Endpoint>>> = BTreeMap::new();
            for slice in self.slices.iter().filter(|slice| slice.service.as_ref() == Some(&service.key)) {
                let mut own: BTreeMap<SocketAddr, Vec<&Endpoint>> = BTreeMap::new();
                for number in slice.group.ports.iter().filter(|own| own.name == port.name && own.proto == port.proto) {
                    for endpoint in slice.group.endpoints.iter().filter(|endpoint| endpoint.addr.is_ipv4() == is_v4) {
                        own.entry(SocketAddr::new(endpoint.addr, number.port.get())).or_default().push(endpoint);
                    }
                }
                own.into_iter().for_each(|(target, copies)| all.entry(target).or_default().push(copies));
            }
            let service = &self.services[&service.key].key;
            all.into_iter().map(move |(target, by_slice)| Copies { target, service, by_slice })
        };
        self.claimants(packet).into_iter().flat_map(of_port).collect::<Vec<_>>().into_iter()
    }

    /// True if no Service has an address from the ranges of cluster IPs.
    fn is_unallotted(&self, ip: IpAddr) -> bool {
        let in_ranges =
            SERVICE_RANGES.iter().any(|range| range.parse::<IpNet>().is_ok_and(|range| range.contains(&ip)));
        in_ranges && !self.claims.keys().any(|(claimed, _)| claimed.ip() == ip)
    }

    /// True if the destination is an external IP of the Service, and an endpoint of another namespace.
    fn is_listener(&self, service: &Service, packet: &Packet<'_>) -> bool {
        let is_external = service.external_ips.contains(&packet.to.ip());
        let listens = |slice: &EndpointSlice| {
            slice.key.namespace() != service.key.namespace()
                && slice.group.endpoints.iter().any(|endpoint| endpoint.addr == packet.to.ip())
                && slice.group.ports.iter().any(|port| port.port.get() == packet.to.port())
        };
        is_external && self.slices.iter().any(listens)
    }

    /// True if the answers at the `healthCheckNodePort` of a Service may differ: by an exception for its endpoints, or
    /// since kube-proxy counts those of a slice's ports that the Service does not have.
    pub fn has_doubtful_endpoints(&self, service: &Service, node: &BTreeSet<IpAddr>) -> bool {
        let ports = || service.ports.iter();
        let packets = service.cluster_ips.iter().flat_map(|&ip| {
            ports().map(move |port| {
                let to = SocketAddr::new(ip, port.port.get());
                Packet { origin: Origin::Process, from: ip, to, proto: port.proto, node }
            })
        });
        let is_doubtful = |packet: Packet<'_>| {
            let mut all = self.endpoints(&packet);
            self.claimants(&packet).len() > 1
                || all.any(|copies| has_unequal_copies(&copies) || self.is_unusable(&copies, &packet))
        };
        let is_known = |port: &EndpointPort| ports().any(|own| (&own.name, own.proto) == (&port.name, port.proto));
        let slices = self.slices.iter().filter(|slice| slice.service.as_ref() == Some(&service.key));
        let mut of_slices = slices.flat_map(|slice| slice.group.ports.iter());
        packets.into_iter().any(is_doubtful) || !of_slices.all(is_known)
    }

    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.services.values()
    }

    /// True if an endpoint has a special address, or is a cluster IP or an address of its own Service.
    fn is_unusable(&self, endpoint: &Copies<'_>, packet: &Packet<'_>) -> bool {
        let claims = self.claims.get(&(endpoint.target, packet.proto));
        let leads_back =
            |((service, _), kind): (&(Key, usize), &Kind)| *kind == Kind::ClusterIp || service == endpoint.service;
        is_special(endpoint.target.ip()) || claims.into_iter().flatten().any(leads_back)
    }
}

fn has_two_kinds(service: &Service, packet: &Packet<'_>) -> bool {
    let lists = [&service.cluster_ips, &service.external_ips, &service.ingress_ips];
    lists.into_iter().filter(|ips| ips.contains(&packet.to.ip())).count() > 1
}

fn node_port(packet: &Packet<'_>) -> FrontendOf {
    (SocketAddr::new(unspecified(packet.to.ip()), packet.to.port()), packet.proto)
}

fn unspecified(ip: IpAddr) -> IpAddr {
    let text = if ip.is_ipv4() { "0.0.0.0" } else { "::" };
    text.parse().expect("an address")
}

fn is_special(ip: IpAddr) -> bool {
    let is_link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    ip.is_loopback() || ip.is_multicast() || is_link_local
}

/// True if kube-proxy may use a copy that differs from Beeline's.
fn has_unequal_copies(copies: &Copies<'_>) -> bool {
    let content = |endpoint: &Endpoint| {
        let is_local = endpoint.node.as_deref() == Some(NODE);
        let (zones, nodes) = endpoint.hints();
        let set = |names: &[std::sync::Arc<str>]| names.iter().map(ToString::to_string).collect::<BTreeSet<_>>();
        (endpoint.ready, endpoint.serving, endpoint.terminating, is_local, set(zones), set(nodes))
    };
    let goes_on = |endpoint: &&&Endpoint| !endpoint.terminating;
    let all = || copies.by_slice.iter().flatten();
    // By pkg/proxy/endpointslicecache.go: slices come in any order, the endpoints of one in theirs.
    let theirs: BTreeSet<_> = if all().any(|endpoint| !endpoint.terminating) {
        copies.by_slice.iter().filter_map(|slice| slice.iter().rfind(goes_on)).map(|e| content(e)).collect()
    } else {
        copies.by_slice.iter().filter_map(|slice| slice.first()).map(|e| content(e)).collect()
    };
    let rank = |endpoint: &&&Endpoint| {
        let condition = match (endpoint.ready, endpoint.serving, endpoint.terminating) {
            (true, ..) => 0,
            (false, true, false) => 1,
            (false, true, true) => 2,
            (false, false, _) => 3,
        };
        (condition, endpoint.node.as_deref() != Some(NODE))
    };
    let own = all().min_by_key(rank).map(|endpoint| content(endpoint));
    theirs.len() > 1 || theirs.first() != own.as_ref()
}

/// Answers that differ by an exception, by its name.
pub type Counts = BTreeMap<&'static str, usize>;
