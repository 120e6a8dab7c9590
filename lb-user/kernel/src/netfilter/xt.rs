//! Matches and targets of xtables as bytes (include/uapi/linux/netfilter/): kube-proxy's iptables mode uses them, by
//! `iptables-nft` and `iptables-legacy` alike. Pure.

use std::ops::RangeInclusive;

use super::rule::{Rule, RuleAction, address};
use crate::netlink::codec::{be16, text, u16_at};
use lb_common::AddrPort;

/// Adds a match to a rule. `xt_tcp` and `xt_udp` hold a range of source ports, then of destination ports;
/// `xt_sctp_info` holds the destination ports first. `xt_multiport_v1` lists ports, some of which begin a range.
pub(crate) fn apply_match(name: &str, info: &[u8], rule: &mut Rule) {
    rule.is_conditional |= name != "comment";
    rule.skips_new |= matches!(name, "conntrack" | "state");
    let range = match name {
        "tcp" | "udp" => 4,
        "sctp" => 0,
        "comment" => {
            rule.comment = Some(text(info));
            return;
        }
        "multiport" => {
            rule.ports.extend(multiport(info));
            return;
        }
        _ => return,
    };
    if let (Some(first), Some(last)) = (u16_at(info, range), u16_at(info, range + 2))
        && (first, last) != (0, u16::MAX)
    {
        rule.ports.push(first..=last);
    }
}

/// Lists the ranges of a `struct xt_multiport_v1` that matches destination ports and is not inverted.
fn multiport(info: &[u8]) -> Vec<RangeInclusive<u16>> {
    // The flag XT_MULTIPORT_SOURCE, the count, fifteen ports, fifteen marks of a range's first port, the inversion.
    let (Some([kind, count]), Some(marks), Some(0)) = (info.first_chunk(), info.get(32..47), info.get(47)) else {
        return Vec::new();
    };
    let port = |nth: usize| u16_at(info, 2 + 2 * nth);
    let (mut ranges, mut nth) = (Vec::new(), 0);
    while *kind != 0 && nth < usize::from(*count).min(15) {
        let is_range = marks.get(nth).is_some_and(|mark| *mark != 0);
        let last = nth + usize::from(is_range);
        ranges.extend(port(nth).zip(port(last)).map(|(first, last)| first..=last));
        nth = last + 1;
    }
    ranges
}

/// Parses a target: `nf_nat_range` of either length, or `nf_nat_ipv4_multi_range_compat` of revision 0.
pub(crate) fn parse_target(name: &str, revision: u8, info: &[u8]) -> Option<RuleAction> {
    let (addr, port) = match (name, revision) {
        ("REJECT" | "DROP", _) => return Some(RuleAction::Drop),
        ("DNAT", 0) => (info.get(8..12)?, be16(info, 16)?),
        ("DNAT", _) => {
            let addr: &[u8; 16] = info.get(4..)?.first_chunk()?;
            // An IPv4 address is in the first word, and the others are zero.
            let is_v4 = addr.iter().skip(4).all(|octet| *octet == 0);
            (addr.get(..if is_v4 { 4 } else { 16 })?, be16(info, 36)?)
        }
        _ => return None,
    };
    Some(RuleAction::Dnat(AddrPort { addr: address(addr)?, port }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_and_comments_are_read() {
        let ports = |range: [u16; 4]| range.map(u16::to_ne_bytes).concat();
        let multiport = |kind: u8, inverted: u8| {
            let mut info = vec![kind, 3];
            info.extend([80_u16, 90, 443].map(u16::to_ne_bytes).concat());
            info.resize(32, 0);
            info.push(1);
            info.resize(47, 0);
            info.push(inverted);
            info
        };
        for (name, info, expected) in [
            ("tcp", ports([0, 65535, 80, 80]), vec![80..=80]),
            ("udp", ports([0, 65535, 53, 53]), vec![53..=53]),
            ("sctp", ports([9, 9, 0, 65535]), vec![9..=9]),
            ("tcp", ports([0, 65535, 80, 90]), vec![80..=90]),
            ("tcp", ports([1, 2, 0, 65535]), vec![]),
            ("addrtype", ports([1, 1, 1, 1]), vec![]),
            ("multiport", multiport(1, 0), vec![80..=90, 443..=443]),
            ("multiport", multiport(0, 0), vec![]),
            ("multiport", multiport(1, 1), vec![]),
        ] {
            let mut rule = Rule::default();
            apply_match(name, &info, &mut rule);
            assert_eq!(rule.ports, expected, "{name}");
            assert_eq!(rule.port(), expected.first().filter(|one| one.start() == one.end()).map(|one| *one.start()));
        }
        let mut rule = Rule::default();
        apply_match("comment", b"default/web:http\0\0\0", &mut rule);
        assert_eq!(rule.comment.as_deref(), Some("default/web:http"));
    }

    #[test]
    fn endpoints_are_read_in_each_of_their_forms() {
        let endpoint = |text: &str| {
            Some(RuleAction::Dnat(AddrPort::from(text.parse::<std::net::SocketAddr>().expect("an endpoint"))))
        };
        let port = 8080_u16.to_be_bytes();
        let old = [&[1, 0, 0, 0, 3, 0, 0, 0][..], &[10, 0, 0, 1], &[10, 0, 0, 1], &port, &port].concat();
        assert_eq!(parse_target("DNAT", 0, &old), endpoint("10.0.0.1:8080"));
        let mut v4 = [10, 0, 0, 1].to_vec();
        v4.resize(16, 0);
        let new = [&[3, 0, 0, 0][..], &v4, &v4, &port, &port].concat();
        assert_eq!(parse_target("DNAT", 2, &new), endpoint("10.0.0.1:8080"));
        let v6 = "fd00::5".parse::<std::net::Ipv6Addr>().expect("an address").octets();
        let new = [&[3, 0, 0, 0][..], &v6, &v6, &port, &port].concat();
        assert_eq!(parse_target("DNAT", 1, &new), endpoint("[fd00::5]:8080"));
        assert_eq!((parse_target("REJECT", 0, &[]), parse_target("MARK", 2, &[])), (Some(RuleAction::Drop), None));
        assert_eq!(parse_target("DNAT", 2, &[0; 20]), None);
    }
}
