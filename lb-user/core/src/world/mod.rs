//! All objects that the sources told of, indexed by Service, and which Services a change concerns. Nothing is interpreted
//! here: that is the model's work.

mod intern;
mod news;
mod pods;

use std::{
    borrow::Borrow,
    collections::BTreeSet,
    hash::{Hash, Hasher},
    net::IpAddr,
    sync::Arc,
    time::SystemTime,
};

use foldhash::{HashMap, HashSet};
use lb_common::Addr;

use crate::{
    event::{Event, Kind, Object},
    few::Few,
    objects::{EndpointGroup, EndpointSlice, Endpoints, Key, Node, Service},
};
use intern::Names;
pub use news::Changes;
use news::Triggers;
pub use pods::Pods;

/// The objects.
pub struct World {
    node_name: Arc<str>,
    node: Option<Node>,
    pods: Pods,
    services: HashMap<Key, Known>,
    /// Slices without a Service are not kept.
    slices: HashSet<ByKey>,
    listed: [bool; Kind::ALL.len()],
    /// Each once: those that are marked.
    dirty: Vec<Key>,
    names: Names,
    prefixes: Prefixes,
    /// None: nobody has told yet.
    addresses: Option<BTreeSet<IpAddr>>,
    forbidden: BTreeSet<Kind>,
    changes: Changes,
    triggers: Triggers,
}

/// The objects of one Service's name. Boxed, as a table has room for twice what it holds.
#[derive(Default)]
struct Known {
    service: Option<Box<Service>>,
    /// Sorted by the slice's key.
    slices: Few<Arc<EndpointSlice>>,
    endpoints: Option<Box<Endpoints>>,
    mark: Mark,
}

/// Whether a Service is among the dirty ones.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
enum Mark {
    #[default]
    Clean,
    Dirty,
}

/// A slice that is found by its key.
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

/// What the world knows about one Service.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// The Service itself.
    pub service: &'a Service,
    /// Its slices, sorted by key.
    pub slices: &'a [Arc<EndpointSlice>],
    /// The Endpoints of its name.
    pub endpoints: Option<&'a Endpoints>,
}

