//! The store over BPF maps: runs of writes to one map become one system call.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use anyhow::{Context as _, Result};
use aya::{Pod, maps::MapData};
use lb_common::{
    Addr, Backend, Frontend, FrontendKey, List, Maglev, MaglevKey, Name, Names, NodeAddr, PortBlockKey, Proto,
    RangeKey, ServiceEntry, Slot, SlotKey,
};

use lb_common::Family;
use lb_core::{
    objects::Key,
    op::{Op, Table},
    spec::PortKey,
    store::{Dump, Limits, Partial, Store, StoreError},
};
use lb_kernel::bpf::{
    BatchError,
    typed::{PrefixTrie, TypedMap},
};

/// Writes of one system call: many enough to make its cost small, few enough to stay in the cache.
const BATCH: usize = 4096;
/// Writes of one system call for Maglev tables, which are large.
const TABLES: usize = 16;

/// Value of every entry of `SOURCE_RANGES`, which is a set.
const PRESENT: u32 = 1;

/// The pinned BPF maps that the agent writes.
pub struct BpfStore {
    frontends: TypedMap<FrontendKey, Frontend>,
    port_ranges: PrefixTrie<PortBlockKey, Frontend>,
    frontend_bits: TypedMap<u32, u64>,
    services: TypedMap<u32, ServiceEntry>,
    slots: TypedMap<SlotKey, Slot>,
    backends: TypedMap<u32, Backend>,
    names: TypedMap<u32, Names>,
    node_addrs: TypedMap<Addr, NodeAddr>,
    source_ranges: PrefixTrie<RangeKey, u32>,
    maglev: TypedMap<MaglevKey, Maglev>,
    limits: Limits,
}

impl BpfStore {
    /// Opens the pinned maps of `dir`.
    ///
    /// # Errors
    /// When a pin is missing or cannot be opened; its path is in the message.
    pub fn open(dir: &Path) -> Result<Self> {
        Self::from_maps(|name| {
            let path = dir.join(name);
            MapData::from_pin(&path).with_context(|| format!("opening the pinned map {}", path.display()))
        })
    }

    /// Builds the store from the maps that `map` returns by name.
    ///
    /// # Errors
    /// Errors of `map`, and maps whose size the kernel does not report.
    pub(crate) fn from_maps(mut map: impl FnMut(&str) -> Result<MapData>) -> Result<Self> {
        let frontends = typed(Table::Frontends, &mut map)?;
        let port_ranges = PrefixTrie::new(map(Table::PortRanges.map_name())?);
        let frontend_bits = typed(Table::FrontendBits, &mut map)?;
        let services = typed(Table::Services, &mut map)?;
        let slots = typed(Table::Slots, &mut map)?;
        let backends = typed(Table::Backends, &mut map)?;
        let names = typed(Table::Names, &mut map)?;
        let node_addrs = typed(Table::NodeAddrs, &mut map)?;
        let source_ranges = PrefixTrie::new(map(Table::SourceRanges.map_name())?);
        let maglev = typed(Table::Maglev, &mut map)?;
        let limits = Limits {
            frontends: frontends.size()?,
            port_ranges: port_ranges.size()?,
            services: services.size()?.min(names.size()?),
            slots: slots.size()?,
            backends: backends.size()?,
            node_addrs: node_addrs.size()?,
            source_ranges: source_ranges.size()?,
            maglev: maglev.size()?,
        };
        Ok(Self {
            frontends,
            port_ranges,
            frontend_bits,
            services,
            slots,
            backends,
            names,
            node_addrs,
            source_ranges,
            maglev,
            limits,
        })
    }

    /// Returns the name of a service port id.
    #[must_use]
    pub fn name(&self, id: u32) -> Option<PortKey> {
        self.names.get(&id).ok().flatten().as_ref().and_then(port_key)
    }

