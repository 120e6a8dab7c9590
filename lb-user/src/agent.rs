//! The agent: the one place where sources, reconciler and datapath are put together.

use std::{path::PathBuf, sync::Arc};

use anyhow::{Context as _, Result, anyhow};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
    task::JoinSet,
};
use tracing::info;

use crate::{
    datapath::{Datapath, Sizes, environment, pins::Pins},
    model::ExternalIps,
    reconcile::{self, Reconciler, Status},
    sources::{directory, kubernetes},
};

/// Events on their way from a source to the reconciler. A full channel holds the source back, which costs it nothing.
const EVENTS: usize = 1024;

/// Where the objects come from.
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
    /// Name of this node.
    pub node_name: String,
    /// Which external IPs are served.
    pub external_ips: ExternalIps,
    /// The cgroup to attach to; by default the root.
    pub cgroup: Option<PathBuf>,
    /// Sizes of maps that are wanted otherwise.
    pub sizes: Sizes,
    /// Whether the datapath goes with the agent.
    pub cleanup_on_exit: bool,
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
    let (events, inbox) = mpsc::channel(EVENTS);
    let mut tasks = JoinSet::new();
    // The source lists while the programs are being verified.
    tasks.spawn(async move {
        match config.source {
            Source::Directory(options) => directory::run(options, events).await,
            Source::Kubernetes(options) => kubernetes::run(options, events).await,
        }
    });
    let mut datapath = Datapath::load(pins.clone(), &config.sizes)?;
    let features = datapath.features();
    info!(
        set_retval = features.set_retval,
        adopted_maps = datapath.adopted(),
        pins = %pins.current().display(),
        node = config.node_name,
        "programs loaded"
    );
    let mut log = datapath.take_log()?;
    let reconciler = Reconciler::new(datapath.store()?, &config.node_name, config.external_ips);
    let (status, mut observed) = watch::channel(Status::default());
    tasks.spawn(reconcile::run(reconciler, inbox, status));
    tasks.spawn(async move {
        let writes = observed.wait_for(|status| status.ready).await.context("the reconciler ended")?.writes;
        let names = datapath.store()?;
        let name_of = move |id| names.name(id).map(|name| name.to_string());
        log.listen()?;
        let taken_over = datapath.attach(&cgroup)?;
        info!(cgroup = %cgroup.display(), links_taken_over = taken_over, writes, "in service");
        let served = log.run(Arc::new(name_of)).await;
        drop(datapath);
        served
    });
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
    tasks.shutdown().await;
    if config.cleanup_on_exit {
        let removed = pins.remove().context("cleaning up")?;
        info!(pins = removed.len(), "ended, and removed the datapath");
    } else {
        info!("ended; the datapath stays in place and goes on translating: `beeline cleanup` removes it");
    }
    Ok(())
}
