//! What kube-proxy has left in this thread's network namespace: tables and chains of nf_tables, chains of the older iptables,
//! and the device of ipvs. Read from the kernel itself, since the image has no tool of netfilter; nothing is changed here.

mod legacy;
mod message;
mod nftables;
mod owner;

use std::fmt;

use anyhow::{Context as _, Result};
use rustix::net::{AddressFamily, SocketType, netdevice::name_to_index, socket};

use crate::spec::Family;

/// The device that kube-proxy's ipvs mode gives its addresses.
pub const IPVS_DEVICE: &str = "kube-ipvs0";

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

/// Everything of kube-proxy's. What is of kubelet, or of a network plugin, is not among it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Leftovers {
    /// Whole tables, of its nftables mode.
    pub tables: Vec<Table>,
    /// Chains of its iptables and ipvs modes in nf_tables, as `iptables-nft` puts them there.
    pub chains: Vec<Chain>,
    /// The same where `iptables-legacy` puts them.
    pub legacy: Vec<Chain>,
    /// Whether its ipvs device is there.
    pub has_ipvs_device: bool,
}

impl Leftovers {
    /// Whether there is nothing.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.tables.is_empty() && self.chains.is_empty() && self.legacy.is_empty() && !self.has_ipvs_device
    }
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

/// Looks for it. Asking may load the kernel's module nf_tables where that is not loaded yet.
///
/// # Errors
/// Without CAP_NET_ADMIN, or when the kernel does not answer.
pub fn leftovers() -> Result<Leftovers> {
    let mut nftables = nftables::Channel::open().context("asking nf_tables")?;
    let (mut tables, mut chains, mut legacy) = (Vec::new(), Vec::new(), Vec::new());
    for family in [Family::V4, Family::V6] {
        if let Some(channel) = &mut nftables {
            tables.extend(channel.tables(family).context("listing the tables of nf_tables")?);
            chains.extend(channel.chains(family).context("listing the chains of nf_tables")?);
        }
        legacy.extend(legacy::chains(family).context("listing the chains of iptables")?);
    }
    tables.retain(|table| table.name == owner::TABLE);
    // Those of its own table go with it.
    chains.retain(|chain| chain.table.name != owner::TABLE && owner::is_kube_proxys(&chain.name));
    legacy.retain(|chain| owner::is_kube_proxys(&chain.name));
    Ok(Leftovers { tables, chains, legacy, has_ipvs_device: has_device(IPVS_DEVICE)? })
}

fn has_device(name: &str) -> Result<bool> {
    let socket = socket(AddressFamily::INET, SocketType::DGRAM, None).context("opening a socket")?;
    match name_to_index(&socket, name) {
        Ok(_) => Ok(true),
        Err(rustix::io::Errno::NODEV) => Ok(false),
        Err(error) => Err(error).with_context(|| format!("looking for the device {name}")),
    }
}
