//! `beeline handover`: compares kube-proxy's rules with the maps, then removes the rules. Connections that the rules
//! translate stay open.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    path::Path,
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use clap::Args;
use lb_common::{FrontendKey, Proto};
use serde::Serialize;

use super::{dump, objects::ReportFormat, pinned_maps, print_text};
use crate::{
    doctor::{Finding, Severity, netfilter, process},
    handover::{Comparison, compare},
};
use lb_core::{store::Dump, text::number};
use lb_dataplane::{
    attach::tc,
    kube_proxy,
    kube_proxy::{
        Leftovers,
        remove::{self, Removed},
    },
    pins::Pins,
};
use lb_kernel::netfilter::{
    conntrack::Conntrack,
    temporary_tables::{self, KEEP_ALIVE_TABLE},
};

/// Time for differences to disappear: kube-proxy and Beeline follow the cluster at their own pace.
const SETTLING_TIME: Duration = Duration::from_secs(3);
const COMPARISON_INTERVAL: Duration = Duration::from_millis(300);

/// kube-proxy's port for /proxyMode (`--metrics-bind-address`).
const METRICS_PORT: u16 = 10249;

/// Arguments of `beeline handover`.
#[derive(Args)]
#[command(after_help = "Examples:
  beeline handover --dry-run   compare only; kube-proxy may run
  beeline handover             compare, then remove kube-proxy's rules; kube-proxy must have stopped

Nothing is removed while the agent is not in service, while kube-proxy runs, or while clients would lose endpoints.
The netfilter table `beeline-handover` keeps connections of kube-proxy's rules alive. Run the command again later: it
removes the table when these connections have ended.

Exit codes: 0 done, or (dry run) no client would lose endpoints; 1 not done, or clients would lose endpoints.")]
pub(super) struct HandoverArgs {
    /// Compare only; change nothing.
    #[arg(long)]
    dry_run: bool,
    /// Remove the rules in spite of obstacles.
    #[arg(long)]
    force: bool,
    /// Form of the output.
    #[arg(short, long, default_value = "text", value_name = "FORM")]
    output: ReportFormat,
}

/// Output of the command.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct HandoverReport {
    /// Subsystems with rules of kube-proxy: nftables, iptables-nft, iptables-legacy, ipvs.
    found: Vec<&'static str>,
    #[serde(flatten)]
    comparison: Comparison,
    /// Reasons not to remove the rules now, each with its cure.
    obstacles: Vec<String>,
    /// True if the rules were removed.
    removed: bool,
    /// Removed objects.
    objects: Vec<String>,
    /// Objects that remain, each with its cure.
    left: Vec<String>,
    /// Further advice.
    notes: Vec<String>,
    /// Number of open connections that netfilter translates.
    connections: usize,
    /// True if the table that keeps these connections exists.
    kept: bool,
}

