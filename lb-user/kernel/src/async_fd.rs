//! Readiness of descriptors in the async runtime.
#![expect(unsafe_code, reason = "tokio wants the descriptor's lifetime promised")]

use std::{io, os::fd::OwnedFd};

use tokio::io::unix::AsyncFd;

/// Registers a descriptor with the runtime.
///
/// # Errors
/// When the runtime's epoll refuses the descriptor.
pub fn register(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor is owned by the AsyncFd, which never changes it and closes it only after deregistering.
    Ok(unsafe { AsyncFd::register(fd) }?)
}
