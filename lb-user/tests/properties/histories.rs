//! The promises that hold for every history: random worlds and edits, readers between any two writes, faults, restarts.

use std::{cell::Cell, net::Ipv4Addr};

use lb_agent::reconcile::Reconciler;
use lb_common::{
    Addr, Affinity, AffinityKey, Backend, Caller, Cause, Choice, Frontend, FrontendKey, Kind, List, MaglevKey,
    NodeAddr, Service, ServiceFlags, Slot, SlotKey, Tables, Verdict, select,
};
use lb_core::{
    model::Settings,
    shadow::Shadow,
    store::{Dump, Faults, Limits, MemoryStore, Store},
};
use proptest::{prelude::*, test_runner::TestCaseResult};

use crate::{
    tape::Tape,
    text::{Meaning, check_sound, meaning},
    worlds::{NODE, State, events, states},
};

/// Random numbers that reach the first, the last and inner slots of short lists.
const RANDOMS: [u32; 7] = [0, u32::MAX / 5, u32::MAX / 4, u32::MAX / 2, u32::MAX / 3 * 2, u32::MAX / 4 * 3, u32::MAX];

fn reconciler<S: Store>(store: S) -> Reconciler<S> {
    Reconciler::new(store, NODE, Settings::default())
}

/// Brings a reconciler to a state; the writes it took.
fn settle<S: Store>(reconciler: &mut Reconciler<S>, state: &State) -> usize {
    reconciler.handle(events(state));
    let report = reconciler.pass();
    assert!(report.failure.is_none(), "{:?}", report.failure);
    report.writes
}

/// What an empty store holds after one pass over `state`.
fn fresh(state: &State) -> Meaning {
    let mut reconciler = reconciler(MemoryStore::default());
    settle(&mut reconciler, state);
    meaning(&reconciler.store().dump)
}

/// What a reader may find for a frontend while the maps go from `old` to `new`.
struct Allowed {
    backends: Vec<(lb_common::Addr, u16)>,
    never_missing: bool,
    never_let_in: bool,
}

impl Allowed {
    /// For one who asks from `place`. A frontend that moves may meet either owner before or after the change; one that
    /// comes or goes may be met or not.
    fn of(key: &FrontendKey, old: &Dump, new: &Dump, place: Place) -> Self {
        let verdicts = [old, new].map(|dump| select(dump, &Fixed(0, place), key, 0));
        let owners = [old, new].map(|dump| dump.frontends.get(key).map(|frontend| frontend.service));
        let is_let_in_at = |dump: &Dump, owner: &Option<u32>| {
            let client = Fixed(0, place).client().addr();
            owner.zip(client).is_some_and(|(owner, client)| dump.in_source_ranges(owner, &client))
        };
        // One that changes its kind or its owner may be bound for a moment by ranges of before or of after.
        let balanced =
            |dump: &Dump| dump.frontends.get(key).is_some_and(|frontend| frontend.kind == Kind::LoadBalancer as u8);
        let keeps_out = |dump: &Dump, owner: &Option<u32>| {
            let service = owner.and_then(|owner| dump.service(owner)).unwrap_or_default();
            service.flags & ServiceFlags::SOURCE_RANGES != 0
                && place != Place::NodeContext
                && !is_let_in_at(dump, owner)
        };
        let is_ever_bound = [old, new].into_iter().any(balanced)
            && [old, new].into_iter().any(|dump| owners.iter().any(|owner| keeps_out(dump, owner)));
        let slots = old.slots.iter().chain(&new.slots).filter(|(slot, _)| owners.contains(&Some(slot.service)));
        let is_let_in = |verdict: &Verdict| matches!(verdict, Verdict::Backend(_));
        // Ranges that come are there before those that go have gone, and one that moves may meet those of either owner.
        let is_kept_out = |(dump, verdict): (&Dump, &Verdict)| match verdict {
            Verdict::Refused(_, Cause::SourceRange) | Verdict::NotService => {
                !owners.iter().any(|owner| is_let_in_at(dump, owner))
            }
            _ => false,
        };
        let bounds = |verdict: &Verdict| matches!(verdict, Verdict::Refused(_, Cause::SourceRange));
        Self {
            backends: slots.map(|(_, slot)| (slot.addr, slot.port)).collect(),
            never_missing: verdicts.iter().all(is_let_in) && !is_ever_bound,
            never_let_in: verdicts.iter().any(bounds) && [old, new].into_iter().zip(&verdicts).all(is_kept_out),
        }
    }

