//! Probes of hand-written endpoints (`beeline.io/probe`): asks the endpoints that the passes name, and sends changed
//! results as events. `lb_core::model` decides what they mean.

mod ask;
mod schedule;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result};
use lb_common::AddrPort;
use lb_core::{
    event::Event,
    objects::{Key, ProbeVerdict},
    spec::ProbeTargets,
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};

use schedule::{Change, Due, Schedule};

/// Most probes that wait for an answer at once.
const AT_ONCE: usize = 64;

/// Least time between the starts of two probes: at most 100 a second.
const PACE: Duration = Duration::from_millis(10);

/// Interval of checks of the use of Services.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// A Service whose endpoints are probed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Probed {
    /// The endpoints, and the question.
    pub targets: ProbeTargets,
    /// Ids of its service ports.
    pub ids: Vec<u32>,
}

/// The Services whose endpoints are probed.
pub type ProbedServices = Arc<BTreeMap<Key, Probed>>;

/// Counts for metrics.
#[derive(Default, Debug)]
pub struct ProbeCounts {
    /// Probes that passed.
    pub passed: AtomicU64,
    /// Probes that failed.
    pub failed: AtomicU64,
    /// Endpoints that pass now.
    pub passing: AtomicU64,
    /// Endpoints that fail now.
    pub failing: AtomicU64,
    /// Endpoints without a result.
    pub unknown: AtomicU64,
}

/// Probes the endpoints of `services` until the receiver of `events` is dropped. `connections` counts the connections
/// of service ports on this node, by their ids: the endpoints of a Service without new ones are asked more rarely.
///
/// # Errors
/// If a probe panics.
pub async fn run(
    mut services: watch::Receiver<ProbedServices>,
    events: mpsc::Sender<Event>,
    connections: impl Fn(&[u32]) -> u64,
    counts: Arc<ProbeCounts>,
) -> Result<()> {
    let start = Instant::now();
    let mut schedule = Schedule::default();
    let mut asking = JoinSet::new();
    let (mut earliest, mut look) = (start, interval(CHECK_INTERVAL));
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let next = schedule.next().map(|next| (start + next).max(earliest));
        let changes = tokio::select! {
            changed = services.changed() => {
                if changed.is_err() {
                    return std::future::pending().await;
                }
                let services = Arc::clone(&services.borrow_and_update());
                schedule.set(&services, start.elapsed())
            }
            Some(answer) = asking.join_next() => {
                let (due, result): (Due, Result<(), String>) = answer.context("a probe")?;
                let count = if result.is_ok() { &counts.passed } else { &counts.failed };
                count.fetch_add(1, Ordering::Relaxed);
                schedule.record(&due, result, start.elapsed()).into_iter().collect()
            }
            () = sleep_until(next.unwrap_or(start)), if next.is_some() && asking.len() < AT_ONCE => {
                earliest = Instant::now() + PACE;
                if let Some(due) = schedule.take_due(start.elapsed()) {
                    asking.spawn(async move {
                        let result = ask::ask(due.target, &due.probe).await;
                        (due, result)
                    });
                }
                continue;
            }
            _ = look.tick(), if !schedule.is_empty() => {
                schedule.observe_use(&connections, start.elapsed());
                Vec::new()
            }
            () = events.closed() => return Ok(()),
        };
        for change in changes {
            log(&change);
            let Change { service, target, verdict, .. } = change;
            // The loop notices a dropped receiver.
            let _closed = events.send(Event::Probed { service, target, verdict }).await;
        }
        schedule.count(&counts);
    }
}

/// Logs an endpoint that is back; the warning of its failure is the model's.
fn log(change: &Change) {
    if change.is_back && change.verdict == Some(ProbeVerdict::Passes) {
        tracing::info!(service = %change.service, endpoint = %address(change.target), "passes its probe again");
    }
}

fn address(AddrPort { addr, port }: AddrPort) -> std::net::SocketAddr {
    std::net::SocketAddr::new(addr.to_ip(), port)
}
