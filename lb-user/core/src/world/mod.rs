//! All objects of the sources, indexed by Service, and the Services that changed. Nothing is interpreted here: that is
//! the model's work.

mod by_address;
mod changes;
mod closed;
mod host_ports;
mod intern;
mod pods;

use std::{
    borrow::Borrow,
    collections::{BTreeMap, BTreeSet},
    hash::{Hash, Hasher},
    net::IpAddr,
    sync::Arc,
    time::SystemTime,
};

use foldhash::{HashMap, HashSet};
use ipnet::IpNet;
use lb_common::{Addr, AddrPort};

use smallvec::SmallVec;

use crate::{
    bloom::{BloomFilter, network_hash},
    event::{Event, NodeAddresses, Object, ObjectKind},
    host_ports::{is_pod, service_key},
    label_selector::Labels,
    objects::{EndpointGroup, EndpointSlice, Endpoints, Exempt, Key, Node, ProbeVerdict, Service},
};
use by_address::ByAddress;
pub use changes::Changes;
use changes::Triggers;
use host_ports::HostPorts;
use intern::Interner;
pub use pods::Pods;

/// All objects, seen from one node.
pub struct World {
    node_name: Arc<str>,
    node: Option<Node>,
    pods: Pods,
    host_ports: HostPorts,
    services: HashMap<Key, Entry>,
    /// Slices that belong to a Service; others are not kept.
    slices: HashSet<ByKey>,
    listed: [bool; ObjectKind::ALL.len()],
    /// Services that are marked dirty, each once.
    dirty: Vec<Key>,
    interner: Interner,
    /// Networks of endpoints.
    networks: BloomFilter,
    by_address: ByAddress,
    /// None: not reported yet.
    addresses: Option<NodeAddresses>,
    cluster_ranges: BTreeSet<IpNet>,
    forbidden: BTreeSet<ObjectKind>,
    /// Endpoints on this node that have closed a socket at which they listened.
    closed: BTreeSet<AddrPort>,
    /// Results of probes, by Service and endpoint.
    probes: HashMap<Key, BTreeMap<AddrPort, ProbeVerdict>>,
    changes: Changes,
    triggers: Triggers,
}

/// The objects of one Service's name. Boxed, since a hash table has room for twice its entries.
#[derive(Default)]
struct Entry {
    service: Option<Box<Service>>,
    /// Sorted by the slice's key.
    slices: SmallVec<[Arc<EndpointSlice>; 1]>,
    endpoints: Option<Box<Endpoints>>,
    mark: Mark,
}

/// The state of a Service since [`World::take_dirty`].
#[derive(Clone, Copy, PartialEq, Eq, Default)]
enum Mark {
    #[default]
    Clean,
    Dirty,
}

/// A slice in a table that is indexed by its key.
struct ByKey(Arc<EndpointSlice>);

impl Borrow<Key> for ByKey {
    fn borrow(&self) -> &Key {
        &self.0.key
    }
}

impl Hash for ByKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.key.hash(state);
    }
}

impl PartialEq for ByKey {
    fn eq(&self, other: &Self) -> bool {
        self.0.key == other.0.key
    }
}

impl Eq for ByKey {}

/// A Service with its endpoint objects.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// The Service itself.
    pub service: &'a Service,
    /// Slices of the Service, sorted by key.
    pub slices: &'a [Arc<EndpointSlice>],
    /// The Endpoints of its name.
    pub endpoints: Option<&'a Endpoints>,
}

impl View<'_> {
    /// Lists every group of endpoints of all its objects, in a stable order.
    pub(crate) fn all_groups(&self) -> impl Iterator<Item = &EndpointGroup> {
        self.slices.iter().map(|slice| &slice.group).chain(self.endpoints.iter().flat_map(|object| &object.groups))
    }
}

impl World {
    /// An empty world, seen from the node `node_name`.
    #[must_use]
    pub fn new(node_name: &str) -> Self {
        Self {
            node_name: node_name.into(),
            node: None,
            pods: Pods::default(),
            host_ports: HostPorts::default(),
            services: HashMap::default(),
            slices: HashSet::default(),
            listed: [false; ObjectKind::ALL.len()],
            dirty: Vec::new(),
            interner: Interner::default(),
            networks: BloomFilter::default(),
            by_address: ByAddress::default(),
            addresses: None,
            cluster_ranges: BTreeSet::new(),
            forbidden: BTreeSet::new(),
            closed: BTreeSet::new(),
            probes: HashMap::default(),
            changes: Changes::default(),
            triggers: Triggers::default(),
        }
    }

