//! What clients may dial to reach a Service. Whether another Service owns it is for `claims` to say.

use std::{net::IpAddr, str::FromStr};

use ipnet::IpNet;
use lb_common::{Addr, FrontendKey, Kind};

use super::endpoints::unusable;
use crate::{objects::Service, spec::Family};

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

/// The frontends that a Service asks for, each key once, sorted by key. What is refused goes to `warnings`.
#[must_use]
pub fn wanted(service: &Service, external: &ExternalIps, warnings: &mut Vec<String>) -> Vec<Wanted> {
    if service.exempt.is_some() {
        return Vec::new();
    }
    let families = families(service);
    let addrs = service.cluster_ips.len() + service.external_ips.len() + service.ingress_ips.len();
    let mut frontends = Vec::with_capacity(addrs * service.ports.len());
    let origins = [
        (Kind::ClusterIp, "spec.clusterIPs", &service.cluster_ips),
        (Kind::ExternalIp, "spec.externalIPs", &service.external_ips),
        (Kind::LoadBalancer, "status.loadBalancer.ingress", &service.ingress_ips),
    ];
    for (kind, field, addrs) in origins {
        for ip in addrs {
            let addr = Addr::from(*ip);
            if let Some(what) = unusable(ip) {
                warnings.push(format!("{field}: {ip} is a {what} address, which cannot be a frontend; remove it"));
            } else if kind == Kind::ExternalIp && !external.allow(ip) {
                warnings.push(format!("{field}: {ip} is not served; the flag --external-ips does not allow it"));
            } else if !families.contains(&Some(Family::of(&addr))) {
                let family = Family::of(&addr).name();
                warnings.push(format!(
                    "{field}: {ip} is not served, since the Service has no {family} cluster IP; \
                     add {family} to spec.ipFamilies"
                ));
            } else {
                let keys = service.ports.iter().map(|port| FrontendKey::new(addr, port.port.get(), port.proto));
                frontends.extend(keys.enumerate().map(|(port, key)| Wanted { key, kind, port }));
            }
        }
    }
    // Of two with one key the first kind wins, then the first port; the sort is stable.
    frontends.sort_by_key(|wanted| wanted.key);
    frontends.dedup_by(|second, first| {
        let same = second.key == first.key;
        if same && second.port != first.port {
            let name = |index: usize| service.ports.get(index).map_or("", |port| &port.name);
            let (loser, winner) = (name(second.port), name(first.port));
            warnings.push(format!(
                "spec.ports: \"{loser}\" and \"{winner}\" both ask for {}, which \"{winner}\" gets; remove one",
                first.key
            ));
        }
        same
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
