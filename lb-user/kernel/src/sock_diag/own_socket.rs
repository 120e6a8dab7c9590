//! A UDP socket of this process in the kernel's list, and a test that the kernel destroys such a socket.

use std::{
    net::UdpSocket,
    os::{fd::AsFd, unix::fs::MetadataExt as _},
};

use anyhow::{Context as _, Result};
use lb_common::Proto;

use super::{
    channel::{DestroyOutcome, SockDiag},
    message::{Socket, SocketQuery, state},
};
use lb_common::Family;

/// True if the kernel destroys sockets on request (`CONFIG_INET_DIAG_DESTROY`). Tries it on a UDP socket of this
/// process.
///
/// # Errors
/// When the kernel does not list sockets, with the cure.
pub fn can_destroy() -> Result<bool> {
    let socket = UdpSocket::bind(("127.0.0.1", 0)).context("opening a UDP socket")?;
    socket.connect(socket.local_addr()?).context("connecting a UDP socket to itself")?;
    let mut sock_diag = SockDiag::open()?;
    let own =
        find_udp_socket(&mut sock_diag, &socket, Family::V4)?.context("a UDP socket is not in the kernel's list")?;
    Ok(sock_diag.destroy(Proto::Udp, own.id)? == Some(DestroyOutcome::Destroyed))
}

/// Finds a connected UDP socket of this process in the kernel's list.
///
/// # Errors
/// When the kernel does not list sockets.
pub fn find_udp_socket(sock_diag: &mut SockDiag, socket: impl AsFd, family: Family) -> Result<Option<Socket>> {
    let inode = std::fs::File::from(socket.as_fd().try_clone_to_owned()?).metadata()?.ino();
    let query = SocketQuery { family, proto: Proto::Udp, states: state::ESTABLISHED, filter: None };
    let is_own = |socket: &Socket| Ok((u64::from(socket.inode) == inode).then_some(*socket));
    Ok(sock_diag.list(query, is_own)?.pop())
}
