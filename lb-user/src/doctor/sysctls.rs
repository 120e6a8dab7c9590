//! Sysctls that Services depend on, or that cost security or time.

use std::{collections::BTreeSet, fs, ops::RangeInclusive, path::Path};

use lb_common::{Frontend, Kind};

use super::Finding;
use lb_core::{store::Dump, text::number as count};

const CHECK: &str = "sysctls";

/// Sysctls of this network namespace and of the kernel. `None` if the kernel does not have it.
#[derive(Clone, Default, Debug)]
pub(super) struct SysctlFacts {
    /// net.ipv4.ip_forward
    forwards_v4: Option<u32>,
    /// net.ipv6.conf.all.forwarding
    forwards_v6: Option<u32>,
    /// True if there is an IPv6 default route.
    has_v6: bool,
    /// Interfaces with an IPv4 default route, and the rp_filter in effect: the maximum of the interface's and `all`'s
    /// (Documentation/networking/ip-sysctl.rst).
    uplinks: Vec<(String, u32)>,
    /// Interfaces, or `all`, with route_localnet = 1.
    localnet: Vec<String>,
    /// kernel.unprivileged_bpf_disabled
    unprivileged_bpf_disabled: Option<u32>,
    /// net.core.bpf_jit_enable
    jit: Option<u32>,
    /// net.core.bpf_jit_harden
    harden: Option<u32>,
    /// kernel.bpf_stats_enabled
    stats: Option<u32>,
    /// net.ipv4.ip_local_port_range, which applies to IPv6 too
    local_ports: Option<RangeInclusive<u16>>,
}

/// Reads the sysctls and the default routes.
pub(super) fn read() -> SysctlFacts {
    let all = number("net/ipv4/conf/all/rp_filter").unwrap_or(0);
    let routes = fs::read_to_string("/proc/thread-self/net/route").unwrap_or_default();
    let filter = |name: String| {
        let own = number(&format!("net/ipv4/conf/{name}/rp_filter")).unwrap_or(0);
        (name, own.max(all))
    };
    let interfaces = fs::read_dir("/proc/sys/net/ipv4/conf").into_iter().flatten().flatten();
    let names: BTreeSet<_> = interfaces.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    let is_localnet = |name: &String| number(&format!("net/ipv4/conf/{name}/route_localnet")) == Some(1);
    SysctlFacts {
        forwards_v4: number("net/ipv4/ip_forward"),
        forwards_v6: number("net/ipv6/conf/all/forwarding"),
        has_v6: has_default_v6(&fs::read_to_string("/proc/thread-self/net/ipv6_route").unwrap_or_default()),
        uplinks: default_interfaces(&routes).into_iter().map(filter).collect(),
        // `default` counts too: it applies to new interfaces.
        localnet: names.into_iter().filter(is_localnet).collect(),
        unprivileged_bpf_disabled: number("kernel/unprivileged_bpf_disabled"),
        jit: number("net/core/bpf_jit_enable"),
        harden: number("net/core/bpf_jit_harden"),
        stats: number("kernel/bpf_stats_enabled"),
        local_ports: range("net/ipv4/ip_local_port_range"),
    }
}

fn range(name: &str) -> Option<RangeInclusive<u16>> {
    let text = fs::read_to_string(Path::new("/proc/sys").join(name)).ok()?;
    let (first, last) = text.trim().split_once(char::is_whitespace)?;
    Some(first.parse().ok()?..=last.trim().parse().ok()?)
}

fn number(name: &str) -> Option<u32> {
    fs::read_to_string(Path::new("/proc/sys").join(name)).ok()?.trim().parse().ok()
}

/// Lists the interfaces of default routes in the text of /proc/net/route.
fn default_interfaces(routes: &str) -> BTreeSet<String> {
    let default = |line: &str| {
        let words: Vec<_> = line.split_whitespace().collect();
        match words.as_slice() {
            [name, "00000000", _, _, _, _, _, "00000000", ..] => Some((*name).to_owned()),
            _ => None,
        }
    };
    routes.lines().filter_map(default).collect()
}

/// True if the text of /proc/net/ipv6_route has a default route other than the unreachable one by `lo`.
fn has_default_v6(routes: &str) -> bool {
    routes.lines().any(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        matches!(words.as_slice(), [to, "00", .., device] if to.bytes().all(|digit| digit == b'0') && *device != "lo")
    })
}

