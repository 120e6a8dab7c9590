//! Builds TCP resets and ICMP errors, from the address that the packet was sent to. Without the link header.

use super::{Packet, Skb, number, sum};
use crate::Proto;

/// Octets of a TCP reset over IPv4, with the IP header.
pub const RESET_V4: usize = 40;
/// Octets of a TCP reset over IPv6, with the IP header.
pub const RESET_V6: usize = 60;
/// Octets of an ICMP error over IPv4: quotes an IP header without options and eight octets (RFC 792).
pub const ICMP_V4: usize = 20 + 8 + QUOTE_V4;
/// Octets of an ICMP error over IPv6: quotes an IP header and eight octets.
pub const ICMP_V6: usize = 40 + 8 + QUOTE_V6;

/// Buffer for any reset or error.
pub type Reply = [u8; ICMP_V6];

const QUOTE_V4: usize = 28;
const QUOTE_V6: usize = 48;

/// An ICMP error.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IcmpError {
    /// No endpoint serves the port.
    PortUnreachable,
    /// No host has the destination.
    HostUnreachable,
    /// No route to the destination.
    NoRoute,
    /// The time to live is over.
    TimeExceeded,
    /// The packet exceeds the MTU of the next link.
    TooBig(u16),
}

impl IcmpError {
    /// Type, code and the last four octets of an ICMP header (RFC 792, RFC 1191).
    #[inline(always)]
    const fn v4(self) -> [u8; 6] {
        match self {
            Self::PortUnreachable => [3, 3, 0, 0, 0, 0],
            Self::HostUnreachable => [3, 1, 0, 0, 0, 0],
            Self::NoRoute => [3, 0, 0, 0, 0, 0],
            Self::TimeExceeded => [11, 0, 0, 0, 0, 0],
            Self::TooBig(mtu) => [3, 4, 0, 0, (mtu >> 8) as u8, mtu as u8],
        }
    }

    /// Type, code and the last four octets of an ICMPv6 header (RFC 4443).
    #[inline(always)]
    const fn v6(self) -> [u8; 6] {
        match self {
            Self::PortUnreachable => [1, 4, 0, 0, 0, 0],
            Self::HostUnreachable => [1, 3, 0, 0, 0, 0],
            Self::NoRoute => [1, 0, 0, 0, 0, 0],
            Self::TimeExceeded => [3, 0, 0, 0, 0, 0],
            Self::TooBig(mtu) => [2, 0, 0, 0, (mtu >> 8) as u8, mtu as u8],
        }
    }
}

/// True if a packet must not cause an error or a reset: ICMP, a later fragment, a source that is no single host, or a
/// reset (RFC 1122, 3.2.2; RFC 4443, 2.4e).
#[inline(always)]
#[must_use]
pub fn is_silent(packet: &Packet) -> bool {
    packet.fragment as u8 == super::Fragment::Later as u8
        || packet.proto == number::ICMP
        || packet.proto == number::ICMPV6
        || packet.tuple.src.is_unspecified()
        || packet.seen & crate::flow::Seen::RST != 0
}

/// Checksum over `from..to`, an even number of octets, unfolded.
#[inline(always)]
fn sum_of(bytes: &[u8], from: usize, to: usize) -> u32 {
    let mut total = 0;
    let mut at = from;
    while at + 1 < to {
        total = sum::add(total, u16::from_ne_bytes([bytes[at], bytes[at + 1]]) as u32);
        at += 2;
    }
    total
}

#[inline(always)]
fn put<const M: usize>(bytes: &mut Reply, at: usize, octets: &[u8; M]) {
    let mut i = 0;
    while i < M {
        bytes[at + i] = octets[i];
        i += 1;
    }
}

/// Writes an IPv4 header to the sender.
#[inline(always)]
fn back_v4(bytes: &mut Reply, packet: &Packet, proto: u8, len: usize) {
    put(bytes, 0, &[0x45, 0, 0, len as u8, 0, 0, 0x40, 0, 64, proto, 0, 0]);
    put(bytes, 12, &packet.tuple.dst.words()[3].to_ne_bytes());
    put(bytes, 16, &packet.tuple.src.words()[3].to_ne_bytes());
    let total = sum_of(bytes, 0, 20);
    put(bytes, 10, &sum::patched([0xff, 0xff], total));
}

/// Writes an IPv6 header to the sender.
#[inline(always)]
fn back_v6(bytes: &mut Reply, packet: &Packet, proto: u8, len: usize) {
    put(bytes, 0, &[0x60, 0, 0, 0, 0, (len - 40) as u8, proto, 64]);
    put(bytes, 8, &packet.tuple.dst.octets);
    put(bytes, 24, &packet.tuple.src.octets);
}