    /// Makes the hostPorts of this node's pods count: each such pod is a Service of its own from now on.
    #[must_use]
    pub fn with_host_ports(mut self) -> Self {
        self.host_ports.are_served = true;
        self
    }

    /// True if the hostPorts of this node's pods count.
    #[must_use]
    pub const fn serves_host_ports(&self) -> bool {
        self.host_ports.are_served
    }

    /// Takes a change in, and marks the Services that it affects as dirty.
    pub fn apply(&mut self, event: Event) {
        match event {
            Event::Apply(object) => self.put(object),
            Event::Delete(kind, key) => self.delete(kind, &key),
            Event::Replace(kind, objects) => {
                self.forbidden.remove(&kind);
                self.replace(kind, objects);
            }
            Event::Forbidden(kind) => _ = self.forbidden.insert(kind),
            Event::NodeAddresses(addresses) => self.addresses = Some(addresses),
            Event::ClusterRanges(ranges) => self.cluster_ranges = ranges,
            Event::ClosedListeners(closed) => self.set_closed(closed),
            Event::Probed { service, target, verdict } => self.set_verdict(&service, target, verdict),
        }
    }

    /// True if each kind that Services need was listed once (invariant I5).
    #[must_use]
    pub fn ready(&self) -> bool {
        self.missing().is_empty()
    }

    /// The kinds that Services need and that were not listed yet.
    #[must_use]
    pub fn missing(&self) -> Vec<ObjectKind> {
        let of_host_ports = self.host_ports.are_served.then_some(ObjectKind::Pod);
        ObjectKind::OF_SERVICES.into_iter().chain(of_host_ports).filter(|&kind| !self.is_listed(kind)).collect()
    }

    const fn is_listed(&self, kind: ObjectKind) -> bool {
        self.listed[kind as usize]
    }

    /// The Pods and Namespaces, once both were listed.
    #[must_use]
    pub fn pods(&self) -> Option<&Pods> {
        (self.is_listed(ObjectKind::Pod) && self.is_listed(ObjectKind::Namespace)).then_some(&self.pods)
    }

    /// Returns the Services that have changed since the last call, in no order.
    pub fn take_dirty(&mut self) -> Vec<Key> {
        let dirty = std::mem::take(&mut self.dirty);
        for key in &dirty {
            let Some(entry) = self.services.get_mut(key) else { continue };
            entry.mark = Mark::Clean;
            if entry.is_empty() {
                self.services.remove(key);
            }
        }
        dirty
    }

