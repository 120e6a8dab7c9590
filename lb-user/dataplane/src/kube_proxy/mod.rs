//! What kube-proxy has in this thread's network namespace: tables and chains of nf_tables, chains of the older iptables, and the
//! device of ipvs; what its rules answer; their end; and the connections that they have begun. All of it by the kernel's own
//! interfaces, since the image has no tool of netfilter. Only `remove`, `own` and `conntrack` change anything.

pub mod answers;
mod owner;
pub mod remove;

use anyhow::{Context as _, Result};
use rustix::net::{AddressFamily, SocketType, netdevice::name_to_index, socket};

use self::answers::{Answers, Graph, of_iptables, of_nftables};
use lb_common::Family;
use lb_kernel::netfilter::{Chain, Table, legacy, nftables::Nftables};

/// The device that kube-proxy's ipvs mode gives its addresses.
pub const IPVS_DEVICE: &str = "kube-ipvs0";

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

/// Looks for it. Asking may load the kernel's module nf_tables where that is not loaded yet.
///
/// # Errors
/// Without CAP_NET_ADMIN, or when the kernel does not answer.
pub fn leftovers() -> Result<Leftovers> {
    let mut nftables = Nftables::open().context("asking nf_tables")?;
    let (mut tables, mut chains, mut legacy) = (Vec::new(), Vec::new(), Vec::new());
    for family in [Family::V4, Family::V6] {
        if let Some(nftables) = &mut nftables {
            tables.extend(nftables.tables(family).context("listing the tables of nf_tables")?);
            let listed = nftables.chains(family).context("listing the chains of nf_tables")?;
            chains.extend(listed.into_iter().map(|listed| listed.chain));
        }
        legacy.extend(legacy::chains(family).context("listing the chains of iptables")?);
    }
    tables.retain(|table| table.name == owner::TABLE);
    // Those of its own table go with it.
    chains.retain(|chain| chain.table.name != owner::TABLE && owner::is_kube_proxys(&chain.name));
    legacy.retain(|chain| owner::is_kube_proxys(&chain.name));
    Ok(Leftovers { tables, chains, legacy, has_ipvs_device: has_device(IPVS_DEVICE)? })
}

/// What kube-proxy's rules answer, in whichever of its modes they were written.
///
/// # Errors
/// As of [`leftovers`].
pub fn answers(leftovers: &Leftovers) -> Result<Answers> {
    let mut answers = Answers::new();
    let mut nftables = Nftables::open().context("asking nf_tables")?;
    for family in [Family::V4, Family::V6] {
        let has = |chains: &[Chain]| chains.iter().any(|chain| chain.table.family == family);
        let named = |name: &str| Table { family, name: name.to_owned() };
        if has(&leftovers.legacy) {
            let [nat, filter] = [named("nat"), named("filter")];
            let read = |table: &Table| legacy_graph(table).with_context(|| format!("reading the table {table}"));
            answers.extend(of_iptables(family, &read(&nat)?, &read(&filter)?));
        }
        let Some(nftables) = &mut nftables else { continue };
        if has(&leftovers.chains) {
            let mut read = |name| graph(nftables, &named(name)).with_context(|| format!("reading the table {name}"));
            answers.extend(of_iptables(family, &read("nat")?, &read("filter")?));
        }
        if leftovers.tables.iter().any(|table| table.family == family) {
            let graph = graph(nftables, &named(owner::TABLE)).context("reading kube-proxy's table")?;
            answers.extend(of_nftables(family, &graph));
        }
    }
    Ok(answers)
}

fn graph(nftables: &mut Nftables, table: &Table) -> std::io::Result<Graph> {
    let mut graph = Graph::default();
    for placed in nftables.rules(table)? {
        graph.chains.entry(placed.chain).or_default().push(placed.rule);
    }
    // Those of the other table are iptables', which knows no maps.
    if table.name == owner::TABLE {
        let more = ["no-endpoint-services", "no-endpoint-nodeports", "service-ips", "service-nodeports"];
        for map in graph.named_maps().into_iter().chain(more.map(str::to_owned)) {
            let elements = nftables.elements(table, &map)?;
            graph.maps.insert(map, elements);
        }
    }
    Ok(graph)
}

fn legacy_graph(table: &Table) -> Result<Graph> {
    let mut graph = Graph::default();
    for (chain, rule) in legacy::rules(table)? {
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
