//! How the loop of passes is doing: what health and metrics are told from. Time is passed in.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::SystemTime,
};

use lb_common::Addr;
use tokio::time::{Duration, Instant};

use crate::metrics::Histogram;
use lb_core::{
    event::Kind,
    model::pod_modes::PodModes,
    objects::Key,
    spec::Health,
    world::{Changes, World},
};

/// How the loop is doing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Status {
    /// Whether a pass over all objects has succeeded, and what it wrote is in service.
    pub ready: bool,
    /// Passes so far, those that only waited for sources left out.
    pub passes: u64,
    /// Of these: those that failed.
    pub failures: u64,
    /// Writes so far.
    pub writes: u64,
    /// Why the last one failed.
    pub error: Option<String>,
    /// Services for which there is no room.
    pub refused: usize,
    /// Warnings that stand about Services.
    pub warnings: usize,
    /// What is told at the `healthCheckNodePort` of each Service that has one, as of the last pass.
    pub health: Arc<BTreeMap<Key, Health>>,
    /// The node's addresses at which NodePorts answer, as of the last pass.
    pub node_ports: Arc<BTreeSet<Addr>>,
    /// Whether the node is being deleted, or marked for it.
    pub node_is_leaving: bool,
    /// The addresses by which the cluster knows the node.
    pub node_addresses: Vec<IpAddr>,
    /// What pods of the node have chosen, once it is known.
    pub paths: Option<Arc<PodModes>>,
    /// The kinds of objects that the source may not read.
    pub forbidden: BTreeSet<Kind>,
    /// Since when something waits for a pass that succeeds, if anything does.
    pub pending_since: Option<Instant>,
    /// When something last came to wait.
    pub queued: Option<SystemTime>,
    /// When a pass last succeeded.
    pub updated: Option<SystemTime>,
    /// Changes of objects so far.
    pub seen: Changes,
    /// Of these: those that a successful pass has looked at.
    pub done: Changes,
    /// How long passes took.
    pub took: Histogram,
    /// How long it took from the change of a pod to the maps.
    pub programming: Histogram,
}

impl Default for Status {
    fn default() -> Self {
        Self {
            ready: false,
            passes: 0,
            failures: 0,
            writes: 0,
            error: None,
            refused: 0,
            warnings: 0,
            health: Arc::default(),
            node_ports: Arc::default(),
            node_is_leaving: false,
            node_addresses: Vec::new(),
            paths: None,
            forbidden: BTreeSet::new(),
            pending_since: None,
            queued: None,
            updated: None,
            seen: Changes::default(),
            done: Changes::default(),
            took: Histogram::of_passes(),
            programming: Histogram::of_programming(),
        }
    }
}

impl Status {
    /// Events have come; a pass shall look at them.
    pub(super) fn queue(&mut self, world: &World) {
        self.pending_since = self.pending_since.or_else(|| Some(Instant::now()));
        self.queued = Some(SystemTime::now());
        self.seen = world.changes();
        self.node_is_leaving = world.node_is_leaving();
        if self.node_addresses != world.internal_ips() {
            self.node_addresses = world.internal_ips().to_vec();
        }
    }

    /// A pass that took so long is over, and what it wrote is in service unless it failed. `triggers` say when that
    /// happened which it was about.
    pub(super) fn pass(&mut self, took: Duration, error: Option<String>, triggers: &[SystemTime]) {
        self.passes += 1;
        self.took.observe(took);
        self.error = error;
        if self.error.is_some() {
            self.failures += 1;
            return;
        }
        self.ready = true;
        let now = SystemTime::now();
        for trigger in triggers {
            self.programming.observe(now.duration_since(*trigger).unwrap_or_default());
        }
        self.pending_since = None;
        self.updated = Some(now);
        self.done = self.seen;
    }
}
