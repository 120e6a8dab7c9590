//! The packet functions against packets and checksums of another's making (etherparse): invariant I11.

mod bytes;
mod errors;
mod made;
mod parsing;
mod replies;
mod rewriting;

use super::{Fragment, Packet, Skb, icmp_error, parse_network, parse_quoted, parse_transport};
use crate::{Addr, Tuple};

/// One of which nothing has been read.
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
    begins: false,
    v6: false,
};

/// Reads a packet, as the programs do.
fn parse(skb: &impl Skb, l3: u32, v6: bool) -> Option<Packet> {
    let mut packet = EMPTY;
    parse_network(skb, l3, v6, &mut packet)?;
    parse_transport(skb, &mut packet)?;
    Some(packet)
}

/// Reads the packet that an ICMP error is about.
fn parse_icmp_error(skb: &impl Skb, packet: &Packet) -> Option<Packet> {
    let mut about = EMPTY;
    parse_network(skb, icmp_error(skb, packet)?, packet.v6, &mut about)?;
    parse_quoted(skb, &mut about)?;
    Some(about)
}