    /// Returns an entry of `SERVICES`.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn service(&self, id: u32) -> Result<Option<ServiceEntry>> {
        self.services.get(&id)
    }

    /// Returns an entry of `BACKENDS`.
    #[must_use]
    pub fn backend(&self, id: u32) -> Option<Backend> {
        self.backends.get(&id).ok().flatten()
    }

    /// Returns an entry of `FRONTENDS`.
    #[must_use]
    pub fn frontend(&self, key: &FrontendKey) -> Option<Frontend> {
        self.frontends.get(key).ok().flatten()
    }

    /// Reads some tables; the others stay empty in the dump.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub fn dump_of(&self, tables: &[Table]) -> Result<Dump> {
        macro_rules! read {
            ($map:expr, $table:ident) => {
                if tables.contains(&Table::$table) { $map.read()? } else { Vec::new() }
            };
        }
        let names = read!(self.names, Names);
        Ok(Dump {
            frontends: read!(self.frontends, Frontends).into_iter().collect(),
            port_ranges: read!(self.port_ranges, PortRanges)
                .into_iter()
                .filter_map(|(key, frontend)| Some((key.frontend()?, frontend)))
                .collect(),
            frontend_bits: read!(self.frontend_bits, FrontendBits).into_iter().filter(|(_, bits)| *bits != 0).collect(),
            services: read!(self.services, Services).into_iter().collect(),
            slots: read!(self.slots, Slots).into_iter().collect(),
            backends: read!(self.backends, Backends).into_iter().collect(),
            names: names.into_iter().filter_map(|(id, names)| Some((id, port_key(&names)?))).collect(),
            node_addrs: read!(self.node_addrs, NodeAddrs).into_iter().collect(),
            source_ranges: read!(self.source_ranges, SourceRanges).into_iter().map(|(key, _)| key).collect(),
            maglev: read!(self.maglev, Maglev).into_iter().map(|(key, table)| (key, Box::new(table))).collect(),
        })
    }

    /// Returns the slots of one service port.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub fn slots_of(&self, id: u32) -> Result<BTreeMap<SlotKey, Slot>> {
        let service = self.services.get(&id)?.unwrap_or_default();
        let keys = List::ALL
            .into_iter()
            .flat_map(|list| (0..service.len(list)).map(move |index| SlotKey::new(id, list, index)));
        keys.filter_map(|key| Some(self.slots.get(&key).transpose()?.map(|slot| (key, slot)))).collect()
    }

    /// Writes the leading ops of one kind; returns the number done and the error that ended them early.
    fn apply_run(&self, ops: &[Op]) -> (usize, Option<StoreError>) {
        let Some(first) = ops.first() else { return (0, None) };
        // Frontends and blocks of port ranges have the same ops.
        let other_table = ops.iter().position(|op| op.table() != first.table());
        let ops = &ops[..other_table.unwrap_or(ops.len()).min(BATCH)];
        macro_rules! run {
            (put $map:expr, $variant:ident, |$value:ident| $stored:expr) => {
                run!(put $map, $variant, |$value| $stored, BATCH)
            };
            (put $map:expr, $variant:ident, |$value:ident| $stored:expr, $most:expr) => {
                run!(entries $map, $variant, |key| *key, |$value| $stored, $most)
            };
            (entries $map:expr, $variant:ident, |$key:ident| $stored_key:expr, |$value:ident| $stored:expr,
             $most:expr) => {{
                let (mut keys, mut values) = (Vec::new(), Vec::new());
                for op in ops.iter().take($most) {
                    let Op::$variant($key, $value) = op else { break };
                    keys.push($stored_key);
                    values.push($stored);
                }
                (keys.len(), $map.put(&keys, &values))
            }};
            (delete $map:expr, $variant:ident) => {
                run!(delete $map, $variant, |key| *key)
            };
            (delete $map:expr, $variant:ident, |$key:ident| $stored:expr) => {{
                let ops = ops.iter().take(BATCH);
                let keys: Vec<_> =
                    ops.map_while(|op| if let Op::$variant($key) = op { Some($stored) } else { None }).collect();
                (keys.len(), $map.delete(&keys))
            }};
        }
        let (all, result) = match first {
            Op::PutName(..) => run!(put self.names, PutName, |key| names(key)),
            Op::PutBackend(..) => run!(put self.backends, PutBackend, |value| *value),
            Op::PutSlot(..) => run!(put self.slots, PutSlot, |value| *value),
            Op::PutService(..) => run!(put self.services, PutService, |value| *value),
            Op::PutFrontend(key, _) if key.block != 0 => {
                run!(entries self.port_ranges, PutFrontend, |key| PortBlockKey::of(key), |value| *value, BATCH)
            }
            Op::PutFrontend(..) => run!(put self.frontends, PutFrontend, |value| *value),
            Op::PutFrontendBits(..) => run!(put self.frontend_bits, PutFrontendBits, |value| *value),
            Op::PutNodeAddr(..) => run!(put self.node_addrs, PutNodeAddr, |value| *value),
            Op::PutRange(_) => {
                let keys: Vec<_> =
                    ops.iter().map_while(|op| if let Op::PutRange(key) = op { Some(*key) } else { None }).collect();
                (keys.len(), self.source_ranges.put(&keys, &vec![PRESENT; keys.len()]))
            }
            Op::PutMaglev(..) => run!(put self.maglev, PutMaglev, |value| **value, TABLES),
            Op::DeleteRange(_) => run!(delete self.source_ranges, DeleteRange),
            Op::DeleteMaglev(_) => run!(delete self.maglev, DeleteMaglev),
            Op::DeleteNodeAddr(_) => run!(delete self.node_addrs, DeleteNodeAddr),
            Op::DeleteFrontend(key) if key.block != 0 => {
                run!(delete self.port_ranges, DeleteFrontend, |key| PortBlockKey::of(key))
            }
            Op::DeleteFrontend(_) => run!(delete self.frontends, DeleteFrontend),
            Op::DeleteService(_) => run!(delete self.services, DeleteService),
            Op::DeleteSlot(_) => run!(delete self.slots, DeleteSlot),
            Op::DeleteBackend(_) => run!(delete self.backends, DeleteBackend),
            Op::DeleteName(_) => run!(delete self.names, DeleteName),
        };
        outcome(first.table(), all, result)
    }
}

