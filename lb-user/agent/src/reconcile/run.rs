//! When passes happen: after events, all that are queued at once and without a timer; again after a failure; and every
//! few minutes over everything.

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

use super::{Aftermath, PassReport, Reconciler, Status};
use lb_core::{event::Event, model::pod_modes::pod_modes, op::Table, store::Store};
use lb_kernel::allocator;

const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(30);
const RESYNC: Duration = Duration::from_secs(300);
/// Services looked at in one pass from which on it leaves memory behind that is worth giving back.
const BURST: usize = 1_000;

/// The maps as a whole, of which the reconciler only writes the entries.
pub trait Maps {
    /// What the reconciler writes to.
    type Store: Store;

    /// Makes a store with more room in these maps, and the same entries; what is in service stays so until
    /// [`Maps::enter_service`]. None when they may not grow.
    ///
    /// # Errors
    /// When there is no memory for them.
    fn grow(&mut self, full: &BTreeSet<Table>) -> anyhow::Result<Option<Self::Store>>;

    /// The store holds what it shall, after so many writes: it goes into service, if it is not.
    ///
    /// # Errors
    /// When it cannot.
    fn enter_service(&mut self, writes: u64) -> anyhow::Result<()>;

    /// A pass is over, and what is in service knows of it.
    fn passed(&mut self, aftermath: Aftermath);
}

/// Runs as long as there is a source. It may be dropped between two passes, which is whenever it waits.
///
/// # Errors
/// When the last source has ended.
pub async fn run<M: Maps>(
    mut reconciler: Reconciler<M::Store>,
    mut maps: M,
    mut events: mpsc::Receiver<Event>,
    status: watch::Sender<Status>,
) -> anyhow::Result<()> {
    reconciler.world.keep_triggers(SystemTime::now());
    let mut backoff = FIRST_RETRY;
    let mut retry: Option<Instant> = None;
    let mut resync = Instant::now() + RESYNC;
    loop {
        select! {
            biased;
            event = events.recv() => {
                reconciler.handle([event.context("all sources have ended")?]);
                while let Ok(event) = events.try_recv() {
                    reconciler.handle([event]);
                }
                let world = reconciler.world();
                status.send_if_modified(|status| {
                    status.queue(world);
                    status.forbidden.clone_from(world.forbidden());
                    // Who waits for a pass waits on.
                    false
                });
                // After a failure they wait for the next try.
                if retry.is_some() {
                    continue;
                }
            }
            () = sleep_until(retry.unwrap_or(resync)) => {}
        }
        if Instant::now() >= resync {
            reconciler.resync();
            resync = Instant::now() + RESYNC;
        }
        let start = Instant::now();
        let mut report = pass(&mut reconciler, &mut maps);
        if !report.waiting.is_empty() {
            continue;
        }
        let writes = status.borrow().writes + report.writes as u64;
        if report.failure.is_none() {
            report.failure = maps.enter_service(writes).err();
        }
        maps.passed(std::mem::take(&mut report.aftermath));
        retry = report.failure.as_ref().map(|_| Instant::now() + backoff);
        if let Some(error) = &report.failure {
            tracing::error!("the maps could not be brought up to date, next try in {backoff:?}: {error:#}");
        }
        backoff = if retry.is_some() { (backoff * 2).min(LAST_RETRY) } else { FIRST_RETRY };
        let error = report.failure.as_ref().map(|error| format!("{error:#}"));
        let paths = reconciler.world.pods().map(pod_modes);
        let triggers = if error.is_none() { reconciler.world.take_triggers() } else { Vec::new() };
        status.send_modify(|status| {
            status.pass(start.elapsed(), error, &triggers);
            status.writes = writes;
            status.health = Arc::clone(&reconciler.health);
            if *status.node_ports != reconciler.node_ports {
                status.node_ports = Arc::new(reconciler.node_ports.clone());
            }
            if status.paths.as_deref() != paths.as_ref() {
                status.paths = paths.map(Arc::new);
            }
            status.refused = report.refused.len();
            status.warnings = reconciler.warnings.values().map(Vec::len).sum();
        });
        // Once it is in service, since it takes a moment.
        if report.planned >= BURST {
            allocator::release();
        }
    }
}

/// A pass, repeated in larger maps as long as some Service does not fit and they may grow.
fn pass<M: Maps>(reconciler: &mut Reconciler<M::Store>, maps: &mut M) -> PassReport {
    let mut report = reconciler.pass();
    while report.failure.is_none() && !report.refused.is_empty() {
        match maps.grow(&report.refused.iter().map(|refused| refused.table).collect()) {
            Ok(Some(store)) => {
                let (writes, mut aftermath) = (report.writes, std::mem::take(&mut report.aftermath));
                reconciler.move_to(store);
                report = reconciler.pass();
                report.writes += writes;
                aftermath.append(report.aftermath);
                report.aftermath = aftermath;
            }
            Ok(None) => break,
            Err(error) => {
                tracing::error!("no larger maps can be made: {error:#}");
                break;
            }
        }
    }
    reconciler.tell_refused(&report.refused);
    report
}
