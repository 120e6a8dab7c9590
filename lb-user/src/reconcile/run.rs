//! When passes happen: after events, all that are queued at once and without a timer; again after a failure; and every
//! few minutes over everything.

use std::time::Duration;

use anyhow::Context as _;
use tokio::{
    select,
    sync::{mpsc, watch},
    time::{Instant, sleep_until},
};

use super::Reconciler;
use crate::{event::Event, store::Store};

const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(30);
const RESYNC: Duration = Duration::from_secs(300);

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

/// Runs as long as there is a source. It may be dropped between two passes, which is whenever it waits.
///
/// # Errors
/// When the last source has ended.
pub async fn run<S: Store>(
    mut reconciler: Reconciler<S>,
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
        let report = reconciler.pass();
        if !report.waiting.is_empty() {
            continue;
        }
        retry = report.failure.as_ref().map(|_| Instant::now() + backoff);
        if let Some(error) = &report.failure {
            tracing::error!("the maps could not be brought up to date, next try in {backoff:?}: {error:#}");
        }
        backoff = if retry.is_some() { (backoff * 2).min(LAST_RETRY) } else { FIRST_RETRY };
        status.send_modify(|status| {
            status.ready |= report.failure.is_none();
            status.passes += 1;
            status.writes += report.writes as u64;
            status.error = report.failure.map(|error| format!("{error:#}"));
            status.refused = report.refused.len();
        });
    }
}
