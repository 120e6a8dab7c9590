//! The store over BPF maps: runs of writes to one map become one system call.

use std::{collections::BTreeMap, io, marker::PhantomData, os::fd::AsFd as _, path::Path, sync::Arc};

use anyhow::{Context as _, Result};
use aya::{Pod, maps::MapData};
use lb_common::{Addr, Backend, Frontend, FrontendKey, List, Name, Names, NodeAddr, Proto, Service, Slot, SlotKey};

use crate::{
    datapath::sys::{self, Stopped},
    objects::Key,
    op::{Op, Table},
    spec::{Family, PortKey},
    store::{Dump, Limits, Partial, Store, StoreError},
};

/// Writes of one system call: many enough to make its cost small, few enough to stay in the cache.
const BATCH: usize = 4096;

/// The maps that the agent writes.
pub struct BpfStore {
    frontends: TypedMap<FrontendKey, Frontend>,
    services: TypedMap<u32, Service>,
    slots: TypedMap<SlotKey, Slot>,
    backends: TypedMap<u32, Backend>,
    names: TypedMap<u32, Names>,
    node_addrs: TypedMap<Addr, NodeAddr>,
}

impl BpfStore {
    /// Opens the pinned maps of `dir`.
    ///
    /// # Errors
    /// When a pin is missing or cannot be opened; its path is in the message.
    pub fn open(dir: &Path) -> Result<Self> {
        Self::from_maps(|table| {
            let path = dir.join(table.map_name());
            MapData::from_pin(&path).with_context(|| format!("opening the pinned map {}", path.display()))
        })
    }

    /// Takes the maps from wherever `map` finds them.
    ///
    /// # Errors
    /// What `map` says, or when a map does not tell its size.
    pub fn from_maps(mut map: impl FnMut(Table) -> Result<MapData>) -> Result<Self> {
        Ok(Self {
            frontends: TypedMap::new(Table::Frontends, map(Table::Frontends)?)?,
            services: TypedMap::new(Table::Services, map(Table::Services)?)?,
            slots: TypedMap::new(Table::Slots, map(Table::Slots)?)?,
            backends: TypedMap::new(Table::Backends, map(Table::Backends)?)?,
            names: TypedMap::new(Table::Names, map(Table::Names)?)?,
            node_addrs: TypedMap::new(Table::NodeAddrs, map(Table::NodeAddrs)?)?,
        })
    }

    /// Whose service port an id is.
    #[must_use]
    pub fn name(&self, id: u32) -> Option<PortKey> {
        sys::lookup(self.names.map.fd().as_fd(), &id).ok().flatten().as_ref().and_then(port_key)
    }

    /// An entry of `SERVICES`.
    #[must_use]
    pub fn service(&self, id: u32) -> Option<Service> {
        sys::lookup(self.services.map.fd().as_fd(), &id).ok().flatten()
    }

    /// An entry of `BACKENDS`.
    #[must_use]
    pub fn backend(&self, id: u32) -> Option<Backend> {
        sys::lookup(self.backends.map.fd().as_fd(), &id).ok().flatten()
    }

    /// An entry of `FRONTENDS`.
    #[must_use]
    pub fn frontend(&self, key: &FrontendKey) -> Option<Frontend> {
        sys::lookup(self.frontends.map.fd().as_fd(), key).ok().flatten()
    }

    /// Reads some of the maps; of the others the dump has nothing.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub fn dump_of(&self, tables: &[Table]) -> Result<Dump> {
        fn read<K: Pod + Ord, V: Pod>(map: &TypedMap<K, V>, tables: &[Table]) -> Result<BTreeMap<K, V>> {
            Ok(if tables.contains(&map.table) { map.read()?.into_iter().collect() } else { BTreeMap::new() })
        }
        let names = read(&self.names, tables)?;
        Ok(Dump {
            frontends: read(&self.frontends, tables)?,
            services: read(&self.services, tables)?,
            slots: read(&self.slots, tables)?,
            backends: read(&self.backends, tables)?,
            names: names.into_iter().filter_map(|(id, names)| Some((id, port_key(&names)?))).collect(),
            node_addrs: read(&self.node_addrs, tables)?,
        })
    }

    /// The slots of one service port.
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

    /// Writes the first ops that are of one kind; how many were done, and what ended them early.
    fn apply_run(&self, ops: &[Op]) -> (usize, Option<StoreError>) {
        macro_rules! run {
            (put $map:expr, $variant:ident, |$value:ident| $stored:expr) => {{
                let (mut keys, mut values) = (Vec::new(), Vec::new());
                for op in ops.iter().take(BATCH) {
                    let Op::$variant(key, $value) = op else { break };
                    keys.push(*key);
                    values.push($stored);
                }
                $map.put(&keys, &values)
            }};
            (delete $map:expr, $variant:ident) => {{
                let ops = ops.iter().take(BATCH);
                let keys: Vec<_> =
                    ops.map_while(|op| if let Op::$variant(key) = op { Some(*key) } else { None }).collect();
                $map.delete(&keys)
            }};
        }
        match ops.first() {
            None => (0, None),
            Some(Op::PutName(..)) => run!(put self.names, PutName, |key| names(key)),
            Some(Op::PutBackend(..)) => run!(put self.backends, PutBackend, |value| *value),
            Some(Op::PutSlot(..)) => run!(put self.slots, PutSlot, |value| *value),
            Some(Op::PutService(..)) => run!(put self.services, PutService, |value| *value),
            Some(Op::PutFrontend(..)) => run!(put self.frontends, PutFrontend, |value| *value),
            Some(Op::PutNodeAddr(..)) => run!(put self.node_addrs, PutNodeAddr, |value| *value),
            Some(Op::DeleteNodeAddr(_)) => run!(delete self.node_addrs, DeleteNodeAddr),
            Some(Op::DeleteFrontend(_)) => run!(delete self.frontends, DeleteFrontend),
            Some(Op::DeleteService(_)) => run!(delete self.services, DeleteService),
            Some(Op::DeleteSlot(_)) => run!(delete self.slots, DeleteSlot),
            Some(Op::DeleteBackend(_)) => run!(delete self.backends, DeleteBackend),
            Some(Op::DeleteName(_)) => run!(delete self.names, DeleteName),
        }
    }
}