    fn check(&self, key: &FrontendKey, verdict: Verdict, when: impl Fn() -> String) -> TestCaseResult {
        match verdict {
            Verdict::Backend(Choice { addr, port, .. }) => {
                prop_assert!(!self.never_let_in, "{key} let in whom nothing lets in {}", when());
                prop_assert!(self.backends.contains(&(addr, port)), "{key} led to {addr}:{port} {}", when());
            }
            missed => prop_assert!(!self.never_missing, "{key} missed: {missed:?} {}", when()),
        }
        Ok(())
    }
}

/// Walks a reconciler through `states`; what its store held after each write, change by change.
fn histories(states: &[State]) -> Vec<Vec<Dump>> {
    let mut reconciler = reconciler(Tape::default());
    let mut histories = Vec::new();
    for state in states {
        reconciler.store_mut().rewind();
        settle(&mut reconciler, state);
        histories.push(reconciler.store().snapshots.clone());
    }
    histories
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn i1_between_any_two_writes_a_frontend_that_stays_leads_to_an_old_or_a_new_backend(states in states(2..5)) {
        for snapshots in histories(&states) {
            let (Some(old), Some(new)) = (snapshots.first(), snapshots.last()) else { continue };
            for (key, place) in asked(old, new) {
                let allowed = Allowed::of(key, old, new, place);
                for (at, snapshot) in snapshots.iter().enumerate() {
                    for random in RANDOMS {
                        let when = || {
                            format!("from {place:?} after {at} writes\nfrom\n{old:#}\nnow\n{snapshot:#}\nto\n{new:#}")
                        };
                        allowed.check(key, select(snapshot, &Fixed(random, place), key, 0), when)?;
                    }
                }
            }
        }
    }

    #[test]
    fn i2_a_plan_leaves_nothing_to_plan_and_is_always_the_same(states in states(1..5)) {
        let mut one = reconciler(MemoryStore::default());
        let mut other = reconciler(MemoryStore::default());
        for state in &states {
            one.handle(events(state));
            other.handle(events(state));
            prop_assert_eq!(one.preview().expect("a dump").ops, other.preview().expect("a dump").ops);
            settle(&mut one, state);
            settle(&mut other, state);
            prop_assert_eq!(&one.store().dump, &other.store().dump);
            check_sound(&one.store().dump);
            prop_assert_eq!(meaning(&one.store().dump), fresh(state));
            one.resync();
            prop_assert_eq!(one.preview().expect("a dump").ops, vec![]);
        }
    }

    #[test]
    fn i3_faults_leave_the_shadow_true_and_passes_converge(
        states in states(1..5), percent in 1_u64..60, seed in any::<u64>(),
    ) {
        let mut reconciler = reconciler(MemoryStore::default());
        reconciler.store_mut().faults = Faults::Percent { percent, seed };
        for state in &states {
            reconciler.handle(events(state));
            let mut tries = 0;
            loop {
                let report = reconciler.pass();
                let shadow = reconciler.shadow().expect("it was read").to_dump();
                prop_assert_eq!(&shadow, &reconciler.store().dump);
                if report.failure.is_none() {
                    break;
                }
                tries += 1;
                prop_assert!(tries < 10_000, "no end of it");
            }
            check_sound(&reconciler.store().dump);
            prop_assert_eq!(meaning(&reconciler.store().dump), fresh(state));
        }
    }

    #[test]
    fn i4_a_restart_at_any_write_ends_where_steady_state_does_and_then_writes_nothing(states in states(2..4)) {
        for (snapshots, state) in histories(&states).into_iter().zip(&states) {
            let step = snapshots.len() / 12 + 1;
            for snapshot in snapshots.into_iter().rev().step_by(step) {
                let mut reconciler = reconciler(Tape::starting_with(snapshot));
                settle(&mut reconciler, state);
                let dump = reconciler.store().dump().expect("a dump");
                check_sound(&dump);
                prop_assert_eq!(meaning(&dump), fresh(state));
                let mut again = self::reconciler(Tape::starting_with(dump));
                prop_assert_eq!(settle(&mut again, state), 0);
            }
        }
    }

    #[test]
    fn i7_ids_are_never_zero_shared_or_reused_while_named(states in states(2..6)) {
        // The tape refuses every write that breaks this; here also for maps that were left in disorder.
        for mut snapshots in histories(&states) {
            let Some(mut dump) = snapshots.pop() else { continue };
            crate::tape::disturb(&mut dump);
            let Some(state) = states.last() else { continue };
            let (shadow, oddities) = Shadow::from_dump(&dump);
            prop_assert_eq!(&shadow.to_dump(), &dump);
            let disturbed = !oddities.is_empty();
            let mut reconciler = reconciler(Tape::starting_with(dump.clone()));
            let writes = settle(&mut reconciler, state);
            prop_assert!(!disturbed || writes > 0);
            let after = reconciler.store().dump().expect("a dump");
            check_sound(&after);
            prop_assert_eq!(meaning(&after), fresh(state));
        }
    }

    #[test]
    fn i15_with_little_room_every_service_is_old_or_new_as_a_whole(
        states in states(2..5), frontends in 1_usize..8, services in 1_usize..6, slots in 1_usize..12,
    ) {
        let limits = Limits { frontends, services, slots, backends: slots, ..Limits::DEFAULT };
        let mut reconciler = reconciler(MemoryStore::new(limits));
        let mut old = Meaning::new();
        for state in &states {
            reconciler.handle(events(state));
            let report = reconciler.pass();
            prop_assert!(report.failure.is_none(), "{:?}", report.failure);
            let (now, wanted) = (meaning(&reconciler.store().dump), fresh(state));
            check_sound(&reconciler.store().dump);
            for key in wanted.keys().chain(now.keys()) {
                let refused = report.refused.iter().any(|refused| refused.service == key.service);
                let of = |meaning: &Meaning| meaning.get(key).map(|port| port.lists.clone());
                if refused {
                    prop_assert_eq!(of(&now), of(&old), "{} was refused and is not as it was", key);
                } else if report.refused.is_empty() {
                    prop_assert_eq!(now.get(key), wanted.get(key), "{}", key);
                } else {
                    // It may hold a frontend for one that was refused, but its backends are right.
                    prop_assert_eq!(of(&now), of(&wanted), "{}", key);
                }
            }
            let again = reconciler.pass();
            prop_assert_eq!(again.writes, 0, "a pass without change writes nothing");
            old = now;
        }
    }
}

