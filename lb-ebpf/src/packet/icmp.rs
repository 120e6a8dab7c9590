//! ICMP errors about packets of a flow: translated back for the sender of the packet.

use lb_common::{
    Family, FlowFlags, FlowKey, Hook, Tuple,
    packet::{Packet, icmp_error, parse_quoted, rewrite_icmp_error},
};

use super::{
    parse::parse_ip,
    route::{Fib, Route},
    scratch::{QuotedPacket, Scratch},
    send::is_redirected,
    skb::Frame,
    verdict::PacketVerdict,
};
use crate::maps::FLOWS;

/// Translates an error back if the quoted packet is of a flow; any other packet is of no flow. The quoted packet went
/// the other way, so that its reversed tuple is the key of the flow's entry.
#[inline(always)]
pub fn translate_error(frame: Frame, hook: Hook, scratch: &mut Scratch) -> Option<PacketVerdict> {
    let Scratch { packet, key, icmp, route, .. } = scratch;
    if !parse(frame, packet, &mut icmp.packet) {
        return None;
    }
    *key = FlowKey::new(icmp.packet.tuple.reversed(), icmp.packet.proto, hook);
    let flags = find(packet, key, icmp)?;
    if flags & FlowFlags::PASSED != 0 {
        return Some(PacketVerdict::PASS);
    }
    if !is_redirected(flags, hook) {
        return Some(if translate(frame, packet, icmp, 0) { PacketVerdict::PASS } else { PacketVerdict::DROP });
    }
    if packet.ttl <= 1 {
        // An error must not cause an error (RFC 1122, 3.2.2).
        return Some(PacketVerdict::DROP);
    }
    Some(redirect(frame, packet, icmp, route))
}

#[inline(never)]
fn parse(frame: Frame, packet: &Packet, quoted: &mut Packet) -> bool {
    let Some(at) = icmp_error(&frame, packet) else {
        return false;
    };
    let family = if packet.v6 { Family::V6 } else { Family::V4 };
    parse_ip(frame, at, family, quoted) && parse_quoted(&frame, quoted).is_some()
}

/// Fills in the tuples after translation, and returns the flags of the flow; `None` without a flow.
#[inline(never)]
fn find(packet: &Packet, key: &FlowKey, quoted: &mut QuotedPacket) -> Option<u16> {
    // SAFETY: read at once; an element that is removed meanwhile stays until the RCU grace period ends.
    let flow = unsafe { FLOWS.get(key) }?;
    quoted.inner = flow.to.reversed();
    // A router keeps its own address; the other end of the flow gets its translated one.
    let src = if packet.tuple.src == key.tuple.src { flow.to.src } else { packet.tuple.src };
    quoted.outer = Tuple { src, dst: flow.to.dst, src_port: 0, dst_port: 0 };
    Some(flow.flags)
}

#[inline(never)]
fn translate(mut frame: Frame, packet: &Packet, quoted: &QuotedPacket, hops: u8) -> bool {
    rewrite_icmp_error(&mut frame, packet, &quoted.packet, &quoted.inner, &quoted.outer, hops).is_ok()
}

#[inline(never)]
fn redirect(mut frame: Frame, packet: &Packet, quoted: &QuotedPacket, route: &mut Route) -> PacketVerdict {
    let hops = match route.lookup(frame, packet, &quoted.outer.src, &quoted.outer) {
        Fib::Device => 1,
        Fib::Local => 0,
        Fib::Unreachable | Fib::Encap | Fib::Unsupported => return PacketVerdict::DROP,
    };
    if !translate(frame, packet, quoted, hops) {
        return PacketVerdict::DROP;
    }
    if hops == 0 {
        return PacketVerdict::PASS;
    }
    route.redirect_to_neighbour(&mut frame)
}
