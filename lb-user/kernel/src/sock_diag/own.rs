//! A socket of this process: where it leads in truth, and whether the kernel ends such a socket when it is told to.

use std::{
    net::UdpSocket,
    os::{fd::AsFd, unix::fs::MetadataExt as _},
};

use anyhow::{Context as _, Result};
use lb_common::Proto;

use super::{
    channel::{Channel, Ended},
    message::{Query, Socket, state},
};
use lb_common::Family;

/// Whether the kernel ends sockets when it is told to (`CONFIG_INET_DIAG_DESTROY`), tried at a UDP socket of this process.
///
/// # Errors
/// When the kernel does not list sockets, with the cure.
pub fn can_end() -> Result<bool> {
    let socket = UdpSocket::bind(("127.0.0.1", 0)).context("opening a UDP socket")?;
    socket.connect(socket.local_addr()?).context("connecting a UDP socket to itself")?;
    let mut channel = Channel::open()?;
    let own = find_own(&mut channel, &socket, Family::V4)?.context("a UDP socket is not in the kernel's list")?;
    Ok(channel.end(Proto::Udp, own.name)? == Some(Ended::Yes))
}

/// A UDP socket as the kernel lists it.
pub fn find_own(channel: &mut Channel, socket: impl AsFd, family: Family) -> Result<Option<Socket>> {
    let inode = std::fs::File::from(socket.as_fd().try_clone_to_owned()?).metadata()?.ino();
    let query = Query { family, proto: Proto::Udp, states: state::ESTABLISHED, filter: None };
    let is_own = |socket: &Socket| Ok((u64::from(socket.inode) == inode).then_some(*socket));
    Ok(channel.list(query, is_own)?.pop())
}
