//! Which sources `loadBalancerSourceRanges` lets come to a Service's load balancer addresses, in one family.
//!
//! After kube-proxy (pkg/proxy/serviceport.go): each family counts for itself; no range, or one that is everything, binds
//! nobody. Where a range has the node, kube-proxy lets in whoever comes with the VIP itself as source, which is the node
//! (pkg/proxy/nftables/proxier.go); here its sockets are served before they send anything, whatever the ranges say.

use ipnet::IpNet;

use crate::objects::Service;
use lb_common::Family;

/// Most ranges of a Service in a family. Each is an entry of the trie for each of its ports, and a trie cannot be as large
/// as one likes (see `datapath`).
pub const MOST: usize = 1_024;

/// The ranges of a family.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Ranges {
    /// Who is let in, sorted, each once; none is everybody.
    pub nets: Vec<IpNet>,
    /// True if no client is let in, since no range of the Service is readable.
    pub nobody: bool,
    /// How many there was no room for. Who is in these is not let in.
    pub left_out: usize,
}

impl Ranges {
    /// True if the ranges keep some clients out.
    #[must_use]
    pub fn is_bound(&self) -> bool {
        self.nobody || !self.nets.is_empty()
    }
}

/// The ranges of a Service that count in a family.
#[must_use]
pub fn of(service: &Service, family: Family) -> Ranges {
    let own = |net: &&IpNet| matches!(net, IpNet::V4(_)) == (family == Family::V4);
    let mut nets: Vec<IpNet> = service.source_ranges.iter().filter(own).copied().collect();
    if nets.iter().any(|net| net.prefix_len() == 0) {
        nets.clear();
    }
    nets.sort_unstable();
    nets.dedup();
    if nets.len() > MOST {
        // The same addresses in as few ranges as there can be.
        nets = IpNet::aggregate(&nets);
        nets.sort_unstable();
    }
    let left_out = nets.len().saturating_sub(MOST);
    nets.truncate(MOST);
    Ranges { nets, nobody: service.source_ranges_unreadable, left_out }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::Key;

    fn check(ranges: impl IntoIterator<Item = String>, family: Family, expected: &[&str], left_out: usize) {
        let source_ranges = ranges.into_iter().map(|text| text.parse().expect("a network")).collect();
        let service = Service { source_ranges, ..Service::new(Key::new("default", "a")) };
        let ranges = of(&service, family);
        let nets: Vec<_> = ranges.nets.iter().map(ToString::to_string).collect();
        assert_eq!(
            (nets.iter().map(String::as_str).collect::<Vec<_>>(), ranges.left_out),
            (expected.to_vec(), left_out)
        );
    }

    #[test]
    fn rule_6_each_family_counts_for_itself_and_everything_binds_nobody() {
        let ranges = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
        check(ranges(&[]), Family::V4, &[], 0);
        let mixed = ["198.51.100.0/24", "fd00::/8", "192.0.2.0/24", "198.51.100.0/24"];
        check(ranges(&mixed), Family::V4, &["192.0.2.0/24", "198.51.100.0/24"], 0);
        check(ranges(&mixed), Family::V6, &["fd00::/8"], 0);
        check(ranges(&["192.0.2.0/24", "0.0.0.0/0", "fd00::/8"]), Family::V4, &[], 0);
        check(ranges(&["192.0.2.0/24", "::/0"]), Family::V4, &["192.0.2.0/24"], 0);
        check(ranges(&["192.0.2.0/24"]), Family::V6, &[], 0);
    }

    #[test]
    fn rule_6_without_a_readable_range_no_client_is_let_in() {
        let service = Service { source_ranges_unreadable: true, ..Service::new(Key::new("default", "a")) };
        for family in [Family::V4, Family::V6] {
            let ranges = of(&service, family);
            assert!(ranges.is_bound() && ranges.nets.is_empty());
            assert!(!of(&Service::new(Key::new("default", "a")), family).is_bound());
        }
    }

    #[test]
    fn rule_6_too_many_are_joined_and_then_left_out() {
        // All addresses of 10.0.0.0/20, one by one.
        check((0..4096).map(|i| format!("10.0.{}.{}/32", i / 256, i % 256)), Family::V4, &["10.0.0.0/20"], 0);
        let apart = (0..MOST + 3).map(|i| format!("10.{}.{}.0/24", i / 128, i % 128 * 2));
        let kept: Vec<_> = apart.clone().take(MOST).collect();
        check(apart, Family::V4, &kept.iter().map(String::as_str).collect::<Vec<_>>(), 3);
    }
}
