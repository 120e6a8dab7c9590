//! All objects that the sources told of, indexed by Service, and which Services a change concerns. Nothing is interpreted
//! here: that is the model's work.

mod intern;

use std::{hash::Hash, sync::Arc};

use foldhash::{HashMap, HashMapExt as _, HashSet, HashSetExt as _};
use lb_common::Addr;

use crate::{
    event::{Event, Kind, Object},
    objects::{EndpointGroup, EndpointSlice, Endpoints, Key, Node, Service},
};
use intern::Names;

/// The objects.
pub struct World {
    node_name: Arc<str>,
    node: Option<Node>,
    services: HashMap<Key, Service>,
    /// Slices without a Service are not kept.
    slices: HashMap<Key, Arc<EndpointSlice>>,
    /// By Service, each list sorted by the slice's key.
    slices_of: HashMap<Key, Vec<Arc<EndpointSlice>>>,
    endpoints: HashMap<Key, Endpoints>,
    listed: [bool; Kind::ALL.len()],
    dirty: HashSet<Key>,
    names: Names,
    prefixes: Prefixes,
}

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
            services: HashMap::new(),
            slices: HashMap::new(),
            slices_of: HashMap::new(),
            endpoints: HashMap::new(),
            listed: [false; Kind::ALL.len()],
            dirty: HashSet::new(),
            names: Names::default(),
            prefixes: Prefixes::default(),
        }
    }

    /// Takes a change in, and notes the Services that it concerns.
    pub fn apply(&mut self, event: Event) {
        match event {
            Event::Apply(object) => self.put(object),
            Event::Delete(kind, key) => self.delete(kind, &key),
            Event::Replace(kind, objects) => self.replace(kind, objects),
        }
    }

    /// Whether each kind was listed once (invariant I5).
    #[must_use]
    pub fn ready(&self) -> bool {
        self.listed.iter().all(|&listed| listed)
    }

    /// The kinds that were not listed yet.
    #[must_use]
    pub fn missing(&self) -> Vec<Kind> {
        Kind::ALL.into_iter().filter(|&kind| !self.listed[kind as usize]).collect()
    }

    /// The Services that have changed since this was last asked, in no order.
    pub fn take_dirty(&mut self) -> Vec<Key> {
        self.dirty.drain().collect()
    }

    /// What is known about a Service.
    #[must_use]
    pub fn view(&self, key: &Key) -> Option<View<'_>> {
        let service = self.services.get(key)?;
        let slices = self.slices_of.get(key).map_or(&[][..], |slices| slices);
        Some(View { service, slices, endpoints: self.endpoints.get(key) })
    }

    /// The keys of all Services, in no order.
    pub fn services(&self) -> impl Iterator<Item = &Key> {
        self.services.keys()
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

    /// The Services with an endpoint on one of these addresses, in no order.
    #[must_use]
    pub fn services_with_endpoints_at(&self, addrs: &HashSet<Addr>) -> Vec<Key> {
        // Cluster IPs and pods live in different networks, so that this mostly ends here.
        if !addrs.iter().any(|addr| self.prefixes.may_hold(addr)) {
            return Vec::new();
        }
        let hit =
            |group: &EndpointGroup| group.endpoints.iter().any(|endpoint| addrs.contains(&Addr::from(endpoint.addr)));
        let by_slice = self.slices_of.iter().filter(|(_, slices)| slices.iter().any(|slice| hit(&slice.group)));
        let by_object = self.endpoints.iter().filter(|(_, object)| object.groups.iter().any(hit));
        let keys: HashSet<&Key> = by_slice.map(|(key, _)| key).chain(by_object.map(|(key, _)| key)).collect();
        keys.into_iter().cloned().collect()
    }

    fn put(&mut self, object: Object) {
        match object {
            Object::Service(mut service) => {
                if self.services.get(&service.key) != Some(&service) {
                    self.names.service(&mut service);
                    self.dirty.insert(service.key.clone());
                    self.services.insert(service.key.clone(), service);
                }
            }
            Object::EndpointSlice(slice) => self.put_slice(slice),
            Object::Endpoints(mut endpoints) => {
                if self.endpoints.get(&endpoints.key) != Some(&endpoints) {
                    endpoints.groups.iter_mut().for_each(|group| self.keep(group));
                    self.dirty.insert(endpoints.key.clone());
                    self.endpoints.insert(endpoints.key.clone(), endpoints);
                }
            }
            Object::Node(node) => {
                if node.name == self.node_name {
                    self.set_node(Some(node));
                }
            }
        }
    }

    fn put_slice(&mut self, mut slice: EndpointSlice) {
        let old = self.slices.get(&slice.key);
        if old.is_some_and(|old| **old == slice) {
            return;
        }
        if old.is_some_and(|old| old.service != slice.service) {
            self.delete(Kind::EndpointSlice, &slice.key.clone());
        }
        let Some(service) = &mut slice.service else { return };
        // Shares the text of the names with the Service and with its other slices.
        if let Some((known, _)) = self.services.get_key_value(service) {
            *service = known.clone();
        }
        let service = service.clone();
        self.keep(&mut slice.group);
        let slice = Arc::new(slice);
        let list = self.slices_of.entry(service.clone()).or_default();
        match list.binary_search_by(|other| other.key.cmp(&slice.key)) {
            Ok(at) => list[at] = Arc::clone(&slice),
            Err(at) => {
                // Most Services have one slice.
                list.reserve_exact(1);
                list.insert(at, Arc::clone(&slice));
            }
        }
        self.dirty.insert(service);
        self.slices.insert(slice.key.clone(), slice);
    }

    /// Makes a group small, and notes where its endpoints are.
    fn keep(&mut self, group: &mut EndpointGroup) {
        self.names.group(group);
        group.endpoints.iter().for_each(|endpoint| self.prefixes.note(&endpoint.addr.into()));
    }

    fn delete(&mut self, kind: Kind, key: &Key) {
        match kind {
            Kind::Service => {
                if self.services.remove(key).is_some() {
                    self.dirty.insert(key.clone());
                }
            }
            Kind::EndpointSlice => {
                let Some(service) = self.slices.remove(key).and_then(|slice| slice.service.clone()) else { return };
                if let Some(list) = self.slices_of.get_mut(&service) {
                    list.retain(|slice| slice.key != *key);
                    if list.is_empty() {
                        self.slices_of.remove(&service);
                    }
                }
                self.dirty.insert(service);
            }
            Kind::Endpoints => {
                if self.endpoints.remove(key).is_some() {
                    self.dirty.insert(key.clone());
                }
            }
            Kind::Node => {
                if key.name == self.node_name {
                    self.set_node(None);
                }
            }
        }
    }

    fn replace(&mut self, kind: Kind, objects: Vec<Object>) {
        self.listed[kind as usize] = true;
        match kind {
            Kind::Service => {
                let keep: HashSet<&Key> = objects.iter().filter_map(|object| object.service_key()).collect();
                gone(&self.services, &keep).iter().for_each(|key| self.delete(kind, key));
            }
            Kind::EndpointSlice => {
                let keep: HashSet<&Key> = objects.iter().filter_map(|object| object.slice_key()).collect();
                gone(&self.slices, &keep).iter().for_each(|key| self.delete(kind, key));
            }
            Kind::Endpoints => {
                let keep: HashSet<&Key> = objects.iter().filter_map(|object| object.endpoints_key()).collect();
                gone(&self.endpoints, &keep).iter().for_each(|key| self.delete(kind, key));
            }
            Kind::Node => {
                // At once, so that a zone that stays is not lost for a moment.
                let own = objects.into_iter().rev().find_map(|object| match object {
                    Object::Node(node) if node.name == self.node_name => Some(node),
                    _ => None,
                });
                return self.set_node(own);
            }
        }
        self.names.forget_unused();
        for object in objects {
            if object.kind() == kind {
                self.put(object);
            }
        }
        self.shrink();
    }

    fn set_node(&mut self, node: Option<Node>) {
        let zone = |node: &Option<Node>| node.as_ref().and_then(|node| node.zone.clone());
        let changed = zone(&self.node) != zone(&node);
        self.node = node;
        if changed {
            let hinted = self.services.keys().filter(|key| self.view(key).is_some_and(|view| has_hints(&view)));
            let hinted: Vec<Key> = hinted.cloned().collect();
            self.dirty.extend(hinted);
        }
    }

    fn shrink(&mut self) {
        self.services.shrink_to_fit();
        self.slices.shrink_to_fit();
        self.slices_of.shrink_to_fit();
        self.endpoints.shrink_to_fit();
    }
}

fn has_hints(view: &View<'_>) -> bool {
    view.all_groups().flat_map(|group| &group.endpoints).any(|endpoint| !endpoint.zone_hints.is_empty())
}

fn gone<K: Clone + Eq + Hash, V>(have: &HashMap<K, V>, keep: &HashSet<&K>) -> Vec<K> {
    have.keys().filter(|key| !keep.contains(key)).cloned().collect()
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
        }
    }

    fn service_key(&self) -> Option<&Key> {
        if let Self::Service(object) = self { Some(&object.key) } else { None }
    }

    fn slice_key(&self) -> Option<&Key> {
        if let Self::EndpointSlice(object) = self { Some(&object.key) } else { None }
    }

    fn endpoints_key(&self) -> Option<&Key> {
        if let Self::Endpoints(object) = self { Some(&object.key) } else { None }
    }
}

#[cfg(test)]
mod tests;
