//! Tests of the pass and the loop: preconditions, retries, growth, reports.

mod host_ports;

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep},
};

use super::*;
use lb_core::{
    event::{Object, ObjectKind},
    objects::{Service, ServicePort},
    op::{Op, Table},
    store::{Dump, Faults, Limits, MemoryStore},
};
use lb_dataplane::{
    attach::ejection::EjectionProgram,
    damage::{Damage, Part},
};

fn service(name: &str, vip: u8) -> Object {
    Object::Service(Service {
        cluster_ips: vec![[10, 96, 0, vip].into()],
        ports: [ServicePort::new("", lb_common::Proto::Tcp, 80.try_into().expect("not 0"))].into(),
        ..Service::new(Key::new("default", name))
    })
}

/// A dataplane that is in service from the start and never grows.
struct Fixed;

impl Dataplane for Fixed {
    type Store = Shared;

    fn grow(&mut self, _: &BTreeSet<Table>) -> Result<Option<Shared>> {
        Ok(None)
    }

    fn enter_service(&mut self, _: u64, _: &BTreeSet<EjectionProgram>) -> Result<()> {
        Ok(())
    }

    fn mend(&mut self) -> Vec<Damage> {
        Vec::new()
    }

    fn after_pass(&mut self, _: MapChanges) {}
}

/// A dataplane that doubles the size of its slots, and keeps all its stores.
#[derive(Clone)]
struct Doubling(Arc<Mutex<(usize, Vec<Shared>)>>);

impl Dataplane for Doubling {
    type Store = Shared;

    fn grow(&mut self, full: &BTreeSet<Table>) -> Result<Option<Shared>> {
        assert_eq!(full.iter().collect::<Vec<_>>(), [&Table::Slots]);
        let mut this = self.0.lock().expect("no holder panics");
        this.0 *= 2;
        let store = Shared::new(MemoryStore::new(Limits { slots: this.0, ..Limits::DEFAULT }));
        this.1.push(store.clone());
        Ok((this.0 <= 4).then_some(store))
    }

    fn enter_service(&mut self, writes: u64, _: &BTreeSet<EjectionProgram>) -> Result<()> {
        assert!(writes > 0);
        Ok(())
    }

    fn mend(&mut self) -> Vec<Damage> {
        Vec::new()
    }

    fn after_pass(&mut self, _: MapChanges) {}
}

/// A dataplane that is in service, with damages that a test sets.
#[derive(Clone, Default)]
struct Damaged(Arc<Mutex<Vec<Damage>>>);

impl Dataplane for Damaged {
    type Store = Shared;

    fn grow(&mut self, _: &BTreeSet<Table>) -> Result<Option<Shared>> {
        Ok(None)
    }

    fn enter_service(&mut self, _: u64, _: &BTreeSet<EjectionProgram>) -> Result<()> {
        Ok(())
    }

    fn mend(&mut self) -> Vec<Damage> {
        self.0.lock().expect("no holder panics").clone()
    }

    fn after_pass(&mut self, _: MapChanges) {}
}

