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
    /// Cookies of entries without a socket at a first look, which may have been about to connect.
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

    /// Looks for entries without a socket if it is time, and frees the entries that have none at a second look either.
    /// The maps are pinned in `directory`.
    ///
    /// # Errors
    /// If maps or sockets cannot be read.
    pub(crate) fn free(&mut self, directory: &Path) -> Result<()> {
        let now = Instant::now();
        if self.next.is_none_or(|next| next > now) {
            return Ok(());
        }
        // Also after a failure.
        self.next = Some(now + CLOSED_SOCKETS);
        let found = sockets::closed(directory)?;
        // A second look only confirms the first: on a busy node each finds sockets that are about to connect.
        let suspects = std::mem::take(&mut self.suspects);
        if suspects.is_empty() && !found.is_empty() {
            self.suspects = found;
            self.next = Some(now + SECOND_LOOK);
            return Ok(());
        }
        let mut freed = 0;
        for cookie in found.intersection(&suspects) {
            self.freer.free(*cookie)?;
            freed += 1;
        }
        if freed > 0 {
            info!(
                sockets = freed,
                "TCP sockets without a connection, such as closed ones of NFS, count as open no longer"
            );
        }
        Ok(())
    }
}