    /// Returns a Service with its endpoint objects.
    #[must_use]
    pub fn view(&self, key: &Key) -> Option<View<'_>> {
        self.services.get(key)?.view()
    }

    /// Lists the keys of all Services, those of pods with hostPorts included, in no order.
    pub fn services(&self) -> impl Iterator<Item = &Key> {
        self.services.iter().filter(|(_, entry)| entry.service.is_some()).map(|(key, _)| key)
    }

    /// The name of this node.
    #[must_use]
    pub fn node_name(&self) -> &str {
        &self.node_name
    }

    /// The zone of this node.
    #[must_use]
    pub fn zone(&self) -> Option<&str> {
        self.node.as_ref()?.zone.as_deref()
    }

    /// The addresses of the node, once they are known.
    #[must_use]
    pub fn addresses(&self) -> Option<&NodeAddresses> {
        self.addresses.as_ref()
    }

    /// The ranges from which the API server allots cluster IPs.
    #[must_use]
    pub const fn cluster_ranges(&self) -> &BTreeSet<IpNet> {
        &self.cluster_ranges
    }

    /// The InternalIPs of this node's Node object.
    #[must_use]
    pub fn internal_ips(&self) -> &[IpAddr] {
        self.node.as_ref().map_or(&[], |node| &node.internal_ips)
    }

    /// This node's Node object, if it is known.
    #[must_use]
    pub const fn node(&self) -> Option<&Node> {
        self.node.as_ref()
    }

    /// The kinds that the source may not read, so that they are out of date.
    #[must_use]
    pub fn forbidden(&self) -> &BTreeSet<ObjectKind> {
        &self.forbidden
    }

    /// The result of the probes of an endpoint; none while there is none.
    #[must_use]
    pub(crate) fn probe_verdict(&self, service: &Key, target: &AddrPort) -> Option<&ProbeVerdict> {
        self.probes.get(service)?.get(target)
    }

    /// Counts of the objects that came, changed or went so far.
    #[must_use]
    pub const fn changes(&self) -> Changes {
        self.changes
    }

    /// Keeps from now on the triggers of changes that are younger than `start`.
    pub fn keep_triggers(&mut self, start: SystemTime) {
        self.triggers.since = Some(start);
    }

    /// Returns the times of the events that caused changes of endpoints since the last call.
    pub fn take_triggers(&mut self) -> Vec<SystemTime> {
        self.triggers.take()
    }

    /// Finds the Services with an endpoint at one of these addresses, in no order.
    #[must_use]
    pub fn services_with_endpoints_at(&self, addrs: &HashSet<Addr>) -> Vec<Key> {
        // Cluster IPs and pods are in different networks, so that the search mostly ends here.
        if !addrs.iter().any(|addr| self.networks.may_contain(network_hash(addr))) {
            return Vec::new();
        }
        let is_hit =
            |group: &EndpointGroup| group.endpoints.iter().any(|endpoint| addrs.contains(&Addr::from(endpoint.addr)));
        let mut found = self.services_at(addrs);
        found.retain(|key| self.services.get(key).is_some_and(|entry| entry.groups().any(is_hit)));
        found
    }

    /// Finds the Services with an endpoint or an external IP at one of these addresses, sorted. Costs as much as there
    /// are addresses, after the first call.
    #[must_use]
    pub(crate) fn services_at(&self, addrs: &HashSet<Addr>) -> Vec<Key> {
        let addresses = |entry: &'_ Entry| -> Vec<Addr> {
            let external_ips = entry.service.as_deref().into_iter().flat_map(by_address::external_ips);
            by_address::endpoints(entry.groups()).chain(external_ips).collect()
        };
        let all =
            self.services.iter().flat_map(|(key, entry)| addresses(entry).into_iter().map(move |addr| (key, addr)));
        self.by_address.find(addrs, all)
    }

    fn put(&mut self, object: Object) {
        if object.of_service().is_some_and(is_pod) {
            // A file with the name of a pod's Service.
            return;
        }
        match object {
            Object::Service(mut service) => {
                expose(&mut service, self.node.as_ref());
                let entry = entry(&mut self.services, &mut service.key);
                if entry.service.as_deref() != Some(&service) {
                    self.interner.share_service(&mut service);
                    entry.mark(&service.key, &mut self.dirty);
                    self.changes.services += 1;
                    if let Some(old) = &entry.service {
                        self.by_address.remove(&old.key, by_address::external_ips(old));
                    }
                    self.by_address.add(&service.key, by_address::external_ips(&service));
                    entry.service = Some(Box::new(service));
                }
            }
            Object::EndpointSlice(slice) => self.put_slice(slice),
            Object::Endpoints(mut endpoints) => {
                let triggered = endpoints.triggered.take();
                let entry = entry(&mut self.services, &mut endpoints.key);
                if entry.endpoints.as_deref() != Some(&endpoints) {
                    endpoints.groups.iter_mut().for_each(|group| keep(group, &mut self.interner, &mut self.networks));
                    entry.mark(&endpoints.key, &mut self.dirty);
                    self.changes.endpoints += 1;
                    self.triggers.note(&endpoints.key, triggered);
                    if let Some(old) = &entry.endpoints {
                        self.by_address.remove(&old.key, by_address::endpoints(&old.groups));
                    }
                    self.by_address.add(&endpoints.key, by_address::endpoints(&endpoints.groups));
                    entry.endpoints = Some(Box::new(endpoints));
                }
            }
            Object::Node(node) => {
                if node.name == self.node_name {
                    self.set_node(Some(node));
                }
            }
            Object::Pod(pod) => {
                self.put_host_ports(&pod);
                self.pods.put(pod, &self.node_name);
            }
            Object::Namespace(namespace) => self.pods.put_namespace(namespace),
        }
    }

    fn set_verdict(&mut self, service: &Key, target: AddrPort, verdict: Option<ProbeVerdict>) {
        let verdicts = self.probes.entry(service.clone()).or_default();
        let is_new = verdicts.get(&target) != verdict.as_ref();
        match verdict {
            Some(verdict) => _ = verdicts.insert(target, verdict),
            None => _ = verdicts.remove(&target),
        }
        if verdicts.is_empty() {
            self.probes.remove(service);
        }
        if let Some(entry) = self.services.get_mut(service).filter(|_| is_new) {
            entry.mark(service, &mut self.dirty);
        }
    }

    fn put_slice(&mut self, mut slice: EndpointSlice) {
        let triggered = slice.triggered.take();
        let old = self.slices.get(&slice.key).map(|ByKey(old)| old);
        if old.is_some_and(|old| **old == slice) {
            return;
        }
        if old.is_some_and(|old| old.service != slice.service) {
            self.delete(ObjectKind::EndpointSlice, &slice.key.clone());
        }
        let Some(service) = &mut slice.service else { return };
        let entry = entry(&mut self.services, service);
        entry.mark(service, &mut self.dirty);
        self.changes.endpoints += 1;
        self.triggers.note(service, triggered);
        keep(&mut slice.group, &mut self.interner, &mut self.networks);
        self.by_address.add(service, by_address::endpoints([&slice.group]));
        let slice = Arc::new(slice);
        let list = &mut entry.slices;
        match list.binary_search_by(|other| other.key.cmp(&slice.key)) {
            Ok(at) => {
                let old = std::mem::replace(&mut list[at], Arc::clone(&slice));
                old.service.iter().for_each(|service| {
                    self.by_address.remove(service, by_address::endpoints([&old.group]));
                });
            }
            Err(at) => list.insert(at, Arc::clone(&slice)),
        }
        self.slices.replace(ByKey(slice));
    }

    fn delete(&mut self, kind: ObjectKind, key: &Key) {
        // `take_dirty` removes an entry that is empty then.
        match kind {
            ObjectKind::Service | ObjectKind::Endpoints if is_pod(key) => {}
            ObjectKind::Service => {
                let Some(entry) = self.services.get_mut(key) else { return };
                if let Some(old) = entry.service.take() {
                    self.by_address.remove(key, by_address::external_ips(&old));
                    entry.mark(key, &mut self.dirty);
                    self.changes.services += 1;
                }
            }
            ObjectKind::EndpointSlice => {
                let Some(ByKey(slice)) = self.slices.take(key) else { return };
                let Some(service) = &slice.service else { return };
                let Some(entry) = self.services.get_mut(service) else { return };
                entry.slices.retain(|other| other.key != *key);
                self.by_address.remove(service, by_address::endpoints([&slice.group]));
                entry.mark(service, &mut self.dirty);
                self.changes.endpoints += 1;
                self.triggers.forget(service);
            }
            ObjectKind::Endpoints => {
                let Some(entry) = self.services.get_mut(key) else { return };
                if let Some(old) = entry.endpoints.take() {
                    self.by_address.remove(key, by_address::endpoints(&old.groups));
                    entry.mark(key, &mut self.dirty);
                    self.changes.endpoints += 1;
                    self.triggers.forget(key);
                }
            }
            ObjectKind::Node => {
                if key.name() == &*self.node_name {
                    self.set_node(None);
                }
            }
            ObjectKind::Pod => {
                self.remove_host_ports(&service_key(key));
                self.pods.delete(key);
            }
            ObjectKind::Namespace => self.pods.delete_namespace(key.name()),
        }
    }

    fn replace(&mut self, kind: ObjectKind, objects: Vec<Object>) {
        self.listed[kind as usize] = true;
        match kind {
            ObjectKind::Service => {
                let have = self.services().filter(|key| !is_pod(key));
                let gone = gone(have, &objects, Object::service_key);
                gone.iter().for_each(|key| self.delete(kind, key));
                self.services.reserve(objects.len().saturating_sub(self.services.len()));
            }
            ObjectKind::EndpointSlice => {
                let have = self.slices.iter().map(|ByKey(slice)| &slice.key);
                gone(have, &objects, Object::slice_key).iter().for_each(|key| self.delete(kind, key));
                self.slices.reserve(objects.len().saturating_sub(self.slices.len()));
            }
            ObjectKind::Endpoints => {
                let have = self.services.iter().filter(|(_, entry)| entry.endpoints.is_some()).map(|(key, _)| key);
                gone(have, &objects, Object::endpoints_key).iter().for_each(|key| self.delete(kind, key));
            }
            ObjectKind::Node => {
                // In one step, so that an unchanged zone is not lost for a moment.
                let own = objects.into_iter().rev().find_map(|object| match object {
                    Object::Node(node) if node.name == self.node_name => Some(node),
                    _ => None,
                });
                return self.set_node(own);
            }
            ObjectKind::Pod | ObjectKind::Namespace => {
                if kind == ObjectKind::Pod {
                    self.retain_host_ports(&objects);
                }
                self.pods.clear(kind);
                return objects.into_iter().filter(|object| object.kind() == kind).for_each(|object| self.put(object));
            }
        }
        self.interner.remove_unused();
        for object in objects {
            if object.kind() == kind {
                self.put(object);
            }
        }
        self.services.shrink_to_fit();
        self.slices.shrink_to_fit();
    }

    fn set_node(&mut self, node: Option<Node>) {
        let zone = |node: &Option<Node>| node.as_ref().and_then(|node| node.zone.clone());
        let changed = zone(&self.node) != zone(&node);
        let labels = |node: &Option<Node>| node.as_ref().map(|node| node.labels.clone()).unwrap_or_default();
        let is_relabelled = labels(&self.node) != labels(&node);
        self.node = node;
        if is_relabelled {
            for (key, entry) in &mut self.services {
                if let Some(service) = &mut entry.service
                    && expose(service, self.node.as_ref())
                {
                    entry.mark(key, &mut self.dirty);
                }
            }
        }
        if changed {
            for (key, entry) in &mut self.services {
                if entry.view().is_some_and(|view| has_hints(&view)) {
                    entry.mark(key, &mut self.dirty);
                }
            }
        }
    }
}

