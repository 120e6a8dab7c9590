//! The planner, the only diff: from the shadow of the maps and the desired specs to the writes between them. Start,
//! resync, retry, dry run and steady state are this one call.
//!
//! Writes of all Services are ordered by `Phase`. A reader at any instant finds, for a frontend that stays, a backend
//! of the old or the new set, and never misses while both sets have one (invariant I1). A frontend that moves between
//! service ports finds the new service port complete and the old one not yet emptied, and may lead to a backend of
//! either. A service port that succeeds another one takes over its id: see `takeover`.

mod frontend_bits;
mod maglev;
mod port;
mod shared_affinity;
mod takeover;

use std::collections::BTreeMap;

use foldhash::{HashMap, HashSet};
use lb_common::{Addr, FrontendKey, List, MaglevKey, NodeAddr, SlotKey};

use crate::{
    ids::Ids,
    objects::Key,
    op::{Op, Table},
    port_ranges::joined,
    shadow::{Port, Shadow},
    spec::{PortSpec, ServiceSpec},
    store::Limits,
    warning::Warning,
};
use shared_affinity::SharedAffinity;
use smallvec::SmallVec;
use takeover::Successions;

/// The extent of the desired list.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scope {
    /// Some Services; all others stay as they are.
    Some,
    /// All Services; anything else in the maps is deleted.
    World,
}

/// The fate of a frontend whose old owner is gone and whose new owner does not fit yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OnOrphan {
    /// The old owner keeps serving.
    Keep,
    /// The frontend is deleted.
    Remove,
}

/// The writes in order, with a summary for each Service.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Plan {
    /// Writes, to be performed in this order.
    pub ops: Vec<Op>,
    /// Services that the writes change.
    pub changed: Vec<Change>,
    /// Services that do not fit and stay as they are (invariant I15).
    pub refused: Vec<Refused>,
    /// Services kept alive because their successor does not fit.
    pub held: Vec<Key>,
}

/// The effect of a plan on one Service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Change {
    /// The Service.
    pub service: Key,
    /// Number of frontends and port ranges afterwards that clients can dial.
    pub frontends: usize,
    /// Number of backends added.
    pub added: usize,
    /// Number of backends removed.
    pub removed: usize,
    /// Number of writes.
    pub writes: usize,
}

/// A Service that does not fit into a map.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refused {
    /// The Service.
    pub service: Key,
    /// The map.
    pub table: Table,
    /// Capacity of the map.
    pub size: usize,
}

impl Refused {
    /// The warning for the owner of the Service.
    #[must_use]
    pub fn warning(&self) -> Warning {
        let Self { service, table, size } = self;
        Warning::MapFull {
            service: service.clone(),
            map: table.map_name(),
            flag: table.flag_name().unwrap_or(table.map_name()),
            size: *size,
        }
    }
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.warning().fmt(f)
    }
}

/// The phase of an op. Invariant I1 rests on this order.
#[derive(Clone, Copy)]
enum Phase {
    /// Unreachable for readers until a slot or a frontend leads here.
    PutName,
    PutBackend,
    /// Set the list bit first: affinity may now pick this backend from that list.
    JoinList,
    /// Slots at or beyond the length that readers know.
    PutNewSlot,
    /// Slots that readers may meet: a new backend, or the tail, overwrites a departed backend.
    PutOldSlot,
    /// Ranges before the flag that enforces them.
    PutRange,
    /// After its backends and slots, which are valid without the table too.
    PutMaglev,
    /// The length, once all slots below it are written.
    PutService,
    /// Before the keys whose bits they are.
    SetFrontendBits,
    /// A frontend appears or moves once its service port is complete.
    PutFrontend,
    /// After single ports, which go before them; deleted before these.
    PutPortRange,
    DeletePortRange,
    DeleteFrontend,
    /// After the last key of each bit.
    ClearFrontendBits,
    /// Empty a list, or drop the enforcement of source ranges, only after the frontends that use them are gone.
    LateService,
    /// Clear the list bit: affinity may no longer pick this backend from that list.
    LeaveList,
    /// Addresses of the node, which belong to no service port.
    PutNodeAddr,
    DeleteNodeAddr,
    /// After the new ranges are written, or the flag that enforced the old ones is cleared.
    DeleteRange,
    /// From here on: entries that no reader can reach.
    DeleteService,
    DeleteMaglev,
    DeleteSlot,
    DeleteBackend,
    DeleteName,
}

