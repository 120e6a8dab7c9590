//! Rules of netfilter that translate the same ports as hostPorts of this node's pods: those of the CNI plugin portmap,
//! and ports that another container runtime publishes.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::{AddrPort, FrontendKey, Kind};

use super::{Finding, netfilter::ChainFacts};
use lb_core::store::Dump;
use lb_kernel::netfilter::{
    base_chain::HookedChain,
    rule::{Rule, RuleAction},
};

const CHECK: &str = "host-ports";

/// NF_INET_PRE_ROUTING
const PRE_ROUTING: u32 = 0;
/// Findings that are listed one by one.
const MAX_LISTED: usize = 5;

/// The table of portmap in nf_tables, and the start of its chains in iptables (plugins/meta/portmap).
const PORTMAP: [&str; 2] = ["cni_hostport", "CNI-"];

/// Reports such rules. No finding where no hostPort is served.
pub(super) fn evaluate(facts: &ChainFacts, dump: &Dump) -> Vec<Finding> {
    let host_ports = || dump.frontends.iter().filter(|(_, frontend)| frontend.kind == Kind::HostPort as u8);
    // `netfilter` reports rules that cannot be read.
    let Ok(chains) = facts else { return Vec::new() };
    if host_ports().next().is_none() {
        return Vec::new();
    }
    let mut portmap = BTreeSet::new();
    let mut others = BTreeMap::<String, BTreeSet<FrontendKey>>::new();
    for base in chains.iter().filter(|chain| chain.hook.number == PRE_ROUTING) {
        for (chain, rule) in &base.rules {
            let hit = host_ports().filter(|(key, _)| super::netfilter::sees(base.chain.table.family, key));
            for (key, frontend) in hit.filter(|(key, _)| translates(rule, key)) {
                if is_portmap(base, chain) {
                    portmap.insert(*key);
                } else if !leads_to(rule, dump, frontend.service) {
                    others.entry(format!("{chain} of {}", base.chain.table)).or_default().insert(*key);
                }
            }
        }
    }
    let mut findings = Vec::new();
    if !portmap.is_empty() {
        findings.push(Finding::note(
            CHECK,
            format!(
                "the CNI plugin portmap has rules for {} too, which new connections no longer meet",
                list(&portmap)
            ),
            "none for now: the rules of a pod end with it. Take portmap out of the CNI configuration, so that new pods \
             get none",
        ));
    }
    findings.extend(others.into_iter().map(|(place, keys)| {
        Finding::warning(
            CHECK,
            format!("{place} leads {} elsewhere: new connections reach the pod with the hostPort", list(&keys)),
            "give one of the two another port, such as the one that a container of Docker publishes",
        )
    }));
    if findings.is_empty() {
        findings.push(Finding::ok(CHECK, "no rule of netfilter translates a hostPort too"));
    }
    findings
}

fn is_portmap(base: &HookedChain, chain: &str) -> bool {
    let [table, prefix] = PORTMAP;
    base.chain.table.name == table || chain.starts_with(prefix)
}

/// True if a rule translates packets to this port of the node.
fn translates(rule: &Rule, key: &FrontendKey) -> bool {
    let is_at = rule.destination.is_none_or(|addr| key.addr.is_unspecified() || addr == key.addr);
    let has_port = rule.ports.iter().any(|range| range.contains(&key.port));
    is_at && has_port && rule.proto.is_none_or(|proto| proto == key.proto) && target(rule).is_some()
}

fn target(rule: &Rule) -> Option<AddrPort> {
    rule.actions.iter().find_map(|action| if let RuleAction::Dnat(target) = action { Some(*target) } else { None })
}

/// True if a rule leads to a backend of the service port.
fn leads_to(rule: &Rule, dump: &Dump, service: u32) -> bool {
    let mut backends = dump.backends.values().filter(|backend| backend.service == service);
    backends.any(|backend| target(rule) == Some(AddrPort { addr: backend.addr, port: backend.port }))
}