/// Reports settings. `is_cluster`: the node belongs to a cluster, and must forward packets. `dump`: the maps, with the
/// NodePorts.
pub(super) fn evaluate(facts: &SysctlFacts, is_cluster: bool, dump: &Dump) -> Vec<Finding> {
    let forwarding = |family: &str, name: &str| {
        let what = format!(
            "{name} is 0: the node does not forward {family} packets, neither of pods nor, on the packet path, to \
             backends on other nodes"
        );
        let cure = format!("`sysctl -w {name}=1`, and the line {name} = 1 in a file of /etc/sysctl.d");
        if is_cluster { Finding::warning(CHECK, what, cure) } else { Finding::note(CHECK, what, cure) }
    };
    let mut findings = Vec::new();
    if facts.forwards_v4 == Some(0) {
        findings.push(forwarding("IPv4", "net.ipv4.ip_forward"));
    }
    if facts.forwards_v6 == Some(0) && facts.has_v6 {
        findings.push(forwarding("IPv6", "net.ipv6.conf.all.forwarding"));
    }
    // With a single uplink all replies arrive by it, and a strict filter passes them.
    let strict: Vec<_> =
        facts.uplinks.iter().filter(|(_, filter)| *filter == 1).map(|(name, _)| name.as_str()).collect();
    if facts.uplinks.len() > 1 && !strict.is_empty() {
        findings.push(Finding::warning(
            CHECK,
            format!(
                "rp_filter is strict on {}, and there are {} uplinks: packets that arrive by another uplink than the \
                 route back are dropped, replies of backends included",
                strict.join(", "),
                facts.uplinks.len()
            ),
            format!(
                "`sysctl -w net.ipv4.conf.{}.rp_filter=2`, and the same for `all` if that is 1",
                strict.join(".rp_filter=2 net.ipv4.conf.")
            ),
        ));
    }
    if !facts.localnet.is_empty() {
        findings.push(Finding::warning(
            CHECK,
            format!(
                "route_localnet is 1 for {}: neighbours on the network may reach services that listen on 127.0.0.1 \
                 (CVE-2020-8558). kube-proxy sets it; Beeline does not need it",
                facts.localnet.join(", ")
            ),
            format!(
                "`sysctl -w net.ipv4.conf.{}.route_localnet=0`",
                facts.localnet.join(".route_localnet=0 net.ipv4.conf.")
            ),
        ));
    }
    if facts.jit == Some(0) {
        findings.push(Finding::warning(
            CHECK,
            "net.core.bpf_jit_enable is 0: BPF programs are interpreted, and a connect takes several times as long",
            "`sysctl -w net.core.bpf_jit_enable=1`",
        ));
    }
    if facts.harden == Some(2) {
        findings.push(Finding::note(
            CHECK,
            "net.core.bpf_jit_harden is 2: programs of root are hardened too, which makes them slower",
            "`sysctl -w net.core.bpf_jit_harden=1` hardens programs of other users only",
        ));
    }
    if facts.stats == Some(1) {
        findings.push(Finding::note(
            CHECK,
            "kernel.bpf_stats_enabled is 1: the kernel times each run of each program, which may take longer than the \
             run",
            "`sysctl -w kernel.bpf_stats_enabled=0` when the figures are no longer needed",
        ));
    }
    if facts.unprivileged_bpf_disabled == Some(0) {
        findings.push(Finding::note(
            CHECK,
            "kernel.unprivileged_bpf_disabled is 0: every user may load BPF programs, and attack the verifier",
            "`sysctl -w kernel.unprivileged_bpf_disabled=2`; Beeline runs as root and is not affected",
        ));
    }
    let is_node_port = |frontend: &Frontend| frontend.kind == Kind::NodePort as u8;
    let node_ports = dump.frontends.iter().filter(|(_, frontend)| is_node_port(frontend));
    let node_ports: BTreeSet<u16> = node_ports.map(|(key, _)| key.port).collect();
    let local = facts.local_ports.iter().flat_map(|range| node_ports.range(range.clone())).count();
    if let Some(range) = facts.local_ports.as_ref().filter(|_| local > 0) {
        findings.push(Finding::note(
            CHECK,
            format!(
                "net.ipv4.ip_local_port_range ({}-{}) contains {}: a connection of the node from such a port is not \
                 the Service's, but while it is open its peer cannot reach the NodePort from the same port",
                range.start(),
                range.end(),
                count(local, "NodePort"),
            ),
            "none is needed; to keep them apart, `sysctl -w net.ipv4.ip_local_reserved_ports=30000-32767`",
        ));
    }
    if findings.is_empty() {
        findings.push(Finding::ok(CHECK, "no sysctl impairs Services"));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::assert_findings;
    use lb_common::{Addr, FrontendKey, Proto};

    fn good() -> SysctlFacts {
        SysctlFacts {
            forwards_v4: Some(1),
            forwards_v6: Some(0),
            jit: Some(1),
            harden: Some(1),
            ..SysctlFacts::default()
        }
    }

    fn check(facts: &SysctlFacts, is_cluster: bool, expected: &[&str]) {
        assert_findings(&evaluate(facts, is_cluster, &Dump::default()), expected);
    }

    #[test]
    fn each_setting_is_reported() {
        check(&good(), true, &["ok"]);
        let off = SysctlFacts { forwards_v4: Some(0), ..good() };
        check(&off, true, &["warning: net.ipv4.ip_forward is 0"]);
        check(&off, false, &["note: net.ipv4.ip_forward is 0"]);
        check(&SysctlFacts { has_v6: true, ..good() }, true, &["warning: net.ipv6.conf.all.forwarding is 0"]);
        check(
            &SysctlFacts { localnet: vec!["all".to_owned()], ..good() },
            true,
            &["warning: route_localnet is 1 for all"],
        );
        check(&SysctlFacts { jit: Some(0), ..good() }, true, &["warning: net.core.bpf_jit_enable"]);
        check(&SysctlFacts { harden: Some(2), ..good() }, true, &["note: net.core.bpf_jit_harden"]);
        check(&SysctlFacts { stats: Some(1), ..good() }, true, &["note: kernel.bpf_stats_enabled"]);
        check(&SysctlFacts { unprivileged_bpf_disabled: Some(0), ..good() }, true, &["note: kernel.unprivileged_bpf"]);
    }

    #[test]
    fn node_ports_among_the_local_ports_are_a_note() {
        let key = FrontendKey::new(Addr::from_v4_word(0), 40000, Proto::Tcp);
        let dump = Dump { frontends: [(key, Frontend::new(1, Kind::NodePort))].into(), ..Dump::default() };
        let with = |range| SysctlFacts { local_ports: Some(range), ..good() };
        let expected = "note: net.ipv4.ip_local_port_range (32768-60999) contains 1 NodePort";
        assert_findings(&evaluate(&with(32768..=60999), true, &dump), &[expected]);
        assert_findings(&evaluate(&with(50000..=60999), true, &dump), &["ok"]);
    }

    #[test]
    fn strict_filters_matter_with_several_uplinks() {
        let uplinks = |list: &[(&str, u32)]| list.iter().map(|(name, filter)| ((*name).to_owned(), *filter)).collect();
        check(&SysctlFacts { uplinks: uplinks(&[("a", 1)]), ..good() }, true, &["ok"]);
        check(&SysctlFacts { uplinks: uplinks(&[("a", 2), ("b", 0)]), ..good() }, true, &["ok"]);
        let facts = SysctlFacts { uplinks: uplinks(&[("a", 1), ("b", 1)]), ..good() };
        check(&facts, true, &["warning: rp_filter is strict on a, b"]);
        let cure = evaluate(&facts, true, &Dump::default()).pop().and_then(|finding| finding.cure).expect("a cure");
        assert!(cure.contains("net.ipv4.conf.a.rp_filter=2 net.ipv4.conf.b.rp_filter=2"), "{cure}");
    }

    #[test]
    fn default_routes_are_found() {
        let v4 = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
                  eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
                  eth1\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n";
        assert_eq!(default_interfaces(v4), BTreeSet::from(["eth0".to_owned()]));
        let line = |to: &str, length: &str, device: &str| {
            let zero = "00000000000000000000000000000000";
            format!("{to} {length} {zero} 00 {zero} 00000400 00000001 00000000 00000001 {device:>8}\n")
        };
        let zero = "00000000000000000000000000000000";
        assert!(has_default_v6(&line(zero, "00", "eth0")));
        assert!(!has_default_v6(&line(zero, "00", "lo")));
        assert!(!has_default_v6(&line("fd000000000000000000000000000000", "40", "eth0")));
    }
}
