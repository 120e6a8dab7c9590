//! The kernel's clocks: the two that BPF programs read, and the state of the wall clock.
#![expect(unsafe_code, reason = "adjtimex(2)")]

use std::mem;

use rustix::time::{ClockId, clock_gettime};

/// Returns CLOCK_MONOTONIC in nanoseconds: the clock that BPF programs read with `bpf_ktime_get_ns`.
#[must_use]
pub fn monotonic_ns() -> u64 {
    read_ns(ClockId::Monotonic)
}

/// Returns CLOCK_BOOTTIME in nanoseconds, which does not stand still in a suspend: the clock that BPF programs read
/// with `bpf_ktime_get_boot_ns`.
#[must_use]
pub fn boot_time_ns() -> u64 {
    read_ns(ClockId::Boottime)
}

fn read_ns(clock: ClockId) -> u64 {
    let now = clock_gettime(clock);
    // Both clocks start at zero with the node, so neither part is negative.
    let (seconds, nanos) = (u64::try_from(now.tv_sec).unwrap_or(0), u64::try_from(now.tv_nsec).unwrap_or(0));
    seconds * 1_000_000_000 + nanos
}

/// True if a daemon (chrony, systemd-timesyncd) keeps the wall clock synchronised; None if the kernel does not report
/// it.
#[must_use]
pub fn is_synchronised() -> Option<bool> {
    // SAFETY: integers, for which zero is a value.
    let mut time: libc::timex = unsafe { mem::zeroed() };
    // SAFETY: with mode 0 the kernel only fills the struct.
    let state = unsafe { libc::adjtimex(&raw mut time) };
    (state >= 0).then_some(state != libc::TIME_ERROR)
}
