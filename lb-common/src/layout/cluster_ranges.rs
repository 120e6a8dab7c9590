//! Layout of the map of the ranges from which the API server allots cluster IPs.

use crate::Addr;

/// Most ranges. A cluster has one of each family, and a few more if it has grown.
pub const MAX_CLUSTER_RANGES: usize = 8;

/// A range of addresses.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ClusterRange {
    /// First address of the range.
    pub addr: Addr,
    /// Netmask: ones where all addresses of the range are equal.
    pub mask: Addr,
}

/// Value of `CLUSTER_RANGES`: the ranges of cluster IPs; none if they are not known.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ClusterRanges {
    /// Number of ranges. Written last, since a write of an array element is not atomic.
    pub len: u32,
    /// Zero.
    pub _pad: u32,
    /// The ranges.
    pub ranges: [ClusterRange; MAX_CLUSTER_RANGES],
}

impl ClusterRanges {
    /// True if a range contains the address.
    #[inline(always)]
    #[must_use]
    pub fn contain(&self, addr: &Addr) -> bool {
        let wanted = addr.words();
        let mut at = 0;
        while at < MAX_CLUSTER_RANGES && at < self.len as usize {
            let (addr, mask) = (self.ranges[at].addr.words(), self.ranges[at].mask.words());
            let differ = (wanted[3] ^ addr[3]) & mask[3]
                | (wanted[2] ^ addr[2]) & mask[2]
                | (wanted[1] ^ addr[1]) & mask[1]
                | (wanted[0] ^ addr[0]) & mask[0];
            if differ == 0 {
                return true;
            }
            at += 1;
        }
        false
    }
}
