//! Packets to a VIP that no frontend serves: refused or answered, so that none circles between a router and this node.
//!
//! No host has a cluster IP, so its packets end here. A load balancer's address or an external IP may be the address of
//! a host, such as another node (the load balancer of k3s, for one, gives Services the nodes' addresses). Its packets
//! end here only if the node's routes would send them back to where they come from.

use lb_common::{
    Counter, Device, DeviceFlags, FrontendKey, Hook, Proto, Tables as _, Vip, may_be_vip,
    packet::{answer_echo, is_echo_request},
    vip,
};

use super::{packet_link, route::Fib, scratch::Scratch, skb::Frame, verdict::PacketVerdict};
use crate::{counters::count, globals::ANSWER_PINGS, tables::Kernel};

/// Devices whose packets of no flow are left alone.
const IGNORED: u32 = DeviceFlags::LEAVING | DeviceFlags::OFF;

/// The first look of `may_be_vip`, at the bit of the address.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum FirstLook {
    /// The address is no VIP, unless it is a cluster IP that no Service has.
    Clear,
    /// The address may be a VIP.
    Set,
}

/// The verdict on a packet of TCP, UDP or SCTP with no flow and no frontend that enters.
#[inline(always)]
pub fn unknown_port(frame: Frame, scratch: &mut Scratch, look: FirstLook) -> PacketVerdict {
    let packet = &scratch.packet;
    if look == FirstLook::Clear && !Kernel.in_cluster_ranges(&packet.tuple.dst) {
        return PacketVerdict::PASS;
    }
    // Later packets of a connection may belong to another proxy, unless they circle.
    let is_request = packet.begins || packet.proto == Proto::Udp as u8;
    refusal_at_vip(frame, scratch, Hook::Ingress, is_request)
}

/// The verdict on a packet of TCP, UDP or SCTP of no flow that leaves, and may be a request.
#[inline(always)]
pub fn leaves(frame: Frame, scratch: &mut Scratch) -> PacketVerdict {
    if !may_be_vip(&Kernel, &address(scratch)) {
        return PacketVerdict::PASS;
    }
    if packet_link::awaits_programs(frame, scratch) {
        return PacketVerdict::DROP;
    }
    refusal_at_vip(frame, scratch, Hook::Egress, true)
}

/// The verdict on a later fragment whose ports are unknown.
#[inline(always)]
pub fn later_fragment(frame: Frame, scratch: &mut Scratch, hook: Hook, device: &Device) -> PacketVerdict {
    if device.flags & IGNORED == 0 { refusal(frame, scratch, hook, false) } else { PacketVerdict::PASS }
}

/// The verdict on a packet of ICMP that is no error of a flow, or of a protocol that Services do not have.
#[inline(always)]
pub fn other_packet(mut frame: Frame, scratch: &mut Scratch, hook: Hook, device: &Device) -> PacketVerdict {
    if device.flags & IGNORED != 0 {
        return PacketVerdict::PASS;
    }
    let verdict = refusal(frame, scratch, hook, true);
    // Otherwise a packet of ICMP is refused silently.
    if verdict.reject_counter().is_none() || ANSWER_PINGS.load() == 0 || !is_echo_request(&frame, &scratch.packet) {
        return verdict;
    }
    if !scratch.echo_limit.allows(scratch.clock.now()) {
        count(Counter::ErrorsLimited);
        return PacketVerdict::DROP;
    }
    if !answer(frame, scratch) {
        return PacketVerdict::DROP;
    }
    PacketVerdict::of_helper(frame.turn_around(hook).into())
}

/// Refuses a packet to a VIP if it ends at this node; any other packet passes.
#[inline(always)]
fn refusal(frame: Frame, scratch: &mut Scratch, hook: Hook, is_request: bool) -> PacketVerdict {
    if may_be_vip(&Kernel, &address(scratch)) {
        refusal_at_vip(frame, scratch, hook, is_request)
    } else {
        PacketVerdict::PASS
    }
}

/// The key of the destination, whatever the port and the protocol.
#[inline(always)]
fn address(scratch: &Scratch) -> FrontendKey {
    FrontendKey::new(scratch.packet.tuple.dst, 0, Proto::Tcp).address()
}

#[inline(never)]
fn refusal_at_vip(frame: Frame, scratch: &mut Scratch, hook: Hook, is_request: bool) -> PacketVerdict {
    let Some(kind) = vip(&Kernel, &address(scratch)) else {
        return PacketVerdict::PASS;
    };
    // A packet that leaves comes back if it circles.
    let ends_here =
        (is_request && !matches!(kind, Vip::External)) || (matches!(hook, Hook::Ingress) && circles(frame, scratch));
    if !ends_here {
        return PacketVerdict::PASS;
    }
    if matches!(kind, Vip::Unallotted) {
        count(Counter::UnknownClusterIp);
        return PacketVerdict::HOST_UNREACHABLE;
    }
    PacketVerdict::reject(Counter::UnknownPort)
}

/// True if the node's routes lead an incoming packet to where it comes from: out by the device by which it came, or by
/// the device that leads to its sender. Between two hosts beyond one device no node forwards.
#[inline(always)]
fn circles(frame: Frame, scratch: &mut Scratch) -> bool {
    let Scratch { packet, flow, route, .. } = scratch;
    // An interface of the node owns the address, or no route leads to it: the kernel's own answer.
    let Fib::Device = route.lookup(frame, packet, &packet.tuple.src, &packet.tuple) else {
        return false;
    };
    let out = route.ifindex();
    if out == frame.ifindex() {
        return true;
    }
    flow.to = packet.tuple.reversed();
    matches!(route.lookup(frame, packet, &packet.tuple.dst, &flow.to), Fib::Device) && route.ifindex() == out
}

#[inline(never)]
fn answer(mut frame: Frame, scratch: &mut Scratch) -> bool {
    let Scratch { packet, flow, .. } = scratch;
    flow.to = packet.tuple.reversed();
    answer_echo(&mut frame, packet, &flow.to).is_ok() && frame.swap_link_addresses(packet.l3)
}