/// Copies all entries of a table's map to another one.
///
/// # Errors
/// When one cannot be read or the other not be written.
pub fn copy(table: Table, from: MapData, to: MapData) -> Result<()> {
    match table {
        Table::Frontends => copy_as::<FrontendKey, Frontend>(table, from, to),
        Table::Services => copy_as::<u32, Service>(table, from, to),
        Table::Slots => copy_as::<SlotKey, Slot>(table, from, to),
        Table::Backends => copy_as::<u32, Backend>(table, from, to),
        Table::Names => copy_as::<u32, Names>(table, from, to),
        Table::NodeAddrs => copy_as::<Addr, NodeAddr>(table, from, to),
    }
}

fn copy_as<K: Pod, V: Pod>(table: Table, from: MapData, to: MapData) -> Result<()> {
    let (keys, values): (Vec<K>, Vec<V>) = TypedMap::<K, V>::new(table, from)?.read()?.into_iter().unzip();
    let (_, error) = TypedMap::<K, V>::new(table, to)?.put(&keys, &values);
    error.map_or(Ok(()), |error| Err(error).context("copying to another map"))
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
        Limits {
            frontends: self.frontends.size,
            services: self.services.size.min(self.names.size),
            slots: self.slots.size,
            backends: self.backends.size,
            node_addrs: self.node_addrs.size,
        }
    }
}

/// The name as it stands in the map. The compiler lets no longer one through.
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

/// The other way round; none for what no version of the agent wrote.
fn port_key(names: &Names) -> Option<PortKey> {
    Some(PortKey {
        service: Key::new(&names.namespace.to_string(), &names.name.to_string()),
        name: Arc::from(names.port.to_string()),
        proto: Proto::from_number(names.proto.into())?,
        family: Family::from_number(names.family)?,
    })
}

/// A hash map with its types and its size.
struct TypedMap<K, V> {
    table: Table,
    map: MapData,
    size: usize,
    types: PhantomData<(K, V)>,
}

impl<K: Pod, V: Pod> TypedMap<K, V> {
    fn new(table: Table, map: MapData) -> Result<Self> {
        let size = map.info().with_context(|| format!("asking for the size of {}", table.map_name()))?.max_entries();
        Ok(Self { table, map, size: usize::try_from(size)?, types: PhantomData })
    }

    fn put(&self, keys: &[K], values: &[V]) -> (usize, Option<StoreError>) {
        match sys::update_batch(self.map.fd().as_fd(), keys, values) {
            Ok(()) => (keys.len(), None),
            Err(Stopped { done, error }) => (done, Some(self.error(error))),
        }
    }

    fn delete(&self, mut keys: &[K]) -> (usize, Option<StoreError>) {
        let all = keys.len();
        loop {
            match sys::delete_batch(self.map.fd().as_fd(), keys) {
                Ok(()) => return (all, None),
                Err(Stopped { done, error }) => {
                    keys = keys.get(done..).unwrap_or_default();
                    if error.raw_os_error() != Some(libc::ENOENT) {
                        return (all - keys.len(), Some(self.error(error)));
                    }
                    // What is not there is deleted.
                    keys = keys.get(1..).unwrap_or_default();
                }
            }
        }
    }

    fn read(&self) -> Result<Vec<(K, V)>> {
        sys::read_all(self.map.fd().as_fd()).with_context(|| format!("reading the map {}", self.table.map_name()))
    }

    fn get(&self, key: &K) -> Result<Option<V>> {
        sys::lookup(self.map.fd().as_fd(), key).with_context(|| format!("reading the map {}", self.table.map_name()))
    }

    fn error(&self, error: io::Error) -> StoreError {
        if error.raw_os_error() == Some(libc::E2BIG) {
            StoreError::Full(self.table)
        } else {
            StoreError::Io { table: self.table, error }
        }
    }
}
