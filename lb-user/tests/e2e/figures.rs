//! The cost of a proxy on a node of the cluster: Beeline and kube-proxy in turn on node1, with the same objects.
//! `cargo xtask bench cluster` runs it.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use futures::{StreamExt as _, stream};
use kube::api::{Patch, PatchParams};
use lb_lab::{ChildProcess, api_client::ApiClient, kube_proxy::Mode};
use serde_json::{Value, json};

use crate::{
    addresses,
    cluster::Cluster,
    kube_proxy,
    process::{asset, try_run},
    sandbox::hierarchies,
};

/// Numbers of Services.
const SERVICES: [u32; 3] = [0, 1000, 10_000];
/// Endpoints of each Service.
const ENDPOINTS: u32 = 2;
/// Duration of each measurement of CPU time.
const MEASURED: Duration = Duration::from_secs(20);
/// Endpoint changes per second.
const RATE: u32 = 100;

/// The proxy on the node.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Proxy {
    Beeline,
    KubeProxy(Mode),
}

const PROXIES: [Proxy; 3] = [Proxy::Beeline, Proxy::KubeProxy(Mode::Nftables), Proxy::KubeProxy(Mode::Iptables)];

/// The figures of a proxy: time until it is ready, MB of memory, percent of a CPU when idle, and percent of a CPU with
/// the rate of changes.
struct ClusterFigures {
    ready: Duration,
    resident: f64,
    idle: f64,
    busy: Option<(f64, f64)>,
}

/// Measures and prints the table.
pub fn main() -> ExitCode {
    let cluster = Cluster::start();
    let objects = ApiClient::new(&cluster.control.kubeconfig());
    println!("\n| Services | proxy | start to ready | resident | CPU idle | CPU at {RATE} endpoint changes/s |");
    println!("|---|---|---|---|---|---|");
    let (mut made, mut round) = (0, 0);
    for services in SERVICES {
        objects.add_services((made..services).map(|number| (service(number), slice(number, 0))));
        made = services;
        for proxy in PROXIES {
            let figures = measure(&cluster, &objects, proxy, services, &mut round);
            let ClusterFigures { ready, resident, idle, busy } = figures;
            let busy =
                busy.map_or_else(|| "-".to_owned(), |(cpu, rate)| format!("{cpu:.1} % ({rate:.0} changes/s arrived)"));
            let name = match proxy {
                Proxy::Beeline => "Beeline".to_owned(),
                Proxy::KubeProxy(mode) => format!("kube-proxy {mode}"),
            };
            println!(
                "| {services} | {name} | {:.2} s | {resident:.0} MB | {idle:.2} % | {busy} |",
                ready.as_secs_f64()
            );
        }
    }
    ExitCode::SUCCESS
}

/// Starts a proxy, measures it, and removes it.
fn measure(cluster: &Cluster, objects: &ApiClient, proxy: Proxy, services: u32, round: &mut u32) -> ClusterFigures {
    let begun = Instant::now();
    let process = start(cluster, proxy);
    while !is_healthy() {
        assert!(begun.elapsed() < Duration::from_secs(300), "the proxy is not ready after 300 s");
        thread::sleep(Duration::from_millis(10));
    }
    let ready = begun.elapsed();
    // Let the work after the start end before the idle figure.
    thread::sleep(Duration::from_secs(15));
    let idle = cpu_percent(process.pid(), || thread::sleep(MEASURED)).0;
    let resident = process.memory("VmRSS:");
    let busy = (services > 0).then(|| {
        let mut changed = 0;
        let (cpu, took) = cpu_percent(process.pid(), || changed = change(objects, services, round));
        (cpu, f64::from(changed) / took)
    });
    drop(process);
    clean(cluster, proxy);
    ClusterFigures { ready, resident, idle, busy }
}

fn start(cluster: &Cluster, proxy: Proxy) -> ChildProcess {
    let node = cluster.node("node1");
    let kubeconfig = cluster.control.kubeconfig();
    match proxy {
        Proxy::Beeline => {
            let cgroup2 = hierarchies().into_iter().find(|hierarchy| hierarchy.kind == "cgroup2").expect("cgroup2");
            let mut command = node.host_process(beeline());
            command.arg("--pins").arg(pins(cluster)).args(["run", "--node-name=node1", "--kubeconfig"]).arg(kubeconfig);
            command.arg("--cgroup").arg(node.cgroup_in(&cgroup2.mount));
            ChildProcess::start_appending(&mut command, &cluster.directory.join("log/beeline.log"))
        }
        Proxy::KubeProxy(mode) => kube_proxy::start(cluster, node, mode),
    }
}

