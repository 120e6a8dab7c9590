//! Parses the headers of a packet.

use super::{Skb, number};
use crate::{Addr, Family, Proto, Tuple, flow::Seen};

/// Most IPv6 extension headers of a packet (RFC 8200, 4.1: each but one occurs at most once).
const MAX_EXTENSIONS: usize = 6;

/// The part of a datagram in a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fragment {
    /// The whole datagram.
    Whole,
    /// The first fragment, with the ports.
    First,
    /// A later fragment, without ports.
    Later,
}

/// The headers of a packet of TCP, UDP, SCTP or ICMP. Offsets count from the start of the packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Packet {
    /// Addresses and ports; ports are 0 for ICMP and for later fragments.
    pub tuple: Tuple,
    /// Offset of the IP header.
    pub l3: u32,
    /// Offset of the transport header.
    pub l4: u32,
    /// Identification, shared by the fragments of a datagram, in memory order.
    pub id: u32,
    /// Octets from the IP header on, according to that header.
    pub len: u32,
    /// Octets of all headers, from the IP header on.
    pub headers: u32,
    /// The part of a datagram in the packet.
    pub fragment: Fragment,
    /// IP protocol number.
    pub proto: u8,
    /// Time to live, or hop limit.
    pub ttl: u8,
    /// Events of the flow: bits of [`Seen`].
    pub seen: u8,
    /// Number that a reset from the same sender must have to count: see [`crate::flow::Serial`]. 0 for UDP.
    pub serial: u32,
    /// True if the packet begins a flow: a SYN without ACK, or an INIT; never for UDP.
    pub begins: bool,
    /// True for IPv6.
    pub v6: bool,
    /// True if routers may fragment the packet: IPv4 without DF.
    pub may_fragment: bool,
}

impl Packet {
    /// True if the packet contains the transport header.
    #[inline(always)]
    #[must_use]
    pub(crate) const fn has_ports(&self) -> bool {
        !matches!(self.fragment, Fragment::Later)
    }
}

/// Parses the IP header at `l3` and its extension headers into `packet`, since the stack of the programs is short.
/// `None` for packets of no Service; `packet` is undefined then.
#[inline(always)]
pub fn parse_network(skb: &impl Skb, l3: u32, family: Family, packet: &mut Packet) -> Option<()> {
    match family {
        Family::V4 => parse_v4(skb, l3, packet),
        Family::V6 => parse_v6(skb, l3, packet),
    }
}

#[inline(always)]
fn parse_v4(skb: &impl Skb, l3: u32, packet: &mut Packet) -> Option<()> {
    let [first, second, third, src, dst]: [u32; 5] = skb.words(l3)?;
    let [version, _, len_high, len_low] = first.to_ne_bytes();
    let length = u32::from(version & 0xf) * 4;
    if version >> 4 != 4 || length < 20 {
        return None;
    }
    let [id_high, id_low, part_high, part_low] = second.to_ne_bytes();
    let [ttl, proto, ..] = third.to_ne_bytes();
    *packet = Packet {
        tuple: Tuple { src: Addr::from_v4_word(src), dst: Addr::from_v4_word(dst), src_port: 0, dst_port: 0 },
        l3,
        l4: l3 + length,
        id: u32::from(u16::from_ne_bytes([id_high, id_low])),
        len: u32::from(u16::from_be_bytes([len_high, len_low])),
        headers: 0,
        fragment: fragment(u16::from_be_bytes([part_high, part_low]) & 0x1fff, part_high & 0x20 != 0),
        proto,
        ttl,
        seen: Seen::ANY,
        serial: 0,
        begins: false,
        v6: false,
        may_fragment: part_high & 0x40 == 0,
    };
    Some(())
}

#[inline(always)]
const fn fragment(offset: u16, more: bool) -> Fragment {
    if offset != 0 {
        Fragment::Later
    } else if more {
        Fragment::First
    } else {
        Fragment::Whole
    }
}

#[inline(always)]
fn parse_v6(skb: &impl Skb, l3: u32, packet: &mut Packet) -> Option<()> {
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const FRAGMENT: u8 = 44;
    const AUTHENTICATION: u8 = 51;
    const DESTINATION: u8 = 60;
    let [first, second, s0, s1, s2, s3, d0, d1, d2, d3]: [u32; 10] = skb.words(l3)?;
    if first.to_ne_bytes()[0] >> 4 != 6 {
        return None;
    }
    let [len_high, len_low, first_next, ttl] = second.to_ne_bytes();
    let (src, dst) = (Addr::from_words([s0, s1, s2, s3]), Addr::from_words([d0, d1, d2, d3]));
    // A mapped address is invalid on the wire (RFC 4942, 2.2), and would be taken for IPv4.
    if src.is_v4() || dst.is_v4() {
        return None;
    }
    *packet = Packet {
        tuple: Tuple { src, dst, src_port: 0, dst_port: 0 },
        l3,
        l4: 0,
        id: 0,
        len: 40 + u32::from(u16::from_be_bytes([len_high, len_low])),
        headers: 0,
        fragment: Fragment::Whole,
        proto: 0,
        ttl,
        seen: Seen::ANY,
        serial: 0,
        begins: false,
        v6: true,
        may_fragment: false,
    };
    let (mut next, mut at) = (first_next, l3 + 40);
    for _ in 0..MAX_EXTENSIONS {
        let [first, second]: [u32; 2] = match next {
            HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION => skb.words(at)?,
            _ => break,
        };
        let extension = first.to_ne_bytes();
        let length = match next {
            FRAGMENT => {
                let offset = u16::from_be_bytes([extension[2], extension[3]]);
                packet.fragment = fragment(offset >> 3, offset & 1 != 0);
                packet.id = second;
                8
            }
            AUTHENTICATION => (u32::from(extension[1]) + 2) * 4,
            // The packet has another final destination, which is in the checksum (RFC 8200, 8.1).
            ROUTING if extension[3] != 0 => return None,
            _ => (u32::from(extension[1]) + 1) * 8,
        };
        next = extension[0];
        at += length;
        // Only the first fragment has the headers that follow.
        if packet.fragment as u8 == Fragment::Later as u8 {
            break;
        }
    }
    packet.proto = next;
    packet.l4 = at;
    Some(())
}

