//! What a packet costs on its way through a node, side by side with kube-proxy and with no proxy at all:
//! `cargo xtask bench packets`.
//!
//! Each proxy has a network of its own (client, two nodes, pods), and all networks are alike and there at once. Every round
//! measures all of them one after the other; a ratio is the median over the rounds of the ratios within a round. The floor
//! is a network without proxy and netfilter, in which clients dial the backend itself.
//!
//! A veth delivers on the CPU that sends: the whole way of a packet, from the client through the nodes to the backend's
//! socket, is work of the client's CPU, and the servers are on the other one. So the CPU time of a client is that of the
//! whole way: as long as nobody else uses the machine it is the time that passes, and when somebody does, it is the
//! figure to look at. It contains what the client itself costs; what both ends cost alone stands in the table.

#![expect(clippy::unwrap_used, reason = "a bench")]

#[path = "../support/cluster.rs"]
mod cluster;
mod control;
mod figures;
#[path = "../support/kube_proxy.rs"]
mod kube_proxy;
#[expect(dead_code, reason = "the bench looks back neither loosely nor not at all")]
#[path = "../../tests/support/lan.rs"]
mod lan;
mod objects;
#[path = "../../tests/stories/place.rs"]
mod place;
#[expect(dead_code, unused_imports, reason = "the bench asks for the table of costs alone")]
#[path = "../../tests/support/packets/mod.rs"]
mod programs;
#[path = "../support/relay.rs"]
mod relay;
mod report;
#[expect(dead_code, reason = "the server is not stopped between rounds")]
#[path = "../../tests/kube/server.rs"]
mod server;
mod site;
#[expect(dead_code, reason = "nobody asks for the memory")]
#[path = "../support/started.rs"]
mod started;
#[expect(dead_code, reason = "the table has other columns")]
#[path = "../support/table.rs"]
mod table;
#[path = "../support/wire.rs"]
mod wire;
mod worker;

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use clap::{Parser as _, ValueEnum as _};

use control::Control;
use figures::Kind;
use kube_proxy::Mode;
use server::Assets;
use site::{By, Site};

/// Environment of the process that measures: its cgroup and its directory, which the first process removes after it.
const PLACE: [&str; 2] = ["BEELINE_BENCH_CGROUP", "BEELINE_BENCH_DIRECTORY"];

/// Runs of a program for each row of the table of costs.
const RUNS: u32 = 100_000;

/// What a packet costs on its way through a node.
#[derive(clap::Parser)]
struct Arguments {
    /// Numbers of Services, each greater than the one before it and a multiple of ten.
    #[arg(long, value_delimiter = ',', default_value = "10,1000,10000")]
    services: Vec<u32>,
    /// Rounds of a figure; odd, so that there is a median.
    #[arg(long, default_value_t = 11)]
    rounds: usize,
    /// Measure only this [default: everything]
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Kind>,
    /// What cargo says to every bench.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() {
    let words: Vec<String> = std::env::args().collect();
    worker::main(&words);
    let arguments = Arguments::parse();
    if let [Some(cgroup), Some(directory)] = PLACE.map(std::env::var_os) {
        return measure(&arguments, Path::new(&cgroup), &PathBuf::from(directory));
    }
    if !rustix::process::geteuid().is_root() {
        eprintln!("the bench of packets needs root");
        std::process::exit(1);
    }
    if let Err(missing) = Assets::find() {
        eprintln!("{missing}; set KUBEBUILDER_ASSETS to a directory with kube-apiserver, kubectl, etcd and kube-proxy");
        std::process::exit(1);
    }
    let place = place::Place::make("bench").expect("a cgroup and a directory");
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args(words.iter().skip(1)).env(PLACE[0], place.cgroup()).env(PLACE[1], place.directory());
    let status = command.status();
    drop(place);
    std::process::exit(if status.is_ok_and(|status| status.success()) { 0 } else { 1 });
}

fn measure(arguments: &Arguments, cgroup: &Path, directory: &Path) {
    place::enter_namespaces();
    let bpffs = place::mount_bpffs(directory);
    let link = Command::new("ip").args(["link", "set", "lo", "up"]).status();
    assert!(link.is_ok_and(|status| status.success()), "the loopback of the API server");
    eprintln!("starting the API server");
    let control = Control::start(cgroup, Assets::find().expect("found before"));
    let mut sites = vec![Site::floor()];
    objects::add_nodes(&control.cluster(), &sites.first().expect("one").lan);
    for mode in [Mode::Iptables, Mode::Nftables] {
        match Site::kube_proxy(mode, &control, directory) {
            Ok(site) => sites.push(site),
            Err(reason) => println!("{} is not measured: {reason}.", By::KubeProxy(mode)),
        }
    }
    match site::beeline_lacks() {
        None => {
            for (proxy, flags) in [(By::Beeline, [].as_slice()), (By::HostRouting, &["--host-routing"])] {
                sites.push(Site::beeline(proxy, flags, cgroup, &bpffs, directory));
            }
        }
        Some(reason) => println!("{} is not measured: {reason}.", By::Beeline),
    }
    let kinds = if arguments.only.is_empty() { Kind::value_variants() } else { &arguments.only };
    println!("Median (least to most) of {} rounds; in bold the ratio to the floor.\n", arguments.rounds);
    report::header();
    let mut made = 0;
    for &services in &arguments.services {
        let start = Instant::now();
        control.fill();
        objects::add(&control.cluster(), &sites.first().expect("one").lan, made, services);
        made = services;
        let filled = start.elapsed();
        control.run();
        for site in &mut sites {
            site.tell(services);
            site.wait_for(services);
        }
        control.stand_still();
        let (filled, served) = (filled.as_secs_f64(), start.elapsed().as_secs_f64());
        eprintln!("{services} Services: made in {filled:.1} s, all proxies have them after {served:.1} s");
        let start = Instant::now();
        let figures = figures::rounds(&mut sites, kinds, arguments.rounds);
        eprintln!("{} rounds in {:.1} s", arguments.rounds, start.elapsed().as_secs_f64());
        report::rows(services, &figures);
    }
    let floor = sites.first().expect("one");
    assert!(!floor.has_conntrack(), "netfilter looked on at the floor");
    // It moves its thread to a node of its own.
    let costs = std::thread::spawn(|| programs::cost::table(RUNS)).join().expect("a table");
    report::costs(&costs);
}
