//! A netfilter rule, as far as kube-proxy's rules are understood: its matches and its actions. Pure.

use std::ops::RangeInclusive;

use lb_common::{Addr, AddrPort};

/// A rule of nf_tables or of legacy iptables.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Rule {
    /// Matched destination address; None if the rule does not match one single address.
    pub destination: Option<Addr>,
    /// Matched IP protocol number.
    pub proto: Option<u8>,
    /// Matched ranges of destination ports; empty if the rule does not match ports.
    pub ports: Vec<RangeInclusive<u16>>,
    /// Names of sets in which the rule looks up the destination port.
    pub port_sets: Vec<String>,
    /// True if the rule matches anything at all, but for a comment: else it is for all packets.
    pub is_conditional: bool,
    /// True if the rule matches the state or status of a connection, or the loopback device: it is not for new
    /// connections of other hosts.
    pub skips_new: bool,
    /// Text of a `comment` match.
    pub comment: Option<String>,
    /// Actions, in order.
    pub actions: Vec<RuleAction>,
}

/// Action of a rule, or of an element of a verdict map.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum RuleAction {
    /// Jump or goto to a chain of this name.
    Jump(String),
    /// Lookup in a map of this name.
    MapLookup(String),
    /// Destination NAT to an endpoint.
    Dnat(AddrPort),
    /// Drop or reject.
    Drop,
    /// Accept: the packet leaves the base chain.
    Accept,
}

impl Rule {
    /// Returns the matched destination port; None if the rule does not match one single port.
    #[must_use]
    pub fn port(&self) -> Option<u16> {
        match self.ports.as_slice() {
            [range] if range.start() == range.end() => Some(*range.start()),
            _ => None,
        }
    }

    /// Lists the chains to which the rule jumps.
    pub fn chains(&self) -> impl Iterator<Item = &str> {
        self.actions
            .iter()
            .filter_map(|action| if let RuleAction::Jump(name) = action { Some(name.as_str()) } else { None })
    }
}

/// Parses an address of 4 or 16 octets.
#[must_use]
pub fn address(octets: &[u8]) -> Option<Addr> {
    match octets.len() {
        4 => Some(Addr::from_v4_word(u32::from_ne_bytes(*octets.first_chunk()?))),
        16 => Some(Addr { octets: *octets.first_chunk()? }),
        _ => None,
    }
}
