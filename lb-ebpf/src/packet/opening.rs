//! Flows that begin: while the client has not answered the backend, its address may be forged, and the flow gives
//! way to newer ones, as netfilter drops early what is not assured. So a flood does not fill `FLOWS`.
//!
//! `OPENING` has a queue for each CPU, oldest first. A flow in it may have been answered, or be gone.

use core::ptr;

use aya_ebpf::{bindings::BPF_ANY, helpers::generated::bpf_get_smp_processor_id};
use lb_common::{
    Counter, Flow, FlowFlags, FlowKey, Opening,
    flow::{FlowState, partner_key},
};

use super::{flow, scratch::Scratch};
use crate::{
    counters::count,
    globals::OPENING_SLOTS,
    maps::{FLOWS, OPENING},
};

/// Flows of the queue to look at for the room of a new one.
pub const TRIES: u32 = 8;

/// Puts the flow in `scratch` at the end of the queue. If the queue is full, its oldest flow gives way.
#[inline(never)]
pub fn push(scratch: &mut Scratch) {
    if scratch.opening.end >= OPENING_SLOTS.load() {
        // `FLOWS` was larger before, and so was the queue.
        (scratch.opening.first, scratch.opening.end) = (0, 0);
    }
    let end = scratch.opening.end;
    let next = after(end);
    if next == scratch.opening.first {
        remove_oldest(scratch);
    }
    if let Some(element) = element(end) {
        // SAFETY: our map value, which this CPU alone writes; programs of one CPU do not interrupt each other.
        unsafe { ptr::copy_nonoverlapping(&raw const scratch.key, &raw mut (*element).key, 1) };
        scratch.opening.end = next;
    }
}

/// Takes the oldest flow from the queue, and removes it if it gives way. False if it does not, or the queue is empty.
/// Overwrites `scratch.other_key`.
#[inline(never)]
pub fn remove_oldest(scratch: &mut Scratch) -> bool {
    let first = scratch.opening.first;
    if first == scratch.opening.end {
        return false;
    }
    scratch.opening.first = after(first);
    let Some(oldest) = element(first) else {
        return false;
    };
    // SAFETY: as above; for reading only.
    let key: &FlowKey = unsafe { &(*oldest).key };
    let Some(flow) = FLOWS.get_ptr(key) else {
        return false;
    };
    // SAFETY: our map value; it stays until the RCU grace period ends.
    let flow = unsafe { &*flow };
    if !gives_way(flow) {
        return false;
    }
    scratch.other_key = partner_key(key, flow);
    // The client's direction last: once it is removed, the client's next packet begins a flow with two new entries.
    let _existed = FLOWS.remove(&scratch.other_key);
    let _existed = FLOWS.remove(key);
    count(Counter::FlowsEarlyDrop);
    true
}

/// Gives the flow in `scratch` the place of the flow that has its `partner_key`; false if that does not give way.
#[inline(never)]
pub fn take_over(scratch: &mut Scratch) -> bool {
    if OPENING_SLOTS.load() == 0 {
        return false;
    }
    let Scratch { key, flow, partner, partner_key: place, other_key, .. } = scratch;
    let Some(there) = FLOWS.get_ptr(&*place) else {
        return false;
    };
    // SAFETY: our map value; it stays until the RCU grace period ends.
    *other_key = partner_key(place, unsafe { &*there });
    let Some(of_client) = FLOWS.get_ptr(&*other_key) else {
        return false;
    };
    // SAFETY: as above.
    if !gives_way(unsafe { &*of_client }) {
        return false;
    }
    let _existed = FLOWS.remove(&*other_key);
    count(Counter::FlowsEarlyDrop);
    flow::insert(&*place, &*partner, u64::from(BPF_ANY)).is_ok()
        && flow::insert(&*key, &*flow, u64::from(BPF_ANY)).is_ok()
}

/// True if the client's entry of a flow is of a Service, and the flow gives way.
#[inline(always)]
fn gives_way(flow: &Flow) -> bool {
    flow.flags & (FlowFlags::REVERSE | FlowFlags::PASSED) == 0 && FlowState::of(flow.forward, flow.reverse).gives_way()
}

#[inline(always)]
fn after(index: u32) -> u32 {
    if index + 1 < OPENING_SLOTS.load() { index + 1 } else { 0 }
}

/// The element of this CPU with an index; `None` without room for queues.
#[inline(always)]
fn element(index: u32) -> Option<*mut Opening> {
    let slots = OPENING_SLOTS.load();
    if index >= slots {
        return None;
    }
    // SAFETY: no precondition.
    OPENING.get_ptr_mut(unsafe { bpf_get_smp_processor_id() } * slots + index)
}
