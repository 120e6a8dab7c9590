//! What a packet becomes, and its checksums with it (invariant I11).

use super::{Broken, Fragment, Packet, Patch, Skb, crc32c, sum};
use crate::{Addr, Proto, Tuple};

const TCP: u8 = Proto::Tcp as u8;
const UDP: u8 = Proto::Udp as u8;
const SCTP: u8 = Proto::Sctp as u8;

/// Where the checksum of a transport stands in its header, and whether 0 says that there is none. SCTP has one of another
/// kind.
#[inline(always)]
const fn sum_of(proto: u8) -> Option<(u32, bool)> {
    match proto {
        TCP => Some((16, false)),
        // Over IPv6 it is left out by some tunnels (RFC 6935); and a checksum that comes out as 0 would be refused there.
        UDP => Some((6, true)),
        _ => None,
    }
}

#[inline(always)]
const fn ports_of(tuple: &Tuple) -> u32 {
    let (src, dst) = (tuple.src_port.to_be_bytes(), tuple.dst_port.to_be_bytes());
    u32::from_ne_bytes([src[0], src[1], dst[0], dst[1]])
}

/// Puts other addresses and ports into a packet, and takes so many `hops` from its time to live, which the caller has seen
/// to be more.
///
/// # Errors
/// When the packet cannot be written: it is in pieces then, and must be dropped.
#[inline(always)]
pub fn rewrite(skb: &mut impl Skb, packet: &Packet, to: &Tuple, hops: u8) -> Result<(), Broken> {
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
        return skb.put_words(packet.l4, &[new], true);
    }
    if moved {
        // The checksum makes up for it; a UDP datagram without one is nobody's concern.
        skb.put_words(packet.l4, &[new], false)?;
    }
    Ok(())
}

/// Lets the checksum of SCTP follow other ports.
#[inline(always)]
fn put_sctp_sum(skb: &mut impl Skb, packet: &Packet, old: u32, new: u32) -> Result<(), Broken> {
    if packet.fragment as u8 == Fragment::First as u8 {
        // How much of the packet the other fragments have, and so how far a change reaches, is not known.
        return Err(Broken);
    }
    let sum: [u8; 4] = skb.load(packet.l4 + 8).ok_or(Broken)?;
    if u32::from_ne_bytes(sum) == 0 {
        // A device will write it (net/sctp/output.c), and takes what stands here for a part of the packet.
        return Ok(());
    }
    let len = (packet.l3 + packet.len).wrapping_sub(packet.l4) & 0xffff;
    skb.store(packet.l4 + 8, &crc32c::patched(sum, old.to_ne_bytes(), new.to_ne_bytes(), len), true)
}

/// Writes addresses and time to live of an IP header, and its checksum, in one go. Returns what the addresses add to a sum.
#[inline(always)]
fn put_header(skb: &mut impl Skb, packet: &Packet, to: &Tuple, hops: u8) -> Result<u32, Broken> {
    let addrs = sum::add(sum::of_addr(&packet.tuple.src, &to.src), sum::of_addr(&packet.tuple.dst, &to.dst));
    let ttl = packet.ttl.wrapping_sub(hops);
    let (src, dst) = (to.src.words(), to.dst.words());
    if packet.v6 {
        let [old] = skb.words(packet.l3 + 4).ok_or(Broken)?;
        let [len_high, len_low, next, _] = old.to_ne_bytes();
        let word = u32::from_ne_bytes([len_high, len_low, next, ttl]);
        let words = [word, src[0], src[1], src[2], src[3], dst[0], dst[1], dst[2], dst[3]];
        // IPv6 has no checksum of its own that would make up for the change.
        skb.put_words(packet.l3 + 4, &words, true)?;
    } else {
        let [old] = skb.words(packet.l3 + 8).ok_or(Broken)?;
        let [old_ttl, proto, sum_high, sum_low] = old.to_ne_bytes();
        let diff = sum::add(addrs, sum::of_half([old_ttl, proto], [ttl, proto]));
        let [sum_high, sum_low] = sum::patched([sum_high, sum_low], diff);
        let word = u32::from_ne_bytes([ttl, proto, sum_high, sum_low]);
        skb.put_words(packet.l3 + 8, &[word, src[3], dst[3]], false)?;
    }
    Ok(addrs)
}

#[inline(always)]
const fn v4(addr: &Addr) -> [u8; 4] {
    addr.words()[3].to_ne_bytes()
}

/// Translates an ICMP error back: the packet `error` that it is about becomes `inner`, as the receiver knows it, and the error
/// itself goes from `outer.src` to `outer.dst`, `hops` further.
///
/// # Errors
/// As for [`rewrite`].
#[inline(always)]
pub fn rewrite_icmp_error(
    skb: &mut impl Skb,
    packet: &Packet,
    error: &Packet,
    inner: &Tuple,
    outer: &Tuple,
    hops: u8,
) -> Result<(), Broken> {
    let addrs = sum::add(sum::of_addr(&error.tuple.src, &inner.src), sum::of_addr(&error.tuple.dst, &inner.dst));
    let (old, new) = (ports_of(&error.tuple), ports_of(inner));
    let ports = sum::of_word(old, new);
    // What all of this adds to the sum over the error's body.
    let mut body = sum::add(addrs, ports);
    if !packet.v6 {
        let at = error.l3 + 10;
        let field = skb.load(at).ok_or(Broken)?;
        let patched = sum::patched(field, addrs);
        body = sum::add(body, sum::of_half(field, patched));
        skb.store(at, &patched, false)?;
    }
    // The rest may have been cut off; then nobody can check it.
    if let Some((at, may_be_none)) = sum_of(error.proto)
        && let Some(field) = skb.load::<2>(error.l4 + at)
        && !(may_be_none && field[0] == 0 && field[1] == 0)
    {
        let mut patched = sum::patched(field, sum::add(addrs, ports));
        if may_be_none && patched[0] == 0 && patched[1] == 0 {
            // What stands for 0, since 0 says that there is none.
            patched = [0xff; 2];
        }
        body = sum::add(body, sum::of_half(field, patched));
        skb.store(error.l4 + at, &patched, false)?;
    }
    // SCTP's checksum in an error never covers what is there of the packet: left alone, as netfilter does.
    put_inner_addrs(skb, error.l3, packet.v6, inner)?;
    skb.put_words(error.l4, &[new], false)?;
    let sum_at = packet.l4 + 2;
    skb.patch_sum(sum_at, body, Patch { pseudo_header: false, may_be_none: false })?;
    let addrs = put_header(skb, packet, outer, hops)?;
    if packet.v6 {
        skb.patch_sum(sum_at, addrs, Patch { pseudo_header: true, may_be_none: false })?;
    }
    Ok(())
}

/// Writes both addresses of an IP header, where the checksum of the error makes up for the change.
#[inline(always)]
fn put_inner_addrs(skb: &mut impl Skb, l3: u32, v6: bool, to: &Tuple) -> Result<(), Broken> {
    if v6 {
        skb.store(l3 + 8, &to.src.octets, false)?;
        skb.store(l3 + 24, &to.dst.octets, false)
    } else {
        skb.store(l3 + 12, &v4(&to.src), false)?;
        skb.store(l3 + 16, &v4(&to.dst), false)
    }
}