fn clean(cluster: &Cluster, proxy: Proxy) {
    let mut command = match proxy {
        Proxy::Beeline => {
            let mut command = cluster.node("node1").host_process(beeline());
            command.arg("--pins").arg(pins(cluster)).arg("cleanup");
            command
        }
        Proxy::KubeProxy(_) => {
            let mut command = cluster.node("node1").host_process(asset("kube-proxy"));
            command.arg("--cleanup");
            command
        }
    };
    try_run(&mut command).unwrap_or_else(|error| panic!("{error}"));
}

fn beeline() -> String {
    std::env::var("BEELINE_BIN").expect("xtask sets it")
}

fn pins(cluster: &Cluster) -> std::path::PathBuf {
    cluster.directory.join("node1/bpf/beeline")
}

/// True if the health port 10256 answers 200.
fn is_healthy() -> bool {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect((addresses::node(1), 10256))?;
        stream.write_all(b"GET /healthz HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().is_ok_and(|answer| answer.split(' ').nth(1) == Some("200"))
}

/// Changes the endpoints of one Service after the other, to those of the rounds after `round`. Returns the number of
/// changes.
fn change(objects: &ApiClient, services: u32, round: &mut u32) -> u32 {
    let slices = objects.slices();
    let begun = Instant::now();
    let total = u32::try_from(MEASURED.as_secs()).expect("few seconds") * RATE;
    let first = *round + 1;
    *round += total.div_ceil(services);
    let change = |number: u32| {
        let slices = slices.clone();
        async move {
            let due = Duration::from_secs(1) * number / RATE;
            tokio::time::sleep(due.saturating_sub(begun.elapsed())).await;
            let (of, round) = (number % services, first + number / services);
            let patch = Patch::Merge(json!({"endpoints": slice(of, round)["endpoints"]}));
            slices.patch(&name(of), &PatchParams::default(), &patch).await.expect("a change");
        }
    };
    objects.wait(stream::iter(0..total).map(change).buffer_unordered(32).for_each(|()| async {}));
    total
}

/// Measures the CPU time of a process during `work`, in percent of one CPU, and the elapsed seconds.
fn cpu_percent(pid: u32, work: impl FnOnce()) -> (f64, f64) {
    let (ticks, begun) = (cpu_ticks(pid), Instant::now());
    work();
    let took = begun.elapsed().as_secs_f64();
    // USER_HZ is 100 on all supported architectures.
    (f64::from(cpu_ticks(pid) - ticks) / 100.0 / took * 100.0, took)
}

/// Reads user and system time, in ticks.
fn cpu_ticks(pid: u32) -> u32 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process runs");
    let (_, after_name) = stat.rsplit_once(')').expect("a name");
    after_name.split_whitespace().skip(11).take(2).map(|ticks| ticks.parse::<u32>().expect("a number")).sum()
}

fn name(number: u32) -> String {
    format!("figure-{number}")
}

fn service(number: u32) -> Value {
    json!({"metadata": {"name": name(number)}, "spec": {"ports": [{"name": "http", "port": 80, "targetPort": 8080}]}})
}

/// Rounds in a row with different endpoints, which are never dialled.
const ROUNDS: u32 = 16;

fn slice(number: u32, round: u32) -> Value {
    let address = |index: u32| {
        let host = (number * ENDPOINTS + index) * ROUNDS + round % ROUNDS;
        std::net::Ipv4Addr::from_bits(std::net::Ipv4Addr::new(10, 200, 0, 0).to_bits() + host).to_string()
    };
    let endpoints: Vec<Value> =
        (0..ENDPOINTS).map(|index| json!({"addresses": [address(index)], "nodeName": "node2"})).collect();
    json!({
        "metadata": {"name": name(number), "labels": {"kubernetes.io/service-name": name(number)}},
        "addressType": "IPv4", "ports": [{"name": "http", "port": 8080}], "endpoints": endpoints,
    })
}
