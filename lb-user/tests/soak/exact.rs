//! Counts of everything that a soak leaves behind.

use std::{collections::BTreeMap, fmt, net::SocketAddr, time::Duration};

use aya::maps::{Array, Map, MapData};
use lb_common::{Affinity, AffinityKey, Device, Flow, FlowKey, NetnsAddrs, PodModeEntry, TcpSock, UdpSock};
use lb_core::store::{Dump, Store as _};
use lb_dataplane::{stats::StatMaps, store::BpfStore};
use lb_kernel::bpf::typed::TypedMap;

use crate::{
    clients::{ask_tcp, ask_udp},
    objects::STEADY,
    testbed::{Sample, Testbed, within},
};

/// Time for flows, affinity and counts to expire: two minutes of an answered UDP flow, and rounds of the collector.
const EXPIRY: Duration = Duration::from_secs(240);
/// Sockets that are counted one by one.
const OPEN: usize = 100;

/// A figure of the report.
pub struct Row {
    what: String,
    figure: String,
    limit: Option<String>,
    holds: bool,
}

impl Row {
    /// A figure without a limit.
    pub fn told(what: &str, figure: impl fmt::Display) -> Self {
        Self { what: what.to_owned(), figure: figure.to_string(), limit: None, holds: true }
    }

    pub fn exactly<T: PartialEq + fmt::Display>(what: &str, figure: T, expected: &T) -> Self {
        let holds = figure == *expected;
        Self { holds, limit: Some(expected.to_string()), ..Self::told(what, figure) }
    }

    pub fn at_most<T: PartialOrd + fmt::Display>(what: &str, figure: T, most: &T) -> Self {
        let holds = figure <= *most;
        Self { holds, limit: Some(format!("at most {most}")), ..Self::told(what, figure) }
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, figure, limit, holds } = self;
        let limit = limit.as_deref().unwrap_or_default();
        write!(f, "| {what} | {figure}{} | {limit} |", if *holds { "" } else { " (!)" })
    }
}

/// The figures that are not as they must be.
pub fn fails(rows: &[Row]) -> Vec<String> {
    rows.iter().filter(|row| !row.holds).map(|row| format!("{} {}", row.what, row.figure)).collect()
}

/// The agent's memory while it lived on: the mean of the last third of the samples beside that of the first.
pub fn memory(samples: &[Sample]) -> Row {
    let third = samples.len().div_ceil(3).max(1);
    let mean = |part: &[Sample]| part.iter().map(|sample| sample.resident_mb).sum::<f64>() / part.len().max(1) as f64;
    let before = mean(&samples[..third.min(samples.len())]);
    let after = mean(&samples[samples.len().saturating_sub(third)..]);
    Row {
        holds: after <= before * 1.05 + 1.0,
        limit: Some("5 % more at most".to_owned()),
        ..Row::told("resident memory of the agent, MB", format!("{before:.1}, then {after:.1}"))
    }
}

/// Descriptors and threads of the agent when all is over, beside those of a new one. It may have opened a few sockets
/// and threads for events that a new one has not met yet, and no more of them with each event.
pub fn at_rest(testbed: &mut Testbed) -> Vec<Row> {
    const FEW: usize = 8;
    let old = testbed.agent_sample();
    testbed.restart_agent();
    let sum = |counts: &BTreeMap<String, usize>| counts.values().sum::<usize>();
    let is_alike = |new: &Sample| sum(&old.descriptors) <= sum(&new.descriptors) + FEW;
    // The tasks of a start begin one after the other.
    within(Duration::from_secs(20), || is_alike(&testbed.agent_sample()));
    let new = testbed.agent_sample();
    let row = |what: &str, old: &BTreeMap<String, usize>, new: &BTreeMap<String, usize>| {
        let row = Row::at_most(what, sum(old), &(sum(new) + FEW));
        if !row.holds {
            println!("{what}: {old:?}, a new one {new:?}");
        }
        row
    };
    vec![
        row("descriptors of the agent at rest", &old.descriptors, &new.descriptors),
        row("threads of the agent at rest", &old.threads, &new.threads),
    ]
}

