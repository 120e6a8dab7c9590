//! The pass: what has changed is compiled, planned and written, and what failed is kept for the next pass. When passes
//! happen is for [`run`] to say; what they mean is the model's and the planner's.

mod run;
mod status;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use foldhash::{HashMap, HashSet};
use lb_common::{Addr, Backend, FrontendKey, NEVER, Proto};

use crate::events::{EventQueue, Origin};
use lb_common::AddrPort;
use lb_core::{
    event::{Event, Kind},
    ids::Ids,
    model::{
        ClusterContext, NodeContext, Settings,
        claims::Claims,
        compile,
        cross_namespace::CrossNamespaceIndex,
        explain::{Explanation, explain},
        fan_out,
        frontends::{FrontendRequest, request},
    },
    objects::{Drain, Key},
    op::Op,
    plan::{Change, OnOrphan, Plan, Refused, Scope, plan},
    shadow::Shadow,
    spec::{Health, ServiceSpec},
    store::{Partial, Store, StoreError},
    warning::Warning,
    world::{View, World},
};
pub use run::{Maps, run};
pub use status::Status;

/// Oddities of the maps that are logged one by one.
const MOST_ODDITIES: usize = 10;

/// Keeps a store equal to what the objects say.
pub struct Reconciler<S> {
    world: World,
    settings: Settings,
    claims: Claims,
    cross_namespace: CrossNamespaceIndex,
    store: S,
    /// None: to be read from the store.
    shadow: Option<Shadow>,
    /// Where the last shadow's ids went on.
    ids: Option<(Ids, Ids)>,
    /// The highest ids of a service port and a backend that sockets may still name, from before this agent.
    held: (u32, u32),
    /// What the next pass has to look at: everything, after a start and a resync.
    scope: Scope,
    /// Services to be planned again: a write failed, or there was no room.
    pending: BTreeSet<Key>,
    warnings: BTreeMap<Key, Vec<Warning>>,
    /// Where owners of Services are told.
    board: EventQueue,
    /// What is told at the `healthCheckNodePort` of each Service that has one.
    health: Arc<BTreeMap<Key, Health>>,
    refused: Vec<Refused>,
    /// The node's addresses at which NodePorts answer, as of the last pass.
    node_ports: BTreeSet<Addr>,
}

/// What a pass did.
#[derive(Debug, Default)]
pub struct PassReport {
    /// Kinds that no source has listed yet; nothing is done before (invariant I5).
    pub waiting: Vec<Kind>,
    /// How many Services were looked at.
    pub planned: usize,
    /// The Services that changed. One may stand here twice, when it took two plans.
    pub changed: Vec<Change>,
    /// Writes that took effect.
    pub writes: usize,
    /// Services that do not fit.
    pub refused: Vec<Refused>,
    /// What it means for sockets.
    pub aftermath: Aftermath,
    /// Why the pass ended early. What it had to do is kept.
    pub failure: Option<anyhow::Error>,
    /// Where the time went.
    pub took: Took,
}

/// What passes mean for the sockets of the node.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Aftermath {
    /// Backends that are gone from the maps.
    pub departed: Vec<Departed>,
    /// NodePorts that are new in the maps.
    pub node_ports: Vec<FrontendKey>,
}

impl Aftermath {
    /// Adds another one, which came later.
    pub fn append(&mut self, mut other: Self) {
        self.departed.append(&mut other.departed);
        self.node_ports.append(&mut other.node_ports);
    }
}

/// A backend that is gone from the maps: the sockets that have it lead nowhere.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Departed {
    /// Its id.
    pub backend: u32,
    /// Id of its service port.
    pub service: u32,
    /// Protocol of its service port.
    pub proto: Proto,
    /// Its address and port.
    pub target: AddrPort,
    /// What becomes of TCP sockets that have it.
    pub drain: Drain,
}

/// Where the time of a pass went.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Took {
    /// From the objects to what the maps shall say; reading the maps, if need be, included.
    pub compile: Duration,
    /// From there to the writes, and keeping our copy of the maps.
    pub plan: Duration,
    /// The writes themselves.
    pub write: Duration,
}

impl<S: Store> Reconciler<S> {
    /// One for the node `node_name` that knows no object yet and has not looked into the store.
    #[must_use]
    pub fn new(store: S, node_name: &str, settings: Settings) -> Self {
        Self {
            world: World::new(node_name),
            settings,
            claims: Claims::default(),
            cross_namespace: CrossNamespaceIndex::default(),
            store,
            shadow: None,
            ids: None,
            held: (0, 0),
            scope: Scope::World,
            pending: BTreeSet::new(),
            warnings: BTreeMap::new(),
            board: EventQueue::default(),
            health: Arc::default(),
            refused: Vec::new(),
            node_ports: BTreeSet::new(),
        }
    }

