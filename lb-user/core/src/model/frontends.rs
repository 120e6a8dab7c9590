//! The frontends that a Service requests. `claims` decides which of several Services owns one.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use ipnet::IpNet;
use lb_common::{Addr, Family, FrontendKey, Kind, Proto};

use super::{cross_namespace::CrossNamespaceIndex, endpoints::unusable, names, range_claims::ClaimedRange};
use crate::{
    host_ports,
    objects::{FrontendType, ServedPod, Service, ServicePort},
    port_ranges::{PortSpan, subtract},
    warning::{Denial, DeniedFrontend, FrontendPlace},
};

/// The flag `--external-ips`: which of `spec.externalIPs` are honoured.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum ExternalIps {
    /// All, as kube-proxy does.
    #[default]
    Any,
    /// No address.
    None,
    /// Addresses in these prefixes.
    Cidrs(Vec<IpNet>),
}

impl ExternalIps {
    fn allow(&self, addr: &IpAddr) -> bool {
        match self {
            Self::Any => true,
            Self::None => false,
            Self::Cidrs(prefixes) => prefixes.iter().any(|prefix| prefix.contains(addr)),
        }
    }
}

impl FromStr for ExternalIps {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let prefix = |part: &str| {
            let part = part.trim();
            let single = || part.parse::<IpAddr>().map(IpNet::from);
            part.parse::<IpNet>().or_else(|_| single()).map_err(|_| {
                format!("\"{part}\" is no prefix: want any, none, or a list such as 192.0.2.0/24,2001:db8::/64")
            })
        };
        match text {
            "any" => Ok(Self::Any),
            "none" => Ok(Self::None),
            _ => text.split(',').map(prefix).collect::<Result<_, _>>().map(Self::Cidrs),
        }
    }
}

/// A frontend that a Service requests.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RequestedFrontend {
    /// Address, port and protocol.
    pub key: FrontendKey,
    /// The field of the Service that requests it.
    pub kind: Kind,
    /// Index of the port in `spec.ports`.
    pub port: usize,
}

/// A port range that a Service requests at an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RequestedRange {
    /// Address, protocol and ports, and the field of the Service with the address.
    pub claim: ClaimedRange,
    /// Index of the port in [`Service::ports`].
    pub port: usize,
}

/// Ports of a kubelet (its API, and that for reading only). A range at an address that is no cluster IP leaves them
/// out: the address may be that of another node, which this one cannot know.
const KUBELET: [PortSpan; 2] = [PortSpan { first: 10_250, last: 10_250 }, PortSpan { first: 10_255, last: 10_255 }];

/// The frontends that a Service requests. Other Services may own them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct FrontendRequest {
    /// The frontends, sorted by key, each once.
    pub frontends: Vec<RequestedFrontend>,
    /// The port ranges, by address.
    pub ranges: Vec<RequestedRange>,
    /// Frontends that the Service cannot have, whatever other Services request.
    pub denied: Vec<DeniedFrontend>,
}

/// Returns the families in which a Service is served: those of its cluster IPs, as kube-proxy has it
/// (pkg/proxy/serviceport.go); a pod with hostPorts, those of its own addresses.
#[must_use]
pub(super) fn families(service: &Service) -> [Option<Family>; 2] {
    let addrs = service.pod.as_ref().map_or(&service.cluster_ips, |pod| &pod.ips);
    let has = |family| addrs.iter().any(|&addr| Family::of(&addr.into()) == family).then_some(family);
    [has(Family::V4), has(Family::V6)]
}

