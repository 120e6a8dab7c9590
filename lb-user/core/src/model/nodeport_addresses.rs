//! The flag `--nodeport-addresses`: the addresses of the node at which NodePorts answer.

use std::{collections::BTreeSet, net::IpAddr, str::FromStr};

use ipnet::IpNet;
use lb_common::Addr;

/// Value of the flag: the union of keywords and prefixes (kube-proxy's flag of that name, and the keywords of
/// k8s#138427).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodePortAddresses {
    /// `all`: every address of the node.
    all: bool,
    /// `primary`: the Node's InternalIP of each family.
    primary: bool,
    /// `localhost`: loopback addresses.
    localhost: bool,
    /// Addresses in these prefixes.
    prefixes: Vec<IpNet>,
}

impl Default for NodePortAddresses {
    fn default() -> Self {
        Self { all: true, primary: false, localhost: false, prefixes: Vec::new() }
    }
}

impl NodePortAddresses {
    /// True if NodePorts answer at every address of the node, future ones included.
    #[must_use]
    pub const fn is_all(&self) -> bool {
        self.all
    }

    /// Chooses from `own`, the addresses of the node. `primary` are the InternalIPs of the Node object.
    #[must_use]
    pub fn choose(&self, own: &BTreeSet<IpAddr>, primary: &[IpAddr]) -> BTreeSet<Addr> {
        let chosen = |ip: &IpAddr| {
            self.all
                || (self.localhost && ip.is_loopback())
                || (self.primary && primary.contains(ip))
                || self.prefixes.iter().any(|prefix| prefix.contains(ip))
        };
        own.iter().filter(|ip| chosen(ip)).map(|&ip| ip.into()).collect()
    }
}

impl FromStr for NodePortAddresses {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut chosen = Self { all: false, ..Self::default() };
        for part in text.split(',').map(str::trim) {
            match part {
                "all" => chosen.all = true,
                "primary" => chosen.primary = true,
                "localhost" => chosen.localhost = true,
                _ => chosen.prefixes.push(part.parse().map_err(|_| {
                    format!(
                        "\"{part}\" is no prefix: want all, primary, localhost, or prefixes such as 10.0.0.0/8, or \
                         some of these in a list"
                    )
                })?),
            }
        }
        Ok(chosen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keywords_and_prefixes_add_up() {
        let own = ["10.0.0.1", "127.0.0.1", "192.0.2.1", "::1", "fd00::1"].map(|ip| ip.parse().expect("an address"));
        let own = BTreeSet::from(own);
        let primary: [IpAddr; 2] = ["192.0.2.1", "fd00::1"].map(|ip| ip.parse().expect("an address"));
        let check = |text: &str, expected: &str| {
            let chosen = text.parse::<NodePortAddresses>().expect("it is right").choose(&own, &primary);
            let chosen: Vec<_> = chosen.iter().map(|addr| addr.to_ip()).collect();
            let mut expected: Vec<IpAddr> =
                expected.split_whitespace().map(|ip| ip.parse().expect("an address")).collect();
            expected.sort_by_key(|&ip| Addr::from(ip));
            assert_eq!(chosen, expected, "{text}");
        };
        check("all", "10.0.0.1 127.0.0.1 192.0.2.1 ::1 fd00::1");
        check("primary", "192.0.2.1 fd00::1");
        check("localhost", "127.0.0.1 ::1");
        check("10.0.0.0/8", "10.0.0.1");
        check("10.0.0.0/8, localhost,primary", "10.0.0.1 127.0.0.1 192.0.2.1 ::1 fd00::1");
        check("fd00::/8", "fd00::1");
        check("203.0.113.0/24", "");
        assert_eq!(NodePortAddresses::default(), "all".parse().expect("it is right"));
        for bad in ["", "none", "10.0.0.0/33", "all,"] {
            assert!(bad.parse::<NodePortAddresses>().is_err(), "{bad}");
        }
    }
}
