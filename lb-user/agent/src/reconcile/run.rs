//! The reconcile loop: wait, take events, run a pass, report. A pass follows at once after events, takes all that are
//! queued and needs no timer; it is repeated after a failure, and over everything every few minutes.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::Context as _;
use tokio::{
    select,
    sync::{mpsc, watch},
    time::{Instant, sleep_until},
};

use super::{MapChanges, PassReport, Reconciler, Status, mending::Mender};
use lb_core::{event::Event, model::pod_modes::pod_modes, op::Table, store::Store};
use lb_dataplane::{attach::ejection::EjectionProgram, damage::Damage};
use lb_kernel::allocator;

const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(30);
const RESYNC: Duration = Duration::from_secs(300);
/// Number of Services in one pass above which the freed memory is worth returning to the kernel.
const BURST: usize = 1_000;

/// The maps and programs as a whole; the reconciler itself writes map entries only.
pub(crate) trait Dataplane {
    /// Store that the reconciler writes to.
    type Store: Store;

    /// Copies the maps into larger ones, with more room in the `full` tables, and returns their store. The current maps
    /// serve until [`Dataplane::enter_service`]. None if these tables may not grow.
    ///
    /// # Errors
    /// If the kernel refuses the memory for them.
    fn grow(&mut self, full: &BTreeSet<Table>) -> anyhow::Result<Option<Self::Store>>;

    /// Puts the store into service, unless it is, and attaches the wanted programs of ejection. `writes` is the number
    /// of writes since the start.
    ///
    /// # Errors
    /// If the programs cannot be attached.
    fn enter_service(&mut self, writes: u64, ejection: &BTreeSet<EjectionProgram>) -> anyhow::Result<()>;

    /// Puts back what another program took away from the datapath in service. Returns what was missing, with an error
    /// if it still is.
    fn mend(&mut self) -> Vec<Damage>;

    /// Receives the map changes of a pass, once they are in service.
    fn after_pass(&mut self, changes: MapChanges);
}

/// Runs passes until the last source ends. The future may be dropped whenever it waits, which is between two passes.
///
/// # Errors
/// If all sources have ended.
pub(crate) async fn run<D: Dataplane>(
    mut reconciler: Reconciler<D::Store>,
    mut dataplane: D,
    mut events: mpsc::Receiver<Event>,
    status: watch::Sender<Status>,
) -> anyhow::Result<()> {
    reconciler.world.keep_triggers(SystemTime::now());
    let (mut timer, mut mender) = (Timer::new(), Mender::new());
    let start_of_agent = Instant::now();
    loop {
        let next = match reconciler.next_step() {
            // After a failure, weights wait for the next try.
            Some(step) if !timer.is_retrying() => timer.next().min(start_of_agent + step),
            _ => timer.next(),
        };
        select! {
            biased;
            event = events.recv() => {
                reconciler.handle([event.context("all sources have ended")?]);
                while let Ok(event) = events.try_recv() {
                    reconciler.handle([event]);
                }
                status.send_if_modified(|status| {
                    status.record_events(reconciler.world());
                    // Do not wake watchers: no pass has run.
                    false
                });
                if timer.is_retrying() {
                    // After a failure, events wait for the next try.
                    continue;
                }
            }
            () = sleep_until(mender.next()) => {
                mender.record(dataplane.mend(), &status);
                continue;
            }
            () = sleep_until(next) => {}
        }
        reconciler.set_time(start_of_agent.elapsed());
        if timer.take_resync() {
            reconciler.resync();
        }
        let start = Instant::now();
        let mut report = pass(&mut reconciler, &mut dataplane);
        if !report.waiting.is_empty() {
            continue;
        }
        let writes = status.borrow().writes + report.writes as u64;
        if report.failure.is_none() {
            report.failure = dataplane.enter_service(writes, &reconciler.reports.ejection_programs()).err();
        }
        dataplane.after_pass(std::mem::take(&mut report.changes));
        timer.record(report.failure.as_ref());
        publish(&status, &mut reconciler, &report, writes, start.elapsed());
        if report.planned >= BURST {
            // Release memory after the writes are in service: it takes time.
            allocator::release();
        }
    }
}

