//! Netfilter of this thread's network namespace, by the kernel's own interfaces: nf_tables and conntrack by netlink, the older
//! iptables by socket options. Only batches of `nftables`, `own` and `conntrack` change anything.

pub mod conntrack;
pub mod legacy;
pub mod nftables;
pub mod own;
pub mod rule;
mod xt;

use std::fmt;

use lb_common::Family;

/// A table of nf_tables.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Table {
    /// Of `ip` or of `ip6`.
    pub family: Family,
    /// Its name.
    pub name: String,
}

/// A chain, in a table of nf_tables or of the older iptables.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Chain {
    /// The table.
    pub table: Table,
    /// Its name.
    pub name: String,
}

impl fmt::Display for Table {
    /// As `nft` names it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = match self.family {
            Family::V4 => "ip",
            Family::V6 => "ip6",
        };
        write!(f, "{family} {}", self.name)
    }
}
