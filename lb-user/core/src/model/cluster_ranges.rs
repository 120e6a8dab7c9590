//! The ranges of cluster IPs: an address in them that no Service has belongs to no host, so that calls to it fail at
//! once. Wherever that is in doubt there are no ranges, and calls go on.

use std::{collections::BTreeSet, fmt, net::IpAddr, str::FromStr};

use ipnet::IpNet;
use lb_common::{Addr, ClusterRange, ClusterRanges, MAX_CLUSTER_RANGES};

/// The flag `--service-cidrs`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum ServiceCidrs {
    /// The ranges of the API's ServiceCIDR objects.
    #[default]
    Api,
    /// No range: calls to an unknown cluster IP go on.
    None,
    /// These ranges.
    Cidrs(Vec<IpNet>),
}

impl FromStr for ServiceCidrs {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "api" => Ok(Self::Api),
            "none" => Ok(Self::None),
            _ => {
                let prefix = |part: &str| {
                    let part = part.trim();
                    part.parse::<IpNet>().map(|net| net.trunc()).map_err(|_| {
                        format!("\"{part}\" is no prefix: want api, none, or a list such as 10.96.0.0/16,fd96::/108")
                    })
                };
                let prefixes = text.split(',').map(prefix).collect::<Result<Vec<_>, _>>()?;
                if prefixes.len() > MAX_CLUSTER_RANGES {
                    return Err(format!("{} prefixes; at most {MAX_CLUSTER_RANGES} are possible", prefixes.len()));
                }
                Ok(Self::Cidrs(prefixes))
            }
        }
    }
}

/// A range that is not used, since an interface of the node has an address in it: other hosts may have too.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct DoubtfulRange {
    /// The range.
    pub range: IpNet,
    /// The address of the node.
    pub own: IpAddr,
}

impl fmt::Display for DoubtfulRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { range, own } = self;
        write!(
            f,
            "calls to unknown cluster IPs of {range} go on: the node's own address {own} is in the range, so that \
             hosts may be; give Services a range of their own, or set --service-cidrs"
        )
    }
}

/// Chooses the ranges in use: those of the flag or of the API, but for ranges with an address of `own` that is no
/// cluster IP.
#[must_use]
pub fn choose(
    flag: &ServiceCidrs,
    api: &BTreeSet<IpNet>,
    own: &BTreeSet<Addr>,
    is_cluster_ip: impl Fn(&Addr) -> bool,
) -> (Vec<IpNet>, Vec<DoubtfulRange>) {
    let wanted: Vec<IpNet> = match flag {
        ServiceCidrs::Api => api.iter().copied().collect(),
        ServiceCidrs::None => Vec::new(),
        ServiceCidrs::Cidrs(cidrs) => cidrs.clone(),
    };
    let (mut ranges, mut doubtful) = (Vec::new(), Vec::new());
    for range in wanted {
        match own.iter().find(|addr| range.contains(&addr.to_ip()) && !is_cluster_ip(addr)) {
            Some(own) => doubtful.push(DoubtfulRange { range, own: own.to_ip() }),
            None => ranges.push(range),
        }
    }
    // More than the map holds would only make some calls go on.
    ranges.truncate(MAX_CLUSTER_RANGES);
    (ranges, doubtful)
}

/// Returns the value of `CLUSTER_RANGES`.
#[must_use]
pub fn value(ranges: &[IpNet]) -> ClusterRanges {
    let mut value = ClusterRanges::default();
    for (to, net) in value.ranges.iter_mut().zip(ranges) {
        // The prefix of a mapped address is 96 bits longer.
        let bits = u32::from(net.prefix_len()) + if matches!(net, IpNet::V4(_)) { 96 } else { 0 };
        let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
        *to = ClusterRange { addr: net.network().into(), mask: Addr { octets: mask.to_be_bytes() } };
        value.len += 1;
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().expect("a prefix")
    }

    fn addr(text: &str) -> Addr {
        text.parse::<IpAddr>().expect("an address").into()
    }

    #[test]
    fn the_flag_takes_api_none_or_prefixes() {
        assert_eq!("api".parse(), Ok(ServiceCidrs::Api));
        assert_eq!("none".parse(), Ok(ServiceCidrs::None));
        let both = ServiceCidrs::Cidrs(vec![net("10.96.0.0/16"), net("fd96::/108")]);
        assert_eq!("10.96.1.0/16, fd96::/108".parse(), Ok(both));
        for bad in ["", "10.96.0.0", "10.96.0.0/33", "any", &["10.0.0.0/24"; 9].join(",")] {
            assert!(bad.parse::<ServiceCidrs>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_value_contains_the_addresses_of_its_ranges() {
        let value = value(&[net("10.96.0.0/16"), net("fd96::/108")]);
        assert_eq!(value.len, 2);
        for inside in ["10.96.0.0", "10.96.255.255", "fd96::1", "fd96::f:ffff"] {
            assert!(value.contain(&addr(inside)), "{inside}");
        }
        for outside in ["10.95.255.255", "10.97.0.0", "fd96::10:0", "::", "0.0.0.0"] {
            assert!(!value.contain(&addr(outside)), "{outside}");
        }
        assert!(!ClusterRanges::default().contain(&addr("::")), "no range");
        assert!(super::value(&[net("0.0.0.0/0")]).contain(&addr("192.0.2.1")));
        assert!(!super::value(&[net("0.0.0.0/0")]).contain(&addr("fd00::1")));
    }

    #[test]
    fn a_range_with_an_address_of_the_node_is_not_used_unless_that_is_a_cluster_ip() {
        let api = BTreeSet::from([net("10.96.0.0/16"), net("fd96::/108")]);
        let chosen = |own: &[&str]| {
            let own = own.iter().map(|own| addr(own)).collect();
            choose(&ServiceCidrs::Api, &api, &own, |addr| addr.to_string() == "10.96.0.10")
        };
        let all = vec![net("10.96.0.0/16"), net("fd96::/108")];
        assert_eq!(chosen(&["192.0.2.1"]), (all.clone(), vec![]));
        assert_eq!(chosen(&["10.96.0.10"]), (all, vec![]), "a DNS cache at the cluster IP of its Service");
        let (ranges, doubtful) = chosen(&["10.96.3.1", "192.0.2.1"]);
        assert_eq!(ranges, [net("fd96::/108")]);
        let text = doubtful.iter().map(ToString::to_string).collect::<String>();
        assert!(text.contains("10.96.0.0/16") && text.contains("10.96.3.1"), "{text}");
        assert_eq!(choose(&ServiceCidrs::None, &api, &BTreeSet::new(), |_| false).0, []);
    }
}
