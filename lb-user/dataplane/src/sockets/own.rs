//! The real peer of a socket of this process, behind the VIP that getpeername(2) shows.

use std::{net::SocketAddr, os::fd::AsFd, path::Path};

use anyhow::{Context as _, Result};
use lb_common::{AddrPort, Family, Proto};
use lb_kernel::sock_diag::{SockDiag, find_udp_socket};
use rustix::net::sockopt;

use super::given::Given;

/// Where a socket that has dialled `vip` leads in truth, which getpeername(2) does not tell of a translated one: the VIP itself
/// if it was given no backend. The pins are those of `directory`.
///
/// # Errors
/// When neither the kernel nor the maps tell.
pub fn led_to(directory: &Path, socket: impl AsFd, vip: SocketAddr, proto: Proto) -> Result<SocketAddr> {
    let address = |AddrPort { addr, port }: AddrPort| SocketAddr::new(addr.to_ip(), port);
    if proto == Proto::Tcp {
        // By the map, since a backend that refuses has closed the socket by now.
        let given = Given::open(directory, proto)?.context("TCP is not translated")?;
        return Ok(given.to_tcp(sockopt::socket_cookie(&socket)?)?.map_or(vip, address));
    }
    let family = if vip.is_ipv4() { Family::V4 } else { Family::V6 };
    let found = find_udp_socket(&mut SockDiag::open()?, socket, family)?;
    Ok(address(found.context("the socket is not in the kernel's list")?.remote))
}
