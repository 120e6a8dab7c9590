//! Reads the base chains of nf_tables and of legacy iptables.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};

use super::{TableFamily, base_chain::HookedChain, legacy, nftables::Nftables, rule::Rule};
use lb_common::Family;

/// Lists the base chains of this thread's network namespace. Ports in sets are resolved.
///
/// # Errors
/// Without CAP_NET_ADMIN, or if the kernel does not answer.
pub fn read() -> Result<Vec<HookedChain>> {
    let mut hooked = Vec::new();
    if let Some(mut nftables) = Nftables::open().context("asking nf_tables")? {
        for family in TableFamily::ALL {
            read_nftables(&mut nftables, family, &mut hooked).context("listing the rules of nf_tables")?;
        }
    }
    for family in [Family::V4, Family::V6] {
        hooked.extend(legacy::hooked(family).context("listing the rules of iptables")?);
    }
    Ok(hooked)
}

/// Lists the base chains of nf_tables that see each frame that leaves a device (Linux 5.16), ARP among them.
///
/// # Errors
/// As of [`read`].
pub fn read_egress() -> Result<Vec<HookedChain>> {
    /// NF_NETDEV_EGRESS
    const EGRESS: u32 = 1;
    let mut hooked = Vec::new();
    if let Some(mut nftables) = Nftables::open().context("asking nf_tables")? {
        let listed = read_nftables(&mut nftables, TableFamily::Netdev, &mut hooked);
        listed.context("listing the rules of nf_tables at devices")?;
    }
    hooked.retain(|chain| chain.hook.number == EGRESS);
    Ok(hooked)
}

fn read_nftables(nftables: &mut Nftables, family: TableFamily, hooked: &mut Vec<HookedChain>) -> Result<()> {
    let chains = nftables.chains(family)?;
    for table in nftables.tables(family)? {
        let is_base = |name: &str| {
            chains
                .iter()
                .any(|listed| listed.chain.table == table && listed.chain.name == name && listed.hook.is_some())
        };
        let (mut base, mut others) = (BTreeMap::<String, Vec<Rule>>::new(), Vec::new());
        let mut sets = BTreeMap::new();
        for mut listed in nftables.rules(&table)? {
            for set in &listed.rule.port_sets {
                if !sets.contains_key(set) {
                    sets.insert(set.clone(), nftables.ports(&table, set)?);
                }
                listed.rule.ports.extend(sets.get(set).into_iter().flatten().cloned());
            }
            if is_base(&listed.chain) {
                base.entry(listed.chain).or_default().push(listed.rule);
            } else {
                others.push((listed.chain, listed.rule));
            }
        }
        for listed in chains.iter().filter(|listed| listed.chain.table == table) {
            let Some(hook) = listed.hook else { continue };
            let own = base.remove(&listed.chain.name).unwrap_or_default();
            hooked.push(HookedChain::new(listed.chain.clone(), hook, own, &others));
        }
    }
    Ok(())
}
