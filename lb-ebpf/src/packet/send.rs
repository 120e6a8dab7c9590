//! Translates a packet of a flow, and passes it to the kernel or redirects it to a device.

use core::ptr;

use aya_ebpf::bindings::BPF_ANY;
use lb_common::{
    Counter, DeviceFlags, FlowFlags, FlowKey, Hook, SlowPath, Tuple,
    flow::Serial,
    packet::{Fragment, Packet, rewrite},
};

use super::{
    flow,
    route::{self, Fib, Route},
    scratch::Scratch,
    skb::{ETHERNET, Frame},
    verdict::{Onward, PacketVerdict},
};
use crate::{
    counters::{count, count_number},
    maps::{DEVICES, FLOWS},
};

/// Segment size of an sk_buff that is a list of packets (`GSO_BY_FRAGS`, include/linux/skbuff.h).
const BY_FRAGS: u32 = 0xffff;

/// Sends a packet at a device with these flags as its flow says.
///
/// Translates it at one place, whatever follows: the verifier would walk the translation once for each way to it.
#[inline(always)]
pub fn send(frame: Frame, hook: Hook, device: u32, scratch: &mut Scratch) -> PacketVerdict {
    let verdict = if is_redirected(scratch.flow.flags, hook) {
        redirect(frame, scratch)
    } else {
        forward(frame, hook, device, scratch)
    };
    let Some(onward) = verdict.onward() else {
        return verdict;
    };
    let onward = onward.joined(scratch.packet.tuple.src_port);
    if !translate(frame, &scratch.packet, &scratch.flow.to, onward.hops()) {
        return PacketVerdict::DROP;
    }
    go_on(frame, scratch, onward)
}

/// To the next hop of the packet: by a lookup, or as the flow has kept it.
#[inline(always)]
fn to_next_hop(route: &Route) -> Onward {
    if route.is_known() { Onward::to_neighbour() } else { Onward::to_link() }
}

/// Hands a translated packet on.
#[inline(always)]
fn go_on(mut frame: Frame, scratch: &mut Scratch, onward: Onward) -> PacketVerdict {
    let Scratch { flow, route, .. } = scratch;
    match onward.target() {
        Onward::POD => route::redirect_into_pod(&mut frame, &flow.hop),
        Onward::NEIGHBOUR => route.redirect_to_neighbour(&mut frame),
        Onward::LINK => route::redirect_to_link(&mut frame, &flow.hop),
        Onward::ANEW => receive_anew(frame),
        _ => PacketVerdict::PASS,
    }
}

/// Decides about a packet that the kernel's own routing forwards: its rules see the client and the backend.
#[inline(always)]
fn forward(frame: Frame, hook: Hook, device: u32, scratch: &mut Scratch) -> PacketVerdict {
    if scratch.flow.flags & FlowFlags::SLOW_PATH != 0 {
        take_slow_path(frame, scratch.flow.flags);
    }
    if hook as u8 == Hook::Egress as u8
        && device & DeviceFlags::SOURCE_RULES != 0
        && scratch.flow.flags & FlowFlags::REVERSE != 0
        && leaves_elsewhere(frame, scratch)
    {
        return to_next_hop(&scratch.route).verdict();
    }
    if hook as u8 == Hook::Ingress as u8 && device & DeviceFlags::BRIDGE != 0 {
        return Onward::anew().verdict();
    }
    Onward::to_the_kernel().verdict()
}

/// Has the kernel receive a translated packet anew. br_netfilter has shown it to conntrack at a port of the bridge,
/// with the address that the client dialled: netfilter would not look at it again, and answers would be of no
/// connection.
#[inline(always)]
fn receive_anew(mut frame: Frame) -> PacketVerdict {
    PacketVerdict::of_helper(frame.receive_anew().into())
}

