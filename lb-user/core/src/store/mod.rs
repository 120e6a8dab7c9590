//! Where ops are performed: the BPF maps, or memory.

mod memory;
mod text;

pub use memory::{Faults, MemoryStore};

use std::collections::{BTreeMap, BTreeSet};

use lb_common::{
    Addr, Backend, Frontend, FrontendKey, Maglev, MaglevKey, NodeAddr, RangeKey, Service, Slot, SlotKey, capacity,
};

use crate::{
    op::{Op, Table},
    spec::PortKey,
};

/// Everything that the maps hold, typed. Its text form is what `get` and the goldens show.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Dump {
    /// `FRONTENDS`
    pub frontends: BTreeMap<FrontendKey, Frontend>,
    /// `SERVICES`
    pub services: BTreeMap<u32, Service>,
    /// `SLOTS`
    pub slots: BTreeMap<SlotKey, Slot>,
    /// `BACKENDS`
    pub backends: BTreeMap<u32, Backend>,
    /// `NAMES`
    pub names: BTreeMap<u32, PortKey>,
    /// `NODE_ADDRS`
    pub node_addrs: BTreeMap<Addr, NodeAddr>,
    /// `SOURCE_RANGES`
    pub source_ranges: BTreeSet<RangeKey>,
    /// `MAGLEV`
    pub maglev: BTreeMap<MaglevKey, Box<Maglev>>,
}

/// How many entries each map may have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// `FRONTENDS`
    pub frontends: usize,
    /// `SERVICES` and `NAMES`
    pub services: usize,
    /// `SLOTS`
    pub slots: usize,
    /// `BACKENDS`
    pub backends: usize,
    /// `NODE_ADDRS`
    pub node_addrs: usize,
    /// `SOURCE_RANGES`
    pub source_ranges: usize,
    /// `MAGLEV`
    pub maglev: usize,
}

impl Limits {
    /// The sizes that the maps have unless a flag says otherwise.
    pub const DEFAULT: Self = Self {
        frontends: capacity::FRONTENDS,
        services: capacity::SERVICES,
        slots: capacity::SLOTS,
        backends: capacity::BACKENDS,
        node_addrs: capacity::NODE_ADDRS,
        source_ranges: capacity::SOURCE_RANGES,
        maglev: capacity::MAGLEV,
    };

    /// How many entries a map may have.
    #[must_use]
    pub const fn of(&self, table: Table) -> usize {
        match table {
            Table::Frontends => self.frontends,
            Table::Services | Table::Names => self.services,
            Table::Slots => self.slots,
            Table::Backends => self.backends,
            Table::NodeAddrs => self.node_addrs,
            Table::SourceRanges => self.source_ranges,
            Table::Maglev => self.maglev,
        }
    }
}

/// Why a write failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The map has no room.
    #[error("map {} is full", .0.map_name())]
    Full(Table),
    /// Anything else the kernel said.
    #[error("writing map {}: {error}", .table.map_name())]
    Io {
        /// The map.
        table: Table,
        /// What the kernel said.
        error: std::io::Error,
    },
}

/// An op list that was performed only in part: exactly its first `done` ops took effect (invariant I3).
#[derive(Debug, thiserror::Error)]
#[error("{error} (after {done} writes)")]
pub struct Partial {
    /// How many ops took effect.
    pub done: usize,
    /// Why the next one did not.
    pub error: StoreError,
}

/// The maps: BPF maps in the agent, ordered maps in the tests and in a dry run.
pub trait Store {
    /// Performs the ops in order; deleting what is not there succeeds.
    ///
    /// # Errors
    /// The first op that failed ends the list.
    fn apply(&mut self, ops: &[Op]) -> Result<(), Partial>;

    /// Reads everything back.
    ///
    /// # Errors
    /// When a map cannot be read.
    fn dump(&self) -> anyhow::Result<Dump>;

    /// Makes right what readers find entries by, if they find them by anything else. `dump` is what was just read.
    ///
    /// # Errors
    /// When a map cannot be written.
    fn index(&mut self, _dump: &Dump) -> anyhow::Result<()> {
        Ok(())
    }

    /// The sizes of the maps.
    fn limits(&self) -> Limits;
}