const TCP: u8 = Proto::Tcp as u8;
const UDP: u8 = Proto::Udp as u8;
const SCTP: u8 = Proto::Sctp as u8;

/// Parses the transport header, except in a later fragment. `None` for packets of no Service.
#[inline(always)]
pub fn parse_transport(skb: &impl Skb, packet: &mut Packet) -> Option<()> {
    if !packet.has_ports() {
        return Some(());
    }
    let ports: u32;
    match packet.proto {
        TCP => {
            let [first, sequence, _, fourth]: [u32; 4] = skb.words(packet.l4)?;
            ports = first;
            let [length, flags, ..] = fourth.to_ne_bytes();
            packet.seen |= ((flags & 1 != 0) as u8 * Seen::FIN) | ((flags & 4 != 0) as u8 * Seen::RST);
            packet.begins = is_first_of_tcp(flags);
            packet.headers = packet.l4 - packet.l3 + u32::from(length >> 4) * 4;
            packet.serial = u32::from_be(sequence);
            if flags & 4 == 0 {
                // The length is 0 in a segment above 64 KiB (BIG TCP): the next segment tells the end.
                let taken =
                    packet.len.saturating_sub(packet.headers) + u32::from(flags & 1) + u32::from(flags >> 1 & 1);
                packet.serial = packet.serial.wrapping_add(taken);
            }
        }
        UDP => {
            [ports] = skb.words(packet.l4)?;
            packet.headers = packet.l4 - packet.l3 + 8;
        }
        SCTP => {
            let [first, tag, _, chunk]: [u32; 4] = skb.words(packet.l4)?;
            ports = first;
            packet.serial = u32::from_be(tag);
            match chunk.to_ne_bytes()[0] {
                // INIT
                1 => packet.begins = true,
                // SHUTDOWN, SHUTDOWN ACK
                7 | 8 => packet.seen |= Seen::FIN,
                // ABORT, SHUTDOWN COMPLETE
                6 | 14 => packet.seen |= Seen::RST,
                _ => {}
            }
        }
        number::ICMP if !packet.v6 => ports = 0,
        number::ICMPV6 if packet.v6 => ports = 0,
        _ => return None,
    }
    put_ports(packet, ports);
    Some(())
}

/// True for the flags of a SYN without ACK.
#[inline(always)]
pub(super) const fn is_first_of_tcp(flags: u8) -> bool {
    flags & 0x12 == 2
}

/// Ports are the first word of each transport header that has them.
#[inline(always)]
const fn put_ports(packet: &mut Packet, word: u32) {
    let [src_high, src_low, dst_high, dst_low] = word.to_ne_bytes();
    packet.tuple.src_port = u16::from_be_bytes([src_high, src_low]);
    packet.tuple.dst_port = u16::from_be_bytes([dst_high, dst_low]);
}

/// Offset of the packet quoted in an ICMP error; `None` if the packet is no ICMP error (RFC 792, RFC 4443).
#[inline(always)]
pub fn icmp_error(skb: &impl Skb, packet: &Packet) -> Option<u32> {
    if !packet.has_ports() {
        // A later fragment of an error, or of any other ICMP packet.
        return None;
    }
    let [first, _]: [u32; 2] = skb.words(packet.l4)?;
    let kind = first.to_ne_bytes()[0];
    let is_error = if packet.v6 {
        // Destination unreachable, packet too big, time exceeded, parameter problem.
        matches!(kind, 1..=4)
    } else {
        // Destination unreachable, source quench, time exceeded, parameter problem.
        matches!(kind, 3 | 4 | 11 | 12)
    };
    if is_error { Some(packet.l4 + 8) } else { None }
}

/// Parses the ports of a packet quoted in an ICMP error, which need not have more than eight octets of its transport
/// header (RFC 792).
#[inline(always)]
pub fn parse_quoted(skb: &impl Skb, packet: &mut Packet) -> Option<()> {
    if !packet.has_ports() || !matches!(packet.proto, TCP | UDP | SCTP) {
        return None;
    }
    let [ports] = skb.words(packet.l4)?;
    put_ports(packet, ports);
    Some(())
}
