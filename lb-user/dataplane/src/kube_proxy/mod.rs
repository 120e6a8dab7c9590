//! kube-proxy's rules in this thread's network namespace, for the migration: leftovers of its modes (nftables, iptables
//! by nft or legacy, ipvs), their frontends, and their removal. Uses the kernel's interfaces, since the image has no
//! netfilter tools. Only [`remove`] changes anything.

pub mod frontends;
mod names;
pub mod remove;

use anyhow::{Context as _, Result};
use rustix::net::{AddressFamily, SocketType, netdevice::name_to_index, socket};

use self::frontends::{Graph, RuleFrontends, of_iptables, of_nftables};
use lb_common::Family;
use lb_kernel::netfilter::{Chain, NftTable, legacy, nftables::Nftables};

/// Device of kube-proxy's ipvs mode, which holds the VIPs.
pub const IPVS_DEVICE: &str = "kube-ipvs0";

/// Tables, chains and devices of kube-proxy. Those of kubelet and of network plugins are not included.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Leftovers {
    /// Tables of nftables mode.
    pub tables: Vec<NftTable>,
    /// Chains of iptables and ipvs mode in nf_tables, created by `iptables-nft`.
    pub chains: Vec<Chain>,
    /// Chains of iptables and ipvs mode created by `iptables-legacy`.
    pub legacy: Vec<Chain>,
    /// True if the device of ipvs mode exists.
    pub has_ipvs_device: bool,
}

impl Leftovers {
    /// True if nothing of kube-proxy is left.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.tables.is_empty() && self.chains.is_empty() && self.legacy.is_empty() && !self.has_ipvs_device
    }
}

/// Lists the leftovers. This may load the kernel module nf_tables.
///
/// # Errors
/// Without CAP_NET_ADMIN, or if the kernel does not answer.
pub fn leftovers() -> Result<Leftovers> {
    let mut nftables = Nftables::open().context("asking nf_tables")?;
    let (mut tables, mut chains, mut legacy) = (Vec::new(), Vec::new(), Vec::new());
    for family in [Family::V4, Family::V6] {
        if let Some(nftables) = &mut nftables {
            tables.extend(nftables.tables(family.into()).context("listing the tables of nf_tables")?);
            let listed = nftables.chains(family.into()).context("listing the chains of nf_tables")?;
            chains.extend(listed.into_iter().map(|listed| listed.chain));
        }
        legacy.extend(legacy::chains(family).context("listing the chains of iptables")?);
    }
    tables.retain(|table| table.name == names::TABLE);
    // Chains of kube-proxy's own table are removed with it.
    chains.retain(|chain| chain.table.name != names::TABLE && names::is_kube_proxys(&chain.name));
    legacy.retain(|chain| names::is_kube_proxys(&chain.name));
    Ok(Leftovers { tables, chains, legacy, has_ipvs_device: has_device(IPVS_DEVICE)? })
}

/// Reads the frontends of kube-proxy's rules, of all modes that left some.
///
/// # Errors
/// As for [`leftovers`].
pub fn frontends(leftovers: &Leftovers) -> Result<RuleFrontends> {
    let mut frontends = RuleFrontends::new();
    let mut nftables = Nftables::open().context("asking nf_tables")?;
    for family in [Family::V4, Family::V6] {
        let has = |chains: &[Chain]| chains.iter().any(|chain| chain.table.family == family.into());
        let named = |name: &str| NftTable { family: family.into(), name: name.to_owned() };
        if has(&leftovers.legacy) {
            let read =
                |table| legacy_graph(family, table).with_context(|| format!("reading the table {}", named(table)));
            frontends.extend(of_iptables(family, &read("nat")?, &read("filter")?));
        }
        let Some(nftables) = &mut nftables else { continue };
        if has(&leftovers.chains) {
            let mut read = |name| graph(nftables, &named(name)).with_context(|| format!("reading the table {name}"));
            frontends.extend(of_iptables(family, &read("nat")?, &read("filter")?));
        }
        if leftovers.tables.iter().any(|table| table.family == family.into()) {
            let graph = graph(nftables, &named(names::TABLE)).context("reading kube-proxy's table")?;
            frontends.extend(of_nftables(family, &graph));
        }
    }
    Ok(frontends)
}

fn graph(nftables: &mut Nftables, table: &NftTable) -> std::io::Result<Graph> {
    let mut graph = Graph::default();
    for placed in nftables.rules(table)? {
        graph.chains.entry(placed.chain).or_default().push(placed.rule);
    }
    // Tables of iptables have no maps.
    if table.name == names::TABLE {
        let more = ["no-endpoint-services", "no-endpoint-nodeports", "service-ips", "service-nodeports"];
        for map in graph.named_maps().into_iter().chain(more.map(str::to_owned)) {
            let elements = nftables.elements(table, &map)?;
            graph.maps.insert(map, elements);
        }
    }
    Ok(graph)
}

fn legacy_graph(family: Family, table: &str) -> Result<Graph> {
    let mut graph = Graph::default();
    for (chain, rule) in legacy::rules(family, table)? {
        graph.chains.entry(chain).or_default().push(rule);
    }
    Ok(graph)
}

fn has_device(name: &str) -> Result<bool> {
    let socket = socket(AddressFamily::INET, SocketType::DGRAM, None).context("opening a socket")?;
    match name_to_index(&socket, name) {
        Ok(_) => Ok(true),
        Err(rustix::io::Errno::NODEV) => Ok(false),
        Err(error) => Err(error).with_context(|| format!("looking for the device {name}")),
    }
}
