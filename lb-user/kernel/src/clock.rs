//! The kernel's clocks: CLOCK_MONOTONIC, which BPF programs read, and the state of the wall clock.
#![expect(unsafe_code, reason = "adjtimex(2)")]

use std::mem;

/// Returns CLOCK_MONOTONIC in nanoseconds: the clock that BPF programs read with `bpf_ktime_get_ns`.
#[must_use]
pub fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    // The clock starts at zero with the node, so neither part is negative.
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
