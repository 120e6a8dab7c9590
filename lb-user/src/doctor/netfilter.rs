//! Rules of netfilter to which it matters that Beeline translates at tc, before netfilter. A rule before kube-proxy's
//! destination NAT that names a frontend sees the backend's address and port, and no longer matches. A firewall that
//! drops forwarded packets no longer meets kube-proxy's rule that accepts them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    ops::RangeInclusive,
};

use lb_common::{Family, FrontendKey, Kind};

use super::Finding;
use lb_core::{store::Dump, text::number};
use lb_kernel::netfilter::{
    TableFamily,
    base_chain::HookedChain,
    hooked,
    rule::{Rule, RuleAction},
};

const CHECK: &str = "netfilter";

/// NF_INET_PRE_ROUTING
const PRE_ROUTING: u32 = 0;
/// NF_INET_FORWARD
const FORWARD: u32 = 2;
/// Protocol numbers.
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
/// Priority of destination NAT (NF_IP_PRI_NAT_DST).
const DESTINATION_NAT: i32 = -100;

/// Findings that are listed one by one.
const MAX_LISTED: usize = 10;

/// Base chains with their rules; or why they cannot be read.
pub(crate) type ChainFacts = Result<Vec<HookedChain>, String>;

/// Reads the rules of this thread's network namespace.
pub(crate) fn read() -> ChainFacts {
    hooked::read().map_err(|error| format!("{error:#}"))
}

/// Rules of one chain that name frontends.
struct Hits {
    /// Base chain, as `ip raw PREROUTING`.
    base: String,
    /// Chain of the rules.
    chain: String,
    /// Number of such rules.
    rules: usize,
    /// Frontends that they name.
    frontends: BTreeSet<FrontendKey>,
}

/// Lists the chains before destination NAT with rules that name a frontend of `dump`.
fn hits(chains: &[HookedChain], dump: &Dump) -> Vec<Hits> {
    let before = |chain: &&HookedChain| chain.hook.number == PRE_ROUTING && chain.hook.priority < DESTINATION_NAT;
    let mut all = Vec::new();
    for base in chains.iter().filter(before) {
        let mut by_chain = BTreeMap::<&str, (usize, BTreeSet<FrontendKey>)>::new();
        for (chain, rule) in &base.rules {
            let seen =
                dump.frontends.keys().chain(dump.port_ranges.keys()).filter(|key| sees(base.chain.table.family, key));
            let named = seen.filter(|key| names(rule, key) && !is_of_node(rule, key, dump));
            let named: BTreeSet<FrontendKey> = named.copied().collect();
            if !named.is_empty() {
                let hit = by_chain.entry(chain).or_default();
                hit.0 += 1;
                hit.1.extend(named);
            }
        }
        let text = format!("{} {}", base.chain.table, base.chain.name);
        all.extend(by_chain.into_iter().map(|(chain, (rules, frontends))| Hits {
            base: text.clone(),
            chain: chain.to_owned(),
            rules,
            frontends,
        }));
    }
    all
}

/// True if a table of a family sees packets to a frontend.
pub(super) fn sees(family: TableFamily, frontend: &FrontendKey) -> bool {
    match family {
        TableFamily::One(family) => (family == Family::V4) == frontend.addr.is_v4(),
        TableFamily::Inet => true,
        TableFamily::Netdev => false,
    }
}

/// True if a rule is for a cluster IP that an interface of the node owns, as those of NodeLocal DNSCache are: the
/// packets of pods to its listener are not translated.
fn is_of_node(rule: &Rule, frontend: &FrontendKey, dump: &Dump) -> bool {
    let address = dump.frontends.get(&frontend.address());
    rule.destination == Some(frontend.addr) && address.is_some_and(|address| address.kind == Kind::OwnAddress as u8)
}

