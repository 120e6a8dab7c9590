//! kube-proxy's rules are taken away, and what keeps its open connections alive is put in their place.

use std::{collections::BTreeSet, io};

use super::owner;
use lb_common::Family;
use lb_kernel::netfilter::{
    Chain, Table,
    nftables::{Batch, Nftables},
    temporary_tables,
};

/// What was taken away, and what could not be.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Removed {
    /// Tables of its nftables mode.
    pub tables: Vec<Table>,
    /// Chains of its iptables mode.
    pub chains: Vec<Chain>,
    /// Rules in chains of others that led there.
    pub rules: usize,
    /// Chains to which chains of others lead that are not the kernel's own entrances.
    pub held: Vec<Chain>,
}

/// Takes kube-proxy's rules out of nf_tables, all at once with the making of the table that keeps NAT at work.
///
/// # Errors
/// What the kernel says; then nothing was done.
pub fn remove() -> io::Result<Removed> {
    let (mut batch, mut removed) = (Batch::default(), Removed::default());
    let Some(mut nftables) = Nftables::open()? else { return Ok(removed) };
    for family in [Family::V4, Family::V6] {
        temporary_tables::add_keep_alive(&mut batch, family);
        for table in nftables.tables(family)? {
            if table.name == owner::TABLE {
                batch.delete_table(&table);
                removed.tables.push(table);
            }
        }
        let chains = nftables.chains(family)?;
        let tables: BTreeSet<&Table> = chains
            .iter()
            .filter(|listed| listed.chain.table.name != owner::TABLE && owner::is_kube_proxys(&listed.chain.name))
            .map(|listed| &listed.chain.table)
            .collect();
        for table in tables {
            let here = || chains.iter().filter(|listed| listed.chain.table == *table);
            let is_base = |name: &str| here().any(|listed| listed.chain.name == name && listed.is_base);
            let (mut entrances, mut held) = (Vec::new(), BTreeSet::new());
            for placed in nftables.rules(table)? {
                let leads_to: Vec<&str> = placed.rule.chains().filter(|name| owner::is_kube_proxys(name)).collect();
                if leads_to.is_empty() || owner::is_kube_proxys(&placed.chain) {
                    continue;
                }
                if is_base(&placed.chain) {
                    entrances.push(placed);
                } else {
                    held.extend(leads_to.into_iter().map(str::to_owned));
                }
            }
            for rule in &entrances {
                batch.delete_rule(table, rule);
            }
            removed.rules += entrances.len();
            let (stay, go): (Vec<_>, Vec<_>) = here()
                .map(|listed| listed.chain.clone())
                .filter(|chain| owner::is_kube_proxys(&chain.name))
                .partition(|chain| held.contains(&chain.name));
            // First all rules: a chain goes when nothing leads to it any more.
            go.iter().for_each(|chain| batch.flush(chain));
            go.iter().for_each(|chain| batch.delete_chain(chain));
            removed.chains.extend(go);
            removed.held.extend(stay);
        }
    }
    nftables.commit(&batch)?;
    Ok(removed)
}
