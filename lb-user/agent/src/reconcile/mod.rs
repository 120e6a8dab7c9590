//! The pass: changed Services are compiled, planned and written; failed work is kept for the next pass. [`run`] decides
//! when a pass runs, `lb_core::model` what Services mean, `lb_core::plan` which writes follow.

mod maps;
mod report;
mod run;
mod status;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Instant,
};

use anyhow::Result;
use foldhash::HashSet;
use lb_common::{Addr, FrontendKey};

use crate::events::{EventQueue, Origin};
use lb_common::Family;
use lb_core::{
    event::Event,
    model::{
        NodeContext, Settings, about,
        claims::Claims,
        compile,
        cross_namespace::CrossNamespaceIndex,
        evaluate::ClusterContext,
        explain::{Explanation, explain},
        frontends::{self, unspecified},
    },
    objects::Key,
    plan::{Change, OnOrphan, Plan, Refused, Scope, plan},
    shadow::Shadow,
    spec::{Health, ServiceSpec},
    store::{Partial, Store, StoreError},
    warning::{Problem, reason},
    world::World,
};
use maps::Maps;
pub(crate) use report::{MapChanges, RemovedBackend};
pub use report::{PassReport, StepDurations};
pub(crate) use run::{Dataplane, run};
pub(crate) use status::Status;

/// Keeps a store equal to the Services.
pub struct Reconciler<S> {
    // Objects and their meaning.
    world: World,
    settings: Settings,
    claims: Claims,
    strangers: CrossNamespaceIndex,
    /// Addresses of the node at which NodePorts answer, as of the last pass.
    node_ports: BTreeSet<Addr>,

    maps: Maps<S>,
    work: Work,

    // Results of the last pass over each Service.
    warnings: BTreeMap<Key, Vec<String>>,
    reports: Reports,
}

/// Work of the next pass, beside the Services that the world calls dirty.
struct Work {
    /// The whole world after a start and after a resync.
    scope: Scope,
    /// Services to plan again, because a write failed or a map was full.
    pending: BTreeSet<Key>,
}

/// Results that other parts of the agent read.
#[derive(Default)]
struct Reports {
    /// Problems for the owners of Services.
    events: EventQueue,
    /// Content of each Service's `healthCheckNodePort`.
    health: Arc<BTreeMap<Key, Health>>,
    /// Services that do not fit into the maps.
    refused: Vec<Refused>,
}

impl<S: Store> Reconciler<S> {
    /// Creates a reconciler for the node `node_name`, without objects. It reads the store in its first pass.
    #[must_use]
    pub fn new(store: S, node_name: &str, settings: Settings) -> Self {
        Self {
            world: World::new(node_name),
            settings,
            claims: Claims::default(),
            strangers: CrossNamespaceIndex::default(),
            node_ports: BTreeSet::new(),
            maps: Maps::new(store),
            work: Work { scope: Scope::World, pending: BTreeSet::new() },
            warnings: BTreeMap::new(),
            reports: Reports::default(),
        }
    }

    /// Allocates no id of a service port or a backend up to `highest`: sockets may still name them (invariant I7).
    #[must_use]
    pub(crate) fn with_used_ids(mut self, highest: (u32, u32)) -> Self {
        self.maps.used_ids = highest;
        self
    }

    /// Reports problems of Services to `events`.
    #[must_use]
    pub(crate) fn with_events(mut self, events: EventQueue) -> Self {
        self.reports.events = events;
        self
    }

    /// Takes events. Writes nothing.
    pub fn handle(&mut self, events: impl IntoIterator<Item = Event>) {
        events.into_iter().for_each(|event| self.world.apply(event));
    }

    /// Compiles, plans and writes the changes since the last pass. Does nothing before every kind was listed (invariant
    /// I5).
    pub fn pass(&mut self) -> PassReport {
        let mut report = PassReport { waiting: self.world.missing(), ..PassReport::default() };
        if !report.waiting.is_empty() {
            return report;
        }
        let start = Instant::now();
        let specs = self.compile();
        report.durations.compile = start.elapsed();
        match specs {
            Ok(specs) => {
                report.planned = specs.len();
                self.plan_and_write(specs, &mut report);
            }
            Err(error) => report.failure = Some(error),
        }
        report
    }

