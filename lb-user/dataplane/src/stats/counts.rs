//! What this node's sockets did with each service port: the counts of a moment, summed once for all of them.

use foldhash::{HashMap, HashMapExt as _};
use lb_common::{BackendStats, PortStats};
use serde::Serialize;

use crate::stats::Stats;

/// The address of a backend that is not in the maps any more, while sockets still have it.
pub const GONE: &str = "gone";

/// The counts of a service port, since its maps were made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PortCounts {
    /// Times that a backend was given to a socket.
    pub connections: u64,
    /// Sockets that have one of its backends now, one that is gone included.
    pub open: u64,
    /// Times that a socket was refused, for any cause.
    pub refused: u64,
    /// Of these: there was no endpoint anywhere.
    pub no_endpoints: u64,
    /// Of these: there was none on this node, and the policy is Local.
    pub no_local_endpoints: u64,
    /// UDP sockets that moved to another backend.
    pub moved: u64,
    /// Sockets that the agent ended.
    pub killed: u64,
}

/// The counts by the id of the service port. One that no socket has dialled is not in it.
#[must_use]
pub fn by_port(stats: &Stats) -> HashMap<u32, PortCounts> {
    let (ports, killed) = (stats.ports.iter(), stats.killed.iter());
    sum(ports.map(|(id, port)| (*id, port)), stats.backends.values(), killed.map(|(id, count)| (*id, *count)))
}

/// The same, from counts in whatever order.
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