/// A reader beside a writer: before each look at a map the writer takes some steps.
struct Beside<'a> {
    snapshots: &'a [Dump],
    /// The snapshot that each look meets.
    meets: &'a [usize],
    looks: Cell<usize>,
}

impl Beside<'_> {
    fn now(&self) -> &Dump {
        let look = self.looks.replace(self.looks.get() + 1);
        &self.snapshots[self.meets[look]]
    }
}

impl Tables for Beside<'_> {
    fn frontend(&self, key: &FrontendKey) -> Option<Frontend> {
        self.now().frontend(key)
    }
    fn service(&self, id: u32) -> Option<Service> {
        self.now().service(id)
    }
    fn slot(&self, key: &SlotKey) -> Option<Slot> {
        self.now().slot(key)
    }
    fn backend(&self, id: u32) -> Option<Backend> {
        self.now().backend(id)
    }
    fn node_addr(&self, addr: &Addr) -> Option<NodeAddr> {
        self.now().node_addr(addr)
    }
    fn in_source_ranges(&self, service: u32, addr: &Addr) -> bool {
        self.now().in_source_ranges(service, addr)
    }
    fn maglev(&self, key: &MaglevKey, place: u32) -> Option<u32> {
        self.now().maglev(key, place)
    }
}

impl lb_common::State for Beside<'_> {
    fn open_sockets(&self, _: u32) -> u64 {
        0
    }
    fn turn(&self, _: u32, _: List, _: u32, _: u32) -> Option<u32> {
        None
    }
    fn affinity(&self, _: &AffinityKey) -> Option<Affinity> {
        None
    }
    fn set_affinity(&self, _: &AffinityKey, _: u32, _: u64) {}
}