/// True if a reply that leaves the node must leave by another device: the kernel has routed it with the address of the
/// backend, and the rules choose another route for the address that the client dialled. Netfilter's marks, by which
/// others choose that route, are no help: they name an address of the node, which netfilter does not see at ingress.
#[inline(never)]
fn leaves_elsewhere(frame: Frame, scratch: &mut Scratch) -> bool {
    if scratch.packet.l3 != ETHERNET || !matches!(find_next_hop(frame, scratch), Fib::Device) {
        return false;
    }
    let Scratch { packet, flow, route, .. } = scratch;
    let to = flow.hop.ifindex;
    if to == frame.ifindex() {
        return false;
    }
    // Not where a mark may have chosen the route, or another reason speaks against a redirect.
    // SAFETY: read at once; an element that is replaced meanwhile stays until the RCU grace period ends.
    unsafe { DEVICES.get(to) }.is_some_and(|device| {
        device.flags & DeviceFlags::POD == 0
            && SlowPath::of_device(device.flags).is_none()
            && !is_larger_than(frame, packet, route.mtu(device.mtu))
    })
}

/// True if the packet is larger than an MTU, as the kernel measures it: of a packet that will be segmented
/// (skb_gso_network_seglen) the headers and one segment. A list of packets (SCTP) has no length to compare: it was
/// built for the MTU of its route. 0 is no MTU.
#[inline(always)]
fn is_larger_than(frame: Frame, packet: &Packet, mtu: u32) -> bool {
    let len = match frame.segment() {
        0 => packet.len,
        BY_FRAGS => 0,
        segment => packet.headers + segment,
    };
    mtu != 0 && len > mtu
}

/// Counts a packet of a flow on the slow path. Netfilter masquerades those of the client.
#[inline(never)]
fn take_slow_path(mut frame: Frame, flags: u16) {
    count_slow_path(flags);
    if flags & FlowFlags::REVERSE == 0 {
        frame.mark_for_masquerade();
    }
}

/// Counts a packet on the slow path; the counters follow the reasons.
#[inline(always)]
fn count_slow_path(flags: u16) {
    let reason = u32::from((flags & FlowFlags::SLOW_PATH) >> 8);
    count_number(Counter::SlowNoEthernet as u32 - SlowPath::NoEthernet as u32 + reason);
}

/// True if packets of a flow with these flags are redirected. At egress the kernel has routed them already.
#[inline(always)]
pub fn is_redirected(flags: u16, hook: Hook) -> bool {
    hook as u8 == Hook::Ingress as u8 && flags & FlowFlags::REDIRECT != 0
}

/// Translates a packet; false if a write fails.
#[inline(never)]
fn translate(mut frame: Frame, packet: &Packet, to: &Tuple, hops: u8) -> bool {
    rewrite(&mut frame, packet, to, hops).is_ok()
}

/// Decides about a packet that is redirected, as the kernel would forward it. The kernel itself would refuse an
/// incoming packet with a source address of the node.
#[inline(never)]
fn redirect(frame: Frame, scratch: &mut Scratch) -> PacketVerdict {
    if scratch.packet.ttl <= 1 {
        return PacketVerdict::TIME_EXCEEDED;
    }
    match find_next_hop(frame, scratch) {
        Fib::Device => {}
        Fib::Local => return Onward::to_the_kernel().verdict(),
        Fib::Unreachable => return PacketVerdict::NO_ROUTE,
        Fib::Encap => return leave_to_kernel(scratch, SlowPath::Encap),
        Fib::Unsupported => {
            count(Counter::NoRoute);
            return PacketVerdict::DROP;
        }
    }
    let Scratch { packet, flow, route, .. } = scratch;
    let mut flags = 0;
    // SAFETY: read at once; an element that is replaced meanwhile stays until the RCU grace period ends.
    if let Some(device) = unsafe { DEVICES.get(flow.hop.ifindex) } {
        let mtu = route.mtu(device.mtu);
        flags = device.flags;
        if let Some(reason) = SlowPath::of_device(flags) {
            return leave_to_kernel(scratch, reason);
        }
        if is_larger_than(frame, packet, mtu) {
            return if packet.may_fragment && frame.segment() == 0 {
                leave_to_kernel(scratch, SlowPath::Fragmented)
            } else {
                PacketVerdict::too_big(mtu)
            };
        }
    }
    if packet.fragment as u8 == Fragment::Later as u8 && packet.may_fragment && follows_to_the_kernel(scratch) {
        return leave_to_kernel(scratch, SlowPath::Fragmented);
    }
    let Scratch { packet, flow, .. } = scratch;
    if packet.l3 != ETHERNET {
        return leave_to_kernel(scratch, SlowPath::NoEthernet);
    }
    let onward = if DeviceFlags::lead_into_a_pod(flags) && flow.hop.is_known() {
        Onward::into_a_pod()
    } else {
        to_next_hop(&scratch.route)
    };
    onward.one_hop_further().verdict()
}

