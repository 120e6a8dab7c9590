//! The cost of each scheduler, and of affinity, against a direct connection, in one run, for short and long
//! lists; and the distribution of their choices.

use std::{collections::BTreeMap, net::Ipv4Addr, path::Path, time::Instant};

use lb_common::{
    Backend, BackendFlags, Frontend, FrontendKey, Kind, List, NEVER, Proto, Scheduler, ServiceEntry, Slot, SlotKey,
};
use lb_core::{op::Op, store::Store};
use lb_dataplane::stats::StatMaps;

use crate::traffic::{self, median};

/// Connections of one variant in one round.
const CONNECTS: u32 = 200;

/// Addresses of the backends, all on this node; one server listens at all of them.
const NETWORK: [u8; 2] = [10, 2];
/// Port of that server.
pub const ANYWHERE: &str = "0.0.0.0:8081";
const PORT: u16 = 8081;

/// First id of the service ports of this part.
const FIRST_ID: u32 = 100_000;
/// First id of the service ports of its second table.
const SHARES_ID: u32 = 110_000;

/// The variants: a scheduler, and affinity or none.
fn variants() -> Vec<(String, Scheduler, u32)> {
    let plain = Scheduler::ALL.into_iter().map(|scheduler| (scheduler.name().to_owned(), scheduler, 0));
    plain.chain([("random, with affinity".to_owned(), Scheduler::Random, 10_800)]).collect()
}

fn vip(index: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 97, 1, u8::try_from(index + 1).expect("few variants"))
}

fn backend(number: u32) -> Ipv4Addr {
    let [a, b] = NETWORK;
    Ipv4Addr::from_bits(Ipv4Addr::new(a, b, 0, 0).to_bits() + number + 1)
}

fn backend_id(service: u32, number: u32) -> u32 {
    service * 16_384 + number
}

/// Writes a service port for each variant, with backends of these weights and ids from `first` on.
fn service_ops(first: u32, weights: &[u16]) -> Vec<Op> {
    let mut ops = Vec::new();
    let count = u32::try_from(weights.len()).expect("not so many");
    for (index, (_, scheduler, affinity_seconds)) in variants().into_iter().enumerate() {
        let id = first + u32::try_from(index).expect("few variants");
        let mut cluster_len = 0;
        for (number, &weight) in (0..count).zip(weights) {
            let (addr, backend) = (backend(number).into(), backend_id(id, number));
            ops.push(Op::PutBackend(backend, Backend { addr, port: PORT, flags: BackendFlags::CLUSTER, service: id }));
            for _ in 0..if scheduler.weighs() { weight } else { 1 } {
                let slot = Slot { addr, port: PORT, weight, backend };
                ops.push(Op::PutSlot(SlotKey::new(id, List::Cluster, cluster_len), slot));
                cluster_len += 1;
            }
        }
        let value = ServiceEntry {
            cluster_len,
            // Coprime to every length here, and less.
            cluster_stride: if cluster_len > 7 { 7 } else { 1 },
            scheduler: scheduler as u32,
            affinity_seconds,
            drain_seconds: NEVER,
            ..ServiceEntry::default()
        };
        ops.push(Op::PutService(id, value));
        let key = FrontendKey::new(vip(index).into(), traffic::PORT, Proto::Tcp);
        ops.push(Op::PutFrontend(key, Frontend::new(id, Kind::ClusterIp)));
    }
    ops
}

/// Prints the cost of connect() with each variant.
pub fn costs(store: &mut impl Store, rounds: usize, join: impl Fn(bool)) {
    println!("\n| TCP connect+close, loopback | 10 backends | 10,000 backends |\n|---|---|---|");
    let names: Vec<_> = variants().into_iter().map(|(name, ..)| name).collect();
    let columns = [10, 10_000].map(|count: u32| {
        store.apply(&service_ops(FIRST_ID, &vec![1; count as usize])).expect("room in the maps");
        // The first socket of a backend makes its entry in BACKEND_STATS, which the bench does not measure.
        join(true);
        for index in 0..names.len() {
            (0..count * 3).for_each(|_| traffic::tcp_connect((vip(index), traffic::PORT).into()));
        }
        let mut all: Vec<Vec<f64>> = Vec::new();
        for round in 0..=rounds {
            let mut times = vec![0.0; names.len() + 1];
            for step in 0..times.len() {
                let at = (round + step) % times.len();
                join(at > 0);
                // The floor dials all backends in turn: the kernel itself has more to do for many addresses.
                let to = |number| match at {
                    0 => (backend(number * 7 % count), PORT).into(),
                    _ => (vip(at - 1), traffic::PORT).into(),
                };
                let first = u32::try_from(round).expect("few rounds") * CONNECTS;
                let start = Instant::now();
                (0..CONNECTS).for_each(|number| traffic::tcp_connect(to(first + number)));
                times[at] = start.elapsed().as_secs_f64() * 1e9 / f64::from(CONNECTS);
            }
            all.push(times);
        }
        all.remove(0);
        let floor = median(all.iter().map(|times| times[0]));
        let ratio = |at: usize| median(all.iter().map(|times| times[at] / times[0]));
        let mut column = vec![format!("{:.2} µs", floor / 1e3)];
        column.extend((1..=names.len()).map(|at| crate::percent(ratio(at))));
        column
    });
    let names = std::iter::once("directly to the backend (the floor)".to_owned()).chain(names);
    for (name, (few, many)) in names.zip(columns[0].iter().zip(&columns[1])) {
        println!("| {name} | {few} | {many} |");
    }
}

/// Prints the distribution of 1,000 open sockets over four backends of weights 1 to 4.
pub fn shares(store: &mut impl Store, pins: &Path) {
    const SOCKETS: usize = 1_000;
    store.apply(&service_ops(SHARES_ID, &[1, 2, 3, 4])).expect("room in the maps");
    println!("\n| {SOCKETS} open sockets | weight 1 | weight 2 | weight 3 | weight 4 |\n|---|---|---|---|---|");
    let open = || -> BTreeMap<u32, u64> {
        let stats = StatMaps::open(pins).and_then(|maps| maps.read()).expect("the counts");
        stats.backends.into_iter().map(|(id, stats)| (id, stats.open)).collect()
    };
    for (index, (name, ..)) in variants().into_iter().enumerate() {
        let sockets: Vec<_> =
            (0..SOCKETS).map(|_| lb_lab::traffic::tcp_open((vip(index), traffic::PORT).into())).collect();
        let open = open();
        let id = SHARES_ID + u32::try_from(index).expect("few variants");
        let counts = (0..4).map(|number| open.get(&backend_id(id, number)).copied().unwrap_or(0).to_string());
        println!("| {name} | {} |", counts.collect::<Vec<_>>().join(" | "));
        drop(sockets);
    }
}
