//! Ids of service ports that share affinity (`beeline.io/affinity-scope`): those of a Service and family are in one
//! block, and so are their backends at one address, each at the place of its service port. So the programs find the
//! backend of another port by arithmetic (`lb_common::scope_mask`).
//!
//! Blocks are chosen anew in each pass, from the maps alone: a block fits if no other id is in it, and the one with the
//! most ids that stay is taken. Service ports and backends in other blocks get new ids. So passes converge from any
//! content, whatever an earlier one has written.

use std::cmp::Reverse;

use foldhash::{HashMap, HashSet};
use lb_common::{Addr, AddrPort, Backend, FIRST_SCOPE, Family, List, SCOPE_SIZE, ServiceFlags};

use super::Planner;
use crate::{
    ids::{block_of, ids_of},
    per_family::PerFamily,
    spec::{Member, PortKey, PortSpec, ServiceSpec},
};

/// The blocks of the Service that is planned.
#[derive(Default)]
pub(super) struct SharedAffinity {
    /// The block of the service ports, of each family that shares affinity.
    ports: PerFamily<Option<u32>>,
    /// The block of the backends at an address. Addresses tell the families apart.
    backends: HashMap<Addr, u32>,
    /// New ids of service ports.
    new_ports: HashSet<u32>,
    /// The targets that hold the place of a service port in the block of their address, by that backend id.
    holders: HashMap<u32, AddrPort>,
}

impl PortSpec {
    const fn shares_affinity(&self) -> bool {
        self.flags & ServiceFlags::SHARED_AFFINITY != 0
    }

    fn lists(&self, target: &AddrPort) -> bool {
        self.find(target).and_then(|at| self.backends.get(at)).is_some_and(Member::is_listed)
    }
}

