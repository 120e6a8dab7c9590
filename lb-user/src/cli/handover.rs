//! `beeline handover`: kube-proxy's rules beside the maps, and then their end, without that of the connections they have begun.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpStream},
    path::Path,
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use clap::Args;
use lb_common::{FrontendKey, Proto};
use serde::Serialize;

use super::{dump, existing, objects::Output, say};
use crate::{
    doctor::process,
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

/// Both follow the cluster, each in its own time: differences that last so long are differences.
const SETTLES: Duration = Duration::from_secs(3);
const LOOK: Duration = Duration::from_millis(300);

/// Where kube-proxy tells its mode (`--metrics-bind-address`).
const METRICS: u16 = 10249;

/// How it is done.
#[derive(Args)]
#[command(after_help = "Examples:
  beeline handover --dry-run   compare only; beside a kube-proxy that runs
  beeline handover             compare, then remove kube-proxy's rules; once kube-proxy has ended

Nothing is removed while the agent is not in service, while kube-proxy runs, or while clients would lose something. A table
`beeline-handover` in netfilter keeps the connections alive that kube-proxy's rules have begun; run the command again later, and it
goes when they are over.

Exit codes: 0 done, or (dry run) nobody would lose anything; 1 not done, or somebody would.")]
pub(super) struct Arguments {
    /// Compare, and change nothing.
    #[arg(long)]
    dry_run: bool,
    /// Remove the rules whatever speaks against it.
    #[arg(long)]
    force: bool,
    /// Form of the output.
    #[arg(short, long, default_value = "text", value_name = "FORM")]
    output: Output,
}

/// Everything that is said.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Told {
    /// Where kube-proxy's rules were found: nftables, iptables-nft, iptables-legacy.
    found: Vec<&'static str>,
    #[serde(flatten)]
    comparison: Comparison,
    /// What speaks against removing the rules now.
    obstacles: Vec<String>,
    /// Whether they were removed.
    removed: bool,
    /// What was removed.
    objects: Vec<String>,
    /// What is left of them, with its cure.
    left: Vec<String>,
    /// What else one may want to know.
    notes: Vec<String>,
    /// Connections that kube-proxy's rules have begun, and that go on.
    connections: usize,
    /// Whether the table that keeps them is there.
    kept: bool,
}

pub(super) fn run(pins: &Pins, arguments: &Arguments) -> Result<ExitCode> {
    let dump = dump(&existing(pins)?)?;
    let leftovers = kube_proxy::leftovers()?;
    let (comparison, dump) = settled(pins, &leftovers, dump)?;
    let is_safe = comparison.is_safe();
    let mut told = Told {
        found: found(&leftovers),
        comparison,
        obstacles: obstacles(pins, &dump, is_safe)?,
        removed: false,
        objects: Vec::new(),
        left: Vec::new(),
        notes: Vec::new(),
        connections: 0,
        kept: temporary_tables::has_keep_alive().context("asking nf_tables")?,
    };
    let is_nothing = leftovers.is_empty();
    let may = arguments.force || told.obstacles.is_empty();
    if !arguments.dry_run && !is_nothing && may {
        end(&leftovers, &mut told)?;
    }
    told.connections = connections(&dump)?;
    if is_nothing && told.kept && told.connections == 0 && !arguments.dry_run {
        temporary_tables::remove(KEEP_ALIVE_TABLE).context("removing the table that kept kube-proxy's connections")?;
        told.kept = false;
    }
    let text = match arguments.output {
        Output::Json => serde_json::to_string_pretty(&told)? + "\n",
        Output::Text => render(&told, arguments),
    };
    say(&text)?;
    let is_good = if arguments.dry_run || is_nothing { is_safe } else { told.removed && told.left.is_empty() };
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Compares until nobody would lose anything, or for a while: and the maps of that moment.
fn settled(pins: &Pins, leftovers: &Leftovers, mut own: Dump) -> Result<(Comparison, Dump)> {
    let deadline = Instant::now() + SETTLES;
    loop {
        let theirs = kube_proxy::frontends(leftovers).context("reading kube-proxy's rules")?;
        let comparison = compare(&theirs, &own);
        if comparison.is_safe() || Instant::now() > deadline {
            return Ok((comparison, own));
        }
        thread::sleep(LOOK);
        own = dump(&existing(pins)?)?;
    }
}

fn found(leftovers: &Leftovers) -> Vec<&'static str> {
    let all = [
        ("nftables", !leftovers.tables.is_empty()),
        ("iptables-nft", !leftovers.chains.is_empty()),
        ("iptables-legacy", !leftovers.legacy.is_empty()),
        ("ipvs", leftovers.has_ipvs_device),
    ];
    all.into_iter().filter(|(_, is_there)| *is_there).map(|(name, _)| name).collect()
}

/// What speaks against removing the rules, each with its cure.
fn obstacles(pins: &Pins, dump: &Dump, is_safe: bool) -> Result<Vec<String>> {
    let mut obstacles = Vec::new();
    let mut add = |text: &str| obstacles.push(text.to_owned());
    if pins.agent().is_none() {
        add("no agent of Beeline runs on this node: start it first");
    }
    if !pins.current().join("link_connect4").exists() || dump.frontends.is_empty() {
        add("Beeline is not in service on this node: `beeline doctor` says why");
    }
    if tc::attached(&pins.current(), pins.root())?.is_empty() {
        add("Beeline has its programs on no network device, so that nobody would serve clients outside: see --devices");
    }
    if let Some(who) = kube_proxy() {
        obstacles.push(format!(
            "kube-proxy runs ({who}), and would write its rules again: end it first, on a cluster by `kubectl -n kube-system patch \
             daemonset kube-proxy -p '{{\"spec\":{{\"template\":{{\"spec\":{{\"nodeSelector\":{{\"beeline.io/none\":\"true\"}}}}}}}}}}'`"
        ));
    }
    if !is_safe {
        obstacles.push("clients would lose something: see the differences".to_owned());
    }
    Ok(obstacles)
}

