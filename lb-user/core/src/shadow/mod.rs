//! The shadow: the agent's copy of the maps, indexed for the planner and updated op by op. It represents half-done
//! states too; the planner mends them.

mod adopt;

use std::{
    collections::{BTreeMap, BTreeSet, hash_map::Entry},
    num::NonZeroU32,
};

use foldhash::{HashMap, HashSet};
use lb_common::{
    Addr, Backend, Frontend, FrontendKey, List, Maglev, MaglevKey, NodeAddr, RangeKey, ServiceEntry, Slot, SlotKey,
};

use smallvec::{SmallVec, smallvec};

use crate::{
    ids::{HighestIds, Ids},
    objects::Key,
    op::{Op, Table},
    spec::PortKey,
};
use lb_common::AddrPort;

/// The agent's copy of the maps.
#[derive(Default)]
pub struct Shadow {
    /// Every service port id that any map mentions.
    ports: HashMap<u32, Port>,
    by_service: HashMap<Key, SmallVec<[u32; 1]>>,
    /// Frontends and blocks of port ranges.
    frontends: HashMap<FrontendKey, Frontend>,
    /// Number of blocks of port ranges.
    blocks: usize,
    /// The words of `FRONTEND_BITS` that are not 0.
    frontend_bits: HashMap<u32, u64>,
    /// Number of frontends that need each bit; bits without one are absent.
    bit_uses: HashMap<(u32, u64), usize>,
    backends: HashMap<u32, Known>,
    /// Backends that no slot of their service port names.
    loose: HashSet<u32>,
    /// Slots outside every list: of an unknown list, far beyond the end, or with backend 0.
    strays: HashMap<SlotKey, Slot>,
    /// Backend ids named by a slot but absent from `BACKENDS`. They stay reserved.
    dangling: HashSet<u32>,
    node_addrs: BTreeMap<Addr, NodeAddr>,
    slots: usize,
    services: usize,
    names: usize,
    ranges: usize,
    tables: usize,
    port_ids: Ids,
    backend_ids: Ids,
}

/// A service port.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Port {
    /// Entry of `NAMES`.
    pub key: Option<PortKey>,
    /// Entry of `SERVICES`.
    pub service: Option<ServiceEntry>,
    /// Frontends that point here, unordered.
    pub frontends: SmallVec<[FrontendKey; 1]>,
    lists: [Slots; 2],
    /// Rarely used parts.
    extras: Option<Box<Extras>>,
}

/// The parts that few service ports have.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
struct Extras {
    /// Entries of `SOURCE_RANGES`.
    ranges: BTreeSet<RangeKey>,
    /// Entries of `MAGLEV`, by list number.
    tables: BTreeMap<u32, Box<Maglev>>,
}

/// A backend list by index; None is a missing slot. The last slot exists.
type Slots = Vec<Option<FilledSlot>>;

/// A slot that names a backend.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FilledSlot {
    /// Address.
    pub addr: Addr,
    /// Host order.
    pub port: u16,
    /// Weight of the backend.
    pub weight: u16,
    /// Id of the backend.
    pub backend: NonZeroU32,
}

impl FilledSlot {
    /// Returns the map value.
    #[must_use]
    pub const fn slot(&self) -> Slot {
        Slot { addr: self.addr, port: self.port, weight: self.weight, backend: self.backend.get() }
    }

    /// Returns address and port.
    #[must_use]
    pub const fn target(&self) -> AddrPort {
        AddrPort { addr: self.addr, port: self.port }
    }
}

/// A backend, and the number of slots of its service port that name it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Known {
    backend: Backend,
    slots: u32,
}

impl Port {
    /// Returns the slots of a list.
    #[must_use]
    pub fn list(&self, list: List) -> &[Option<FilledSlot>] {
        &self.lists[list as usize]
    }

    /// Returns the source ranges.
    pub fn ranges(&self) -> impl Iterator<Item = &RangeKey> {
        self.extras.iter().flat_map(|extras| &extras.ranges)
    }

    /// Returns the Maglev tables by list number; unknown list numbers are possible.
    pub fn tables(&self) -> impl Iterator<Item = (u32, &Maglev)> {
        self.extras.iter().flat_map(|extras| &extras.tables).map(|(list, table)| (*list, &**table))
    }

    /// True if no map mentions this service port.
    fn is_gone(&self) -> bool {
        self.key.is_none()
            && self.service.is_none()
            && self.frontends.is_empty()
            && self.lists.iter().all(Vec::is_empty)
            && self.extras.is_none()
    }
}

impl Shadow {
    /// Returns a service port by id.
    #[must_use]
    pub fn port(&self, id: u32) -> Option<&Port> {
        self.ports.get(&id)
    }

