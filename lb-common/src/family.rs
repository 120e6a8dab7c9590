//! Address families, and an address with its port.

use core::fmt;
use core::net::SocketAddr;

use crate::Addr;

/// An address family. A dual-stack service port has a backend list for each.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Family {
    /// IPv4
    V4,
    /// IPv6
    V6,
}

impl Family {
    /// Both families, IPv4 first.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// 4 or 6, as the maps hold it.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::V4 => 4,
            Self::V6 => 6,
        }
    }

    /// The family of an address.
    #[must_use]
    pub const fn of(addr: &Addr) -> Self {
        if addr.is_v4() { Self::V4 } else { Self::V6 }
    }

    /// The name in the Kubernetes API.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    /// The family that the maps mean by `number`.
    #[must_use]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            4 => Some(Self::V4),
            6 => Some(Self::V6),
            _ => None,
        }
    }
}

/// An address and a port, such as a backend's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct AddrPort {
    /// The address.
    pub addr: Addr,
    /// Host order; never 0.
    pub port: u16,
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
