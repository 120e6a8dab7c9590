//! Checks of the datapath between passes: another program may have detached a program or removed a pin. The dataplane
//! mends; health and log learn of it here.

use std::{collections::BTreeSet, time::Duration};

use tokio::{sync::watch, time::Instant};

use super::{DatapathState, Status};
use lb_dataplane::damage::{Damage, Part, describe};

/// Interval of checks.
const INTERVAL: Duration = Duration::from_secs(1);

/// Schedule and results of the checks.
pub(super) struct Mender {
    next: Instant,
    /// Parts that the last check could not put back.
    missing: BTreeSet<Part>,
    /// Description of missing parts in the log.
    logged: Option<String>,
}

impl Mender {
    pub(super) fn new() -> Self {
        Self { next: Instant::now() + INTERVAL, missing: BTreeSet::new(), logged: None }
    }

    /// Returns the time of the next check.
    pub(super) const fn next(&self) -> Instant {
        self.next
    }

    /// Records the result of a check: publishes the state of the datapath, and logs changes of it.
    pub(super) fn record(&mut self, damages: Vec<Damage>, status: &watch::Sender<Status>) {
        self.next = Instant::now() + INTERVAL;
        let (mended, missing): (Vec<_>, Vec<_>) = damages.into_iter().partition(|damage| damage.error.is_none());
        if !mended.is_empty() {
            tracing::warn!("another program damaged the datapath, which is mended: {}", describe(&mended));
        }
        let parts: BTreeSet<Part> = missing.iter().map(|damage| damage.part.clone()).collect();
        let repairs = mended.len() + self.missing.difference(&parts).count();
        // Parts that are missing at one check only are put back at once, with a line of the log of their own.
        if parts == self.missing {
            self.log_missing(&missing);
        }
        self.missing = parts;
        status.send_if_modified(|status| {
            let before = status.datapath;
            status.datapath = DatapathState {
                is_detached: self.missing.iter().any(Part::serves),
                is_unpinned: self.missing.iter().any(|part| !part.serves()),
                repairs: before.repairs + repairs as u64,
            };
            status.datapath != before
        });
    }

    fn log_missing(&mut self, missing: &[Damage]) {
        let text = (!missing.is_empty()).then(|| describe(missing));
        if self.logged == text {
            return;
        }
        match &text {
            Some(text) => tracing::error!("the datapath is damaged, and this is tried again every second: {text}"),
            None => tracing::info!("the datapath is whole again"),
        }
        self.logged = text;
    }
}
