//! A packet is rewritten, and goes its way: on through the kernel, or at once out of a device.

use core::ptr;

use lb_common::{
    Counter, DeviceFlags, FlowFlags, Hook, Tuple,
    packet::{Packet, rewrite},
};

use super::{
    Scratch,
    fate::Fate,
    route::{self, Way},
    skb::Frame,
};
use crate::maps::{DEVICES, FLOWS, count};

/// The size of segments that a list of packets is said to have (`GSO_BY_FRAGS`, include/linux/skbuff.h).
const BY_FRAGS: u32 = 0xffff;

/// Lets the packet become what its flow says.
#[inline(always)]
pub fn send(frame: Frame, hook: Hook, scratch: &mut Scratch) -> Fate {
    if sends_on(scratch.flow.flags, hook) {
        send_on(frame, scratch)
    } else {
        put(frame, &scratch.packet, &scratch.flow.to, 0)
    }
}

/// Whether packets of such a flow are sent on. Those that go out have their way already.
#[inline(always)]
pub fn sends_on(flags: u16, hook: Hook) -> bool {
    hook as u8 == Hook::Ingress as u8 && flags & FlowFlags::REDIRECT != 0
}

/// The kernel routes it on: its own rules, and those of others, see the client and the backend.
#[inline(never)]
fn put(mut frame: Frame, packet: &Packet, to: &Tuple, hops: u8) -> Fate {
    if rewrite(&mut frame, packet, to, hops).is_ok() { Fate::PASS } else { Fate::DROP }
}

/// The kernel would refuse a source that is its own: the packet takes its route from here, as the kernel would have sent it.
#[inline(never)]
fn send_on(mut frame: Frame, scratch: &mut Scratch) -> Fate {
    if scratch.packet.ttl <= 1 {
        return Fate::TIME_EXCEEDED;
    }
    match find_way(frame, scratch) {
        Way::Device => {}
        Way::Here => return put(frame, &scratch.packet, &scratch.flow.to, 0),
        Way::Unreachable => return Fate::NO_ROUTE,
        Way::Other => {
            count(Counter::NoRoute);
            return Fate::DROP;
        }
    }
    let Scratch { packet, flow, route, .. } = scratch;
    // Asked about where the packet has been written: the verifier would walk that for each answer.
    let mut flags = 0;
    // SAFETY: read at once; an element that is replaced meanwhile stays until the RCU grace period ends.
    if let Some(device) = unsafe { DEVICES.get(flow.hop.ifindex) } {
        let mtu = device.mtu;
        flags = device.flags;
        // As the kernel measures a packet that will be cut (skb_gso_network_seglen): the headers, and one segment. One that
        // is a list of packets (SCTP) was made for the way that it had, and its sender hears nothing here.
        let len = match frame.segment() {
            0 => packet.len,
            BY_FRAGS => 0,
            segment => packet.headers + segment,
        };
        if mtu != 0 && len > mtu {
            return Fate::too_big(mtu);
        }
    }
    if put(frame, packet, &flow.to, 1).code() != Fate::PASS.code() {
        return Fate::DROP;
    }
    if DeviceFlags::lead_into_a_pod(flags) && flow.hop.is_known() {
        route::into_pod(&mut frame, &flow.hop)
    } else if route.is_asked() {
        route.send(&mut frame)
    } else {
        route::to_link(&mut frame, &flow.hop)
    }
}

/// Where the packet goes next: as those before it, as long as that holds and it has a place for link addresses. Otherwise the
/// routes are asked, if the first packet of a flow has not done so yet, and the kernel sees that the neighbour is still needed.
#[inline(always)]
fn find_way(frame: Frame, scratch: &mut Scratch) -> Way {
    let Scratch { packet, key, flow, clock, route, .. } = scratch;
    let now = clock.now();
    if route.is_asked() || (now < flow.hop.until && packet.l3 != 0) {
        return Way::Device;
    }
    // As the first packet asked, see `find_source`; and an answer by the address under which the client knows the backend, so
    // that rules of this node about that address hold for it.
    let src = if flow.flags & FlowFlags::REVERSE == 0 { &packet.tuple.src } else { &flow.to.src };
    let way = route.find(frame, packet, src, &flow.to);
    route.keep(&mut flow.hop, packet.l3, now);
    if flow.hop.is_known()
        && let Some(entry) = FLOWS.get_ptr_mut(&*key)
    {
        // SAFETY: a value of ours; it stays until the RCU grace period ends. Of two CPUs that write at once, or one that reads
        // beside another, a packet may get a part of two answers, which differ only while the routes change.
        unsafe { ptr::copy_nonoverlapping(&raw const flow.hop, &raw mut (*entry).hop, 1) };
    }
    way
}
