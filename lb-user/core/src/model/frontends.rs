//! What clients may dial to reach a Service. Whether another Service owns it is for `claims` to say.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use ipnet::IpNet;
use lb_common::{Addr, FrontendKey, Kind};

use super::{cross_namespace::CrossNamespaceIndex, endpoints::unusable, names};
use crate::objects::{Key, Service, ServicePort};
use lb_common::Family;

/// The flag `--external-ips`: which of `spec.externalIPs` are honoured.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum ExternalIps {
    /// All, as kube-proxy does.
    #[default]
    Any,
    /// None.
    None,
    /// Those in these prefixes.
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

/// A frontend that a Service asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Wanted {
    /// What is dialled.
    pub key: FrontendKey,
    /// What in the Service made it.
    pub kind: Kind,
    /// Index of the port in `spec.ports`.
    pub port: usize,
}

/// The families in which a Service is served: those of its cluster IPs, as kube-proxy has it (pkg/proxy/serviceport.go).
#[must_use]
pub fn families(service: &Service) -> [Option<Family>; 2] {
    let has = |family| service.cluster_ips.iter().any(|&addr| Family::of(&addr.into()) == family).then_some(family);
    [has(Family::V4), has(Family::V6)]
}

/// A frontend that a Service asks for and does not get.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Denied<'a> {
    /// What in the Service asks for it.
    pub kind: Kind,
    /// What would be dialled.
    pub what: Place,
    /// Why it does not get it.
    pub why: Denial<'a>,
}

/// What would be dialled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// An address, at any port.
    Addr(IpAddr),
    /// An address and port.
    Key(FrontendKey),
}

/// Why a Service does not get a frontend.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Denial<'a> {
    /// The address is of a kind that nothing may be dialled at.
    Unusable(&'static str),
    /// The flag `--external-ips` does not allow it.
    NotAllowed,
    /// The Service has no cluster IP of this family.
    NotServed(Family),
    /// An earlier port of the Service has it: that port's name, and the later one's.
    Twice(&'a str, &'a str),
    /// It belongs to this Service, which is older.
    Lost(&'a Key),
    /// It belongs to this Service, by a greater right.
    Outranked(&'a Key),
    /// Pods of another namespace listen there, those of this Service.
    Listens(&'a Key),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Addr(addr) => addr.fmt(f),
            Self::Key(key) => key.fmt(f),
        }
    }
}

/// The reason, as what is said of the place.
impl fmt::Display for Denial<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unusable(what) => write!(f, "is {what} address, which cannot be a frontend; remove it"),
            Self::NotAllowed => write!(f, "is not served; the flag --external-ips does not allow it"),
            Self::NotServed(family) => {
                let family = family.name();
                write!(
                    f,
                    "is not served, since the Service has no {family} cluster IP; add {family} to spec.ipFamilies"
                )
            }
            Self::Twice(winner, loser) => {
                write!(
                    f,
                    "is asked for by the ports \"{loser}\" and \"{winner}\", and \"{winner}\" gets it; remove one"
                )
            }
            Self::Lost(owner) => write!(
                f,
                "belongs to the Service {owner}, which is older or, at equal age, first by name; use another address or port"
            ),
            Self::Outranked(owner) => write!(
                f,
                "belongs to the Service {owner}: what is allotted goes before what a Service claims, whatever the ages; use \
                 another address or port"
            ),
            Self::Listens(owner) => write!(
                f,
                "is not served: a pod of another namespace listens there, that of the Service {owner}; use another address \
                 or port"
            ),
        }
    }
}

/// The warning.
impl fmt::Display for Denied<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.what {
            Place::Addr(addr) => write!(f, "{}: {addr} {}", field(self.kind), self.why),
            Place::Key(key) => write!(f, "{key} ({}) {}", self.kind.name(), self.why),
        }
    }
}

const fn field(kind: Kind) -> &'static str {
    match kind {
        Kind::ClusterIp | Kind::Address => "spec.clusterIPs",
        Kind::ExternalIp => "spec.externalIPs",
        Kind::LoadBalancer => "status.loadBalancer.ingress",
        Kind::NodePort => "spec.ports[].nodePort",
    }
}

