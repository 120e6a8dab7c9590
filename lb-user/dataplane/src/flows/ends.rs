//! `FLOW_ENDS`: marks of the node's ends of flows, by which programs know packets of no flow. Programs and agent set
//! the mark of an entry of `FLOWS` before they add it. Each start declares the marks incomplete, in the maps of all
//! versions of the layout: programs of another version are about to share `FLOWS`, or have served before, and set no
//! marks, or in a map of their own. The first round of garbage collection adds what is missing.

use std::path::Path;

use anyhow::{Context as _, Result};
use lb_common::{FlowEnds as Places, FlowKey};
use lb_kernel::bpf::typed::TypedMap;

/// The name of the map.
const NAME: &str = "FLOW_ENDS";

/// The pinned map `FLOW_ENDS`.
pub(crate) struct FlowEnds(TypedMap<u32, u64>);

impl FlowEnds {
    /// Opens the map pinned in `directory`.
    pub(crate) fn open(directory: &Path) -> Result<Self> {
        TypedMap::open(directory, NAME).map(Self)
    }

    /// Has the programs look up each packet in `FLOWS`, if the map is pinned in `directory`.
    pub(crate) fn declare_incomplete(directory: &Path) -> Result<()> {
        if directory.join(NAME).exists() { Self::open(directory)?.put(&[Places::ARE_COMPLETE], 0) } else { Ok(()) }
    }

    /// Sets the marks of keys of `FLOWS`.
    pub(crate) fn mark<'a>(&self, keys: impl IntoIterator<Item = &'a FlowKey>) -> Result<()> {
        self.put(&keys.into_iter().map(FlowKey::end).collect::<Vec<_>>(), 1)
    }

    /// Has the programs believe the marks: all entries have theirs, and all programs set them.
    pub(crate) fn complete(&self) -> Result<()> {
        self.put(&[Places::ARE_COMPLETE], 1)
    }

    fn put(&self, places: &[u32], value: u64) -> Result<()> {
        self.0.put(places, &vec![value; places.len()]).context("writing FLOW_ENDS")
    }
}
