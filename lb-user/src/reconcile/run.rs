//! When passes happen: after events, all that are queued at once and without a timer; again after a failure; and every
//! few minutes over everything.

use std::{collections::BTreeSet, time::Duration};

use anyhow::Context as _;
use tokio::{
    select,
    sync::{mpsc, watch},
    time::{Instant, sleep_until},
};

use super::{Departed, PassReport, Reconciler};
use crate::{event::Event, memory, op::Table, store::Store};

const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(30);
const RESYNC: Duration = Duration::from_secs(300);
/// Services looked at in one pass from which on it leaves memory behind that is worth giving back.
const BURST: usize = 1_000;

/// How the loop is doing.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Status {
    /// Whether a pass over all objects has succeeded.
    pub ready: bool,
    /// Passes so far, those that only waited for sources left out.
    pub passes: u64,
    /// Writes so far.
    pub writes: u64,
    /// Why the last one failed.
    pub error: Option<String>,
    /// Services for which there is no room.
    pub refused: usize,
}

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

    /// A pass is over, in which these backends went; what is in service knows it.
    fn departed(&mut self, departed: Vec<Departed>);
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
        let mut report = pass(&mut reconciler, &mut maps);
        if !report.waiting.is_empty() {
            continue;
        }
        let writes = status.borrow().writes + report.writes as u64;
        if report.failure.is_none() {
            report.failure = maps.enter_service(writes).err();
        }
        maps.departed(std::mem::take(&mut report.departed));
        retry = report.failure.as_ref().map(|_| Instant::now() + backoff);
        if let Some(error) = &report.failure {
            tracing::error!("the maps could not be brought up to date, next try in {backoff:?}: {error:#}");
        }
        backoff = if retry.is_some() { (backoff * 2).min(LAST_RETRY) } else { FIRST_RETRY };
        status.send_modify(|status| {
            status.ready |= report.failure.is_none();
            status.passes += 1;
            status.writes = writes;
            status.error = report.failure.map(|error| format!("{error:#}"));
            status.refused = report.refused.len();
        });
        // Once it is in service, since it takes a moment.
        if report.planned >= BURST {
            memory::release();
        }
    }
}

/// A pass, repeated in larger maps as long as some Service does not fit and they may grow.
fn pass<M: Maps>(reconciler: &mut Reconciler<M::Store>, maps: &mut M) -> PassReport {
    let mut report = reconciler.pass();
    while report.failure.is_none() && !report.refused.is_empty() {
        match maps.grow(&report.refused.iter().map(|refused| refused.table).collect()) {
            Ok(Some(store)) => {
                let (writes, departed) = (report.writes, std::mem::take(&mut report.departed));
                reconciler.move_to(store);
                report = reconciler.pass();
                report.writes += writes;
                report.departed.extend(departed);
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
