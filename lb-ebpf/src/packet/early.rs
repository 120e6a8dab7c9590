//! Fragments that come before the first one of their datagram, whose ports are still unknown: kept until the first one
//! comes, and then received anew. They overtake where a network card spreads fragments over its queues, by the ports
//! that only the first one has.

use core::arch::asm;

use aya_ebpf::{
    bindings::{BPF_F_INGRESS, BPF_F_RECOMPUTE_CSUM, BPF_NOEXIST},
    btf_maps::PerCpuArray,
    helpers::generated::{bpf_clone_redirect, bpf_skb_change_tail, bpf_skb_load_bytes, bpf_skb_store_bytes},
    macros::btf_map,
};
use lb_common::{EarlyFragment, EarlyKey, FrontendKey, Hook, Proto, Tables as _, packet::Packet};

use super::{fragment, scratch::Scratch, skb::Frame};
use crate::{maps::EARLY_FRAGMENTS, tables::Kernel};

/// Fragments of a datagram that are kept.
const MAX_KEPT: u32 = 4;

/// A fragment on its way into the map, and the first fragment while others take its place.
#[btf_map]
pub static EARLY_BUFFERS: PerCpuArray<EarlyFragment, 2> = PerCpuArray::new();

/// True if the datagram may be for a Service: its destination is an address of this node, or may be a VIP.
#[inline(never)]
pub fn may_be_for_a_service(packet: &Packet) -> bool {
    Kernel.may_have(&FrontendKey::new(packet.tuple.dst, 0, Proto::Tcp).address())
        || Kernel.node_addr(&packet.tuple.dst).is_some()
}

/// Keeps a copy of a later fragment; false without room for it.
#[inline(never)]
pub fn keep(frame: Frame, scratch: &mut Scratch) -> bool {
    let Some(buffer) = EARLY_BUFFERS.get_ptr_mut(0) else {
        return false;
    };
    // SAFETY: a value of a per-CPU array: the programs of a packet finish before those of the CPU's next packet begin.
    let buffer = unsafe { &mut *buffer };
    if !copy(frame, scratch.packet.l3, buffer) {
        return false;
    }
    buffer.at = scratch.clock.now();
    let mut key = key(&scratch.packet);
    for number in 0..MAX_KEPT {
        key.number = number;
        if EARLY_FRAGMENTS.insert(&key, &*buffer, u64::from(BPF_NOEXIST)).is_ok() {
            return true;
        }
    }
    false
}

/// Has the kernel receive the kept fragments of a datagram anew, whose first fragment is `frame`. False if that is
/// lost meanwhile.
#[inline(never)]
pub fn release(frame: Frame, scratch: &mut Scratch) -> bool {
    let mut key = key(&scratch.packet);
    if EARLY_FRAGMENTS.get_ptr(&key).is_none() {
        return true;
    }
    let Some(first) = EARLY_BUFFERS.get_ptr_mut(1) else {
        return true;
    };
    // SAFETY: as above.
    let first = unsafe { &mut *first };
    let l3 = scratch.packet.l3;
    if !copy(frame, l3, first) {
        return true;
    }
    let now = scratch.clock.now();
    for number in 0..MAX_KEPT {
        key.number = number;
        let Some(early) = EARLY_FRAGMENTS.get_ptr(&key) else {
            break;
        };
        // SAFETY: our map value; it stays until the RCU grace period ends.
        let early = unsafe { &*early };
        // An older one is of another datagram.
        if now.saturating_sub(early.at) < EarlyFragment::LASTS && replace(frame, l3, early) {
            // SAFETY: the context.
            let _sent = unsafe { bpf_clone_redirect(frame.raw().cast(), frame.ifindex(), u64::from(BPF_F_INGRESS)) };
        }
        let _existed = EARLY_FRAGMENTS.remove(&key);
    }
    replace(frame, l3, first)
}

#[inline(always)]
fn key(packet: &Packet) -> EarlyKey {
    EarlyKey { datagram: fragment::key(packet, Hook::Ingress), number: 0 }
}

/// The length, with bounds that the verifier sees; `None` for none, and for one above that of a fragment that is kept.
#[inline(always)]
fn bounded(len: u32) -> Option<u32> {
    const MASK: u64 = EarlyFragment::MOST as u64 - 1;
    let mut last = u64::from(len.wrapping_sub(1));
    if last > MASK {
        return None;
    }
    // The compiler would find the mask useless, but the check above is of another register.
    // SAFETY: a move of a register to itself.
    unsafe { asm!("{0} = {0}", inlateout(reg) last, options(pure, nomem, nostack)) };
    Some((last & MASK) as u32 + 1)
}

/// Copies a packet from its IP header on; false if it is too large.
#[inline(always)]
fn copy(frame: Frame, l3: u32, to: &mut EarlyFragment) -> bool {
    let Some(len) = bounded(frame.len().wrapping_sub(l3)) else {
        return false;
    };
    to.len = len;
    // SAFETY: the context, and a buffer of that length; the helper checks the packet's.
    unsafe { bpf_skb_load_bytes(frame.raw(), l3, to.octets.as_mut_ptr().cast(), len) == 0 }
}

/// Puts another packet in the place of this one, from the IP header on; false if that fails.
#[inline(always)]
fn replace(frame: Frame, l3: u32, from: &EarlyFragment) -> bool {
    let Some(len) = bounded(from.len) else {
        return false;
    };
    // SAFETY: as above.
    unsafe {
        bpf_skb_change_tail(frame.raw().cast(), l3 + len, 0) == 0
            && bpf_skb_store_bytes(
                frame.raw().cast(),
                l3,
                from.octets.as_ptr().cast(),
                len,
                u64::from(BPF_F_RECOMPUTE_CSUM),
            ) == 0
    }
}