/// A kube-proxy of this network namespace, as far as it can be seen from here.
fn kube_proxy() -> Option<String> {
    let own = process::network_namespace("self");
    let is_here = |pid: &u32| process::network_namespace(&pid.to_string()) == own;
    if let Some(pid) = process::named(Path::new("/proc"), "kube-proxy").into_iter().find(is_here) {
        return Some(format!("pid {pid}"));
    }
    // Its process may be hidden from here; its port is not.
    mode().map(|mode| format!("127.0.0.1:{METRICS} answers as kube-proxy in {mode} mode"))
}

fn mode() -> Option<String> {
    let patience = Duration::from_secs(1);
    let mut stream = TcpStream::connect_timeout(&(Ipv4Addr::LOCALHOST, METRICS).into(), patience).ok()?;
    stream.set_read_timeout(Some(patience)).ok()?;
    stream.write_all(b"GET /proxyMode HTTP/1.0\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.take(4096).read_to_string(&mut answer).ok()?;
    let mode = answer.split_once("\r\n\r\n")?.1.trim();
    matches!(mode, "iptables" | "nftables" | "ipvs").then(|| mode.to_owned())
}

/// Ends the rules.
fn end(leftovers: &Leftovers, told: &mut Told) -> Result<()> {
    let Removed { tables, chains, rules, held } =
        remove::remove().context("removing kube-proxy's rules, of which all are left")?;
    told.kept = true;
    told.removed = true;
    told.objects.extend(tables.iter().map(|table| format!("the table {table}")));
    let of: BTreeSet<_> = chains.iter().map(|chain| &chain.table).collect();
    for table in of {
        let count = chains.iter().filter(|chain| chain.table == *table).count();
        told.objects.push(format!("{} of the table {table}", number(count, "chain")));
    }
    if rules > 0 {
        told.objects.push(format!("{} that led there", number(rules, "rule")));
    }
    told.left.extend(
        held.iter().map(|chain| {
            format!("{} in the table {} stays, since chains of others lead there", chain.name, chain.table)
        }),
    );
    if !leftovers.legacy.is_empty() {
        // Netfilter's older interface replaces whole tables, and others write to them.
        told.left.push(format!(
            "{} of iptables-legacy, which only its own tools take away: run {LEGACY}",
            number(leftovers.legacy.len(), "chain")
        ));
    }
    if leftovers.has_ipvs_device {
        told.left.push("ipvs is not taken away: run `ipvsadm --clear; ip link delete kube-ipvs0`".to_owned());
    }
    let guard = "/proc/sys/net/ipv4/conf/all/route_localnet";
    if !chains.is_empty() && fs::read_to_string(guard).is_ok_and(|set| set.trim() == "1") {
        told.notes.push(
            "net.ipv4.conf.all.route_localnet is 1, which kube-proxy sets: it lets neighbours reach 127.0.0.1 of this node where no \
             rule forbids it. Unless something else needs it: `sysctl -w net.ipv4.conf.all.route_localnet=0`"
                .to_owned(),
        );
    }
    Ok(())
}

/// Everything of kube-proxy's, and nothing of others.
const LEGACY: &str = "`iptables-legacy-save | grep -vE 'KUBE-(SERVICES|EXTERNAL-SERVICES|NODEPORTS|POSTROUTING|MARK-MASQ|FORWARD|\
PROXY-FIREWALL|PROXY-CANARY|LOAD-BALANCER|NODE-PORT|SOURCE-RANGES-FIREWALL|IPVS-|SVC-|SVL-|XLB-|EXT-|FW-|SEP-)' | iptables-legacy-restore`, and the same of ip6tables-legacy";

/// How many connections to Services netfilter translates.
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

fn render(told: &Told, arguments: &Arguments) -> String {
    let mut text = String::new();
    let mut line = |words: String| _ = writeln!(text, "{words}");
    if told.found.is_empty() {
        line("kube-proxy has no rules on this node".to_owned());
    } else {
        let Comparison { compared, differences } = &told.comparison;
        line(format!(
            "kube-proxy's rules are here ({}): {} compared",
            told.found.join(", "),
            number(*compared, "frontend")
        ));
        for difference in differences {
            line(format!("{} {difference}", if difference.loses { "differs " } else { "note    " }));
        }
        if differences.is_empty() {
            line("both answer alike, everywhere".to_owned());
        } else if told.comparison.is_safe() {
            line("whatever kube-proxy answers Beeline answers alike".to_owned());
        }
        let mark = if arguments.force { "forced  " } else { "obstacle" };
        told.obstacles.iter().for_each(|obstacle| line(format!("{mark} {obstacle}")));
        told.objects.iter().for_each(|object| line(format!("removed  {object}")));
        told.left.iter().for_each(|left| line(format!("left     {left}")));
        told.notes.iter().for_each(|note| line(format!("note     {note}")));
        if !told.removed {
            line("nothing was changed".to_owned());
        }
    }
    if told.kept {
        let open = number(told.connections, "open connection");
        line(format!(
            "the table {KEEP_ALIVE_TABLE} keeps {open} alive that kube-proxy's rules have begun: run `beeline handover` again, later, and it goes \
             when they are over"
        ));
    }
    text
}
