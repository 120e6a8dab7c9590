//! The sources that `loadBalancerSourceRanges` lets in at a Service's load balancer addresses, in one family.
//!
//! After kube-proxy (pkg/proxy/serviceport.go): each family counts for itself; no range, or a range of all addresses,
//! restricts no client. Where a range contains the node, kube-proxy also lets in packets whose source is the VIP
//! itself, which come from the node (pkg/proxy/nftables/proxier.go); here the node's sockets are translated before they
//! send a packet, whatever the ranges are.

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use lb_common::Family;

use crate::objects::{RangePolicy, Service};

/// Most ranges of a Service in a family. Each is an entry of a trie for each of the Service's ports, and the size of
/// the trie is limited.
pub(super) const MAX_RANGES: usize = 1_024;

/// The ranges of a family.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SourceRanges {
    /// Networks that are let in, sorted, each once; none lets all clients in.
    pub nets: Vec<IpNet>,
    /// True if no client is let in: no range of the Service is readable, or the ranges keep all clients out.
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
    let mut is_closed = service.source_ranges_unreadable;
    if service.tuning.as_deref().is_some_and(|tuning| tuning.range_policy == RangePolicy::Deny) && !nets.is_empty() {
        nets = rest(&nets, family);
        is_closed |= nets.is_empty();
    }
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
    SourceRanges { nets, none_readable: is_closed, left_out }
}

/// Returns the ranges of all addresses outside of `nets`.
fn rest(nets: &[IpNet], family: Family) -> Vec<IpNet> {
    let all = match family {
        Family::V4 => IpNet::V4(Ipv4Net::default()),
        Family::V6 => IpNet::V6(Ipv6Net::default()),
    };
    let mut rest = Vec::new();
    add_rest(all, nets, &mut rest);
    rest
}

/// Adds the parts of a range that are outside of `nets`, halving the range where one of them begins.
fn add_rest(range: IpNet, nets: &[IpNet], rest: &mut Vec<IpNet>) {
    let within: Vec<IpNet> = nets.iter().filter(|net| range.contains(*net) || net.contains(&range)).copied().collect();
    if within.is_empty() {
        rest.push(range);
    } else if !within.iter().any(|net| net.contains(&range)) {
        // A range that contains another one has halves.
        for half in range.subnets(range.prefix_len() + 1).into_iter().flatten() {
            add_rest(half, &within, rest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::{Key, Tuning};

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
    fn ranges_that_deny_let_in_all_other_addresses() {
        let check = |texts: &[&str], family: Family, expected: &[&str], is_restricted: bool| {
            let tuning = Tuning { range_policy: RangePolicy::Deny, ..Tuning::default() };
            let source_ranges = texts.iter().map(|text| text.parse().expect("a network")).collect();
            let service =
                Service { source_ranges, tuning: Some(Box::new(tuning)), ..Service::new(Key::new("default", "a")) };
            let ranges = of(&service, family);
            let nets: Vec<_> = ranges.nets.iter().map(ToString::to_string).collect();
            assert_eq!(nets.iter().map(String::as_str).collect::<Vec<_>>(), expected, "{texts:?}");
            assert_eq!(ranges.is_restricted(), is_restricted, "{texts:?}");
        };
        check(&[], Family::V4, &[], false);
        check(&["fd00::/8"], Family::V4, &[], false);
        check(&["0.0.0.0/1"], Family::V4, &["128.0.0.0/1"], true);
        check(&["0.0.0.0/1", "128.0.0.0/1"], Family::V4, &[], true);
        check(&["0.0.0.0/0"], Family::V4, &[], true);
        check(&["64.0.0.0/2", "64.1.0.0/16"], Family::V4, &["0.0.0.0/2", "128.0.0.0/1"], true);
        check(&["8000::/1", "4000::/2"], Family::V6, &["::/2"], true);
        let one = Service {
            source_ranges: vec!["192.0.2.1/32".parse().expect("a network")],
            tuning: Some(Box::new(Tuning { range_policy: RangePolicy::Deny, ..Tuning::default() })),
            ..Service::new(Key::new("default", "a"))
        };
        let nets = of(&one, Family::V4).nets;
        let lets_in = |addr: &str| nets.iter().any(|net| net.contains(&addr.parse::<std::net::IpAddr>().expect("one")));
        assert_eq!(nets.len(), 32);
        assert!(!lets_in("192.0.2.1") && lets_in("192.0.2.0") && lets_in("192.0.2.2") && lets_in("255.255.255.255"));
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
