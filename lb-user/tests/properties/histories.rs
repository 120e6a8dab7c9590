//! Promises that hold for every history of objects: with readers between any two writes, with faults, with restarts.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeSet,
    net::Ipv4Addr,
};

use lb_agent::reconcile::Reconciler;
use lb_common::{Caller, Cause, Choice, FrontendKey, Kind, ServiceFlags, Slot, SlotKey, Tables, Verdict, select};
use lb_core::{
    model::Settings,
    shadow::Shadow,
    store::{Dump, Faults, Limits, MemoryStore, Store},
};
use proptest::{prelude::*, test_runner::TestCaseResult};

use crate::{
    content::{Content, check_consistent, content},
    reads::{Place, Reader},
    recording_store::RecordingStore,
    worlds::{NODE, Objects, events, states},
};

/// Random numbers that reach the first, the last and inner slots of short lists.
const RANDOMS: [u32; 7] = [0, u32::MAX / 5, u32::MAX / 4, u32::MAX / 2, u32::MAX / 3 * 2, u32::MAX / 4 * 3, u32::MAX];

fn reconciler<S: Store>(store: S) -> Reconciler<S> {
    Reconciler::new(store, NODE, Settings::default())
}

/// Hands all objects to a reconciler, runs a pass, and returns the number of writes.
fn settle<S: Store>(reconciler: &mut Reconciler<S>, state: &Objects) -> usize {
    reconciler.handle(events(state));
    let report = reconciler.pass();
    assert!(report.failure.is_none(), "{:?}", report.failure);
    report.writes
}

/// Returns the content of an empty store after one pass over `state`.
fn fresh(state: &Objects) -> Content {
    let mut reconciler = reconciler(MemoryStore::default());
    settle(&mut reconciler, state);
    content(&reconciler.store().dump)
}

/// The verdicts that a reader may get for a frontend while the writer takes the maps from `old` to `new`.
struct Allowed {
    backends: Vec<(lb_common::Addr, u16)>,
    /// Each verdict must be a backend.
    never_misses: bool,
    /// No verdict may be a backend: source ranges keep the client out.
    never_admitted: bool,
}

impl Allowed {
    /// Returns the verdicts for a client at `place`. A frontend that changes its owner may lead to either owner, and a
    /// frontend that comes or goes may be there or not.
    fn of(key: &FrontendKey, old: &Dump, new: &Dump, place: ClientPlace) -> Self {
        let verdicts = [old, new].map(|dump| select(dump, &FixedCaller(0, place), key, 0));
        let frontend_of = |dump: &Dump| dump.frontend(key).or_else(|| dump.port_range(key));
        let owners = [old, new].map(|dump| frontend_of(dump).map(|frontend| frontend.service));
        let is_admitted_by = |dump: &Dump, owner: &Option<u32>| {
            let client = FixedCaller(0, place).client().addr();
            owner.zip(client).is_some_and(|(owner, client)| dump.in_source_ranges(owner, &client))
        };
        // While a frontend changes its kind or owner, source ranges of before or after may bind it, for callers on the
        // node too, whose address is unknown here.
        let is_load_balancer =
            |dump: &Dump| frontend_of(dump).is_some_and(|frontend| frontend.kind == Kind::LoadBalancer as u8);
        let excludes = |dump: &Dump, owner: &Option<u32>| {
            let service = owner.and_then(|owner| dump.service(owner)).unwrap_or_default();
            service.flags & ServiceFlags::SOURCE_RANGES != 0 && !is_admitted_by(dump, owner)
        };
        let is_ever_bound = [old, new].into_iter().any(is_load_balancer)
            && [old, new].into_iter().any(|dump| owners.iter().any(|owner| excludes(dump, owner)));
        let owned = |(slot, _): &(&SlotKey, &Slot)| owners.contains(&Some(slot.service));
        let backends = [old, new].into_iter().flat_map(|dump| {
            dump.slots.iter().filter(owned).map(|(_, slot)| {
                let backend = dump.backends.get(&slot.backend);
                (slot.addr, backend.map_or(slot.port, |backend| backend.port_for(key.port)))
            })
        });
        let is_backend = |verdict: &Verdict| matches!(verdict, Verdict::Backend(_));
        // New ranges are written before old ones are removed, and a frontend that moves may meet those of either owner.
        let is_excluded_by_all = |(dump, verdict): (&Dump, &Verdict)| match verdict {
            Verdict::Refused(_, Cause::SourceRange) | Verdict::NotService | Verdict::NoPort => {
                !owners.iter().any(|owner| is_admitted_by(dump, owner))
            }
            _ => false,
        };
        let is_excluded = |verdict: &Verdict| matches!(verdict, Verdict::Refused(_, Cause::SourceRange));
        Self {
            backends: backends.collect(),
            never_misses: verdicts.iter().all(is_backend) && !is_ever_bound,
            never_admitted: verdicts.iter().any(is_excluded)
                && [old, new].into_iter().zip(&verdicts).all(is_excluded_by_all),
        }
    }