pub(super) fn run(pins: &Pins, arguments: &HandoverArgs) -> Result<ExitCode> {
    let dump = dump(&pinned_maps(pins)?)?;
    let leftovers = kube_proxy::leftovers()?;
    let (comparison, dump) = settled_comparison(pins, &leftovers, dump)?;
    let is_safe = comparison.is_safe();
    let mut report = HandoverReport {
        found: subsystems(&leftovers),
        comparison,
        obstacles: obstacles(pins, &dump, is_safe)?,
        removed: false,
        objects: Vec::new(),
        left: Vec::new(),
        notes: Vec::new(),
        connections: 0,
        kept: temporary_tables::has_keep_alive().context("asking nf_tables")?,
    };
    let has_no_rules = leftovers.is_empty();
    let is_allowed = arguments.force || report.obstacles.is_empty();
    if !arguments.dry_run && !has_no_rules && is_allowed {
        remove_rules(&leftovers, &mut report)?;
    }
    report.connections = connections(&dump)?;
    if has_no_rules && report.kept && report.connections == 0 && !arguments.dry_run {
        temporary_tables::remove(KEEP_ALIVE_TABLE).context("removing the table that kept kube-proxy's connections")?;
        report.kept = false;
    }
    let text = match arguments.output {
        ReportFormat::Json => serde_json::to_string_pretty(&report)? + "\n",
        ReportFormat::Text => render(&report, arguments),
    };
    print_text(&text)?;
    let is_good = if arguments.dry_run || has_no_rules { is_safe } else { report.removed && report.left.is_empty() };
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Compares until no client would lose endpoints, at most for [`SETTLING_TIME`]. Returns the maps of that comparison
/// too.
fn settled_comparison(pins: &Pins, leftovers: &Leftovers, mut own: Dump) -> Result<(Comparison, Dump)> {
    let deadline = Instant::now() + SETTLING_TIME;
    loop {
        let theirs = kube_proxy::frontends(leftovers).context("reading kube-proxy's rules")?;
        let comparison = compare(&theirs, &own);
        if comparison.is_safe() || Instant::now() > deadline {
            return Ok((comparison, own));
        }
        thread::sleep(COMPARISON_INTERVAL);
        own = dump(&pinned_maps(pins)?)?;
    }
}

/// Names the subsystems with rules of kube-proxy.
fn subsystems(leftovers: &Leftovers) -> Vec<&'static str> {
    let all = [
        ("nftables", !leftovers.tables.is_empty()),
        ("iptables-nft", !leftovers.chains.is_empty()),
        ("iptables-legacy", !leftovers.legacy.is_empty()),
        ("ipvs", leftovers.has_ipvs_device),
    ];
    all.into_iter().filter(|(_, is_there)| *is_there).map(|(name, _)| name).collect()
}

/// Lists the reasons not to remove the rules now, each with its cure.
fn obstacles(pins: &Pins, dump: &Dump, is_safe: bool) -> Result<Vec<String>> {
    let mut obstacles = Vec::new();
    let mut add = |text: &str| obstacles.push(text.to_owned());
    if pins.agent().is_none() {
        add("no agent of Beeline runs on this node: start it first");
    }
    if !pins.current().join("link_connect4").exists() || dump.frontends.is_empty() {
        add("Beeline is not in service on this node: `beeline doctor` finds the reason");
    }
    if tc::attached(&pins.current(), pins.root())?.is_empty() {
        add("Beeline has no programs at network devices, and would not serve clients outside: see --devices");
    }
    if let Some(process) = kube_proxy() {
        obstacles.push(format!(
            "kube-proxy runs ({process}), and would write its rules again: stop it first, in a cluster with \
             `kubectl -n kube-system patch daemonset kube-proxy -p \
             '{{\"spec\":{{\"template\":{{\"spec\":{{\"nodeSelector\":{{\"beeline.io/none\":\"true\"}}}}}}}}}}'`"
        ));
    }
    let rules = netfilter::evaluate(&netfilter::read(), dump).into_iter();
    let in_the_way = rules.filter(|finding| finding.severity >= Severity::Warning);
    obstacles.extend(in_the_way.map(|Finding { what, cure, .. }| format!("{what}: {}", cure.unwrap_or_default())));
    if !is_safe {
        obstacles.push("clients would lose endpoints: see the differences".to_owned());
    }
    Ok(obstacles)
}

/// Describes a kube-proxy that runs in this network namespace.
fn kube_proxy() -> Option<String> {
    let own = process::network_namespace("self");
    let is_here = |pid: &u32| process::network_namespace(&pid.to_string()) == own;
    if let Some(pid) = process::named(Path::new("/proc"), "kube-proxy").into_iter().find(is_here) {
        return Some(format!("pid {pid}"));
    }
    // The process may be in another pid namespace; its port is visible.
    let loopback =
        [SocketAddr::new(Ipv4Addr::LOCALHOST.into(), METRICS_PORT), (Ipv6Addr::LOCALHOST, METRICS_PORT).into()];
    let answer =
        |address: SocketAddr| mode(address).map(|mode| format!("{address} answers as kube-proxy in {mode} mode"));
    loopback.into_iter().find_map(answer)
}