/// Copies all entries of a table to another map.
///
/// # Errors
/// When `from` cannot be read or `to` cannot be written.
pub fn copy(table: Table, from: MapData, to: MapData) -> Result<()> {
    match table {
        Table::Frontends => copy_as::<FrontendKey, Frontend>(table, from, to),
        Table::FrontendBits => copy_as::<u32, u64>(table, from, to),
        Table::Services => copy_as::<u32, ServiceEntry>(table, from, to),
        Table::Slots => copy_as::<SlotKey, Slot>(table, from, to),
        Table::Backends => copy_as::<u32, Backend>(table, from, to),
        Table::Names => copy_as::<u32, Names>(table, from, to),
        Table::NodeAddrs => copy_as::<Addr, NodeAddr>(table, from, to),
        Table::PortRanges => copy_trie::<PortBlockKey, Frontend>(table, from, to),
        Table::SourceRanges => copy_trie::<RangeKey, u32>(table, from, to),
        Table::Maglev => copy_as::<MaglevKey, Maglev>(table, from, to),
    }
}

fn copy_as<K: Pod, V: Pod>(table: Table, from: MapData, to: MapData) -> Result<()> {
    let map = |map| TypedMap::<K, V>::new(table.map_name(), map);
    let (keys, values): (Vec<K>, Vec<V>) = map(from).read()?.into_iter().unzip();
    map(to).put(&keys, &values).with_context(|| copying(table))
}

fn copy_trie<K: Pod, V: Pod>(table: Table, from: MapData, to: MapData) -> Result<()> {
    let (keys, values): (Vec<K>, Vec<V>) = PrefixTrie::<K, V>::new(from).read()?.into_iter().unzip();
    PrefixTrie::new(to).put(&keys, &values).with_context(|| copying(table))
}

fn copying(table: Table) -> String {
    format!("copying {} to another map", table.map_name())
}

fn typed<K: Pod, V: Pod>(table: Table, map: &mut impl FnMut(&str) -> Result<MapData>) -> Result<TypedMap<K, V>> {
    Ok(TypedMap::new(table.map_name(), map(table.map_name())?))
}

impl Store for BpfStore {
    fn apply(&mut self, ops: &[Op]) -> Result<(), Partial> {
        let mut done = 0;
        while done < ops.len() {
            let (more, error) = self.apply_run(ops.get(done..).unwrap_or_default());
            done += more;
            if let Some(error) = error {
                return Err(Partial { done, error });
            }
        }
        Ok(())
    }

    fn dump(&self) -> Result<Dump> {
        self.dump_of(&Table::ALL)
    }

    fn limits(&self) -> Limits {
        self.limits
    }
}

/// Converts a name to its map value. `compile` refuses names that do not fit.
fn names(key: &PortKey) -> Names {
    let name = |text: &str| Name::new(text).expect("compile refuses names that do not fit");
    Names {
        namespace: name(key.service.namespace()),
        name: name(key.service.name()),
        port: name(&key.name),
        proto: key.proto as u8,
        family: key.family.number(),
        _pad: [0; 2],
    }
}

/// Converts a map value to a name; None for a value that no version of the agent writes.
fn port_key(names: &Names) -> Option<PortKey> {
    Some(PortKey {
        service: Key::new(&names.namespace.to_string(), &names.name.to_string()),
        name: Arc::from(names.port.to_string()),
        proto: Proto::from_number(names.proto.into())?,
        family: Family::from_number(names.family)?,
    })
}

/// Converts the result of one call: the number of writes done, and the error that ended it early.
fn outcome(table: Table, all: usize, result: Result<(), BatchError>) -> (usize, Option<StoreError>) {
    match result {
        Ok(()) => (all, None),
        // Hash maps report E2BIG, tries ENOSPC.
        Err(BatchError { done, error }) if matches!(error.raw_os_error(), Some(libc::E2BIG | libc::ENOSPC)) => {
            (done, Some(StoreError::Full(table)))
        }
        Err(BatchError { done, error }) => (done, Some(StoreError::Io { table, error })),
    }
}