/// Exempts a Service whose annotation leaves out this node, and others no more. True if that changes the Service.
fn expose(service: &mut Service, node: Option<&Node>) -> bool {
    let before = service.exempt;
    if matches!(before, None | Some(Exempt::OtherNodes)) {
        let nodes = service.tuning.as_deref().and_then(|tuning| tuning.nodes.as_ref());
        let none = Labels::new();
        let is_here = nodes.is_none_or(|nodes| nodes.matches(node.map_or(&none, |node| &node.labels)));
        service.exempt = (!is_here).then_some(Exempt::OtherNodes);
    }
    service.exempt != before
}

impl Entry {
    fn view(&self) -> Option<View<'_>> {
        let service = self.service.as_deref()?;
        Some(View { service, slices: &self.slices, endpoints: self.endpoints.as_deref() })
    }

    fn groups(&self) -> impl Iterator<Item = &EndpointGroup> {
        let own = self.endpoints.iter().flat_map(|object| &object.groups);
        self.slices.iter().map(|slice| &slice.group).chain(own)
    }

    fn is_empty(&self) -> bool {
        self.service.is_none() && self.slices.is_empty() && self.endpoints.is_none()
    }

    fn mark(&mut self, key: &Key, dirty: &mut Vec<Key>) {
        if self.mark == Mark::Clean {
            self.mark = Mark::Dirty;
            dirty.push(key.clone());
        }
    }
}

