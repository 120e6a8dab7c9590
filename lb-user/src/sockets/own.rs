//! A socket of this process: where it leads in truth, and whether the kernel ends such a socket when it is told to.

use std::{
    net::{SocketAddr, UdpSocket},
    os::{fd::AsFd, unix::fs::MetadataExt as _},
    path::Path,
};

use anyhow::{Context as _, Result};
use lb_common::Proto;
use rustix::net::sockopt;

use super::{
    channel::{Channel, Ended},
    given::Given,
    message::{Query, Socket, state},
};
use crate::spec::{Family, Target};

/// Where a socket that has dialled `vip` leads in truth, which getpeername(2) does not tell of a translated one: the VIP itself
/// if it was given no backend. The pins are those of `directory`.
///
/// # Errors
/// When neither the kernel nor the maps tell.
pub fn led_to(directory: &Path, socket: impl AsFd, vip: SocketAddr, proto: Proto) -> Result<SocketAddr> {
    let address = |Target { addr, port }: Target| SocketAddr::new(addr.to_ip(), port);
    if proto == Proto::Tcp {
        // By the map, since a backend that refuses has closed the socket by now.
        let given = Given::open(directory, proto)?.context("TCP is not translated")?;
        return Ok(given.to_tcp(sockopt::socket_cookie(&socket)?)?.map_or(vip, address));
    }
    let family = if vip.is_ipv4() { Family::V4 } else { Family::V6 };
    let found = find(&mut Channel::open()?, socket, family)?;
    Ok(address(found.context("the socket is not in the kernel's list")?.remote))
}

/// Whether the kernel ends sockets when it is told to (`CONFIG_INET_DIAG_DESTROY`), tried at a UDP socket of this process.
///
/// # Errors
/// When the kernel does not list sockets, with the cure.
pub fn can_end() -> Result<bool> {
    let socket = UdpSocket::bind(("127.0.0.1", 0)).context("opening a UDP socket")?;
    socket.connect(socket.local_addr()?).context("connecting a UDP socket to itself")?;
    let mut channel = Channel::open()?;
    let own = find(&mut channel, &socket, Family::V4)?.context("a UDP socket is not in the kernel's list")?;
    Ok(channel.end(Proto::Udp, own.name)? == Some(Ended::Yes))
}

/// A UDP socket as the kernel lists it.
fn find(channel: &mut Channel, socket: impl AsFd, family: Family) -> Result<Option<Socket>> {
    let inode = std::fs::File::from(socket.as_fd().try_clone_to_owned()?).metadata()?.ino();
    let query = Query { family, proto: Proto::Udp, states: state::ESTABLISHED, filter: None };
    let is_own = |socket: &Socket| Ok((u64::from(socket.inode) == inode).then_some(*socket));
    Ok(channel.list(query, is_own)?.pop())
}
