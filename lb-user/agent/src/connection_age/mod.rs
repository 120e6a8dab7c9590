//! Ends old TCP sockets of clients on the node, for Services with `beeline.io/max-connection-age`, so that clients
//! connect again and find new endpoints. Nothing runs while no Service has an age.

mod known;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use lb_core::objects::ConnectionAge;
use lb_dataplane::{
    sockets::{self, EndReport},
    stats::StatMaps,
    store::BpfStore,
};
use tokio::sync::watch;
use tracing::{info, warn};

use known::KnownSockets;

/// The ages of service ports, by id.
pub(crate) type Ages = Arc<BTreeMap<u32, ConnectionAge>>;

/// Scans in the shortest age: an age is exact by this share of it.
const SCANS: u32 = 20;

/// Shortest and longest time between two scans.
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(60);

/// Longest time between two scans while a socket is over its age and busy.
const BUSY: Duration = Duration::from_secs(5);

/// Share of the time that scans may take: one part of these.
const SHARE: u32 = 20;

/// Ends sockets, by the maps pinned in `pins`, until the sender is dropped. Failures are logged and retried.
///
/// # Errors
/// If a scan panics.
pub(crate) async fn run(pins: PathBuf, mut ages: watch::Receiver<Ages>) -> Result<()> {
    let mut scanner =
        Scanner { pins, start: Instant::now(), known: KnownSockets::default(), failures: BTreeSet::new() };
    loop {
        let current = Arc::clone(&ages.borrow_and_update());
        if current.is_empty() {
            scanner.known.clear();
            if ages.changed().await.is_err() {
                return std::future::pending().await;
            }
            continue;
        }
        let (interval, start) = (interval(&current), Instant::now());
        let scan = move || {
            let is_waiting = scanner.scan(&current);
            (scanner, is_waiting)
        };
        let (back, is_waiting) = tokio::task::spawn_blocking(scan).await.context("the scan for old sockets")?;
        scanner = back;
        // Also after a change of the ages, since several come at once.
        let least = (start.elapsed() * (SHARE - 1)).clamp(SHORTEST, LONGEST);
        tokio::time::sleep(least).await;
        let interval = if is_waiting { interval.min(BUSY) } else { interval };
        tokio::select! {
            () = tokio::time::sleep(interval.saturating_sub(least)) => {}
            ended = ages.changed() => if ended.is_err() { return std::future::pending().await },
        }
    }
}

/// Returns the time between two scans.
fn interval(ages: &Ages) -> Duration {
    let shortest = ages.values().map(|age| age.seconds.get()).min().unwrap_or(u32::MAX);
    (Duration::from_secs(shortest.into()) / SCANS).clamp(SHORTEST, LONGEST)
}

struct Scanner {
    pins: PathBuf,
    start: Instant,
    known: KnownSockets,
    /// Failures of the last scan, which are not logged again.
    failures: BTreeSet<String>,
}

impl Scanner {
    /// Ends the sockets whose time is over. True if one is busy.
    fn scan(&mut self, ages: &Ages) -> bool {
        let (is_waiting, failures) = match self.end(ages) {
            Ok((is_waiting, failures)) => (is_waiting, failures),
            Err(error) => (false, [format!("{error:#}")].into()),
        };
        failures.difference(&self.failures).for_each(|failure| warn!("ending old sockets: {failure}"));
        self.failures = failures;
        is_waiting
    }

    /// Ends the sockets whose time is over. Returns true if one is busy, and the failures.
    fn end(&mut self, ages: &Ages) -> Result<(bool, BTreeSet<String>)> {
        let over = self.known.observe(&sockets::translated(&self.pins)?, ages, self.start.elapsed());
        if over.is_empty() {
            return Ok((false, BTreeSet::new()));
        }
        let EndReport { ended, failures, took, .. } = sockets::end_aged(&over)?;
        let (maps, store) = (StatMaps::open(&self.pins)?, BpfStore::open(&self.pins)?);
        for (service, sockets) in &ended {
            let name = store.name(*service).map_or_else(|| format!("service#{service}"), |name| name.to_string());
            info!(service = name, sockets, ?took, "ended sockets of beeline.io/max-connection-age");
            maps.add_killed(*service, *sockets)?;
        }
        Ok((over.len() as u64 > ended.values().sum(), failures))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::num::NonZeroU32;

    #[test]
    fn scans_are_a_twentieth_of_the_shortest_age_apart_within_a_second_and_a_minute() {
        let ages = |of: &[u32]| {
            let age = |seconds: &u32| ConnectionAge { seconds: NonZeroU32::new(*seconds).expect("not 0"), grace: None };
            Ages::new((1..).zip(of.iter().map(age)).collect())
        };
        for (of, seconds) in [(&[1][..], 1), (&[600, 100], 5), (&[86_400], 60)] {
            assert_eq!(interval(&ages(of)), Duration::from_secs(seconds), "{of:?}");
        }
    }
}
