//! A rule of netfilter, as far as kube-proxy's are understood: whom it is for, and where it leads. Pure.
//!
//! Expressions of nf_tables (include/uapi/linux/netfilter/nf_tables.h), in which `iptables-nft` wraps matches and targets of
//! xtables; those stand in `xt`.

use std::collections::BTreeMap;

use lb_common::Addr;

use super::xt;
use crate::netlink::wire::{attributes, be16, be32, text};
use lb_common::{AddrPort, Family};

/// A rule.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Rule {
    /// The destination that it is for; none: any, or one that is not told by an address.
    pub to: Option<Addr>,
    /// IP protocol number.
    pub proto: Option<u8>,
    /// The destination port.
    pub port: Option<u16>,
    /// What somebody wrote about it.
    pub comment: Option<String>,
    /// Where it leads.
    pub goes: Vec<Goes>,
}

/// Where a rule, or an element of a verdict map, leads.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Goes {
    /// On to a chain.
    Chain(String),
    /// To what a map says.
    Map(String),
    /// To an endpoint.
    Endpoint(AddrPort),
    /// Nowhere: it is dropped or rejected.
    Nowhere,
}

// Attributes. NFTA_LIST_ELEM, NFTA_EXPR_
const ELEMENT: u16 = 1;
const NAME: u16 = 1;
const DATA: u16 = 2;
/// NFTA_DATA_VALUE, NFTA_DATA_VERDICT
const VALUE: u16 = 1;
const VERDICT: u16 = 2;

/// What the registers hold: a part of the packet, or a constant.
#[derive(Default)]
struct Registers {
    loaded: BTreeMap<u32, Field>,
    constant: BTreeMap<u32, Vec<u8>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Field {
    To,
    Proto,
    Port,
}

impl Rule {
    /// By its list of expressions.
    pub fn of_expressions(family: Family, list: &[u8]) -> Self {
        let (mut rule, mut registers) = (Self::default(), Registers::default());
        for (_, element) in attributes(list).filter(|(kind, _)| *kind == ELEMENT) {
            let (name, data) = (find(element, NAME).map(text), find(element, DATA).unwrap_or_default());
            rule.take(family, name.as_deref().unwrap_or_default(), data, &mut registers);
        }
        rule
    }

    /// The chains to which it leads.
    pub fn chains(&self) -> impl Iterator<Item = &str> {
        self.goes.iter().filter_map(|goes| if let Goes::Chain(name) = goes { Some(name.as_str()) } else { None })
    }

