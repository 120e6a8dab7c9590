//! The only diff: from what the maps hold and what they shall hold to the writes between. Restart, resync, retry, dry run
//! and steady state are this one call.
//!
//! The writes of all Services go out in phases (`Phase`), so that a reader at any instant finds, for a frontend that
//! stays, a backend of the old or of the new set, and never none while both have one (invariant I1). The frontends that
//! move from one service port to another find the new one complete, and the old one not yet emptied; in between they may
//! lead to a backend of either.

mod maglev;
mod port;

use std::collections::BTreeSet;

use foldhash::{HashMap, HashSet};
use lb_common::{Addr, FrontendKey, Kind, List, MaglevKey, NodeAddr, NodeAddrFlags, SlotKey};

use crate::{
    ids::Ids,
    objects::Key,
    op::{Op, Table},
    shadow::{Port, Shadow},
    spec::{PortSpec, ServiceSpec},
    store::Limits,
    warning::Warning,
};

/// What the desired list is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scope {
    /// Some Services; the others stay as they are.
    Some,
    /// All Services; whatever else stands in the maps goes.
    World,
}

/// What becomes of a frontend whose new owner has no room yet, when the old owner has gone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OnOrphan {
    /// The old owner serves on.
    Keep,
    /// It goes.
    Remove,
}

/// The writes, in order, and what they mean.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Plan {
    /// To be performed in this order.
    pub ops: Vec<Op>,
    /// The Services that they change.
    pub changed: Vec<Change>,
    /// The Services that do not fit, and stay as they are (invariant I15).
    pub refused: Vec<Refused>,
    /// The Services that serve on until another one, which is refused, can take over.
    pub held: Vec<Key>,
}

/// What a plan does to one Service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Change {
    /// The Service.
    pub service: Key,
    /// How many frontends it has afterwards that can be dialled.
    pub frontends: usize,
    /// Backends that come.
    pub added: usize,
    /// Backends that go.
    pub removed: usize,
    /// Writes in all.
    pub writes: usize,
}

/// A Service for which a map has no room.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refused {
    /// The Service.
    pub service: Key,
    /// The map.
    pub table: Table,
    /// How many entries the map may have.
    pub size: usize,
}

impl Refused {
    /// The warning for the owner of the Service.
    #[must_use]
    pub fn warning(&self) -> Warning {
        let Self { service, table, size } = self;
        Warning::MapFull { service: service.clone(), map: table.map_name(), flag: table.flag_name(), size: *size }
    }
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.warning().fmt(f)
    }
}

/// When an op takes place. The order is what invariant I1 rests on.
#[derive(Clone, Copy)]
enum Phase {
    /// Nobody reads these yet.
    PutName,
    PutBackend,
    /// Who sticks to a backend may do so in one more list.
    JoinList,
    /// Slots at or beyond the length that readers know.
    PutNewSlot,
    /// Slots that readers may meet: the place of a departed backend is taken by a new one, or by the tail.
    PutOldSlot,
    /// Who is let in, before anything says that only those are.
    PutRange,
    /// It names backends that are there, in their lists; the slots are right without it too.
    PutMaglev,
    /// The length, once all slots below it are right.
    PutService,
    /// A frontend appears, or moves, when its service port is complete.
    PutFrontend,
    DeleteFrontend,
    /// A list that becomes empty does so when the frontends that leave it have left; and who was bound to source ranges is
    /// free of them then.
    LateService,
    /// Who sticks to a backend may do so in one list less.
    LeaveList,
    /// The node's addresses, which concern no service port.
    PutNodeAddr,
    DeleteNodeAddr,
    /// Others are let in by now, or nothing says any more that only those are.
    DeleteRange,
    /// From here on only what no reader can reach.
    DeleteService,
    DeleteMaglev,
    DeleteSlot,
    DeleteBackend,
    DeleteName,
}

const PHASES: usize = Phase::DeleteName as usize + 1;

/// Plans the writes that make `desired`, sorted by key, true. `shadow` is what the maps hold. Entries that a plan deletes
/// do not count as room for its own: plan once more when it is done. `addresses` are those at which NodePorts answer;
/// none leaves them as they are.
#[must_use]
pub fn plan(
    shadow: &Shadow,
    desired: &[ServiceSpec],
    addresses: Option<&BTreeSet<Addr>>,
    scope: Scope,
    heirless: OnOrphan,
    limits: &Limits,
) -> Plan {
    let mut planner = Planner::new(shadow, limits);
    desired.iter().for_each(|spec| planner.service(spec));
    if scope == Scope::World {
        planner.orphans(desired);
    }
    planner.departures(desired, heirless);
    if let Some(addresses) = addresses {
        planner.addresses(addresses);
    }
    planner.finish(desired)
}

struct Planner<'a> {
    shadow: &'a Shadow,
    limits: [usize; Table::ALL.len()],
    /// Entries of each map, with those that this plan adds.
    used: [usize; Table::ALL.len()],
    port_ids: Ids,
    backend_ids: Ids,
    /// Loose backends by their service port, sorted.
    loose: HashMap<u32, Vec<u32>>,
    phases: [Vec<Op>; PHASES],
    /// Frontends that come from another service port.
    moved: Vec<FrontendKey>,
    /// Frontends that their service port no longer wants.
    lost: Vec<(FrontendKey, usize)>,
    /// Service ports that nobody wants.
    gone: Vec<(u32, usize)>,
    /// What each Service gets; the first ones are those desired, then come orphans.
    tallies: Vec<Tally>,
    orphans: Vec<Option<Key>>,
    refused: Vec<Refused>,
    /// What refused Services would take over.
    awaited: HashSet<FrontendKey>,
    held: Vec<Key>,
    scratch: port::Scratch,
}

