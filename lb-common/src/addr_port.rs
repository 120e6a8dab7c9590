//! An address with a port.

use core::{fmt, net::SocketAddr};

use crate::{Addr, Family};

/// Address and port of a frontend or a backend. Not the layout of a map.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct AddrPort {
    /// The address.
    pub addr: Addr,
    /// The port, host order.
    pub port: u16,
}

impl AddrPort {
    /// `addr`:`port`.
    #[must_use]
    pub const fn new(addr: Addr, port: u16) -> Self {
        Self { addr, port }
    }

    /// The family of the address.
    #[must_use]
    pub const fn family(&self) -> Family {
        Family::of(&self.addr)
    }
}

impl From<SocketAddr> for AddrPort {
    fn from(socket: SocketAddr) -> Self {
        Self { addr: socket.ip().into(), port: socket.port() }
    }
}

impl From<AddrPort> for SocketAddr {
    fn from(AddrPort { addr, port }: AddrPort) -> Self {
        Self::new(addr.to_ip(), port)
    }
}

impl fmt::Display for AddrPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        SocketAddr::from(*self).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{format, string::ToString};

    fn parsed(text: &str) -> AddrPort {
        text.parse::<SocketAddr>().expect("address and port").into()
    }

    #[test]
    fn an_address_with_a_port_is_written_as_a_socket_address() {
        for (text, family) in [("10.0.0.1:8080", Family::V4), ("[fd00::1]:53", Family::V6), ("[::]:0", Family::V6)] {
            assert_eq!((parsed(text).to_string(), parsed(text).family()), (text.into(), family));
            assert_eq!(SocketAddr::from(parsed(text)).to_string(), text);
        }
        assert_eq!(parsed("[::ffff:10.0.0.1]:80"), parsed("10.0.0.1:80"));
        assert_eq!(format!("{:>12}|", parsed("10.0.0.1:1")), "  10.0.0.1:1|");
    }

    #[test]
    fn addresses_with_ports_are_ordered_by_address_and_then_by_port() {
        let mut ends = ["[fd00::1]:1", "10.0.0.2:1", "10.0.0.1:2", "10.0.0.1:1"].map(parsed);
        ends.sort_unstable();
        assert_eq!(ends, ["10.0.0.1:1", "10.0.0.1:2", "10.0.0.2:1", "[fd00::1]:1"].map(parsed));
    }
}
