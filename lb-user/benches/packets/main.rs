//! The cost of a packet through a node, compared with kube-proxy and with no proxy: `cargo xtask bench packets`.
//!
//! Each proxy has a network of its own (client, two nodes, pods), all alike and all present at once. Every round
//! measures all of them in turn; a ratio is the median over the rounds of the ratios within a round. The floor
//! is a network without proxy and netfilter, in which clients dial the backend itself.
//!
//! A veth delivers on the CPU that sends: the whole route of a packet, from the client through the nodes to the
//! backend's socket, is work of the client's CPU, and the servers run on the other one. So the CPU time of a client is
//! that of the whole route: equal to the elapsed time on an idle machine, and the figure to look at on a busy one. It
//! contains the cost of the client itself; the table shows the cost of both ends alone.

mod control;
mod figures;
mod objects;
mod report;
mod testbed;
mod worker;

use std::time::Instant;

use lb_dataplane::upgrade::programs::OBJECT;

use clap::{Parser as _, ValueEnum as _};
use lb_lab::{
    api_server::Assets,
    kube_proxy::Mode,
    packets::cost,
    sandbox::{Inside, run_again},
};

use control::Control;
use figures::Measurement;
use testbed::{Contender, Testbed};

/// Runs of a program for each row of the table of costs.
const RUNS: u32 = 100_000;

/// The cost of a packet through a node.
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
    only: Vec<Measurement>,
    /// The argument that cargo passes to every bench.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() {
    let words: Vec<String> = std::env::args().collect();
    worker::main(&words);
    let arguments = Arguments::parse();
    if let Some(inside) = Inside::find() {
        return measure(&arguments, &inside);
    }
    if !rustix::process::geteuid().is_root() {
        eprintln!("the bench of packets needs root");
        std::process::exit(1);
    }
    if let Err(missing) = Assets::find() {
        eprintln!("{missing}; set KUBEBUILDER_ASSETS to a directory with kube-apiserver, kubectl, etcd and kube-proxy");
        std::process::exit(1);
    }
    std::process::exit(run_again("bench"));
}

fn measure(arguments: &Arguments, inside: &Inside) {
    let bpffs = inside.enter();
    let Inside { cgroup, directory } = inside;
    eprintln!("starting the API server");
    let control = Control::start(cgroup, Assets::find().expect("found before"));
    let mut testbeds = vec![Testbed::floor()];
    objects::add_nodes(&control.cluster(), &testbeds.first().expect("one").lan);
    for mode in [Mode::Iptables, Mode::Nftables] {
        match Testbed::kube_proxy(mode, &control, directory) {
            Ok(testbed) => testbeds.push(testbed),
            Err(reason) => println!("{} is not measured: {reason}.", Contender::KubeProxy(mode)),
        }
    }
    match testbed::beeline_lacks() {
        None => {
            for (proxy, flags) in [(Contender::Beeline, [].as_slice()), (Contender::HostRouting, &["--host-routing"])] {
                testbeds.push(Testbed::beeline(proxy, flags, cgroup, &bpffs, directory));
            }
        }
        Some(reason) => println!("{} is not measured: {reason}.", Contender::Beeline),
    }
    let kinds = if arguments.only.is_empty() { Measurement::value_variants() } else { &arguments.only };
    println!("Median (least to most) of {} rounds; in bold the ratio to the floor.\n", arguments.rounds);
    report::header();
    let mut made = 0;
    for &services in &arguments.services {
        let start = Instant::now();
        control.fill();
        objects::add(&control.cluster(), &testbeds.first().expect("one").lan, made, services);
        made = services;
        let filled = start.elapsed();
        control.run();
        for testbed in &mut testbeds {
            testbed.write_services(services);
            testbed.wait_for(services);
        }
        control.freeze_all();
        let (filled, served) = (filled.as_secs_f64(), start.elapsed().as_secs_f64());
        eprintln!("{services} Services: made in {filled:.1} s, all proxies have them after {served:.1} s");
        let start = Instant::now();
        let figures = figures::rounds(&mut testbeds, kinds, arguments.rounds);
        eprintln!("{} rounds in {:.1} s", arguments.rounds, start.elapsed().as_secs_f64());
        report::rows(services, &figures);
    }
    let floor = testbeds.first().expect("one");
    assert!(!floor.has_conntrack(), "netfilter tracks connections of the floor");
    // On a thread of its own, since it moves that thread to a new node.
    let costs = std::thread::spawn(|| cost::table(OBJECT, RUNS)).join().expect("a table");
    report::costs(&costs);
}
