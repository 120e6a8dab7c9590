//! Which addresses that people write into a Service by hand are pods of another namespace: endpoints that no selector
//! found, and external IPs (CVE-2021-25740, CVE-2020-8554). What becomes of those is for `judge` to say.
//!
//! Nobody tells Beeline of pods. An address is known as a pod's by the EndpointSlices that Kubernetes' controller makes for
//! a Service with a selector, all of whose endpoints are pods of the Service's namespace; a pod that no such Service leads
//! to is not known. Only addresses that are both are kept, mostly none: two filters of 8 KiB say when it is worth the
//! search through everything.

use std::{collections::BTreeSet, str::FromStr};

use foldhash::{HashMap, HashSet};
use lb_common::{Addr, FrontendKey};

use super::endpoints::{Written, effective};
use crate::{
    few::Few,
    objects::{Exempt, Key, Selector},
    world::{View, World},
};

/// The flag `--cross-namespace-endpoints`: what becomes of an endpoint that is written by hand and is a pod of another
/// namespace.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum CrossNamespace {
    /// It counts, as with kube-proxy, and the Service is warned.
    #[default]
    Allow,
    /// It is no endpoint.
    Refuse,
}

impl FromStr for CrossNamespace {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "allow" => Ok(Self::Allow),
            "refuse" => Ok(Self::Refuse),
            _ => Err("want allow or refuse".to_owned()),
        }
    }
}

/// The addresses that are both.
#[derive(Default)]
pub struct CrossNamespaceIndex {
    named: Filter,
    pods: Filter,
    found: HashMap<Addr, Found>,
}

/// An address.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Found {
    /// The Services that name it by hand.
    by: Few<Key>,
    /// Where pods listen, by the Services that lead to them.
    pods: BTreeSet<Listens>,
}

/// A service port of a pod.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Listens {
    service: Key,
    port: u16,
    proto: u8,
}

impl Found {
    fn services(&self) -> impl Iterator<Item = &Key> {
        self.by.iter().chain(self.pods.iter().map(|pod| &pod.service))
    }

    /// Whether anybody has to hear of it.
    fn matters(&self) -> bool {
        self.by.iter().any(|by| self.pods.iter().any(|pod| pod.service.namespace() != by.namespace()))
    }
}

impl CrossNamespaceIndex {
    /// The Service of another namespace than `own` to which an address leads as that of a pod. None where it is one of `own`
    /// as well, as pods on the network of a node are.
    #[must_use]
    pub fn at(&self, addr: &Addr, own: &str) -> Option<&Key> {
        let Found { pods, .. } = self.found.get(addr)?;
        if pods.iter().any(|pod| pod.service.namespace() == own) {
            return None;
        }
        pods.first().map(|pod| &pod.service)
    }

    /// The same, of those that listen at just this port.
    #[must_use]
    pub fn listening(&self, key: &FrontendKey, own: &str) -> Option<&Key> {
        self.at(&key.addr, own)?;
        let Found { pods, .. } = self.found.get(&key.addr)?;
        pods.iter().find(|pod| (pod.port, pod.proto) == (key.port, key.proto)).map(|pod| &pod.service)
    }

    /// Takes over what has become of the Services `changed`, sorted. Returns the Services whose endpoints or external IPs
    /// are to be judged again.
    pub fn update(&mut self, world: &World, changed: &[Key]) -> Vec<Key> {
        let views = || changed.iter().filter_map(|key| world.view(key));
        for view in views() {
            named(&view).for_each(|addr| self.named.note(&addr));
            pods(&view).for_each(|(addr, _)| self.pods.note(&addr));
        }
        let is_old = |found: &Found| found.services().any(|key| changed.binary_search(key).is_ok());
        let mut open: HashSet<Addr> =
            self.found.iter().filter(|(_, found)| is_old(found)).map(|(addr, _)| *addr).collect();
        if !self.named.is_empty() && !self.pods.is_empty() {
            for view in views() {
                open.extend(named(&view).filter(|addr| self.pods.may_hold(addr)));
                open.extend(pods(&view).map(|(addr, _)| addr).filter(|addr| self.named.may_hold(addr)));
            }
        }
        if open.is_empty() {
            return Vec::new();
        }
        let mut now = search(world, &open);
        let mut concerned = Vec::new();
        for addr in open {
            let (old, new) = (self.found.remove(&addr), now.remove(&addr).filter(Found::matters));
            if old != new {
                concerned.extend(old.iter().chain(&new).flat_map(|found| found.by.iter()).cloned());
            }
            self.found.extend(new.map(|new| (addr, new)));
        }
        concerned
    }
}

