//! State of the reconcile loop, read by health, metrics and the devices' task.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::SystemTime,
};

use ipnet::IpNet;
use lb_common::{Addr, AddrPort};
use tokio::time::{Duration, Instant};

use crate::{connection_age::Ages, histogram::Histogram};
use lb_core::{
    announce::Candidates,
    event::ObjectKind,
    model::{cluster_ranges::DoubtfulRange, pod_modes::PodModes},
    objects::Key,
    spec::Health,
    world::{Changes, World},
};
use lb_sources::probes::ProbedServices;

/// State of the datapath, read by health and metrics.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct DatapathState {
    /// True if a program is missing, so that sockets or packets are not served.
    pub(crate) is_detached: bool,
    /// True if a pin is missing, so that Services end with the agent.
    pub(crate) is_unpinned: bool,
    /// Number of parts put back.
    pub(crate) repairs: u64,
}

/// State of the reconcile loop.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Status {
    /// True once a pass over all objects has succeeded and its writes are in service.
    pub(crate) ready: bool,
    /// Number of passes; a pass that waits for sources is not counted.
    pub(crate) passes: u64,
    /// Number of failed passes among `passes`.
    pub(crate) failures: u64,
    /// Number of map writes.
    pub(crate) writes: u64,
    /// Error of the last pass, if it failed.
    pub(crate) error: Option<String>,
    /// State of programs and pins.
    pub(crate) datapath: DatapathState,
    /// Number of Services that do not fit into the maps.
    pub(crate) refused: usize,
    /// Number of current warnings about Services.
    pub(crate) warnings: usize,
    /// Content of each Service's `healthCheckNodePort`, as of the last pass.
    pub(crate) health: Arc<BTreeMap<Key, Health>>,
    /// Load balancer addresses of each Service with source ranges, as of the last pass.
    pub(crate) restricted: Arc<BTreeMap<Key, Vec<IpAddr>>>,
    /// Ages of connections by id of the service port, as of the last pass.
    pub(crate) connection_ages: Ages,
    /// True if a Service ejects endpoints, as of the last pass.
    pub(crate) ejects: bool,
    /// Endpoints to probe, as of the last pass.
    pub(crate) probed: ProbedServices,
    /// Endpoints on this node that take clients of other Services, as of the last pass.
    pub(crate) redirect_targets: Arc<BTreeSet<AddrPort>>,
    /// Load balancer addresses of each Service, with the nodes that may attract their traffic, as of the last pass.
    pub(crate) attracted: Arc<BTreeMap<Key, Vec<(IpAddr, Candidates)>>>,
    /// Addresses of the node at which NodePorts answer, as of the last pass.
    pub(crate) node_ports: Arc<BTreeSet<Addr>>,
    /// Ranges of cluster IPs in use, as of the last pass.
    pub(crate) cluster_ranges: Arc<Vec<IpNet>>,
    /// Ranges of cluster IPs in doubt, as of the last pass.
    pub(crate) doubtful_ranges: Vec<DoubtfulRange>,
    /// True if the Node is being deleted, or has a taint that announces its deletion.
    pub(crate) node_is_leaving: bool,
    /// True if load balancers may lead clients to the node.
    pub(crate) node_attracts: bool,
    /// False if the kubelet says that the node is not ready.
    pub(crate) node_is_ready: bool,
    /// `InternalIP` addresses of the Node.
    pub(crate) node_addresses: Vec<IpAddr>,
    /// Modes of the node's pods; none before the pods were listed.
    pub(crate) pod_modes: Option<Arc<PodModes>>,
    /// Kinds of objects that the API server forbids the source to read.
    pub(crate) forbidden: BTreeSet<ObjectKind>,
    /// True if hostPorts are served, for which pods must be read.
    pub(crate) needs_pods: bool,
    /// Arrival of the oldest change that no successful pass has handled.
    pub(crate) pending_since: Option<Instant>,
    /// Time at which a change was last queued.
    pub(crate) queued: Option<SystemTime>,
    /// Time of the last successful pass.
    pub(crate) updated: Option<SystemTime>,
    /// Number of changes of objects.
    pub(crate) seen: Changes,
    /// Number of changes that a successful pass has handled.
    pub(crate) done: Changes,
    /// Durations of passes.
    pub(crate) durations: Histogram,
    /// Durations from the change of a pod to the maps.
    pub(crate) programming: Histogram,
}

impl Default for Status {
    fn default() -> Self {
        Self {
            ready: false,
            passes: 0,
            failures: 0,
            writes: 0,
            error: None,
            datapath: DatapathState::default(),
            refused: 0,
            warnings: 0,
            health: Arc::default(),
            restricted: Arc::default(),
            attracted: Arc::default(),
            connection_ages: Ages::default(),
            ejects: false,
            probed: ProbedServices::default(),
            redirect_targets: Arc::default(),
            node_ports: Arc::default(),
            cluster_ranges: Arc::default(),
            doubtful_ranges: Vec::new(),
            node_is_leaving: false,
            node_attracts: true,
            node_is_ready: true,
            node_addresses: Vec::new(),
            pod_modes: None,
            forbidden: BTreeSet::new(),
            needs_pods: false,
            pending_since: None,
            queued: None,
            updated: None,
            seen: Changes::default(),
            done: Changes::default(),
            durations: Histogram::for_passes(),
            programming: Histogram::for_programming(),
        }
    }
}

impl Status {
    /// Records events that wait for a pass.
    pub(super) fn record_events(&mut self, world: &World) {
        self.pending_since = self.pending_since.or_else(|| Some(Instant::now()));
        self.queued = Some(SystemTime::now());
        self.seen = world.changes();
        // An unknown Node hinders nothing.
        self.node_is_leaving = world.node().is_some_and(|node| node.leaving);
        self.node_attracts = world.node().is_none_or(|node| node.attracts);
        self.node_is_ready = world.node().is_none_or(|node| node.ready);
        if self.node_addresses != world.internal_ips() {
            self.node_addresses = world.internal_ips().to_vec();
        }
        self.forbidden.clone_from(world.forbidden());
        self.needs_pods = world.serves_host_ports();
    }

    /// Records a finished pass. `triggers` are the times at which the changes of pods behind this pass happened.
    pub(super) fn record_pass(&mut self, duration: Duration, error: Option<String>, triggers: &[SystemTime]) {
        self.passes += 1;
        self.durations.observe(duration);
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
