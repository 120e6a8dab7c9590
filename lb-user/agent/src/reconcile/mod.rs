//! The pass: changed Services are compiled, planned and written; failed work is kept for the next pass. `run` decides
//! when a pass runs, `lb_core::model` what Services mean, `lb_core::plan` which writes follow.

mod maps;
mod mending;
mod redirect_targets;
mod report;
mod run;
mod status;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Result;
use foldhash::{HashMap, HashSet};
use ipnet::IpNet;
use lb_common::{Addr, FrontendKey, Kind, NodeAddr, Proto, ServiceFlags};

use crate::events::{EventQueue, ProblemOrigin};
use lb_core::ids::HighestIds;
use lb_core::{
    announce::Candidates,
    event::Event,
    model::{
        ClusterContext, NodeContext, Settings,
        claims::Claims,
        cluster_ranges::{self, DoubtfulRange},
        compile,
        cross_namespace::CrossNamespaceIndex,
        explain::{Explanation, explain},
        fan_out,
        frontends::{FrontendRequest, request},
        redirects::RedirectIndex,
        slow_start::SlowStarts,
    },
    objects::{ConnectionAge, Key},
    plan::{Change, OnOrphan, Plan, Refused, Scope, plan},
    shadow::Shadow,
    spec::{Health, PortSpec, ProbeTargets, ServiceSpec},
    store::{Partial, Store, StoreError},
    warning::Warning,
    world::{View, World},
};
use lb_dataplane::attach::ejection::EjectionProgram;
use lb_sources::probes::Probed;
use maps::Maps;
use redirect_targets::RedirectTargets;
pub(crate) use report::{Departed, Departure, MapChanges};
pub use report::{PassReport, StepDurations};
pub(crate) use run::{Dataplane, run};
pub(crate) use status::{DatapathState, Status};

/// Keeps a store equal to the Services.
pub struct Reconciler<S> {
    // Objects and their meaning.
    world: World,
    settings: Settings,
    claims: Claims,
    cross_namespace: CrossNamespaceIndex,
    redirects: RedirectIndex,
    slow_starts: SlowStarts,
    /// Addresses of the node at which NodePorts answer, as of the last pass.
    node_ports: BTreeSet<Addr>,
    /// Addresses of all interfaces of the node, as of the last pass.
    own: BTreeSet<Addr>,

    maps: Maps<S>,
    work: Work,

    // Results of the last pass over each Service.
    warnings: BTreeMap<Key, Vec<Warning>>,
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
    /// Load balancer addresses of each Service with source ranges.
    restricted: Arc<BTreeMap<Key, Vec<IpAddr>>>,
    /// Load balancer addresses of each Service, with the nodes that may attract their traffic.
    attracted: Arc<BTreeMap<Key, Vec<(IpAddr, Candidates)>>>,
    /// The age of connections of each Service that has one.
    ages: BTreeMap<Key, ConnectionAge>,
    /// The endpoints to probe of each Service that has some.
    probes: BTreeMap<Key, ProbeTargets>,
    /// Endpoints on this node that take the clients of each Service.
    redirect_targets: RedirectTargets,
    /// True if a Service of `ages` or `probes` has changed, maybe by its ids only.
    are_named_changed: bool,
    /// Services with ejection, by the program that it needs.
    ejecting: BTreeMap<EjectionProgram, BTreeSet<Key>>,
    /// Services that do not fit into the maps.
    refused: Vec<Refused>,
}

impl<S: Store> Reconciler<S> {
    /// Creates a reconciler for the node `node_name`, without objects. It reads the store in its first pass.
    #[must_use]
    pub fn new(store: S, node_name: &str, settings: Settings) -> Self {
        let world = World::new(node_name);
        Self {
            world: if settings.host_ports { world.with_host_ports() } else { world },
            settings,
            claims: Claims::default(),
            cross_namespace: CrossNamespaceIndex::default(),
            redirects: RedirectIndex::default(),
            slow_starts: SlowStarts::default(),
            node_ports: BTreeSet::new(),
            own: BTreeSet::new(),
            maps: Maps::new(store),
            work: Work { scope: Scope::World, pending: BTreeSet::new() },
            warnings: BTreeMap::new(),
            reports: Reports::default(),
        }
    }

