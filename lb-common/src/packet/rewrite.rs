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
const fn ports_of(tuple: &Tuple) -> [u8; 4] {
    let (src, dst) = (tuple.src_port.to_be_bytes(), tuple.dst_port.to_be_bytes());
    [src[0], src[1], dst[0], dst[1]]
}

/// Puts other addresses and ports into a packet.
///
/// # Errors
/// When the packet cannot be written: it is in pieces then, and must be dropped.
#[inline(always)]
pub fn rewrite(skb: &mut impl Skb, packet: &Packet, to: &Tuple) -> Result<(), Broken> {
    let addrs = sum::add(sum::of_addr(&packet.tuple.src, &to.src), sum::of_addr(&packet.tuple.dst, &to.dst));
    put_addrs(skb, packet.l3, packet.v6, to)?;
    if !packet.v6 {
        skb.patch_ip_sum(packet.l3 + 10, addrs)?;
    }
    if !packet.has_ports() {
        return Ok(());
    }
    let (old, new) = (ports_of(&packet.tuple), ports_of(to));
    let ports = sum::of_word(u32::from_ne_bytes(old), u32::from_ne_bytes(new));
    let moved = u32::from_ne_bytes(old) != u32::from_ne_bytes(new);
    if let Some((at, may_be_none)) = sum_of(packet.proto) {
        skb.patch_sum(packet.l4 + at, addrs, Patch { pseudo_header: true, may_be_none })?;
        if moved {
            skb.patch_sum(packet.l4 + at, ports, Patch { pseudo_header: false, may_be_none })?;
        }
    } else if packet.proto == SCTP && moved {
        put_sctp_sum(skb, packet, old, new)?;
        return skb.store(packet.l4, &new, true);
    }
    if moved {
        // The checksum makes up for it; a UDP datagram without one is nobody's concern.
        skb.store(packet.l4, &new, false)?;
    }
    Ok(())
}

/// Lets the checksum of SCTP follow other ports.
#[inline(always)]
fn put_sctp_sum(skb: &mut impl Skb, packet: &Packet, old: [u8; 4], new: [u8; 4]) -> Result<(), Broken> {
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
    skb.store(packet.l4 + 8, &crc32c::patched(sum, old, new, len), true)
}

/// Writes both addresses of an IP header.
#[inline(always)]
fn put_addrs(skb: &mut impl Skb, l3: u32, v6: bool, to: &Tuple) -> Result<(), Broken> {
    if v6 {
        // IPv6 has no checksum of its own that would make up for the change.
        skb.store(l3 + 8, &to.src.octets, true)?;
        skb.store(l3 + 24, &to.dst.octets, true)
    } else {
        skb.store(l3 + 12, &v4(&to.src), false)?;
        skb.store(l3 + 16, &v4(&to.dst), false)
    }
}

#[inline(always)]
const fn v4(addr: &Addr) -> [u8; 4] {
    addr.words()[3].to_ne_bytes()
}

/// Takes one from the time to live, which the caller has seen to be more than 1.
///
/// # Errors
/// As for [`rewrite`].
#[inline(always)]
pub fn decrement_ttl(skb: &mut impl Skb, packet: &Packet) -> Result<(), Broken> {
    let ttl = packet.ttl.wrapping_sub(1);
    if packet.v6 {
        return skb.store(packet.l3 + 7, &[ttl], true);
    }
    let diff = sum::of_half([packet.ttl, packet.proto], [ttl, packet.proto]);
    skb.store(packet.l3 + 8, &[ttl], false)?;
    skb.patch_ip_sum(packet.l3 + 10, diff)
}

/// Translates an ICMP error back: the packet `error` that it is about becomes `inner`, as the receiver knows it, and the error
/// itself goes from `outer.src` to `outer.dst`.
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
) -> Result<(), Broken> {
    let addrs = sum::add(sum::of_addr(&error.tuple.src, &inner.src), sum::of_addr(&error.tuple.dst, &inner.dst));
    let (old, new) = (ports_of(&error.tuple), ports_of(inner));
    let ports = sum::of_word(u32::from_ne_bytes(old), u32::from_ne_bytes(new));
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
    skb.store(error.l4, &new, false)?;
    let sum_at = packet.l4 + 2;
    skb.patch_sum(sum_at, body, Patch { pseudo_header: false, may_be_none: false })?;
    let addrs = sum::add(sum::of_addr(&packet.tuple.src, &outer.src), sum::of_addr(&packet.tuple.dst, &outer.dst));
    put_addrs(skb, packet.l3, packet.v6, outer)?;
    if packet.v6 {
        skb.patch_sum(sum_at, addrs, Patch { pseudo_header: true, may_be_none: false })
    } else {
        skb.patch_ip_sum(packet.l3 + 10, addrs)
    }
}

/// As [`put_addrs`], where the checksum of the error makes up for the change.
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
