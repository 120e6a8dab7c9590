//! Wiring of sources, reconciler, dataplane and servers: the only place that knows all of them. Decisions are left to
//! the parts.

use std::{
    collections::BTreeSet,
    future::pending,
    net::IpAddr,
    path::PathBuf,
    sync::{Arc, mpsc::Sender},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow};
use sd_notify::NotifyState;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
    task::JoinSet,
};
use tracing::{info, warn};

use crate::{
    announcing::{self, AnnounceOptions, Announcing, AnnouncingState, Wish},
    connection_age::{self, Ages},
    ejections,
    events::{self, EventQueue},
    health::{self, ProbeCounts},
    health_ports,
    http::BindAddress,
    metrics,
    reconcile::{self, Dataplane, MapChanges, Reconciler, Status},
    termination,
};
use lb_core::{
    announce,
    model::{Settings, cluster_ranges},
    op::Table,
};
use lb_dataplane::{
    announced_addresses::AnnouncedAddresses,
    announced_routes,
    attach::ejection::EjectionProgram,
    balancer_addresses,
    cleanup::cleanup,
    damage::Damage,
    devices::{self, NodeState, answering::AnsweringLinks},
    environment,
    flows::{self, FlowGcStatus},
    listeners,
    load::Loader,
    netns_addrs::{self, Restricted},
    pins::Pins,
    stats,
    store::BpfStore,
    upgrade::programs::ProgramOptions,
};
use lb_sources::{
    addresses::AddressSource,
    directory::{self, RememberedAddresses},
    kubernetes::{self, RememberedServers},
    probes::{self, ProbedServices},
};

/// Capacity of the channel from the sources to the reconciler. A full channel makes a source wait, which does no harm.
const EVENT_CAPACITY: usize = 1024;

/// Variable of the environment of every pod.
const IN_POD: &str = "KUBERNETES_SERVICE_HOST";

/// Source of the objects.
#[derive(Clone)]
pub enum Source {
    /// YAML files.
    Directory(directory::DirectoryOptions),
    /// The API server.
    Kubernetes(kubernetes::KubernetesOptions),
}

/// Configuration of the agent, as the flags set it.
pub struct Config {
    /// Source of the objects.
    pub source: Source,
    /// Table of the routes by which routing daemons announce load balancer addresses; none: there are no routes.
    pub lb_routes: Option<u32>,
    /// Announce load balancer addresses on the link; none: no address is announced.
    pub announce: Option<AnnounceOptions>,
    /// Report problems of Services as Events of the cluster.
    pub events: bool,
    /// Name of this node.
    pub node_name: String,
    /// Flags that change the meaning of Services.
    pub settings: Settings,
    /// Cgroup to attach to; the root by default.
    pub cgroup: Option<PathBuf>,
    /// Network devices with the packet path.
    pub devices: devices::options::DeviceOptions,
    /// Options of the programs.
    pub programs: ProgramOptions,
    /// Remove the datapath when the agent ends.
    pub cleanup_on_exit: bool,
    /// Addresses of `/healthz` and `/livez`; without one they are not served.
    pub healthz: Vec<BindAddress>,
    /// Addresses of `/metrics`; without one it is not served.
    pub metrics: Vec<BindAddress>,
    /// Maximum number of backends with metrics of their own; none: no backend has any.
    pub metrics_backends: Option<usize>,
}

