//! The backend to which a socket of this process leads, behind the VIP that getpeername(2) shows.

use std::{net::SocketAddr, os::fd::AsFd, path::Path};

use anyhow::{Context as _, Result};
use lb_common::{AddrPort, Family, Proto};
use lb_kernel::sock_diag::{SockDiag, find_udp_socket};
use rustix::net::sockopt;

use super::translations::SocketTranslations;

/// Returns the peer of a socket that has dialled `vip`: its backend, or the VIP if the socket is not translated. The
/// maps are pinned in `directory`.
///
/// # Errors
/// If a map cannot be read, or the kernel does not list the socket.
pub fn real_peer(directory: &Path, socket: impl AsFd, vip: SocketAddr, proto: Proto) -> Result<SocketAddr> {
    let address = |AddrPort { addr, port }: AddrPort| SocketAddr::new(addr.to_ip(), port);
    if proto == Proto::Tcp {
        // From the map: the socket may be closed by now, if the backend refused.
        let translations = SocketTranslations::open(directory, proto)?.context("TCP is not translated")?;
        return Ok(translations.tcp_backend(sockopt::socket_cookie(&socket)?)?.map_or(vip, address));
    }
    let family = if vip.is_ipv4() { Family::V4 } else { Family::V6 };
    let found = find_udp_socket(&mut SockDiag::open()?, socket, family)?;
    Ok(address(found.context("the socket is not in the kernel's list")?.remote))
}