/// Sets the key to that of the packet at egress, if it is left to the kernel: see [`leave_to_kernel`].
#[inline(always)]
fn set_egress_key(scratch: &mut Scratch) {
    let Scratch { packet, flow, key, .. } = scratch;
    *key = FlowKey::new(packet.tuple, packet.proto, Hook::Egress);
    (key.tuple.dst, key.tuple.dst_port) = (flow.to.dst, flow.to.dst_port);
}

/// True if the first fragment of a later one, which fits, was left to the kernel: conntrack there waits for the rest.
#[inline(never)]
fn follows_to_the_kernel(scratch: &mut Scratch) -> bool {
    set_egress_key(scratch);
    FLOWS.get_ptr(&scratch.key).is_some()
}

/// Leaves a packet of a flow that is redirected else to the kernel, which forwards or fragments it. The kernel would
/// refuse a source address of the node: the packet keeps its source, and an entry for egress replaces that, in each
/// fragment.
///
/// Rules of netfilter may masquerade the packet before: then netfilter translates the replies back, and a second entry
/// puts the address that the client dialled into those.
#[inline(never)]
fn leave_to_kernel(scratch: &mut Scratch, reason: SlowPath) -> PacketVerdict {
    count_slow_path(reason.flags());
    set_egress_key(scratch);
    let Scratch { packet, flow, key, partner, partner_key, clock, .. } = scratch;
    if key.tuple != flow.to {
        // Of no Service, as those of `ports::reserve_snat_port`: the entries of the flow itself count and expire.
        (flow.service, flow.backend) = (0, 0);
        (flow.forward, flow.reverse) = (packet.seen, 0);
        flow.flags &= FlowFlags::REVERSE;
        flow.used = Serial::note(packet.proto, 0, clock.now(), 0);
        flow.hop.forget();
        if flow::insert(&*key, &*flow, u64::from(BPF_ANY)).is_err() {
            count(Counter::FlowsFull);
            return PacketVerdict::DROP;
        }
        if flow.flags == 0 {
            *partner_key = FlowKey::new(key.tuple.reversed(), packet.proto, Hook::Egress);
            *partner = *flow;
            partner.to = packet.tuple.reversed();
            partner.flags = FlowFlags::REVERSE;
            // Without room, replies to netfilter's masquerade show the backend.
            let _inserted = flow::insert(&*partner_key, &*partner, u64::from(BPF_ANY));
        }
    }
    flow.to = key.tuple;
    Onward::to_the_kernel().verdict()
}

/// Finds the next hop: that of earlier packets while it is valid and the packet has an Ethernet header, else by a FIB
/// lookup, unless the packet has had one as the first of its flow. The redirect after a lookup confirms the neighbour
/// to the kernel.
#[inline(always)]
fn find_next_hop(frame: Frame, scratch: &mut Scratch) -> Fib {
    let Scratch { packet, key, flow, clock, route, .. } = scratch;
    let now = clock.now();
    if route.is_known() || (now < flow.hop.until && packet.l3 == ETHERNET) {
        return Fib::Device;
    }
    // Policy routing by source: the client's address, as in `new_flow::find_source`; for a reply, the address that the
    // client dialled. With the port too, by which routes with several next hops may choose one: all packets of a flow
    // take the same.
    let from = if flow.flags & FlowFlags::REVERSE == 0 { &packet.tuple } else { &flow.to };
    let fib = route.lookup_from(frame, packet, (&from.src, from.src_port), &flow.to);
    route.store(&mut flow.hop, packet.l3, now);
    if flow.hop.is_known()
        && let Some(entry) = FLOWS.get_ptr_mut(&*key)
    {
        // SAFETY: our map value; it stays until the RCU grace period ends. A race between CPUs may mix two next hops,
        // which differ only while the routes change.
        unsafe { ptr::copy_nonoverlapping(&raw const flow.hop, &raw mut (*entry).hop, 1) };
    }
    fib
}