/// True if a rule matches the address or the port of a frontend, and neither excludes it.
fn names(rule: &Rule, frontend: &FrontendKey) -> bool {
    let is_node_port = frontend.addr.is_unspecified();
    let has_address = rule.destination.map(|addr| addr == frontend.addr || is_node_port);
    let (first, last) = frontend.ports();
    let meets = |range: &RangeInclusive<u16>| *range.start() <= last && first <= *range.end();
    let has_port = (!rule.ports.is_empty()).then(|| rule.ports.iter().any(meets));
    let has_proto = rule.proto.is_none_or(|proto| proto == frontend.proto);
    // A rule for an address of the node names its NodePorts only together with a port.
    let is_specific = has_port == Some(true) || (has_address == Some(true) && !is_node_port);
    has_proto && is_specific && has_address != Some(false) && has_port != Some(false)
}

/// Reports the rules.
pub(crate) fn evaluate(facts: &ChainFacts, dump: &Dump) -> Vec<Finding> {
    let chains = match facts {
        Ok(chains) => chains,
        Err(error) => {
            let what = format!("rules of netfilter cannot be read: {error}");
            return vec![Finding::note(CHECK, what, "run `beeline doctor` as root, in the host's network namespace")];
        }
    };
    let drops = chains.iter().filter(|chain| chain.hook.number == FORWARD && chain.hook.drops);
    let mut findings: Vec<_> = drops.map(forward).collect();
    let hits = hits(chains, dump);
    findings.extend(hits.iter().take(MAX_LISTED).map(|hits| warning(hits, dump)));
    if hits.len() > MAX_LISTED {
        let what = format!("there are {} more chains with such rules", hits.len() - MAX_LISTED);
        findings.push(Finding::note(CHECK, what, "`nft list ruleset` and `iptables-legacy-save` list them"));
    }
    if findings.is_empty() {
        findings
            .push(Finding::ok(CHECK, "no rule of netfilter names a frontend too early, or drops what is forwarded"));
    }
    findings
}

/// Reports a base chain that drops forwarded packets by default. Chains of network plugins accept those of pods; those
/// of Docker do not, and kube-proxy's go. Rules for open connections, for destination NAT, for ICMP and for
/// loopback accept no new connection that Beeline translates.
fn forward(base: &HookedChain) -> Finding {
    let is_firewalld = base.chain.table.name == "firewalld";
    // firewalld's chains "…_allow" accept what stays within a zone.
    let is_of_others = |chain: &str| {
        chain != "KUBE-FORWARD" && !chain.starts_with("DOCKER") && !(is_firewalld && chain.ends_with("_allow"))
    };
    let is_for_pods = |rule: &Rule| {
        rule.actions.contains(&RuleAction::Accept) && !rule.skips_new && !matches!(rule.proto, Some(ICMP | ICMPV6))
    };
    let mut accepting = base.rules.iter().filter(|(_, rule)| is_for_pods(rule));
    let what = format!(
        "{} {} drops forwarded packets that none of its rules accepts, those of clients outside to pods of this node \
         too; those that kube-proxy translates pass, by KUBE-FORWARD or by their destination NAT",
        base.chain.table, base.chain.name
    );
    if let Some((chain, _)) = accepting.find(|(chain, _)| is_of_others(chain)) {
        let cure = format!("none if {chain} accepts packets to and from all pods, as network plugins make it");
        return Finding::note(CHECK, what, cure);
    }
    let has_chain_of = |prefix: &str| base.rules.iter().any(|(chain, _)| chain.starts_with(prefix));
    let cure = if is_firewalld {
        "put the range of the pods in a zone, and accept what goes there: `firewall-cmd --permanent --zone=trusted \
         --add-source=10.244.0.0/16`, then `--new-policy=to-pods`, and with `--policy=to-pods` \
         `--add-ingress-zone=ANY`, `--add-egress-zone=trusted` and `--set-target=ACCEPT`; at last \
         `firewall-cmd --reload`"
    } else if has_chain_of("ufw") {
        "accept the range of the pods: `ufw route allow to 10.244.0.0/16` and `ufw route allow from 10.244.0.0/16`"
    } else {
        "accept the range of the pods, as in `iptables -I FORWARD -d 10.244.0.0/16 -j ACCEPT` and the same with `-s`, \
         or have the network plugin do so (`firewall`, flannel's `-iptables-forward-rules`)"
    };
    Finding::warning(CHECK, what, cure)
}

