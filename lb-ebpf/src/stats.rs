//! Counts, turns and affinity of service ports and backends. The first socket or packet creates an entry; the agent
//! removes it with its service port or backend.

use core::arch::asm;

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_NOEXIST},
    helpers::generated,
};
use lb_common::{
    Affinity, AffinityKey, BackendStats, Cause, Choice, Counter, EjectionKey, Hold, List, PortStats, State,
    bpf_spin_lock, take_turn,
};

use crate::{
    counters::count,
    maps::{AFFINITY, BACKEND_STATS, EJECTIONS, PORT_STATS},
    tables::Kernel,
};

/// Counts a connection of a socket that is open until [`closed`].
#[inline(always)]
pub fn opened(choice: &Choice) {
    count_connection(choice.service, choice.backend, 1);
}

/// Counts a connection of a socket that had one to the backend `before` (0 for none), which is open no more.
#[inline(always)]
pub fn reopened(before: u32, choice: &Choice) {
    if before == choice.backend {
        return connected(choice);
    }
    if before != 0 {
        closed(before);
    }
    opened(choice);
}

/// Counts a connection without an open socket: a flow, or a socket whose close cannot be counted.
#[inline(always)]
pub fn connected(choice: &Choice) {
    count_connection(choice.service, choice.backend, 0);
}

#[inline(never)]
fn count_connection(service: u32, backend: u32, open: u64) {
    if let Some(stats) = of_port(service) {
        // SAFETY: our map value; its counts change by atomic additions only.
        add(unsafe { &raw mut (*stats).connections }, 1);
    }
    if let Some(stats) = of_backend(backend, service) {
        // SAFETY: as above.
        unsafe {
            add(&raw mut (*stats).connections, 1);
            add(&raw mut (*stats).open, open);
        }
    }
}

/// Counts the close of a socket.
#[inline(never)]
pub fn closed(backend: u32) {
    if let Some(stats) = BACKEND_STATS.get_ptr_mut(backend) {
        // SAFETY: as in `count_connection`; the value is compared with 0 only.
        let open = unsafe { &raw mut (*stats).open };
        // An upgrade to another layout may have reset the count after the socket was opened.
        if unsafe { open.read_volatile() } != 0 {
            add(open, u64::MAX);
        }
    }
}

/// Counts a refusal of a socket or a packet.
#[inline(always)]
pub fn refused(service: u32, cause: Cause) {
    if let Some(stats) = of_port(service) {
        // SAFETY: as in `count_connection`.
        let count = unsafe {
            match cause {
                Cause::NoEndpoints => &raw mut (*stats).no_endpoints,
                Cause::NoLocalEndpoints => &raw mut (*stats).no_local_endpoints,
                Cause::SourceRange => return add(&raw mut (*stats).source_range, 1),
                Cause::UnknownPort | Cause::UnknownClusterIp => return,
            }
        };
        add(count, 1);
    }
}

/// Counts a move of a UDP socket to another backend of its service port.
#[inline(always)]
pub fn moved(service: u32) {
    if let Some(stats) = of_port(service) {
        // SAFETY: as in `count_connection`.
        add(unsafe { &raw mut (*stats).moved }, 1);
    }
}

/// Adds atomically; `u64::MAX` subtracts 1. In assembly, since the compiler has no atomic addition for this target, and
/// the instruction must be the one without a result: the other needs Linux 5.12.
#[inline(always)]
pub fn add(value: *mut u64, by: u64) {
    // SAFETY: a field of a map value, aligned to 8.
    unsafe { asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) value, in(reg) by, options(nostack)) };
}

/// In read-only data, since the stack is short.
static NEW_PORT: PortStats = PortStats {
    lock: bpf_spin_lock { val: 0 },
    cluster_turn: 0,
    local_turn: 0,
    _pad: 0,
    connections: 0,
    no_endpoints: 0,
    no_local_endpoints: 0,
    source_range: 0,
    moved: 0,
};

#[inline(always)]
fn of_port(service: u32) -> Option<*mut PortStats> {
    if let Some(stats) = PORT_STATS.get_ptr_mut(service) {
        return Some(stats);
    }
    let new: &PortStats = &NEW_PORT;
    // The first of two concurrent insertions succeeds.
    let _inserted = PORT_STATS.insert(service, new, u64::from(BPF_NOEXIST));
    let stats = PORT_STATS.get_ptr_mut(service);
    if stats.is_none() {
        count(Counter::StatsFull);
    }
    stats
}

#[inline(always)]
fn of_backend(backend: u32, service: u32) -> Option<*mut BackendStats> {
    if let Some(stats) = BACKEND_STATS.get_ptr_mut(backend) {
        return Some(stats);
    }
    let new = BackendStats { service, ..BackendStats::default() };
    let _inserted = BACKEND_STATS.insert(backend, new, u64::from(BPF_NOEXIST));
    let stats = BACKEND_STATS.get_ptr_mut(backend);
    if stats.is_none() {
        count(Counter::StatsFull);
    }
    stats
}

impl State for Kernel {
    #[inline(always)]
    fn open_sockets(&self, backend: u32) -> u64 {
        // SAFETY: read at once; an element that is removed meanwhile stays until the RCU grace period ends.
        unsafe { BACKEND_STATS.get(backend) }.map_or(0, |stats| stats.open)
    }

    #[inline(always)]
    fn turn(&self, service: u32, list: List, len: u32, stride: u32) -> Option<u32> {
        let stats = of_port(service)?;
        // SAFETY: our map value; its turns change under its lock only. (An atomic addition with a result would need no
        // lock, but needs Linux 5.12.)
        unsafe {
            generated::bpf_spin_lock((&raw mut (*stats).lock).cast());
            let turn = match list {
                List::Cluster => &mut (*stats).cluster_turn,
                List::Local => &mut (*stats).local_turn,
            };
            let (index, next) = take_turn(*turn, len, stride);
            *turn = next;
            generated::bpf_spin_unlock((&raw mut (*stats).lock).cast());
            Some(index)
        }
    }

    #[inline(always)]
    fn affinity(&self, key: &AffinityKey) -> Option<Affinity> {
        // SAFETY: as in `open_sockets`.
        unsafe { AFFINITY.get(key) }.copied()
    }

    #[inline(always)]
    fn set_affinity(&self, key: &AffinityKey, backend: u32, now: u64) {
        let value = Affinity { used: now, backend, _pad: 0 };
        if AFFINITY.insert(key, value, u64::from(BPF_ANY)).is_err() {
            count(Counter::AffinityFull);
        }
    }

    #[inline(always)]
    fn hold(&self, client: &EjectionKey, backend: u32, most: u32, now: u64) -> Hold {
        match EJECTIONS.get_ptr(client) {
            // SAFETY: an element that is removed meanwhile stays until the RCU grace period ends; each field is a word
            // of its own.
            Some(seen) => unsafe { &*seen }.hold(backend, most, now),
            None => Hold::Free,
        }
    }

    #[inline(always)]
    fn begin_trial(&self, client: &EjectionKey, backend: u32, now: u64) {
        if let Some(seen) = EJECTIONS.get_ptr_mut(client) {
            // SAFETY: our map value, changed under its lock only.
            unsafe {
                generated::bpf_spin_lock((&raw mut (*seen).lock).cast());
                (*seen).begin_trial(backend, now);
                generated::bpf_spin_unlock((&raw mut (*seen).lock).cast());
            }
        }
    }
}
