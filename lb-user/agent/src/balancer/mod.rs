//! `beeline lb`: allots addresses of pools to Services of type LoadBalancer, in a cluster. One of several controllers
//! is the leader (`lease`); it knows all objects (`known`), allots (`lb_core::allot`), and writes what differs
//! (`writes`). Without it all addresses stay.

mod known;
mod lease;
mod metrics;
mod writes;

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Result, anyhow};
use futures::{StreamExt as _, stream};
use k8s_openapi::jiff::Timestamp;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};
use tracing::{error, info, warn};

pub use self::known::Served;
use self::{
    known::Known,
    lease::{Candidate, TIMEOUT},
    metrics::Observed,
    writes::{Write, writes},
};
use crate::{
    events::{self, EventQueue, ProblemOrigin},
    http::BindAddress,
};
use lb_core::{allot::Allotments, objects::Key, warning::Warning};
use lb_sources::{
    api::{AddressPool, Service},
    kubernetes::{
        self, KubernetesOptions,
        load_balancers::{self, AddressEvent, BalancerService, balancer_service},
    },
};

/// Capacity of the channel from the watches.
const EVENT_CAPACITY: usize = 256;
/// Time from a change to the pass over it, in which other changes join.
const SETTLE: Duration = Duration::from_millis(50);
/// Writes in flight.
const CONCURRENT: usize = 8;
/// Delay of the next pass after a failed write, and after a failure to get the Lease.
const RETRY: Duration = Duration::from_secs(2);
/// Name of the controller in the API server's managed fields.
const MANAGER: &str = "beeline-lb";

/// Configuration of the controller.
pub struct BalancerConfig {
    /// The API server.
    pub kubernetes: KubernetesOptions,
    /// Services that get addresses.
    pub served: Served,
    /// Name of this controller among its replicas.
    pub identity: String,
    /// Addresses of `/livez` and `/metrics`.
    pub bind: Vec<BindAddress>,
}

/// Returns what a controller would allot over these objects, of which each kind was listed.
#[must_use]
pub fn preview(objects: Vec<AddressEvent>, served: Served) -> Allotments {
    let mut known = Known::default();
    objects.into_iter().for_each(|event| known.apply(event));
    known.allot(served, Instant::now())
}

/// Runs the controller until SIGTERM or SIGINT.
///
/// # Errors
/// If the configuration cannot be read, or if a part ends before the controller.
pub async fn run_balancer(config: BalancerConfig) -> Result<()> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut tasks = JoinSet::new();
    let (observed, of_metrics) = watch::channel(Observed::default());
    tasks.spawn(metrics::run(config.bind.clone(), of_metrics));
    let queue = EventQueue::with_reader();
    let sender = KubernetesOptions { node_name: config.identity.clone(), ..config.kubernetes.clone() };
    tasks.spawn(events::run(queue.clone(), sender));
    let (stop, stopped) = watch::channel(false);
    tasks.spawn(candidate(config, observed, queue, stopped));
    let ended = tokio::select! {
        _ = term.recv() => None,
        _ = int.recv() => None,
        ended = tasks.join_next() => ended,
    };
    match ended {
        Some(Ok(Err(error))) => return Err(error),
        Some(Err(panic)) => return Err(panic.into()),
        Some(Ok(Ok(()))) => return Err(anyhow!("a part of the controller ended")),
        None => {}
    }
    // The candidate releases the Lease, so that another one need not wait.
    stop.send_replace(true);
    let released = timeout(2 * TIMEOUT, async { while let Some(Ok(Err(_))) = tasks.join_next().await {} }).await;
    info!(released = released.is_ok(), "ended; all addresses stay");
    tasks.shutdown().await;
    Ok(())
}