impl Planner<'_> {
    /// Chooses the block of the service ports of each family.
    pub(super) fn choose_blocks_of_ports(&mut self, spec: &ServiceSpec) {
        for family in Family::ALL {
            let sharing = spec.ports.iter().filter(|port| port.key.family == family && port.shares_affinity());
            let names: Vec<&PortKey> = sharing.map(|port| &port.key).collect();
            if names.is_empty() {
                continue;
            }
            let shadow = self.shadow;
            let ids = shadow.ports_of(&spec.key).iter().copied().filter(|id| *id >= FIRST_SCOPE);
            let mut blocks: Vec<u32> = ids.map(block_of).collect();
            blocks.dedup();
            let fitting = blocks.into_iter().filter_map(|block| {
                let used: Vec<u32> = ids_of(block).filter(|id| self.is_port_in_use(*id)).collect();
                let of = |id: &u32| shadow.port(*id).and_then(|port| port.key.as_ref());
                let is_own = |id| of(id).is_some_and(|key| key.service == spec.key && key.family == family);
                let kept = names.iter().filter(|name| used.iter().any(|id| of(id) == Some(**name))).count();
                let has_room = names.len() - kept <= SCOPE_SIZE as usize - used.len();
                (has_room && used.iter().all(is_own)).then_some((kept, Reverse(block)))
            });
            self.shared.ports[family] = Some(match fitting.max() {
                Some((_, Reverse(block))) => block,
                None => self.port_ids.take_block(|id| shadow.port_in_use(id) || self.loose.contains_key(&id)),
            });
        }
    }

    /// True if a service port may have this id: it is in the block of its Service if it shares affinity, else in none.
    pub(super) fn is_in_scope(&self, id: u32, port: &PortSpec) -> bool {
        let block = if port.shares_affinity() { self.shared.ports[port.key.family] } else { None };
        block == (id >= FIRST_SCOPE).then_some(block_of(id))
    }

    /// Returns a new id of a service port.
    pub(super) fn new_port_id(&mut self, port: &PortSpec) -> u32 {
        let shadow = self.shadow;
        let block = if port.shares_affinity() { self.shared.ports[port.key.family] } else { None };
        let Some(block) = block else { return self.port_ids.take(|id| shadow.port_in_use(id)) };
        // Sockets of a service port that is gone may still name its id: the places after the last one in use first.
        let is_used = |id: u32| self.is_port_in_use(id) || self.shared.new_ports.contains(&id);
        let last = ids_of(block).filter(|id| is_used(*id)).last();
        let after = last.map_or(block, |last| last + 1);
        let id = (after..block + SCOPE_SIZE).chain(block..after).find(|id| !is_used(*id)).expect("a block with room");
        self.shared.new_ports.insert(id);
        id
    }

    fn is_port_in_use(&self, id: u32) -> bool {
        self.shadow.port_in_use(id) || self.loose.contains_key(&id)
    }

    /// Chooses the block of the backends at each address. `ids` are those of the service ports.
    pub(super) fn choose_blocks_of_backends(&mut self, spec: &ServiceSpec, ids: &[u32]) {
        let sharing = || spec.ports.iter().zip(ids).filter(|(port, _)| port.shares_affinity());
        if sharing().next().is_none() {
            return;
        }
        let shadow = self.shadow;
        // The number of backends that stay in each block.
        let mut kept: HashMap<Addr, Vec<(u32, usize)>> = HashMap::default();
        for (port, &id) in sharing() {
            let slots = shadow.port(id).into_iter().flat_map(|have| List::ALL.map(|list| have.list(list)));
            let slots = slots.flatten().flatten();
            let mut known: Vec<(AddrPort, u32)> = slots.map(|slot| (slot.target(), slot.backend.get())).collect();
            let loose = self.loose.get(&id).into_iter().flatten();
            let loose = loose.filter_map(|id| Some((shadow.backend(*id)?, *id)));
            known.extend(loose.map(|(backend, id)| (AddrPort { addr: backend.addr, port: backend.port }, id)));
            known.sort_unstable();
            known.dedup();
            for (target, backend) in known {
                let is_at_place = backend >= FIRST_SCOPE && backend % SCOPE_SIZE == id % SCOPE_SIZE;
                if !is_at_place || !shadow.is_sound(id, &target, backend) || !port.lists(&target) {
                    continue;
                }
                let blocks = kept.entry(target.addr).or_default();
                match blocks.iter_mut().find(|(block, _)| *block == block_of(backend)) {
                    Some((_, count)) => *count += 1,
                    None => blocks.push((block_of(backend), 1)),
                }
            }
        }
        for (port, &id) in sharing() {
            for Member { target, .. } in port.backends.iter().filter(|member| member.is_listed()) {
                let block = match self.shared.backends.get(&target.addr) {
                    Some(block) => *block,
                    None => {
                        let blocks = kept.remove(&target.addr).unwrap_or_default().into_iter();
                        let fitting = blocks.filter(|(block, _)| self.fits(*block, &target.addr, spec, ids));
                        let block = match fitting.map(|(block, kept)| (kept, Reverse(block))).max() {
                            Some((_, Reverse(block))) => block,
                            None => self.backend_ids.take_block(|id| shadow.backend_in_use(id)),
                        };
                        self.shared.backends.insert(target.addr, block);
                        block
                    }
                };
                // Two endpoints of a service port may have one address: the holder of the place keeps it.
                let place = block + id % SCOPE_SIZE;
                let holder = shadow.backend(place).map(|of| AddrPort { addr: of.addr, port: of.port });
                self.shared.holders.entry(place).or_insert(holder.unwrap_or(*target));
            }
        }
    }

    /// True if the backends at an address fit into a block: none but theirs is in it, and no wanted backend finds its
    /// place taken by a backend that goes.
    fn fits(&self, block: u32, addr: &Addr, spec: &ServiceSpec, ids: &[u32]) -> bool {
        ids_of(block).filter(|id| self.shadow.backend_in_use(*id)).all(|id| {
            let Some(Backend { addr: at, port, service, .. }) = self.shadow.backend(id) else { return false };
            let is_in_scope = self.shared.ports[Family::of(addr)] == Some(block_of(service));
            let of = ids.iter().position(|id| *id == service).and_then(|at| spec.ports.get(at));
            at == *addr
                && is_in_scope
                && service % SCOPE_SIZE == id % SCOPE_SIZE
                // A service port that goes has a place of its own.
                && of.is_none_or(|of| of.find(&AddrPort { addr: at, port }).is_some())
        })
    }

    /// True if the backend of the service port `id` at `target` may have the id `backend`.
    pub(super) fn keeps_backend(&self, id: u32, port: &PortSpec, target: &AddrPort, backend: u32) -> bool {
        let is_in_block = backend >= FIRST_SCOPE;
        if !port.shares_affinity() || !is_in_block {
            return port.shares_affinity() == is_in_block;
        }
        let place = id % SCOPE_SIZE;
        let holds = |block: &u32| self.shared.holders.get(&(block + place)) == Some(target);
        let own = self.shared.backends.get(&target.addr).filter(|block| holds(block)).map(|block| block + place);
        // An endpoint in no list is kept for its sockets, wherever it is.
        backend % SCOPE_SIZE == place && own.is_none_or(|own| own == backend)
    }

    /// Returns a new id of a backend of the service port `id`.
    pub(super) fn new_backend_id(&mut self, id: u32, target: &AddrPort, port: &PortSpec) -> u32 {
        let shadow = self.shadow;
        let place = id % SCOPE_SIZE;
        match self.shared.backends.get(&target.addr) {
            _ if !port.shares_affinity() => self.backend_ids.take(|id| shadow.backend_in_use(id)),
            Some(block) if self.shared.holders.get(&(block + place)) == Some(target) => block + place,
            // Another endpoint of the service port has the place.
            _ => self.backend_ids.take_block(|id| shadow.backend_in_use(id)) + place,
        }
    }
}
