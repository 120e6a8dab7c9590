//! Tests of the packet functions against packets and checksums of etherparse: invariant I11.

mod built;
mod bytes;
mod errors;
mod neighbours;
mod parsing;
mod replies;
mod rewriting;

use super::{Fragment, Packet, Skb, icmp_error, parse_network, parse_quoted, parse_transport};
use crate::{Addr, Family, Tuple};

/// A packet before it is parsed.
const EMPTY: Packet = Packet {
    tuple: Tuple { src: Addr { octets: [0; 16] }, dst: Addr { octets: [0; 16] }, src_port: 0, dst_port: 0 },
    l3: 0,
    l4: 0,
    id: 0,
    len: 0,
    headers: 0,
    fragment: Fragment::Whole,
    proto: 0,
    ttl: 0,
    seen: 0,
    serial: 0,
    begins: false,
    may_fragment: false,
    v6: false,
};

/// Parses a packet, as the programs do.
fn parse(skb: &impl Skb, l3: u32, v6: bool) -> Option<Packet> {
    let mut packet = EMPTY;
    parse_network(skb, l3, family(v6), &mut packet)?;
    parse_transport(skb, &mut packet)?;
    Some(packet)
}

const fn family(v6: bool) -> Family {
    if v6 { Family::V6 } else { Family::V4 }
}

/// Parses the packet quoted in an ICMP error.
fn parse_icmp_error(skb: &impl Skb, packet: &Packet) -> Option<Packet> {
    let mut quoted = EMPTY;
    parse_network(skb, icmp_error(skb, packet)?, family(packet.v6), &mut quoted)?;
    parse_quoted(skb, &mut quoted)?;
    Some(quoted)
}