/// Asks the kube-proxy of this network namespace for its mode.
fn mode(address: SocketAddr) -> Option<String> {
    let deadline = Duration::from_secs(1);
    let mut stream = TcpStream::connect_timeout(&address, deadline).ok()?;
    stream.set_read_timeout(Some(deadline)).ok()?;
    stream.write_all(b"GET /proxyMode HTTP/1.0\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.take(4096).read_to_string(&mut answer).ok()?;
    let mode = answer.split_once("\r\n\r\n")?.1.trim();
    matches!(mode, "iptables" | "nftables" | "ipvs").then(|| mode.to_owned())
}

/// Removes the rules, and reports the removed objects and the rest.
fn remove_rules(leftovers: &Leftovers, report: &mut HandoverReport) -> Result<()> {
    let Removed { tables, chains, rules, held } =
        remove::remove().context("removing kube-proxy's rules, none of which was removed")?;
    report.kept = true;
    report.removed = true;
    report.objects.extend(tables.iter().map(|table| format!("the table {table}")));
    let chain_tables: BTreeSet<_> = chains.iter().map(|chain| &chain.table).collect();
    for table in chain_tables {
        let count = chains.iter().filter(|chain| chain.table == *table).count();
        report.objects.push(format!("{} of the table {table}", number(count, "chain")));
    }
    if rules > 0 {
        report.objects.push(format!("{} that jumped there", number(rules, "rule")));
    }
    report.left.extend(
        held.iter()
            .map(|chain| format!("{} in the table {}, since chains of others jump there", chain.name, chain.table)),
    );
    if !leftovers.legacy.is_empty() {
        // The interface of iptables-legacy replaces whole tables, which other programs write too.
        report.left.push(format!(
            "{} of iptables-legacy, which only its own tools remove: run {REMOVE_LEGACY}",
            number(leftovers.legacy.len(), "chain")
        ));
    }
    if leftovers.has_ipvs_device {
        report
            .left
            .push("ipvs, which only its own tools remove: run `ipvsadm --clear; ip link delete kube-ipvs0`".to_owned());
    }
    let route_localnet = "/proc/sys/net/ipv4/conf/all/route_localnet";
    if !chains.is_empty() && fs::read_to_string(route_localnet).is_ok_and(|set| set.trim() == "1") {
        report.notes.push(
            "net.ipv4.conf.all.route_localnet is 1, set by kube-proxy: neighbours can reach 127.0.0.1 of this node \
             unless a rule drops their packets. If no other program needs it: `sysctl -w \
             net.ipv4.conf.all.route_localnet=0`"
                .to_owned(),
        );
    }
    report.notes.extend(conntrack_note(|name| fs::read_to_string(format!("/proc/sys/net/netfilter/{name}")).ok()));
    Ok(())
}

/// Sysctls that kube-proxy sets by default, with its values (`--conntrack-min` is a lower bound)
/// (pkg/proxy/apis/config/v1alpha1/defaults.go).
const CONNTRACK: [(&str, u64); 3] = [
    ("nf_conntrack_max", 131_072),
    ("nf_conntrack_tcp_timeout_established", 86_400),
    ("nf_conntrack_tcp_timeout_close_wait", 3_600),
];

/// Advises to keep the settings of conntrack that kube-proxy made, which last until the next boot.
fn conntrack_note(read: impl Fn(&str) -> Option<String>) -> Option<String> {
    let is_kube_proxys = |name: &str, value: u64, its: u64| match name {
        "nf_conntrack_max" => value >= its,
        _ => value == its,
    };
    let values = CONNTRACK.iter().filter_map(|(name, its)| {
        let value = read(name)?.trim().parse().ok()?;
        is_kube_proxys(name, value, *its).then(|| format!("net.netfilter.{name} = {value}"))
    });
    let lines: Vec<_> = values.collect();
    // One setting alone may be the node's own.
    (lines.len() == CONNTRACK.len()).then(|| {
        format!(
            "kube-proxy has set sysctls of conntrack, which last until the next boot. Beeline's packets do not pass \
             conntrack; if pods are masqueraded to the world, keep the lines in a file of /etc/sysctl.d: {}",
            lines.join("; ")
        )
    })
}

/// Command that removes kube-proxy's chains of iptables-legacy, and no others.
const REMOVE_LEGACY: &str = "`iptables-legacy-save | grep -vE \
    'KUBE-(SERVICES|EXTERNAL-SERVICES|NODEPORTS|POSTROUTING|MARK-MASQ|FORWARD|PROXY-FIREWALL|PROXY-CANARY|LOAD-BALANCER|\
NODE-PORT|SOURCE-RANGES-FIREWALL|IPVS-|SVC-|SVL-|XLB-|EXT-|FW-|SEP-)' | iptables-legacy-restore`, and the same with \
    ip6tables-legacy";

/// Counts the open connections to frontends that netfilter translates.
fn connections(dump: &Dump) -> Result<usize> {
    let Some(mut conntrack) = Conntrack::open().context("asking netfilter")? else { return Ok(0) };
    let connections = conntrack.list_dnat().context("listing the connections that netfilter translates")?;
    let is_service = |key: FrontendKey| {
        dump.frontends.contains_key(&key)
            || (dump.node_addrs.contains_key(&key.addr) && dump.frontends.contains_key(&key.node_port()))
    };
    let is_open = |proto: u8, dst, port| {
        Proto::from_number(proto.into()).is_some_and(|proto| is_service(FrontendKey::new(dst, port, proto)))
    };
    let open = connections.iter().filter(|connection| !connection.is_closed);
    Ok(open.filter(|open| is_open(open.proto, open.original.dst, open.original.dst_port)).count())
}

fn render(report: &HandoverReport, arguments: &HandoverArgs) -> String {
    let mut text = String::new();
    let mut line = |words: String| _ = writeln!(text, "{words}");
    if report.found.is_empty() {
        line("kube-proxy has no rules on this node".to_owned());
    } else {
        let Comparison { compared, differences } = &report.comparison;
        line(format!(
            "kube-proxy has rules on this node ({}): {} compared",
            report.found.join(", "),
            number(*compared, "frontend")
        ));
        for difference in differences {
            line(format!("{} {difference}", if difference.loses { "differs " } else { "note    " }));
        }
        if differences.is_empty() {
            line("no differences: kube-proxy and Beeline have the same endpoints".to_owned());
        } else if report.comparison.is_safe() {
            line("no client loses endpoints".to_owned());
        }
        let mark = if arguments.force { "forced  " } else { "obstacle" };
        report.obstacles.iter().for_each(|obstacle| line(format!("{mark} {obstacle}")));
        report.objects.iter().for_each(|object| line(format!("removed  {object}")));
        report.left.iter().for_each(|left| line(format!("left     {left}")));
        report.notes.iter().for_each(|note| line(format!("note     {note}")));
        if !report.removed {
            line("nothing was changed".to_owned());
        }
    }
    if report.kept {
        let open = number(report.connections, "open connection");
        line(format!(
            "the table {KEEP_ALIVE_TABLE} keeps {open} of kube-proxy's rules alive: run `beeline handover` again \
             later, which removes it when they have ended"
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_conntrack_are_named_if_all_are_kube_proxys() {
        let kube_proxys =
            |name: &str| CONNTRACK.iter().find(|(own, _)| *own == name).map(|(_, value)| format!("{value}\n"));
        let note = conntrack_note(kube_proxys).expect("a note");
        assert!(note.contains("net.netfilter.nf_conntrack_tcp_timeout_close_wait = 3600"), "{note}");
        let of_the_kernel =
            |name: &str| if name.ends_with("close_wait") { Some("60".to_owned()) } else { kube_proxys(name) };
        assert_eq!(conntrack_note(of_the_kernel), None);
        assert_eq!(conntrack_note(|_| None), None);
    }
}