/// Counts of sockets, entries of maps, and memory of maps.
pub fn counts(testbed: &Testbed, start: &BTreeMap<String, u64>) -> Vec<Row> {
    let maps = testbed.maps();
    let dump = || BpfStore::open(&maps).and_then(|store| store.dump()).unwrap();
    let has_settled = |dump: &Dump| dump.names.values().all(|port| !port.service.name().starts_with('c'));
    let mut rows =
        vec![Row::exactly("the changing Services have left the maps", within(EXPIRY, || has_settled(&dump())), &true)];
    rows.extend(open_sockets(testbed));
    let stats = || StatMaps::open(&maps).and_then(|stats| stats.read()).unwrap();
    let live = dump();
    // Backends that are gone leave their counts when their last socket has closed.
    within(EXPIRY, || stats().backends.keys().all(|id| live.backends.contains_key(id)));
    let counted = stats();
    let gone = counted.backends.keys().filter(|id| !live.backends.contains_key(id)).count();
    rows.push(Row::exactly("counts of backends that are gone", gone, &0));
    let gone = counted.ports.keys().filter(|id| !live.services.contains_key(id)).count();
    rows.push(Row::exactly("counts of service ports that are gone", gone, &0));
    // Twice the Services of the two files: TCP and UDP, IPv4 and IPv6.
    rows.push(Row::exactly("entries of SERVICES", live.services.len(), &8));
    rows.push(Row::exactly("entries of NAMES", live.names.len(), &8));
    rows.push(Row::exactly("entries of BACKENDS", live.backends.len(), &(4 * 4 + 2 * 2)));
    rows.push(Row::exactly("entries of SLOTS", live.slots.len(), &(4 * 4 + 2 * 2)));
    rows.push(Row::exactly("entries of SOURCE_RANGES", live.source_ranges.len(), &0));
    rows.push(Row::exactly("entries of MAGLEV", live.maglev.len(), &0));
    let plan = testbed.beeline(&["plan", "--node-name", "here", "-f", testbed.yaml.to_str().unwrap()]);
    let last = plan.lines().last().unwrap_or_default();
    let writes = last.split(' ').next().unwrap_or_default().to_owned();
    rows.push(Row::exactly("writes that the maps lack", writes, &"0".to_owned()));
    rows.push(Row::exactly(
        "places in TCP_SOCKS",
        places(&maps.join("TCP_SOCKS"), |sock: &TcpSock| sock.cookie != 0),
        &0,
    ));
    rows.push(Row::exactly(
        "places in UDP_SOCKS",
        places(&maps.join("UDP_SOCKS"), |sock: &UdpSock| sock.socket != 0),
        &0,
    ));
    rows.push(Row::exactly("words of UDP_COUNTS", places(&maps.join("UDP_COUNTS"), |word: &u64| *word != 0), &0));
    rows.push(entries::<u64, lb_common::Translation>(testbed, "TCP_MORE"));
    rows.push(entries::<u64, PodModeEntry>(testbed, "POD_MODES"));
    rows.push(entries::<u64, NetnsAddrs>(testbed, "NETNS_ADDRS"));
    rows.push(entries::<AffinityKey, Affinity>(testbed, "AFFINITY"));
    rows.push(entries::<FlowKey, Flow>(testbed, "FLOWS"));
    let devices = TypedMap::<u32, Device>::open(&maps, "DEVICES").unwrap();
    let links = testbed.lan.node1.host.net.run(&["ip", "-oneline", "link", "show"]).lines().count();
    within(Duration::from_secs(30), || devices.read().unwrap().len() <= links);
    // All links but the loopback device, at most.
    rows.push(Row::at_most("entries of DEVICES", devices.read().unwrap().len(), &links));
    rows.extend(memory_of_maps(testbed, start));
    rows
}

