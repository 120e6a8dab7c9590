//! Entry of a packet: the stages in their order.

use aya_ebpf::programs::TcContext;
use lb_common::{
    DeviceFlags, Family, FlowFlags, FlowKey, Hook,
    packet::{Fragment, number},
};

use super::{
    announce, early,
    flow::lookup_flow,
    fragment, glance, icmp,
    new_flow::{egress_unknown, new_flow},
    parse::{parse_ip, parse_ports},
    reject,
    scratch::{SCRATCH, Scratch},
    send,
    skb::{ETHERNET, Frame},
    verdict::PacketVerdict,
    vip, watch,
};
use crate::maps::DEVICES;

/// A packet enters by a device.
#[inline(always)]
pub fn ingress(ctx: TcContext) -> i32 {
    let mut frame = Frame::new(ctx);
    let code = handle(frame, Hook::Ingress);
    if code == PacketVerdict::REDIRECT {
        frame.remove_priority_tag();
    }
    code
}

/// A packet leaves by a device.
#[inline(always)]
pub fn egress(ctx: TcContext) -> i32 {
    handle(Frame::new(ctx), Hook::Egress)
}

#[inline(always)]
fn handle(mut frame: Frame, hook: Hook) -> i32 {
    if frame.is_redirected() {
        if hook as u8 == Hook::Egress as u8 {
            // Translated at ingress.
            return PacketVerdict::PASS.code();
        }
        // Redirected by another node, which is a container of this machine.
        frame.clear_redirected();
    }
    if frame.is_received_anew() && hook as u8 == Hook::Ingress as u8 {
        // Translated before.
        frame.clear_redirected();
        return PacketVerdict::PASS.code();
    }
    // Before any look-up: packets of other protocols are of no Service.
    let Some(family) = frame.family(hook) else {
        let is_question = hook as u8 == Hook::Ingress as u8 && frame.is_arp();
        return if is_question { announce::arp(frame) } else { PacketVerdict::PASS.code() };
    };
    if glance::passes(frame, family, hook) {
        return PacketVerdict::PASS.code();
    }
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else {
        return PacketVerdict::PASS.code();
    };
    // SAFETY: the one value of a per-CPU array: the programs of a packet finish before those of the CPU's next packet
    // begin.
    let scratch = unsafe { &mut *scratch };
    let verdict = decide(frame, hook, family, scratch);
    if verdict.is_reply() { reject::reply(frame, scratch, hook, verdict) } else { verdict.code() }
}

#[inline(always)]
fn decide(frame: Frame, hook: Hook, family: Family, scratch: &mut Scratch) -> PacketVerdict {
    // SAFETY: read at once; an element that is replaced meanwhile stays until the RCU grace period ends.
    let Some(device) = (unsafe { DEVICES.get(frame.ifindex()) }) else {
        return PacketVerdict::PASS;
    };
    let is_ingress = hook as u8 == Hook::Ingress as u8;
    let has_ethernet = device.flags & DeviceFlags::NO_ETHERNET == 0;
    if has_ethernet && is_ingress && frame.is_for_another_host() {
        return PacketVerdict::PASS;
    }
    let l3 = match device.flags & (DeviceFlags::NO_ETHERNET | DeviceFlags::OUTER_HEADERS) {
        0 => ETHERNET,
        flags if flags & DeviceFlags::OUTER_HEADERS != 0 => frame.outer_headers(family),
        _ => 0,
    };
    if !parse_ip(frame, l3, family, &mut scratch.packet) {
        return PacketVerdict::PASS;
    }
    let is_known = parse_ports(frame, &mut scratch.packet);
    if !is_known || scratch.packet.proto == number::ICMP || scratch.packet.proto == number::ICMPV6 {
        if is_known && is_ingress {
            let verdict = announce::neighbour(frame, &scratch.packet);
            if !verdict.is_pass() {
                return verdict;
            }
        }
        if is_known && let Some(verdict) = icmp::translate_error(frame, hook, scratch) {
            return verdict;
        }
        return vip::other_packet(frame, scratch, hook, device);
    }
    if scratch.packet.fragment as u8 == Fragment::Later as u8 && !fragment::find_ports(hook, &mut scratch.packet) {
        if is_ingress && early::may_be_for_a_service(&scratch.packet) && early::keep(frame, scratch) {
            return PacketVerdict::DROP;
        }
        // The fragment is of no Service, or ahead of its first one: then the datagram is lost, and sent again.
        return vip::later_fragment(frame, scratch, hook, device);
    }
    if scratch.packet.fragment as u8 == Fragment::First as u8
        && is_ingress
        && early::may_be_for_a_service(&scratch.packet)
    {
        // The ports are known of any Service or none: later fragments need not wait.
        fragment::store_ports(hook, &scratch.packet);
        if !early::release(frame, scratch) {
            return PacketVerdict::DROP;
        }
    }
    scratch.key = FlowKey::new(scratch.packet.tuple, scratch.packet.proto, hook);
    if !lookup_flow(scratch) {
        let verdict = if hook as u8 == Hook::Egress as u8 {
            egress_unknown(frame, scratch, device)
        } else {
            let verdict = new_flow(frame, scratch, device);
            watch::first_packet(scratch, verdict);
            verdict
        };
        if !verdict.is_flow() {
            return verdict;
        }
    }
    if scratch.packet.fragment as u8 == Fragment::First as u8 {
        fragment::store_ports(hook, &scratch.packet);
    }
    if scratch.flow.flags & FlowFlags::PASSED != 0 {
        return PacketVerdict::PASS;
    }
    send::send(frame, hook, device.flags, scratch)
}
