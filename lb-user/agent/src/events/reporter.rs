//! Problems of Services that repeated looks at the kernel find: new ones in the log, and all of them as Events until a
//! look does not find them any more.

use std::collections::{BTreeMap, BTreeSet};

use lb_core::{objects::Key, warning::Warning};
use tracing::warn;

use super::{EventQueue, ProblemOrigin};

/// New problems of a look that are logged one by one.
const MAX_LOGGED: usize = 10;

/// Problems of each Service.
pub(crate) type Problems = BTreeMap<Key, BTreeSet<Warning>>;

/// The problems of one origin.
pub(crate) struct Reporter {
    origin: ProblemOrigin,
    events: EventQueue,
    /// Problems of the last look.
    open: Problems,
}

impl Reporter {
    pub(crate) const fn new(origin: ProblemOrigin, events: EventQueue) -> Self {
        Self { origin, events, open: Problems::new() }
    }

    /// Logs new problems, and replaces the problems of the last look in the queue.
    pub(crate) fn report(&mut self, problems: Problems) {
        let before = std::mem::replace(&mut self.open, problems);
        for ended in before.keys().filter(|service| !self.open.contains_key(*service)) {
            self.events.report(self.origin, ended, Vec::new());
        }
        let mut new = 0;
        for (service, of_service) in &self.open {
            let known = before.get(service);
            for warning in of_service.iter().filter(|warning| known.is_none_or(|known| !known.contains(*warning))) {
                new += 1;
                if new <= MAX_LOGGED {
                    warn!(%service, "{warning}");
                }
            }
            if known != Some(of_service) {
                self.events.report(self.origin, service, of_service.iter().cloned().collect());
            }
        }
        if new > MAX_LOGGED {
            warn!("{} more problems of this kind", new - MAX_LOGGED);
        }
    }
}