/// Opens sockets, and compares the counts of their backends with the servers that answered them; closes them, and
/// expects no open one.
fn open_sockets(testbed: &Testbed) -> Vec<Row> {
    let maps = testbed.maps();
    let counted = || {
        let stats = StatMaps::open(&maps).and_then(|stats| stats.read()).unwrap();
        let dump = BpfStore::open(&maps).and_then(|store| store.dump()).unwrap();
        let mut by_server: BTreeMap<SocketAddr, u64> = BTreeMap::new();
        for (id, stats) in stats.backends.iter().filter(|(_, stats)| stats.open > 0) {
            let server = dump.backends.get(id).map(|backend| SocketAddr::new(backend.addr.to_ip(), backend.port));
            // A backend that is gone has no address any more.
            *by_server.entry(server.unwrap_or_else(|| SocketAddr::from(([0, 0, 0, 0], 0)))).or_default() += stats.open;
        }
        by_server
    };
    let text = |counts: &BTreeMap<SocketAddr, u64>| format!("{counts:?}");
    let none = BTreeMap::new();
    let before = counted();
    testbed.move_to("node1/kubepods");
    let mut sockets: Vec<Box<dyn Send>> = Vec::new();
    let mut expected: BTreeMap<SocketAddr, u64> = BTreeMap::new();
    for net in [&testbed.lan.node1.host.net, &testbed.lan.node1.pods[0].net] {
        let opened = net.enter(|| {
            let mut opened: Vec<(Box<dyn Send>, SocketAddr)> = Vec::new();
            for number in 0..OPEN {
                let to = SocketAddr::new(STEADY[number % 2].parse().unwrap(), 80);
                let (tcp, server) = ask_tcp(to, Duration::from_secs(5)).unwrap();
                opened.push((Box::new(tcp), server));
                let (udp, server) = ask_udp(to, Duration::from_secs(5)).unwrap();
                opened.push((Box::new(udp), server));
            }
            opened
        });
        for (socket, server) in opened {
            sockets.push(socket);
            *expected.entry(server).or_default() += 1;
        }
    }
    testbed.move_to("outside");
    let open = counted();
    drop(sockets);
    within(Duration::from_secs(10), || counted().is_empty());
    vec![
        Row::exactly("open sockets after all clients", text(&before), &text(&none)),
        Row::exactly("open sockets by server", text(&open), &text(&expected)),
        Row::exactly("open sockets after they closed", text(&counted()), &text(&none)),
    ]
}

/// The number of places of an array that are in use.
fn places<T: aya::Pod>(pin: &std::path::Path, is_used: impl Fn(&T) -> bool) -> usize {
    let array: Array<_, T> = Map::Array(MapData::from_pin(pin).unwrap()).try_into().unwrap();
    array.iter().filter(|place| place.as_ref().is_ok_and(&is_used)).count()
}

/// Entries of a map from which all must go.
fn entries<K: aya::Pod, V: aya::Pod>(testbed: &Testbed, name: &'static str) -> Row {
    let map = TypedMap::<K, V>::open(&testbed.maps(), name).unwrap();
    within(EXPIRY, || map.read().unwrap().is_empty());
    Row::exactly(&format!("entries of {name}"), map.read().unwrap().len(), &0)
}

/// Memory of the maps beside that before the soak. Of maps that programs fill the kernel may keep some freed entries.
fn memory_of_maps(testbed: &Testbed, start: &BTreeMap<String, u64>) -> Vec<Row> {
    let now = testbed.memory_of_maps();
    let sum = |maps: &BTreeMap<String, u64>| maps.values().sum::<u64>() as f64 / 1e6;
    let grown: Vec<String> = now
        .iter()
        .filter(|(name, bytes)| start.get(*name).is_none_or(|before| **bytes > before + (1 << 20)))
        .map(|(name, bytes)| format!("{name} {} to {bytes}", start.get(name).copied().unwrap_or(0)))
        .collect();
    vec![
        Row::told("memory of the maps, MB", format!("{:.1}, then {:.1}", sum(start), sum(&now))),
        Row::exactly("maps that have grown by more than 1 MB", grown.join(", "), &String::new()),
    ]
}
