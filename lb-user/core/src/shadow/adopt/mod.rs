//! The shadow of maps that another agent left, perhaps in the middle of a change.

use foldhash::HashMap;
use lb_common::{Backend, BackendFlags, List, MaglevKey, SlotKey};

use super::{Shadow, list_of};
use crate::{
    ids::{HighestIds, Ids},
    op::{Op, Table},
    spec::PortKey,
    store::Dump,
};
use lb_common::AddrPort;

/// Largest gap in a list. An agent leaves gaps only within the writes of one change; a slot further out is a stray, so
/// that no number in a map makes the agent allocate much memory.
const LONGEST_GAP: usize = 65_536;

impl Shadow {
    /// Returns the shadow of `dump`, and its oddities for the log. The planner mends all of them.
    #[must_use]
    pub fn from_dump(dump: &Dump) -> (Self, Vec<String>) {
        let mut shadow = Self::default();
        for (&id, key) in &dump.names {
            shadow.put_name(id, key);
        }
        for (&id, service) in &dump.services {
            shadow.apply(&Op::PutService(id, *service));
        }
        for (&id, backend) in &dump.backends {
            shadow.put_backend(id, *backend);
        }
        for (key, slot) in &dump.slots {
            if shadow.gap_before(key) > LONGEST_GAP {
                shadow.slots += 1;
                shadow.strays.insert(*key, *slot);
            } else {
                shadow.put_slot(key, slot);
            }
            if !dump.backends.contains_key(&slot.backend) {
                shadow.dangling.insert(slot.backend);
            }
        }
        for (key, frontend) in dump.frontends.iter().chain(&dump.port_ranges) {
            shadow.put_frontend(key, *frontend);
        }
        dump.frontend_bits.iter().for_each(|(word, bits)| shadow.put_frontend_bits(*word, *bits));
        dump.source_ranges.iter().for_each(|key| shadow.apply(&Op::PutRange(*key)));
        dump.maglev.iter().for_each(|(key, table)| shadow.apply(&Op::PutMaglev(*key, table.clone())));
        shadow.node_addrs.clone_from(&dump.node_addrs);
        let of_backends = dump.backends.values().map(|backend| backend.service);
        let highest = HighestIds {
            service: shadow.ports.keys().copied().chain(of_backends).collect(),
            backend: dump.backends.keys().chain(&shadow.dangling).copied().collect(),
        };
        (shadow.port_ids, shadow.backend_ids) = (Ids::default(), Ids::default());
        shadow.begin_beyond(highest);
        let oddities = shadow.oddities();
        (shadow, oddities)
    }

    /// Returns the content of the maps, as the shadow has it.
    #[must_use]
    pub fn to_dump(&self) -> Dump {
        let of = |table| self.frontends.iter().filter(move |(key, _)| Table::of_frontend(key) == table);
        let mut dump = Dump {
            frontends: of(Table::Frontends).map(|(key, frontend)| (*key, *frontend)).collect(),
            port_ranges: of(Table::PortRanges).map(|(key, frontend)| (*key, *frontend)).collect(),
            frontend_bits: self.frontend_bits.iter().map(|(word, bits)| (*word, *bits)).collect(),
            slots: self.strays.iter().map(|(key, slot)| (*key, *slot)).collect(),
            backends: self.backends.iter().map(|(id, known)| (*id, known.backend)).collect(),
            node_addrs: self.node_addrs.clone(),
            ..Dump::default()
        };
        for (&id, port) in &self.ports {
            dump.names.extend(port.key.clone().map(|key| (id, key)));
            dump.services.extend(port.service.map(|service| (id, service)));
            dump.source_ranges.extend(port.ranges());
            let tables = port.tables().map(|(list, table)| (MaglevKey { service: id, list }, Box::new(*table)));
            dump.maglev.extend(tables);
            for list in List::ALL {
                let places = (0..).zip(port.list(list)).filter_map(|(index, place)| Some((index, place.as_ref()?)));
                dump.slots.extend(places.map(|(index, place)| (SlotKey::new(id, list, index), place.slot())));
            }
        }
        dump
    }

    fn gap_before(&self, key: &SlotKey) -> usize {
        let len = self.ports.get(&key.service).zip(list_of(key)).map_or(0, |(port, list)| port.list(list).len());
        (key.index as usize).saturating_sub(len)
    }

    fn oddities(&self) -> Vec<String> {
        let mut odd = Vec::new();
        let mut first: HashMap<&PortKey, u32> = HashMap::default();
        let mut ports: Vec<_> = self.ports.iter().collect();
        ports.sort_by_key(|(id, _)| **id);
        for (&id, port) in ports {
            let Some(key) = &port.key else {
                odd.push(format!("service port {id} has no name"));
                continue;
            };
            if let Some(other) = first.insert(key, id) {
                odd.push(format!("service ports {other} and {id} both are {key}"));
            }
            let Some(service) = port.service else {
                odd.push(format!("service port {id}, {key}, has no entry in SERVICES"));
                continue;
            };
            for list in List::ALL {
                let (len, places) = (service.len(list) as usize, port.list(list));
                let filled = places.iter().take(len).flatten().count();
                if filled < len || places.len() > len {
                    odd.push(format!("the {list:?} list of {key} has length {len}, and {filled} slots below that"));
                }
                if places.iter().flatten().any(|place| !self.is_sound(id, &place.target(), place.backend.get())) {
                    odd.push(format!("the {list:?} list of {key} names a backend that is not its own"));
                }
            }
        }
        // A backend in no list is kept on purpose, for its sockets.
        let in_a_list =
            |(_, backend): &(u32, Backend)| backend.flags & (BackendFlags::CLUSTER | BackendFlags::LOCAL) != 0;
        let unnamed = self.loose_backends().filter(in_a_list).count();
        if unnamed > 0 {
            odd.push(format!("{unnamed} backends are named by no slot"));
        }
        let unset = self.used_bits().filter(|((word, bit), _)| self.frontend_bits(*word) & bit == 0);
        let hidden: usize = unset.map(|(_, uses)| uses).sum();
        if hidden > 0 {
            odd.push(format!("{hidden} frontends do not answer: FRONTEND_BITS has no bit for them"));
        }
        if !self.strays.is_empty() {
            odd.push(format!("{} slots belong to no list", self.strays.len()));
        }
        odd
    }

    /// True if `backend` is a backend of the service port `id` at `target`.
    #[must_use]
    pub(crate) fn is_sound(&self, id: u32, target: &AddrPort, backend: u32) -> bool {
        self.backends.get(&backend).is_some_and(|known| {
            let known = &known.backend;
            known.service == id && known.addr == target.addr && known.port == target.port
        })
    }
}

#[cfg(test)]
mod tests;
