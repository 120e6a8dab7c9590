//! Choice from a backend list: affinity first, then the scheduler. Never walks the list.

use super::{AffinityOutcome, Caller, Choice, Look, Observer, Outcome, Pair, Reason, SelectEvent, State, Step, Tables};
use crate::{
    Affinity, Backend, BackendFlags, FrontendKey, List, MAGLEV_LEN, MaglevKey, Scheduler, ServiceEntry, Slot, SlotKey,
    hash::{fold, scale, splitmix},
    scope_mask,
};

impl<T: Tables + State, C: Caller, O: Observer> Look<'_, T, C, O> {
    /// Chooses from a list with at least one slot: the backend of the client's affinity, or a backend by the scheduler.
    #[inline(always)]
    pub(super) fn schedule(&self, service: &ServiceEntry, list: List, avoid: u32, choice: Choice) -> Outcome {
        // Asked twice rather than once around all: the verifier would follow the scheduler with and without affinity.
        if service.affinity_seconds != 0
            && let Some(choice) = self.kept(service, list, choice)
        {
            return Outcome { step: Step::Chosen, choice };
        }
        let outcome = self.pick(service, list, avoid, choice);
        if service.affinity_seconds != 0 && outcome.step == Step::Chosen {
            let mask = scope_mask(choice.service);
            let key = self.caller.client().affinity_key(choice.service & !mask);
            self.tables.set_affinity(&key, outcome.choice.backend & !mask, self.caller.now());
        }
        outcome
    }

    /// The backend of the client's affinity, which is used now.
    #[inline(always)]
    fn kept(&self, service: &ServiceEntry, list: List, choice: Choice) -> Option<Choice> {
        let mask = scope_mask(choice.service);
        let key = self.caller.client().affinity_key(choice.service & !mask);
        let now = self.caller.now();
        let of_port = |entry: Affinity| Affinity { backend: entry.backend | (choice.service & mask), ..entry };
        let entry = self.tables.affinity(&key).map(of_port);
        let choice = affine_backend(self.tables, entry.as_ref(), service, list, now, choice);
        self.observer.note(|| {
            let outcome = match choice {
                Some(_) => AffinityOutcome::Kept,
                None => AffinityOutcome::of_unkept(entry.as_ref(), service.affinity_seconds, now),
            };
            SelectEvent::Affinity { key, entry, outcome }
        });
        let choice = choice?;
        self.tables.set_affinity(&key, choice.backend & !mask, now);
        Some(Choice { reason: Reason::Affinity, ..choice })
    }

    /// Chooses a backend by the scheduler.
    #[inline(always)]
    fn pick(&self, service: &ServiceEntry, list: List, avoid: u32, mut choice: Choice) -> Outcome {
        let Self { tables, caller, observer, dest } = self;
        let (len, stride, scheduler) = (service.len(list), service.stride(list), service.scheduler);
        let (index, reason) = first_index(*tables, *caller, dest, service, list, choice.service);
        let at = |index| tables.slot(&SlotKey::new(choice.service, list, index));
        let in_table = if scheduler == Scheduler::Mh as u32 { self.by_maglev(list, choice.service) } else { None };
        let Some(mut slot) = in_table.or_else(|| at(index)) else {
            observer.note(|| SelectEvent::SlotMissing);
            return Outcome { step: Step::NoEndpoints, choice };
        };
        choice.reason = if in_table.is_some() { Reason::MaglevTable } else { reason };
        observer.note(|| SelectEvent::Scheduled { backend: slot.backend, reason: choice.reason });
        let compares = Scheduler::compares_open_sockets(scheduler);
        if len > 1 && (compares || (avoid != 0 && slot.backend == avoid)) {
            // As far away as a turn, since the slots of a backend are mostly adjacent.
            let by = if compares { 1 + scale(caller.random(), len - 1) } else { stride };
            if let Some(other) = at(after(index, by, len)) {
                let scheduled = slot.backend;
                if scheduled == avoid {
                    choice.reason = Reason::Avoided;
                }
                if slot.backend == avoid || (other.backend != avoid && is_better(*tables, scheduler, &other, &slot)) {
                    slot = other;
                }
                observer.note(|| {
                    let pair = Pair { scheduled, other: other.backend, taken: slot.backend };
                    let avoided = [pair.scheduled, pair.other].contains(&avoid);
                    if avoided { SelectEvent::Avoided(pair) } else { SelectEvent::Compared(pair) }
                });
            }
        }
        Outcome::of(&slot, choice)
    }

    /// The backend at the flow's place in the Maglev table, as a slot. `None` if it has left the list: lists change
    /// after the table.
    #[inline(always)]
    fn by_maglev(&self, list: List, service: u32) -> Option<Slot> {
        let place = scale(self.caller.flow_hash(), MAGLEV_LEN as u32);
        let backend = self.tables.maglev(&MaglevKey { service, list: list as u32 }, place)?;
        let Backend { addr, port, flags, service: of } = self.tables.backend(backend)?;
        let is_in_list = of == service && flags & BackendFlags::of(list) != 0;
        if is_in_list { Some(Slot { addr, port, weight: 1, backend }) } else { None }
    }
}