/// Where a client is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    /// In the node's own network namespace.
    NodeContext,
    /// Outside, with an address that is in all ranges that there are, but for two.
    Near,
    /// Outside, with an address that is in one range only.
    Far,
}

/// Every frontend of two moments, from every place.
fn asked<'a>(old: &'a Dump, new: &'a Dump) -> impl Iterator<Item = (&'a FrontendKey, Place)> {
    let fresh = new.frontends.keys().filter(|key| !old.frontends.contains_key(key));
    // Nobody asks for a cluster IP itself: it answers nothing.
    let asked = old.frontends.keys().chain(fresh).filter(|key| **key != key.address());
    asked.flat_map(|key| [Place::NodeContext, Place::Near, Place::Far].map(|place| (key, place)))
}

/// A client whose random number is always the same.
struct Fixed(u32, Place);

impl Caller for Fixed {
    fn random(&self) -> u32 {
        self.0
    }
    fn client(&self) -> lb_common::Client {
        match self.1 {
            Place::NodeContext => lb_common::Client::of_netns(1),
            Place::Near => lb_common::Client::of_addr(Ipv4Addr::new(10, 21, 0, 9).into()),
            Place::Far => lb_common::Client::of_addr(Ipv4Addr::new(198, 51, 100, 9).into()),
        }
    }
    fn is_host(&self) -> bool {
        self.1 == Place::NodeContext
    }
    fn origin(&self) -> lb_common::Origin {
        if self.1 == Place::NodeContext { lb_common::Origin::Node } else { lb_common::Origin::Outside }
    }
    fn now(&self) -> u64 {
        0
    }
}

/// The next way to let `meets` rise up to `last`, in lexical order by what the first `used` looks meet.
fn next_schedule(meets: &mut [usize], used: usize, last: usize) -> bool {
    let Some(at) = meets.iter().take(used).rposition(|&meets| meets < last) else { return false };
    let to = meets[at] + 1;
    meets.iter_mut().skip(at).for_each(|meets| *meets = to);
    true
}

/// Two attempts of seven looks: at the frontend, the NodePort, the service, its ranges, the table, its backend, the
/// slot.
const LOOKS: usize = 14;

#[test]
fn i1_no_interleaving_of_a_reader_with_the_writer_misses() {
    let cases = crate::worlds::small_changes();
    assert!(cases.len() >= 10);
    for (name, old, new) in cases {
        let snapshots = histories(&[old, new]).pop().expect("two histories");
        let (first, last) = (snapshots.first().expect("one"), snapshots.len() - 1);
        let mut schedules = 0;
        for (key, place) in asked(first, &snapshots[last]) {
            let mut allowed = Allowed::of(key, first, &snapshots[last], place);
            // Between its first look and its second a reader may miss that a frontend goes, and with it its ranges.
            allowed.never_let_in &= snapshots[last].frontends.contains_key(key);
            for random in RANDOMS {
                let mut meets = [0; LOOKS];
                loop {
                    let beside = Beside { snapshots: &snapshots, meets: &meets, looks: Cell::new(0) };
                    let verdict = select(&beside, &Fixed(random, place), key, 0);
                    schedules += 1;
                    let when = || format!("from {place:?} in {name:?} with the writer at {meets:?}");
                    allowed.check(key, verdict, when).expect("an old or a new backend");
                    let used = beside.looks.get();
                    if !next_schedule(&mut meets, used, last) {
                        break;
                    }
                }
            }
        }
        assert!(schedules > 20, "{name}: {schedules} schedules of {last} writes");
    }
}
