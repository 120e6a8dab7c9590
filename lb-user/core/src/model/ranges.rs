//! The sources that `loadBalancerSourceRanges` lets in at a Service's load balancer addresses, in one family.
//!
//! After kube-proxy (pkg/proxy/serviceport.go): each family counts for itself; no range, or a range of all addresses,
//! restricts no client. Where a range contains the node, kube-proxy also lets in packets whose source is the VIP
//! itself, which come from the node (pkg/proxy/nftables/proxier.go); here the node's sockets are translated before they
//! send a packet, whatever the ranges are.

use ipnet::IpNet;
use lb_common::Family;

use crate::objects::Service;

/// Most ranges of a Service in a family. Each is an entry of a trie for each of the Service's ports, and the size of
/// the trie is limited.
pub(super) const MAX_RANGES: usize = 1_024;

/// The ranges of a family.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SourceRanges {
    /// Networks that are let in, sorted, each once; none lets all clients in.
    pub nets: Vec<IpNet>,
    /// True if no client is let in, since no range of the Service is readable.
    pub none_readable: bool,
    /// Ranges beyond [`MAX_RANGES`]. Clients in these are not let in.
    pub left_out: usize,
}

impl SourceRanges {
    /// True if the ranges keep some clients out.
    #[must_use]
    pub fn is_restricted(&self) -> bool {
        self.none_readable || !self.nets.is_empty()
    }
}

/// Returns the ranges of a Service that count in a family.
pub(super) fn of(service: &Service, family: Family) -> SourceRanges {
    let own = |net: &&IpNet| matches!(net, IpNet::V4(_)) == (family == Family::V4);
    let mut nets: Vec<IpNet> = service.source_ranges.iter().filter(own).copied().collect();
    if nets.iter().any(|net| net.prefix_len() == 0) {
        nets.clear();
    }
    nets.sort_unstable();
    nets.dedup();
    if nets.len() > MAX_RANGES {
        // The same addresses in as few ranges as possible.
        nets = IpNet::aggregate(&nets);
        nets.sort_unstable();
    }
    let left_out = nets.len().saturating_sub(MAX_RANGES);
    nets.truncate(MAX_RANGES);
    SourceRanges { nets, none_readable: service.source_ranges_unreadable, left_out }
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
    fn rule_6_each_family_counts_for_itself_and_a_range_of_all_addresses_restricts_no_client() {
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
        for family in Family::ALL {
            let ranges = of(&service, family);
            assert!(ranges.is_restricted() && ranges.nets.is_empty());
            assert!(!of(&Service::new(Key::new("default", "a")), family).is_restricted());
        }
    }

    #[test]
    fn rule_6_too_many_ranges_are_joined_and_then_left_out() {
        // All addresses of 10.0.0.0/20, each as a range.
        check((0..4096).map(|i| format!("10.0.{}.{}/32", i / 256, i % 256)), Family::V4, &["10.0.0.0/20"], 0);
        let apart = (0..MAX_RANGES + 3).map(|i| format!("10.{}.{}.0/24", i / 128, i % 128 * 2));
        let kept: Vec<_> = apart.clone().take(MAX_RANGES).collect();
        check(apart, Family::V4, &kept.iter().map(String::as_str).collect::<Vec<_>>(), 3);
    }
}
