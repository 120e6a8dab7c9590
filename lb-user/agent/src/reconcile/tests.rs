//! The pass and the loop: what they wait for, keep and try again.

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
    event::Object,
    objects::{Service, ServicePort},
    op::{Op, Table},
    store::{Dump, Faults, Limits, MemoryStore},
};

fn service(name: &str, vip: u8) -> Object {
    Object::Service(Service {
        cluster_ips: vec![[10, 96, 0, vip].into()],
        ports: [ServicePort::new("", lb_common::Proto::Tcp, 80.try_into().expect("not 0"))].into(),
        ..Service::new(Key::new("default", name))
    })
}

/// Maps that are in service from the start and never grow.
struct Unlimited;

impl Maps for Unlimited {
    type Store = Shared;

    fn grow(&mut self, _: &BTreeSet<Table>) -> Result<Option<Shared>> {
        Ok(None)
    }

    fn enter_service(&mut self, _: u64) -> Result<()> {
        Ok(())
    }

    fn passed(&mut self, _: Aftermath) {}
}

/// Maps that double their slots, and remember what went into service.
#[derive(Clone)]
struct Doubling(Arc<Mutex<(usize, Vec<Shared>)>>);

impl Maps for Doubling {
    type Store = Shared;

    fn grow(&mut self, full: &BTreeSet<Table>) -> Result<Option<Shared>> {
        assert_eq!(full.iter().collect::<Vec<_>>(), [&Table::Slots]);
        let mut this = self.0.lock().expect("nobody panics with it");
        this.0 *= 2;
        let store = Shared::new(MemoryStore::new(Limits { slots: this.0, ..Limits::DEFAULT }));
        this.1.push(store.clone());
        Ok((this.0 <= 4).then_some(store))
    }

    fn enter_service(&mut self, writes: u64) -> Result<()> {
        assert!(writes > 0);
        Ok(())
    }

    fn passed(&mut self, _: Aftermath) {}
}

