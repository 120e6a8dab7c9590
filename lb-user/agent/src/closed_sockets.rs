//! Looks for the entries of TCP sockets whose close no hook has told, since the kernel itself had opened them.

use std::{
    collections::BTreeSet,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Result;
use lb_dataplane::sockets::{self, SocketFreer};
use tracing::info;

/// Interval of looks for entries of closed sockets of the kernel: they are few, and live long.
const CLOSED_SOCKETS: Duration = Duration::from_secs(300);

/// Delay of the first look after the first pass: a look reads 4 MiB, which can wait until the start is over.
const FIRST_LOOK: Duration = Duration::from_secs(15);

/// Delay of the second look for the same entries: a socket that connects has an entry before it is in the kernel's
/// list.
const SECOND_LOOK: Duration = Duration::from_secs(1);

/// Entries of TCP sockets whose close no hook has told, since the kernel itself had opened them.
pub(crate) struct ClosedSockets {
    freer: SocketFreer,
    /// Cookies of entries without a socket at the last look, which may have been about to connect.
    suspects: BTreeSet<u64>,
    /// Time of the next look; none before [`Self::begin`].
    next: Option<Instant>,
}

impl ClosedSockets {
    /// Begins without a look.
    pub(crate) const fn new(freer: SocketFreer) -> Self {
        Self { freer, suspects: BTreeSet::new(), next: None }
    }

    /// Starts the looks.
    pub(crate) fn begin(&mut self) {
        self.next = Some(Instant::now() + FIRST_LOOK);
    }

    /// Returns the time of the next look.
    pub(crate) const fn next(&self) -> Option<Instant> {
        self.next
    }

    /// Looks for entries without a socket if it is time, and frees the entries that had none at the last look either.
    /// The maps are pinned in `directory`.
    ///
    /// # Errors
    /// If maps or sockets cannot be read.
    pub(crate) fn look(&mut self, directory: &Path) -> Result<()> {
        let now = Instant::now();
        if self.next.is_none_or(|next| next > now) {
            return Ok(());
        }
        // Also after a failure.
        self.next = Some(now + CLOSED_SOCKETS);
        let found = sockets::closed(directory)?;
        let closed: BTreeSet<u64> = found.intersection(&self.suspects).copied().collect();
        self.suspects = &found - &closed;
        if !self.suspects.is_empty() {
            self.next = Some(now + SECOND_LOOK);
        }
        for cookie in &closed {
            self.freer.free(*cookie)?;
        }
        if !closed.is_empty() {
            info!(sockets = closed.len(), "TCP sockets of the kernel have closed, and count as open no longer");
        }
        Ok(())
    }
}
