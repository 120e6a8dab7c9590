//! Errors of system calls (include/uapi/asm-generic/errno.h).

/// Nothing listens at the address.
pub const ECONNREFUSED: i32 = 111;
/// No way leads to the host.
pub const EHOSTUNREACH: i32 = 113;