/// Runs the agent until SIGTERM or SIGINT.
///
/// # Errors
/// If the node lacks a requirement (the error names the cure), or if a part ends before the agent.
pub async fn run(config: Config, pins: impl FnOnce() -> Result<Pins>) -> Result<()> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    environment::check()?;
    let pins = pins()?;
    let cgroup = match config.cgroup {
        Some(path) => environment::named_cgroup(path)?,
        None => environment::cgroup2()?,
    };
    let nodeport_addresses = config.settings.nodeport_addresses.clone();
    let (events, inbox) = mpsc::channel(EVENT_CAPACITY);
    let mut tasks = JoinSet::new();
    let (status, observed) = watch::channel(Status::default());
    let health_ports_status = observed.clone();
    let probes = Arc::<ProbeCounts>::default();
    // The health port answers (503) before the first pass, so that probes see an agent that starts.
    tasks.spawn(health::run(config.healthz, observed.clone(), Arc::clone(&probes)));
    let (node_sender, node) = watch::channel(NodeState::default());
    let node_state = |status: &Status| {
        let (addresses, pod_modes) = (status.node_addresses.clone(), status.pod_modes.clone());
        NodeState { addresses, pod_modes }
    };
    tasks.spawn(forward(observed.clone(), node_state, node_sender));
    let (restricted_sender, restricted) = watch::channel(None);
    tasks.spawn(forward_restricted(observed.clone(), restricted_sender));
    let (ages_sender, ages) = watch::channel(Ages::default());
    tasks.spawn(forward(observed.clone(), |status| Arc::clone(&status.connection_ages), ages_sender));
    let (ejects_sender, ejects) = watch::channel(false);
    tasks.spawn(forward(observed.clone(), |status| status.ejects, ejects_sender));
    let (probed_sender, probed) = watch::channel(ProbedServices::default());
    tasks.spawn(forward(observed.clone(), |status| Arc::clone(&status.probed), probed_sender));
    let (redirect_targets_sender, redirect_targets) = watch::channel(Arc::default());
    tasks.spawn(forward(observed.clone(), |status| Arc::clone(&status.redirect_targets), redirect_targets_sender));
    tasks.spawn(listeners::run(redirect_targets, events.clone()));
    let (attracted_sender, of_routes) = watch::channel(None);
    let node_name = config.node_name.clone();
    let attracted = move |status: &Status| attracted(status, &node_name);
    tasks.spawn(forward(observed.clone(), attracted, attracted_sender));
    let (wish_sender, wish) = watch::channel(Wish::default());
    if config.announce.is_some() {
        tasks.spawn(forward(observed.clone(), wish_of, wish_sender));
    }
    let (addresses_sender, of_conflicts) = watch::channel(announcing::conflicts::ServiceAddresses::default());
    if config.announce.is_some() {
        tasks.spawn(forward(observed.clone(), |status| Arc::clone(&status.attracted), addresses_sender));
    }
    tasks.spawn(announced_routes::run(config.lb_routes, of_routes));
    tasks.spawn(write_cluster_ranges(observed.clone(), pins.current()));
    let (collecting, collected) = watch::channel(FlowGcStatus::default());
    let (directory, backends) = (pins.current(), config.metrics_backends);
    let endpoint_probes = Arc::<probes::ProbeCounts>::default();
    let (announcing_sender, announcing) = watch::channel(AnnouncingState::default());
    let sources = metrics::Sources {
        announcing: config.announce.is_some().then(|| announcing.clone()),
        status: observed,
        probes,
        endpoint_probes: Arc::clone(&endpoint_probes),
        flows: collected.clone(),
        pins: directory,
        backends,
    };
    tasks.spawn(metrics::run(config.metrics, sources));
    let mut source = config.source;
    let mut event_queue = EventQueue::default();
    let mut of_announcing = None;
    if let Source::Directory(options) = &mut source {
        let directory = pins.current();
        options.remembered = RememberedAddresses::new(move || balancer_addresses::read(&directory));
    }
    if let Source::Kubernetes(options) = &mut source {
        let directory = pins.current();
        options.remembered = RememberedServers::new(move || lb_dataplane::api_servers::endpoints(&directory));
        of_announcing = config.announce.map(|announce| (announce, options.clone()));
        if config.events {
            event_queue = EventQueue::with_reader();
            tasks.spawn(events::run(event_queue.clone(), options.clone()));
        }
    }
    tasks.spawn(health_ports::run(health_ports_status, nodeport_addresses, event_queue.clone()));
    // Addresses come before any object, so that the first pass knows where NodePorts answer.
    tasks.spawn(AddressSource::start(events.clone()).await.follow());
    let directory = pins.current();
    // Without counts every Service counts as unused.
    let connections = move |ids: &[u32]| stats::connections(&directory, ids).unwrap_or_default();
    tasks.spawn(probes::run(probed, events.clone(), connections, endpoint_probes));
    // The source lists objects while the kernel verifies the programs.
    tasks.spawn(async move {
        match source {
            Source::Directory(options) => directory::run(options, events).await,
            Source::Kubernetes(options) => kubernetes::run(options, events).await,
        }
    });
    let mut loader = Loader::load(pins.clone(), config.programs)?;
    let features = loader.features();
    info!(
        set_retval = features.set_retval,
        adopted_maps = loader.adopted(),
        pins = %pins.current().display(),
        node = config.node_name,
        "programs loaded"
    );
    let mut log = loader.take_log()?;
    log.listen()?;
    let reconciler = Reconciler::new(loader.store()?, &config.node_name, config.settings);
    let counted_ids = stats::highest_ids(&pins.current())?;
    let adopted_ids = loader.highest_ids();
    let used_ids = counted_ids.max(adopted_ids);
    let reconciler = reconciler.with_used_ids(used_ids).with_events(event_queue.clone());
    let tc = loader.tc();
    flows::start(pins.current(), Arc::clone(&tc), collecting)?;
    let (answering, links) = watch::channel(AnsweringLinks::default());
    let addresses = AnnouncedAddresses::open(&pins)?;
    if of_announcing.is_some() {
        tasks.spawn(addresses.run(links.clone()));
        tasks.spawn(announcing::conflicts::run(pins.current(), of_conflicts, event_queue.clone()));
    }
    let leave = start_announcing(of_announcing, &config.node_name, addresses, wish, links, announcing_sender)?;
    tasks.spawn(devices::run(config.devices, Arc::clone(&tc), loader.socket_lookup(), pins.current(), node, answering));
    tasks.spawn(netns_addrs::run(pins.current(), restricted));
    tasks.spawn(connection_age::run(pins.current(), ages));
    tasks.spawn(ejections::run(pins.current(), ejects, event_queue.clone()));
    let termination = termination::start(pins.current(), event_queue, loader.freer())?;
    tasks.spawn(reconcile::run(reconciler, LoadedDataplane { loader, cgroup, termination }, inbox, status));
    let directory = pins.current();
    // The store is opened for each record: maps may have grown since, and records are rare.
    let name_of = move |id| BpfStore::open(&directory).ok()?.name(id).map(|name| name.to_string());
    tasks.spawn(log.run(Arc::new(name_of)));
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
        ended = tasks.join_next() => {
            return Err(match ended {
                Some(Ok(Err(error))) => error,
                Some(Err(panic)) => panic.into(),
                Some(Ok(Ok(()))) | None => anyhow!("a part of the agent ended"),
            });
        }
    }
    notify_service_manager(NotifyState::Stopping);
    // Permits expire before the next agent of a pod starts. A service of the host starts again before that.
    if let Some(leave) = leave.filter(|_| config.cleanup_on_exit || std::env::var_os(IN_POD).is_some()) {
        announcing::hand_over(&leave, announcing).await;
    }
    tasks.shutdown().await;
    tc.close();
    drop(collected);
    if config.cleanup_on_exit {
        cleanup(&pins, Duration::ZERO, |what| info!("{what}")).context("cleaning up")?;
        info!("ended, and removed the datapath");
    } else {
        info!("ended; the datapath stays and keeps translating: `beeline cleanup` removes it");
    }
    Ok(())
}