    fn take(&mut self, family: Family, name: &str, data: &[u8], registers: &mut Registers) {
        let number = |kind| find(data, kind).and_then(|value| be32(value, 0));
        match name {
            // NFTA_META_DREG, NFTA_META_KEY
            "meta" => {
                if let (Some(register), Some(16)) = (number(1), number(2)) {
                    registers.loaded.insert(register, Field::Proto);
                }
            }
            // NFTA_PAYLOAD_DREG, _BASE, _OFFSET, _LEN
            "payload" => {
                let field = match (family, number(2), number(3), number(4)) {
                    (Family::V4, Some(1), Some(16), Some(4)) | (Family::V6, Some(1), Some(24), Some(16)) => Field::To,
                    (_, Some(2), Some(2), Some(2)) => Field::Port,
                    _ => return,
                };
                registers.loaded.extend(number(1).map(|register| (register, field)));
            }
            // Of a part of what was loaded nothing is known. NFTA_BITWISE_SREG
            "bitwise" => {
                registers.loaded.retain(|register, _| Some(*register) != number(1));
            }
            // NFTA_CMP_SREG, _OP (NFT_CMP_EQ), _DATA
            "cmp" => {
                let field = number(1).and_then(|register| registers.loaded.remove(&register));
                let value = find(data, 3).and_then(|data| find(data, VALUE)).unwrap_or_default();
                match field {
                    Some(Field::To) if number(2) == Some(0) => self.to = address(value),
                    Some(Field::Proto) if number(2) == Some(0) => self.proto = value.first().copied(),
                    Some(Field::Port) if number(2) == Some(0) => self.port = be16(value, 0),
                    _ => {}
                }
            }
            // NFTA_IMMEDIATE_DREG, _DATA
            "immediate" => {
                let data = find(data, 2).unwrap_or_default();
                self.goes.extend(find(data, VERDICT).and_then(verdict));
                let value = find(data, VALUE).map(<[u8]>::to_vec);
                registers.constant.extend(number(1).zip(value));
            }
            // NFTA_LOOKUP_SET; _DREG: of a verdict, or of the address and port that a `nat` takes
            "lookup" if number(3).is_some() => self.goes.extend(find(data, 1).map(|set| Goes::Map(text(set)))),
            // NFTA_NAT_TYPE (NFT_NAT_DNAT), _REG_ADDR_MIN, _REG_PROTO_MIN
            "nat" if number(1) == Some(1) => {
                let constant = |kind| number(kind).and_then(|register| registers.constant.get(&register));
                let addr = constant(3).map(Vec::as_slice).and_then(address);
                let port = constant(5).and_then(|value| be16(value, 0));
                let endpoint = addr.zip(port).map(|(addr, port)| Goes::Endpoint(AddrPort { addr, port }));
                self.goes.extend(endpoint);
            }
            "reject" => self.goes.push(Goes::Nowhere),
            // NFTA_MATCH_NAME, _REV, _INFO; the same of targets
            "match" | "target" => {
                let of = find(data, 1).map(text).unwrap_or_default();
                let revision = number(2).and_then(|revision| u8::try_from(revision).ok()).unwrap_or(0);
                let info = find(data, 3).unwrap_or_default();
                if name == "match" {
                    xt::matches(&of, info, self);
                } else {
                    self.goes.extend(xt::target(&of, revision, info));
                }
            }
            _ => {}
        }
    }
}

/// The first attribute of a kind.
pub fn find(nest: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(nest).find(|(of, _)| *of == kind).map(|(_, value)| value)
}

/// An address of either length.
pub fn address(octets: &[u8]) -> Option<Addr> {
    match octets.len() {
        4 => Some(Addr::from_v4_word(u32::from_ne_bytes(*octets.first_chunk()?))),
        16 => Some(Addr { octets: *octets.first_chunk()? }),
        _ => None,
    }
}

/// Where a verdict leads: NFTA_VERDICT_CODE (NFT_JUMP, NFT_GOTO, NF_DROP), _CHAIN.
pub fn verdict(nest: &[u8]) -> Option<Goes> {
    match find(nest, 1).and_then(|code| be32(code, 0))?.cast_signed() {
        -3 | -4 => find(nest, 2).map(|chain| Goes::Chain(text(chain))),
        0 => Some(Goes::Nowhere),
        _ => None,
    }
}

/// An element of a map of nf_tables: its key, and where it leads. NFTA_SET_ELEM_KEY, _DATA
pub fn element(nest: &[u8]) -> Option<(Vec<u8>, Goes)> {
    let key = find(nest, 1).and_then(|key| find(key, VALUE))?;
    let data = find(nest, 2)?;
    let goes = match find(data, VERDICT) {
        Some(nest) => verdict(nest)?,
        // Address and port, each filled up to four octets.
        None => {
            let (addr, port) =
                find(data, VALUE).and_then(|value| value.split_at_checked(value.len().checked_sub(4)?))?;
            Goes::Endpoint(AddrPort { addr: address(addr)?, port: be16(port, 0)? })
        }
    };
    Some((key.to_vec(), goes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        netfilter::nftables::{Expressions, number},
        netlink::wire::{attribute, nest},
    };

    fn expression(name: &str, attributes: &[(u16, Vec<u8>)]) -> Vec<u8> {
        Expressions::default().then(name, attributes).0
    }

    fn value(octets: &[u8]) -> Vec<u8> {
        let mut data = Vec::new();
        attribute(&mut data, VALUE, octets);
        data
    }

    fn jump(chain: &str) -> Vec<u8> {
        let (mut verdict, mut data) = (Vec::new(), Vec::new());
        attribute(&mut verdict, 1, &(-3_i32).to_be_bytes());
        attribute(&mut verdict, 2, format!("{chain}\0").as_bytes());
        nest(&mut data, VERDICT, &verdict);
        data
    }

    #[test]
    fn a_rule_says_whom_it_is_for_and_where_it_leads() {
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
        let rule = Rule::of_expressions(Family::V4, &list.concat());
        let to = Addr::from("10.96.0.10".parse::<std::net::IpAddr>().expect("an address"));
        let goes = vec![Goes::Chain("KUBE-SVC-A".to_owned())];
        assert_eq!(rule, Rule { to: Some(to), proto: Some(6), port: Some(80), comment: None, goes });
        for length in 0..list.concat().len() {
            let _no_panic = Rule::of_expressions(Family::V4, list.concat().get(..length).expect("shorter"));
        }
    }

    #[test]
    fn an_endpoint_is_what_the_registers_hold() {
        let list = [
            expression("immediate", &[(1, number(1)), (2, value(&[10, 0, 0, 1]))]),
            expression("immediate", &[(1, number(2)), (2, value(&8080_u16.to_be_bytes()))]),
            expression("nat", &[(1, number(1)), (2, number(2)), (3, number(1)), (5, number(2))]),
        ];
        let endpoint = AddrPort::from("10.0.0.1:8080".parse::<std::net::SocketAddr>().expect("an endpoint"));
        assert_eq!(Rule::of_expressions(Family::V4, &list.concat()).goes, [Goes::Endpoint(endpoint)]);
        let masked = [
            expression("payload", &[(1, number(1)), (2, number(1)), (3, number(16)), (4, number(4))]),
            expression("bitwise", &[(1, number(1)), (2, number(1))]),
            expression("cmp", &[(1, number(1)), (2, number(0)), (3, value(&[10, 96, 0, 0]))]),
            expression("lookup", &[(1, b"__map3\0".to_vec()), (2, number(1)), (3, number(0))]),
        ];
        let rule = Rule::of_expressions(Family::V4, &masked.concat());
        assert_eq!((rule.to, rule.goes), (None, vec![Goes::Map("__map3".to_owned())]));
    }

    #[test]
    fn a_map_leads_to_chains_or_to_endpoints() {
        let with = |data: &[u8]| {
            let mut nested = Vec::new();
            nest(&mut nested, 1, &value(&[1, 0, 0, 0]));
            nest(&mut nested, 2, data);
            element(&nested).map(|(_, goes)| goes)
        };
        assert_eq!(with(&jump("a")), Some(Goes::Chain("a".to_owned())));
        let endpoint = AddrPort::from("10.0.0.1:8080".parse::<std::net::SocketAddr>().expect("an endpoint"));
        assert_eq!(with(&value(&[10, 0, 0, 1, 0x1f, 0x90, 0, 0])), Some(Goes::Endpoint(endpoint)));
        for odd in [&[10, 0, 0, 1][..], &[1], &[]] {
            assert_eq!(with(&value(odd)), None);
        }
    }
}
