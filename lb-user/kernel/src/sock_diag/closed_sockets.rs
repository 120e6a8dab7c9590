//! Notifications of the kernel about closed sockets of a network namespace, at the moment in which they are closed
//! (net/core/sock_diag.c, `sock_diag_broadcast_destroy`).

use std::{io, os::fd::OwnedFd};

use rustix::{
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SocketFlags, SocketType, bind,
        netlink::{self, SocketAddrNetlink},
        recv, socket_with, sockopt,
    },
};
use tokio::io::unix::AsyncFd;

use crate::netlink::BUFFER;

/// Multicast groups of TCP and UDP, of both families (`SKNLGRP_` in include/uapi/linux/sock_diag.h).
const GROUPS: u32 = 0b1111;
/// Size of the receive buffer, in octets. Notifications that it has no room for cost a look at all sockets.
const RECEIVE_BUFFER: usize = 1 << 20;

/// A subscription to closed sockets.
pub struct ClosedSockets {
    fd: AsyncFd<OwnedFd>,
    buffer: Vec<u8>,
}

impl ClosedSockets {
    /// Subscribes in the network namespace of this thread, which must be in a runtime's context. The namespace lasts as
    /// long as the subscription.
    ///
    /// # Errors
    /// Without CAP_NET_ADMIN there, or when the kernel has no sock_diag.
    pub fn subscribe() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, Some(netlink::SOCK_DIAG))?;
        bind(&fd, &SocketAddrNetlink::new(0, GROUPS))?;
        let _best_effort = sockopt::set_socket_recv_buffer_size_force(&fd, RECEIVE_BUFFER);
        Ok(Self { fd: crate::async_fd::register(fd)?, buffer: vec![0; BUFFER] })
    }

    /// Returns when a socket without a peer that was bound to `port` is closed, or may have been.
    ///
    /// # Errors
    /// When the subscription has failed.
    pub async fn closed(&mut self, port: u16) -> io::Result<()> {
        loop {
            let mut guard = self.fd.readable().await?;
            let mut is_closed = false;
            loop {
                match recv(guard.get_inner(), self.buffer.as_mut_slice(), RecvFlags::empty()) {
                    Ok((_, length)) => is_closed |= is_of(self.buffer.get(..length).unwrap_or_default(), port),
                    Err(Errno::NOBUFS) => is_closed = true,
                    Err(Errno::INTR) => {}
                    Err(Errno::AGAIN) => break,
                    Err(error) => return Err(error.into()),
                }
            }
            guard.clear_ready();
            if is_closed {
                return Ok(());
            }
        }
    }
}

/// True if a notification, a message with a `struct inet_diag_msg`, is about a socket of `port` without a peer.
fn is_of(message: &[u8], port: u16) -> bool {
    // The header has 16 octets. The ports follow 4 more.
    let port_at = |at: usize| message.get(at..at + 2) == Some(&port.to_be_bytes()[..]);
    port_at(20) && message.get(22..24) == Some(&[0, 0][..])
}

#[cfg(test)]
mod tests {

    use super::*;

    #[test]
    fn notifications_are_told_apart_by_ports() {
        let mut message = [0; 88];
        message[20..22].copy_from_slice(&53_u16.to_be_bytes());
        assert!(is_of(&message, 53) && !is_of(&message, 54));
        message[22..24].copy_from_slice(&40_000_u16.to_be_bytes());
        assert!(!is_of(&message, 53), "a connection of the port");
        assert!(!is_of(&message[..21], 53));
    }
}