    /// Allocates no id of a service port or a backend up to `highest`: sockets may still name them (invariant I7).
    #[must_use]
    pub(crate) fn with_used_ids(mut self, highest: HighestIds) -> Self {
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
        let addresses = self.node_addrs();
        let limits = self.maps.store.limits();
        let shadow = self.maps.shadow.get_or_insert_default();
        Ok(plan(shadow, &specs, addresses.as_ref(), self.work.scope, OnOrphan::Keep, &limits))
    }

    /// Sets the time since the start of the agent, by which weights rise. Services with a step are compiled in the next
    /// pass.
    pub fn set_time(&mut self, since_start: Duration) {
        self.work.pending.extend(self.slow_starts.set_time(since_start));
    }

    /// Returns the time at which a weight rises next, as [`Reconciler::set_time`] takes it.
    #[must_use]
    pub(crate) fn next_step(&self) -> Option<Duration> {
        self.slow_starts.next()
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
        self.compile_service(key, None)
    }

    /// Compiles a Service; `request` is its request for frontends, if it is known already.
    fn compile_service(&self, key: &Key, request: Option<FrontendRequest>) -> ServiceSpec {
        let Some(view) = self.world.view(key) else { return ServiceSpec::gone(key.clone()) };
        let request = request.unwrap_or_else(|| self.request(&view));
        compile(&view, request, self.node_context(), &self.settings, self.cluster_context())
    }

    fn request(&self, view: &View<'_>) -> FrontendRequest {
        request(view.service, &self.settings.external_ips, &self.cross_namespace)
    }

    /// Returns the reasons behind [`Reconciler::spec`]; none if the Service does not exist.
    #[must_use]
    pub fn explain(&self, key: &Key) -> Option<Explanation> {
        let view = self.world.view(key)?;
        Some(explain(&view, self.request(&view), self.node_context(), &self.settings, self.cluster_context()))
    }