impl Phase {
    /// The phases in which frontends are put.
    const PUT: [Self; 2] = [Self::PutFrontend, Self::PutPortRange];
    /// The phases in which frontends are deleted.
    const DELETE: [Self; 2] = [Self::DeletePortRange, Self::DeleteFrontend];

    const fn put(key: &FrontendKey) -> Self {
        if key.block == 0 { Self::PutFrontend } else { Self::PutPortRange }
    }

    const fn delete(key: &FrontendKey) -> Self {
        if key.block == 0 { Self::DeleteFrontend } else { Self::DeletePortRange }
    }
}

const PHASES: usize = Phase::DeleteName as usize + 1;

/// Plans the writes that turn the maps, as `shadow` has them, into `desired`, which is sorted by key. Entries that a
/// plan deletes do not count as free room for the same plan: plan again after it. `addresses` are the node's addresses
/// that serve NodePorts; None leaves them as they are.
#[must_use]
pub fn plan(
    shadow: &Shadow,
    desired: &[ServiceSpec],
    addresses: Option<&BTreeMap<Addr, NodeAddr>>,
    scope: Scope,
    on_orphan: OnOrphan,
    limits: &Limits,
) -> Plan {
    let mut planner = Planner::new(shadow, limits, Successions { desired, scope });
    desired.iter().for_each(|spec| planner.service(spec));
    if scope == Scope::World {
        planner.orphans(desired);
    }
    planner.departures(desired, on_orphan);
    planner.frontend_bits(scope);
    if let Some(addresses) = addresses {
        planner.addresses(addresses);
    }
    planner.finish(desired)
}

struct Planner<'a> {
    shadow: &'a Shadow,
    successions: Successions<'a>,
    limits: [usize; Table::ALL.len()],
    /// Entries of each map, including the additions of this plan.
    used: [usize; Table::ALL.len()],
    port_ids: Ids,
    backend_ids: Ids,
    /// Loose backends of each service port, sorted.
    loose: HashMap<u32, Vec<u32>>,
    phases: [Vec<Op>; PHASES],
    /// Frontends that move here from another service port.
    moved: Vec<FrontendKey>,
    /// Frontends that their service port no longer has, with its tally.
    lost: Vec<(FrontendKey, usize)>,
    /// Service ports without a desired counterpart, with their tally.
    gone: Vec<(u32, usize)>,
    /// Service ports of `gone` whose id another service port takes over.
    taken: Vec<u32>,
    /// Counts of each desired Service, then of each orphan.
    tallies: Vec<Tally>,
    orphans: Vec<Option<Key>>,
    refused: Vec<Refused>,
    /// Frontends of refused Services.
    awaited: HashSet<FrontendKey>,
    held: Vec<Key>,
    scratch: port::Scratch,
    shared: SharedAffinity,
}

#[derive(Clone, Copy, Default)]
struct Tally {
    added: usize,
    removed: usize,
    writes: usize,
}

/// The planner's state before a Service, to undo that Service.
struct Mark {
    used: [usize; Table::ALL.len()],
    ids: (Ids, Ids),
    phases: [usize; PHASES],
    lists: [usize; 4],
}

