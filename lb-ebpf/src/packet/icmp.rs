//! ICMP errors about packets of a flow: they go back to who sent those, about what it sent.

use lb_common::{
    FlowFlags, FlowKey, Hook, Tuple,
    packet::{Packet, icmp_error, parse_quoted, rewrite_icmp_error},
};

use super::{
    Scratch,
    fate::Fate,
    read_network,
    route::{Route, Way},
    send::sends_on,
    skb::Frame,
};
use crate::maps::FLOWS;

/// An error on its way back. It does not fit on the stack.
#[repr(C)]
pub struct Back {
    error: Packet,
    /// What the packet that it is about becomes.
    inner: Tuple,
    /// Where it goes itself.
    outer: Tuple,
}

/// Translates an error back, if it is one about a flow. The packet in it went the other way, so that an answer to it would
/// be what the flow's entry translates.
#[inline(always)]
pub fn back(frame: Frame, hook: Hook, scratch: &mut Scratch) -> Fate {
    let Scratch { packet, key, icmp, route, .. } = scratch;
    if !read(frame, packet, &mut icmp.error) {
        return Fate::PASS;
    }
    *key = FlowKey::new(icmp.error.tuple.reversed(), icmp.error.proto, hook);
    let Some(flags) = find(packet, key, icmp) else {
        return Fate::PASS;
    };
    if !sends_on(flags, hook) {
        return if put(frame, packet, icmp, 0) { Fate::PASS } else { Fate::DROP };
    }
    if packet.ttl <= 1 {
        // An error is never answered by one (RFC 1122, 3.2.2).
        return Fate::DROP;
    }
    send_on(frame, packet, icmp, route)
}

#[inline(never)]
fn read(frame: Frame, packet: &Packet, error: &mut Packet) -> bool {
    let Some(at) = icmp_error(&frame, packet) else {
        return false;
    };
    read_network(frame, at, packet.v6, error) && parse_quoted(&frame, error).is_some()
}

/// What the flow makes of it: the flow's flags, if there is one.
#[inline(never)]
fn find(packet: &Packet, key: &FlowKey, back: &mut Back) -> Option<u16> {
    // SAFETY: read at once; an element that is removed meanwhile stays until the RCU grace period ends.
    let flow = unsafe { FLOWS.get(key) }?;
    if flow.flags & FlowFlags::NETFILTER != 0 {
        return None;
    }
    back.inner = flow.to.reversed();
    // A router keeps its own address; the flow's other end gets the one that is known there.
    let src = if packet.tuple.src == key.tuple.src { flow.to.src } else { packet.tuple.src };
    back.outer = Tuple { src, dst: flow.to.dst, src_port: 0, dst_port: 0 };
    Some(flow.flags)
}

#[inline(never)]
fn put(mut frame: Frame, packet: &Packet, back: &Back, hops: u8) -> bool {
    rewrite_icmp_error(&mut frame, packet, &back.error, &back.inner, &back.outer, hops).is_ok()
}

#[inline(never)]
fn send_on(mut frame: Frame, packet: &Packet, back: &Back, route: &mut Route) -> Fate {
    let hops = match route.find(frame, packet, &back.outer.src, &back.outer) {
        Way::Device => 1,
        Way::Here => 0,
        Way::Unreachable | Way::Other => return Fate::DROP,
    };
    if !put(frame, packet, back, hops) {
        return Fate::DROP;
    }
    if hops == 0 {
        return Fate::PASS;
    }
    route.send(&mut frame)
}
