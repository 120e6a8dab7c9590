//! Layouts of the maps of announcing: the addresses for which the node answers on its links.

use crate::Addr;

/// Value of `ANNOUNCED`: an address for which the programs answer ARP requests and neighbour solicitations, until the
/// time in `ANNOUNCED_UNTIL`. Key: the address.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Announced {
    /// Time since which the node answers (CLOCK_BOOTTIME, ns).
    pub since: u64,
}

/// Value of `LINK_ADDRS`: the link address in answers by a device. Key: the index of the device.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct LinkAddr {
    /// The address.
    pub octets: [u8; 6],
    /// Zero.
    pub _pad: [u8; 2],
}

impl LinkAddr {
    /// The address of these octets.
    #[inline(always)]
    #[must_use]
    pub const fn new(octets: [u8; 6]) -> Self {
        Self { octets, _pad: [0; 2] }
    }
}

impl core::fmt::Display for LinkAddr {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let [a, b, c, d, e, g] = self.octets;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// Key of `CONFLICTS`: a link address that claimed an address while this node announced it.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct ConflictKey {
    /// The address.
    pub addr: Addr,
    /// The other link address.
    pub link: LinkAddr,
}

/// Value of `CONFLICTS`: the claims.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ConflictEntry {
    /// Time of the last claim (CLOCK_BOOTTIME, ns).
    pub last: u64,
    /// Number of claims; about right if they come by several CPUs at once.
    pub count: u64,
    /// Index of the device by which the last claim came.
    pub ifindex: u32,
    /// Zero.
    pub _pad: u32,
}
