//! Time from the start of the agent to the first VIP that answers, with 10,000 Services on a real API server, and the
//! agent's memory at that time: `cargo xtask bench start`.
//!
//! API server, agent, client and backends share one network namespace of their own. Where kube-proxy and nft are
//! installed, kube-proxy (mode nftables) starts in the same rounds, so that its figures compare.

#![expect(clippy::unwrap_used, reason = "a bench")]

mod objects;
mod proxies;

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    process::Command,
    time::{Duration, Instant},
};

use lb_lab::{
    ChildProcess,
    api_client::ApiClient,
    api_server::{ApiServer, Assets},
    kube_proxy::{KubeProxy, Mode},
    sandbox::{Inside, run_again},
    table::{Spread, header, row},
};

use proxies::BenchNode;

/// Rounds of a figure; odd, so that there is a median.
const ROUNDS: usize = 5;
/// Services on the API server, each with one to three endpoints.
const SERVICES: u32 = 10_000;
/// Changes of an endpoint that the bench follows from the API server to the map.
const CHANGES: u32 = 40;
/// Delay of the second memory figure.
const LATER: Duration = Duration::from_secs(10);

fn main() {
    if let Some(inside) = Inside::find() {
        return measure(inside);
    }
    if !rustix::process::geteuid().is_root() {
        eprintln!("the bench of the start needs root");
        std::process::exit(1);
    }
    if let Err(missing) = Assets::find() {
        eprintln!("{missing}; set KUBEBUILDER_ASSETS to a directory with kube-apiserver, kubectl and etcd");
        std::process::exit(1);
    }
    std::process::exit(run_again("bench"));
}

/// Figures of a kind of start, by round.
type Rounds = Vec<Vec<f64>>;

fn measure(inside: Inside) {
    let served = inside.cgroup.join("served");
    fs::create_dir(&served).expect("a cgroup");
    let bpffs = inside.enter();
    addresses();
    // The backend of all Services.
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, objects::TARGET)).expect("a free port");
    std::thread::spawn(move || listener.incoming().for_each(drop));
    eprintln!("starting the API server");
    let api = ApiServer::start(Assets::find().expect("found before"));
    let cluster = ApiClient::new(&api.kubeconfig());
    let start = Instant::now();
    objects::fill(&cluster, SERVICES);
    eprintln!("{SERVICES} Services and their slices made in {:.1} s", start.elapsed().as_secs_f64());
    // The agent serves new sockets of this process and its children from here on.
    fs::write(served.join("cgroup.procs"), std::process::id().to_string()).expect("joining the cgroup");

    let node = BenchNode {
        pins: bpffs.join("beeline"),
        cgroup: served,
        directory: inside.directory,
        kubeconfig: api.kubeconfig(),
    };
    let kube_proxy =
        KubeProxy::find(Mode::Nftables).map_err(|reason| eprintln!("kube-proxy is left out: {reason}")).ok();
    let (mut cold, mut warm, mut others, mut changes): (Rounds, Rounds, Rounds, Rounds) = Default::default();
    for number in 1..=ROUNDS {
        eprintln!("round {number} of {ROUNDS}");
        cold.push(start_agent(&node, "cold"));
        let agent = node.start();
        agent.wait_until_in_service();
        let (patch, sent): (Vec<f64>, Vec<f64>) =
            (0..CHANGES).map(|change| objects::change(&cluster, &node, change)).unzip();
        changes.push(vec![middle(&patch), middle(&sent), sent.iter().copied().fold(0.0, f64::max)]);
        drop(agent);
        // The agent was killed by SIGKILL: the pins stay, and the VIPs answer all the time.
        warm.push(start_agent(&node, "warm"));
        node.clean_up();
        if let Some(kube_proxy) = &kube_proxy {
            others.push(start_kube_proxy(kube_proxy, &node));
        }
    }
    report(&cold, &warm, &others, &changes);
}

