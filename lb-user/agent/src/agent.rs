//! The agent: the one place where sources, reconciler and datapath are put together.

use std::{
    collections::BTreeSet,
    future::pending,
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
    events::{self, EventQueue},
    health::{self, Told},
    health_ports,
    http::Port,
    metrics,
    reconcile::{self, Aftermath, Maps, Reconciler, Status},
    termination,
};
use lb_core::{model::Settings, op::Table};
use lb_dataplane::{
    cleanup::cleanup,
    devices::{self, NodeState},
    environment,
    flows::{self, Collected},
    load::Loader,
    stats::StatMaps,
    store::BpfStore,
    upgrade::{pins::Pins, programs::Sizes},
};
use lb_sources::{
    addresses::AddressSource,
    directory,
    kubernetes::{self, RememberedServers},
};

/// Events on their way from a source to the reconciler. A full channel holds the source back, which costs it nothing.
const EVENTS: usize = 1024;

/// Where the objects come from.
#[derive(Clone)]
pub enum Source {
    /// Files of YAML.
    Directory(directory::Options),
    /// The API server.
    Kubernetes(kubernetes::Options),
}

/// What the flags say.
pub struct Config {
    /// Where the objects come from.
    pub source: Source,
    /// Whether owners of Services are told what is wrong, by Events of the cluster.
    pub events: bool,
    /// Name of this node.
    pub node_name: String,
    /// What the flags say about the meaning of Services.
    pub settings: Settings,
    /// The cgroup to attach to; by default the root.
    pub cgroup: Option<PathBuf>,
    /// Which network devices have the packet path.
    pub devices: devices::Options,
    /// Sizes of maps that are fixed.
    pub sizes: Sizes,
    /// Whether the datapath goes with the agent.
    pub cleanup_on_exit: bool,
    /// Where health is asked for, if anywhere.
    pub healthz: Option<Port>,
    /// Where metrics are asked for, if anywhere.
    pub metrics: Option<Port>,
    /// How many single backends have metrics, if any.
    pub metrics_backends: Option<usize>,
}

/// Runs until a signal ends it.
///
/// # Errors
/// When the node does not offer what is needed, with the cure; or when a part ends that must not.
pub async fn run(config: Config, pins: impl FnOnce() -> Result<Pins>) -> Result<()> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    environment::check()?;
    let pins = pins()?;
    let cgroup = match config.cgroup {
        Some(path) => environment::named_cgroup(path)?,
        None => environment::cgroup2()?,
    };
    let addresses = config.settings.nodeport_addresses.clone();
    let (events, inbox) = mpsc::channel(EVENTS);
    let mut tasks = JoinSet::new();
    let (status, observed) = watch::channel(Status::default());
    let observed_by_balancers = observed.clone();
    let told = Arc::<Told>::default();
    // From the start, so that whoever waits for the agent hears that it is on its way.
    if let Some(port) = config.healthz {
        tasks.spawn(health::run(port, observed.clone(), Arc::clone(&told)));
    }
    let (know, node) = watch::channel(NodeState::default());
    tasks.spawn(tell_devices(observed.clone(), know));
    let (collecting, collected) = watch::channel(Collected::default());
    if let Some(port) = config.metrics {
        let (pins, backends) = (pins.current(), config.metrics_backends);
        let sources = metrics::Sources { status: observed, told, flows: collected.clone(), pins, backends };
        tasks.spawn(metrics::run(port, sources));
    }
    let mut source = config.source;
    let mut board = EventQueue::default();
    if let Source::Kubernetes(options) = &mut source {
        let directory = pins.current();
        options.remembered = RememberedServers::new(move || lb_dataplane::api_servers::endpoints(&directory));
        if config.events {
            board = EventQueue::read();
            tasks.spawn(events::run(board.clone(), options.clone()));
        }
    }
    tasks.spawn(health_ports::run(observed_by_balancers, addresses, board.clone()));
    // Before any object, so that the first pass knows where NodePorts answer.
    tasks.spawn(AddressSource::start(events.clone()).await.follow());
    // The source lists while the programs are being verified.
    tasks.spawn(async move {
        match source {
            Source::Directory(options) => directory::run(options, events).await,
            Source::Kubernetes(options) => kubernetes::run(options, events).await,
        }
    });
    let mut datapath = Loader::load(pins.clone(), config.sizes)?;
    let features = datapath.features();
    info!(
        set_retval = features.set_retval,
        adopted_maps = datapath.adopted(),
        pins = %pins.current().display(),
        node = config.node_name,
        "programs loaded"
    );
    let mut log = datapath.take_log()?;
    log.listen()?;
    let reconciler = Reconciler::new(datapath.store()?, &config.node_name, config.settings);
    // A first start has no counts yet.
    let counts = pins.current().join("PORT_STATS").exists().then(|| StatMaps::open(&pins.current())).transpose()?;
    let held = counts.map_or(Ok((0, 0)), |counts| counts.highest_ids())?;
    let others = datapath.highest_ids();
    let reconciler = reconciler.beyond((held.0.max(others.0), held.1.max(others.1))).telling(board.clone());
    flows::start(pins.current(), collecting)?;
    let tc = datapath.tc();
    tasks.spawn(devices::run(config.devices, Arc::clone(&tc), pins.current(), node));
    let reaper = termination::start(pins.current(), board)?;
    tasks.spawn(reconcile::run(reconciler, Service { datapath, cgroup, reaper }, inbox, status));
    let directory = pins.current();
    // Opened for each record, since the maps may have grown meanwhile, and records are rare.
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
    tell_manager(NotifyState::Stopping);
    tasks.shutdown().await;
    tc.close();
    drop(collected);
    if config.cleanup_on_exit {
        cleanup(&pins, Duration::ZERO, |what| info!("{what}")).context("cleaning up")?;
        info!("ended, and removed the datapath");
    } else {
        info!("ended; the datapath stays in place and goes on translating: `beeline cleanup` removes it");
    }
    Ok(())
}

/// Tells the devices' task what a pass has learnt of the node.
async fn tell_devices(mut status: watch::Receiver<Status>, node: watch::Sender<NodeState>) -> Result<()> {
    loop {
        let learnt = {
            let status = status.borrow_and_update();
            NodeState { addresses: status.node_addresses.clone(), paths: status.paths.clone() }
        };
        node.send_if_modified(|known| {
            let is_new = *known != learnt;
            *known = learnt;
            is_new
        });
        if status.changed().await.is_err() {
            return pending().await;
        }
    }
}

/// Tells systemd, or whatever else started the agent and set `NOTIFY_SOCKET`, how far it is: sd_notify(3).
fn tell_manager(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        warn!("the service manager was not told: {error}");
    }
}

/// The datapath, and where it serves.
struct Service {
    datapath: Loader,
    cgroup: PathBuf,
    reaper: Sender<Aftermath>,
}

impl Maps for Service {
    type Store = BpfStore;

    fn grow(&mut self, full: &BTreeSet<Table>) -> Result<Option<BpfStore>> {
        self.datapath.grow(full)
    }

    fn enter_service(&mut self, writes: u64) -> Result<()> {
        if let Some(links_taken_over) = self.datapath.attach(&self.cgroup)? {
            info!(cgroup = %self.cgroup.display(), links_taken_over, writes, "in service");
            tell_manager(NotifyState::Ready);
        }
        Ok(())
    }

    fn passed(&mut self, aftermath: Aftermath) {
        // It ends with the agent only.
        let _ended = self.reaper.send(aftermath);
    }
}