    /// Returns the first plan of the next pass, without performing it.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn preview(&mut self) -> Result<Plan> {
        if !self.world.ready() {
            return Ok(Plan::default());
        }
        let specs = self.compile()?;
        self.work.pending.extend(specs.iter().map(|spec| spec.key.clone()));
        let addresses = self.node_port_addresses();
        let limits = self.maps.store.limits();
        let shadow = self.maps.shadow.get_or_insert_default();
        Ok(plan(shadow, &specs, addresses.as_ref(), self.work.scope, OnOrphan::Keep, &limits))
    }

    /// Makes the next pass read the store again and compare everything.
    pub fn resync(&mut self) {
        self.maps.forget();
        self.work.scope = Scope::World;
    }

    /// Continues with another store; its content does not matter.
    pub(crate) fn move_to(&mut self, store: S) {
        self.maps.store = store;
        self.resync();
    }

    /// Returns the desired content of the maps for a Service, from the current objects.
    #[must_use]
    pub fn spec(&self, key: &Key) -> ServiceSpec {
        compile(key, self.world.view(key).as_ref(), self.node_context(), &self.settings, self.cluster_context())
    }

    /// Returns the reasons behind [`Reconciler::spec`]; none if the Service does not exist.
    #[must_use]
    pub fn explain(&self, key: &Key) -> Option<Explanation> {
        Some(explain(&self.world.view(key)?, self.node_context(), &self.settings, self.cluster_context()))
    }

    fn cluster_context(&self) -> ClusterContext<'_> {
        ClusterContext { claims: &self.claims, strangers: &self.strangers }
    }

    fn node_context(&self) -> NodeContext<'_> {
        NodeContext { node: self.world.node_name(), zone: self.world.zone(), node_ports: &self.node_ports }
    }

    /// Returns the objects.
    #[must_use]
    pub fn world(&self) -> &World {
        &self.world
    }

    /// Returns the warnings of the last pass over each Service.
    #[must_use]
    pub fn warnings(&self) -> &BTreeMap<Key, Vec<String>> {
        &self.warnings
    }

    /// Returns the store.
    #[must_use]
    pub fn store(&self) -> &S {
        &self.maps.store
    }

    /// Returns the store for changes that the reconciler does not see.
    pub fn store_mut(&mut self) -> &mut S {
        &mut self.maps.store
    }

    /// Returns the store, whose content outlives the reconciler.
    #[must_use]
    pub fn into_store(self) -> S {
        self.maps.store
    }

    /// Returns the copy of the maps; none before the first pass, and after a resync.
    #[must_use]
    pub fn shadow(&self) -> Option<&Shadow> {
        self.maps.shadow.as_ref()
    }

    /// Compiles the Services that the next plan covers, sorted by key. Reads the store if there is no copy of it.
    fn compile(&mut self) -> Result<Vec<ServiceSpec>> {
        self.maps.read()?;
        let keys = self.take_keys();
        let specs: Vec<ServiceSpec> = keys.iter().map(|key| self.spec(key)).collect();
        specs.iter().for_each(|spec| self.warn(spec));
        specs.iter().for_each(|spec| self.reports.update_health(spec));
        Ok(specs)
    }

    /// Takes the keys of all Services whose spec may have changed, and updates the indexes over all Services.
    fn take_keys(&mut self) -> Vec<Key> {
        let mut keys = self.world.take_dirty();
        keys.extend(std::mem::take(&mut self.work.pending));
        keys.extend(self.update_node_ports());
        if self.work.scope == Scope::World {
            // Keep only deleted Services: the world lists each of the others once, and sorting duplicates is expensive.
            keys.retain(|key| self.world.view(key).is_none());
            keys.extend(self.world.services().cloned());
        }
        keys.sort_unstable();
        keys.dedup();
        let affected = self.strangers.update(&self.world, &keys);
        add_keys(&mut keys, affected);
        let affected = self.claim(&keys);
        add_keys(&mut keys, affected);
        keys
    }

    /// Returns the addresses at which NodePorts must answer; none before the node's addresses are known.
    fn node_port_addresses(&self) -> Option<BTreeSet<Addr>> {
        let own = self.world.addresses()?;
        Some(self.settings.nodeport_addresses.choose(own, self.world.internal_ips()))
    }

    /// Updates the addresses of NodePorts; returns the Services with endpoints at an address that came or went, because
    /// an endpoint at a NodePort is refused.
    fn update_node_ports(&mut self) -> Vec<Key> {
        let new = self.node_port_addresses().unwrap_or_default();
        if new == self.node_ports {
            return Vec::new();
        }
        let changed: HashSet<Addr> = new.symmetric_difference(&self.node_ports).copied().collect();
        self.node_ports = new;
        if self.work.scope == Scope::World { Vec::new() } else { self.world.services_with_endpoints_at(&changed) }
    }

    /// Sets the frontends that the Services ask for; returns other Services that this affects.
    fn claim(&mut self, keys: &[Key]) -> Vec<Key> {
        let mut moved: Vec<FrontendKey> = Vec::new();
        let mut changed: Vec<FrontendKey> = Vec::new();
        let mut wanted = Vec::new();
        self.claims.reserve(keys.len());
        for key in keys {
            let view = self.world.view(key);
            wanted.clear();
            if let Some(view) = view {
                // What it asks for in vain is told when it is compiled.
                let (external, strangers) = (&self.settings.external_ips, &self.strangers);
                let all = frontends::asked(view.service, external, strangers, &mut Vec::new());
                wanted.extend(all.iter().map(|wanted| (wanted.key, wanted.kind)));
            }
            let created = view.and_then(|view| view.service.created);
            let consequences = self.claims.set(key, created, &wanted);
            moved.extend(consequences.moved);
            changed.extend(consequences.frontends);
        }
        if self.work.scope == Scope::World {
            return Vec::new();
        }
        moved.sort_unstable();
        moved.dedup();
        let mut concerned: Vec<Key> = moved.iter().flat_map(|key| self.claims.claimants(key)).cloned().collect();
        // Whoever has an endpoint there names the owner in a warning.
        changed.append(&mut moved);
        if changed.is_empty() {
            return concerned;
        }
        // An endpoint that is a frontend is refused, so that a frontend that comes or goes concerns its endpoints'
        // Services.
        let mut addrs: HashSet<Addr> = changed.iter().map(|key| key.addr).collect();
        for family in [Family::V4, Family::V6] {
            // A NodePort is one at each of the node's addresses.
            if addrs.remove(&unspecified(family)) {
                addrs.extend(self.node_ports.iter().filter(|addr| Family::of(addr) == family));
            }
        }
        concerned.extend(self.world.services_with_endpoints_at(&addrs));
        // Who still holds one that nobody asks for any more has to drop it: its owner-to-be never had room.
        let unclaimed = changed.iter().filter(|key| self.claims.owner(key).is_none());
        let holder = |key: &FrontendKey| {
            let shadow = self.maps.shadow.as_ref()?;
            Some(shadow.port(shadow.frontend(key)?.service)?.key.as_ref()?.service.clone())
        };
        concerned.extend(unclaimed.filter_map(holder));
        concerned
    }

    /// Plans and writes; repeats this while the writes make room for Services that did not fit before.
    fn plan_and_write(&mut self, mut specs: Vec<ServiceSpec>, report: &mut PassReport) {
        let limits = self.maps.store.limits();
        let addresses = self.node_port_addresses();
        let mut on_orphan = OnOrphan::Keep;
        loop {
            let start = Instant::now();
            let shadow = self.maps.shadow.get_or_insert_default();
            let Plan { ops, changed, refused, held } =
                plan(shadow, &specs, addresses.as_ref(), self.work.scope, on_orphan, &limits);
            report.durations.plan += start.elapsed();
            if let Err(Partial { done, error }) = self.maps.write(&ops, report) {
                self.work.pending.extend(specs.into_iter().map(|spec| spec.key));
                if matches!(error, StoreError::Full(_)) {
                    // The copy has room, so it differs from the map.
                    self.resync();
                }
                let context = format!("after {done} of {} writes", ops.len());
                report.failure = Some(anyhow::Error::new(error).context(context));
                return;
            }
            self.work.scope = Scope::Some;
            changed.iter().for_each(log_change);
            report.changed.extend(changed);
            let stuck = ops.is_empty();
            if stuck && on_orphan == OnOrphan::Keep && !held.is_empty() {
                on_orphan = OnOrphan::Remove;
            } else if stuck || (refused.is_empty() && held.is_empty()) {
                self.work.pending.extend(refused.iter().map(|refused| refused.service.clone()).chain(held));
                report.refused = refused;
                return;
            }
            let unfinished = refused.iter().map(|refused| &refused.service).chain(&held).collect();
            keep_unfinished(&mut specs, &unfinished);
        }
    }

    /// Logs new warnings about a Service, and passes all of them to the Event queue.
    fn warn(&mut self, spec: &ServiceSpec) {
        let old = self.warnings.get(&spec.key).map_or(&[][..], |old| old);
        if *old == *spec.warnings {
            return;
        }
        for warning in spec.warnings.iter().filter(|warning| !old.contains(warning)) {
            tracing::warn!(service = %spec.key, "{warning}");
        }
        if self.reports.events.has_reader() {
            let view = self.world.view(&spec.key);
            let problems = view.map(|view| about(&view, self.node_context(), &self.settings, self.cluster_context()));
            self.reports.events.report(Origin::Objects, &spec.key, problems.unwrap_or_default());
        }
        if spec.warnings.is_empty() {
            self.warnings.remove(&spec.key);
        } else {
            self.warnings.insert(spec.key.clone(), spec.warnings.clone());
        }
    }

    /// Logs the Services that do not fit into the maps, once each, and passes them to the Event queue.
    fn report_refused(&mut self, refused: &[Refused]) {
        let Reports { events, refused: known, .. } = &mut self.reports;
        for new in refused.iter().filter(|new| !known.contains(new)) {
            tracing::error!(service = %new.service, "{new}");
            let problem = Problem { reason: reason::ROOM, text: new.to_string() };
            events.report(Origin::MapSize, &new.service, vec![problem]);
        }
        for old in known.iter().filter(|old| !refused.iter().any(|new| new.service == old.service)) {
            events.report(Origin::MapSize, &old.service, Vec::new());
        }
        *known = refused.to_vec();
    }
}