/// Forwards the addresses with source ranges from the passes to the task that finds source addresses.
async fn forward_restricted(
    mut status: watch::Receiver<Status>,
    sender: watch::Sender<Option<Restricted>>,
) -> Result<()> {
    loop {
        let new = {
            let status = status.borrow_and_update();
            let vips = Arc::new(status.restricted.values().flatten().copied().collect());
            status.ready.then(|| Restricted { vips, node: status.node_addresses.clone() })
        };
        if new.is_some() {
            sender.send_if_modified(|known| {
                let is_new = *known != new;
                *known = new;
                is_new
            });
        }
        if status.changed().await.is_err() {
            return pending().await;
        }
    }
}

/// Forwards a part of the state after a pass to the task that needs it.
async fn forward<T: PartialEq>(
    mut status: watch::Receiver<Status>,
    part: impl Fn(&Status) -> T,
    sender: watch::Sender<T>,
) -> Result<()> {
    loop {
        let new = part(&status.borrow_and_update());
        sender.send_if_modified(|known| {
            let is_new = *known != new;
            *known = new;
            is_new
        });
        if status.changed().await.is_err() {
            return pending().await;
        }
    }
}

/// Returns the load balancer addresses whose traffic the node shall attract; None before the first pass.
fn attracted(status: &Status, node: &str) -> Option<Arc<BTreeSet<IpAddr>>> {
    let all = status.attracted.values().flatten();
    let here = all.filter(|(_, candidates)| status.node_attracts && candidates.contains(node));
    status.ready.then(|| Arc::new(here.map(|(addr, _)| *addr).collect()))
}

