//! The writes for one service port. Lists are edited in place, so k changes in a list cost O(k) writes whatever its
//! length (invariant I14).
//!
//! New backends, or backends of the tail, overwrite the slots of departed backends; then the length moves; then the
//! slots beyond it are deleted.

use std::{collections::BTreeSet, num::NonZeroU32};

use lb_common::{
    Backend, EjectPolicy, Frontend, List, MaglevKey, NEVER, RangeKey, Scheduler, ServiceEntry, ServiceFlags, SlotKey,
};

use super::{
    Phase, Planner,
    maglev::{self, Entry},
};
use crate::{
    objects::Drain,
    op::{Op, Table},
    ranges,
    shadow::{FilledSlot, Port},
    spec::{Member, PortSpec},
};
use lb_common::AddrPort;

/// Buffers reused for each service port.
#[derive(Default)]
pub(super) struct Scratch {
    /// The id of each desired backend, if it has one.
    ids: Vec<Option<NonZeroU32>>,
    lists: [ListScratch; 2],
    /// Valid backends of this service port that no slot keeps, and loose backends, by address.
    spare: Vec<(AddrPort, u32)>,
    /// Candidates for deletion.
    doomed: Vec<u32>,
}

#[derive(Default)]
struct ListScratch {
    /// Number of slots that each desired backend still lacks.
    lacking: Vec<u16>,
    /// True for each index below the new length whose slot stays.
    filled: Vec<bool>,
}

impl Scratch {
    /// Returns the first spare backend at `target`.
    fn spare(&self, target: &AddrPort) -> Option<NonZeroU32> {
        let at = self.spare.partition_point(|(other, _)| other < target);
        self.spare.get(at).filter(|(other, _)| other == target).and_then(|(_, id)| NonZeroU32::new(*id))
    }
}

