//! The answer to a rejected packet: the reset or ICMP error that the sender gets.

use lb_common::{
    Counter, Hook, Proto,
    packet::{
        ICMP_V4, ICMP_V6, Packet, RESET_V4, RESET_V6, Reply, Skb as _, SkbSum, icmp_v4, icmp_v6, is_silent, reset_v4,
        reset_v6,
    },
};

use super::{scratch::Scratch, skb::Frame, verdict::PacketVerdict};
use crate::counters::{count, count_number};

/// Replies to a packet: a rejected TCP segment gets a reset, any other packet an ICMP error, so that the client knows
/// at once.
#[inline(always)]
pub fn reply(frame: Frame, scratch: &mut Scratch, hook: Hook, verdict: PacketVerdict) -> i32 {
    let (packet, buffer) = (&scratch.packet, &mut scratch.reply);
    // The verifier would walk the answers once for each verdict.
    let verdict = verdict.joined(packet.tuple.src_port);
    let mut reset = false;
    if let Some(counter) = verdict.reject_counter() {
        count_number(counter);
        reset = packet.proto == Proto::Tcp as u8;
    }
    if is_silent(packet) {
        return PacketVerdict::DROP.code();
    }
    // The discovery of a path's MTU is not limited (net/ipv4/icmp.c, `icmpv4_global_allow`).
    if !verdict.is_too_big() && !scratch.limit.allows(scratch.clock.now()) {
        count(Counter::ErrorsLimited);
        return PacketVerdict::DROP.code();
    }
    match (reset, packet.v6) {
        (true, false) => reset4(frame, packet, hook, buffer),
        (true, true) => reset6(frame, packet, hook, buffer),
        (false, false) => error4(frame, packet, hook, verdict, buffer),
        (false, true) => error6(frame, packet, hook, verdict, buffer),
    }
}

#[inline(never)]
fn reset4(frame: Frame, packet: &Packet, hook: Hook, buffer: &mut Reply) -> i32 {
    match reset_v4(&frame, packet, buffer) {
        Some(()) => send_back::<RESET_V4>(frame, packet, hook, buffer),
        None => PacketVerdict::DROP.code(),
    }
}

#[inline(never)]
fn reset6(frame: Frame, packet: &Packet, hook: Hook, buffer: &mut Reply) -> i32 {
    match reset_v6(&frame, packet, buffer) {
        Some(()) => send_back::<RESET_V6>(frame, packet, hook, buffer),
        None => PacketVerdict::DROP.code(),
    }
}

#[inline(never)]
fn error4(frame: Frame, packet: &Packet, hook: Hook, verdict: PacketVerdict, buffer: &mut Reply) -> i32 {
    match icmp_v4(&frame, packet, verdict.icmp_error(), buffer) {
        Some(()) => send_back::<ICMP_V4>(frame, packet, hook, buffer),
        None => PacketVerdict::DROP.code(),
    }
}

#[inline(never)]
fn error6(frame: Frame, packet: &Packet, hook: Hook, verdict: PacketVerdict, buffer: &mut Reply) -> i32 {
    match icmp_v6(&frame, packet, verdict.icmp_error(), buffer) {
        Some(()) => send_back::<ICMP_V6>(frame, packet, hook, buffer),
        None => PacketVerdict::DROP.code(),
    }
}

/// Sends the first `N` octets of `reply` to the sender, in place of the packet.
#[inline(always)]
fn send_back<const N: usize>(mut frame: Frame, packet: &Packet, hook: Hook, reply: &Reply) -> i32 {
    let write = || -> Option<()> {
        frame.resize(packet.l3 + N as u32, packet.l4).ok()?;
        if !frame.swap_link_addresses(packet.l3) {
            return None;
        }
        frame.store(packet.l3, reply.first_chunk::<N>()?, SkbSum::Update).ok()
    };
    match { write }() {
        Some(()) => frame.turn_around(hook),
        None => PacketVerdict::DROP.code(),
    }
}
