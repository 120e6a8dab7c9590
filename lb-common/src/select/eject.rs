//! The second step of a choice: another backend in place of an ejected one. A step of its own, since both together
//! exceed the stack of a program.

use super::{Caller, Choice, Followed, Observer, Reason, SelectEvent, State, Tables, Unobserved, schedule};
use crate::{EjectionKey, FrontendKey, Hold, List, Scheduler, SlotKey, hash::scale, scope_mask};

/// Slots that are looked at. At most half of the backends are ejected, and the slots from turn to turn are spread over
/// the list: 8 ejected ones in a row need heavy weights, or luck of 1 in 256. More would cost the verifier too much.
const LOOKS: u32 = 8;

/// Returns `first`, or another choice from its list if the client's own failed connects eject its backend. `avoid` is
/// as for [`super::select`].
#[inline(always)]
pub fn pass_over_ejected(
    tables: &(impl Tables + State),
    caller: &impl Caller,
    dest: &FrontendKey,
    avoid: u32,
    first: &Choice,
) -> Choice {
    pass_over_ejected_observed(tables, caller, dest, avoid, first, &Unobserved)
}

/// As [`pass_over_ejected`], and tells an observer each step.
#[inline(always)]
pub(super) fn pass_over_ejected_observed(
    tables: &(impl Tables + State),
    caller: &impl Caller,
    dest: &FrontendKey,
    avoid: u32,
    first: &Choice,
    observer: &impl Observer,
) -> Choice {
    let Some(Followed::In(list)) = first.followed else { return *first };
    let Some(client) = caller.ejection_key(first.service) else { return *first };
    let Some(service) = tables.service(first.service) else { return *first };
    let verdicts = Verdicts { tables, observer, client: &client, most: service.eject.most(list), now: caller.now() };
    // No backend of the list may be ejected.
    if verdicts.most == 0 {
        return *first;
    }
    let hold = verdicts.hold(first.backend);
    verdicts.note(first.backend, hold);
    if hold != Hold::Held {
        return Choice { followed: followed(list, hold), ..*first };
    }
    let (len, stride) = (service.len(list), service.stride(list));
    let at = |index| tables.slot(&SlotKey::new(first.service, list, index));
    let (mut index, _) = schedule::first_index(tables, caller, dest, &service, list, first.service);
    // Nothing but the index and the verdict leaves the loop, which the verifier walks turn by turn.
    let mut hold = Hold::Held;
    for _ in 0..LOOKS {
        if let Some(slot) = at(index)
            && slot.backend != avoid
            && slot.backend != first.backend
        {
            hold = verdicts.hold(slot.backend);
            if hold != Hold::Held {
                break;
            }
            verdicts.note(slot.backend, hold);
        }
        index = schedule::after(index, stride, len);
    }
    let found = if hold == Hold::Held { None } else { at(index) };
    let Some(mut slot) = found else {
        observer.note(|| SelectEvent::AllEjected { backend: first.backend });
        return Choice { reason: Reason::AllEjected, ..*first };
    };
    if Scheduler::compares_open_sockets(service.scheduler)
        && let Some(other) = at(scale(caller.random(), len))
        && verdicts.hold(other.backend) == Hold::Free
        && schedule::is_better(tables, service.scheduler, &other, &slot)
    {
        (slot, hold) = (other, Hold::Free);
    }
    verdicts.note(slot.backend, hold);
    if service.affinity_seconds != 0 {
        let mask = scope_mask(first.service);
        let key = caller.client().affinity_key(first.service & !mask);
        tables.set_affinity(&key, slot.backend & !mask, verdicts.now);
    }
    // A range of ports may lead to other ports than the backends' own.
    let add = tables.backend(first.backend).map_or(0, |backend| first.port.wrapping_sub(backend.port));
    Choice { port: add, followed: followed(list, hold), reason: Reason::Ejected, ..*first }.to(
        slot.backend,
        slot.addr,
        slot.port,
    )
}

#[inline(always)]
const fn followed(list: List, hold: Hold) -> Option<Followed> {
    Some(if matches!(hold, Hold::Trial) { Followed::Trial } else { Followed::In(list) })
}

/// The verdicts of a client on the backends of a list.
struct Verdicts<'a, T, O> {
    tables: &'a T,
    observer: &'a O,
    client: &'a EjectionKey,
    /// Number of backends that the client may eject.
    most: u32,
    now: u64,
}

impl<T: State, O: Observer> Verdicts<'_, T, O> {
    #[inline(always)]
    fn hold(&self, backend: u32) -> Hold {
        self.tables.hold(self.client, backend, self.most, self.now)
    }

    /// Tells the observer.
    #[inline(always)]
    fn note(&self, backend: u32, hold: Hold) {
        match hold {
            Hold::Free => {}
            Hold::Held => self.observer.note(|| SelectEvent::Ejected { backend }),
            Hold::Trial => self.observer.note(|| SelectEvent::Trial { backend }),
        }
    }
}
