//! Stores, which perform ops: the trait, the in-memory store, and the text form of a dump.

mod memory;
mod text;

pub use memory::{Faults, MemoryStore};

use std::collections::{BTreeMap, BTreeSet};

use lb_common::{
    Addr, Backend, Frontend, FrontendKey, Maglev, MaglevKey, NodeAddr, RangeKey, ServiceEntry, Slot, SlotKey, capacity,
};

use crate::{
    op::{Op, Table},
    spec::PortKey,
};

/// The content of all maps, typed. `get` and the golden tests show its text form.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Dump {
    /// `FRONTENDS`
    pub frontends: BTreeMap<FrontendKey, Frontend>,
    /// `PORT_RANGES`, by blocks.
    pub port_ranges: BTreeMap<FrontendKey, Frontend>,
    /// `FRONTEND_BITS`: the words that are not 0.
    pub frontend_bits: BTreeMap<u32, u64>,
    /// `SERVICES`
    pub services: BTreeMap<u32, ServiceEntry>,
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

/// Capacity of each map, in entries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// `FRONTENDS`
    pub frontends: usize,
    /// `PORT_RANGES`
    pub port_ranges: usize,
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
    /// The default sizes.
    pub const DEFAULT: Self = Self {
        frontends: capacity::FRONTENDS,
        port_ranges: capacity::PORT_RANGES,
        services: capacity::SERVICES,
        slots: capacity::SLOTS,
        backends: capacity::BACKENDS,
        node_addrs: capacity::NODE_ADDRS,
        source_ranges: capacity::SOURCE_RANGES,
        maglev: capacity::MAGLEV,
    };

    /// Returns the capacity of a map.
    #[must_use]
    pub const fn of(&self, table: Table) -> usize {
        match table {
            Table::Frontends => self.frontends,
            Table::PortRanges => self.port_ranges,
            Table::FrontendBits => capacity::FRONTEND_BITS,
            Table::Services | Table::Names => self.services,
            Table::Slots => self.slots,
            Table::Backends => self.backends,
            Table::NodeAddrs => self.node_addrs,
            Table::SourceRanges => self.source_ranges,
            Table::Maglev => self.maglev,
        }
    }
}

/// The cause of a failed write.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The map is full.
    #[error("map {} is full", .0.map_name())]
    Full(Table),
    /// Any other error of the kernel.
    #[error("writing map {}: {error}", .table.map_name())]
    Io {
        /// The map.
        table: Table,
        /// The error.
        error: std::io::Error,
    },
}

/// A partly performed op list: exactly its first `done` ops took effect (invariant I3).
#[derive(Debug, thiserror::Error)]
#[error("{error} (after {done} writes)")]
pub struct Partial {
    /// Number of ops that took effect.
    pub done: usize,
    /// The error of the next op.
    pub error: StoreError,
}

/// The maps: BPF maps in the agent, ordered maps in tests and dry runs.
pub trait Store {
    /// Performs the ops in order; deleting an absent entry succeeds.
    ///
    /// # Errors
    /// [`Partial`] at the first op that fails; later ops are not performed.
    fn apply(&mut self, ops: &[Op]) -> Result<(), Partial>;

    /// Reads all maps.
    ///
    /// # Errors
    /// When a map cannot be read.
    fn dump(&self) -> anyhow::Result<Dump>;

    /// Returns the capacities of the maps.
    fn limits(&self) -> Limits;
}
