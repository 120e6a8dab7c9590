//! Expressions of nf_tables (include/uapi/linux/netfilter/nf_tables.h): a rule's matches and its action. `iptables-nft`
//! wraps matches and targets of xtables in them; `xt` parses those. Pure.

use std::{collections::BTreeMap, ops::RangeInclusive};

use super::{
    TableFamily,
    rule::{Rule, RuleAction, address},
    xt,
};
use crate::netlink::codec::{attributes, be16, be32, find, text};
use lb_common::{AddrPort, Family};

// Attributes. NFTA_LIST_ELEM, NFTA_EXPR_
const ELEMENT: u16 = 1;
const NAME: u16 = 1;
const DATA: u16 = 2;
/// NFTA_DATA_VALUE, NFTA_DATA_VERDICT
const VALUE: u16 = 1;
const VERDICT: u16 = 2;

/// Content of the registers: a field of the packet, or a constant.
#[derive(Default)]
struct Registers {
    loaded: BTreeMap<u32, Field>,
    constant: BTreeMap<u32, Vec<u8>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Field {
    Destination,
    Proto,
    Port,
    /// Name of the input device.
    Input,
}

/// Names of expressions that compare, each a condition of the rule. A `lookup` is one without a destination.
const CONDITIONS: [&str; 6] = ["cmp", "range", "limit", "quota", "connlimit", "rt"];

/// Parses the list of expressions of a rule. Unknown expressions are ignored.
pub(crate) fn parse_rule(family: TableFamily, list: &[u8]) -> Rule {
    let (mut rule, mut registers) = (Rule::default(), Registers::default());
    for (_, element) in attributes(list).filter(|(kind, _)| *kind == ELEMENT) {
        let (name, data) = (find(element, NAME).map(text), find(element, DATA).unwrap_or_default());
        apply_expression(&mut rule, family, name.as_deref().unwrap_or_default(), data, &mut registers);
    }
    rule
}

fn apply_expression(rule: &mut Rule, family: TableFamily, name: &str, data: &[u8], registers: &mut Registers) {
    let number = |kind| find(data, kind).and_then(|value| be32(value, 0));
    rule.is_conditional |= CONDITIONS.contains(&name) || (name == "lookup" && number(3).is_none());
    match name {
        // NFTA_META_DREG, NFTA_META_KEY (NFT_META_L4PROTO, _IIFNAME)
        "meta" => {
            let field = match number(2) {
                Some(16) => Field::Proto,
                Some(6) => Field::Input,
                _ => return,
            };
            registers.loaded.extend(number(1).map(|register| (register, field)));
        }
        // NFTA_CT_KEY (NFT_CT_STATE, _STATUS): established and related connections, or those with destination NAT
        "ct" => rule.skips_new |= matches!(number(2), Some(0 | 2)),
        // NFTA_PAYLOAD_DREG, _BASE, _OFFSET, _LEN
        "payload" => {
            // A table `inet` compares the protocol of the network layer first, so that the length tells the families.
            let (is_v4, is_v6) = (family != TableFamily::One(Family::V6), family != TableFamily::One(Family::V4));
            let field = match (is_v4, is_v6, number(2), number(3), number(4)) {
                (true, _, Some(1), Some(16), Some(4)) | (_, true, Some(1), Some(24), Some(16)) => Field::Destination,
                (_, _, Some(2), Some(2), Some(2)) => Field::Port,
                _ => return,
            };
            registers.loaded.extend(number(1).map(|register| (register, field)));
        }
        // A masked field is no longer a whole address or port. NFTA_BITWISE_SREG
        "bitwise" => {
            registers.loaded.retain(|register, _| Some(*register) != number(1));
        }
        // NFTA_CMP_SREG, _OP (NFT_CMP_EQ 0, _LTE 3, _GTE 5), _DATA
        "cmp" => {
            let Some((register, operation)) = number(1).zip(number(2)) else { return };
            let field = registers.loaded.get(&register).copied();
            let value = find(data, 3).and_then(|data| find(data, VALUE)).unwrap_or_default();
            match (field, operation) {
                (Some(Field::Destination), 0) => rule.destination = address(value),
                (Some(Field::Input), 0) => rule.skips_new |= text(value) == "lo",
                (Some(Field::Proto), 0) => rule.proto = value.first().copied(),
                (Some(Field::Port), 0) => rule.ports.extend(be16(value, 0).map(|port| port..=port)),
                // `nft` writes a range as two comparisons, the lower bound first.
                (Some(Field::Port), 5) => {
                    rule.ports.extend(be16(value, 0).map(|first| first..=u16::MAX));
                    return;
                }
                (Some(Field::Port), 3) => limit(&mut rule.ports, be16(value, 0)),
                _ => {}
            }
            registers.loaded.remove(&register);
        }
        // NFTA_RANGE_SREG, _OP (NFT_RANGE_EQ), _FROM_DATA, _TO_DATA
        "range" if number(2) == Some(0) => {
            let is_port = number(1).and_then(|register| registers.loaded.get(&register)) == Some(&Field::Port);
            let bound = |kind| find(data, kind).and_then(|data| be16(find(data, VALUE)?, 0)).filter(|_| is_port);
            rule.ports.extend(bound(3).zip(bound(4)).map(|(first, last)| first..=last));
        }
        // NFTA_IMMEDIATE_DREG, _DATA
        "immediate" => {
            let data = find(data, 2).unwrap_or_default();
            rule.actions.extend(find(data, VERDICT).and_then(parse_verdict));
            let value = find(data, VALUE).map(<[u8]>::to_vec);
            registers.constant.extend(number(1).zip(value));
        }
        // NFTA_LOOKUP_SET; _DREG: a verdict, or the address and port that a `nat` expression reads
        "lookup" if number(3).is_some() => {
            rule.actions.extend(find(data, 1).map(|set| RuleAction::MapLookup(text(set))));
        }
        // NFTA_LOOKUP_SREG; _FLAGS (NFT_LOOKUP_F_INV)
        "lookup" if number(5).unwrap_or(0) == 0 => {
            let is_port = number(2).and_then(|register| registers.loaded.get(&register)) == Some(&Field::Port);
            rule.port_sets.extend(find(data, 1).filter(|_| is_port).map(text));
        }
        // NFTA_NAT_TYPE (NFT_NAT_DNAT), _REG_ADDR_MIN, _REG_PROTO_MIN
        "nat" if number(1) == Some(1) => {
            let constant = |kind| number(kind).and_then(|register| registers.constant.get(&register));
            let addr = constant(3).map(Vec::as_slice).and_then(address);
            let port = constant(5).and_then(|value| be16(value, 0));
            rule.actions.extend(addr.zip(port).map(|(addr, port)| RuleAction::Dnat(AddrPort { addr, port })));
        }
        "reject" => rule.actions.push(RuleAction::Drop),
        // NFTA_MATCH_NAME, _REV, _INFO; the same of targets
        "match" | "target" => {
            let extension = find(data, 1).map(text).unwrap_or_default();
            let revision = number(2).and_then(|revision| u8::try_from(revision).ok()).unwrap_or(0);
            let info = find(data, 3).unwrap_or_default();
            if name == "match" {
                xt::apply_match(&extension, info, rule);
            } else {
                rule.actions.extend(xt::parse_target(&extension, revision, info));
            }
        }
        _ => {}
    }
}

/// Ends the last range at a port.
fn limit(ranges: &mut Vec<RangeInclusive<u16>>, last: Option<u16>) {
    let Some(last) = last else { return };
    let first = ranges.pop().map_or(0, |range| *range.start());
    ranges.push(first..=last);
}

/// Parses a verdict: NFTA_VERDICT_CODE (NFT_JUMP, NFT_GOTO, NF_DROP, NF_ACCEPT), _CHAIN. None for return and continue.
fn parse_verdict(nest: &[u8]) -> Option<RuleAction> {
    match find(nest, 1).and_then(|code| be32(code, 0))?.cast_signed() {
        -3 | -4 => find(nest, 2).map(|chain| RuleAction::Jump(text(chain))),
        0 => Some(RuleAction::Drop),
        1 => Some(RuleAction::Accept),
        _ => None,
    }
}

/// Parses an element of a set of ports: the port, and true if it is the first one behind an interval.
/// NFTA_SET_ELEM_KEY, _FLAGS (NFT_SET_ELEM_INTERVAL_END)
pub(crate) fn parse_port(nest: &[u8]) -> Option<(u16, bool)> {
    let port = find(nest, 1).and_then(|key| be16(find(key, VALUE)?, 0))?;
    Some((port, find(nest, 3).and_then(|flags| be32(flags, 0)).is_some_and(|flags| flags & 1 != 0)))
}

/// Parses an element of a map: its key and its action. NFTA_SET_ELEM_KEY, _DATA
pub(crate) fn parse_element(nest: &[u8]) -> Option<(Vec<u8>, RuleAction)> {
    let key = find(nest, 1).and_then(|key| find(key, VALUE))?;
    let data = find(nest, 2)?;
    let action = match find(data, VERDICT) {
        Some(nest) => parse_verdict(nest)?,
        // Address and port, each padded to four octets.
        None => {
            let (addr, port) =
                find(data, VALUE).and_then(|value| value.split_at_checked(value.len().checked_sub(4)?))?;
            RuleAction::Dnat(AddrPort { addr: address(addr)?, port: be16(port, 0)? })
        }
    };
    Some((key.to_vec(), action))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        netfilter::nftables::{Expressions, number},
        netlink::codec::{put_attribute, put_nested},
    };
    use lb_common::Addr;