/// The sum of the pseudo header for `len` octets.
#[inline(always)]
fn pseudo(packet: &Packet, proto: u8, len: usize) -> u32 {
    let (src, dst) = (packet.tuple.src.words(), packet.tuple.dst.words());
    let tail = sum::add(u32::from_ne_bytes([0, 0, 0, len as u8]), u32::from_ne_bytes([0, 0, 0, proto]));
    let last = sum::add(src[3], dst[3]);
    if !packet.v6 {
        return sum::add(tail, last);
    }
    let first = sum::add(sum::add(src[0], dst[0]), sum::add(src[1], dst[1]));
    sum::add(sum::add(tail, last), sum::add(first, sum::add(src[2], dst[2])))
}

/// Writes a TCP reset at `at` (RFC 9293, 3.10.7.1).
#[inline(always)]
fn put_reset(skb: &impl Skb, packet: &Packet, bytes: &mut Reply, at: usize) -> Option<()> {
    let header: [u8; 20] = skb.load(packet.l4)?;
    let flags = header[13];
    put(bytes, at, &[header[2], header[3], header[0], header[1]]);
    if flags & 0x10 != 0 {
        put(bytes, at + 4, &[header[8], header[9], header[10], header[11], 0, 0, 0, 0]);
        put(bytes, at + 12, &[0x50, 0x04, 0, 0, 0, 0, 0, 0]);
    } else {
        let payload = (packet.l3 + packet.len).wrapping_sub(packet.l4 + u32::from(header[12] >> 4) * 4);
        let len = payload.wrapping_add(u32::from(flags & 1)).wrapping_add(u32::from((flags >> 1) & 1));
        let seq = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
        let ack = seq.wrapping_add(len).to_be_bytes();
        put(bytes, at + 4, &[0, 0, 0, 0, ack[0], ack[1], ack[2], ack[3]]);
        put(bytes, at + 12, &[0x50, 0x14, 0, 0, 0, 0, 0, 0]);
    }
    let total = sum::add(pseudo(packet, Proto::Tcp as u8, 20), sum_of(bytes, at, at + 20));
    put(bytes, at + 16, &sum::patched([0xff, 0xff], total));
    Some(())
}

/// Writes a reset for a TCP segment over IPv4: [`RESET_V4`] octets. `None` if the segment cannot be read.
#[inline(always)]
pub fn reset_v4(skb: &impl Skb, packet: &Packet, bytes: &mut Reply) -> Option<()> {
    back_v4(bytes, packet, Proto::Tcp as u8, RESET_V4);
    put_reset(skb, packet, bytes, 20)
}

/// Writes a reset for a TCP segment over IPv6: [`RESET_V6`] octets. `None` if the segment cannot be read.
#[inline(always)]
pub fn reset_v6(skb: &impl Skb, packet: &Packet, bytes: &mut Reply) -> Option<()> {
    back_v6(bytes, packet, Proto::Tcp as u8, RESET_V6);
    put_reset(skb, packet, bytes, 40)
}

/// Writes an ICMP error for a packet over IPv4: [`ICMP_V4`] octets. `None` for a packet with IP options, whose ports
/// would not fit into the quote.
#[inline(always)]
pub fn icmp_v4(skb: &impl Skb, packet: &Packet, error: IcmpError, bytes: &mut Reply) -> Option<()> {
    if packet.l4 != packet.l3 + 20 {
        return None;
    }
    let header = error.v4();
    back_v4(bytes, packet, number::ICMP, ICMP_V4);
    put(bytes, 20, &[header[0], header[1], 0, 0, header[2], header[3], header[4], header[5]]);
    skb.load_into::<QUOTE_V4>(packet.l3, bytes.get_mut(28..28 + QUOTE_V4)?.first_chunk_mut()?)?;
    let total = sum_of(bytes, 20, ICMP_V4);
    put(bytes, 22, &sum::patched([0xff, 0xff], total));
    Some(())
}

/// Writes an ICMP error for a packet over IPv6: [`ICMP_V6`] octets. `None` if the packet cannot be read.
#[inline(always)]
pub fn icmp_v6(skb: &impl Skb, packet: &Packet, error: IcmpError, bytes: &mut Reply) -> Option<()> {
    let header = error.v6();
    back_v6(bytes, packet, number::ICMPV6, ICMP_V6);
    put(bytes, 40, &[header[0], header[1], 0, 0, header[2], header[3], header[4], header[5]]);
    skb.load_into::<QUOTE_V6>(packet.l3, bytes.get_mut(48..48 + QUOTE_V6)?.first_chunk_mut()?)?;
    let total = sum::add(pseudo(packet, number::ICMPV6, ICMP_V6 - 40), sum_of(bytes, 40, ICMP_V6));
    put(bytes, 42, &sum::patched([0xff, 0xff], total));
    Some(())
}