fn list(keys: &BTreeSet<FrontendKey>) -> String {
    let listed: Vec<_> = keys.iter().take(MAX_LISTED).map(ToString::to_string).collect();
    match keys.len().saturating_sub(MAX_LISTED) {
        0 => listed.join(", "),
        more => format!("{} and {more} more", listed.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::assert_findings;
    use lb_common::{Addr, Backend, Family, Frontend, Proto};
    use lb_kernel::netfilter::{Chain, NftTable, base_chain::ChainHook};

    fn addr(text: &str) -> Addr {
        text.parse::<std::net::IpAddr>().expect("an address").into()
    }

    fn dnat(port: u16, to: &str) -> Rule {
        let target = AddrPort { addr: addr(to), port: 80 };
        let actions = vec![RuleAction::Dnat(target)];
        Rule { proto: Some(6), ports: vec![port..=port], actions, ..Rule::default() }
    }

    /// The findings beside one rule, where 0.0.0.0:8080 and 192.0.2.1:8081 are hostPorts of the pod 10.0.0.1.
    fn check(table: &str, chain: &str, rule: Rule, expected: &[&str]) {
        let table = NftTable { family: Family::V4.into(), name: table.to_owned() };
        let base = HookedChain {
            chain: Chain { table, name: "PREROUTING".to_owned() },
            hook: ChainHook { number: PRE_ROUTING, priority: -100, drops: false },
            rules: vec![(chain.to_owned(), rule)],
        };
        let key = |address: &str, port| FrontendKey::new(addr(address), port, Proto::Tcp);
        let kinds = [
            ("0.0.0.0", 8080, Kind::HostPort),
            ("192.0.2.1", 8081, Kind::HostPort),
            ("0.0.0.0", 30080, Kind::NodePort),
        ];
        let frontends = kinds.map(|(address, port, kind)| (key(address, port), Frontend::new(1, kind)));
        let backend = Backend { addr: addr("10.0.0.1"), port: 80, flags: 0, service: 1 };
        let dump = Dump { frontends: frontends.into(), backends: [(1, backend)].into(), ..Dump::default() };
        assert_findings(&evaluate(&Ok(vec![base]), &dump), expected);
    }

    #[test]
    fn rules_of_portmap_for_the_same_port_are_noted() {
        let note = "note: the CNI plugin portmap has rules for 0.0.0.0:8080/TCP too";
        check("nat", "CNI-DN-0123abc", dnat(8080, "10.0.0.1"), &[note]);
        check("cni_hostport", "hostports", dnat(8080, "10.0.0.9"), &[note]);
        let at = Rule { destination: Some(addr("192.0.2.1")), ..dnat(8081, "10.0.0.1") };
        check(
            "cni_hostport",
            "hostip_hostports",
            at,
            &["note: the CNI plugin portmap has rules for 192.0.2.1:8081/TCP"],
        );
    }

    #[test]
    fn a_rule_of_others_that_leads_elsewhere_is_a_warning() {
        let warning = "warning: DOCKER of ip nat leads 0.0.0.0:8080/TCP elsewhere";
        check("nat", "DOCKER", dnat(8080, "172.17.0.2"), &[warning]);
        check("nat", "DOCKER", dnat(8080, "10.0.0.1"), &["ok"]);
    }

    #[test]
    fn other_rules_and_nodes_without_host_ports_are_none_of_these() {
        let udp = Rule { proto: Some(17), ..dnat(8080, "172.17.0.2") };
        let elsewhere = Rule { destination: Some(addr("192.0.2.2")), ..dnat(8081, "172.17.0.2") };
        let drop = Rule { actions: vec![RuleAction::Drop], ..dnat(8080, "172.17.0.2") };
        for rule in [dnat(30080, "172.17.0.2"), dnat(8082, "172.17.0.2"), udp, elsewhere, drop, Rule::default()] {
            check("nat", "DOCKER", rule, &["ok: no rule of netfilter translates a hostPort"]);
        }
        assert!(evaluate(&Ok(Vec::new()), &Dump::default()).is_empty());
    }
}