    fn cluster_context(&self) -> ClusterContext<'_> {
        ClusterContext {
            claims: &self.claims,
            cross_namespace: &self.cross_namespace,
            redirects: &self.redirects,
            maps: self.maps.shadow.as_ref(),
            slow_starts: &self.slow_starts,
            world: &self.world,
        }
    }

    fn node_context(&self) -> NodeContext<'_> {
        NodeContext {
            name: self.world.node_name(),
            zone: self.world.zone(),
            node_ports: &self.node_ports,
            own: &self.own,
        }
    }

    /// Returns the objects.
    #[must_use]
    pub fn world(&self) -> &World {
        &self.world
    }

    /// Returns the warnings of the last pass over each Service.
    #[must_use]
    pub fn warnings(&self) -> &BTreeMap<Key, Vec<Warning>> {
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
        if self.maps.shadow.is_none() {
            self.maps.read()?;
        }
        let (keys, mut requests) = self.take_keys();
        let mut specs = Vec::with_capacity(keys.len());
        for key in &keys {
            let spec = self.compile_service(key, requests.remove(key));
            let tuning = self.world.view(key).and_then(|view| view.service.tuning.as_deref());
            self.reports.update_age(key, tuning.and_then(|tuning| tuning.max_connection_age));
            let time = tuning.and_then(|tuning| tuning.slow_start);
            let must_repeat = self.slow_starts.observe(&spec, time, self.maps.shadow.as_ref());
            specs.push(if must_repeat { self.compile_service(key, None) } else { spec });
        }
        specs.iter().for_each(|spec| self.warn(spec));
        specs.iter().for_each(|spec| self.reports.update_health(spec));
        specs.iter().for_each(|spec| self.reports.update_probes(spec));
        specs.iter().for_each(|spec| self.reports.redirect_targets.update(spec));
        specs.iter().for_each(|spec| self.reports.update_restricted(spec));
        specs.iter().for_each(|spec| self.reports.update_attracted(spec));
        specs.iter().for_each(|spec| self.reports.update_ejecting(spec));
        Ok(specs)
    }

    /// Takes the keys of all Services whose spec may have changed, and updates the indexes over all Services. Returns
    /// the keys, and the requests for frontends that are known already.
    fn take_keys(&mut self) -> (Vec<Key>, HashMap<Key, FrontendRequest>) {
        let mut keys = self.world.take_dirty();
        keys.extend(std::mem::take(&mut self.work.pending));
        keys.extend(self.update_node_ports());
        keys.extend(self.update_own());
        if self.work.scope == Scope::World {
            // Keep only deleted Services: the world lists each of the others once, and sorting duplicates is expensive.
            keys.retain(|key| self.world.view(key).is_none());
            keys.extend(self.world.services().cloned());
        }
        keys.sort_unstable();
        keys.dedup();
        let affected = self.cross_namespace.update(&self.world, &keys);
        add_keys(&mut keys, affected);
        let (requests, affected) = self.claim(&keys);
        add_keys(&mut keys, affected);
        // Last: it needs every Service whose endpoints count differently now.
        let affected = self.redirects.update(&self.world, &keys, &self.settings.redirect_namespaces);
        add_keys(&mut keys, affected);
        (keys, requests)
    }

    /// Returns the addresses at which NodePorts must answer; none before the node's addresses are known.
    fn node_port_addresses(&self) -> Option<BTreeSet<Addr>> {
        let own = self.world.addresses()?.all();
        Some(self.settings.nodeport_addresses.choose(&own, self.world.internal_ips()))
    }

    /// Returns the content of `NODE_ADDRS`; none before the node's addresses are known.
    fn node_addrs(&self) -> Option<BTreeMap<Addr, NodeAddr>> {
        let own = self.world.addresses()?.all();
        Some(self.settings.node_addrs(&own, self.world.internal_ips()))
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
        if self.work.scope == Scope::World {
            return Vec::new();
        }
        let mut services = self.world.services_with_endpoints_at(&changed);
        // A hostPort at such an address is refused as well.
        services.extend(self.world.host_port_services().map(|service| service.key.clone()));
        services
    }

    /// Updates the addresses of interfaces; returns the Services whose cluster IP came or went there, since unknown
    /// ports of such a cluster IP are not refused, and those with port ranges at such an address, which are not served.
    fn update_own(&mut self) -> Vec<Key> {
        let interfaces = self.world.addresses().into_iter().flat_map(|own| &own.interfaces);
        let new: BTreeSet<Addr> = interfaces.map(|&ip| ip.into()).collect();
        if new == self.own {
            return Vec::new();
        }
        let changed: Vec<Addr> = new.symmetric_difference(&self.own).copied().collect();
        self.own = new;
        let owner = |addr: &Addr| self.claims.owner(&FrontendKey::new(*addr, 0, Proto::Tcp).address()).cloned();
        let host_ports = self.world.host_port_services().map(|service| service.key.clone());
        let ranges = changed.iter().flat_map(|addr| self.claims.range_claimants(*addr)).cloned();
        changed.iter().filter_map(owner).chain(host_ports).chain(ranges).collect()
    }

    /// Returns the ranges of cluster IPs in use, and the doubtful ones. As of the last pass.
    pub(crate) fn cluster_ranges(&self) -> (Vec<IpNet>, Vec<DoubtfulRange>) {
        let is_cluster_ip =
            |addr: &Addr| self.claims.owner(&FrontendKey::new(*addr, 0, Proto::Tcp).address()).is_some();
        cluster_ranges::choose(&self.settings.service_cidrs, self.world.cluster_ranges(), &self.own, is_cluster_ip)
    }

    /// Returns the ages of connections and the endpoints to probe, by service ports of the maps, if they may have
    /// changed since the last call.
    fn take_named(&mut self) -> Option<(BTreeMap<u32, ConnectionAge>, BTreeMap<Key, Probed>)> {
        let Reports { ages, probes, are_named_changed, .. } = &mut self.reports;
        let shadow = self.maps.shadow.as_ref().filter(|_| *are_named_changed)?;
        *are_named_changed = false;
        let is_tcp = |id: &u32| {
            let key = shadow.port(*id).and_then(|port| port.key.as_ref());
            key.is_some_and(|key| key.proto == Proto::Tcp)
        };
        let by_id = |(service, age): (&Key, &ConnectionAge)| {
            let (age, ids) = (*age, shadow.ports_of(service).iter().copied().filter(is_tcp));
            ids.map(|id| (id, age)).collect::<Vec<_>>()
        };
        let probed = |(service, targets): (&Key, &ProbeTargets)| {
            (service.clone(), Probed { targets: targets.clone(), ids: shadow.ports_of(service).to_vec() })
        };
        Some((ages.iter().flat_map(by_id).collect(), probes.iter().map(probed).collect()))
    }

    /// Records the claims of the Services `keys`. Returns their requests for frontends, and the other Services that the
    /// changes affect.
    fn claim(&mut self, keys: &[Key]) -> (HashMap<Key, FrontendRequest>, Vec<Key>) {
        let external_ips = &self.settings.external_ips;
        let (requests, changes) =
            fan_out::record(&mut self.claims, &self.world, keys, external_ips, &self.cross_namespace);
        if self.work.scope == Scope::World {
            return (requests, Vec::new());
        }
        let fan_out::Affected { mut services, unclaimed } =
            fan_out::affected(changes, &self.claims, &self.world, &self.node_ports);
        let holder = |key: &FrontendKey| {
            let shadow = self.maps.shadow.as_ref()?;
            Some(shadow.port(shadow.frontend(key)?.service)?.key.as_ref()?.service.clone())
        };
        services.extend(unclaimed.iter().filter_map(holder));
        (requests, services)
    }

    /// Plans and writes; repeats this while the writes make room for Services that did not fit before.
    fn plan_and_write(&mut self, mut specs: Vec<ServiceSpec>, report: &mut PassReport) {
        let limits = self.maps.store.limits();
        let addresses = self.node_addrs();
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
            self.reports.events.report(ProblemOrigin::Objects, &spec.key, spec.warnings.clone());
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
            events.report(ProblemOrigin::MapSize, &new.service, vec![new.warning()]);
        }
        for old in known.iter().filter(|old| !refused.iter().any(|new| new.service == old.service)) {
            events.report(ProblemOrigin::MapSize, &old.service, Vec::new());
        }
        *known = refused.to_vec();
    }
}