    /// Gives no id of a service port or a backend up to these, which sockets may still name (invariant I7).
    #[must_use]
    pub fn beyond(self, held: (u32, u32)) -> Self {
        Self { held, ..self }
    }

    /// Tells owners of Services what is wrong with them.
    #[must_use]
    pub fn telling(self, board: EventQueue) -> Self {
        Self { board, ..self }
    }

    /// Takes events in. Writes nothing.
    pub fn handle(&mut self, events: impl IntoIterator<Item = Event>) {
        events.into_iter().for_each(|event| self.world.apply(event));
    }

    /// Writes what the events since the last pass ask for.
    pub fn pass(&mut self) -> PassReport {
        let mut report = PassReport { waiting: self.world.missing(), ..PassReport::default() };
        if report.waiting.is_empty() {
            let start = Instant::now();
            let specs = self.prepare();
            report.took.compile = start.elapsed();
            match specs {
                Ok(specs) => {
                    report.planned = specs.len();
                    self.write(specs, &mut report);
                }
                Err(error) => report.failure = Some(error),
            }
        }
        report
    }

    /// The first plan of the next pass, without performing it.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn preview(&mut self) -> Result<Plan> {
        if !self.world.ready() {
            return Ok(Plan::default());
        }
        let specs = self.prepare()?;
        self.pending.extend(specs.iter().map(|spec| spec.key.clone()));
        let addresses = self.node_port_addresses();
        let (shadow, limits) = (self.shadow.get_or_insert_default(), self.store.limits());
        Ok(plan(shadow, &specs, addresses.as_ref(), self.scope, OnOrphan::Keep, &limits))
    }

    /// Where NodePorts shall answer, once it is known.
    fn node_port_addresses(&self) -> Option<BTreeSet<Addr>> {
        let own = self.world.addresses()?;
        Some(self.settings.nodeport_addresses.choose(own, self.world.internal_ips()))
    }

    /// Lets the next pass read the store again and compare everything.
    pub fn resync(&mut self) {
        self.ids = self.shadow.take().map(|shadow| shadow.ids()).or(self.ids);
        self.scope = Scope::World;
    }

    /// Goes on with another store, whatever is in it.
    pub fn move_to(&mut self, store: S) {
        self.store = store;
        self.resync();
    }

    /// What the maps shall say about a Service, as things stand.
    #[must_use]
    pub fn spec(&self, key: &Key) -> ServiceSpec {
        self.compile(key, None)
    }

    /// Compiles a Service; `request` is its request for frontends, if it is known already.
    fn compile(&self, key: &Key, request: Option<FrontendRequest>) -> ServiceSpec {
        let Some(view) = self.world.view(key) else { return ServiceSpec::gone(key.clone()) };
        let request = request.unwrap_or_else(|| self.request(&view));
        compile(&view, request, self.node(), &self.settings, self.cluster())
    }

    fn request(&self, view: &View<'_>) -> FrontendRequest {
        request(view.service, &self.settings.external_ips, &self.cross_namespace)
    }

    /// Why the maps shall say so; none when there is no such Service.
    #[must_use]
    pub fn explain(&self, key: &Key) -> Option<Explanation> {
        let view = self.world.view(key)?;
        Some(explain(&view, self.request(&view), self.node(), &self.settings, self.cluster()))
    }

    fn cluster(&self) -> ClusterContext<'_> {
        ClusterContext { claims: &self.claims, cross_namespace: &self.cross_namespace }
    }

    fn node(&self) -> NodeContext<'_> {
        NodeContext { name: self.world.node_name(), zone: self.world.zone(), node_ports: &self.node_ports }
    }

    /// The objects.
    #[must_use]
    pub fn world(&self) -> &World {
        &self.world
    }

    /// The warnings of the last pass that looked at each Service.
    #[must_use]
    pub fn warnings(&self) -> &BTreeMap<Key, Vec<Warning>> {
        &self.warnings
    }

    /// The store.
    #[must_use]
    pub fn store(&self) -> &S {
        &self.store
    }

    /// The store, to change it behind the reconciler's back.
    pub fn store_mut(&mut self) -> &mut S {
        &mut self.store
    }

    /// The store again: its content outlives the reconciler.
    #[must_use]
    pub fn into_store(self) -> S {
        self.store
    }

    /// What the planner believes the maps to hold, once it has looked.
    #[must_use]
    pub fn shadow(&self) -> Option<&Shadow> {
        self.shadow.as_ref()
    }

    /// Reads the store if need be, and compiles the Services to be planned, sorted by key.
    fn prepare(&mut self) -> Result<Vec<ServiceSpec>> {
        if self.shadow.is_none() {
            let dump = self.store.dump().context("reading the maps")?;
            let (mut shadow, oddities) = Shadow::from_dump(&dump);
            match self.ids {
                Some(ids) => shadow.continue_ids(ids),
                None => shadow.begin_beyond(self.held),
            }
            for oddity in oddities.iter().take(MOST_ODDITIES) {
                tracing::info!(oddity, "found in the maps, will be mended");
            }
            if oddities.len() > MOST_ODDITIES {
                tracing::info!(more = oddities.len() - MOST_ODDITIES, "found in the maps, will be mended");
            }
            self.shadow = Some(shadow);
        }
        let mut keys = self.world.take_dirty();
        keys.extend(std::mem::take(&mut self.pending));
        keys.extend(self.move_node_ports());
        if self.scope == Scope::World {
            // Of those that are there each once; sorting them is dear.
            keys.retain(|key| self.world.view(key).is_none());
            keys.extend(self.world.services().cloned());
        }
        keys.sort_unstable();
        keys.dedup();
        let affected = self.cross_namespace.update(&self.world, &keys);
        if !affected.is_empty() {
            keys.extend(affected);
            keys.sort_unstable();
            keys.dedup();
        }
        let (mut requests, affected) = self.claim(&keys);
        if !affected.is_empty() {
            keys.extend(affected);
            keys.sort_unstable();
            keys.dedup();
        }
        let specs: Vec<ServiceSpec> = keys.iter().map(|key| self.compile(key, requests.remove(key))).collect();
        specs.iter().for_each(|spec| self.warn(spec));
        specs.iter().for_each(|spec| self.tell_health(spec));
        Ok(specs)
    }

    /// Takes over where NodePorts shall answer; returns the Services with endpoints at an address where that has changed,
    /// since an endpoint that is a NodePort is refused.
    fn move_node_ports(&mut self) -> Vec<Key> {
        let now = self.node_port_addresses().unwrap_or_default();
        if now == self.node_ports {
            return Vec::new();
        }
        let changed: HashSet<Addr> = now.symmetric_difference(&self.node_ports).copied().collect();
        self.node_ports = now;
        if self.scope == Scope::World { Vec::new() } else { self.world.services_with_endpoints_at(&changed) }
    }

    /// Records the claims of the Services `keys`. Returns their requests for frontends, and the other Services that the
    /// changes affect.
    fn claim(&mut self, keys: &[Key]) -> (HashMap<Key, FrontendRequest>, Vec<Key>) {
        let external_ips = &self.settings.external_ips;
        let (requests, changes) =
            fan_out::record(&mut self.claims, &self.world, keys, external_ips, &self.cross_namespace);
        if self.scope == Scope::World {
            return (requests, Vec::new());
        }
        let fan_out::Affected { mut services, unclaimed } =
            fan_out::affected(changes, &self.claims, &self.world, &self.node_ports);
        let holder = |key: &FrontendKey| {
            let shadow = self.shadow.as_ref()?;
            Some(shadow.port(shadow.frontend(key)?.service)?.key.as_ref()?.service.clone())
        };
        services.extend(unclaimed.iter().filter_map(holder));
        (requests, services)
    }

    /// Plans and performs, as often as that makes room for what did not fit before.
    fn write(&mut self, mut specs: Vec<ServiceSpec>, report: &mut PassReport) {
        let limits = self.store.limits();
        let addresses = self.node_port_addresses();
        let mut heirless = OnOrphan::Keep;
        loop {
            let shadow = self.shadow.get_or_insert_default();
            let start = Instant::now();
            let Plan { ops, changed, refused, held } =
                plan(shadow, &specs, addresses.as_ref(), self.scope, heirless, &limits);
            let planned = Instant::now();
            let result = self.store.apply(&ops);
            let written = Instant::now();
            let done = result.as_ref().map_or_else(|partial| partial.done, |()| ops.len());
            let performed = ops.get(..done).unwrap_or(&ops);
            report.aftermath.append(aftermath(shadow, performed));
            shadow.apply_all(performed);
            report.took.plan += (planned - start) + written.elapsed();
            report.took.write += written - planned;
            report.writes += done;
            if let Err(Partial { error, .. }) = result {
                self.pending.extend(specs.into_iter().map(|spec| spec.key));
                if matches!(error, StoreError::Full(_)) {
                    // There was room by our own count, so that count is wrong.
                    self.resync();
                }
                report.failure =
                    Some(anyhow::Error::new(error).context(format!("after {done} of {} writes", ops.len())));
                return;
            }
            self.scope = Scope::Some;
            changed.iter().for_each(log_change);
            report.changed.extend(changed);
            let stuck = ops.is_empty();
            if stuck && heirless == OnOrphan::Keep && !held.is_empty() {
                heirless = OnOrphan::Remove;
            } else if stuck || (refused.is_empty() && held.is_empty()) {
                self.pending.extend(refused.iter().map(|refused| refused.service.clone()).chain(held));
                report.refused = refused;
                return;
            }
            let left: BTreeSet<&Key> = refused.iter().map(|refused| &refused.service).chain(&held).collect();
            specs.retain(|spec| left.contains(&spec.key));
            // One that holds on may have been found in the maps only.
            let known: BTreeSet<Key> = specs.iter().map(|spec| spec.key.clone()).collect();
            let strangers = left.into_iter().filter(|key| !known.contains(key));
            specs.extend(strangers.map(|key| ServiceSpec::gone(key.clone())));
            specs.sort_by(|a, b| a.key.cmp(&b.key));
        }
    }

    fn tell_health(&mut self, spec: &ServiceSpec) {
        if self.health.get(&spec.key) == spec.health.as_ref() {
            return;
        }
        let health = Arc::make_mut(&mut self.health);
        match spec.health {
            Some(new) => drop(health.insert(spec.key.clone(), new)),
            None => drop(health.remove(&spec.key)),
        }
    }

    fn warn(&mut self, spec: &ServiceSpec) {
        let old = self.warnings.get(&spec.key).map_or(&[][..], |old| old);
        if *old == *spec.warnings {
            return;
        }
        for warning in spec.warnings.iter().filter(|warning| !old.contains(warning)) {
            tracing::warn!(service = %spec.key, "{warning}");
        }
        if self.board.is_read() {
            self.board.tell(Origin::Objects, &spec.key, spec.warnings.clone());
        }
        if spec.warnings.is_empty() {
            self.warnings.remove(&spec.key);
        } else {
            self.warnings.insert(spec.key.clone(), spec.warnings.clone());
        }
    }

    /// Logs the Services that do not fit, each once.
    pub fn tell_refused(&mut self, refused: &[Refused]) {
        for new in refused.iter().filter(|new| !self.refused.contains(new)) {
            tracing::error!(service = %new.service, "{new}");
            self.board.tell(Origin::Room, &new.service, vec![new.warning()]);
        }
        for old in self.refused.iter().filter(|old| !refused.iter().any(|new| new.service == old.service)) {
            self.board.tell(Origin::Room, &old.service, Vec::new());
        }
        self.refused = refused.to_vec();
    }
}