fn warning(hits: &Hits, dump: &Dump) -> Finding {
    let mut frontends = String::new();
    for (nth, key) in hits.frontends.iter().take(3).enumerate() {
        let service = dump
            .frontends
            .get(key)
            .or_else(|| dump.port_ranges.get(key))
            .and_then(|frontend| dump.names.get(&frontend.service));
        let service = service.map_or_else(String::new, |port| format!(" of {}", port.service));
        let separator = if nth == 0 { "" } else { ", " };
        _ = write!(frontends, "{separator}{key}{service}");
    }
    if hits.frontends.len() > 3 {
        _ = write!(frontends, " and {} more", hits.frontends.len() - 3);
    }
    let place =
        if hits.base.ends_with(&format!(" {}", hits.chain)) { String::new() } else { format!("{} of ", hits.chain) };
    Finding::warning(
        CHECK,
        format!(
            "{} in {place}{} names {frontends} before destination NAT: Beeline translates packets of clients outside \
             earlier, so the rule does not match them any more",
            number(hits.rules, "rule"),
            hits.base
        ),
        "use `spec.loadBalancerSourceRanges` of the Service, or a rule in FORWARD for the endpoint's address and port; \
         Calico: a policy of the endpoint instead of `preDNAT`; to serve only some addresses of the node, \
         `--nodeport-addresses`",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::assert_findings;
    use lb_common::Proto;
    use lb_common::{Addr, Frontend, Kind};
    use lb_kernel::netfilter::{Chain, NftTable, base_chain::ChainHook};

    fn chain(table: &str, priority: i32, rules: Vec<(&str, Rule)>) -> HookedChain {
        let table = NftTable { family: Family::V4.into(), name: table.to_owned() };
        HookedChain {
            chain: Chain { table, name: "PREROUTING".to_owned() },
            hook: ChainHook { number: PRE_ROUTING, priority, drops: false },
            rules: rules.into_iter().map(|(chain, rule)| (chain.to_owned(), rule)).collect(),
        }
    }

    fn ports(proto: Option<u8>, range: std::ops::RangeInclusive<u16>) -> Rule {
        Rule { proto, ports: vec![range], actions: vec![RuleAction::Drop], ..Rule::default() }
    }

    fn to(address: &str, rule: Rule) -> Rule {
        Rule { destination: Some(addr(address)), ..rule }
    }

    fn addr(text: &str) -> Addr {
        Addr::from(text.parse::<std::net::IpAddr>().expect("an address"))
    }

    fn check(rule: Rule, expected: &str) {
        let key = |address: &str, port| FrontendKey::new(addr(address), port, Proto::Tcp);
        let frontends =
            [key("0.0.0.0", 30080), key("10.96.0.10", 80)].map(|key| (key, Frontend::new(1, Kind::ClusterIp)));
        let dump = Dump { frontends: frontends.into(), ..Dump::default() };
        assert_findings(
            &evaluate(&Ok(vec![chain("raw", -300, vec![("PREROUTING", rule.clone())])]), &dump),
            &[expected],
        );
        // Such a rule after destination NAT did not match kube-proxy's clients either.
        assert_findings(&evaluate(&Ok(vec![chain("nat", -100, vec![("PREROUTING", rule)])]), &dump), &["ok"]);
    }

    #[test]
    fn rules_before_destination_nat_that_name_a_frontend_are_reported() {
        let named = |frontend: &str| format!("warning: 1 rule in ip raw PREROUTING names {frontend}/TCP before");
        check(ports(Some(6), 30080..=30080), &named("0.0.0.0:30080"));
        check(ports(None, 30000..=32767), &named("0.0.0.0:30080"));
        check(to("192.0.2.1", ports(Some(6), 30080..=30080)), &named("0.0.0.0:30080"));
        let v6 = FrontendKey::new(addr("::"), 30080, Proto::Tcp);
        assert!(!sees(Family::V4.into(), &v6) && sees(Family::V6.into(), &v6) && sees(TableFamily::Inet, &v6));
        check(to("10.96.0.10", Rule::default()), &named("10.96.0.10:80"));
        check(to("10.96.0.10", ports(Some(6), 80..=80)), &named("10.96.0.10:80"));
        for other in [
            Rule::default(),
            ports(Some(17), 30080..=30080),
            ports(Some(6), 22..=22),
            to("10.96.0.10", ports(Some(6), 81..=81)),
            to("192.0.2.1", Rule::default()),
            to("192.0.2.1", ports(Some(6), 80..=80)),
        ] {
            check(other, "ok: no rule of netfilter");
        }
    }

    #[test]
    fn rules_for_a_cache_at_a_cluster_ip_of_the_node_are_none_of_these() {
        let rule = to("10.96.0.10", ports(Some(17), 53..=53));
        let raw = Ok(vec![chain("raw", -300, vec![("PREROUTING", rule)])]);
        let key = FrontendKey::new(addr("10.96.0.10"), 53, Proto::Udp);
        for (kind, expected) in [
            (Kind::Address, "warning: 1 rule in ip raw PREROUTING names 10.96.0.10:53/UDP before"),
            (Kind::OwnAddress, "ok: no rule of netfilter"),
        ] {
            let frontends = [(key, Frontend::new(1, Kind::ClusterIp)), (key.address(), Frontend::new(1, kind))];
            assert_findings(&evaluate(&raw, &Dump { frontends: frontends.into(), ..Dump::default() }), &[expected]);
        }
    }

    #[test]
    fn a_firewall_that_drops_forwarded_packets_is_reported_unless_a_plugin_accepts_them() {
        let accept = || Rule { actions: vec![RuleAction::Accept], ..Rule::default() };
        let forward = |drops, chains: &[&'static str]| {
            let mut chain = chain("filter", 0, chains.iter().map(|chain| (*chain, accept())).collect());
            chain.chain.name = "FORWARD".to_owned();
            chain.hook = ChainHook { number: FORWARD, priority: 0, drops };
            evaluate(&Ok(vec![chain]), &Dump::default())
        };
        assert_findings(&forward(false, &[]), &["ok"]);
        assert_findings(&forward(true, &[]), &["warning: ip filter FORWARD drops forwarded packets"]);
        assert_findings(&forward(true, &["DOCKER-FORWARD", "KUBE-FORWARD"]), &["warning: ip filter FORWARD drops"]);
        assert_findings(&forward(true, &["KUBE-FORWARD", "FLANNEL-FWD"]), &["note: ip filter FORWARD drops"]);
        // ufw accepts ICMP and connections that stand, firewalld also what has destination NAT.
        for rule in [Rule { skips_new: true, ..accept() }, Rule { proto: Some(ICMP), ..accept() }] {
            let mut chain = chain("filter", 0, vec![("ufw-before-forward", rule)]);
            chain.hook = ChainHook { number: FORWARD, priority: 0, drops: true };
            let findings = evaluate(&Ok(vec![chain]), &Dump::default());
            assert_findings(&findings, &["warning: ip filter PREROUTING drops forwarded packets"]);
            assert!(format!("{findings:?}").contains("ufw route allow"), "{findings:?}");
        }
    }

    #[test]
    fn chains_behind_jumps_are_named_with_their_base_chain() {
        let key = FrontendKey::new(addr("0.0.0.0"), 30080, Proto::Tcp);
        let dump = Dump { frontends: [(key, Frontend::new(1, Kind::NodePort))].into(), ..Dump::default() };
        let rules = vec![("cali-pi-x", ports(None, 1..=65535)), ("cali-pi-x", ports(None, 30080..=30080))];
        let findings = evaluate(&Ok(vec![chain("mangle", -150, rules)]), &dump);
        assert_findings(
            &findings,
            &["warning: 2 rules in cali-pi-x of ip mangle PREROUTING names 0.0.0.0:30080/TCP before"],
        );
        assert_findings(
            &evaluate(&Err("EPERM".to_owned()), &dump),
            &["note: rules of netfilter cannot be read: EPERM"],
        );
    }
}