impl Reports {
    fn update_age(&mut self, service: &Key, age: Option<ConnectionAge>) {
        let before = match age {
            Some(age) => self.ages.insert(service.clone(), age),
            None => self.ages.remove(service),
        };
        self.are_named_changed |= age.is_some() || before.is_some();
    }

    fn update_restricted(&mut self, spec: &ServiceSpec) {
        let ports = spec.ports.iter().filter(|port| port.flags & ServiceFlags::SOURCE_RANGES != 0);
        let frontends = ports.flat_map(|port| &port.frontends).filter(|(_, kind)| *kind == Kind::LoadBalancer);
        let new: Vec<IpAddr> = frontends.map(|(key, _)| key.addr.to_ip()).collect();
        if self.restricted.get(&spec.key).map_or(&[][..], |old| old) == new {
            return;
        }
        let restricted = Arc::make_mut(&mut self.restricted);
        if new.is_empty() {
            restricted.remove(&spec.key);
        } else {
            restricted.insert(spec.key.clone(), new);
        }
    }

    fn update_probes(&mut self, spec: &ServiceSpec) {
        let before = match &spec.probes {
            Some(probes) => self.probes.insert(spec.key.clone(), probes.clone()),
            None => self.probes.remove(&spec.key),
        };
        self.are_named_changed |= spec.probes.is_some() || before.is_some();
    }

    fn update_attracted(&mut self, spec: &ServiceSpec) {
        if self.attracted.get(&spec.key).map_or(&[][..], |old| old) == spec.attracted {
            return;
        }
        let attracted = Arc::make_mut(&mut self.attracted);
        if spec.attracted.is_empty() {
            attracted.remove(&spec.key);
        } else {
            attracted.insert(spec.key.clone(), spec.attracted.clone());
        }
    }

    fn update_ejecting(&mut self, spec: &ServiceSpec) {
        for program in EjectionProgram::ALL {
            let is_needed =
                |port: &PortSpec| port.eject.is_some() && EjectionProgram::of(port.key.proto) == Some(program);
            let services = self.ejecting.entry(program).or_default();
            if spec.ports.iter().any(is_needed) {
                services.insert(spec.key.clone());
            } else {
                services.remove(&spec.key);
            }
        }
    }

    /// Returns the programs of ejection that any Service needs.
    fn ejection_programs(&self) -> BTreeSet<EjectionProgram> {
        self.ejecting.iter().filter(|(_, services)| !services.is_empty()).map(|(program, _)| *program).collect()
    }

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
