//! The packet functions against packets and checksums of another's making (etherparse): invariant I11.

mod bytes;
mod errors;
mod made;
mod parsing;
mod replies;
mod rewriting;

use super::{Packet, Skb, icmp_error, parse_network, parse_quoted, parse_transport};

/// Reads a packet, as the programs do.
fn parse(skb: &impl Skb, l3: u32, v6: bool) -> Option<Packet> {
    let mut packet = Packet::EMPTY;
    parse_network(skb, l3, v6, &mut packet)?;
    parse_transport(skb, &mut packet)?;
    Some(packet)
}

/// Reads the packet that an ICMP error is about.
fn parse_icmp_error(skb: &impl Skb, packet: &Packet) -> Option<Packet> {
    let mut about = Packet::EMPTY;
    parse_network(skb, icmp_error(skb, packet)?, packet.v6, &mut about)?;
    parse_quoted(skb, &mut about)?;
    Some(about)
}
