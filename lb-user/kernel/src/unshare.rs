//! Namespaces of one's own: unshare(2), whose wrapper in rustix is unsafe.
#![expect(unsafe_code, reason = "unshare(2)")]

use std::io;

use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Moves the calling thread into a new network namespace.
///
/// # Errors
/// EPERM without CAP_SYS_ADMIN.
pub fn network() -> io::Result<()> {
    // SAFETY: only CLONE_FILES makes unshare(2) unsafe, and the flags leave it out.
    Ok(unsafe { unshare_unsafe(UnshareFlags::NEWNET) }?)
}

/// Moves the calling process, while it has one thread, into a new network namespace and a new mount namespace.
///
/// # Errors
/// EPERM without CAP_SYS_ADMIN.
pub fn network_and_mounts() -> io::Result<()> {
    // SAFETY: only CLONE_FILES makes unshare(2) unsafe, and the flags leave it out.
    Ok(unsafe { unshare_unsafe(UnshareFlags::NEWNET | UnshareFlags::NEWNS) }?)
}