impl<'a> Planner<'a> {
    fn new(shadow: &'a Shadow, limits: &Limits, successions: Successions<'a>) -> Self {
        let mut loose: HashMap<u32, Vec<u32>> = HashMap::default();
        for (id, backend) in shadow.loose_backends() {
            loose.entry(backend.service).or_default().push(id);
        }
        loose.values_mut().for_each(|ids| ids.sort_unstable());
        let (port_ids, backend_ids) = shadow.ids();
        Self {
            shadow,
            successions,
            limits: Table::ALL.map(|table| limits.of(table)),
            used: Table::ALL.map(|table| shadow.count(table)),
            port_ids,
            backend_ids,
            loose,
            phases: Default::default(),
            moved: Vec::new(),
            lost: Vec::new(),
            gone: Vec::new(),
            taken: Vec::new(),
            tallies: Vec::new(),
            orphans: Vec::new(),
            refused: Vec::new(),
            awaited: HashSet::default(),
            held: Vec::new(),
            scratch: port::Scratch::default(),
            shared: SharedAffinity::default(),
        }
    }

    fn emit(&mut self, phase: Phase, op: Op) {
        self.phases[phase as usize].push(op);
    }

    fn service(&mut self, spec: &ServiceSpec) {
        let mark = self.mark();
        let tally = self.tallies.len();
        self.tallies.push(Tally::default());
        let existing = self.shadow.ports_of(&spec.key);
        self.shared = SharedAffinity::default();
        self.choose_blocks_of_ports(spec);
        let ids: SmallVec<[_; 4]> = spec.ports.iter().map(|port| self.port_id(spec, port)).collect();
        self.choose_blocks_of_backends(spec, &ids);
        for (port, &id) in spec.ports.iter().zip(&ids) {
            let have = self.shadow.port(id);
            self.port(id, have, port, tally);
            self.gone.extend(same_name(self.shadow, existing, port, id).map(|id| (id, tally)));
        }
        let unwanted = existing.iter().copied().filter(|&id| {
            let key = self.shadow.port(id).and_then(|have| have.key.as_ref());
            !spec.ports.iter().any(|port| Some(&port.key) == key)
        });
        self.gone.extend(unwanted.map(|id| (id, tally)));
        let full = Table::ALL.into_iter().find(|&table| {
            let at = table as usize;
            self.used[at] > mark.used[at] && self.used[at] > self.limits[at]
        });
        match full {
            None => self.tallies[tally] = self.tally_since(&mark),
            Some(table) => {
                self.rewind(&mark);
                self.awaited.extend(spec.ports.iter().flat_map(|port| &port.frontends).map(|(key, _)| *key));
                let size = self.limits[table as usize];
                self.refused.push(Refused { service: spec.key.clone(), table, size });
            }
        }
    }

    /// Returns the id that a service port keeps or takes over, or a new one.
    fn port_id(&mut self, spec: &ServiceSpec, port: &PortSpec) -> u32 {
        let shadow = self.shadow;
        let same = shadow.ports_of(&spec.key).iter().filter_map(|&id| Some((id, shadow.port(id)?)));
        let mut same = same.filter(|(_, have)| have.key.as_ref() == Some(&port.key)).peekable();
        let keeper = if same.peek().is_none() {
            self.predecessor(spec, port)
        } else {
            // Two ids with one name: keep the id in use.
            let same = same.filter(|(id, _)| self.is_in_scope(*id, port));
            same.max_by_key(|(id, have)| (have.frontends.len(), std::cmp::Reverse(*id))).map(|(id, _)| id)
        };
        keeper.unwrap_or_else(|| self.new_port_id(port))
    }