/// Times of the next retry and the next resync.
struct Timer {
    /// None unless the last pass failed.
    retry: Option<Instant>,
    /// Delay before the next retry.
    backoff: Duration,
    resync: Instant,
}

impl Timer {
    fn new() -> Self {
        Self { retry: None, backoff: FIRST_RETRY, resync: Instant::now() + RESYNC }
    }

    fn is_retrying(&self) -> bool {
        self.retry.is_some()
    }

    fn next(&self) -> Instant {
        self.retry.unwrap_or(self.resync)
    }

    /// True if a resync is due; sets the time of the next one.
    fn take_resync(&mut self) -> bool {
        let now = Instant::now();
        let is_due = now >= self.resync;
        if is_due {
            self.resync = now + RESYNC;
        }
        is_due
    }

    /// Records the end of a pass: a failure is retried with exponential backoff.
    fn record(&mut self, failure: Option<&anyhow::Error>) {
        self.retry = failure.map(|_| Instant::now() + self.backoff);
        self.backoff = match failure {
            Some(error) => {
                let delay = self.backoff;
                tracing::error!("the maps could not be brought up to date, next try in {delay:?}: {error:#}");
                (delay * 2).min(LAST_RETRY)
            }
            None => FIRST_RETRY,
        };
    }
}

/// Runs a pass, and repeats it in larger maps while Services do not fit and the maps may grow.
fn pass<D: Dataplane>(reconciler: &mut Reconciler<D::Store>, dataplane: &mut D) -> PassReport {
    let mut report = reconciler.pass();
    while report.failure.is_none() && !report.refused.is_empty() {
        match dataplane.grow(&report.refused.iter().map(|refused| refused.table).collect()) {
            Ok(Some(store)) => {
                let (writes, mut changes) = (report.writes, std::mem::take(&mut report.changes));
                reconciler.move_to(store);
                report = reconciler.pass();
                report.writes += writes;
                changes.append(report.changes);
                report.changes = changes;
            }
            Ok(None) => break,
            Err(error) => {
                tracing::error!("the maps could not be made larger: {error:#}");
                break;
            }
        }
    }
    reconciler.report_refused(&report.refused);
    report
}

/// Publishes the state after a pass to health, metrics and the devices' task.
fn publish<S: Store>(
    status: &watch::Sender<Status>,
    reconciler: &mut Reconciler<S>,
    report: &PassReport,
    writes: u64,
    duration: Duration,
) {
    let error = report.failure.as_ref().map(|error| format!("{error:#}"));
    let (ranges, doubtful) = reconciler.cluster_ranges();
    let pod_modes = reconciler.world.pods().map(pod_modes);
    let (named, redirect_targets) = (reconciler.take_named(), reconciler.reports.redirect_targets.all());
    let triggers = if error.is_none() { reconciler.world.take_triggers() } else { Vec::new() };
    status.send_modify(|status| {
        status.record_pass(duration, error, &triggers);
        status.writes = writes;
        status.health = Arc::clone(&reconciler.reports.health);
        status.restricted = Arc::clone(&reconciler.reports.restricted);
        status.attracted = Arc::clone(&reconciler.reports.attracted);
        status.ejects = !reconciler.reports.ejection_programs().is_empty();
        if let Some((ages, probed)) = named {
            (status.connection_ages, status.probed) = (Arc::new(ages), Arc::new(probed));
        }
        if *status.redirect_targets != redirect_targets {
            status.redirect_targets = Arc::new(redirect_targets);
        }
        if *status.node_ports != reconciler.node_ports {
            status.node_ports = Arc::new(reconciler.node_ports.clone());
        }
        if *status.cluster_ranges != ranges {
            status.cluster_ranges = Arc::new(ranges);
        }
        for doubt in doubtful.iter().filter(|doubt| !status.doubtful_ranges.contains(doubt)) {
            tracing::warn!("{doubt}");
        }
        status.doubtful_ranges = doubtful;
        if status.pod_modes.as_deref() != pod_modes.as_ref() {
            status.pod_modes = pod_modes.map(Arc::new);
        }
        status.refused = report.refused.len();
        status.warnings = reconciler.warnings.values().map(Vec::len).sum();
    });
}
