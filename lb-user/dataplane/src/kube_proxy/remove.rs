//! Removal of kube-proxy's rules. A table that keeps NAT at work replaces them, so that open connections live on.

use std::{collections::BTreeSet, io};

use super::names;
use lb_common::Family;
use lb_kernel::netfilter::{
    Chain, NftTable,
    nftables::{Batch, Nftables},
    temporary_tables,
};

/// Removed objects, and chains that could not be removed.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Removed {
    /// Tables of nftables mode.
    pub tables: Vec<NftTable>,
    /// Chains of iptables mode.
    pub chains: Vec<Chain>,
    /// Number of rules in base chains that jumped to the removed chains.
    pub rules: usize,
    /// Chains that stay, since foreign chains other than base chains jump to them.
    pub held: Vec<Chain>,
}

/// Removes kube-proxy's rules from nf_tables and adds the table that keeps NAT at work, in one transaction.
///
/// # Errors
/// If the kernel rejects the transaction, which then changes nothing.
pub fn remove() -> io::Result<Removed> {
    let (mut batch, mut removed) = (Batch::default(), Removed::default());
    let Some(mut nftables) = Nftables::open()? else { return Ok(removed) };
    for family in [Family::V4, Family::V6] {
        temporary_tables::add_keep_alive(&mut batch, family);
        for table in nftables.tables(family.into())? {
            if table.name == names::TABLE {
                batch.delete_table(&table);
                removed.tables.push(table);
            }
        }
        let chains = nftables.chains(family.into())?;
        let tables: BTreeSet<&NftTable> = chains
            .iter()
            .filter(|listed| listed.chain.table.name != names::TABLE && names::is_kube_proxys(&listed.chain.name))
            .map(|listed| &listed.chain.table)
            .collect();
        for table in tables {
            let here = || chains.iter().filter(|listed| listed.chain.table == *table);
            let is_base = |name: &str| here().any(|listed| listed.chain.name == name && listed.hook.is_some());
            let (mut jumps, mut held) = (Vec::new(), BTreeSet::new());
            for placed in nftables.rules(table)? {
                let leads_to: Vec<&str> = placed.rule.chains().filter(|name| names::is_kube_proxys(name)).collect();
                if leads_to.is_empty() || names::is_kube_proxys(&placed.chain) {
                    continue;
                }
                if is_base(&placed.chain) {
                    jumps.push(placed);
                } else {
                    held.extend(leads_to.into_iter().map(str::to_owned));
                }
            }
            for rule in &jumps {
                batch.delete_rule(table, rule);
            }
            removed.rules += jumps.len();
            let (stay, go): (Vec<_>, Vec<_>) = here()
                .map(|listed| listed.chain.clone())
                .filter(|chain| names::is_kube_proxys(&chain.name))
                .partition(|chain| held.contains(&chain.name));
            // Rules first: the kernel deletes only chains without references.
            go.iter().for_each(|chain| batch.flush(chain));
            go.iter().for_each(|chain| batch.delete_chain(chain));
            removed.chains.extend(go);
            removed.held.extend(stay);
        }
    }
    nftables.commit(&batch)?;
    Ok(removed)
}
