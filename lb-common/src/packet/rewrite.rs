//! Rewrites addresses, ports and hop count of a packet, and updates its checksums (invariant I11).

use super::{Fragment, Packet, Patch, Skb, SkbSum, WriteError, crc32c, sum};
use crate::{Addr, Family, Proto, Tuple};

const TCP: u8 = Proto::Tcp as u8;
const UDP: u8 = Proto::Udp as u8;
const SCTP: u8 = Proto::Sctp as u8;

/// Offset of the Internet checksum in a transport header, and true if 0 means no checksum. `None` for SCTP, which has a
/// CRC.
#[inline(always)]
const fn sum_of(proto: u8) -> Option<(u32, bool)> {
    match proto {
        TCP => Some((16, false)),
        // Over IPv6 too: some tunnels omit it (RFC 6935), and receivers refuse a computed checksum of 0.
        UDP => Some((6, true)),
        _ => None,
    }
}

#[inline(always)]
const fn ports_of(tuple: &Tuple) -> u32 {
    let (src, dst) = (tuple.src_port.to_be_bytes(), tuple.dst_port.to_be_bytes());
    u32::from_ne_bytes([src[0], src[1], dst[0], dst[1]])
}

/// Rewrites addresses and ports of a packet to `to`, and lowers its time to live by `hops`, which the caller knows to
/// be less.
///
/// # Errors
/// If a write fails; the packet is inconsistent then, and must be dropped.
#[inline(always)]
pub fn rewrite(skb: &mut impl Skb, packet: &Packet, to: &Tuple, hops: u8) -> Result<(), WriteError> {
    let addrs = put_header(skb, packet, to, hops)?;
    if !packet.has_ports() {
        return Ok(());
    }
    let (old, new) = (ports_of(&packet.tuple), ports_of(to));
    let (ports, moved) = (sum::of_word(old, new), old != new);
    if let Some((at, may_be_none)) = sum_of(packet.proto) {
        skb.patch_sum(packet.l4 + at, addrs, Patch { pseudo_header: true, may_be_none })?;
        if moved {
            skb.patch_sum(packet.l4 + at, ports, Patch { pseudo_header: false, may_be_none })?;
        }
    } else if packet.proto == SCTP && moved {
        put_sctp_sum(skb, packet, old, new)?;
        return skb.put_words(packet.l4, &[new], SkbSum::Update);
    }
    if moved {
        // The transport checksum compensates; the kernel checks no UDP datagram without one.
        skb.put_words(packet.l4, &[new], SkbSum::Keep)?;
    }
    Ok(())
}

/// Updates the checksum of SCTP for other ports.
#[inline(always)]
fn put_sctp_sum(skb: &mut impl Skb, packet: &Packet, old: u32, new: u32) -> Result<(), WriteError> {
    if packet.fragment as u8 == Fragment::First as u8 {
        // The CRC depends on the distance to the end of the datagram, which the first fragment does not tell.
        return Err(WriteError);
    }
    let sum: [u8; 4] = skb.load(packet.l4 + 8).ok_or(WriteError)?;
    if u32::from_ne_bytes(sum) == 0 {
        // A device will write the CRC (net/sctp/output.c), and counts the 0 as a part of the packet.
        return Ok(());
    }
    let len = (packet.l3 + packet.len).wrapping_sub(packet.l4) & 0xffff;
    skb.store(packet.l4 + 8, &crc32c::patched(sum, old.to_ne_bytes(), new.to_ne_bytes(), len), SkbSum::Update)
}