/// Returns the entry of `key`, which from now on shares its text with the table.
fn entry<'a>(services: &'a mut HashMap<Key, Entry>, key: &mut Key) -> &'a mut Entry {
    let entry = services.entry(key.clone());
    *key = entry.key().clone();
    entry.or_default()
}

/// Shares the text of a group with others, and adds the networks of its endpoints.
fn keep(group: &mut EndpointGroup, interner: &mut Interner, networks: &mut BloomFilter) {
    interner.share_group(group);
    group.endpoints.iter().for_each(|endpoint| networks.insert(network_hash(&endpoint.addr.into())));
}

fn has_hints(view: &View<'_>) -> bool {
    view.all_groups().flat_map(|group| &group.endpoints).any(|endpoint| !endpoint.hints().0.is_empty())
}

/// Returns the keys of `have` that are not among `objects`.
fn gone<'a>(
    have: impl Iterator<Item = &'a Key>,
    objects: &'a [Object],
    key: impl Fn(&'a Object) -> Option<&'a Key>,
) -> Vec<Key> {
    let mut have = have.peekable();
    if have.peek().is_none() {
        return Vec::new();
    }
    let keep: HashSet<&Key> = objects.iter().filter_map(key).collect();
    have.filter(|key| !keep.contains(key)).cloned().collect()
}

#[cfg(test)]
mod tests;