#[derive(Clone, Copy, Default)]
struct Tally {
    added: usize,
    removed: usize,
    writes: usize,
}

/// Where a Service began, to forget it again.
struct Mark {
    used: [usize; Table::ALL.len()],
    ids: (Ids, Ids),
    phases: [usize; PHASES],
    lists: [usize; 3],
}

impl<'a> Planner<'a> {
    fn new(shadow: &'a Shadow, limits: &Limits) -> Self {
        let mut loose: HashMap<u32, Vec<u32>> = HashMap::default();
        for (id, backend) in shadow.loose_backends() {
            loose.entry(backend.service).or_default().push(id);
        }
        loose.values_mut().for_each(|ids| ids.sort_unstable());
        let (port_ids, backend_ids) = shadow.ids();
        Self {
            shadow,
            limits: Table::ALL.map(|table| limits.of(table)),
            used: Table::ALL.map(|table| shadow.count(table)),
            port_ids,
            backend_ids,
            loose,
            phases: Default::default(),
            moved: Vec::new(),
            lost: Vec::new(),
            gone: Vec::new(),
            tallies: Vec::new(),
            orphans: Vec::new(),
            refused: Vec::new(),
            awaited: HashSet::default(),
            held: Vec::new(),
            scratch: port::Scratch::default(),
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
        for port in &spec.ports {
            let same = existing.iter().filter_map(|&id| Some((id, self.shadow.port(id)?)));
            let same = same.filter(|(_, have)| have.key.as_ref() == Some(&port.key));
            // Of two with one name the one that is in use; the other goes.
            let keeper = same.max_by_key(|(id, have)| (have.frontends.len(), std::cmp::Reverse(*id)));
            let id = match keeper {
                Some((id, _)) => id,
                None => self.port_ids.take(|id| self.shadow.port_in_use(id)),
            };
            self.port(id, keeper.map(|(_, have)| have), port, tally);
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

    /// Everything that no desired Service bears the name of.
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
        let nobodys = self.shadow.loose_backends().filter(|(_, backend)| !self.shadow.port_in_use(backend.service));
        let mut nobodys: Vec<u32> = nobodys.map(|(id, _)| id).collect();
        nobodys.sort_unstable();
        nobodys.into_iter().for_each(|id| self.emit(Phase::DeleteBackend, Op::DeleteBackend(id)));

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

    /// Takes away what nobody wants any more, now that it is known what was refused.
    fn departures(&mut self, desired: &[ServiceSpec], heirless: OnOrphan) {
        let moved: HashSet<FrontendKey> = self.moved.iter().copied().collect();
        for (key, tally) in std::mem::take(&mut self.lost) {
            // A frontend whose next owner has no room stays where it is.
            if !moved.contains(&key) && !self.awaited.contains(&key) {
                self.emit(Phase::DeleteFrontend, Op::DeleteFrontend(key));
                self.tallies[tally].writes += 1;
            }
        }
        for (id, tally) in std::mem::take(&mut self.gone) {
            let Some(port) = self.shadow.port(id) else { continue };
            let mark = self.mark();
            let mut held = false;
            let mut frontends: Vec<FrontendKey> =
                port.frontends.iter().copied().filter(|key| !moved.contains(key)).collect();
            frontends.sort_unstable();
            for key in frontends {
                if heirless == OnOrphan::Keep && self.awaited.contains(&key) {
                    held = true;
                } else {
                    self.emit(Phase::DeleteFrontend, Op::DeleteFrontend(key));
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
        // Also without a name: one that could not be read is not in the shadow.
        self.emit(Phase::DeleteName, Op::DeleteName(id));
    }

    /// The node's addresses, as far as the map has room for them.
    fn addresses(&mut self, wanted: &BTreeSet<Addr>) {
        let wanted = || wanted.iter().take(self.limits[Table::NodeAddrs as usize]);
        let value =
            |addr: &Addr| NodeAddr { flags: if addr.to_ip().is_loopback() { NodeAddrFlags::HOST_ONLY } else { 0 } };
        let have = self.shadow.node_addrs();
        let new = wanted().filter(|addr| have.get(addr) != Some(&value(addr)));
        let new: Vec<_> = new.map(|addr| Op::PutNodeAddr(*addr, value(addr))).collect();
        let wanted: HashSet<&Addr> = wanted().collect();
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
            lists: [self.moved.len(), self.lost.len(), self.gone.len()],
        }
    }

    fn rewind(&mut self, mark: &Mark) {
        self.used = mark.used;
        (self.port_ids, self.backend_ids) = mark.ids;
        self.phases.iter_mut().zip(mark.phases).for_each(|(ops, len)| ops.truncate(len));
        let [moved, lost, gone] = mark.lists;
        self.moved.truncate(moved);
        self.lost.truncate(lost);
        self.gone.truncate(gone);
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
        let dialled = |port: &PortSpec| port.frontends.iter().filter(|(_, kind)| *kind != Kind::Address).count();
        let known = desired.iter().map(|spec| (Some(&spec.key), spec.ports.iter().map(dialled).sum()));
        let all = known.chain(self.orphans.iter().map(|key| (key.as_ref(), 0))).zip(self.tallies);
        let changed = all.filter(|(_, tally)| tally.writes > 0).filter_map(|((key, frontends), tally)| {
            let Tally { added, removed, writes } = tally;
            Some(Change { service: key?.clone(), frontends, added, removed, writes })
        });
        Plan { ops, changed: changed.collect(), refused: self.refused, held: self.held }
    }
}

/// The service ports that bear the name of `port` beside the one that keeps it.
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