/// Becomes the leader, leads, and begins again when the Lease is lost. Ends when it is stopped.
async fn candidate(
    config: BalancerConfig,
    observed: watch::Sender<Observed>,
    queue: EventQueue,
    mut stopped: watch::Receiver<bool>,
) -> Result<()> {
    loop {
        let client = tokio::select! {
            client = kubernetes::client(&config.kubernetes) => client?,
            _ = stopped.wait_for(|stopped| *stopped) => return Ok(()),
        };
        let mut candidate = Candidate::new(client.clone(), client.default_namespace(), config.identity.clone());
        let acquired = tokio::select! {
            acquired = candidate.acquire() => acquired,
            _ = stopped.wait_for(|stopped| *stopped) => return Ok(()),
        };
        match acquired {
            Err(error) => {
                warn!("no Lease, and so no addresses are allotted, retrying: {error:#}");
                sleep(RETRY).await;
            }
            Ok(until) => {
                info!(identity = config.identity, "leader: allotting addresses");
                let (certain, valid) = watch::channel(until);
                observed.send_modify(|observed| observed.is_leader = true);
                let leader = Leader { client, served: config.served, valid, observed: &observed, queue: &queue };
                let mut reported = Reported::new();
                let is_stopped = tokio::select! {
                    () = candidate.hold(until, |until| _ = certain.send_replace(until)) => false,
                    () = leader.lead(&mut reported) => false,
                    _ = stopped.wait_for(|stopped| *stopped) => true,
                };
                observed.send_modify(|observed| observed.is_leader = false);
                // Events are the next leader's.
                reported.keys().for_each(|key| queue.report(ProblemOrigin::Objects, key, Vec::new()));
                if is_stopped {
                    candidate.release().await;
                    return Ok(());
                }
            }
        }
    }
}

/// A candidate with the Lease.
struct Leader<'a> {
    client: Client,
    served: Served,
    /// Time until which the Lease is certain.
    valid: watch::Receiver<Instant>,
    observed: &'a watch::Sender<Observed>,
    queue: &'a EventQueue,
}

/// Problems that were reported, by Service, and by pool, which has no namespace.
type Reported = BTreeMap<Key, Vec<Warning>>;

/// Outcome of a write.
#[derive(Clone, Debug)]
enum Outcome {
    /// The Service's new version.
    Written(Key, Box<BalancerService>),
    /// Done, or needed no longer: the object has changed or gone, and its watch tells.
    Settled,
    /// The Lease is not certain any more, or the server failed.
    Failed,
}

