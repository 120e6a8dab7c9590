//! Netfilter of this thread's network namespace, by the kernel's own interfaces: nf_tables and conntrack by netlink,
//! legacy iptables by socket options. Only `nftables::Batch`, `masquerade`, `temporary_tables` and `conntrack` write;
//! all else reads.

pub mod conntrack;
mod expressions;
pub mod legacy;
pub mod masquerade;
pub mod nftables;
pub mod rule;
pub mod temporary_tables;
mod xt;

use std::fmt;

use lb_common::Family;

/// A table of nf_tables or of legacy iptables.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct NftTable {
    /// Family of the table: `ip` or `ip6`.
    pub family: Family,
    /// Its name.
    pub name: String,
}

/// A chain of a table.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Chain {
    /// The table.
    pub table: NftTable,
    /// Its name.
    pub name: String,
}

impl fmt::Display for NftTable {
    /// Writes the name as `nft` does.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = match self.family {
            Family::V4 => "ip",
            Family::V6 => "ip6",
        };
        write!(f, "{family} {}", self.name)
    }
}
