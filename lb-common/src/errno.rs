//! Errors of system calls that the programs return (include/uapi/asm-generic/errno.h).

/// Any refusal, before Linux 5.18.
pub const EPERM: i32 = 1;
/// Nothing listens at the address.
pub const ECONNREFUSED: i32 = 111;
/// No way leads to the host.
pub const EHOSTUNREACH: i32 = 113;

/// Returns the name of one of these errors, and its text as by strerror(3).
#[must_use]
pub const fn name_and_text(errno: i32) -> Option<(&'static str, &'static str)> {
    match errno {
        EPERM => Some(("EPERM", "Operation not permitted")),
        ECONNREFUSED => Some(("ECONNREFUSED", "Connection refused")),
        EHOSTUNREACH => Some(("EHOSTUNREACH", "No route to host")),
        _ => None,
    }
}
