//! What stands in the map of the pods whose traffic to Services takes another path, byte for byte.

use super::Name;
use crate::Addr;

/// How what a pod sends to Services is translated.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[repr(u8)]
pub enum PathChoice {
    /// Where its sockets are opened: what every pod has that says nothing.
    #[default]
    Socket = 0,
    /// Packet by packet, at the node's end of its link: for pods whose sockets must see VIPs, or are not this kernel's.
    Packet = 1,
    /// Not at all: somebody else does it.
    Off = 2,
}

impl PathChoice {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Socket, Self::Packet, Self::Off];

    /// The choice behind a stored number.
    #[must_use]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Socket),
            1 => Some(Self::Packet),
            2 => Some(Self::Off),
            _ => None,
        }
    }

    /// The name that labels have for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Socket => "socket",
            Self::Packet => "packet",
            Self::Off => "off",
        }
    }

    /// The choice of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|choice| choice.name() == name)
    }
}

/// Value of `PATHS`: a pod whose sockets the socket path leaves alone. Key: the cookie of its network namespace. That there
/// is an entry is all that the programs ask for; the rest is for people.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PodPath {
    /// Its first IPv4 address; unspecified where it has none.
    pub v4: Addr,
    /// Its first IPv6 address.
    pub v6: Addr,
    /// Namespace of the pod.
    pub namespace: Name,
    /// Its name, cut where it is longer.
    pub name: Name,
    /// Index of the device that leads to it, on this node; 0 where that is not known.
    pub device: u32,
    /// A [`PathChoice`]: packet or off.
    pub path: u8,
    /// 1 where the label of its namespace says so, 0 where its own does.
    pub by_namespace: u8,
    /// Zero.
    pub _pad: u16,
}
