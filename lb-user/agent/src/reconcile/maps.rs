//! The store and the reconciler's copy of it: reading both, and writing both.

use std::time::Instant;

use anyhow::{Context as _, Result};

use super::{MapChanges, PassReport};
use lb_core::{
    ids::{HighestIds, Ids},
    op::Op,
    shadow::Shadow,
    store::{Partial, Store},
};

/// Oddities found in the maps that are logged one by one.
const LOGGED_ODDITIES: usize = 10;

/// The store and a copy of its content.
pub(super) struct Maps<S> {
    pub(super) store: S,
    /// Copy of the store's content; none until [`Maps::read`].
    pub(super) shadow: Option<Shadow>,
    /// Id allocators of service ports and backends, kept when the copy is dropped.
    ids: Option<(Ids, Ids)>,
    /// Highest ids of a service port and a backend that sockets from before this agent may still name.
    pub(super) used_ids: HighestIds,
}

impl<S: Store> Maps<S> {
    pub(super) fn new(store: S) -> Self {
        Self { store, shadow: None, ids: None, used_ids: HighestIds::default() }
    }

    /// Reads the store, unless there is a copy of it.
    pub(super) fn read(&mut self) -> Result<()> {
        if self.shadow.is_some() {
            return Ok(());
        }
        let dump = self.store.dump().context("reading the maps")?;
        let (mut shadow, oddities) = Shadow::from_dump(&dump);
        match self.ids {
            Some(ids) => shadow.continue_ids(ids),
            None => shadow.begin_beyond(self.used_ids),
        }
        for oddity in oddities.iter().take(LOGGED_ODDITIES) {
            tracing::info!(oddity, "found in the maps, will be mended");
        }
        if oddities.len() > LOGGED_ODDITIES {
            tracing::info!(more = oddities.len() - LOGGED_ODDITIES, "found in the maps, will be mended");
        }
        self.shadow = Some(shadow);
        Ok(())
    }

    /// Drops the copy, so that the next pass reads the store. Ids continue where they were (invariant I7).
    pub(super) fn forget(&mut self) {
        self.ids = self.shadow.take().map(|shadow| shadow.ids()).or(self.ids);
    }

    /// Writes `ops` to the store, and the ops that took effect to the copy (invariant I3).
    pub(super) fn write(&mut self, ops: &[Op], report: &mut PassReport) -> Result<(), Partial> {
        let start = Instant::now();
        let result = self.store.apply(ops);
        let written = Instant::now();
        let done = result.as_ref().map_or_else(|partial| partial.done, |()| ops.len());
        let performed = ops.get(..done).unwrap_or(ops);
        let shadow = self.shadow.get_or_insert_default();
        report.changes.append(MapChanges::of(performed, shadow));
        shadow.apply_all(performed);
        report.writes += done;
        report.durations.write += written - start;
        report.durations.plan += written.elapsed();
        result
    }
}