impl View<'_> {
    /// Every group of endpoints of any of its objects, in a stable order.
    pub fn all_groups(&self) -> impl Iterator<Item = &EndpointGroup> {
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
            services: HashMap::default(),
            slices: HashSet::default(),
            listed: [false; Kind::ALL.len()],
            dirty: Vec::new(),
            names: Names::default(),
            prefixes: Prefixes::default(),
            addresses: None,
            forbidden: BTreeSet::new(),
            changes: Changes::default(),
            triggers: Triggers::default(),
        }
    }

    /// Takes a change in, and notes the Services that it concerns.
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
        }
    }

    /// Whether each kind that Services need was listed once (invariant I5).
    #[must_use]
    pub fn ready(&self) -> bool {
        self.missing().is_empty()
    }

    /// The kinds that Services need and that were not listed yet.
    #[must_use]
    pub fn missing(&self) -> Vec<Kind> {
        Kind::OF_SERVICES.into_iter().filter(|&kind| !self.is_listed(kind)).collect()
    }

    const fn is_listed(&self, kind: Kind) -> bool {
        self.listed[kind as usize]
    }

    /// The Pods and Namespaces, once both were listed.
    #[must_use]
    pub fn pods(&self) -> Option<&Pods> {
        (self.is_listed(Kind::Pod) && self.is_listed(Kind::Namespace)).then_some(&self.pods)
    }

    /// The Services that have changed since this was last asked, in no order.
    pub fn take_dirty(&mut self) -> Vec<Key> {
        let dirty = std::mem::take(&mut self.dirty);
        for key in &dirty {
            let Some(known) = self.services.get_mut(key) else { continue };
            known.mark = Mark::Clean;
            if known.is_empty() {
                self.services.remove(key);
            }
        }
        dirty
    }

    /// What is known about a Service.
    #[must_use]
    pub fn view(&self, key: &Key) -> Option<View<'_>> {
        self.services.get(key)?.view()
    }

    /// What is known about each Service, in no order.
    pub fn views(&self) -> impl Iterator<Item = View<'_>> {
        self.services.values().filter_map(Known::view)
    }

    /// The keys of all Services, in no order.
    pub fn services(&self) -> impl Iterator<Item = &Key> {
        self.services.iter().filter(|(_, known)| known.service.is_some()).map(|(key, _)| key)
    }

    /// The name of the node that this is seen from.
    #[must_use]
    pub fn node_name(&self) -> &str {
        &self.node_name
    }

    /// The zone of that node.
    #[must_use]
    pub fn zone(&self) -> Option<&str> {
        self.node.as_ref()?.zone.as_deref()
    }

    /// The addresses of the node's interfaces, once they are known.
    #[must_use]
    pub fn addresses(&self) -> Option<&BTreeSet<IpAddr>> {
        self.addresses.as_ref()
    }

    /// The addresses by which the cluster knows that node.
    #[must_use]
    pub fn internal_ips(&self) -> &[IpAddr] {
        self.node.as_ref().map_or(&[], |node| &node.internal_ips)
    }

    /// Whether that node is being deleted, or marked for it. One that nobody has told of is not.
    #[must_use]
    pub fn node_is_leaving(&self) -> bool {
        self.node.as_ref().is_some_and(|node| node.leaving)
    }

    /// The kinds that may not be read, of which news does not come.
    #[must_use]
    pub fn forbidden(&self) -> &BTreeSet<Kind> {
        &self.forbidden
    }

    /// How many objects have come, changed or gone so far.
    #[must_use]
    pub const fn changes(&self) -> Changes {
        self.changes
    }

    /// From now on the triggers of changes are kept that are younger than `start`.
    pub fn keep_triggers(&mut self, start: SystemTime) {
        self.triggers.since = Some(start);
    }

    /// When that happened for which endpoints have changed since this was last asked.
    pub fn take_triggers(&mut self) -> Vec<SystemTime> {
        self.triggers.take()
    }

    /// The Services with an endpoint on one of these addresses, in no order.
    #[must_use]
    pub fn services_with_endpoints_at(&self, addrs: &HashSet<Addr>) -> Vec<Key> {
        // Cluster IPs and pods live in different networks, so that this mostly ends here.
        if !addrs.iter().any(|addr| self.prefixes.may_hold(addr)) {
            return Vec::new();
        }
        let hit =
            |group: &EndpointGroup| group.endpoints.iter().any(|endpoint| addrs.contains(&Addr::from(endpoint.addr)));
        let hit = self.services.iter().filter(|(_, known)| known.groups().any(hit));
        hit.map(|(key, _)| key.clone()).collect()
    }

    fn put(&mut self, object: Object) {
        match object {
            Object::Service(mut service) => {
                let known = known(&mut self.services, &mut service.key);
                if known.service.as_deref() != Some(&service) {
                    self.names.service(&mut service);
                    known.mark(&service.key, &mut self.dirty);
                    self.changes.services += 1;
                    known.service = Some(Box::new(service));
                }
            }
            Object::EndpointSlice(slice) => self.put_slice(slice),
            Object::Endpoints(mut endpoints) => {
                let triggered = endpoints.triggered.take();
                let known = known(&mut self.services, &mut endpoints.key);
                if known.endpoints.as_deref() != Some(&endpoints) {
                    endpoints.groups.iter_mut().for_each(|group| keep(group, &mut self.names, &mut self.prefixes));
                    known.mark(&endpoints.key, &mut self.dirty);
                    self.changes.endpoints += 1;
                    self.triggers.note(&endpoints.key, triggered);
                    known.endpoints = Some(Box::new(endpoints));
                }
            }
            Object::Node(node) => {
                if node.name == self.node_name {
                    self.set_node(Some(node));
                }
            }
            Object::Pod(pod) => self.pods.put(pod, &self.node_name),
            Object::Namespace(namespace) => self.pods.put_namespace(namespace),
        }
    }

    fn put_slice(&mut self, mut slice: EndpointSlice) {
        let triggered = slice.triggered.take();
        let old = self.slices.get(&slice.key).map(|ByKey(old)| old);
        if old.is_some_and(|old| **old == slice) {
            return;
        }
        if old.is_some_and(|old| old.service != slice.service) {
            self.delete(Kind::EndpointSlice, &slice.key.clone());
        }
        let Some(service) = &mut slice.service else { return };
        let known = known(&mut self.services, service);
        known.mark(service, &mut self.dirty);
        self.changes.endpoints += 1;
        self.triggers.note(service, triggered);
        keep(&mut slice.group, &mut self.names, &mut self.prefixes);
        let slice = Arc::new(slice);
        let list = &mut known.slices;
        match list.binary_search_by(|other| other.key.cmp(&slice.key)) {
            Ok(at) => list.set(at, Arc::clone(&slice)),
            Err(at) => list.insert(at, Arc::clone(&slice)),
        }
        self.slices.replace(ByKey(slice));
    }

    fn delete(&mut self, kind: Kind, key: &Key) {
        // What is empty then goes when somebody has asked for the dirty ones.
        match kind {
            Kind::Service => {
                let Some(known) = self.services.get_mut(key) else { return };
                if known.service.take().is_some() {
                    known.mark(key, &mut self.dirty);
                    self.changes.services += 1;
                }
            }
            Kind::EndpointSlice => {
                let Some(ByKey(slice)) = self.slices.take(key) else { return };
                let Some(service) = &slice.service else { return };
                let Some(known) = self.services.get_mut(service) else { return };
                known.slices.retain(|other| other.key != *key);
                known.mark(service, &mut self.dirty);
                self.changes.endpoints += 1;
                self.triggers.forget(service);
            }
            Kind::Endpoints => {
                let Some(known) = self.services.get_mut(key) else { return };
                if known.endpoints.take().is_some() {
                    known.mark(key, &mut self.dirty);
                    self.changes.endpoints += 1;
                    self.triggers.forget(key);
                }
            }
            Kind::Node => {
                if key.name() == &*self.node_name {
                    self.set_node(None);
                }
            }
            Kind::Pod => self.pods.delete(key),
            Kind::Namespace => self.pods.delete_namespace(key.name()),
        }
    }

    fn replace(&mut self, kind: Kind, objects: Vec<Object>) {
        self.listed[kind as usize] = true;
        match kind {
            Kind::Service => {
                let gone = gone(self.services(), &objects, Object::service_key);
                gone.iter().for_each(|key| self.delete(kind, key));
                self.services.reserve(objects.len().saturating_sub(self.services.len()));
            }
            Kind::EndpointSlice => {
                let have = self.slices.iter().map(|ByKey(slice)| &slice.key);
                gone(have, &objects, Object::slice_key).iter().for_each(|key| self.delete(kind, key));
                self.slices.reserve(objects.len().saturating_sub(self.slices.len()));
            }
            Kind::Endpoints => {
                let have = self.services.iter().filter(|(_, known)| known.endpoints.is_some()).map(|(key, _)| key);
                gone(have, &objects, Object::endpoints_key).iter().for_each(|key| self.delete(kind, key));
            }
            Kind::Node => {
                // At once, so that a zone that stays is not lost for a moment.
                let own = objects.into_iter().rev().find_map(|object| match object {
                    Object::Node(node) if node.name == self.node_name => Some(node),
                    _ => None,
                });
                return self.set_node(own);
            }
            Kind::Pod | Kind::Namespace => {
                self.pods.clear(kind);
                return objects.into_iter().filter(|object| object.kind() == kind).for_each(|object| self.put(object));
            }
        }
        self.names.forget_unused();
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
        self.node = node;
        if changed {
            for (key, known) in &mut self.services {
                if known.view().is_some_and(|view| has_hints(&view)) {
                    known.mark(key, &mut self.dirty);
                }
            }
        }
    }
}