/// Returns the address under which the maps hold the NodePorts of a family, and hostPorts without hostIP: they answer
/// at the node's own addresses.
#[must_use]
pub fn unspecified(family: Family) -> Addr {
    match family {
        Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
        Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// Returns the frontends that a Service requests. An external IP and port at which a pod of another namespace listens
/// is denied: it would take the pod's traffic (CVE-2020-8554).
#[must_use]
pub fn request(
    service: &Service,
    external_ips: &ExternalIps,
    cross_namespace: &CrossNamespaceIndex,
) -> FrontendRequest {
    let mut request = request_alone(service, external_ips);
    let namespace = service.key.namespace();
    let FrontendRequest { frontends, ranges, denied } = &mut request;
    frontends.retain(|&RequestedFrontend { key, kind, .. }| {
        let owner = (kind == Kind::ExternalIp).then(|| cross_namespace.listener(&key, namespace)).flatten();
        denied.extend(owner.map(|owner| DeniedFrontend {
            kind,
            place: FrontendPlace::Key(key),
            denial: Denial::PodListens(owner.clone()),
        }));
        owner.is_none()
    });
    ranges.retain(|RequestedRange { claim, .. }| {
        let owner = (claim.kind == Kind::ExternalIp).then(|| cross_namespace.owner(&claim.addr, namespace)).flatten();
        denied.extend(owner.map(|owner| DeniedFrontend {
            kind: claim.kind,
            place: FrontendPlace::Ports(claim.addr, claim.proto, claim.span),
            denial: Denial::PodListens(owner.clone()),
        }));
        owner.is_none()
    });
    request
}

/// Returns the frontends that a Service requests, whatever pods there are.
fn request_alone(service: &Service, external_ips: &ExternalIps) -> FrontendRequest {
    // A port that cannot be served must not keep its frontends from others.
    if service.exempt.is_some() || names::service_flaw(service).is_some() {
        return FrontendRequest::default();
    }
    if let Some(pod) = &service.pod {
        return request_host_ports(service, pod);
    }
    let is_served = |(index, port): &(usize, &ServicePort)| {
        names::flaw_of(port).is_none() && !names::is_repeated(&service.ports, *index)
    };
    // Computed once, since there may be hundreds of addresses and ports.
    let ports: Vec<_> = service.ports.iter().enumerate().filter(is_served).collect();
    let families = families(service);
    let addrs = service.cluster_ips.len() + service.external_ips.len() + service.ingress_ips.len();
    let node_ports = 2 * service.ports.iter().filter(|port| port.node_port.is_some()).count();
    let mut frontends = Vec::with_capacity(addrs * (service.ports.len() + 1) + node_ports);
    let (mut ranges, mut denied) = (Vec::<RequestedRange>::new(), Vec::new());
    let fields = [
        (Kind::ClusterIp, &service.cluster_ips),
        // An address of both kinds below is restricted by the source ranges, as with kube-proxy.
        (Kind::LoadBalancer, &service.ingress_ips),
        (Kind::ExternalIp, &service.external_ips),
    ];
    let only = service.tuning.as_deref().and_then(|tuning| tuning.only);
    let has_type = |of: FrontendType| only.is_none_or(|only| only == of);
    for (kind, addrs) in fields {
        let is_left_out = match kind {
            Kind::ClusterIp => !has_type(FrontendType::ClusterIp),
            Kind::LoadBalancer => !has_type(FrontendType::LoadBalancer),
            _ => false,
        };
        if is_left_out {
            continue;
        }
        for (index, ip) in addrs.iter().enumerate() {
            if addrs.iter().take(index).any(|other| other == ip) {
                continue;
            }
            let addr = Addr::from(*ip);
            let family = Family::of(&addr);
            let denial = if let Some(kind) = unusable(ip) {
                Denial::Unusable(kind)
            } else if kind == Kind::ExternalIp && !external_ips.allow(ip) {
                Denial::NotAllowed
            } else if !families.contains(&Some(family)) {
                Denial::FamilyNotServed(family)
            } else {
                let single = ports.iter().filter(|(_, port)| port.ranges.is_none());
                frontends.extend(single.map(|&(index, port)| {
                    let key = FrontendKey::new(addr, port.port.get(), port.proto);
                    RequestedFrontend { key, kind, port: index }
                }));
                if let Some(&(index, port)) = ports.first() {
                    let key = FrontendKey::new(addr, port.port.get(), port.proto);
                    let (key, kind) = match kind {
                        Kind::ClusterIp => (key.address(), Kind::Address),
                        _ => (key.external_address(), Kind::ExternalAddress),
                    };
                    frontends.push(RequestedFrontend { key, kind, port: index });
                }
                // The first of two kinds of one address counts.
                if ranges.iter().all(|range| range.claim.addr != addr) {
                    ranges.extend(ports.iter().flat_map(|&(index, port)| ranges_at(addr, kind, index, port)));
                }
                continue;
            };
            denied.push(DeniedFrontend { kind, place: FrontendPlace::Addr(*ip), denial });
        }
    }
    for (index, port) in ports {
        let Some(number) = port.node_port.filter(|_| has_type(FrontendType::NodePort)) else { continue };
        frontends.extend(families.into_iter().flatten().map(|family| {
            let key = FrontendKey::new(unspecified(family), number.get(), port.proto);
            RequestedFrontend { key, kind: Kind::NodePort, port: index }
        }));
    }
    FrontendRequest { ranges, ..unique(service, frontends, denied) }
}

/// Returns the frontends of a pod's hostPorts. A hostIP of a family that the pod does not have asks for nothing, as
/// with the CNI plugin portmap (plugins/meta/portmap).
fn request_host_ports(service: &Service, pod: &ServedPod) -> FrontendRequest {
    let (kind, mut frontends, mut denied) = (Kind::HostPort, Vec::new(), Vec::new());
    for host_port in &pod.host_ports {
        let Some(port) = host_ports::index_of(service, host_port) else { continue };
        if let Some((addr, unusable)) = host_port.addr.and_then(|addr| Some((addr, host_ports::unusable(&addr)?))) {
            denied.push(DeniedFrontend { kind, place: FrontendPlace::Addr(addr), denial: Denial::Unusable(unusable) });
            continue;
        }
        let addr_of = |family| match host_port.addr.map(Addr::from) {
            None => Some(unspecified(family)),
            Some(addr) => (Family::of(&addr) == family).then_some(addr),
        };
        frontends.extend(families(service).into_iter().flatten().filter_map(addr_of).map(|addr| {
            let key = FrontendKey::new(addr, host_port.port.get(), host_port.proto);
            RequestedFrontend { key, kind, port }
        }));
    }
    unique(service, frontends, denied)
}

/// Sorts frontends, and keeps one of each key.
fn unique(
    service: &Service,
    mut frontends: Vec<RequestedFrontend>,
    mut denied: Vec<DeniedFrontend>,
) -> FrontendRequest {
    // The first kind of two with one key wins, then the first port; the sort is stable.
    frontends.sort_by_key(|frontend| frontend.key);
    frontends.dedup_by(|second, first| {
        let is_same = second.key == first.key;
        if is_same && second.port != first.port {
            let name = |index: usize| service.ports.get(index).map(|port| port.name.clone()).unwrap_or_default();
            let denial = Denial::OtherPort { owner: name(first.port), loser: name(second.port) };
            denied.push(DeniedFrontend { kind: second.kind, place: FrontendPlace::Key(second.key), denial });
        }
        is_same
    });
    FrontendRequest { frontends, ranges: Vec::new(), denied }
}

/// Lists the port ranges of a port at an address.
fn ranges_at(addr: Addr, kind: Kind, index: usize, port: &ServicePort) -> impl Iterator<Item = RequestedRange> + use<> {
    let spans = port.ranges.as_deref().map_or_else(Vec::new, |ranges| ranges.spans.clone());
    let reserved = if kind != Kind::ClusterIp && port.proto == Proto::Tcp { &KUBELET[..] } else { &[] };
    let (spans, proto) = (subtract(&spans, reserved.iter().copied()), port.proto);
    let range = move |span| RequestedRange { claim: ClaimedRange { addr, proto, span, kind }, port: index };
    spans.into_iter().map(range)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn external_ips_takes_any_none_or_a_list_of_prefixes() {
        let allows = |text: &str, addr: &str| {
            text.parse::<ExternalIps>().map(|external| external.allow(&addr.parse().expect("an address")))
        };
        assert_eq!(allows("any", "192.0.2.1"), Ok(true));
        assert_eq!(allows("none", "192.0.2.1"), Ok(false));
        assert_eq!(allows("192.0.2.0/24, fd00::/8", "192.0.2.1"), Ok(true));
        assert_eq!(allows("192.0.2.0/24,fd00::/8", "fd00::1"), Ok(true));
        assert_eq!(allows("192.0.2.1", "192.0.2.1"), Ok(true));
        assert_eq!(allows("192.0.2.0/24", "198.51.100.1"), Ok(false));
        for bad in ["", "all", "192.0.2.0/33", "192.0.2.1,"] {
            assert!(allows(bad, "192.0.2.1").is_err(), "{bad}");
        }
    }
}