    /// Marks everything whose Service is not desired.
    fn orphans(&mut self, desired: &[ServiceSpec]) {
        let wanted: HashSet<&Key> = desired.iter().map(|spec| &spec.key).collect();
        let owner = |port: &Port| port.key.as_ref().map(|key| key.service.clone());
        let mut orphans: Vec<(Option<Key>, u32)> = self
            .shadow
            .ports()
            .filter(|(_, port)| !port.key.as_ref().is_some_and(|key| wanted.contains(&key.service)))
            .map(|(id, port)| (owner(port), id))
            .collect();
        orphans.sort_unstable();
        for (key, id) in orphans {
            if key.is_none() || self.orphans.last() != Some(&key) {
                self.tallies.push(Tally::default());
                self.orphans.push(key);
            }
            self.gone.push((id, self.tallies.len() - 1));
        }
        let ownerless = self.shadow.loose_backends().filter(|(_, backend)| !self.shadow.port_in_use(backend.service));
        let mut ownerless: Vec<u32> = ownerless.map(|(id, _)| id).collect();
        ownerless.sort_unstable();
        ownerless.into_iter().for_each(|id| self.emit(Phase::DeleteBackend, Op::DeleteBackend(id)));

        let mut strays: Vec<SlotKey> = self.shadow.stray_slots().collect();
        if !strays.is_empty() {
            let slots =
                [Phase::PutNewSlot, Phase::PutOldSlot].into_iter().flat_map(|phase| &self.phases[phase as usize]);
            let put = |op: &Op| if let Op::PutSlot(key, _) = op { Some(*key) } else { None };
            let filled: HashSet<SlotKey> = slots.filter_map(put).collect();
            strays.retain(|key| !filled.contains(key));
            strays.sort_unstable();
            strays.into_iter().for_each(|key| self.emit(Phase::DeleteSlot, Op::DeleteSlot(key)));
        }
    }

    /// Deletes what is not desired, now that the refused Services are known.
    fn departures(&mut self, desired: &[ServiceSpec], on_orphan: OnOrphan) {
        let moved: HashSet<FrontendKey> = self.moved.iter().copied().collect();
        for (key, tally) in std::mem::take(&mut self.lost) {
            // A frontend stays with its owner while the next owner does not fit.
            if !moved.contains(&key) && !self.awaited.contains(&key) {
                self.emit(Phase::delete(&key), Op::DeleteFrontend(key));
                self.tallies[tally].writes += 1;
            }
        }
        let taken: HashSet<u32> = self.taken.iter().copied().collect();
        for (id, tally) in std::mem::take(&mut self.gone) {
            let Some(port) = self.shadow.port(id).filter(|_| !taken.contains(&id)) else { continue };
            let mark = self.mark();
            let mut held = false;
            let mut frontends: Vec<FrontendKey> =
                port.frontends.iter().copied().filter(|key| !moved.contains(key)).collect();
            frontends.sort_unstable();
            for key in frontends {
                if on_orphan == OnOrphan::Keep && self.awaited.contains(&key) {
                    held = true;
                } else {
                    self.emit(Phase::delete(&key), Op::DeleteFrontend(key));
                }
            }
            if held {
                let orphan = || self.orphans.get(tally - desired.len()).cloned().flatten();
                let key = desired.get(tally).map_or_else(orphan, |spec| Some(spec.key.clone()));
                self.held.extend(key);
            } else {
                self.remove(id, port);
            }
            let more = self.tally_since(&mark);
            let tally = &mut self.tallies[tally];
            *tally = Tally { removed: tally.removed + more.removed, writes: tally.writes + more.writes, ..*tally };
        }
        self.held.dedup();
    }

    fn remove(&mut self, id: u32, port: &Port) {
        if port.service.is_some() {
            self.emit(Phase::DeleteService, Op::DeleteService(id));
        }
        port.ranges().for_each(|key| self.emit(Phase::DeleteRange, Op::DeleteRange(*key)));
        for (list, _) in port.tables() {
            self.emit(Phase::DeleteMaglev, Op::DeleteMaglev(MaglevKey { service: id, list }));
        }
        let mut backends = self.loose.remove(&id).unwrap_or_default();
        for list in List::ALL {
            for (index, place) in (0..).zip(port.list(list)) {
                let Some(place) = place else { continue };
                self.emit(Phase::DeleteSlot, Op::DeleteSlot(SlotKey::new(id, list, index)));
                backends.push(place.backend.get());
            }
        }
        backends.sort_unstable();
        backends.dedup();
        backends.retain(|&backend| self.shadow.backend(backend).is_some_and(|backend| backend.service == id));
        backends.into_iter().for_each(|backend| self.emit(Phase::DeleteBackend, Op::DeleteBackend(backend)));
        // Even if the shadow has no name: an unreadable name is not in the shadow.
        self.emit(Phase::DeleteName, Op::DeleteName(id));
    }

