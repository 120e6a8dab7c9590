//! Layout of the map of pods with another mode than `socket`.

use super::Name;
use crate::Addr;

/// Translation mode of a pod's traffic to Services, set by a label of the pod or its namespace.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[repr(u8)]
pub enum PodMode {
    /// At the socket calls: the default.
    #[default]
    Socket = 0,
    /// Packet by packet, at the node's end of the pod's link: for pods whose sockets must see VIPs, or belong to
    /// another kernel.
    Packet = 1,
    /// No translation: another program translates.
    Off = 2,
}

impl PodMode {
    /// All modes.
    pub const ALL: [Self; 3] = [Self::Socket, Self::Packet, Self::Off];

    /// The mode of a stored number.
    #[must_use]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Socket),
            1 => Some(Self::Packet),
            2 => Some(Self::Off),
            _ => None,
        }
    }

    /// The value of the label.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Socket => "socket",
            Self::Packet => "packet",
            Self::Off => "off",
        }
    }

    /// Parses the value of the label.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mode| mode.name() == name)
    }
}

/// Value of `NETNS_ADDRS`: source addresses of calls to load balancer addresses with source ranges. Key: the cookie of
/// the caller's network namespace.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct NetnsAddrs {
    /// Source of IPv4 calls; all zeros if unknown.
    pub v4: Addr,
    /// Source of IPv6 calls; all zeros if unknown.
    pub v6: Addr,
}

impl NetnsAddrs {
    /// The source address of calls to `dest`; `None` if unknown.
    #[inline(always)]
    #[must_use]
    pub const fn towards(&self, dest: &Addr) -> Option<Addr> {
        let addr = if dest.is_v4() { self.v4 } else { self.v6 };
        let [a, b, c, d] = addr.words();
        if a | b | c | d == 0 { None } else { Some(addr) }
    }
}

/// Value of `POD_MODES`: a pod whose sockets the socket path ignores. Key: the cookie of its network namespace. The
/// programs test for the key only; the value is for people.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PodModeEntry {
    /// First IPv4 address of the pod; unspecified without one.
    pub v4: Addr,
    /// First IPv6 address of the pod; unspecified without one.
    pub v6: Addr,
    /// Namespace of the pod.
    pub namespace: Name,
    /// Name of the pod, cut to 63 octets.
    pub name: Name,
    /// Index of the device on this node that leads to the pod; 0 if unknown.
    pub device: u32,
    /// A [`PodMode`]: packet or off.
    pub path: u8,
    /// 1 if the label is of the namespace, 0 if of the pod.
    pub by_namespace: u8,
    /// Zero.
    pub _pad: u16,
}