/// Returns the addresses to announce.
fn wish_of(status: &Status) -> Wish {
    let addresses = status.ready.then(|| Arc::new(announce::merge(status.attracted.values().flatten())));
    // Routes stay on a node that is not ready: each node decides for itself, and all may be so at once.
    Wish { addresses, attracts: status.node_attracts && status.node_is_ready }
}

/// Starts to announce addresses, or ends what an earlier agent announced. Returns the switch for the agent's end.
fn start_announcing(
    config: Option<(AnnounceOptions, kubernetes::KubernetesOptions)>,
    node_name: &str,
    mut addresses: AnnouncedAddresses,
    wish: watch::Receiver<Wish>,
    links: watch::Receiver<AnsweringLinks>,
    state: watch::Sender<AnnouncingState>,
) -> Result<Option<watch::Sender<bool>>> {
    let Some((options, kubernetes)) = config else {
        addresses.set(&BTreeSet::new())?;
        addresses.renew(0)?;
        return Ok(None);
    };
    let (leave, leaving) = watch::channel(false);
    let node = node_name.into();
    announcing::start(Announcing { options, kubernetes, node, wish, links, addresses, state, leaving })?;
    Ok(Some(leave))
}

/// Writes the ranges of cluster IPs after each pass that changes them. A failed write is tried again after a pass.
async fn write_cluster_ranges(mut status: watch::Receiver<Status>, directory: PathBuf) -> Result<()> {
    let mut written = None;
    loop {
        let ranges = {
            let status = status.borrow_and_update();
            status.ready.then(|| Arc::clone(&status.cluster_ranges))
        };
        if let Some(ranges) = ranges.filter(|ranges| written.as_ref() != Some(ranges)) {
            match lb_dataplane::cluster_ranges::write(&directory, &cluster_ranges::value(&ranges)) {
                Ok(()) => {
                    let text = ranges.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
                    info!(ranges = text, "ranges of cluster IPs");
                    written = Some(ranges);
                }
                Err(error) => warn!("the ranges of cluster IPs could not be written: {error:#}"),
            }
        }
        if status.changed().await.is_err() {
            return pending().await;
        }
    }
}

/// Reports progress to systemd, or to another manager that has set `NOTIFY_SOCKET`: sd_notify(3).
fn notify_service_manager(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        warn!("the service manager could not be notified: {error}");
    }
}

/// The loaded programs, the cgroup to attach them to, and the thread that ends sockets.
struct LoadedDataplane {
    loader: Loader,
    cgroup: PathBuf,
    termination: Sender<MapChanges>,
}

impl Dataplane for LoadedDataplane {
    type Store = BpfStore;

    fn grow(&mut self, full: &BTreeSet<Table>) -> Result<Option<BpfStore>> {
        self.loader.grow(full)
    }

    fn enter_service(&mut self, writes: u64, ejection: &BTreeSet<EjectionProgram>) -> Result<()> {
        let attached = self.loader.attach(&self.cgroup)?;
        // Services serve without them, so that a failure ends nothing.
        if let Err(error) = self.loader.set_ejection_programs(ejection) {
            warn!("ejection: {error:#}");
        }
        if let Some(links_taken_over) = attached {
            info!(cgroup = %self.cgroup.display(), links_taken_over, writes, "in service");
            notify_service_manager(NotifyState::Ready);
        }
        Ok(())
    }

    fn mend(&mut self) -> Vec<Damage> {
        self.loader.mend()
    }

    fn after_pass(&mut self, changes: MapChanges) {
        // The thread ends with the agent only.
        let _ended = self.termination.send(changes);
    }
}
