//! A memory store that keeps a snapshot after each write, and panics at writes that break invariant I7.

use lb_common::{
    Backend, BackendFlags, Frontend, FrontendKey, Kind, List, MAGLEV_LEN, Maglev, MaglevKey, Proto, Range, RangeKey,
    ServiceEntry, Slot, SlotKey,
};
use lb_core::{
    op::Op,
    spec::PortKey,
    store::{Dump, Limits, Partial, Store},
};

use crate::reads::Place;

/// A store with its history.
pub struct RecordingStore {
    /// Content at the start and after each write.
    pub snapshots: Vec<Dump>,
    /// The place of each write.
    pub writes: Vec<Option<Place>>,
}

impl Default for RecordingStore {
    fn default() -> Self {
        Self::starting_with(Dump::default())
    }
}

impl RecordingStore {
    pub fn starting_with(dump: Dump) -> Self {
        Self { snapshots: vec![dump], writes: vec![] }
    }

    /// Drops all snapshots but the last, and all writes.
    pub fn rewind(&mut self) {
        self.snapshots.drain(..self.snapshots.len() - 1);
        self.writes.clear();
    }

    fn last(&self) -> &Dump {
        self.snapshots.last().expect("a snapshot of the start")
    }
}

impl Store for RecordingStore {
    fn apply(&mut self, ops: &[Op]) -> Result<(), Partial> {
        for op in ops {
            check_ids(self.last(), op);
            let mut dump = self.last().clone();
            dump.apply(op);
            self.snapshots.push(dump);
            self.writes.push(Place::of(op));
        }
        Ok(())
    }

    fn dump(&self) -> anyhow::Result<Dump> {
        Ok(self.last().clone())
    }

    fn limits(&self) -> Limits {
        Limits::DEFAULT
    }
}

/// Panics if an op gives another meaning to an id that an entry still names (invariant I7).
fn check_ids(dump: &Dump, op: &Op) {
    match op {
        Op::PutName(id, key) => {
            let other = dump.names.get(id).filter(|other| *other != &**key);
            // A successor takes over an id in use.
            let succeeds = other.is_some_and(|other| {
                let names_same = dump.names.iter().any(|(of, name)| of != id && name == &**key);
                let kin = |key: &PortKey| (key.service.namespace().to_owned(), key.proto, key.family);
                kin(other) == kin(key) && !names_same
            });
            let named = !succeeds
                && (other.is_some()
                    || dump.services.contains_key(id)
                    || dump
                        .frontends
                        .values()
                        .chain(dump.port_ranges.values())
                        .any(|frontend| frontend.service == *id)
                    || dump.slots.keys().any(|slot| slot.service == *id)
                    || dump.backends.values().any(|backend| backend.service == *id));
            assert!(*id != 0 && !named, "{op}: the id is in use\n{dump:#}");
        }
        Op::PutBackend(id, backend) => {
            let known =
                dump.backends.get(id).is_some_and(|other| Backend { flags: backend.flags, ..*other } != *backend);
            let named = !dump.backends.contains_key(id) && dump.slots.values().any(|slot| slot.backend == *id);
            assert!(*id != 0 && !known && !named, "{op}: the id is in use\n{dump:#}");
        }
        Op::PutSlot(key, slot) => {
            let list = List::ALL.into_iter().find(|&list| list as u32 == key.list).expect("a list");
            let backend = dump.backends.get(&slot.backend).expect("a slot names a backend that exists");
            assert_eq!((backend.service, backend.addr, backend.port), (key.service, slot.addr, slot.port));
            assert!(
                backend.flags & BackendFlags::of(list) != 0,
                "{op}: the backend lacks the bit of its list\n{dump:#}"
            );
        }
        _ => {}
    }
}

/// Corrupts the maps as a crash, another writer or a bug might. The next pass must repair all of it.
pub fn corrupt(dump: &mut Dump) {
    let addr = std::net::Ipv4Addr::new(10, 0, 0, 77).into();
    let top = [dump.services.keys().max(), dump.names.keys().max()].into_iter().flatten().max().copied().unwrap_or(0);
    let last = dump.backends.keys().max().copied().unwrap_or(0);
    let slot = |backend| Slot { addr, port: 77, weight: 1, backend };
    // A second id for a name, and the entry of the first missing.
    if let Some((&id, key)) = dump.names.first_key_value() {
        dump.names.insert(top + 3, key.clone());
        dump.services.insert(top + 3, ServiceEntry { cluster_len: 2, ..ServiceEntry::default() });
        dump.services.remove(&id);
        // Gaps between slots, a slot beyond the list, a backend of another service port, an unknown backend.
        dump.slots.remove(&SlotKey::new(id, List::Cluster, 0));
        dump.slots.insert(SlotKey::new(id, List::Cluster, 5), slot(last + 9));
        dump.slots.insert(SlotKey::new(id, List::Cluster, u32::MAX), slot(last + 1));
        dump.slots.insert(SlotKey::new(id, List::Local, 0), slot(0));
    }
    if let Some((_, slot)) = dump.slots.first_key_value().map(|(key, slot)| (*key, *slot)) {
        dump.slots.insert(SlotKey::new(top + 3, List::Cluster, 1), slot);
    }
    // Backends and slots of unknown service ports, an unknown list, a frontend of an unknown service port.
    dump.backends.insert(last + 2, Backend { addr, port: 77, flags: 1, service: top + 40 });
    dump.backends.insert(last + 3, Backend { addr, port: 77, flags: 1, service: top });
    dump.slots.insert(SlotKey::new(top + 41, List::Cluster, 0), slot(last + 2));
    dump.slots.insert(SlotKey { service: top, list: 7, index: 0 }, slot(last + 3));
    // Source ranges and Maglev tables of unknown service ports, and of service ports that have none.
    for (service, prefix_len) in [(top + 43, 160), (top, 144), (top, 0)] {
        dump.source_ranges.insert(RangeKey { prefix_len, range: Range { service, addr } });
    }
    for (service, list) in [(top + 44, 0), (top, 0), (top, 9)] {
        dump.maglev.insert(MaglevKey { service, list }, Box::new(Maglev { backends: [last + 4; MAGLEV_LEN] }));
    }
    let key = FrontendKey::new(std::net::Ipv4Addr::new(192, 0, 2, 77).into(), 77, Proto::Tcp);
    dump.frontends.insert(key, Frontend::new(top + 42, Kind::ClusterIp));
    // A block of a port range that another version left.
    dump.port_ranges.insert(FrontendKey { block: 4, port: 72, ..key }, Frontend::new(top, Kind::ClusterIp));
    // A frontend of the wrong service port.
    if let Some(frontend) = dump.frontends.values_mut().next() {
        frontend.service = top + 3;
    }
}