    /// Returns all service ports with their ids, unordered.
    pub fn ports(&self) -> impl Iterator<Item = (u32, &Port)> {
        self.ports.iter().map(|(&id, port)| (id, port))
    }

    /// Returns the service port ids of a Service in ascending order; two ids may have one name.
    #[must_use]
    pub fn ports_of(&self, service: &Key) -> &[u32] {
        self.by_service.get(service).map_or(&[], |ids| ids)
    }

    /// Returns the service port with this name, and its id; the first of several.
    #[must_use]
    pub(crate) fn port_named(&self, key: &PortKey) -> Option<(u32, &Port)> {
        let ports = self.ports_of(&key.service).iter().filter_map(|&id| Some((id, self.port(id)?)));
        ports.filter(|(_, port)| port.key.as_ref() == Some(key)).find(|(_, port)| port.service.is_some())
    }

    /// Returns all Services that have a service port, unordered.
    pub fn services(&self) -> impl Iterator<Item = &Key> {
        self.by_service.keys()
    }

    /// Returns a frontend, or a block of a port range.
    #[must_use]
    pub fn frontend(&self, key: &FrontendKey) -> Option<Frontend> {
        self.frontends.get(key).copied()
    }

    /// Returns a word of `FRONTEND_BITS`.
    #[must_use]
    pub fn frontend_bits(&self, word: u32) -> u64 {
        self.frontend_bits.get(&word).copied().unwrap_or(0)
    }

    /// Returns the bits that are set, unordered.
    pub(crate) fn set_bits(&self) -> impl Iterator<Item = (u32, u64)> {
        let bits = |(&word, &bits): (&u32, &u64)| (0..u64::BITS).map(move |at| (word, bits & 1 << at));
        self.frontend_bits.iter().flat_map(bits).filter(|(_, bit)| *bit != 0)
    }

    /// Returns the bits that frontends need, each with the number of these frontends, unordered.
    pub(crate) fn used_bits(&self) -> impl Iterator<Item = ((u32, u64), usize)> {
        self.bit_uses.iter().map(|(bit, uses)| (*bit, *uses))
    }

    /// Returns the number of frontends that need a bit.
    #[must_use]
    pub(crate) fn uses_of(&self, bit: (u32, u64)) -> usize {
        self.bit_uses.get(&bit).copied().unwrap_or(0)
    }

    /// Returns a backend.
    #[must_use]
    pub fn backend(&self, id: u32) -> Option<Backend> {
        self.backends.get(&id).map(|known| known.backend)
    }

    /// Returns the backends that no slot of their service port names, unordered.
    pub(crate) fn loose_backends(&self) -> impl Iterator<Item = (u32, Backend)> {
        self.loose.iter().filter_map(|&id| Some((id, self.backend(id)?)))
    }

    /// Returns the node addresses that serve NodePorts.
    #[must_use]
    pub fn node_addrs(&self) -> &BTreeMap<Addr, NodeAddr> {
        &self.node_addrs
    }

    /// Returns the slots outside every list, unordered.
    pub(crate) fn stray_slots(&self) -> impl Iterator<Item = SlotKey> {
        self.strays.keys().copied()
    }

    /// Returns the number of entries of a map.
    #[must_use]
    pub fn count(&self, table: Table) -> usize {
        match table {
            Table::Frontends => self.frontends.len() - self.blocks,
            Table::PortRanges => self.blocks,
            Table::FrontendBits => self.frontend_bits.len(),
            Table::Services => self.services,
            Table::Slots => self.slots,
            Table::Backends => self.backends.len(),
            Table::Names => self.names,
            Table::NodeAddrs => self.node_addrs.len(),
            Table::SourceRanges => self.ranges,
            Table::Maglev => self.tables,
        }
    }

    /// Returns the allocators of service port ids and backend ids.
    #[must_use]
    pub const fn ids(&self) -> (Ids, Ids) {
        (self.port_ids, self.backend_ids)
    }

    /// Continues the allocators of another shadow of the same maps, so that freed ids do not return at once.
    pub const fn continue_ids(&mut self, (port_ids, backend_ids): (Ids, Ids)) {
        self.port_ids = port_ids;
        self.backend_ids = backend_ids;
    }

    /// Starts new ids beyond these, which sockets may still name.
    pub fn begin_beyond(&mut self, HighestIds { service, backend }: HighestIds) {
        self.port_ids.beyond_all(service);
        self.backend_ids.beyond_all(backend);
    }

