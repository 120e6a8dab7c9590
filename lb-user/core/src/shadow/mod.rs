//! Our copy of the maps, indexed for the planner: what a dump says, moved on op by op. It holds half-done states too; to
//! mend them is the planner's work.

mod adopt;

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroU32,
};

use foldhash::{HashMap, HashSet};
use lb_common::{
    Addr, Backend, Frontend, FrontendKey, List, Maglev, MaglevKey, NodeAddr, RangeKey, Service, Slot, SlotKey,
};

use crate::{
    few::Few,
    ids::Ids,
    objects::Key,
    op::{Op, Table},
    spec::PortKey,
};
use lb_common::AddrPort;

/// The copy.
#[derive(Default)]
pub struct Shadow {
    /// Every id of a service port that any map mentions.
    ports: HashMap<u32, Port>,
    by_service: HashMap<Key, Few<u32>>,
    frontends: HashMap<FrontendKey, Frontend>,
    backends: HashMap<u32, Known>,
    /// Backends that no slot of their service port names.
    loose: HashSet<u32>,
    /// Slots that fit into no list: of an unknown list, far beyond its end, or naming backend 0.
    strays: HashMap<SlotKey, Slot>,
    /// Backend ids that some slot names although there is no such backend. They stay reserved.
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
    /// Its entry of `NAMES`.
    pub key: Option<PortKey>,
    /// Its entry of `SERVICES`.
    pub service: Option<Service>,
    /// The frontends that point at it, in no order.
    pub frontends: Few<FrontendKey>,
    lists: [Places; 2],
    /// What most have not.
    more: Option<Box<More>>,
}

/// What few service ports have.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
struct More {
    /// Its entries of `SOURCE_RANGES`.
    ranges: BTreeSet<RangeKey>,
    /// Its entries of `MAGLEV`, by the number of their list.
    tables: BTreeMap<u32, Box<Maglev>>,
}

/// A list, by index; a gap is a slot that does not exist. The last one exists.
type Places = Vec<Option<Place>>;

/// What stands in a slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// Address.
    pub addr: Addr,
    /// Host order.
    pub port: u16,
    /// Weight of the backend.
    pub weight: u16,
    /// Id of the backend.
    pub backend: NonZeroU32,
}

impl Place {
    /// The slot that says this.
    #[must_use]
    pub const fn slot(&self) -> Slot {
        Slot { addr: self.addr, port: self.port, weight: self.weight, backend: self.backend.get() }
    }

    /// Address and port.
    #[must_use]
    pub const fn target(&self) -> AddrPort {
        AddrPort { addr: self.addr, port: self.port }
    }
}

/// A backend, and how many slots of its service port name it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Known {
    backend: Backend,
    slots: u32,
}

impl Port {
    /// The slots of a list.
    #[must_use]
    pub fn list(&self, list: List) -> &[Option<Place>] {
        &self.lists[list as usize]
    }

    /// Its source ranges.
    pub fn ranges(&self) -> impl Iterator<Item = &RangeKey> {
        self.more.iter().flat_map(|more| &more.ranges)
    }

    /// Its tables of backends by the hash of a flow, by the number of their list; there may be odd ones.
    pub fn tables(&self) -> impl Iterator<Item = (u32, &Maglev)> {
        self.more.iter().flat_map(|more| &more.tables).map(|(list, table)| (*list, &**table))
    }

    /// Whether nothing is left of it.
    fn is_gone(&self) -> bool {
        self.key.is_none()
            && self.service.is_none()
            && self.frontends.is_empty()
            && self.lists.iter().all(Vec::is_empty)
            && self.more.is_none()
    }
}

impl Shadow {
    /// A service port by its id.
    #[must_use]
    pub fn port(&self, id: u32) -> Option<&Port> {
        self.ports.get(&id)
    }

    /// The ids of all service ports, in no order.
    pub fn ports(&self) -> impl Iterator<Item = (u32, &Port)> {
        self.ports.iter().map(|(&id, port)| (id, port))
    }

    /// The ids that bear the name of a Service; two may bear the same port's.
    #[must_use]
    pub fn ports_of(&self, service: &Key) -> &[u32] {
        self.by_service.get(service).map_or(&[], |ids| ids)
    }

    /// The Services that any service port names, in no order.
    pub fn services(&self) -> impl Iterator<Item = &Key> {
        self.by_service.keys()
    }

    /// A frontend.
    #[must_use]
    pub fn frontend(&self, key: &FrontendKey) -> Option<Frontend> {
        self.frontends.get(key).copied()
    }

    /// A backend.
    #[must_use]
    pub fn backend(&self, id: u32) -> Option<Backend> {
        self.backends.get(&id).map(|known| known.backend)
    }

    /// The backends that no slot of their service port names, in no order.
    pub fn loose_backends(&self) -> impl Iterator<Item = (u32, Backend)> {
        self.loose.iter().filter_map(|&id| Some((id, self.backend(id)?)))
    }

    /// The addresses at which NodePorts answer.
    #[must_use]
    pub fn node_addrs(&self) -> &BTreeMap<Addr, NodeAddr> {
        &self.node_addrs
    }

    /// The slots that fit into no list, in no order.
    pub fn stray_slots(&self) -> impl Iterator<Item = SlotKey> {
        self.strays.keys().copied()
    }