    fn expression(name: &str, attributes: &[(u16, Vec<u8>)]) -> Vec<u8> {
        Expressions::default().with(name, attributes).0
    }

    fn value(octets: &[u8]) -> Vec<u8> {
        let mut data = Vec::new();
        put_attribute(&mut data, VALUE, octets);
        data
    }

    fn jump(chain: &str) -> Vec<u8> {
        let (mut verdict, mut data) = (Vec::new(), Vec::new());
        put_attribute(&mut verdict, 1, &(-3_i32).to_be_bytes());
        put_attribute(&mut verdict, 2, format!("{chain}\0").as_bytes());
        put_nested(&mut data, VERDICT, &verdict);
        data
    }

    #[test]
    fn matches_and_jump_of_a_rule_are_parsed() {
        let list = [
            expression("meta", &[(1, number(1)), (2, number(16))]),
            expression("cmp", &[(1, number(1)), (2, number(0)), (3, value(&[6]))]),
            expression("payload", &[(1, number(1)), (2, number(1)), (3, number(16)), (4, number(4))]),
            expression("cmp", &[(1, number(1)), (2, number(0)), (3, value(&[10, 96, 0, 10]))]),
            expression("payload", &[(1, number(1)), (2, number(2)), (3, number(2)), (4, number(2))]),
            expression("cmp", &[(1, number(1)), (2, number(0)), (3, value(&80_u16.to_be_bytes()))]),
            expression("counter", &[]),
            expression("immediate", &[(1, number(0)), (2, jump("KUBE-SVC-A"))]),
        ];
        let rule = parse_rule(Family::V4.into(), &list.concat());
        let destination = Addr::from("10.96.0.10".parse::<std::net::IpAddr>().expect("an address"));
        let actions = vec![RuleAction::Jump("KUBE-SVC-A".to_owned())];
        assert_eq!(
            rule,
            Rule {
                destination: Some(destination),
                proto: Some(6),
                ports: vec![80..=80],
                is_conditional: true,
                actions,
                ..Rule::default()
            }
        );
        for length in 0..list.concat().len() {
            let _no_panic = parse_rule(Family::V4.into(), list.concat().get(..length).expect("shorter"));
        }
    }