/// The address under which the NodePorts of a family stand in the maps: they answer at the node's own addresses.
#[must_use]
pub fn unspecified(family: Family) -> Addr {
    match family {
        Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
        Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// The frontends that a Service asks for, each key once, sorted by key. What is refused goes to `denied`.
#[must_use]
pub fn wanted<'a>(service: &'a Service, external: &ExternalIps, denied: &mut Vec<Denied<'a>>) -> Vec<Wanted> {
    // What cannot be served must not keep others from it.
    if service.exempt.is_some() || names::flaw_of(service).is_some() {
        return Vec::new();
    }
    let is_served = |(index, port): &(usize, &ServicePort)| {
        names::flaw(&port.name).is_none() && !names::is_repeated(&service.ports, *index)
    };
    // Once, since there may be hundreds of addresses and ports.
    let ports: Vec<_> = service.ports.iter().enumerate().filter(is_served).collect();
    let families = families(service);
    let addrs = service.cluster_ips.len() + service.external_ips.len() + service.ingress_ips.len();
    let any_port = service.cluster_ips.len();
    let node_ports = 2 * service.ports.iter().filter(|port| port.node_port.is_some()).count();
    let mut frontends = Vec::with_capacity(addrs * service.ports.len() + any_port + node_ports);
    let origins = [
        (Kind::ClusterIp, &service.cluster_ips),
        // An address that is both is bound by the source ranges, as with kube-proxy.
        (Kind::LoadBalancer, &service.ingress_ips),
        (Kind::ExternalIp, &service.external_ips),
    ];
    for (kind, addrs) in origins {
        for (index, ip) in addrs.iter().enumerate() {
            if addrs.iter().take(index).any(|other| other == ip) {
                continue;
            }
            let addr = Addr::from(*ip);
            let family = Family::of(&addr);
            let before = frontends.len();
            let refused = if let Some(what) = unusable(ip) {
                Denial::Unusable(what)
            } else if kind == Kind::ExternalIp && !external.allow(ip) {
                Denial::NotAllowed
            } else if !families.contains(&Some(family)) {
                Denial::NotServed(family)
            } else {
                frontends.extend(ports.iter().map(|&(index, port)| {
                    let key = FrontendKey::new(addr, port.port.get(), port.proto);
                    Wanted { key, kind, port: index }
                }));
                if let (Kind::ClusterIp, Some(first)) = (kind, frontends.get(before).copied()) {
                    frontends.push(Wanted { key: first.key.address(), kind: Kind::Address, ..first });
                }
                continue;
            };
            denied.push(Denied { kind, what: Place::Addr(*ip), why: refused });
        }
    }
    for (index, port) in ports {
        let Some(number) = port.node_port else { continue };
        frontends.extend(families.into_iter().flatten().map(|family| {
            let key = FrontendKey::new(unspecified(family), number.get(), port.proto);
            Wanted { key, kind: Kind::NodePort, port: index }
        }));
    }
    // Of two with one key the first kind wins, then the first port; the sort is stable.
    frontends.sort_by_key(|wanted| wanted.key);
    frontends.dedup_by(|second, first| {
        let same = second.key == first.key;
        if same && second.port != first.port {
            let name = |index: usize| service.ports.get(index).map_or("", |port| &port.name);
            let why = Denial::Twice(name(first.port), name(second.port));
            denied.push(Denied { kind: second.kind, what: Place::Key(second.key), why });
        }
        same
    });
    frontends
}

/// Those of them that it may ask others for: no external IP takes what is sent to a pod of another namespace.
#[must_use]
pub fn asked<'a>(
    service: &'a Service,
    external: &ExternalIps,
    strangers: &'a CrossNamespaceIndex,
    denied: &mut Vec<Denied<'a>>,
) -> Vec<Wanted> {
    let mut frontends = wanted(service, external, denied);
    frontends.retain(|wanted| {
        let own = service.key.namespace();
        let owner = (wanted.kind == Kind::ExternalIp).then(|| strangers.listening(&wanted.key, own)).flatten();
        denied.extend(owner.map(|owner| Denied {
            kind: wanted.kind,
            what: Place::Key(wanted.key),
            why: Denial::Listens(owner),
        }));
        owner.is_none()
    });
    frontends
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn external_ips_takes_any_none_or_prefixes() {
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
