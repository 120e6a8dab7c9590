//! What is answered to a packet that goes nowhere.

use lb_common::{
    Hook, Proto,
    packet::{
        Answer, ICMP_V4, ICMP_V6, Packet, RESET_V4, RESET_V6, Skb as _, icmp_v4, icmp_v6, is_silent, reset_v4, reset_v6,
    },
};

use super::{Scratch, fate::Fate, skb::Frame};
use crate::maps::count_at;

/// Nobody serves here: a reset for TCP, "port unreachable" for the rest, so that the client knows at once. Or another ICMP
/// error.
#[inline(always)]
pub fn answer(frame: Frame, scratch: &mut Scratch, hook: Hook, fate: Fate) -> i32 {
    let (packet, bytes) = (&scratch.packet, &mut scratch.answer);
    let mut reset = false;
    if let Some(why) = fate.rejected() {
        count_at(why);
        reset = packet.proto == Proto::Tcp as u8;
    }
    if is_silent(packet) {
        return Fate::DROP.code();
    }
    match (reset, packet.v6) {
        (true, false) => reset4(frame, packet, hook, bytes),
        (true, true) => reset6(frame, packet, hook, bytes),
        (false, false) => error4(frame, packet, hook, fate, bytes),
        (false, true) => error6(frame, packet, hook, fate, bytes),
    }
}

#[inline(never)]
fn reset4(frame: Frame, packet: &Packet, hook: Hook, bytes: &mut Answer) -> i32 {
    match reset_v4(&frame, packet, bytes) {
        Some(()) => back::<RESET_V4>(frame, packet, hook, bytes),
        None => Fate::DROP.code(),
    }
}

#[inline(never)]
fn reset6(frame: Frame, packet: &Packet, hook: Hook, bytes: &mut Answer) -> i32 {
    match reset_v6(&frame, packet, bytes) {
        Some(()) => back::<RESET_V6>(frame, packet, hook, bytes),
        None => Fate::DROP.code(),
    }
}

#[inline(never)]
fn error4(frame: Frame, packet: &Packet, hook: Hook, fate: Fate, bytes: &mut Answer) -> i32 {
    match icmp_v4(&frame, packet, fate.trouble(), bytes) {
        Some(()) => back::<ICMP_V4>(frame, packet, hook, bytes),
        None => Fate::DROP.code(),
    }
}

#[inline(never)]
fn error6(frame: Frame, packet: &Packet, hook: Hook, fate: Fate, bytes: &mut Answer) -> i32 {
    match icmp_v6(&frame, packet, fate.trouble(), bytes) {
        Some(()) => back::<ICMP_V6>(frame, packet, hook, bytes),
        None => Fate::DROP.code(),
    }
}

/// Sends the first `N` octets of `bytes` in the packet's place to where it came from.
#[inline(always)]
fn back<const N: usize>(mut frame: Frame, packet: &Packet, hook: Hook, bytes: &Answer) -> i32 {
    let sent = || -> Option<()> {
        frame.resize(packet.l3 + N as u32, packet.l4).ok()?;
        if packet.l3 != 0 {
            let [a, b, c, d, e, f, g, h, i, j, k, l] = frame.load::<12>(0)?;
            frame.store(0, &[g, h, i, j, k, l, a, b, c, d, e, f], false).ok()?;
        }
        frame.store(packet.l3, bytes.first_chunk::<N>()?, true).ok()
    };
    match { sent }() {
        Some(()) => frame.turn_around(hook as u8 == Hook::Egress as u8),
        None => Fate::DROP.code(),
    }
}
