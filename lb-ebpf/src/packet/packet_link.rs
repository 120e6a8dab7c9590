//! Links of pods that send packets to frontends without a socket of this node: pods that forward, sandboxes with a
//! kernel of their own, raw sockets.
//!
//! Links of pods have no programs, so that pods with sockets pay nothing for them; such a packet, untranslated, leaves
//! by another device. The agent attaches the programs to the link by which it came.

use aya_ebpf::bindings::BPF_NOEXIST;
use lb_common::{Counter, DeviceFlags, FrontendKey, GETS_NO_PROGRAMS, Proto, is_at_address};

use super::{scratch::Scratch, skb::Frame};
use crate::{
    counters::count,
    maps::{DEVICES, PACKET_LINKS},
    tables::Kernel,
};

/// Time after the first packet for which the agent counts as running, in ns: longer than a restart of it. Until it
/// attaches the programs, packets are dropped, and their senders send them again. Packets are refused once it has
/// answered that the link gets none ([`GETS_NO_PROGRAMS`]), or has not answered in this time.
const ANSWER_TIMEOUT: u64 = 30_000_000_000;

/// True if a leaving packet to a frontend came by the link of a pod that is about to get the programs.
#[inline(never)]
pub fn awaits_programs(frame: Frame, scratch: &mut Scratch) -> bool {
    let link = frame.entered_by();
    // SAFETY: read at once; an element that is replaced meanwhile stays until the RCU grace period ends.
    let Some(flags) = (unsafe { DEVICES.get(link) }).map(|device| device.flags) else {
        return false;
    };
    if flags & DeviceFlags::POD == 0 {
        return false;
    }
    let packet = &scratch.packet;
    let Some(proto) = Proto::from_number(packet.proto.into()) else {
        return false;
    };
    if !is_at_address(&Kernel, &FrontendKey::new(packet.tuple.dst, packet.tuple.dst_port, proto), true) {
        return false;
    }
    awaits(link, flags, scratch.clock.now())
}

/// Notes the link of a pod, with these flags in `DEVICES`, by which a packet to a frontend came at `now`
/// (CLOCK_MONOTONIC, ns). True if it is about to get the programs.
#[inline(always)]
pub fn awaits(link: u32, flags: u32, now: u64) -> bool {
    // SAFETY: read at once; an element that is replaced meanwhile stays until the RCU grace period ends.
    let awaits = match unsafe { PACKET_LINKS.get(link) } {
        // Whatever its flags: the agent writes them before it attaches the programs.
        Some(since) => *since != GETS_NO_PROGRAMS && now.saturating_sub(*since) < ANSWER_TIMEOUT,
        None => flags & DeviceFlags::NO_PROGRAMS != 0 && note(link, now),
    };
    if awaits {
        count(Counter::AwaitsPrograms);
    }
    awaits
}

/// Notes a link; false if there is no room. Another CPU may have noted it for a packet that came at the same time.
#[inline(always)]
fn note(link: u32, now: u64) -> bool {
    PACKET_LINKS.insert(link, now, u64::from(BPF_NOEXIST)).is_ok() || PACKET_LINKS.get_ptr(link).is_some()
}
