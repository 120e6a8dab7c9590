//! The kernel's view of its clock.
#![expect(unsafe_code, reason = "adjtimex(2)")]

use std::mem;

/// True if a daemon (chrony, systemd-timesyncd) keeps the clock synchronised; None where the kernel does not tell.
#[must_use]
pub fn is_synchronised() -> Option<bool> {
    // SAFETY: integers, for which zero is a value.
    let mut time: libc::timex = unsafe { mem::zeroed() };
    // SAFETY: with mode 0 the kernel only fills it.
    let state = unsafe { libc::adjtimex(&raw mut time) };
    (state >= 0).then_some(state != libc::TIME_ERROR)
}