    /// How many entries a map has.
    #[must_use]
    pub fn count(&self, table: Table) -> usize {
        match table {
            Table::Frontends => self.frontends.len(),
            Table::Services => self.services,
            Table::Slots => self.slots,
            Table::Backends => self.backends.len(),
            Table::Names => self.names,
            Table::NodeAddrs => self.node_addrs.len(),
            Table::SourceRanges => self.ranges,
            Table::Maglev => self.tables,
        }
    }

    /// Where ids of service ports and of backends go on.
    #[must_use]
    pub const fn ids(&self) -> (Ids, Ids) {
        (self.port_ids, self.backend_ids)
    }

    /// Goes on with ids where another shadow of the same maps was, so that what it freed does not come back at once.
    pub const fn continue_ids(&mut self, (port_ids, backend_ids): (Ids, Ids)) {
        self.port_ids = port_ids;
        self.backend_ids = backend_ids;
    }

    /// Lets new service ports and backends begin beyond these ids, which sockets may still name.
    pub fn begin_beyond(&mut self, (port, backend): (u32, u32)) {
        self.port_ids.beyond(port);
        self.backend_ids.beyond(backend);
    }

    /// Whether an id of a service port is in use anywhere.
    #[must_use]
    pub fn port_in_use(&self, id: u32) -> bool {
        self.ports.contains_key(&id)
    }

    /// Whether an id of a backend is in use anywhere.
    #[must_use]
    pub fn backend_in_use(&self, id: u32) -> bool {
        self.backends.contains_key(&id) || self.dangling.contains(&id)
    }

    /// Takes over what ops did to the maps.
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

    /// Takes over what an op did to the maps.
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
            Op::PutNodeAddr(addr, value) => drop(self.node_addrs.insert(*addr, *value)),
            Op::DeleteNodeAddr(addr) => drop(self.node_addrs.remove(addr)),
            Op::PutRange(key) => self.ranges += usize::from(self.more(key.range.service).ranges.insert(*key)),
            Op::PutMaglev(MaglevKey { service, list }, table) => {
                self.tables += usize::from(self.more(*service).tables.insert(*list, table.clone()).is_none());
            }
            Op::DeleteRange(key) => {
                let removed = self.without(key.range.service, |more| more.ranges.remove(key));
                self.ranges -= usize::from(removed);
            }
            Op::DeleteMaglev(MaglevKey { service, list }) => {
                let removed = self.without(*service, |more| more.tables.remove(list).is_some());
                self.tables -= usize::from(removed);
            }
            Op::DeleteFrontend(key) => {
                if let Some(old) = self.frontends.remove(key) {
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

    fn more(&mut self, id: u32) -> &mut More {
        self.port_mut(id).more.get_or_insert_default()
    }

    /// Takes something away from what few service ports have; whether it was there.
    fn without(&mut self, id: u32, take: impl FnOnce(&mut More) -> bool) -> bool {
        let Some(port) = self.ports.get_mut(&id) else { return false };
        let Some(more) = &mut port.more else { return false };
        let was_there = take(more);
        if **more == More::default() {
            port.more = None;
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
            Some(ids) => ids.push(id),
            None => drop(self.by_service.insert(key.service.clone(), Few::One(id))),
        }
    }

    fn delete_name(&mut self, id: u32) {
        let Some(key) = self.ports.get_mut(&id).and_then(|port| port.key.take()) else { return };
        self.names -= 1;
        if let Some(ids) = self.by_service.get_mut(&key.service) {
            ids.retain(|&other| other != id);
            if ids.is_empty() {
                self.by_service.remove(&key.service);
            }
        }
    }

    fn put_backend(&mut self, id: u32, backend: Backend) {
        if let Some(known) = self.backends.get_mut(&id) {
            // The planner changes nothing but its lists.
            known.backend = backend;
            return;
        }
        self.backends.insert(id, Known { backend, slots: 0 });
        self.backend_ids.seen(id);
        // No slot names a new one yet.
        self.loose.insert(id);
    }

    fn put_frontend(&mut self, key: &FrontendKey, frontend: Frontend) {
        let old = self.frontends.insert(*key, frontend);
        if old.is_some_and(|old| old.service == frontend.service) {
            return;
        }
        if let Some(old) = old {
            self.forget_frontend(old.service, key);
        }
        self.port_mut(frontend.service).frontends.push(*key);
    }

    fn forget_frontend(&mut self, id: u32, key: &FrontendKey) {
        if let Some(port) = self.ports.get_mut(&id) {
            port.frontends.retain(|other| other != key);
        }
        self.drop_if_gone(id);
    }

    fn put_slot(&mut self, key: &SlotKey, slot: &Slot) {
        if self.strays.remove(key).is_none() {
            self.slots += 1;
        }
        let place = NonZeroU32::new(slot.backend).map(|backend| Place {
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
            // Most lists are short, and grow only once.
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

    /// A slot of the service port `id` now names `backend`.
    fn hold(&mut self, id: u32, backend: u32) {
        if let Some(known) = self.backends.get_mut(&backend).filter(|known| known.backend.service == id) {
            known.slots += 1;
            if known.slots == 1 {
                self.loose.remove(&backend);
            }
        }
    }

    /// A slot of the service port `id` no longer names `backend`.
    fn release(&mut self, id: u32, backend: u32) {
        if let Some(known) = self.backends.get_mut(&backend).filter(|known| known.backend.service == id) {
            known.slots -= 1;
            if known.slots == 0 {
                self.loose.insert(backend);
            }
        }
    }
}

/// The list that a slot is of, if there is such a list.
fn list_of(key: &SlotKey) -> Option<List> {
    List::ALL.into_iter().find(|&list| list as u32 == key.list)
}
