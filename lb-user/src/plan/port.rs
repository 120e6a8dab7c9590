//! The writes for one service port: its lists are edited in place, so that k changes in a list cost O(k) writes whatever
//! its length (invariant I14).
//!
//! The slots of departed backends are overwritten, with new backends or with those of the tail; then the length moves;
//! then what lies beyond it is deleted.

use std::num::NonZeroU32;

use lb_common::{Backend, Frontend, List, Service, ServiceFlags, SlotKey};

use super::{Phase, Planner};
use crate::{
    op::{Op, Table},
    shadow::{Place, Port},
    spec::{PortSpec, Target},
};

/// Memory that is used again for each service port.
#[derive(Default)]
pub(super) struct Scratch {
    lists: [ListScratch; 2],
    /// Sound backends of this service port in slots that do not keep them, and loose ones.
    spare: Vec<(Target, u32)>,
    /// Backends that may have to go.
    doomed: Vec<u32>,
}

#[derive(Default)]
struct ListScratch {
    /// For each wanted target the backend that it has, if any.
    backends: Vec<Option<NonZeroU32>>,
    /// For each wanted target whether it stands where it can stay.
    home: Vec<bool>,
    /// For each index below the new length whether a wanted target stays there.
    filled: Vec<bool>,
}

impl Scratch {
    /// The backend of `target` in `list`, if it is wanted there and has one.
    fn backend_in(&self, list: List, want: &[Target], target: &Target) -> Option<NonZeroU32> {
        let at = want.binary_search(target).ok()?;
        self.lists[list as usize].backends.get(at).copied().flatten()
    }

    /// The first spare backend of `target`.
    fn spare(&self, target: &Target) -> Option<NonZeroU32> {
        let at = self.spare.partition_point(|(other, _)| other < target);
        self.spare.get(at).filter(|(other, _)| other == target).and_then(|(_, id)| NonZeroU32::new(*id))
    }
}