/// Writes addresses, time to live and checksum of an IP header at once. Returns the difference of the addresses.
#[inline(always)]
pub(super) fn put_header(skb: &mut impl Skb, packet: &Packet, to: &Tuple, hops: u8) -> Result<u32, WriteError> {
    let addrs = sum::add(sum::of_addr(&packet.tuple.src, &to.src), sum::of_addr(&packet.tuple.dst, &to.dst));
    let ttl = packet.ttl.wrapping_sub(hops);
    let (src, dst) = (to.src.words(), to.dst.words());
    if packet.v6 {
        let [old] = skb.words(packet.l3 + 4).ok_or(WriteError)?;
        let [len_high, len_low, next, _] = old.to_ne_bytes();
        let word = u32::from_ne_bytes([len_high, len_low, next, ttl]);
        let words = [word, src[0], src[1], src[2], src[3], dst[0], dst[1], dst[2], dst[3]];
        // IPv6 has no header checksum that would compensate.
        skb.put_words(packet.l3 + 4, &words, SkbSum::Update)?;
    } else {
        let [old] = skb.words(packet.l3 + 8).ok_or(WriteError)?;
        let [old_ttl, proto, sum_high, sum_low] = old.to_ne_bytes();
        let diff = sum::add(addrs, sum::of_half([old_ttl, proto], [ttl, proto]));
        let [sum_high, sum_low] = sum::patched([sum_high, sum_low], diff);
        let word = u32::from_ne_bytes([ttl, proto, sum_high, sum_low]);
        skb.put_words(packet.l3 + 8, &[word, src[3], dst[3]], SkbSum::Keep)?;
    }
    Ok(addrs)
}

#[inline(always)]
const fn v4(addr: &Addr) -> [u8; 4] {
    addr.words()[3].to_ne_bytes()
}

/// Translates an ICMP error back: rewrites the quoted packet to `inner`, as its sender knows it, and the error itself
/// to `outer`, `hops` further.
///
/// # Errors
/// As [`rewrite`].
#[inline(always)]
pub fn rewrite_icmp_error(
    skb: &mut impl Skb,
    packet: &Packet,
    quoted: &Packet,
    inner: &Tuple,
    outer: &Tuple,
    hops: u8,
) -> Result<(), WriteError> {
    let addrs = sum::add(sum::of_addr(&quoted.tuple.src, &inner.src), sum::of_addr(&quoted.tuple.dst, &inner.dst));
    let (old, new) = (ports_of(&quoted.tuple), ports_of(inner));
    let ports = sum::of_word(old, new);
    // The difference of the sum over the body of the error.
    let mut body = sum::add(addrs, ports);
    if !packet.v6 {
        let at = quoted.l3 + 10;
        let field = skb.load(at).ok_or(WriteError)?;
        let patched = sum::patched(field, addrs);
        body = sum::add(body, sum::of_half(field, patched));
        skb.store(at, &patched, SkbSum::Keep)?;
    }
    // A quote may end before the checksum.
    if let Some((at, may_be_none)) = sum_of(quoted.proto)
        && let Some(field) = skb.load::<2>(quoted.l4 + at)
        && !(may_be_none && field[0] == 0 && field[1] == 0)
    {
        let mut patched = sum::patched(field, sum::add(addrs, ports));
        if may_be_none && patched[0] == 0 && patched[1] == 0 {
            // A computed 0 is sent as 0xffff, since 0 means no checksum (RFC 768).
            patched = [0xff; 2];
        }
        body = sum::add(body, sum::of_half(field, patched));
        skb.store(quoted.l4 + at, &patched, SkbSum::Keep)?;
    }
    // The CRC of SCTP covers more than the quote: unchanged, as in netfilter.
    let family = if packet.v6 { Family::V6 } else { Family::V4 };
    put_inner_addrs(skb, quoted.l3, family, inner)?;
    skb.put_words(quoted.l4, &[new], SkbSum::Keep)?;
    let sum_at = packet.l4 + 2;
    skb.patch_sum(sum_at, body, Patch { pseudo_header: false, may_be_none: false })?;
    let addrs = put_header(skb, packet, outer, hops)?;
    if packet.v6 {
        skb.patch_sum(sum_at, addrs, Patch { pseudo_header: true, may_be_none: false })?;
    }
    Ok(())
}

/// Writes both addresses of a quoted IP header; the checksum of the error compensates.
#[inline(always)]
fn put_inner_addrs(skb: &mut impl Skb, l3: u32, family: Family, to: &Tuple) -> Result<(), WriteError> {
    match family {
        Family::V4 => {
            skb.store(l3 + 12, &v4(&to.src), SkbSum::Keep)?;
            skb.store(l3 + 16, &v4(&to.dst), SkbSum::Keep)
        }
        Family::V6 => {
            skb.store(l3 + 8, &to.src.octets, SkbSum::Keep)?;
            skb.store(l3 + 24, &to.dst.octets, SkbSum::Keep)
        }
    }
}