fn report(cold: &Rounds, warm: &Rounds, others: &Rounds, changes: &Rounds) {
    header();
    let column = |rounds: &Rounds, index: usize| {
        let values: Vec<f64> = rounds.iter().filter_map(|round| round.get(index)).copied().collect();
        Spread::of(values.into_iter())
    };
    let starts = [("start", cold, ["< 1000", "", "< 60", "", "< 60"]), ("start over pins", warm, [""; 5])];
    let whats = [
        ("until a VIP answers", "ms"),
        ("until all is in service", "ms"),
        ("memory at its peak, then (VmHWM)", "MB"),
        ("memory then (VmRSS)", "MB"),
        ("memory 10 s later (VmRSS)", "MB"),
    ];
    for (name, rounds, aims) in starts {
        for (index, ((what, unit), aim)) in whats.into_iter().zip(aims).enumerate() {
            row(&format!("{name}, {SERVICES} Services: {what}"), aim, unit, &column(rounds, index));
        }
    }
    row("one endpoint patched: answer of the API server", "", "ms", &column(changes, 0));
    row("one endpoint patched, request to map, median", "< 10", "ms", &column(changes, 1));
    row("one endpoint patched, request to map, worst", "", "ms", &column(changes, 2));
    if !others.is_empty() {
        row("kube-proxy (nftables), start until a VIP answers", "", "ms", &column(others, 0));
        row("kube-proxy, memory 10 s later (VmRSS)", "", "MB", &column(others, 1));
        let ratios = others.iter().zip(cold).filter_map(|(other, own)| Some(other.first()? / own.first()?));
        row("kube-proxy's time as a multiple of ours", "", "×", &Spread::of(ratios));
    }
}

/// One start of the agent: times and memory.
fn start_agent(node: &BenchNode, kind: &str) -> Vec<f64> {
    let start = Instant::now();
    let agent = node.start();
    let answers = first_answer(start, &agent);
    agent.wait_until_in_service();
    let in_service = start.elapsed();
    let (peak, resident) = (agent.memory("VmHWM:"), agent.memory("VmRSS:"));
    std::thread::sleep(LATER);
    eprintln!("  {kind}: {answers:?}, {:.1} MB{}", agent.memory("VmHWM:"), agent.account());
    vec![milliseconds(answers), milliseconds(in_service), peak, resident, agent.memory("VmRSS:")]
}

fn start_kube_proxy(kube_proxy: &KubeProxy, node: &BenchNode) -> Vec<f64> {
    // Translation needs a route to the VIP.
    ip(&["route", "add", "10.96.0.0/16", "dev", "other"]);
    let start = Instant::now();
    let process = node.start_kube_proxy(kube_proxy);
    let answers = first_answer(start, &process);
    std::thread::sleep(LATER);
    eprintln!("  kube-proxy: {answers:?}");
    let figures = vec![milliseconds(answers), process.memory("VmRSS:")];
    drop(process);
    BenchNode::flush_rules();
    ip(&["route", "del", "10.96.0.0/16"]);
    figures
}

/// Dials a VIP until it answers.
fn first_answer(start: Instant, of: &ChildProcess) -> Duration {
    let vip = SocketAddr::from((objects::vip(SERVICES / 2), objects::PORT));
    while TcpStream::connect_timeout(&vip, Duration::from_millis(20)).is_err() {
        assert!(start.elapsed() < Duration::from_secs(120), "no VIP answers: {}", of.log());
        std::thread::sleep(Duration::from_millis(1));
    }
    start.elapsed()
}

/// Adds the addresses of the network of this process.
fn addresses() {
    ip(&["link", "set", "lo", "up"]);
    for last in 1..=objects::BACKENDS {
        ip(&["addr", "add", &format!("10.0.0.{last}/32"), "dev", "lo"]);
    }
    ip(&["link", "add", "other", "type", "veth", "peer", "name", "peer"]);
    ip(&["addr", "add", "192.0.2.1/24", "dev", "other"]);
    ip(&["link", "set", "other", "up"]);
    ip(&["link", "set", "peer", "up"]);
}

fn ip(arguments: &[&str]) {
    let output = Command::new("ip").args(arguments).output().expect("the command ip");
    assert!(output.status.success(), "ip {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn middle(values: &[f64]) -> f64 {
    Spread::of(values.iter().copied()).median
}
