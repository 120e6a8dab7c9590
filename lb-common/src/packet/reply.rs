//! What is answered to a packet that goes nowhere, from the address that it was sent to. From the IP header on.

use super::{Packet, Skb, number, sum};
use crate::Proto;

/// Octets of a TCP reset over IPv4.
pub const RESET_V4: usize = 40;
/// The same over IPv6.
pub const RESET_V6: usize = 60;
/// Octets of an error over IPv4: it quotes an IP header without options and eight octets (RFC 792).
pub const ICMP_V4: usize = 20 + 8 + QUOTE_V4;
/// The same over IPv6.
pub const ICMP_V6: usize = 40 + 8 + QUOTE_V6;

/// Room for each of them.
pub type Answer = [u8; ICMP_V6];

const QUOTE_V4: usize = 28;
const QUOTE_V6: usize = 48;

/// Why a packet goes nowhere.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trouble {
    /// Nobody serves the port.
    PortUnreachable,
    /// There is no route.
    NoRoute,
    /// It has made too many hops.
    TimeExceeded,
    /// It is longer than what the next link carries, which is so many octets.
    TooBig(u16),
}

impl Trouble {
    /// Type, code and the last four octets of an ICMP header (RFC 792, RFC 1191).
    #[inline(always)]
    const fn v4(self) -> [u8; 6] {
        match self {
            Self::PortUnreachable => [3, 3, 0, 0, 0, 0],
            Self::NoRoute => [3, 0, 0, 0, 0, 0],
            Self::TimeExceeded => [11, 0, 0, 0, 0, 0],
            Self::TooBig(mtu) => [3, 4, 0, 0, (mtu >> 8) as u8, mtu as u8],
        }
    }

    /// The same for IPv6 (RFC 4443).
    #[inline(always)]
    const fn v6(self) -> [u8; 6] {
        match self {
            Self::PortUnreachable => [1, 4, 0, 0, 0, 0],
            Self::NoRoute => [1, 0, 0, 0, 0, 0],
            Self::TimeExceeded => [3, 0, 0, 0, 0, 0],
            Self::TooBig(mtu) => [2, 0, 0, 0, (mtu >> 8) as u8, mtu as u8],
        }
    }
}

/// Whether a packet is never answered by an error (RFC 1122, 3.2.2; RFC 4443, 2.4e): another error, a fragment, or one that
/// was not sent to a single host.
#[inline(always)]
#[must_use]
pub fn is_silent(packet: &Packet) -> bool {
    packet.fragment as u8 == super::Fragment::Later as u8
        || packet.proto == number::ICMP
        || packet.proto == number::ICMPV6
        || packet.tuple.src.is_unspecified()
        || packet.seen & crate::flow::Seen::RST != 0
}

/// The sum of an even number of octets, as words of 16 bits.
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
fn put<const M: usize>(bytes: &mut Answer, at: usize, what: &[u8; M]) {
    let mut i = 0;
    while i < M {
        bytes[at + i] = what[i];
        i += 1;
    }
}

/// An IPv4 header that leads back to the sender.
#[inline(always)]
fn back_v4(bytes: &mut Answer, packet: &Packet, proto: u8, len: usize) {
    put(bytes, 0, &[0x45, 0, 0, len as u8, 0, 0, 0x40, 0, 64, proto, 0, 0]);
    put(bytes, 12, &packet.tuple.dst.words()[3].to_ne_bytes());
    put(bytes, 16, &packet.tuple.src.words()[3].to_ne_bytes());
    let total = sum_of(bytes, 0, 20);
    put(bytes, 10, &sum::patched([0xff, 0xff], total));
}

/// An IPv6 header that leads back to the sender.
#[inline(always)]
fn back_v6(bytes: &mut Answer, packet: &Packet, proto: u8, len: usize) {
    put(bytes, 0, &[0x60, 0, 0, 0, 0, (len - 40) as u8, proto, 64]);
    put(bytes, 8, &packet.tuple.dst.octets);
    put(bytes, 24, &packet.tuple.src.octets);
}

/// The pseudo header's share of a checksum over `len` octets.
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

/// Writes a reset behind the IP header (RFC 9293, 3.10.7.1).
#[inline(always)]
fn put_reset(skb: &impl Skb, packet: &Packet, bytes: &mut Answer, at: usize) -> Option<()> {
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

/// Writes a reset for a TCP segment over IPv4: [`RESET_V4`] octets.
#[inline(always)]
pub fn reset_v4(skb: &impl Skb, packet: &Packet, bytes: &mut Answer) -> Option<()> {
    back_v4(bytes, packet, Proto::Tcp as u8, RESET_V4);
    put_reset(skb, packet, bytes, 20)
}

/// Writes a reset for a TCP segment over IPv6: [`RESET_V6`] octets.
#[inline(always)]
pub fn reset_v6(skb: &impl Skb, packet: &Packet, bytes: &mut Answer) -> Option<()> {
    back_v6(bytes, packet, Proto::Tcp as u8, RESET_V6);
    put_reset(skb, packet, bytes, 40)
}

/// Writes an error for a packet over IPv4: [`ICMP_V4`] octets. None for a packet with options, whose ports such a short
/// quote would not show.
#[inline(always)]
pub fn icmp_v4(skb: &impl Skb, packet: &Packet, trouble: Trouble, bytes: &mut Answer) -> Option<()> {
    if packet.l4 != packet.l3 + 20 {
        return None;
    }
    let header = trouble.v4();
    back_v4(bytes, packet, number::ICMP, ICMP_V4);
    put(bytes, 20, &[header[0], header[1], 0, 0, header[2], header[3], header[4], header[5]]);
    skb.load_into::<QUOTE_V4>(packet.l3, bytes.get_mut(28..28 + QUOTE_V4)?.first_chunk_mut()?)?;
    let total = sum_of(bytes, 20, ICMP_V4);
    put(bytes, 22, &sum::patched([0xff, 0xff], total));
    Some(())
}

/// Writes an error for a packet over IPv6: [`ICMP_V6`] octets.
#[inline(always)]
pub fn icmp_v6(skb: &impl Skb, packet: &Packet, trouble: Trouble, bytes: &mut Answer) -> Option<()> {
    let header = trouble.v6();
    back_v6(bytes, packet, number::ICMPV6, ICMP_V6);
    put(bytes, 40, &[header[0], header[1], 0, 0, header[2], header[3], header[4], header[5]]);
    skb.load_into::<QUOTE_V6>(packet.l3, bytes.get_mut(48..48 + QUOTE_V6)?.first_chunk_mut()?)?;
    let total = sum::add(pseudo(packet, number::ICMPV6, ICMP_V6 - 40), sum_of(bytes, 40, ICMP_V6));
    put(bytes, 42, &sum::patched([0xff, 0xff], total));
    Some(())
}