    fn check(&self, key: &FrontendKey, verdict: Verdict, when: impl Fn() -> String) -> TestCaseResult {
        match verdict {
            Verdict::Backend(Choice { addr, port, .. }) => {
                prop_assert!(!self.never_admitted, "{key} admits a client that no source range admits, {}", when());
                prop_assert!(self.backends.contains(&(addr, port)), "{key} led to {addr}:{port} {}", when());
            }
            missed => prop_assert!(!self.never_misses, "{key} missed: {missed:?} {}", when()),
        }
        Ok(())
    }
}

/// The way from one state to the next.
struct History {
    /// The maps at the start and after each write.
    snapshots: Vec<Dump>,
    /// The place of each write.
    writes: Vec<Option<Place>>,
}

/// Takes a reconciler through `states`. Returns the way to each state.
fn histories(states: &[Objects]) -> Vec<History> {
    let mut reconciler = reconciler(RecordingStore::default());
    let mut histories = Vec::new();
    for state in states {
        reconciler.store_mut().rewind();
        settle(&mut reconciler, state);
        let RecordingStore { snapshots, writes } = reconciler.store();
        histories.push(History { snapshots: snapshots.clone(), writes: writes.clone() });
    }
    histories
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn i1_between_any_two_writes_a_frontend_that_stays_leads_to_an_old_or_a_new_backend(states in states(2..5)) {
        for History { snapshots, writes } in histories(&states) {
            let (Some(old), Some(new)) = (snapshots.first(), snapshots.last()) else { continue };
            for (key, place) in queries(old, new) {
                let allowed = Allowed::of(&key, old, new, place);
                let read = RefCell::new(Vec::new());
                for (at, snapshot) in snapshots.iter().enumerate() {
                    // A write changes no verdict of readers that look elsewhere.
                    if at > 0 && !writes[at - 1].is_some_and(|write| read.borrow().contains(&write)) {
                        continue;
                    }
                    read.borrow_mut().clear();
                    let reader = Reader(|place| {
                        read.borrow_mut().push(place);
                        snapshot
                    });
                    for random in RANDOMS {
                        let when = || {
                            format!("from {place:?} after {at} writes\nfrom\n{old:#}\nnow\n{snapshot:#}\nto\n{new:#}")
                        };
                        allowed.check(&key, select(&reader, &FixedCaller(random, place), &key, 0), when)?;
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
            check_consistent(&one.store().dump);
            prop_assert_eq!(content(&one.store().dump), fresh(state));
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
                let shadow = reconciler.shadow().expect("the maps were read").to_dump();
                prop_assert_eq!(&shadow, &reconciler.store().dump);
                if report.failure.is_none() {
                    break;
                }
                tries += 1;
                prop_assert!(tries < 10_000, "passes do not converge");
            }
            check_consistent(&reconciler.store().dump);
            prop_assert_eq!(content(&reconciler.store().dump), fresh(state));
        }
    }

    #[test]
    fn i4_a_restart_at_any_write_ends_where_steady_state_does_and_then_writes_nothing(states in states(2..4)) {
        for (History { snapshots, .. }, state) in histories(&states).into_iter().zip(&states) {
            let step = snapshots.len() / 12 + 1;
            for snapshot in snapshots.into_iter().rev().step_by(step) {
                let mut reconciler = reconciler(RecordingStore::starting_with(snapshot));
                settle(&mut reconciler, state);
                let dump = reconciler.store().dump().expect("a dump");
                check_consistent(&dump);
                prop_assert_eq!(content(&dump), fresh(state));
                let mut again = self::reconciler(RecordingStore::starting_with(dump));
                prop_assert_eq!(settle(&mut again, state), 0);
            }
        }
    }

    #[test]
    fn i7_ids_are_never_zero_shared_or_reused_while_named(states in states(2..6)) {
        // The recording store panics at every write that breaks I7; here also over corrupt maps.
        for History { mut snapshots, .. } in histories(&states) {
            let Some(mut dump) = snapshots.pop() else { continue };
            crate::recording_store::corrupt(&mut dump);
            let Some(state) = states.last() else { continue };
            let (shadow, oddities) = Shadow::from_dump(&dump);
            prop_assert_eq!(&shadow.to_dump(), &dump);
            let is_corrupt = !oddities.is_empty();
            let mut reconciler = reconciler(RecordingStore::starting_with(dump.clone()));
            let writes = settle(&mut reconciler, state);
            prop_assert!(!is_corrupt || writes > 0);
            let after = reconciler.store().dump().expect("a dump");
            check_consistent(&after);
            prop_assert_eq!(content(&after), fresh(state));
        }
    }

    #[test]
    fn i15_with_little_room_every_service_is_old_or_new_as_a_whole(
        states in states(2..5), frontends in 1_usize..8, services in 1_usize..6, slots in 1_usize..12,
    ) {
        let limits = Limits { frontends, services, slots, backends: slots, ..Limits::DEFAULT };
        let mut reconciler = reconciler(MemoryStore::new(limits));
        let mut old = Content::new();
        for state in &states {
            reconciler.handle(events(state));
            let report = reconciler.pass();
            prop_assert!(report.failure.is_none(), "{:?}", report.failure);
            let (now, wanted) = (content(&reconciler.store().dump), fresh(state));
            check_consistent(&reconciler.store().dump);
            for key in wanted.keys().chain(now.keys()) {
                let refused = report.refused.iter().any(|refused| refused.service == key.service);
                let of = |content: &Content| content.get(key).map(|port| port.lists.clone());
                if refused {
                    prop_assert_eq!(of(&now), of(&old), "{} was refused, and its old version does not serve on", key);
                } else if report.refused.is_empty() {
                    prop_assert_eq!(now.get(key), wanted.get(key), "{}", key);
                } else {
                    // The frontends may differ, since a refused Service keeps its own; the backends are right.
                    prop_assert_eq!(of(&now), of(&wanted), "{}", key);
                }
            }
            let again = reconciler.pass();
            prop_assert_eq!(again.writes, 0, "a pass without change writes nothing");
            old = now;
        }
    }
}

/// The place of a client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum ClientPlace {
    /// In the node's own network namespace.
    Node,
    /// Outside, with an address in all source ranges of the histories but two.
    Near,
    /// Outside, with an address in one source range only.
    Far,
}

/// Lists every frontend of two dumps, and the ends of every block of port ranges, with every place of a client.
fn queries(old: &Dump, new: &Dump) -> impl Iterator<Item = (FrontendKey, ClientPlace)> {
    // Without the entries of cluster IPs themselves, which stand for their other ports.
    let single = [old, new].into_iter().flat_map(|dump| dump.frontends.keys()).filter(|key| !key.is_address()).copied();
    let ends = |key: &FrontendKey| [key.ports().0, key.ports().1].map(|port| FrontendKey { port, block: 0, ..*key });
    let blocks = [old, new].into_iter().flat_map(|dump| dump.port_ranges.keys()).flat_map(ends);
    let keys: BTreeSet<FrontendKey> = single.chain(blocks).collect();
    keys.into_iter().flat_map(|key| [ClientPlace::Node, ClientPlace::Near, ClientPlace::Far].map(|place| (key, place)))
}

/// A client at a place, with a fixed random number.
struct FixedCaller(u32, ClientPlace);

impl Caller for FixedCaller {
    fn random(&self) -> u32 {
        self.0
    }
    fn client(&self) -> lb_common::Client {
        match self.1 {
            ClientPlace::Node => lb_common::Client::of_netns(1),
            ClientPlace::Near => lb_common::Client::of_addr(Ipv4Addr::new(10, 21, 0, 9).into()),
            ClientPlace::Far => lb_common::Client::of_addr(Ipv4Addr::new(198, 51, 100, 9).into()),
        }
    }
    fn is_host(&self) -> bool {
        self.1 == ClientPlace::Node
    }
    fn origin(&self) -> lb_common::Origin {
        if self.1 == ClientPlace::Node { lb_common::Origin::Node } else { lb_common::Origin::Outside }
    }
    fn now(&self) -> u64 {
        0
    }
}

/// Advances to the next non-decreasing schedule of snapshots up to `last`, in lexical order of its first `used`
/// lookups. False after the last schedule.
fn next_schedule(schedule: &mut [usize], used: usize, last: usize) -> bool {
    let Some(at) = schedule.iter().take(used).rposition(|&snapshot| snapshot < last) else { return false };
    let to = schedule[at] + 1;
    schedule.iter_mut().skip(at).for_each(|snapshot| *snapshot = to);
    true
}

/// Look-ups of two attempts, ten each: the bits of the port and of the address, frontend, NodePort, port range,
/// service, source ranges, Maglev table, backend, slot.
const LOOKUPS: usize = 20;

#[test]
fn i1_no_interleaving_of_a_reader_with_the_writer_misses() {
    let cases = crate::worlds::small_changes();
    assert!(cases.len() >= 10);
    for (name, old, new) in cases {
        let History { snapshots, .. } = histories(&[old, new]).pop().expect("two histories");
        let (first, last) = (snapshots.first().expect("one"), snapshots.len() - 1);
        let mut schedules = 0;
        for (key, place) in queries(first, &snapshots[last]) {
            let mut allowed = Allowed::of(&key, first, &snapshots[last], place);
            // A frontend may go, and its source ranges with it, between a reader's first lookup and its second.
            allowed.never_admitted &=
                snapshots[last].frontend(&key).or_else(|| snapshots[last].port_range(&key)).is_some();
            for random in RANDOMS {
                let mut schedule = [0; LOOKUPS];
                loop {
                    let lookups = Cell::new(0);
                    let reader = Reader(|_| &snapshots[schedule[lookups.replace(lookups.get() + 1)]]);
                    let verdict = select(&reader, &FixedCaller(random, place), &key, 0);
                    schedules += 1;
                    let when = || format!("from {place:?} in {name:?} with the schedule {schedule:?}");
                    allowed.check(&key, verdict, when).expect("an old or a new backend");
                    if !next_schedule(&mut schedule, lookups.get(), last) {
                        break;
                    }
                }
            }
        }
        assert!(schedules > 20, "{name}: {schedules} schedules of {last} writes");
    }
}
