//! Flow tracking: finds the flow of a packet, and records what the packet says about it.

use core::ptr;

use aya_ebpf::bindings::BPF_NOEXIST;
use lb_common::{
    BackendFlags, Counter, Flow, FlowFlags, FlowKey, Proto,
    flow::{FlowState, Seen, Serial, UDP_OF_NETFILTER, partner_key},
    packet::Packet,
};

use super::{flow_ends, scratch::Scratch};
use crate::{
    counters::count,
    globals::FLOWS_MOVE,
    maps::{BACKENDS, FLOWS, FLOWS_BEFORE},
};

/// Looks up the flow of the packet, and copies it to `scratch.flow`; false for a new flow.
#[inline(always)]
pub fn lookup_flow(scratch: &mut Scratch) -> bool {
    if FLOWS_MOVE.load() != 0 {
        take_over_flow(&scratch.key);
    }
    let Some(flow) = FLOWS.get_ptr_mut(&scratch.key) else {
        return false;
    };
    // SAFETY: our map value; it stays until the RCU grace period ends, and each direction writes its own entry.
    let flow = unsafe { &mut *flow };
    let now = scratch.clock.now();
    if needs_new_backend(&scratch.packet, flow, now) {
        // Even if this packet gets no flow, the next ones must not follow the old one.
        let _existed = FLOWS.remove(&scratch.key);
        return false;
    }
    track(&scratch.packet, &scratch.key, &mut scratch.partner_key, flow, now);
    // SAFETY: values of two maps. (An assignment would compile to a call, and to a loop.)
    unsafe {
        ptr::copy_nonoverlapping(&raw const flow.to, &raw mut scratch.flow.to, 1);
        ptr::copy_nonoverlapping(&raw const flow.hop, &raw mut scratch.flow.hop, 1);
    }
    scratch.flow.flags = flow.flags;
    scratch.route.reset();
    true
}

/// Inserts an entry into `FLOWS`; an error of the kernel otherwise. The only way, since the entry needs its mark.
#[inline(always)]
pub fn insert(key: &FlowKey, flow: &Flow, flags: u64) -> Result<(), i32> {
    flow_ends::mark(key);
    FLOWS.insert(key, flow, flags)
}

/// Adds an entry of `FLOWS_BEFORE` to `FLOWS`, unless that has it: of a flow that began after the loader had copied the
/// others, and before the last program was replaced.
#[inline(always)]
fn take_over_flow(key: &FlowKey) {
    if let Some(flow) = FLOWS_BEFORE.get_ptr(key) {
        // SAFETY: our map value; it stays until the RCU grace period ends.
        let _existed = insert(key, unsafe { &*flow }, u64::from(BPF_NOEXIST));
    }
}

/// True if a packet of a known flow needs a backend as a new flow does: the client reuses its port after the end of the
/// flow; it sends a first packet or a query again, and the backend takes no new flows any more; or the backend of a
/// datagram was removed.
#[inline(always)]
fn needs_new_backend(packet: &Packet, flow: &Flow, now: u64) -> bool {
    if flow.flags & FlowFlags::REVERSE != 0 || !(packet.begins || packet.proto == Proto::Udp as u8) {
        return false;
    }
    if packet.begins && FlowState::of(flow.forward, flow.reverse).is_over() {
        return true;
    }
    if flow.flags & FlowFlags::NETFILTER != 0 {
        return is_left_by_netfilter(packet, flow, now);
    }
    // A flow of no Service: see `ports::reserve_snat_port`.
    if flow.backend == 0 {
        return false;
    }
    // SAFETY: read at once; an element that is replaced meanwhile stays until the RCU grace period ends.
    let backend = unsafe { BACKENDS.get(flow.backend) };
    let lists = BackendFlags::CLUSTER | BackendFlags::LOCAL;
    // A replied query is over: the next query from a reused port goes to a backend that takes new flows.
    let is_new_query = packet.begins || (is_replied(flow) && flow.forward & Seen::AGAIN == 0);
    let is_valid = backend.is_some_and(|backend| {
        backend.service == flow.service
            && backend.port_for(packet.tuple.dst_port) == flow.to.dst_port
            && backend.addr == flow.to.dst
            && (!is_new_query || backend.flags & lists != 0)
    });
    if !is_valid && packet.proto == Proto::Udp as u8 {
        count(Counter::FlowMoved);
    }
    !is_valid
}

#[inline(always)]
fn is_replied(flow: &Flow) -> bool {
    flow.reverse & Seen::ANY != 0
}

/// True if a flow of netfilter becomes Beeline's: a client with a reply connects anew, or netfilter may have dropped
/// the flow of earlier datagrams. A retransmitted first packet stays with netfilter.
#[inline(always)]
fn is_left_by_netfilter(packet: &Packet, flow: &Flow, now: u64) -> bool {
    if packet.begins {
        return !matches!(FlowState::of(flow.forward, flow.reverse), FlowState::Opening);
    }
    // Another CPU, or user space, may have written a time ahead of this CPU's clock.
    now.saturating_sub(flow.used) > UDP_OF_NETFILTER
}

/// Records a packet in its flow. Writes to the entry of the other direction on new events only, which are rare.
///
/// A reset with a wrong number changes nothing, and a FIN with one is no FIN: it goes on to the end that it is for,
/// which tells by its own sequence numbers.
#[inline(always)]
fn track(packet: &Packet, key: &FlowKey, partner: &mut FlowKey, flow: &mut Flow, now: u64) {
    let is_reset = packet.seen & Seen::RST != 0;
    if is_reset && !Serial::ends(flow.used, packet.serial) {
        return;
    }
    // A client that connects anew before there is a reply has other sequence numbers.
    let before = if packet.begins && !is_replied(flow) { 0 } else { flow.used };
    let used = if is_reset { flow.used } else { Serial::note(packet.proto, before, now, packet.serial) };
    if flow.used != used {
        flow.used = used;
    }
    let reverse = flow.flags & FlowFlags::REVERSE != 0;
    let (mut own, other) = if reverse { (flow.reverse, flow.forward) } else { (flow.forward, flow.reverse) };
    if !reverse && !packet.begins && flow.flags & FlowFlags::NETFILTER != 0 {
        // Replies may bypass all devices with programs; a client that continues has got one.
        flow.reverse |= Seen::ANY;
    }
    if own & Seen::HANDSHAKE != 0 && !packet.begins && is_replied(flow) {
        // The client has got the reply, so that its address is not forged. The note is in the entry of the
        // client alone: see `flow::state`.
        own &= !Seen::HANDSHAKE;
        flow.forward = own;
    }
    let is_end = packet.seen & Seen::FIN != 0 && Serial::ends(used, packet.serial);
    let mut seen = own | if is_end { packet.seen } else { packet.seen & !Seen::FIN };
    if !is_reset {
        // Its sender has not reset the connection.
        seen &= !Seen::RST;
    }
    if packet.proto == Proto::Udp as u8 && !reverse && is_replied(flow) {
        seen |= Seen::AGAIN;
    }
    if is_end && (own | other) & Seen::FIN == 0 {
        seen |= Seen::FIN_FIRST;
    }
    if seen == own {
        return;
    }
    if reverse {
        flow.reverse = seen;
    } else {
        flow.forward = seen;
    }
    *partner = partner_key(key, flow);
    if let Some(partner) = FLOWS.get_ptr_mut(&*partner) {
        // SAFETY: as in `lookup_flow`; each direction writes its own byte.
        unsafe {
            if reverse {
                (*partner).reverse = seen;
            } else {
                (*partner).forward = seen;
            }
        }
    }
}