/// What `ops` mean for sockets; `shadow` is what the maps held before.
fn aftermath(shadow: &Shadow, ops: &[Op]) -> Aftermath {
    let node_port = |op: &Op| match op {
        Op::PutFrontend(key, frontend) if frontend.kind == lb_common::Kind::NodePort as u8 => Some(*key),
        _ => None,
    };
    let new = |key: &FrontendKey| shadow.frontend(key).is_none();
    Aftermath { departed: departed(shadow, ops), node_ports: ops.iter().filter_map(node_port).filter(new).collect() }
}

/// The backends that `ops` delete. One without a service port's name was left by a crash, and its sockets are found by the
/// scan of a start.
fn departed(shadow: &Shadow, ops: &[Op]) -> Vec<Departed> {
    let departed = |op: &Op| {
        let Op::DeleteBackend(id) = op else { return None };
        let Backend { addr, port, service, .. } = shadow.backend(*id)?;
        let of = shadow.port(service)?;
        let drain = match of.service?.drain_seconds {
            NEVER => Drain::Never,
            seconds => Drain::After(seconds),
        };
        let target = AddrPort { addr, port };
        Some(Departed { backend: *id, service, proto: of.key.as_ref()?.proto, target, drain })
    };
    ops.iter().filter_map(departed).collect()
}

fn log_change(change: &Change) {
    let Change { service, frontends, added, removed, writes } = change;
    tracing::info!(%service, frontends, added, removed, writes, "changed");
}

#[cfg(test)]
mod tests;
