//! Leftovers of kube-proxy on the node, or a running kube-proxy.

use std::path::Path;

use super::{Finding, process};
use lb_dataplane::{
    kube_proxy,
    kube_proxy::{IPVS_DEVICE, Leftovers},
};
use lb_kernel::netfilter::{Chain, NftTable};

const CHECK: &str = "kube-proxy";

/// Rules and processes of kube-proxy.
#[derive(Clone, Debug)]
pub(super) struct KubeProxyFacts {
    leftovers: Result<Leftovers, String>,
    /// Processes of kube-proxy in this network namespace: rules belong to a network namespace.
    running: Vec<u32>,
}

/// Reads netfilter and /proc.
pub(super) fn read() -> KubeProxyFacts {
    let own = process::network_namespace("self");
    let is_here = |pid: &u32| process::network_namespace(&pid.to_string()) == own;
    KubeProxyFacts {
        leftovers: kube_proxy::leftovers().map_err(|error| format!("{error:#}")),
        running: process::named(Path::new("/proc"), "kube-proxy").into_iter().filter(is_here).collect(),
    }
}

pub(super) fn evaluate(facts: &KubeProxyFacts) -> Vec<Finding> {
    let leftovers = match &facts.leftovers {
        Ok(leftovers) => leftovers,
        Err(error) => {
            let what = format!("kube-proxy's rules cannot be read: {error}");
            return vec![Finding::note(CHECK, what, "run `beeline doctor` as root, in the host's network namespace")];
        }
    };
    if let Some(pid) = facts.running.first() {
        return vec![Finding::note(
            CHECK,
            format!(
                "kube-proxy runs (pid {pid}) beside Beeline, which translates first: Beeline serves sockets, and \
                 packets at devices with its programs; kube-proxy's rules serve the rest"
            ),
            "none is needed; to remove kube-proxy: `beeline handover --dry-run`, then stop kube-proxy, then `beeline \
             handover`",
        )];
    }
    if leftovers.is_empty() {
        return vec![Finding::ok(CHECK, "nothing of kube-proxy is left in netfilter")];
    }
    let mut findings = Vec::new();
    let costs =
        "stale rules translate packets that Beeline does not, to backends of that time, and cost time for each packet";
    for table in &leftovers.tables {
        let what = format!("kube-proxy does not run, and left the table {table} in nf_tables: {costs}");
        findings.push(Finding::warning(CHECK, what, "`beeline handover`"));
    }
    for (chains, tool) in [(&leftovers.chains, "iptables-nft"), (&leftovers.legacy, "iptables-legacy")] {
        let tables: std::collections::BTreeSet<&NftTable> = chains.iter().map(|chain| &chain.table).collect();
        for table in tables {
            let names: Vec<_> = chains.iter().filter(|chain| chain.table == *table).collect();
            let what = format!(
                "kube-proxy does not run, and left {} in the table {table} ({tool}): {costs}",
                list_chains(&names)
            );
            let cure = if tool == "iptables-nft" {
                "`beeline handover`"
            } else {
                "run `kube-proxy --cleanup` once, from its image, privileged and in the host's network namespace; or \
                 restart the node without kube-proxy"
            };
            findings.push(Finding::warning(CHECK, what, cure));
        }
    }
    if leftovers.has_ipvs_device {
        let what = format!(
            "kube-proxy does not run, and left {IPVS_DEVICE}: ipvs on this node receives packets to its addresses"
        );
        let cure = format!("`ip link delete {IPVS_DEVICE}` and `ipvsadm --clear`, or run `kube-proxy --cleanup` once");
        findings.push(Finding::warning(CHECK, what, cure));
    }
    findings
}

fn list_chains(chains: &[&Chain]) -> String {
    let names: Vec<_> = chains.iter().take(3).map(|chain| chain.name.as_str()).collect();
    let more = if chains.len() > 3 { format!(" and {} more", chains.len() - 3) } else { String::new() };
    format!("{}: {}{more}", lb_core::text::number(chains.len(), "chain"), names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::assert_findings;
    use lb_common::Family;

    fn check(facts: &KubeProxyFacts, expected: &[&str]) {
        assert_findings(&evaluate(facts), expected);
    }

    #[test]
    fn leftovers_are_reported_by_table() {
        let facts = |leftovers| KubeProxyFacts { leftovers: Ok(leftovers), running: Vec::new() };
        check(&facts(Leftovers::default()), &["ok: nothing of kube-proxy"]);
        let table = |name: &str| NftTable { family: Family::V4.into(), name: name.to_owned() };
        let chain = |table_name: &str, name: &str| Chain { table: table(table_name), name: name.to_owned() };
        let leftovers = Leftovers {
            tables: vec![table("kube-proxy")],
            chains: ["A", "B", "C", "D"]
                .map(|name| chain("nat", name))
                .into_iter()
                .chain([chain("filter", "E")])
                .collect(),
            legacy: vec![chain("nat", "F")],
            has_ipvs_device: true,
        };
        check(
            &facts(leftovers.clone()),
            &[
                "warning: kube-proxy does not run, and left the table ip kube-proxy in nf_tables",
                "warning: kube-proxy does not run, and left 1 chain: E in the table ip filter (iptables-nft)",
                "warning: kube-proxy does not run, and left 4 chains: A, B, C and 1 more in the table ip nat \
                 (iptables-nft)",
                "warning: kube-proxy does not run, and left 1 chain: F in the table ip nat (iptables-legacy)",
                "warning: kube-proxy does not run, and left kube-ipvs0",
            ],
        );
        check(&KubeProxyFacts { running: vec![7], ..facts(leftovers) }, &["note: kube-proxy runs (pid 7)"]);
        let unreadable = KubeProxyFacts { leftovers: Err("x".to_owned()), running: Vec::new() };
        check(&unreadable, &["note: kube-proxy's rules cannot be read: x"]);
    }
}