#[tokio::test(start_paused = true)]
async fn damage_is_noticed_within_two_seconds_and_repairs_are_counted() {
    let dataplane = Damaged::default();
    let (_events, rx) = mpsc::channel(16);
    let (status, observed) = watch::channel(Status::default());
    let store = Shared::new(MemoryStore::new(Limits::DEFAULT));
    tokio::spawn(run(Reconciler::new(store, "node-1", Settings::default()), dataplane.clone(), rx, status));
    let damage = |part, error: Option<&str>| Damage { part, error: error.map(str::to_owned) };
    let (link, pin) = (Part::Link("connect4"), Part::Pin("SERVICES".to_owned()));
    // Damages of each check; detached, unpinned and repairs after it.
    let cases = [
        (vec![], (false, false, 0)),
        (vec![damage(link.clone(), None)], (false, false, 1)),
        (vec![damage(link.clone(), Some("EPERM")), damage(pin.clone(), None)], (true, false, 1 + 1)),
        (vec![damage(pin, Some("EPERM"))], (false, true, 2 + 1)),
        (vec![], (false, false, 3 + 1)),
    ];
    for (damages, expected) in cases {
        *dataplane.0.lock().expect("no holder panics") = damages.clone();
        // Time stands still between the checks.
        sleep(Duration::from_millis(1010)).await;
        *dataplane.0.lock().expect("no holder panics") = damages.into_iter().filter(|d| d.error.is_some()).collect();
        let DatapathState { is_detached, is_unpinned, repairs } = observed.borrow().datapath;
        assert_eq!((is_detached, is_unpinned, repairs), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn maps_grow_until_every_service_fits_or_they_cannot() {
    let first = Shared::new(MemoryStore::new(Limits { slots: 1, ..Limits::DEFAULT }));
    let dataplane = Doubling(Arc::new(Mutex::new((1, Vec::new()))));
    let (tx, rx) = mpsc::channel(16);
    let (status, mut observed) = watch::channel(Status::default());
    tokio::spawn(run(Reconciler::new(first, "node-1", Settings::default()), dataplane.clone(), rx, status));
    for event in empty_lists() {
        tx.send(event).await.expect("the loop runs");
    }
    for n in 1..=6 {
        tx.send(Event::Apply(service(&format!("s{n}"), n))).await.expect("the loop runs");
        tx.send(Event::Apply(slice(&format!("s{n}"), n))).await.expect("the loop runs");
    }
    observed.wait_for(|status| status.refused == 2).await.expect("the loop runs");
    let stores = dataplane.0.lock().expect("no holder panics").1.clone();
    let slots: Vec<_> = stores.iter().map(|store| store.with(|store| store.dump.slots.len())).collect();
    assert_eq!(slots.first_chunk(), Some(&[2, 4]), "the first two stores were in use and are full");
    assert!(observed.borrow().ready);
}

fn slice(name: &str, n: u8) -> Object {
    use lb_core::objects::{Endpoint, EndpointGroup, EndpointPort, EndpointSlice, SliceManager};
    Object::EndpointSlice(EndpointSlice {
        key: Key::new("default", name),
        service: Some(Key::new("default", name)),
        manager: SliceManager::Other,
        group: EndpointGroup {
            ports: [EndpointPort {
                name: "".into(),
                proto: lb_common::Proto::Tcp,
                port: 80.try_into().expect("not 0"),
            }]
            .into(),
            endpoints: vec![Endpoint { ..Endpoint::new([10, 0, 0, n].into()) }],
        },
        triggered: None,
        problems: Vec::new(),
    })
}

/// Lists every kind, without objects.
fn empty_lists() -> impl Iterator<Item = Event> {
    ObjectKind::ALL.into_iter().map(|kind| Event::Replace(kind, Vec::new()))
}

/// A store that the test reads while the loop writes to it.
#[derive(Clone)]
struct Shared(Arc<Mutex<MemoryStore>>);

impl Shared {
    fn new(store: MemoryStore) -> Self {
        Self(Arc::new(Mutex::new(store)))
    }

    fn with<T>(&self, action: impl FnOnce(&mut MemoryStore) -> T) -> T {
        action(&mut self.0.lock().expect("no holder panics"))
    }
}

impl Store for Shared {
    fn apply(&mut self, ops: &[Op]) -> Result<(), Partial> {
        self.with(|store| store.apply(ops))
    }

    fn dump(&self) -> Result<Dump> {
        self.with(|store| store.dump())
    }

    fn limits(&self) -> Limits {
        self.with(|store| store.limits())
    }
}

/// Returns maps with one Service, written by an earlier agent.
fn maps_of_earlier_agent() -> MemoryStore {
    let mut reconciler = Reconciler::new(MemoryStore::default(), "node-1", Settings::default());
    reconciler.handle(empty_lists());
    reconciler.handle([Event::Apply(service("old", 1))]);
    assert!(reconciler.pass().writes > 0);
    reconciler.into_store()
}

#[test]
fn i5_nothing_is_written_or_pruned_before_every_kind_was_listed() {
    let before = maps_of_earlier_agent();
    let mut reconciler = Reconciler::new(before.clone(), "node-1", Settings::default());
    reconciler.handle([Event::Apply(service("new", 2))]);
    for kind in ObjectKind::OF_SERVICES {
        let report = reconciler.pass();
        assert!(report.waiting.contains(&kind));
        assert_eq!(reconciler.store().dump, before.dump, "before {kind:?}");
        let services = if kind == ObjectKind::Service { vec![service("new", 2)] } else { Vec::new() };
        reconciler.handle([Event::Replace(kind, services)]);
    }
    assert!(reconciler.pass().writes > 0);
    let names: Vec<_> = reconciler.store().dump.names.values().map(ToString::to_string).collect();
    assert_eq!(names, ["default/new/TCP"]);
}

#[tokio::test(start_paused = true)]
async fn i5_time_alone_prunes_nothing() {
    let store = Shared::new(maps_of_earlier_agent());
    let before = store.with(|store| store.dump.clone());
    let (tx, rx) = mpsc::channel(16);
    let (status, observed) = watch::channel(Status::default());
    let reconciler = Reconciler::new(store.clone(), "node-1", Settings::default());
    let running = tokio::spawn(run(reconciler, Fixed, rx, status));
    for kind in ObjectKind::OF_SERVICES {
        sleep(Duration::from_secs(3600)).await;
        assert_eq!(store.with(|store| store.dump.clone()), before);
        assert!(!observed.borrow().ready);
        tx.send(Event::Replace(kind, Vec::new())).await.expect("the loop runs");
    }
    sleep(Duration::from_millis(1)).await;
    assert!(observed.borrow().ready);
    assert_eq!(store.with(|store| store.dump.clone()), Dump::default());
    drop(tx);
    let error = running.await.expect("no panic").expect_err("the loop ends without sources");
    assert_eq!(error.to_string(), "all sources have ended");
}

#[tokio::test(start_paused = true)]
async fn i3_a_failed_write_is_tried_again_ever_more_slowly_and_events_are_kept() {
    let faults = Faults::Percent { percent: 100, seed: 0 };
    let store = Shared::new(MemoryStore { faults, ..MemoryStore::default() });
    let (tx, rx) = mpsc::channel(16);
    let (status, mut observed) = watch::channel(Status::default());
    tokio::spawn(run(Reconciler::new(store.clone(), "node-1", Settings::default()), Fixed, rx, status));
    for event in empty_lists().chain([Event::Apply(service("a", 1))]) {
        tx.send(event).await.expect("the loop runs");
    }
    let start = Instant::now();
    let mut waits = Vec::new();
    for _ in 0..12 {
        observed.changed().await.expect("the loop runs");
        waits.push(start.elapsed().as_millis());
        assert!(!observed.borrow().ready);
        assert_eq!(
            observed.borrow().pending_since,
            Some(start),
            "the time of the first change stays through all tries"
        );
        assert!(observed.borrow().error.as_ref().is_some_and(|error| error.contains("writing map NAMES")));
    }
    let steps: Vec<_> = waits.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert_eq!(steps[..4], [100, 200, 400, 800]);
    assert_eq!(steps[9..], [30_000, 30_000]);
    tx.send(Event::Apply(service("b", 2))).await.expect("the loop runs");
    store.with(|store| store.faults = Faults::None);
    observed.changed().await.expect("the loop runs");
    {
        let status = observed.borrow();
        assert_eq!((status.ready, status.passes, status.failures, status.error.as_ref()), (true, 13, 12, None));
        assert_eq!((status.seen, status.done, status.pending_since), (status.done, status.seen, None));
        assert_eq!((status.done.services, status.durations.count()), (2, 13));
    }
    assert_eq!(store.with(|store| store.dump.names.len()), 2);
}

/// Returns the departures of a pass over `events`, as (service port, frontend).
fn lost_frontends(reconciler: &mut Reconciler<MemoryStore>, events: Vec<Event>) -> Vec<(u32, String)> {
    reconciler.handle(events);
    let report = reconciler.pass();
    assert!(report.failure.is_none(), "{:?}", report.failure);
    let lost = report.changes.departures.iter().filter_map(|departure| match departure.departed {
        Departed::Frontend(key) => Some((departure.service, key.to_string())),
        Departed::Backend { .. } => None,
    });
    lost.collect()
}

#[test]
fn rule_8_frontends_that_move_or_are_removed_are_reported_and_renamed_services_are_not() {
    let mut reconciler = Reconciler::new(MemoryStore::default(), "node-1", Settings::default());
    let apply = |name, vip| Event::Apply(service(name, vip));
    let delete = |name| Event::Delete(ObjectKind::Service, Key::new("default", name));
    let start = empty_lists()
        .chain([apply("a", 1), apply("b", 2)])
        .chain([("a", 1), ("b", 2)].map(|(name, n)| Event::Apply(slice(name, n))));
    assert_eq!(lost_frontends(&mut reconciler, start.collect()), []);
    let lost = |at: u32, vip: u8| (at, format!("10.96.0.{vip}:80/TCP"));
    // The VIP of `a` moves to `b`, which leaves its own.
    let moved = lost_frontends(&mut reconciler, vec![apply("a", 3), apply("b", 1)]);
    assert_eq!(moved, [lost(1, 1), lost(2, 2)]);
    let renamed = vec![delete("a"), apply("c", 3), Event::Apply(slice("c", 1))];
    assert_eq!(lost_frontends(&mut reconciler, renamed), []);
    let name = reconciler.store().dump.names.get(&1).map(ToString::to_string);
    assert_eq!(name.as_deref(), Some("default/c/TCP"), "with the id of the Service that it succeeds");
    assert_eq!(lost_frontends(&mut reconciler, vec![delete("c")]), [lost(1, 3)]);
}

#[tokio::test(start_paused = true)]
async fn entries_that_another_process_deletes_come_back_within_five_minutes() {
    let store = Shared::new(MemoryStore::default());
    let (tx, rx) = mpsc::channel(16);
    let (status, _observed) = watch::channel(Status::default());
    tokio::spawn(run(Reconciler::new(store.clone(), "node-1", Settings::default()), Fixed, rx, status));
    for event in empty_lists().chain([Event::Apply(service("a", 1))]) {
        tx.send(event).await.expect("the loop runs");
    }
    sleep(Duration::from_secs(1)).await;
    let before = store.with(|store| std::mem::take(&mut store.dump)).to_string();
    assert!(!before.is_empty());
    sleep(Duration::from_secs(301)).await;
    assert_eq!(store.with(|store| store.dump.to_string()), before);
}

#[test]
fn a_map_that_is_fuller_than_the_shadow_is_read_again() {
    let limits = Limits { services: 1, ..Limits::DEFAULT };
    let mut reconciler = Reconciler::new(MemoryStore::new(limits), "node-1", Settings::default());
    reconciler.handle(empty_lists());
    assert_eq!(reconciler.pass().writes, 0);
    // Another process fills the map.
    reconciler.store_mut().dump.services.insert(77, lb_common::ServiceEntry::default());
    reconciler.handle([Event::Apply(service("a", 1))]);
    let report = reconciler.pass();
    let error = format!("{:#}", report.failure.expect("the map is full"));
    assert_eq!(error, "after 1 of 6 writes: map SERVICES is full");
    assert_eq!(report.writes, 1);
    // The pass removes the foreign entry, which makes room.
    let report = reconciler.pass();
    assert!(report.failure.is_none() && report.refused.is_empty(), "{report:?}");
    assert!(reconciler.store().dump.services.len() == 1 && !reconciler.store().dump.services.contains_key(&77));
    assert_eq!(reconciler.shadow().map(|shadow| shadow.count(Table::Services)), Some(1));
}

#[test]
fn a_preview_writes_nothing_and_the_pass_performs_its_plan() {
    let mut reconciler = Reconciler::new(MemoryStore::default(), "node-1", Settings::default());
    assert_eq!(reconciler.preview().expect("a dump"), Plan::default());
    reconciler.handle(empty_lists());
    reconciler.handle([Event::Apply(service("a", 1))]);
    let plan = reconciler.preview().expect("a dump");
    assert_eq!((plan.ops.len(), reconciler.store().asked), (6, 0));
    assert_eq!(reconciler.preview().expect("a dump"), plan);
    assert_eq!(reconciler.pass().writes, 6);
    assert_eq!(reconciler.preview().expect("a dump").ops, []);
}

/// A slice of `default/NAME` with endpoints of one tier, by last octet and readiness.
fn tier(name: &str, tier: u8, of: &[(u8, bool)]) -> Object {
    use lb_core::objects::Endpoint;
    let Object::EndpointSlice(mut slice) = slice(name, 0) else { panic!("a slice") };
    slice.key = Key::new("default", &format!("{name}-{tier}"));
    let endpoint = |&(n, ready): &(u8, bool)| Endpoint { tier, ready, ..Endpoint::new([10, 0, tier, n].into()) };
    slice.group.endpoints = of.iter().map(endpoint).collect();
    Object::EndpointSlice(slice)
}

#[test]
fn a_service_that_comes_back_begins_with_the_best_tier() {
    let mut reconciler = Reconciler::new(MemoryStore::default(), "node-1", Settings::default());
    reconciler.handle(empty_lists());
    let mut tier_after = |ready: usize, delete: bool| {
        if delete {
            reconciler.handle([Event::Delete(ObjectKind::Service, Key::new("default", "a"))]);
            assert!(reconciler.pass().writes > 0);
        }
        let best: Vec<_> = (0..10_u8).map(|n| (n, usize::from(n) < ready)).collect();
        let objects = [service("a", 1), tier("a", 0, &best), tier("a", 1, &[(1, true)])];
        reconciler.handle(objects.map(Event::Apply));
        reconciler.pass();
        let flags = reconciler.store().dump.services.values().map(|service| service.flags).next();
        flags.expect("a service port") >> ServiceFlags::TIER_SHIFT
    };
    assert_eq!((tier_after(4, false), tier_after(6, false)), (1, 1), "the way back needs more");
    assert_eq!(tier_after(6, true), 0);
}

#[test]
fn a_step_of_slow_start_writes_the_slots_of_the_new_endpoint_only() {
    use lb_core::objects::{Service, Tuning};
    let Object::Service(web) = service("a", 1) else { panic!("a Service") };
    let tuning = Tuning { slow_start: std::num::NonZeroU32::new(10), ..Tuning::default() };
    let mut reconciler = Reconciler::new(MemoryStore::default(), "node-1", Settings::default());
    reconciler.handle(empty_lists());
    let all: Vec<_> = (0..100).map(|n| (n, true)).collect();
    reconciler.handle([Event::Apply(Object::Service(Service { tuning: Some(Box::new(tuning)), ..web }))]);
    reconciler.handle([Event::Apply(tier("a", 0, &all[..99]))]);
    reconciler.pass();
    reconciler.handle([Event::Apply(tier("a", 0, &all))]);
    reconciler.pass();
    let mut writes = Vec::new();
    while let Some(next) = reconciler.next_step() {
        reconciler.set_time(next);
        writes.push(reconciler.pass().writes);
    }
    // The slots of the new endpoint, one more each time, and the length.
    assert_eq!(writes[..8], (2..=9).map(|slots| slots + 1).collect::<Vec<_>>());
    assert!(writes[8] > 900, "the list is short again: {writes:?}");
    assert_eq!(writes[9..], [0]);
}

#[tokio::test(start_paused = true)]
async fn a_burst_is_one_pass_and_a_single_event_is_handled_at_once() {
    let (tx, rx) = mpsc::channel(2048);
    let (status, mut observed) = watch::channel(Status::default());
    let store = Shared::new(MemoryStore::default());
    tokio::spawn(run(Reconciler::new(store.clone(), "node-1", Settings::default()), Fixed, rx, status));
    for event in empty_lists() {
        tx.send(event).await.expect("the loop runs");
    }
    observed.wait_for(|status| status.ready).await.expect("the loop runs");
    let passes = observed.borrow().passes;
    for n in 0..1000 {
        tx.try_send(Event::Apply(service(&format!("s{n}"), (n % 250) as u8))).expect("room in the channel");
    }
    observed.changed().await.expect("the loop runs");
    assert_eq!(observed.borrow_and_update().passes, passes + 1);

    let start = Instant::now();
    for n in 1..=20 {
        tx.send(Event::Apply(service(&format!("t{n}"), 251))).await.expect("the loop runs");
        observed.changed().await.expect("the loop runs");
        assert_eq!(observed.borrow_and_update().passes, passes + 1 + n);
    }
    assert_eq!(start.elapsed(), Duration::ZERO);
}

#[test]
fn an_endpoint_is_refused_while_it_is_a_node_port_of_this_node() {
    let mut reconciler = Reconciler::new(MemoryStore::default(), "node-1", Settings::default());
    reconciler.handle(empty_lists().chain([Event::Apply(service("a", 1)), Event::Apply(slice("a", 1))]));
    let Object::Service(mut exposed) = service("b", 2) else { unreachable!("`service` makes a Service") };
    let port = exposed.ports.first().cloned().expect("a port");
    exposed.ports = [ServicePort { node_port: 80.try_into().ok(), ..port }].into();
    let addresses = |own: &[u8]| Event::NodeAddresses(own.iter().map(|&n| [10, 0, 0, n].into()).collect());
    let steps = [
        (addresses(&[1, 2]), false),
        (Event::Apply(Object::Service(exposed.clone())), true),
        (addresses(&[2]), false),
        (addresses(&[2, 1]), true),
        (Event::Delete(ObjectKind::Service, exposed.key.clone()), false),
    ];
    for (number, (event, refused)) in steps.into_iter().enumerate() {
        reconciler.handle([event]);
        reconciler.pass();
        let warnings = reconciler.warnings().get(&Key::new("default", "a")).map_or(0, Vec::len);
        assert_eq!(warnings, usize::from(refused), "after step {number}: {:?}", reconciler.warnings());
        let used = reconciler.store().dump.slots.len();
        assert_eq!(used, usize::from(!refused), "after step {number}");
    }
}

#[test]
fn a_problem_stays_in_the_event_queue_until_it_is_solved() {
    let queue = crate::events::EventQueue::with_reader();
    let limits = Limits { services: 1, ..Limits::DEFAULT };
    let reconciler = Reconciler::new(MemoryStore::new(limits), "node-1", Settings::default());
    let mut reconciler = reconciler.with_events(queue.clone());
    let claimant = |name, created| {
        let Object::Service(claimant) = service(name, 1) else { unreachable!("`service` makes a Service") };
        Event::Apply(Object::Service(Service { created: Some(created), ..claimant }))
    };
    let mut pass = |events: Vec<Event>| {
        reconciler.handle(events);
        let report = reconciler.pass();
        reconciler.report_refused(&report.refused);
        let open = queue.open_problems().into_iter();
        open.map(|event| format!("{} {}", event.service, event.warning.reason().name())).collect::<Vec<_>>()
    };
    let both = empty_lists().chain([claimant("a", 1), claimant("b", 2)]);
    assert_eq!(pass(both.collect()), ["default/b FrontendConflict"]);
    // The conflict is over, and the map is full.
    assert_eq!(pass(vec![Event::Apply(service("b", 2))]), ["default/b NoRoom"]);
    assert_eq!(pass(vec![Event::Delete(ObjectKind::Service, Key::new("default", "a"))]), [""; 0]);
}
