//! Layout of the map of port ranges. A range is a few blocks: runs of ports with equal high bits.

use super::FrontendKey;
use crate::Addr;

/// Data of a key of `PORT_RANGES`: the bits of a block in the order in which the trie compares them.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PortBlock {
    /// The address dialled.
    pub addr: Addr,
    /// IP protocol number, big-endian.
    pub proto: [u8; 2],
    /// The port dialled, big-endian.
    pub port: [u8; 2],
}

impl PortBlock {
    /// The data of a look-up for a destination, or of the key of a block.
    #[inline(always)]
    #[must_use]
    pub const fn of(key: &FrontendKey) -> Self {
        Self { addr: key.addr, proto: [0, key.proto], port: key.port.to_be_bytes() }
    }
}

/// Key of `PORT_RANGES`, a trie of prefixes.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PortBlockKey {
    /// Significant bits.
    pub prefix_len: u32,
    /// The bits.
    pub block: PortBlock,
}

impl PortBlockKey {
    /// Prefix length of a look-up, and of a block of one port.
    pub const EXACT: u32 = 128 + 16 + 16;

    /// The key of a look-up for a destination.
    #[must_use]
    pub const fn lookup(dest: &FrontendKey) -> Self {
        Self { prefix_len: Self::EXACT, block: PortBlock::of(dest) }
    }

    /// The key of a block; that of a single port is a block of one.
    #[must_use]
    pub const fn of(key: &FrontendKey) -> Self {
        Self { prefix_len: Self::EXACT - key.block.saturating_sub(1) as u32, block: PortBlock::of(key) }
    }

    /// The block of a key; `None` for a key that is none.
    #[must_use]
    pub const fn frontend(&self) -> Option<FrontendKey> {
        let PortBlock { addr, proto, port } = self.block;
        match Self::EXACT.checked_sub(self.prefix_len) {
            Some(free) if free <= 16 => {
                Some(FrontendKey { addr, port: u16::from_be_bytes(port), proto: proto[1], block: free as u8 + 1 })
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Proto;
    use core::net::Ipv4Addr;

    #[test]
    fn a_block_and_its_key_are_the_same() {
        let single = FrontendKey::new(Ipv4Addr::new(10, 96, 0, 1).into(), 5060, Proto::Udp);
        for (port, block, last) in [(5060, 1, 5060), (5060, 3, 5063), (0, 17, u16::MAX), (32_768, 16, u16::MAX)] {
            let key = FrontendKey { port, block, ..single };
            assert_eq!(PortBlockKey::of(&key).frontend(), Some(key));
            assert_eq!(key.ports(), (port, last));
        }
        assert_eq!(PortBlockKey::of(&FrontendKey { block: 1, ..single }), PortBlockKey::lookup(&single));
        let block = FrontendKey { block: 3, ..single };
        let at = |port| FrontendKey { port, ..single };
        assert!(block.covers(&at(5060)) && block.covers(&at(5063)) && !block.covers(&at(5064)));
        assert!(single.covers(&single) && !single.covers(&at(5061)));
        assert!(!block.covers(&FrontendKey::new(single.addr, 5060, Proto::Tcp)));
    }
}