impl Reports {
    fn update_health(&mut self, spec: &ServiceSpec) {
        if self.health.get(&spec.key) == spec.health.as_ref() {
            return;
        }
        let health = Arc::make_mut(&mut self.health);
        match spec.health {
            Some(new) => drop(health.insert(spec.key.clone(), new)),
            None => drop(health.remove(&spec.key)),
        }
    }
}

/// Adds `new` to sorted keys, which stay sorted and without duplicates.
fn add_keys(keys: &mut Vec<Key>, new: Vec<Key>) {
    if !new.is_empty() {
        keys.extend(new);
        keys.sort_unstable();
        keys.dedup();
    }
}

/// Keeps the specs of `unfinished` Services. A Service that is known from the maps only gets a spec that removes it.
fn keep_unfinished(specs: &mut Vec<ServiceSpec>, unfinished: &BTreeSet<&Key>) {
    specs.retain(|spec| unfinished.contains(&spec.key));
    let known: BTreeSet<Key> = specs.iter().map(|spec| spec.key.clone()).collect();
    let only_in_maps = unfinished.iter().filter(|key| !known.contains(**key));
    specs.extend(only_in_maps.map(|key| ServiceSpec::gone((*key).clone())));
    specs.sort_by(|a, b| a.key.cmp(&b.key));
}

fn log_change(change: &Change) {
    let Change { service, frontends, added, removed, writes } = change;
    tracing::info!(%service, frontends, added, removed, writes, "changed");
}

#[cfg(test)]
mod tests;