impl Leader<'_> {
    /// Follows the objects and makes passes. Returns when the watches end.
    async fn lead(&self, reported: &mut Reported) {
        let (tx, mut events) = mpsc::channel(EVENT_CAPACITY);
        let watches = load_balancers::follow(self.client.clone(), tx);
        let passes = async {
            let mut known = Known::default();
            let mut retry: Option<Instant> = None;
            loop {
                let timer = async {
                    match retry.into_iter().chain(known.end_of_contests(Instant::now())).min() {
                        Some(at) if known.is_complete() => sleep_until(at).await,
                        _ => std::future::pending().await,
                    }
                };
                tokio::select! {
                    event = events.recv() => match event {
                        Some(event) => known.apply(event),
                        None => return,
                    },
                    () = timer => {}
                }
                gather(&mut events, &mut known).await;
                if known.is_complete() {
                    let has_failed = self.pass(&mut known, reported).await;
                    retry = has_failed.then(|| Instant::now() + RETRY);
                }
            }
        };
        tokio::select! {
            () = watches => {}
            () = passes => {}
        }
    }

    /// Allots addresses, and writes what differs. Returns true if a write has to be tried again.
    async fn pass(&self, known: &mut Known, reported: &mut Reported) -> bool {
        let start = Instant::now();
        let allotments = known.allot(self.served, start);
        known.expect(&allotments);
        self.report(&allotments, reported);
        let writes = writes(&known.services, &allotments.services, &known.pools, &allotments.pools, Timestamp::now());
        let count = writes.len();
        let outcomes = stream::iter(writes).map(|write| self.write(write)).buffer_unordered(CONCURRENT);
        let outcomes: Vec<Outcome> = outcomes.collect().await;
        let mut failed = 0;
        for outcome in outcomes {
            match outcome {
                Outcome::Written(key, service) => known.record(&key, *service),
                Outcome::Settled => {}
                Outcome::Failed => failed += 1,
            }
        }
        if count > 0 {
            info!(writes = count, failed, services = known.services.len(), took = ?start.elapsed(), "pass");
        }
        self.observed.send_modify(|observed| observed.record(&allotments, count - failed, failed));
        failed > 0
    }

    /// Reports new problems: to the log, and as Events.
    fn report(&self, allotments: &Allotments, reported: &mut Reported) {
        let mut problems = Reported::new();
        for (key, allotment) in &allotments.services {
            for (addr, other, why) in &allotment.lost {
                warn!(service = %key, %addr, %other, ?why, "an older Service has the address, it gets another");
            }
            if !allotment.problems.is_empty() {
                problems.insert(key.clone(), vec![Warning::LoadBalancerAddress(allotment.message())]);
            }
        }
        for (name, usage) in &allotments.pools {
            if !usage.problems.is_empty() {
                let texts = usage.problems.iter().map(|problem| Warning::AddressPool(problem.to_string()));
                problems.insert(Key::new("", name), texts.collect());
            }
        }
        for (key, warnings) in problems.iter().filter(|(key, warnings)| reported.get(*key) != Some(*warnings)) {
            for warning in warnings {
                match key.namespace() {
                    "" => warn!(pool = key.name(), "{warning}"),
                    _ => warn!(service = %key, "{warning}"),
                }
            }
            self.queue.report(ProblemOrigin::Objects, key, warnings.clone());
        }
        for key in reported.keys().filter(|key| !problems.contains_key(*key)) {
            self.queue.report(ProblemOrigin::Objects, key, Vec::new());
        }
        *reported = problems;
    }

    /// Performs a write, while the Lease is certain.
    async fn write(&self, write: Write) -> Outcome {
        if Instant::now() >= *self.valid.borrow() {
            return Outcome::Failed;
        }
        let parameters = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        match write {
            Write::Service(key, patch) => {
                let services = Api::<Service>::namespaced(self.client.clone(), key.namespace());
                let patch = Patch::Strategic(patch);
                let written = services.patch_status(key.name(), &parameters, &patch);
                match answer(timeout(TIMEOUT, written).await, &key) {
                    Ok(service) => match balancer_service(&service) {
                        Some((key, service)) => Outcome::Written(key, Box::new(service)),
                        None => Outcome::Settled,
                    },
                    Err(outcome) => outcome,
                }
            }
            Write::Pool(name, patch) => {
                let pools = Api::<AddressPool>::all(self.client.clone());
                let patch = Patch::Merge(patch);
                let written = pools.patch_status(&name, &parameters, &patch);
                match answer(timeout(TIMEOUT, written).await, &name) {
                    Ok(_) => Outcome::Settled,
                    Err(outcome) => outcome,
                }
            }
        }
    }
}

/// Takes further events, until none comes for a moment.
async fn gather(events: &mut mpsc::Receiver<AddressEvent>, known: &mut Known) {
    let end = Instant::now() + 20 * SETTLE;
    while let Ok(Some(event)) = timeout(SETTLE, events.recv()).await {
        known.apply(event);
        if Instant::now() >= end {
            return;
        }
    }
}

/// Sorts the answer to a write of `object`.
fn answer<T>(
    written: Result<kube::Result<T>, tokio::time::error::Elapsed>,
    object: &impl std::fmt::Display,
) -> Result<T, Outcome> {
    match written {
        Ok(Ok(written)) => Ok(written),
        // The object has changed, or has gone.
        Ok(Err(kube::Error::Api(status))) if matches!(status.code, 404 | 409) => Err(Outcome::Settled),
        Ok(Err(kube::Error::Api(status))) if matches!(status.code, 401 | 403) => {
            error!(
                %object,
                error = status.message,
                "the API server does not let this controller write a status: bind its account to a role that grants \
                 it, as deploy/components/load-balancer does; it retries by itself"
            );
            Err(Outcome::Failed)
        }
        Ok(Err(error)) => {
            warn!(%object, "a status could not be written, retrying: {error}");
            Err(Outcome::Failed)
        }
        Err(_) => {
            warn!(%object, "a status could not be written, retrying: no answer");
            Err(Outcome::Failed)
        }
    }
}
