//! A store in memory, with faults on demand: for tests, and for dry runs over a dump.

use std::{collections::BTreeMap, io};

use lb_common::{
    Addr, Backend, Frontend, FrontendKey, MaglevKey, NodeAddr, ServiceEntry, Slot, SlotKey, Stateless, Tables,
};

use super::{Dump, Limits, Partial, Store, StoreError};
use crate::op::{Op, Table};

/// A store in memory.
#[derive(Clone, Debug)]
pub struct MemoryStore {
    /// The content.
    pub dump: Dump,
    /// The capacities.
    pub limits: Limits,
    /// The writes that fail.
    pub faults: Faults,
    /// Number of attempted writes, failed ones included.
    pub asked: u64,
}

/// The writes that fail.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Faults {
    /// No write.
    #[default]
    None,
    /// The write with this number, counted from 0.
    Nth(u64),
    /// Each write with this probability, by a sequence of pseudo-random numbers.
    Percent {
        /// Probability in percent.
        percent: u64,
        /// Seed of the sequence.
        seed: u64,
    },
}

impl Faults {
    fn hit(self, number: u64) -> bool {
        match self {
            Self::None => false,
            Self::Nth(n) => n == number,
            Self::Percent { percent, seed } => splitmix64(seed.wrapping_add(number)) % 100 < percent,
        }
    }
}

/// The last step of the splitmix64 generator.
const fn splitmix64(number: u64) -> u64 {
    let z = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new(Limits::DEFAULT)
    }
}

impl MemoryStore {
    /// Returns an empty store of that capacity.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self::holding(Dump::default(), limits)
    }

    /// Returns a store of that capacity with content.
    #[must_use]
    pub const fn holding(dump: Dump, limits: Limits) -> Self {
        Self { dump, limits, faults: Faults::None, asked: 0 }
    }

    fn write(&mut self, op: &Op) -> Result<(), StoreError> {
        let number = self.asked;
        self.asked += 1;
        let table = op.table();
        if self.faults.hit(number) {
            return Err(StoreError::Io { table, error: io::Error::other("a fault was asked for") });
        }
        if self.dump.grows_by(op) && self.dump.count(table) >= self.limits.of(table) {
            return Err(StoreError::Full(table));
        }
        self.dump.apply(op);
        Ok(())
    }
}

impl Store for MemoryStore {
    fn apply(&mut self, ops: &[Op]) -> Result<(), Partial> {
        for (done, op) in ops.iter().enumerate() {
            self.write(op).map_err(|error| Partial { done, error })?;
        }
        Ok(())
    }

    fn dump(&self) -> anyhow::Result<Dump> {
        Ok(self.dump.clone())
    }

    fn limits(&self) -> Limits {
        self.limits
    }
}

impl Dump {
    /// Performs an op.
    pub fn apply(&mut self, op: &Op) {
        match op {
            Op::PutName(id, key) => drop(self.names.insert(*id, (**key).clone())),
            Op::PutBackend(id, backend) => drop(self.backends.insert(*id, *backend)),
            Op::PutSlot(key, slot) => drop(self.slots.insert(*key, *slot)),
            Op::PutService(id, service) => drop(self.services.insert(*id, *service)),
            Op::PutFrontend(key, frontend) => drop(self.table_of(key).insert(*key, *frontend)),
            Op::PutFrontendBits(word, 0) => drop(self.frontend_bits.remove(word)),
            Op::PutFrontendBits(word, bits) => drop(self.frontend_bits.insert(*word, *bits)),
            Op::PutNodeAddr(addr, value) => drop(self.node_addrs.insert(*addr, *value)),
            Op::DeleteNodeAddr(addr) => drop(self.node_addrs.remove(addr)),
            Op::PutRange(key) => drop(self.source_ranges.insert(*key)),
            Op::DeleteRange(key) => drop(self.source_ranges.remove(key)),
            Op::PutMaglev(key, table) => drop(self.maglev.insert(*key, table.clone())),
            Op::DeleteMaglev(key) => drop(self.maglev.remove(key)),
            Op::DeleteFrontend(key) => drop(self.table_of(key).remove(key)),
            Op::DeleteService(id) => drop(self.services.remove(id)),
            Op::DeleteSlot(key) => drop(self.slots.remove(key)),
            Op::DeleteBackend(id) => drop(self.backends.remove(id)),
            Op::DeleteName(id) => drop(self.names.remove(id)),
        }
    }

    /// The map of a frontend.
    fn table_of(&mut self, key: &FrontendKey) -> &mut BTreeMap<FrontendKey, Frontend> {
        if key.block == 0 { &mut self.frontends } else { &mut self.port_ranges }
    }

