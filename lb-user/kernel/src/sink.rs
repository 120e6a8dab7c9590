//! Sockets that drop whatever they receive: the kernel answers it neither with a reset nor with an ICMP error.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, SocketAddrV6},
    os::fd::OwnedFd,
};

use lb_common::Proto;
use rustix::{
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with},
};

use crate::socket_options::{ACCEPT_NOTHING, attach_filter};

/// Opens a socket of TCP or UDP in the network namespace of the calling thread, for packets of both address families,
/// or of IPv4 in a kernel without IPv6. Its own address is a loopback address with any free port; packets for other
/// addresses reach it by a program that the kernel asks for a socket.
///
/// # Errors
/// The kernel's errno.
pub fn open(proto: Proto) -> io::Result<OwnedFd> {
    let kind = if proto == Proto::Tcp { SocketType::STREAM } else { SocketType::DGRAM };
    let open = |family| socket_with(family, kind, SocketFlags::CLOEXEC, None);
    let (socket, address) = match open(AddressFamily::INET6) {
        // A mapped address: that of IPv6 may be disabled.
        Ok(socket) => (socket, SocketAddr::from(SocketAddrV6::new(Ipv4Addr::LOCALHOST.to_ipv6_mapped(), 0, 0, 0))),
        Err(Errno::AFNOSUPPORT) => {
            (open(AddressFamily::INET)?, SocketAddr::from(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)))
        }
        Err(error) => return Err(error.into()),
    };
    // Before it can receive.
    attach_filter(&socket, &ACCEPT_NOTHING)?;
    bind(&socket, &address)?;
    if proto == Proto::Tcp {
        listen(&socket, 1)?;
    }
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::{
        net::{TcpStream, UdpSocket},
        time::Duration,
    };

    use rustix::net::getsockname;

    use super::*;

    fn address(socket: &OwnedFd) -> SocketAddr {
        let own = SocketAddr::try_from(getsockname(socket).expect("bound")).expect("an address of IP");
        (own.ip().to_canonical(), own.port()).into()
    }

    #[test]
    fn a_sink_answers_neither_with_a_connection_nor_with_a_refusal() {
        let sink = open(Proto::Tcp).expect("a socket");
        let error = TcpStream::connect_timeout(&address(&sink), Duration::from_millis(100)).expect_err("no connection");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let sink = open(Proto::Udp).expect("a socket");
        let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a socket");
        client.connect(address(&sink)).expect("UDP");
        client.set_read_timeout(Some(Duration::from_millis(100))).expect("an option");
        client.send(b"a").expect("sent");
        let error = client.recv(&mut [0]).expect_err("no answer");
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }
}
