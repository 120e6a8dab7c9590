//! Answers for addresses that the node announces on its links: an ARP request or a neighbour solicitation becomes its
//! answer, and goes back by its device.
//!
//! No interface has such an address, so that the kernel answers none of them. Where `ANNOUNCED_UNTIL` is over, the
//! programs do not answer either: another node may hold the addresses by then.

use aya_ebpf::helpers::generated::bpf_ktime_get_boot_ns;
use lb_common::{
    Addr, ConflictEntry, ConflictKey, Counter, Hook, LinkAddr,
    packet::{
        ADVERTISEMENT_FRAME, NeighbourMessage, Packet, advertised_link, answer_arp, answer_solicitation, is_same_link,
        is_valid, parse_arp, parse_neighbour_message, sender_link,
    },
};

use super::{skb::Frame, verdict::PacketVerdict};
use crate::{
    counters::count,
    maps::{ANNOUNCED, ANNOUNCED_UNTIL, CONFLICTS, LINK_ADDRS},
};

/// The time, while the node may answer (CLOCK_BOOTTIME, ns).
#[inline(always)]
fn time_to_answer() -> Option<u64> {
    let until = *ANNOUNCED_UNTIL.get(0)?;
    // Most nodes announce nothing.
    if until == 0 {
        return None;
    }
    // SAFETY: no precondition. Linux 5.8.
    let now = unsafe { bpf_ktime_get_boot_ns() };
    if now < until { Some(now) } else { None }
}

#[inline(always)]
fn is_announced(address: &Addr) -> bool {
    // SAFETY: the value is not read.
    unsafe { ANNOUNCED.get(address) }.is_some()
}

/// The link address in answers by the frame's device.
#[inline(always)]
fn own_link(frame: Frame) -> Option<LinkAddr> {
    // SAFETY: read at once; an element that is replaced meanwhile stays until the RCU grace period ends.
    unsafe { LINK_ADDRS.get(frame.ifindex()) }.copied()
}

/// Answers an ARP request for an announced address. Any other packet passes.
#[inline(never)]
pub fn arp(mut frame: Frame) -> i32 {
    answer_to_arp(&mut frame).unwrap_or(PacketVerdict::PASS).code()
}

#[inline(always)]
fn answer_to_arp(frame: &mut Frame) -> Option<PacketVerdict> {
    let now = time_to_answer()?;
    if frame.is_for_another_host() {
        return None;
    }
    let own = own_link(*frame)?;
    let arp = parse_arp(frame)?;
    let sender = Addr::from_v4_word(arp.sender);
    if is_announced(&sender) {
        claimed(*frame, &sender, &arp.link, &own, now);
        return None;
    }
    if !arp.is_request || !is_announced(&Addr::from_v4_word(arp.target)) {
        return None;
    }
    Some(if answer_arp(frame, &arp, &own).is_ok() { turn_around(frame) } else { PacketVerdict::DROP })
}

/// Answers a neighbour solicitation for an announced address. Any other packet passes.
#[inline(always)]
pub fn neighbour(frame: Frame, packet: &Packet) -> PacketVerdict {
    match parse_neighbour_message(&frame, packet) {
        Some(message) => answer_to_message(frame, packet, &message),
        None => PacketVerdict::PASS,
    }
}

#[inline(never)]
fn answer_to_message(mut frame: Frame, packet: &Packet, message: &NeighbourMessage) -> PacketVerdict {
    answer_if_announced(&mut frame, packet, message).unwrap_or(PacketVerdict::PASS)
}

#[inline(always)]
fn answer_if_announced(frame: &mut Frame, packet: &Packet, message: &NeighbourMessage) -> Option<PacketVerdict> {
    let now = time_to_answer()?;
    let own = own_link(*frame)?;
    if !is_announced(&message.target) || !is_valid(frame, packet, message) {
        return None;
    }
    if !message.is_solicitation {
        claimed(*frame, &message.target, &advertised_link(frame, packet)?, &own, now);
        return None;
    }
    let (asker, link) = (packet.tuple.src, sender_link(frame)?);
    let is_answered = answer(frame, packet, &asker, &link, &message.target, &own);
    Some(if is_answered { turn_around(frame) } else { PacketVerdict::DROP })
}

#[inline(always)]
fn answer(frame: &mut Frame, packet: &Packet, asker: &Addr, link: &LinkAddr, target: &Addr, own: &LinkAddr) -> bool {
    frame.resize(ADVERTISEMENT_FRAME as u32, packet.l4).is_ok()
        && answer_solicitation(frame, asker, link, target, own).is_ok()
}

#[inline(always)]
fn turn_around(frame: &mut Frame) -> PacketVerdict {
    count(Counter::NeighboursAnswered);
    PacketVerdict::of_helper(frame.turn_around(Hook::Ingress).into())
}

/// Counts a claim of an announced address by another link address.
#[inline(never)]
fn claimed(frame: Frame, addr: &Addr, link: &LinkAddr, own: &LinkAddr, now: u64) {
    // An announcement of this node, which another port of the link sent back.
    if is_same_link(link, own) {
        return;
    }
    count(Counter::AddressConflicts);
    let key = ConflictKey { addr: *addr, link: *link };
    let ifindex = frame.ifindex();
    match CONFLICTS.get_ptr_mut(&key) {
        Some(entry) => {
            // SAFETY: aligned to eight octets; the element is not removed within the RCU grace period.
            let entry = unsafe { &mut *entry };
            entry.count += 1;
            entry.last = now;
            entry.ifindex = ifindex;
        }
        None => {
            let first = ConflictEntry { last: now, count: 1, ifindex, _pad: 0 };
            // A full LRU map makes room.
            let _full = CONFLICTS.insert(&key, &first, 0);
        }
    }
}