impl<T: Tables, C: Caller, O: Observer> Look<'_, T, C, O> {
    /// Slot 0, in place of a missing slot: it exists as long as the list has any.
    #[inline(always)]
    pub(super) fn first_slot(&self, list: List, choice: Choice) -> Outcome {
        self.observer.note(|| SelectEvent::SlotMissing);
        match self.tables.slot(&SlotKey::new(choice.service, list, 0)) {
            Some(slot) => Outcome::of(&slot, choice),
            None => Outcome { step: Step::NoEndpoints, choice },
        }
    }
}

/// The index of the slot by the scheduler, and the rule by which it was found.
#[inline(always)]
pub(super) fn first_index(
    state: &impl State,
    caller: &impl Caller,
    dest: &FrontendKey,
    service: &ServiceEntry,
    list: List,
    id: u32,
) -> (u32, Reason) {
    let (len, stride, scheduler) = (service.len(list), service.stride(list), service.scheduler);
    if scheduler == Scheduler::Rr as u32 || scheduler == Scheduler::Wrr as u32 {
        match state.turn(id, list, len, stride) {
            Some(index) => (index, Reason::Turn),
            None => (scale(caller.random(), len), Reason::Random),
        }
    } else if scheduler == Scheduler::Sh as u32 {
        (scale(splitmix(fold(&caller.client().addr), id), len), Reason::ClientHash)
    } else if scheduler == Scheduler::Dh as u32 {
        (scale(splitmix(fold(&dest.addr), id), len), Reason::DestinationHash)
    } else {
        (scale(caller.flow_hash(), len), Reason::Random)
    }
}

/// The backend of the client's affinity, if it still counts and is in `list` (semantics: rule 7).
#[inline(always)]
fn affine_backend(
    tables: &impl Tables,
    entry: Option<&Affinity>,
    service: &ServiceEntry,
    list: List,
    now: u64,
    choice: Choice,
) -> Option<Choice> {
    let affinity = entry?;
    if !affinity.lasts(service.affinity_seconds, now) {
        return None;
    }
    let Backend { addr, port, flags, service } = tables.backend(affinity.backend)?;
    let is_in_list = service == choice.service && flags & BackendFlags::of(list) != 0;
    if is_in_list { Some(choice.to(affinity.backend, addr, port)) } else { None }
}

/// True if `other` is preferred to `slot` (Linux, net/netfilter/ipvs/ip_vs_lc.c, _wlc.c, _sed.c, _nq.c; of two backends
/// instead of all). `slot`, at random as well, wins a tie.
#[inline(always)]
pub(super) fn is_better(state: &impl State, scheduler: u32, other: &Slot, slot: &Slot) -> bool {
    let (mut a, mut b) = (state.open_sockets(other.backend), state.open_sockets(slot.backend));
    if scheduler == Scheduler::Lc as u32 {
        return a < b;
    }
    if scheduler == Scheduler::Nq as u32 && (a == 0 || b == 0) {
        return b != 0;
    }
    if scheduler != Scheduler::Wlc as u32 {
        (a, b) = (a + 1, b + 1);
    }
    a * u64::from(slot.weight) < b * u64::from(other.weight)
}

/// The index `by` slots after `index`; both are below `len`.
#[inline(always)]
pub(super) const fn after(index: u32, by: u32, len: u32) -> u32 {
    let next = index.wrapping_add(by);
    if next >= len { next - len } else { next }
}

/// Takes a turn: the index of this turn and of the next one. The list may have become shorter since the last turn.
#[inline(always)]
#[must_use]
pub const fn take_turn(turn: u32, len: u32, stride: u32) -> (u32, u32) {
    let index = if turn < len { turn } else { 0 };
    (index, after(index, stride, len))
}