impl Planner<'_> {
    /// Plans the service port `id`: from `have`, in the maps, to `want`.
    pub(super) fn port(&mut self, id: u32, have: Option<&Port>, want: &PortSpec, tally: usize) {
        let name = have.and_then(|port| port.key.as_ref());
        if name != Some(&want.key) {
            self.emit(Phase::PutName, Op::PutName(id, Box::new(want.key.clone())));
            self.used[Table::Names as usize] += usize::from(name.is_none());
        }
        let old = have.and_then(|port| port.service).unwrap_or_default();
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.ids.clear();
        scratch.ids.resize(want.backends.len(), None);
        scratch.spare.clear();
        scratch.doomed.clear();
        for list in List::ALL {
            self.keep(id, have, list, old.len(list), want, &mut scratch);
        }
        for backend in self.loose.get(&id).into_iter().flatten().copied() {
            if let Some(known) = self.shadow.backend(backend) {
                let target = AddrPort { addr: known.addr, port: known.port };
                if self.keeps_backend(id, want, &target, backend) {
                    scratch.spare.push((target, backend));
                }
                scratch.doomed.push(backend);
            }
        }
        scratch.spare.sort_unstable();
        self.identify(id, want, &mut scratch);
        for list in List::ALL {
            self.fill(id, have, list, old.len(list), want, &mut scratch);
        }
        self.delete_backends(&mut scratch);
        self.tables(id, have, want, &scratch);
        self.scratch = scratch;
        self.ranges(id, have, want);
        self.service_value(id, have, old, want);
        self.frontends(id, have, want, tally);
    }

    /// Finds the slots of a list that can stay.
    fn keep(&self, id: u32, have: Option<&Port>, list: List, old_len: u32, want: &PortSpec, scratch: &mut Scratch) {
        let this = &mut scratch.lists[list as usize];
        this.lacking.clear();
        this.lacking.extend(want.backends.iter().map(|member| if member.is_in(list) { member.weight } else { 0 }));
        this.filled.clear();
        this.filled.resize(want.len(list) as usize, false);
        let places = have.map_or(&[][..], |port| port.list(list));
        for (index, place) in places.iter().enumerate() {
            let Some(place) = place else { continue };
            let (target, backend) = (place.target(), place.backend.get());
            if !self.shadow.is_sound(id, &target, backend) || !self.keeps_backend(id, want, &target, backend) {
                if self.shadow.backend(backend).is_some_and(|known| known.service == id) {
                    scratch.doomed.push(backend);
                }
                continue;
            }
            // A slot beyond the length that readers know is not kept; `fill` writes it unless its value is right.
            let wanted = if index < old_len as usize { want.find(&target) } else { None };
            match wanted.and_then(|at| Some((at, want.backends.get(at).filter(|member| member.is_in(list))?))) {
                // The same backend in both lists.
                Some((at, member)) if scratch.ids[at].is_none_or(|other| other == place.backend) => {
                    scratch.ids[at] = Some(place.backend);
                    let this = &mut scratch.lists[list as usize];
                    if let Some(filled) = this.filled.get_mut(index)
                        && this.lacking[at] > 0
                        && place.weight == member.weight
                    {
                        *filled = true;
                        this.lacking[at] -= 1;
                    }
                }
                _ => {
                    scratch.spare.push((target, backend));
                    scratch.doomed.push(backend);
                }
            }
        }
    }

    /// Gives each desired backend its id, or a new one, and writes its list bits.
    fn identify(&mut self, id: u32, want: &PortSpec, scratch: &mut Scratch) {
        for (at, member) in want.backends.iter().enumerate() {
            let Member { target, flags, .. } = *member;
            let value = |flags| Backend { addr: target.addr, port: target.port, flags, service: id };
            if let Some(backend) = scratch.ids[at].or_else(|| scratch.spare(&target)) {
                scratch.ids[at] = Some(backend);
                let old = self.shadow.backend(backend.get()).map_or(0, |known| known.flags);
                // Set a list bit before slots name the backend; clear it after.
                let both = old | flags;
                if both != old {
                    self.emit(Phase::JoinList, Op::PutBackend(backend.get(), value(both)));
                }
                if flags != both {
                    self.emit(Phase::LeaveList, Op::PutBackend(backend.get(), value(flags)));
                }
            } else if member.is_listed() {
                let backend = self.new_backend_id(id, &target, want);
                self.emit(Phase::PutBackend, Op::PutBackend(backend, value(flags)));
                self.used[Table::Backends as usize] += 1;
                scratch.ids[at] = NonZeroU32::new(backend);
            }
        }
    }

    /// Writes the wrong slots of a list and deletes the slots beyond its end.
    fn fill(&mut self, id: u32, have: Option<&Port>, list: List, old_len: u32, want: &PortSpec, scratch: &mut Scratch) {
        let places = have.map_or(&[][..], |port| port.list(list));
        let ListScratch { lacking, filled } = &mut scratch.lists[list as usize];
        let mut hole = 0;
        for ((member, backend), lacking) in want.backends.iter().zip(&scratch.ids).zip(lacking) {
            let Some(backend) = *backend else { continue };
            let Member { target: AddrPort { addr, port }, weight, .. } = *member;
            let place = FilledSlot { addr, port, weight, backend };
            for _ in 0..*lacking {
                while filled[hole as usize] {
                    hole += 1;
                }
                let there = places.get(hole as usize).copied().flatten();
                if there != Some(place) {
                    let phase = if hole < old_len { Phase::PutOldSlot } else { Phase::PutNewSlot };
                    self.emit(phase, Op::PutSlot(SlotKey::new(id, list, hole), place.slot()));
                    self.used[Table::Slots as usize] += usize::from(there.is_none());
                }
                hole += 1;
            }
        }
        for (index, place) in (0..).zip(places).skip(filled.len()) {
            if place.is_some() {
                self.emit(Phase::DeleteSlot, Op::DeleteSlot(SlotKey::new(id, list, index)));
            }
        }
    }

    /// Deletes backends that are no longer desired.
    fn delete_backends(&mut self, scratch: &mut Scratch) {
        let mut doomed = std::mem::take(&mut scratch.doomed);
        doomed.sort_unstable();
        doomed.dedup();
        let mut kept: Vec<u32> = scratch.ids.iter().flatten().map(|id| id.get()).collect();
        kept.sort_unstable();
        for &backend in &doomed {
            if kept.binary_search(&backend).is_err() && self.shadow.backend(backend).is_some() {
                self.emit(Phase::DeleteBackend, Op::DeleteBackend(backend));
            }
        }
        scratch.doomed = doomed;
    }

    fn service_value(&mut self, id: u32, have: Option<&Port>, old: ServiceEntry, want: &PortSpec) {
        let (cluster_len, local_len) = (want.len(List::Cluster), want.len(List::Local));
        let new = ServiceEntry {
            cluster_len,
            local_len,
            cluster_stride: stride(cluster_len),
            local_stride: stride(local_len),
            flags: want.flags,
            scheduler: want.scheduler as u32,
            affinity_seconds: want.affinity_seconds,
            drain_seconds: match want.drain {
                Drain::Never => NEVER,
                Drain::After(seconds) => seconds,
            },
            eject: want.eject_policy(),
        };
        let there = have.and_then(|port| port.service);
        if there == Some(new) {
            return;
        }
        self.used[Table::Services as usize] += usize::from(there.is_none());
        let early = between(&old, &new);
        if there != Some(early) {
            self.emit(Phase::PutService, Op::PutService(id, early));
        }
        if early != new {
            self.emit(Phase::LateService, Op::PutService(id, new));
        }
    }

    fn ranges(&mut self, id: u32, have: Option<&Port>, want: &PortSpec) {
        if want.ranges.is_empty() && have.is_none_or(|port| port.ranges().next().is_none()) {
            return;
        }
        let have: BTreeSet<RangeKey> = have.iter().flat_map(|port| port.ranges()).copied().collect();
        let want: BTreeSet<RangeKey> = want.ranges.iter().map(|net| ranges::key(id, net)).collect();
        for key in want.difference(&have) {
            self.emit(Phase::PutRange, Op::PutRange(*key));
            self.used[Table::SourceRanges as usize] += 1;
        }
        have.difference(&want).for_each(|key| self.emit(Phase::DeleteRange, Op::DeleteRange(*key)));
    }

    /// Plans the Maglev tables of the scheduler `mh`.
    fn tables(&mut self, id: u32, have: Option<&Port>, want: &PortSpec, scratch: &Scratch) {
        let mut stale: Vec<u32> = have.iter().flat_map(|port| port.tables()).map(|(list, _)| list).collect();
        if want.scheduler == Scheduler::Mh {
            for list in List::ALL {
                let members = want.backends.iter().zip(&scratch.ids).filter(|(member, _)| member.is_in(list));
                let entry = |(member, id): (&Member, &Option<NonZeroU32>)| {
                    Some(Entry { target: member.target, weight: member.weight, id: (*id)?.get() })
                };
                let Some(table) = maglev::table(members.filter_map(entry)) else { continue };
                let number = list as u32;
                stale.retain(|other| *other != number);
                let there = have.and_then(|port| port.tables().find(|(other, _)| *other == number));
                if there.is_none_or(|(_, there)| *there != *table) {
                    self.emit(Phase::PutMaglev, Op::PutMaglev(MaglevKey { service: id, list: number }, table));
                    self.used[Table::Maglev as usize] += usize::from(there.is_none());
                }
            }
        }
        for list in stale {
            self.emit(Phase::DeleteMaglev, Op::DeleteMaglev(MaglevKey { service: id, list }));
        }
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
                None => self.used[Table::of_frontend(&key) as usize] += 1,
                Some(old) if old.service != id => self.moved.push(key),
                Some(_) => {}
            }
            self.emit(Phase::put(&key), Op::PutFrontend(key, new));
        }
    }
}

