//! What this node's sockets do with service ports and backends: counts, turns, and who sticks to what. An entry is made by
//! the first socket that needs it, and removed by the agent when its service port or backend has gone.

use core::arch::asm;

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_NOEXIST},
    helpers::generated,
};
use lb_common::{
    Affinity, AffinityKey, BackendStats, Cause, Choice, Counter, List, PortStats, State, bpf_spin_lock, take_turn,
};

use crate::maps::{AFFINITY, BACKEND_STATS, Kernel, PORT_STATS, count};

/// A socket is given a backend, which it holds until [`closed`].
#[inline(always)]
pub fn opened(choice: &Choice) {
    given(choice.service, choice.backend, 1);
}

/// A socket is given a backend, and nobody will tell when it is closed; or it has that backend already.
#[inline(always)]
pub fn connected(choice: &Choice) {
    given(choice.service, choice.backend, 0);
}

#[inline(never)]
fn given(service: u32, backend: u32, open: u64) {
    if let Some(stats) = of_port(service) {
        // SAFETY: a map value of ours; its counts are changed by atomic additions only.
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

/// A socket holds a backend no more.
#[inline(never)]
pub fn closed(backend: u32) {
    if let Some(stats) = BACKEND_STATS.get_ptr_mut(backend) {
        // SAFETY: as in `given`; only asked whether it is 0.
        let open = unsafe { &raw mut (*stats).open };
        // It may be of before the count: another version of the layout can have begun that anew.
        if unsafe { open.read_volatile() } != 0 {
            add(open, u64::MAX);
        }
    }
}

/// A socket or a packet was refused.
#[inline(always)]
pub fn refused(service: u32, cause: Cause) {
    if let Some(stats) = of_port(service) {
        // SAFETY: as in `given`.
        let count = unsafe {
            match cause {
                Cause::NoEndpoints => &raw mut (*stats).no_endpoints,
                Cause::NoLocalEndpoints => &raw mut (*stats).no_local_endpoints,
                Cause::SourceRange => return add(&raw mut (*stats).source_range, 1),
            }
        };
        add(count, 1);
    }
}

/// A UDP socket moved to another backend of its service port.
#[inline(always)]
pub fn moved(service: u32) {
    if let Some(stats) = of_port(service) {
        // SAFETY: as in `given`.
        add(unsafe { &raw mut (*stats).moved }, 1);
    }
}

/// Adds at once with whoever else does; `u64::MAX` takes one away. Written out, since the compiler knows no atomic
/// addition for this target, and it must be the one that returns nothing: the other is of Linux 5.12.
#[inline(always)]
fn add(value: *mut u64, by: u64) {
    // SAFETY: a field of a map value, aligned to 8.
    unsafe { asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) value, in(reg) by, options(nostack)) };
}

/// In read-only data and not on the stack, which is short.
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
    // Of two that come at once the first one's stays.
    let _there_now = PORT_STATS.insert(service, new, u64::from(BPF_NOEXIST));
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
    let _there_now = BACKEND_STATS.insert(backend, new, u64::from(BPF_NOEXIST));
    let stats = BACKEND_STATS.get_ptr_mut(backend);
    if stats.is_none() {
        count(Counter::StatsFull);
    }
    stats
}

impl State for Kernel {
    #[inline(always)]
    fn open(&self, backend: u32) -> u64 {
        // SAFETY: read at once; an element that is removed meanwhile stays until the RCU grace period ends.
        unsafe { BACKEND_STATS.get(backend) }.map_or(0, |stats| stats.open)
    }

    #[inline(always)]
    fn turn(&self, service: u32, list: List, len: u32, stride: u32) -> Option<u32> {
        let stats = of_port(service)?;
        // SAFETY: a map value of ours; its turns are changed under its lock only. (An addition that returns what was
        // there would do without, but is of Linux 5.12.)
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
        // SAFETY: as in `open`.
        unsafe { AFFINITY.get(key) }.copied()
    }

    #[inline(always)]
    fn stick(&self, key: &AffinityKey, backend: u32, now: u64) {
        let value = Affinity { used: now, backend, _pad: 0 };
        if AFFINITY.insert(key, value, u64::from(BPF_ANY)).is_err() {
            count(Counter::AffinityFull);
        }
    }
}