/// What there is at these addresses.
fn search(world: &World, open: &HashSet<Addr>) -> HashMap<Addr, Found> {
    let mut now: HashMap<Addr, Found> = HashMap::default();
    for view in world.views() {
        let key = &view.service.key;
        for addr in named(&view).filter(|addr| open.contains(addr)) {
            let by = &mut now.entry(addr).or_default().by;
            if let Err(at) = by.binary_search(key) {
                by.insert(at, key.clone());
            }
        }
        for (addr, (port, proto)) in pods(&view).filter(|(addr, _)| open.contains(addr)) {
            let pod = Listens { service: key.clone(), port, proto };
            now.entry(addr).or_default().pods.insert(pod);
        }
    }
    now
}

/// The addresses that a Service names by hand. `default/kubernetes` names none: the API server writes it, of its own address,
/// at which pods on the network of its node may listen as well.
fn named<'a>(view: &View<'a>) -> impl Iterator<Item = Addr> + use<'a> {
    let service = view.service;
    let is_own = || service.key.namespace() == "default" && service.key.name() == "kubernetes";
    let counts = service.exempt.is_none() && !(service.selector == Selector::None && is_own());
    let by_hand = effective(view).filter(move |(written, ..)| counts && *written == Written::ByHand);
    let endpoints = by_hand.flat_map(|(_, _, group)| &group.endpoints).map(|endpoint| Addr::from(endpoint.addr));
    endpoints.chain(service.external_ips.iter().filter(move |_| counts).map(|&addr| addr.into()))
}

/// The pods to which a Service leads by its selector, each with the ports at which it listens. The controller leaves the
/// slices of an ExternalName alone, so that anybody may write those.
fn pods<'a>(view: &View<'a>) -> impl Iterator<Item = (Addr, (u16, u8))> + use<'a> {
    let counts = view.service.exempt != Some(Exempt::ExternalName);
    let selected = effective(view).filter(move |(written, ..)| counts && *written == Written::BySelector);
    selected.flat_map(|(_, _, group)| {
        let ports = move || group.ports.iter().map(|port| (port.port.get(), port.proto as u8));
        group.endpoints.iter().flat_map(move |endpoint| ports().map(move |port| (endpoint.addr.into(), port)))
    })
}

/// Which addresses may have been seen: a Bloom filter of one hash. It forgets nothing, since a stale bit costs only a
/// search. Without memory as long as it is empty.
#[derive(Default)]
struct Filter(Option<Box<[u64; 1024]>>);

impl Filter {
    fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    fn note(&mut self, addr: &Addr) {
        let (word, bit) = Self::place(addr);
        self.0.get_or_insert_with(|| Box::new([0; 1024]))[word] |= bit;
    }

    fn may_hold(&self, addr: &Addr) -> bool {
        let (word, bit) = Self::place(addr);
        self.0.as_ref().is_some_and(|words| words[word] & bit != 0)
    }

    /// Of addresses that follow each other, each has a bit of its own.
    fn place(addr: &Addr) -> (usize, u64) {
        let words = addr.octets.as_chunks::<2>().0;
        let hash = words.iter().fold(0, |hash: u16, word| hash.rotate_left(5) ^ u16::from_be_bytes(*word));
        (usize::from(hash >> 6), 1 << (hash & 63))
    }
}

#[cfg(test)]
mod tests;