    /// Plans the addresses of the node, as many as the map holds.
    fn addresses(&mut self, wanted: &BTreeMap<Addr, NodeAddr>) {
        let wanted = || wanted.iter().take(self.limits[Table::NodeAddrs as usize]);
        let have = self.shadow.node_addrs();
        let new = wanted().filter(|(addr, value)| have.get(addr) != Some(value));
        let new: Vec<_> = new.map(|(addr, value)| Op::PutNodeAddr(*addr, *value)).collect();
        let wanted: HashSet<&Addr> = wanted().map(|(addr, _)| addr).collect();
        let old: Vec<_> =
            have.keys().filter(|addr| !wanted.contains(addr)).map(|addr| Op::DeleteNodeAddr(*addr)).collect();
        self.phases[Phase::PutNodeAddr as usize].extend(new);
        self.phases[Phase::DeleteNodeAddr as usize].extend(old);
    }

    fn mark(&self) -> Mark {
        Mark {
            used: self.used,
            ids: (self.port_ids, self.backend_ids),
            phases: std::array::from_fn(|phase| self.phases[phase].len()),
            lists: [self.moved.len(), self.lost.len(), self.gone.len(), self.taken.len()],
        }
    }

    fn rewind(&mut self, mark: &Mark) {
        self.used = mark.used;
        (self.port_ids, self.backend_ids) = mark.ids;
        self.phases.iter_mut().zip(mark.phases).for_each(|(ops, len)| ops.truncate(len));
        let [moved, lost, gone, taken] = mark.lists;
        self.moved.truncate(moved);
        self.lost.truncate(lost);
        self.gone.truncate(gone);
        self.taken.truncate(taken);
    }

    fn tally_since(&self, mark: &Mark) -> Tally {
        let since = |phase: usize| self.phases[phase].len() - mark.phases[phase];
        Tally {
            added: since(Phase::PutBackend as usize),
            removed: since(Phase::DeleteBackend as usize),
            writes: (0..PHASES).map(since).sum(),
        }
    }

    fn finish(self, desired: &[ServiceSpec]) -> Plan {
        let mut ops = Vec::with_capacity(self.phases.iter().map(Vec::len).sum());
        self.phases.into_iter().for_each(|phase| ops.extend(phase));
        let dialled = |port: &PortSpec| {
            let ports = port.frontends.iter().filter(|(key, kind)| !kind.is_address() && key.block == 0).count();
            ports + joined(port.frontends.iter().filter(|(key, _)| key.block != 0).copied()).len()
        };
        let known = desired.iter().map(|spec| (Some(&spec.key), spec.ports.iter().map(dialled).sum()));
        let all = known.chain(self.orphans.iter().map(|key| (key.as_ref(), 0))).zip(self.tallies);
        let changed = all.filter(|(_, tally)| tally.writes > 0).filter_map(|((key, frontends), tally)| {
            let Tally { added, removed, writes } = tally;
            Some(Change { service: key?.clone(), frontends, added, removed, writes })
        });
        Plan { ops, changed: changed.collect(), refused: self.refused, held: self.held }
    }
}

/// Returns the other service ports with the name of `port`, which `keeper` keeps.
fn same_name<'a>(
    shadow: &'a Shadow,
    existing: &'a [u32],
    port: &'a PortSpec,
    keeper: u32,
) -> impl Iterator<Item = u32> + 'a {
    let same = |id: u32| shadow.port(id).is_some_and(|have| have.key.as_ref() == Some(&port.key));
    existing.iter().copied().filter(move |&id| id != keeper && same(id))
}

#[cfg(test)]
mod tests;