impl PortSpec {
    /// Returns the number of slots of a list.
    #[must_use]
    pub fn len(&self, list: List) -> u32 {
        self.backends.iter().filter(|member| member.is_in(list)).map(|member| u32::from(member.weight)).sum()
    }

    /// Returns the ejection of its backends: at most half of each list, never the last.
    fn eject_policy(&self) -> EjectPolicy {
        let Some(eject) = self.eject else { return EjectPolicy::default() };
        let half = |list| {
            let count = self.backends.iter().filter(|member| member.is_in(list)).count();
            u16::try_from(count / 2).unwrap_or(u16::MAX)
        };
        EjectPolicy {
            failures: eject.failures.get(),
            window: eject.window.get(),
            seconds: eject.time.get(),
            cluster_most: half(List::Cluster),
            local_most: half(List::Local),
            _pad: 0,
        }
    }

    /// Returns the index of the backend at `target`.
    pub(super) fn find(&self, target: &AddrPort) -> Option<usize> {
        self.backends.binary_search_by(|member| member.target.cmp(target)).ok()
    }
}

/// Returns the value between `old` and `new` that holds while frontends come and go. Frontends of either find a
/// non-empty list if their own value has one; source ranges of either are enforced.
fn between(old: &ServiceEntry, new: &ServiceEntry) -> ServiceEntry {
    // A list that becomes empty, or a policy whose list becomes empty, changes later.
    let later = |len: &dyn Fn(&ServiceEntry) -> u32| if len(new) == 0 && len(old) > 0 { *old } else { *new };
    let cluster = later(&|service| service.cluster_len);
    let local = later(&|service| service.local_len);
    let by = |flag: u32| {
        let list = |service: &ServiceEntry| if service.flags & flag == 0 { List::Cluster } else { List::Local };
        later(&|service| service.len(list(service))).flags & flag
    };
    let bound = (old.flags | new.flags) & ServiceFlags::SOURCE_RANGES;
    ServiceEntry {
        cluster_len: cluster.cluster_len,
        cluster_stride: cluster.cluster_stride,
        local_len: local.local_len,
        local_stride: local.local_stride,
        flags: by(ServiceFlags::INTERNAL_LOCAL)
            | by(ServiceFlags::EXTERNAL_LOCAL)
            | bound
            | new.flags & (ServiceFlags::UDP_CONNECT | ServiceFlags::NOTES),
        ..*new
    }
}

/// Returns the stride of round-robin turns in a list of `len` slots: coprime to the length, so that turns visit every
/// slot, and near its golden section, so that adjacent slots, mostly of one backend, are not used in a row.
fn stride(len: u32) -> u32 {
    let prime_to = |stride: &u32| {
        let (mut a, mut b) = (*stride, len);
        while b != 0 {
            (a, b) = (b, a % b);
        }
        a == 1
    };
    let golden = u32::try_from(u64::from(len) * 618 / 1000).unwrap_or(1).max(1);
    (golden..len).find(prime_to).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_visit_every_slot_and_not_neighbours_in_a_row() {
        for len in (1..200).chain([1_000, 4_096, 10_007]) {
            let stride = stride(len);
            let mut seen = vec![false; len as usize];
            let mut at = 0;
            for _ in 0..len {
                seen[at as usize] = true;
                at = (at + stride) % len;
            }
            assert!(seen.iter().all(|&seen| seen), "{stride} in {len}");
            // Below 7 there may be no other number prime to the length.
            assert!(len < 7 || (2..len - 1).contains(&stride), "{stride} in {len}");
        }
        assert_eq!(stride(0), 1);
    }
}
