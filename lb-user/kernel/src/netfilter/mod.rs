//! Netfilter of this thread's network namespace, by the kernel's own interfaces: nf_tables and conntrack by netlink,
//! legacy iptables by socket options. Only `nftables::Batch`, `masquerade`, `temporary_tables` and `conntrack` write;
//! all else reads.

pub mod base_chain;
pub mod conntrack;
mod expressions;
pub mod hooked;
pub mod legacy;
pub mod masquerade;
pub mod nftables;
pub mod rule;
pub mod temporary_tables;
mod xt;

use std::fmt;

use lb_common::Family;

/// Family of a table.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum TableFamily {
    /// Packets of one address family.
    One(Family),
    /// `inet`: packets of both. firewalld uses it.
    Inet,
    /// `netdev`: frames of any kind, as they enter or leave a device.
    Netdev,
}

impl TableFamily {
    /// All families whose tables see packets of Services.
    pub const ALL: [Self; 3] = [Self::One(Family::V4), Self::One(Family::V6), Self::Inet];

    /// Returns the number of the kernel: NFPROTO_IPV4, NFPROTO_IPV6, NFPROTO_INET,
    /// NFPROTO_NETDEV.
    pub(crate) const fn number(self) -> u8 {
        match self {
            Self::One(Family::V4) => 2,
            Self::One(Family::V6) => 10,
            Self::Inet => 1,
            Self::Netdev => 5,
        }
    }
}

impl From<Family> for TableFamily {
    fn from(family: Family) -> Self {
        Self::One(family)
    }
}

/// A table of nf_tables or of legacy iptables.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct NftTable {
    /// Family of the table.
    pub family: TableFamily,
    /// Name of the table.
    pub name: String,
}

/// A chain of a table.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Chain {
    /// The table.
    pub table: NftTable,
    /// Name of the chain.
    pub name: String,
}

impl fmt::Display for NftTable {
    /// Writes the name as `nft` does.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = match self.family {
            TableFamily::One(Family::V4) => "ip",
            TableFamily::One(Family::V6) => "ip6",
            TableFamily::Inet => "inet",
            TableFamily::Netdev => "netdev",
        };
        write!(f, "{family} {}", self.name)
    }
}