impl Known {
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

/// What is known of `key`, which from now on shares its text with the table.
fn known<'a>(services: &'a mut HashMap<Key, Known>, key: &mut Key) -> &'a mut Known {
    let entry = services.entry(key.clone());
    *key = entry.key().clone();
    entry.or_default()
}

/// Makes a group small, and notes where its endpoints are.
fn keep(group: &mut EndpointGroup, names: &mut Names, prefixes: &mut Prefixes) {
    names.group(group);
    group.endpoints.iter().for_each(|endpoint| prefixes.note(&endpoint.addr.into()));
}

fn has_hints(view: &View<'_>) -> bool {
    view.all_groups().flat_map(|group| &group.endpoints).any(|endpoint| !endpoint.hints().0.is_empty())
}

/// Those of `have` that are not among `objects`.
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

/// Which networks (/16 of IPv4, /64 of IPv6) may hold an endpoint: a Bloom filter of one hash, 8 KiB. It forgets nothing,
/// since a stale bit costs only a search.
struct Prefixes {
    bits: Box<[u64; 1024]>,
}

impl Default for Prefixes {
    fn default() -> Self {
        Self { bits: Box::new([0; 1024]) }
    }
}

impl Prefixes {
    fn note(&mut self, addr: &Addr) {
        let (word, bit) = Self::place(addr);
        self.bits[word] |= bit;
    }

    fn may_hold(&self, addr: &Addr) -> bool {
        let (word, bit) = Self::place(addr);
        self.bits[word] & bit != 0
    }

    fn place(addr: &Addr) -> (usize, u64) {
        let words = addr.octets.as_chunks::<2>().0;
        let hash = if addr.is_v4() {
            u16::from_be_bytes(words[6])
        } else {
            words[..4].iter().fold(0, |hash: u16, word| hash.rotate_left(5) ^ u16::from_be_bytes(*word))
        };
        (usize::from(hash >> 6), 1 << (hash & 63))
    }
}

impl Object {
    /// The kind of this object.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Service(_) => Kind::Service,
            Self::EndpointSlice(_) => Kind::EndpointSlice,
            Self::Endpoints(_) => Kind::Endpoints,
            Self::Node(_) => Kind::Node,
            Self::Pod(_) => Kind::Pod,
            Self::Namespace(_) => Kind::Namespace,
        }
    }

    fn service_key(&self) -> Option<&Key> {
        if let Self::Service(object) = self { Some(&object.key) } else { None }
    }

    fn slice_key(&self) -> Option<&Key> {
        if let Self::EndpointSlice(object) = self { Some(&object.key) } else { None }
    }

    /// The key of a Namespace.
    pub fn namespace_key(&self) -> Option<Key> {
        if let Self::Namespace(object) = self { Some(Key::new("", &object.name)) } else { None }
    }

    fn endpoints_key(&self) -> Option<&Key> {
        if let Self::Endpoints(object) = self { Some(&object.key) } else { None }
    }
}

#[cfg(test)]
mod tests;