    /// True if any map mentions this service port id.
    #[must_use]
    pub(crate) fn port_in_use(&self, id: u32) -> bool {
        self.ports.contains_key(&id)
    }

    /// True if any map mentions this backend id.
    #[must_use]
    pub(crate) fn backend_in_use(&self, id: u32) -> bool {
        self.backends.contains_key(&id) || self.dangling.contains(&id)
    }

    /// Applies ops that succeeded on the maps.
    pub fn apply_all(&mut self, ops: &[Op]) {
        let count = |is: fn(&Op) -> bool| ops.iter().filter(|op| is(op)).count();
        let names = count(|op| matches!(op, Op::PutName(..)));
        self.ports.reserve(names);
        self.by_service.reserve(names);
        self.frontends.reserve(count(|op| matches!(op, Op::PutFrontend(..))));
        self.backends.reserve(count(|op| matches!(op, Op::PutBackend(..))));
        ops.iter().for_each(|op| self.apply(op));
        if self.loose.is_empty() {
            self.loose.shrink_to_fit();
        }
    }

    /// Applies an op that succeeded on the maps.
    pub fn apply(&mut self, op: &Op) {
        match op {
            Op::PutName(id, key) => self.put_name(*id, key),
            Op::PutBackend(id, backend) => self.put_backend(*id, *backend),
            Op::PutSlot(key, slot) => self.put_slot(key, slot),
            Op::PutService(id, service) => {
                if self.port_mut(*id).service.replace(*service).is_none() {
                    self.services += 1;
                }
            }
            Op::PutFrontend(key, frontend) => self.put_frontend(key, *frontend),
            Op::PutFrontendBits(word, bits) => self.put_frontend_bits(*word, *bits),
            Op::PutNodeAddr(addr, value) => drop(self.node_addrs.insert(*addr, *value)),
            Op::DeleteNodeAddr(addr) => drop(self.node_addrs.remove(addr)),
            Op::PutRange(key) => self.ranges += usize::from(self.extras(key.range.service).ranges.insert(*key)),
            Op::PutMaglev(MaglevKey { service, list }, table) => {
                self.tables += usize::from(self.extras(*service).tables.insert(*list, table.clone()).is_none());
            }
            Op::DeleteRange(key) => {
                let removed = self.without(key.range.service, |extras| extras.ranges.remove(key));
                self.ranges -= usize::from(removed);
            }
            Op::DeleteMaglev(MaglevKey { service, list }) => {
                let removed = self.without(*service, |extras| extras.tables.remove(list).is_some());
                self.tables -= usize::from(removed);
            }
            Op::DeleteFrontend(key) => {
                if let Some(old) = self.frontends.remove(key) {
                    self.blocks -= usize::from(key.block != 0);
                    self.release_bit(key.bit());
                    self.forget_frontend(old.service, key);
                }
            }
            Op::DeleteService(id) => {
                if self.ports.get_mut(id).and_then(|port| port.service.take()).is_some() {
                    self.services -= 1;
                }
                self.drop_if_gone(*id);
            }
            Op::DeleteSlot(key) => {
                self.delete_slot(key);
                self.drop_if_gone(key.service);
            }
            Op::DeleteBackend(id) => {
                self.backends.remove(id);
                self.loose.remove(id);
            }
            Op::DeleteName(id) => {
                self.delete_name(*id);
                self.drop_if_gone(*id);
            }
        }
    }

    fn port_mut(&mut self, id: u32) -> &mut Port {
        self.ports.entry(id).or_insert_with(|| {
            self.port_ids.seen(id);
            Port::default()
        })
    }

    fn extras(&mut self, id: u32) -> &mut Extras {
        self.port_mut(id).extras.get_or_insert_default()
    }

    /// Removes a rarely used part; true if it was present.
    fn without(&mut self, id: u32, take: impl FnOnce(&mut Extras) -> bool) -> bool {
        let Some(port) = self.ports.get_mut(&id) else { return false };
        let Some(extras) = &mut port.extras else { return false };
        let was_there = take(extras);
        if **extras == Extras::default() {
            port.extras = None;
        }
        self.drop_if_gone(id);
        was_there
    }

    fn drop_if_gone(&mut self, id: u32) {
        if self.ports.get(&id).is_some_and(Port::is_gone) {
            self.ports.remove(&id);
        }
    }

    fn put_name(&mut self, id: u32, key: &PortKey) {
        self.delete_name(id);
        self.port_mut(id).key = Some(key.clone());
        self.names += 1;
        match self.by_service.get_mut(&key.service) {
            // In order, so that plans do not depend on the order of earlier writes.
            Some(ids) => ids.insert(ids.partition_point(|other| *other < id), id),
            None => drop(self.by_service.insert(key.service.clone(), smallvec![id])),
        }
    }