impl Planner<'_> {
    /// Makes the service port `id` what `want` says; `have` is what stands there.
    pub(super) fn port(&mut self, id: u32, have: Option<&Port>, want: &PortSpec, tally: usize) {
        if have.is_none() {
            self.emit(Phase::PutName, Op::PutName(id, Box::new(want.key.clone())));
            self.used[Table::Names as usize] += 1;
        }
        let old = have.and_then(|port| port.service).unwrap_or_default();
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.spare.clear();
        scratch.doomed.clear();
        self.keep(id, have, List::Cluster, old.cluster_len, want, &mut scratch);
        self.keep(id, have, List::Local, old.local_len, want, &mut scratch);
        for backend in self.loose.get(&id).into_iter().flatten().copied() {
            if let Some(known) = self.shadow.backend(backend) {
                scratch.spare.push((Target { addr: known.addr, port: known.port }, backend));
                scratch.doomed.push(backend);
            }
        }
        scratch.spare.sort_unstable();
        self.fill(id, have, List::Cluster, old.cluster_len, want, &mut scratch);
        self.fill(id, have, List::Local, old.local_len, want, &mut scratch);
        self.bury(want, &mut scratch);
        self.scratch = scratch;
        self.lengths(id, have, old, want);
        self.frontends(id, have, want, tally);
    }

    /// Finds which slots of a list can stay as they are.
    fn keep(&self, id: u32, have: Option<&Port>, list: List, old_len: u32, want: &PortSpec, scratch: &mut Scratch) {
        let targets = want.list(list);
        let this = &mut scratch.lists[list as usize];
        this.backends.clear();
        this.backends.resize(targets.len(), None);
        this.home.clear();
        this.home.resize(targets.len(), false);
        this.filled.clear();
        this.filled.resize(targets.len(), false);
        let places = have.map_or(&[][..], |port| port.list(list));
        for (index, place) in places.iter().enumerate() {
            let Some(place) = place else { continue };
            let backend = place.backend.get();
            if !self.shadow.is_sound(id, &place.target, backend) {
                if self.shadow.backend(backend).is_some_and(|known| known.service == id) {
                    scratch.doomed.push(backend);
                }
                continue;
            }
            // What a reader does not see yet is no place to stay: it is written again, or found to be right already.
            let wanted = if index < old_len as usize { targets.binary_search(&place.target).ok() } else { None };
            // One backend for both lists.
            let agreed = list == List::Cluster
                || scratch
                    .backend_in(List::Cluster, &want.cluster, &place.target)
                    .is_none_or(|other| other == place.backend);
            let this = &mut scratch.lists[list as usize];
            match wanted {
                Some(at) if agreed && this.backends[at].is_none() => {
                    this.backends[at] = Some(place.backend);
                    if let Some(filled) = this.filled.get_mut(index) {
                        *filled = true;
                        this.home[at] = true;
                    }
                }
                _ => {
                    scratch.spare.push((place.target, backend));
                    scratch.doomed.push(backend);
                }
            }
        }
    }

    /// Writes the slots of a list that are not right, and deletes those beyond its end.
    fn fill(&mut self, id: u32, have: Option<&Port>, list: List, old_len: u32, want: &PortSpec, scratch: &mut Scratch) {
        let places = have.map_or(&[][..], |port| port.list(list));
        let targets = want.list(list);
        let mut hole = 0;
        for (at, target) in targets.iter().enumerate() {
            if scratch.lists[list as usize].home[at] {
                continue;
            }
            while scratch.lists[list as usize].filled[hole as usize] {
                hole += 1;
            }
            let backend = match scratch.lists[list as usize].backends[at] {
                Some(backend) => backend,
                None => self.backend(id, list, want, target, scratch),
            };
            scratch.lists[list as usize].backends[at] = Some(backend);
            let place = Place { target: *target, backend };
            let there = places.get(hole as usize).copied().flatten();
            if there != Some(place) {
                let phase = if hole < old_len { Phase::PutOldSlot } else { Phase::PutNewSlot };
                self.emit(phase, Op::PutSlot(SlotKey::new(id, list, hole), place.slot()));
                self.used[Table::Slots as usize] += usize::from(there.is_none());
            }
            hole += 1;
        }
        for (index, place) in (0..).zip(places).skip(targets.len()) {
            if place.is_some() {
                self.emit(Phase::DeleteSlot, Op::DeleteSlot(SlotKey::new(id, list, index)));
            }
        }
    }

    /// The backend of a target that `list` does not have yet: the other list's, a spare one, or a new one.
    fn backend(&mut self, id: u32, list: List, want: &PortSpec, target: &Target, scratch: &Scratch) -> NonZeroU32 {
        let other = if list == List::Cluster { List::Local } else { List::Cluster };
        if let Some(backend) = scratch.backend_in(other, want.list(other), target).or_else(|| scratch.spare(target)) {
            return backend;
        }
        let shadow = self.shadow;
        let backend = self.backend_ids.take(|id| shadow.backend_in_use(id));
        let value = Backend { addr: target.addr, port: target.port, _pad: 0, service: id };
        self.emit(Phase::PutBackend, Op::PutBackend(backend, value));
        self.used[Table::Backends as usize] += 1;
        NonZeroU32::new(backend).expect("ids are never 0")
    }

    /// Deletes the backends that no slot will name.
    fn bury(&mut self, want: &PortSpec, scratch: &mut Scratch) {
        let mut doomed = std::mem::take(&mut scratch.doomed);
        doomed.sort_unstable();
        doomed.dedup();
        for &backend in &doomed {
            let Some(known) = self.shadow.backend(backend) else { continue };
            let target = Target { addr: known.addr, port: known.port };
            let used = List::ALL.into_iter().any(|list| {
                scratch.backend_in(list, want.list(list), &target).is_some_and(|used| used.get() == backend)
            });
            if !used {
                self.emit(Phase::DeleteBackend, Op::DeleteBackend(backend));
            }
        }
        scratch.doomed = doomed;
    }

    fn lengths(&mut self, id: u32, have: Option<&Port>, old: Service, want: &PortSpec) {
        let len = |list: &[Target]| u32::try_from(list.len()).unwrap_or(u32::MAX);
        let new = Service { cluster_len: len(&want.cluster), local_len: len(&want.local), flags: want.flags };
        let there = have.and_then(|port| port.service);
        if there == Some(new) {
            return;
        }
        self.used[Table::Services as usize] += usize::from(there.is_none());
        let phase = if empties(&old, &new) { Phase::EmptyService } else { Phase::PutService };
        self.emit(phase, Op::PutService(id, new));
    }

    fn frontends(&mut self, id: u32, have: Option<&Port>, want: &PortSpec, tally: usize) {
        let first_lost = self.lost.len();
        for key in have.map_or(&[][..], |port| &*port.frontends) {
            if want.frontends.binary_search_by(|(wanted, _)| wanted.cmp(key)).is_err() {
                self.lost.push((*key, tally));
            }
        }
        if let Some(lost) = self.lost.get_mut(first_lost..) {
            lost.sort_unstable();
        }
        for &(key, kind) in &want.frontends {
            let new = Frontend::new(id, kind);
            let there = self.shadow.frontend(&key);
            if there == Some(new) {
                continue;
            }
            match there {
                None => self.used[Table::Frontends as usize] += 1,
                Some(old) if old.service != id => self.moved.push(key),
                Some(_) => {}
            }
            self.emit(Phase::PutFrontend, Op::PutFrontend(key, new));
        }
    }
}

impl PortSpec {
    /// The targets of a list.
    #[must_use]
    pub fn list(&self, list: List) -> &[Target] {
        match list {
            List::Cluster => &self.cluster,
            List::Local => &self.local,
        }
    }
}

/// Whether some kind of frontend has a list before and none after.
fn empties(old: &Service, new: &Service) -> bool {
    let internal = |service: &Service| match service.flags & ServiceFlags::INTERNAL_LOCAL {
        0 => service.cluster_len,
        _ => service.local_len,
    };
    (old.cluster_len > 0 && new.cluster_len == 0) || (internal(old) > 0 && internal(new) == 0)
}