    /// True if an op adds an entry.
    fn grows_by(&self, op: &Op) -> bool {
        match op {
            Op::PutName(id, _) => !self.names.contains_key(id),
            Op::PutBackend(id, _) => !self.backends.contains_key(id),
            Op::PutSlot(key, _) => !self.slots.contains_key(key),
            Op::PutService(id, _) => !self.services.contains_key(id),
            Op::PutFrontend(key, _) => {
                !(if key.block == 0 { &self.frontends } else { &self.port_ranges }).contains_key(key)
            }
            Op::PutNodeAddr(addr, _) => !self.node_addrs.contains_key(addr),
            Op::PutRange(key) => !self.source_ranges.contains(key),
            Op::PutMaglev(key, _) => !self.maglev.contains_key(key),
            // An array has all its entries from the start.
            Op::PutFrontendBits(..)
            | Op::DeleteFrontend(_)
            | Op::DeleteService(_)
            | Op::DeleteSlot(_)
            | Op::DeleteBackend(_)
            | Op::DeleteName(_)
            | Op::DeleteNodeAddr(_)
            | Op::DeleteRange(_)
            | Op::DeleteMaglev(_) => false,
        }
    }

    /// Returns the number of entries of a map.
    #[must_use]
    pub fn count(&self, table: Table) -> usize {
        match table {
            Table::Frontends => self.frontends.len(),
            Table::PortRanges => self.port_ranges.len(),
            Table::FrontendBits => self.frontend_bits.len(),
            Table::Services => self.services.len(),
            Table::Slots => self.slots.len(),
            Table::Backends => self.backends.len(),
            Table::Names => self.names.len(),
            Table::NodeAddrs => self.node_addrs.len(),
            Table::SourceRanges => self.source_ranges.len(),
            Table::Maglev => self.maglev.len(),
        }
    }
}

impl Stateless for Dump {}

#[cfg(test)]
impl Dump {
    /// Sets the frontend bits, for dumps written by hand.
    #[must_use]
    pub(crate) fn with_bits(mut self) -> Self {
        for (word, bit) in self.frontends.keys().chain(self.port_ranges.keys()).map(FrontendKey::bit) {
            *self.frontend_bits.entry(word).or_default() |= bit;
        }
        self
    }
}

impl Tables for Dump {
    fn may_have(&self, key: &FrontendKey) -> bool {
        let (word, bit) = key.bit();
        self.frontend_bits.get(&word).is_some_and(|bits| bits & bit != 0)
    }

    fn frontend(&self, key: &FrontendKey) -> Option<Frontend> {
        self.frontends.get(key).copied()
    }

    fn port_range(&self, dest: &FrontendKey) -> Option<Frontend> {
        let block = |free: u8| {
            let port = u16::try_from(u32::from(dest.port) >> free << free).ok()?;
            self.port_ranges.get(&FrontendKey { port, block: free + 1, ..*dest })
        };
        (0..=16).find_map(block).copied()
    }

    fn service(&self, id: u32) -> Option<ServiceEntry> {
        self.services.get(&id).copied()
    }

    fn slot(&self, key: &SlotKey) -> Option<Slot> {
        self.slots.get(key).copied()
    }

    fn backend(&self, id: u32) -> Option<Backend> {
        self.backends.get(&id).copied()
    }

    fn node_addr(&self, addr: &Addr) -> Option<NodeAddr> {
        self.node_addrs.get(addr).copied()
    }

    fn in_source_ranges(&self, service: u32, addr: &Addr) -> bool {
        self.source_ranges.iter().any(|range| range.range.service == service && range.has(addr))
    }

    fn maglev(&self, key: &MaglevKey, place: u32) -> Option<u32> {
        self.maglev.get(key)?.backends.get(place as usize).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_map_and_a_fault_end_the_list_where_they_strike() {
        let limits = Limits { services: 2, ..Limits::DEFAULT };
        let puts: Vec<_> = (1..=3).map(|id| Op::PutService(id, ServiceEntry::default())).collect();
        let mut store = MemoryStore::new(limits);
        let partial = store.apply(&puts).expect_err("the third does not fit");
        assert!(matches!(partial, Partial { done: 2, error: StoreError::Full(Table::Services) }));
        assert_eq!(store.dump.services.len(), 2);
        store.apply(&puts[..2]).expect("what is there can be written again");
        store.faults = Faults::Nth(store.asked + 1);
        let deletes = [Op::DeleteService(1), Op::DeleteService(2)];
        assert_eq!(store.apply(&deletes).expect_err("the second fails").done, 1);
        store.apply(&deletes).expect("deleting what is not there succeeds");
    }
}
