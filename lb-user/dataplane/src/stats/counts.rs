//! Counts by service port, summed from the counts of service ports and backends.

use std::collections::BTreeMap;

use foldhash::{HashMap, HashMapExt as _};
use lb_common::{BackendStats, EjectStats, EjectStatsKey, PortStats};
use serde::Serialize;

use crate::stats::Stats;

/// Text for the address of a backend that is gone from the maps while sockets still have it.
pub const GONE: &str = "gone";

/// Counts of a service port, since its maps were created.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PortCounts {
    /// Translations to a backend.
    pub connections: u64,
    /// Sockets that have one of its backends now, backends that are gone included.
    pub open: u64,
    /// Refused calls, for any cause.
    pub refused: u64,
    /// Refused calls: no endpoint in the cluster.
    pub no_endpoints: u64,
    /// Refused calls: no endpoint on this node, with policy Local.
    pub no_local_endpoints: u64,
    /// UDP sockets that moved to another backend.
    pub moved: u64,
    /// Sockets that the agent ended.
    pub killed: u64,
    /// Failed TCP handshakes that count for ejection.
    pub failures: u64,
    /// Ejections of a backend for a client.
    pub ejections: u64,
}

/// Returns the counts by id of the service port. Service ports that no socket has dialled are left out.
#[must_use]
pub fn by_port(stats: &Stats) -> HashMap<u32, PortCounts> {
    let (ports, killed) = (stats.ports.iter(), stats.killed.iter());
    let mut counts =
        sum(ports.map(|(id, port)| (*id, port)), stats.backends.values(), killed.map(|(id, count)| (*id, *count)));
    add_ejections(&mut counts, &stats.ejected);
    counts
}

/// Adds failed handshakes and ejections.
pub fn add_ejections(counts: &mut HashMap<u32, PortCounts>, ejected: &BTreeMap<EjectStatsKey, EjectStats>) {
    // The entry of backend 0 has the sum, those of removed backends included.
    for (key, stats) in ejected.iter().filter(|(key, _)| key.backend == 0) {
        let counts = counts.entry(key.service).or_default();
        (counts.failures, counts.ejections) = (stats.failures, stats.ejections);
    }
}

/// Sums counts, given in any order, by id of the service port.
pub fn sum<'a>(
    ports: impl ExactSizeIterator<Item = (u32, &'a PortStats)>,
    backends: impl Iterator<Item = &'a BackendStats>,
    killed: impl Iterator<Item = (u32, u64)>,
) -> HashMap<u32, PortCounts> {
    let mut counts: HashMap<u32, PortCounts> = HashMap::with_capacity(ports.len());
    for (id, port) in ports {
        let sum = counts.entry(id).or_default();
        sum.connections = port.connections;
        sum.refused = port.no_endpoints + port.no_local_endpoints;
        sum.no_endpoints = port.no_endpoints;
        sum.no_local_endpoints = port.no_local_endpoints;
        sum.moved = port.moved;
    }
    for backend in backends {
        counts.entry(backend.service).or_default().open += backend.open;
    }
    for (id, killed) in killed {
        counts.entry(id).or_default().killed = killed;
    }
    counts
}