    #[test]
    fn conditions_of_a_rule_are_known_by_kind() {
        let accept = expression("immediate", &[(1, number(0)), (2, jump("a"))]);
        let check = |list: &[Vec<u8>], expected: (bool, bool)| {
            let rule = parse_rule(TableFamily::Inet, &[list.concat(), accept.clone()].concat());
            assert_eq!((rule.is_conditional, rule.skips_new), expected);
        };
        let meta = |key| expression("meta", &[(1, number(1)), (2, number(key))]);
        let compare = |octets: &[u8]| expression("cmp", &[(1, number(1)), (2, number(0)), (3, value(octets))]);
        check(&[expression("counter", &[])], (false, false));
        check(&[meta(6), compare(b"lo\0\0\0\0\0\0\0\0\0\0\0\0\0\0")], (true, true));
        check(&[meta(6), compare(b"eth0\0\0\0\0\0\0\0\0\0\0\0\0")], (true, false));
        let state = expression("ct", &[(1, number(1)), (2, number(0))]);
        check(&[state, expression("lookup", &[(1, b"__set0\0".to_vec()), (2, number(1))])], (true, true));
        let mark = expression("ct", &[(1, number(1)), (2, number(3))]);
        check(&[mark, compare(&[1, 0, 0, 0])], (true, false));
    }

    #[test]
    fn dnat_takes_address_and_port_from_the_registers() {
        let list = [
            expression("immediate", &[(1, number(1)), (2, value(&[10, 0, 0, 1]))]),
            expression("immediate", &[(1, number(2)), (2, value(&8080_u16.to_be_bytes()))]),
            expression("nat", &[(1, number(1)), (2, number(2)), (3, number(1)), (5, number(2))]),
        ];
        let endpoint = AddrPort::from("10.0.0.1:8080".parse::<std::net::SocketAddr>().expect("an endpoint"));
        assert_eq!(parse_rule(Family::V4.into(), &list.concat()).actions, [RuleAction::Dnat(endpoint)]);
        let masked = [
            expression("payload", &[(1, number(1)), (2, number(1)), (3, number(16)), (4, number(4))]),
            expression("bitwise", &[(1, number(1)), (2, number(1))]),
            expression("cmp", &[(1, number(1)), (2, number(0)), (3, value(&[10, 96, 0, 0]))]),
            expression("lookup", &[(1, b"__map3\0".to_vec()), (2, number(1)), (3, number(0))]),
        ];
        let rule = parse_rule(Family::V4.into(), &masked.concat());
        assert_eq!((rule.destination, rule.actions), (None, vec![RuleAction::MapLookup("__map3".to_owned())]));
    }

    #[test]
    fn elements_of_a_map_jump_to_chains_or_hold_endpoints() {
        let with = |data: &[u8]| {
            let mut nested = Vec::new();
            put_nested(&mut nested, 1, &value(&[1, 0, 0, 0]));
            put_nested(&mut nested, 2, data);
            parse_element(&nested).map(|(_, action)| action)
        };
        assert_eq!(with(&jump("a")), Some(RuleAction::Jump("a".to_owned())));
        let endpoint = AddrPort::from("10.0.0.1:8080".parse::<std::net::SocketAddr>().expect("an endpoint"));
        assert_eq!(with(&value(&[10, 0, 0, 1, 0x1f, 0x90, 0, 0])), Some(RuleAction::Dnat(endpoint)));
        for odd in [&[10, 0, 0, 1][..], &[1], &[]] {
            assert_eq!(with(&value(odd)), None);
        }
    }
}