    fn delete_name(&mut self, id: u32) {
        let Some(key) = self.ports.get_mut(&id).and_then(|port| port.key.take()) else { return };
        self.names -= 1;
        if let Some(ids) = self.by_service.get_mut(&key.service) {
            ids.retain(|other| *other != id);
            if ids.is_empty() {
                self.by_service.remove(&key.service);
            }
        }
    }

    fn put_backend(&mut self, id: u32, backend: Backend) {
        if let Some(known) = self.backends.get_mut(&id) {
            // The planner changes the list bits only.
            known.backend = backend;
            return;
        }
        self.backends.insert(id, Known { backend, slots: 0 });
        self.backend_ids.seen(id);
        // No slot names the new backend yet.
        self.loose.insert(id);
    }

    fn put_frontend(&mut self, key: &FrontendKey, frontend: Frontend) {
        let old = self.frontends.insert(*key, frontend);
        if old.is_some_and(|old| old.service == frontend.service) {
            return;
        }
        match old {
            Some(old) => self.forget_frontend(old.service, key),
            None => {
                self.blocks += usize::from(key.block != 0);
                *self.bit_uses.entry(key.bit()).or_default() += 1;
            }
        }
        self.port_mut(frontend.service).frontends.push(*key);
    }

    fn forget_frontend(&mut self, id: u32, key: &FrontendKey) {
        if let Some(port) = self.ports.get_mut(&id) {
            port.frontends.retain(|other| other != key);
        }
        self.drop_if_gone(id);
    }

    fn put_frontend_bits(&mut self, word: u32, bits: u64) {
        if bits == 0 {
            self.frontend_bits.remove(&word);
        } else {
            self.frontend_bits.insert(word, bits);
        }
    }

    fn release_bit(&mut self, bit: (u32, u64)) {
        if let Entry::Occupied(mut uses) = self.bit_uses.entry(bit) {
            *uses.get_mut() -= 1;
            if *uses.get() == 0 {
                uses.remove();
            }
        }
    }

    fn put_slot(&mut self, key: &SlotKey, slot: &Slot) {
        if self.strays.remove(key).is_none() {
            self.slots += 1;
        }
        let place = NonZeroU32::new(slot.backend).map(|backend| FilledSlot {
            addr: slot.addr,
            port: slot.port,
            weight: slot.weight,
            backend,
        });
        let (Some(place), Some(list)) = (place, list_of(key)) else {
            self.strays.insert(*key, *slot);
            return;
        };
        let index = key.index as usize;
        let places = &mut self.port_mut(key.service).lists[list as usize];
        if places.len() <= index {
            // Most lists are short and grow once.
            let more = index + 1 - places.len();
            if places.capacity() <= index {
                places.reserve_exact(more.max(places.len() / 4));
            }
            places.resize(index + 1, None);
        }
        let old = places.get_mut(index).and_then(|at| at.replace(place));
        if let Some(old) = old {
            self.slots -= 1;
            self.release(key.service, old.backend.get());
        }
        self.hold(key.service, place.backend.get());
    }

    fn delete_slot(&mut self, key: &SlotKey) {
        if self.strays.remove(key).is_some() {
            self.slots -= 1;
            return;
        }
        let Some(list) = list_of(key) else { return };
        let Some(port) = self.ports.get_mut(&key.service) else { return };
        let places = &mut port.lists[list as usize];
        let Some(old) = places.get_mut(key.index as usize).and_then(Option::take) else { return };
        while places.last().is_some_and(Option::is_none) {
            places.pop();
        }
        if places.capacity() > 4 * places.len() {
            places.shrink_to_fit();
        }
        self.slots -= 1;
        self.release(key.service, old.backend.get());
    }

    /// Counts a slot of the service port `id` that names `backend`.
    fn hold(&mut self, id: u32, backend: u32) {
        if let Some(known) = self.backends.get_mut(&backend).filter(|known| known.backend.service == id) {
            known.slots += 1;
            if known.slots == 1 {
                self.loose.remove(&backend);
            }
        }
    }

    /// Uncounts a slot of the service port `id` that named `backend`.
    fn release(&mut self, id: u32, backend: u32) {
        if let Some(known) = self.backends.get_mut(&backend).filter(|known| known.backend.service == id) {
            known.slots -= 1;
            if known.slots == 0 {
                self.loose.insert(backend);
            }
        }
    }
}

/// Returns the list of a slot, if the list number is known.
fn list_of(key: &SlotKey) -> Option<List> {
    List::ALL.into_iter().find(|&list| list as u32 == key.list)
}