#[tokio::test(start_paused = true)]
async fn maps_grow_until_every_service_fits_or_they_cannot() {
    let first = Shared::new(MemoryStore::new(Limits { slots: 1, ..Limits::DEFAULT }));
    let maps = Doubling(Arc::new(Mutex::new((1, Vec::new()))));
    let (tx, rx) = mpsc::channel(16);
    let (status, mut observed) = watch::channel(Status::default());
    tokio::spawn(run(Reconciler::new(first, "node-1", Settings::default()), maps.clone(), rx, status));
    for event in nothing() {
        tx.send(event).await.expect("it runs");
    }
    for n in 1..=6 {
        tx.send(Event::Apply(service(&format!("s{n}"), n))).await.expect("it runs");
        tx.send(Event::Apply(slice(&format!("s{n}"), n))).await.expect("it runs");
    }
    observed.wait_for(|status| status.refused == 2).await.expect("it runs");
    let made = maps.0.lock().expect("nobody panics with it").1.clone();
    let slots: Vec<_> = made.iter().map(|store| store.with(|store| store.dump.slots.len())).collect();
    assert_eq!(
        slots.first_chunk(),
        Some(&[2, 4]),
        "the first two of these stores were in use, and are as full as can be"
    );
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

fn nothing() -> impl Iterator<Item = Event> {
    Kind::ALL.into_iter().map(|kind| Event::Replace(kind, Vec::new()))
}

/// A store that two hold, to look into it while the loop runs.
#[derive(Clone)]
struct Shared(Arc<Mutex<MemoryStore>>);

impl Shared {
    fn new(store: MemoryStore) -> Self {
        Self(Arc::new(Mutex::new(store)))
    }

    fn with<T>(&self, look: impl FnOnce(&mut MemoryStore) -> T) -> T {
        look(&mut self.0.lock().expect("nobody panics with it"))
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

/// Maps that hold one Service, left by an agent that has gone.
fn left_behind() -> MemoryStore {
    let mut reconciler = Reconciler::new(MemoryStore::default(), "node-1", Settings::default());
    reconciler.handle(nothing());
    reconciler.handle([Event::Apply(service("old", 1))]);
    assert!(reconciler.pass().writes > 0);
    reconciler.into_store()
}

#[test]
fn i5_nothing_is_written_or_pruned_before_every_kind_was_listed() {
    let before = left_behind();
    let mut reconciler = Reconciler::new(before.clone(), "node-1", Settings::default());
    reconciler.handle([Event::Apply(service("new", 2))]);
    for kind in Kind::OF_SERVICES {
        let report = reconciler.pass();
        assert!(report.waiting.contains(&kind));
        assert_eq!(reconciler.store().dump, before.dump, "before {kind:?}");
        let services = if kind == Kind::Service { vec![service("new", 2)] } else { Vec::new() };
        reconciler.handle([Event::Replace(kind, services)]);
    }
    assert!(reconciler.pass().writes > 0);
    let names: Vec<_> = reconciler.store().dump.names.values().map(ToString::to_string).collect();
    assert_eq!(names, ["default/new/TCP"]);
}

#[tokio::test(start_paused = true)]
async fn i5_time_alone_prunes_nothing() {
    let store = Shared::new(left_behind());
    let before = store.with(|store| store.dump.clone());
    let (tx, rx) = mpsc::channel(16);
    let (status, observed) = watch::channel(Status::default());
    let reconciler = Reconciler::new(store.clone(), "node-1", Settings::default());
    let running = tokio::spawn(run(reconciler, Unlimited, rx, status));
    for kind in Kind::OF_SERVICES {
        sleep(Duration::from_secs(3600)).await;
        assert_eq!(store.with(|store| store.dump.clone()), before);
        assert!(!observed.borrow().ready);
        tx.send(Event::Replace(kind, Vec::new())).await.expect("it runs");
    }
    sleep(Duration::from_millis(1)).await;
    assert!(observed.borrow().ready);
    assert_eq!(store.with(|store| store.dump.clone()), Dump::default());
    drop(tx);
    let error = running.await.expect("no panic").expect_err("without sources it ends");
    assert_eq!(error.to_string(), "all sources have ended");
}

#[tokio::test(start_paused = true)]
async fn i3_a_failed_write_is_tried_again_ever_more_slowly_and_events_are_kept() {
    let faults = Faults::Percent { percent: 100, seed: 0 };
    let store = Shared::new(MemoryStore { faults, ..MemoryStore::default() });
    let (tx, rx) = mpsc::channel(16);
    let (status, mut observed) = watch::channel(Status::default());
    tokio::spawn(run(Reconciler::new(store.clone(), "node-1", Settings::default()), Unlimited, rx, status));
    for event in nothing().chain([Event::Apply(service("a", 1))]) {
        tx.send(event).await.expect("it runs");
    }
    let start = Instant::now();
    let mut waits = Vec::new();
    for _ in 0..12 {
        observed.changed().await.expect("it runs");
        waits.push(start.elapsed().as_millis());
        assert!(!observed.borrow().ready);
        assert_eq!(observed.borrow().pending_since, Some(start), "since the first change, however often it is tried");
        assert!(observed.borrow().error.as_ref().is_some_and(|error| error.contains("writing map NAMES")));
    }
    let steps: Vec<_> = waits.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert_eq!(steps[..4], [100, 200, 400, 800]);
    assert_eq!(steps[9..], [30_000, 30_000]);
    tx.send(Event::Apply(service("b", 2))).await.expect("it runs");
    store.with(|store| store.faults = Faults::None);
    observed.changed().await.expect("it runs");
    {
        let status = observed.borrow();
        assert_eq!((status.ready, status.passes, status.failures, status.error.as_ref()), (true, 13, 12, None));
        assert_eq!((status.seen, status.done, status.pending_since), (status.done, status.seen, None));
        assert_eq!((status.done.services, status.took.count()), (2, 13));
    }
    assert_eq!(store.with(|store| store.dump.names.len()), 2);
}

#[tokio::test(start_paused = true)]
async fn what_a_foreign_hand_took_away_comes_back_within_five_minutes() {
    let store = Shared::new(MemoryStore::default());
    let (tx, rx) = mpsc::channel(16);
    let (status, _observed) = watch::channel(Status::default());
    tokio::spawn(run(Reconciler::new(store.clone(), "node-1", Settings::default()), Unlimited, rx, status));
    for event in nothing().chain([Event::Apply(service("a", 1))]) {
        tx.send(event).await.expect("it runs");
    }
    sleep(Duration::from_secs(1)).await;
    let before = store.with(|store| std::mem::take(&mut store.dump)).to_string();
    assert!(!before.is_empty());
    sleep(Duration::from_secs(301)).await;
    assert_eq!(store.with(|store| store.dump.to_string()), before);
}

#[test]
fn a_map_that_is_full_against_our_count_is_read_again() {
    let limits = Limits { services: 1, ..Limits::DEFAULT };
    let mut reconciler = Reconciler::new(MemoryStore::new(limits), "node-1", Settings::default());
    reconciler.handle(nothing());
    assert_eq!(reconciler.pass().writes, 0);
    // A foreign hand fills the map.
    reconciler.store_mut().dump.services.insert(77, lb_common::Service::default());
    reconciler.handle([Event::Apply(service("a", 1))]);
    let report = reconciler.pass();
    let error = format!("{:#}", report.failure.expect("it is full"));
    assert_eq!(error, "after 1 of 4 writes: map SERVICES is full");
    assert_eq!(report.writes, 1);
    // The stranger goes, then there is room.
    let report = reconciler.pass();
    assert!(report.failure.is_none() && report.refused.is_empty(), "{report:?}");
    assert!(reconciler.store().dump.services.len() == 1 && !reconciler.store().dump.services.contains_key(&77));
    assert_eq!(reconciler.shadow().map(|shadow| shadow.count(Table::Services)), Some(1));
}

#[test]
fn a_preview_writes_nothing_and_the_pass_does_what_it_said() {
    let mut reconciler = Reconciler::new(MemoryStore::default(), "node-1", Settings::default());
    assert_eq!(reconciler.preview().expect("a dump"), Plan::default());
    reconciler.handle(nothing());
    reconciler.handle([Event::Apply(service("a", 1))]);
    let plan = reconciler.preview().expect("a dump");
    assert_eq!((plan.ops.len(), reconciler.store().asked), (4, 0));
    assert_eq!(reconciler.preview().expect("a dump"), plan);
    assert_eq!(reconciler.pass().writes, 4);
    assert_eq!(reconciler.preview().expect("a dump").ops, []);
}

#[tokio::test(start_paused = true)]
async fn a_burst_is_one_pass_and_a_trickle_waits_for_nothing() {
    let (tx, rx) = mpsc::channel(2048);
    let (status, mut observed) = watch::channel(Status::default());
    let store = Shared::new(MemoryStore::default());
    tokio::spawn(run(Reconciler::new(store.clone(), "node-1", Settings::default()), Unlimited, rx, status));
    for event in nothing() {
        tx.send(event).await.expect("it runs");
    }
    observed.wait_for(|status| status.ready).await.expect("it runs");
    let passes = observed.borrow().passes;
    for n in 0..1000 {
        tx.try_send(Event::Apply(service(&format!("s{n}"), (n % 250) as u8))).expect("room in the channel");
    }
    observed.changed().await.expect("it runs");
    assert_eq!(observed.borrow_and_update().passes, passes + 1);

    let start = Instant::now();
    for n in 1..=20 {
        tx.send(Event::Apply(service(&format!("t{n}"), 251))).await.expect("it runs");
        observed.changed().await.expect("it runs");
        assert_eq!(observed.borrow_and_update().passes, passes + 1 + n);
    }
    assert_eq!(start.elapsed(), Duration::ZERO);
}

#[test]
fn an_endpoint_is_refused_while_it_is_a_node_port_of_this_node() {
    let mut reconciler = Reconciler::new(MemoryStore::default(), "node-1", Settings::default());
    reconciler.handle(nothing().chain([Event::Apply(service("a", 1)), Event::Apply(slice("a", 1))]));
    let Object::Service(mut exposed) = service("b", 2) else { panic!("it is a Service") };
    let port = exposed.ports.first().cloned().expect("a port");
    exposed.ports = [ServicePort { node_port: 80.try_into().ok(), ..port }].into();
    let addresses = |own: &[u8]| Event::NodeAddresses(own.iter().map(|&n| [10, 0, 0, n].into()).collect());
    let steps = [
        (addresses(&[1, 2]), false),
        (Event::Apply(Object::Service(exposed.clone())), true),
        (addresses(&[2]), false),
        (addresses(&[2, 1]), true),
        (Event::Delete(Kind::Service, exposed.key.clone()), false),
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
fn owners_are_told_what_is_wrong_for_as_long_as_it_is() {
    let board = crate::events::EventQueue::read();
    let limits = Limits { services: 1, ..Limits::DEFAULT };
    let reconciler = Reconciler::new(MemoryStore::new(limits), "node-1", Settings::default());
    let mut reconciler = reconciler.telling(board.clone());
    let asking = |name, created| {
        let Object::Service(asking) = service(name, 1) else { unreachable!("that is one") };
        Event::Apply(Object::Service(Service { created: Some(created), ..asking }))
    };
    let mut pass = |events: Vec<Event>| {
        reconciler.handle(events);
        let report = reconciler.pass();
        reconciler.tell_refused(&report.refused);
        let told = board.all().into_iter();
        told.map(|told| format!("{} {}", told.service, told.warning.reason().name())).collect::<Vec<_>>()
    };
    let both = nothing().chain([asking("a", 1), asking("b", 2)]);
    assert_eq!(pass(both.collect()), ["default/b FrontendConflict"]);
    // It loses nothing any more, and has no room.
    assert_eq!(pass(vec![Event::Apply(service("b", 2))]), ["default/b NoRoom"]);
    assert_eq!(pass(vec![Event::Delete(Kind::Service, Key::new("default", "a"))]), [""; 0]);
}
