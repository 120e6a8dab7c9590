//! The cost of the socket path against a direct connection, in one run: `cargo xtask bench sockets`.
//!
//! Every round measures all variants in turn, and a figure is the median over the rounds of the ratio (or
//! difference) to the floor of the same round, so that the speed of the machine may drift. The floor is a
//! direct connection to the backend by a process that Beeline does not serve.

mod choice;
mod programs;
mod traffic;

use std::{fs, path::Path};

use lb_common::Family;
use lb_common::{Backend, Frontend, FrontendKey, Kind, List, NEVER, Proto, ServiceEntry, Slot, SlotKey};
use lb_core::{
    objects::Key,
    op::{Op, Table},
    spec::PortKey,
    store::Store as _,
};
use lb_dataplane::{load::Loader, pins::Pins, upgrade::programs::MapSizes};
use lb_lab::{
    sandbox::{Inside, run_again},
    traffic::stay_on,
};

use traffic::{SocketVariant, Topology};

/// Rounds of a figure; odd, so that there is a median. Many and short ones, since the machine's speed drifts.
const ROUNDS: usize = 101;

fn main() {
    let arguments: Vec<_> = std::env::args().collect();
    if let [_, flag, address] = arguments.as_slice()
        && flag == "--server"
    {
        traffic::serve(address);
    }
    if !rustix::process::geteuid().is_root() {
        eprintln!("the bench of the socket path needs root");
        std::process::exit(1);
    }
    match Inside::find() {
        Some(inside) => measure(&inside),
        None => std::process::exit(run_again("bench")),
    }
}

fn measure(sandbox: &Inside) {
    let outside = sandbox.cgroup.join("outside");
    let inside = sandbox.cgroup.join("inside");
    for cgroup in [&outside, &inside] {
        fs::create_dir(cgroup).expect("a cgroup");
    }
    join(&outside);
    stay_on(0);
    let bpffs = sandbox.enter();
    traffic::addresses();
    let pins = Pins::at(bpffs.join("beeline"));
    // Room for all ids of the bench: only an agent lets maps grow.
    let sizes = MapSizes::from([(Table::Backends, 1 << 18), (Table::Slots, 1 << 18)]);
    let mut datapath = Loader::load(pins.clone(), sizes).expect("the programs load");
    let mut store = datapath.store().expect("the maps");
    // All frontends of the bench have this port, which is all that their bit depends on.
    let (word, bits) = FrontendKey::new(traffic::VIP.into(), traffic::PORT, Proto::Tcp).bit();
    store.apply(&[Op::PutFrontendBits(word, bits)]).expect("room in the maps");
    datapath.attach(&inside).expect("the programs attach");
    let servers = traffic::SocketServers::start();

    println!("| Services loaded | what | compared with the floor |\n|---|---|---|");
    let mut loaded = 0;
    for services in [10, 1_000, 30_000] {
        store.apply(&service_ops(loaded + 1, services)).expect("room in the maps");
        loaded = services;
        for topology in [Topology::Loopback, Topology::Veth] {
            let figures =
                traffic::tcp_connects(topology, ROUNDS, |served| join(if served { &inside } else { &outside }));
            row(services, &format!("TCP connect+close, {topology}, floor"), &format!("{:.2} µs", figures.floor / 1e3));
            row(
                services,
                &format!("TCP connect+close, {topology}, no Service"),
                &percent(figures.ratio(SocketVariant::Miss)),
            );
            row(
                services,
                &format!("TCP connect+close, {topology}, through a VIP"),
                &percent(figures.ratio(SocketVariant::Vip)),
            );
        }
        let join_for = |served| join(if served { &inside } else { &outside });
        for (what, figures) in [
            ("new UDP socket, connect(), close", traffic::new_udp_sockets(ROUNDS, join_for)),
            ("UDP connect() again on one socket", traffic::udp_connects(ROUNDS, join_for)),
        ] {
            row(services, &format!("{what}, floor"), &format!("{:.0} ns", figures.floor));
            row(services, &format!("{what}, no Service"), &format!("{:+.0} ns", figures.added(SocketVariant::Miss)));
            row(services, &format!("{what}, through a VIP"), &format!("{:+.0} ns", figures.added(SocketVariant::Vip)));
        }
        join(&inside);
        let all = programs::nanoseconds(&pins.current()).into_iter().chain(programs::watched_nanoseconds(&pins));
        for (what, nanoseconds) in all {
            row(services, &format!("{what}, by the kernel's run-time statistics"), &format!("{nanoseconds:.0} ns"));
        }
    }
    join(&inside);
    row(loaded, "TCP request/response on an open connection", &percent(traffic::request_response(ROUNDS / 4)));
    row(loaded, "TCP stream", &percent(traffic::stream(ROUNDS / 4)));
    choice::costs(&mut store, ROUNDS / 2, |served| join(if served { &inside } else { &outside }));
    join(&inside);
    choice::shares(&mut store, &pins.current());
    join(&outside);
    drop(servers);
}

fn row(services: u32, what: &str, figure: &str) {
    println!("| {services} | {what} | {figure} |");
}

fn percent(ratio: f64) -> String {
    format!("{:+.1} %", (ratio - 1.0) * 100.0)
}

/// Moves this process into a cgroup, to which its new sockets belong.
fn join(cgroup: &Path) {
    fs::write(cgroup.join("cgroup.procs"), std::process::id().to_string()).expect("joining a cgroup");
}

/// The map writes for service ports with the ids `from..=to`; the bench dials 1 to 3.
fn service_ops(from: u32, to: u32) -> Vec<Op> {
    let (mut ops, mut later) = (Vec::new(), Vec::new());
    for id in from..=to {
        let (vip, port, backend, target, proto) = match id {
            1 => (traffic::VIP, traffic::PORT, traffic::LOOPBACK, traffic::TARGET, Proto::Tcp),
            2 => (traffic::VETH_VIP, traffic::PORT, traffic::VETH, traffic::TARGET, Proto::Tcp),
            3 => (traffic::VIP, traffic::PORT, traffic::LOOPBACK, traffic::TARGET, Proto::Udp),
            _ => ([10, 98, (id >> 8) as u8, id as u8].into(), 80, [10, 0, 0, 1].into(), 80, Proto::Tcp),
        };
        let key = PortKey {
            service: Key::new("bench", &format!("service-{id}")),
            name: "".into(),
            proto,
            family: Family::V4,
        };
        ops.push(Op::PutName(id, Box::new(key)));
        let slot = Slot { addr: backend.into(), port: target, weight: 1, backend: id };
        ops.push(Op::PutBackend(
            id,
            Backend { addr: slot.addr, port: target, flags: lb_common::BackendFlags::CLUSTER, service: id },
        ));
        ops.push(Op::PutSlot(SlotKey::new(id, List::Cluster, 0), slot));
        ops.push(Op::PutService(id, ServiceEntry { cluster_len: 1, drain_seconds: NEVER, ..ServiceEntry::default() }));
        later.push(Op::PutFrontend(FrontendKey::new(vip.into(), port, proto), Frontend::new(id, Kind::ClusterIp)));
    }
    ops.extend(later);
    ops
}
