//! Addresses that users write into a Service by hand and that are pods of another namespace: hand-written endpoints and
//! external IPs (CVE-2021-25740, CVE-2020-8554). The consequences are decided in `evaluate` and `frontends`.
//!
//! Beeline does not watch pods of other nodes. It knows an address as a pod's by the EndpointSlices that Kubernetes'
//! controller makes for a Service with a selector, all of whose endpoints are pods of the Service's namespace; a pod
//! that no such Service selects is not known. Only addresses that are both hand-written and a pod's are kept, mostly
//! none: two filters of 8 KiB tell when a search is in vain. A search asks the world's index by address.

use std::{collections::BTreeSet, str::FromStr};

use foldhash::{HashMap, HashSet};
use lb_common::{Addr, FrontendKey};

use super::endpoints::{Author, effective};
use smallvec::SmallVec;

use crate::{
    bloom::{BloomFilter, addr_hash},
    objects::{Exempt, Key, Selector},
    world::{View, World},
};

/// The flag `--cross-namespace-endpoints`: the treatment of hand-written endpoints that are pods of another namespace.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum CrossNamespace {
    /// Use such endpoints, as kube-proxy does, and warn of them on the Service.
    #[default]
    Allow,
    /// Do not use such endpoints.
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

/// The hand-written addresses that are pods of another namespace.
#[derive(Default)]
pub struct CrossNamespaceIndex {
    hand_written: BloomFilter,
    pods: BloomFilter,
    shared: HashMap<Addr, SharedAddr>,
}

/// A hand-written address at which pods listen.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct SharedAddr {
    /// The Services in which it is hand-written.
    authors: SmallVec<[Key; 1]>,
    /// The pods, by the Services that select them.
    pods: BTreeSet<PodPort>,
}

/// A port of a pod.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct PodPort {
    service: Key,
    port: u16,
    proto: u8,
}

impl SharedAddr {
    fn services(&self) -> impl Iterator<Item = &Key> {
        self.authors.iter().chain(self.pods.iter().map(|pod| &pod.service))
    }

    /// True if one of the pods is of another namespace than one of the authors.
    fn crosses_namespaces(&self) -> bool {
        self.authors.iter().any(|author| self.pods.iter().any(|pod| pod.service.namespace() != author.namespace()))
    }
}

impl CrossNamespaceIndex {
    /// Returns a Service of another namespace than `namespace` that selects the pod at an address. None if a Service of
    /// `namespace` selects a pod there too, as with pods in the network of one node.
    #[must_use]
    pub fn owner(&self, addr: &Addr, namespace: &str) -> Option<&Key> {
        let SharedAddr { pods, .. } = self.shared.get(addr)?;
        if pods.iter().any(|pod| pod.service.namespace() == namespace) {
            return None;
        }
        pods.first().map(|pod| &pod.service)
    }

    /// Like [`Self::owner`], for pods that listen at this port.
    #[must_use]
    pub fn listener(&self, key: &FrontendKey, namespace: &str) -> Option<&Key> {
        self.owner(&key.addr, namespace)?;
        let SharedAddr { pods, .. } = self.shared.get(&key.addr)?;
        pods.iter().find(|pod| (pod.port, pod.proto) == (key.port, key.proto)).map(|pod| &pod.service)
    }

    /// Takes over the Services `changed`, sorted, as they are in `world`. Returns the Services whose hand-written
    /// endpoints or external IPs must be evaluated again.
    pub fn update(&mut self, world: &World, changed: &[Key]) -> Vec<Key> {
        let views = || changed.iter().filter_map(|key| world.view(key));
        for view in views() {
            hand_written(&view).for_each(|addr| self.hand_written.insert(addr_hash(&addr)));
            pods(&view).for_each(|(addr, _)| self.pods.insert(addr_hash(&addr)));
        }
        let is_changed = |shared: &SharedAddr| shared.services().any(|key| changed.binary_search(key).is_ok());
        let mut candidates: HashSet<Addr> =
            self.shared.iter().filter(|(_, shared)| is_changed(shared)).map(|(addr, _)| *addr).collect();
        if !self.hand_written.is_empty() && !self.pods.is_empty() {
            for view in views() {
                candidates.extend(hand_written(&view).filter(|addr| self.pods.may_contain(addr_hash(addr))));
                let pods = pods(&view).map(|(addr, _)| addr);
                candidates.extend(pods.filter(|addr| self.hand_written.may_contain(addr_hash(addr))));
            }
        }
        if candidates.is_empty() {
            return Vec::new();
        }
        let mut found = search(world, &candidates);
        let mut affected = Vec::new();
        for addr in candidates {
            let new = found.remove(&addr).filter(SharedAddr::crosses_namespaces);
            let old = self.shared.remove(&addr);
            if old != new {
                affected.extend(old.iter().chain(&new).flat_map(|shared| shared.authors.iter()).cloned());
            }
            self.shared.extend(new.map(|new| (addr, new)));
        }
        affected
    }
}

/// Finds the authors and the pods of these addresses. Costs as much as the Services that name them have endpoints.
fn search(world: &World, addrs: &HashSet<Addr>) -> HashMap<Addr, SharedAddr> {
    let mut found: HashMap<Addr, SharedAddr> = HashMap::default();
    for view in world.services_at(addrs).iter().filter_map(|key| world.view(key)) {
        let key = &view.service.key;
        for addr in hand_written(&view).filter(|addr| addrs.contains(addr)) {
            let authors = &mut found.entry(addr).or_default().authors;
            if let Err(at) = authors.binary_search(key) {
                authors.insert(at, key.clone());
            }
        }
        for (addr, (port, proto)) in pods(&view).filter(|(addr, _)| addrs.contains(addr)) {
            found.entry(addr).or_default().pods.insert(PodPort { service: key.clone(), port, proto });
        }
    }
    found
}

/// Lists the hand-written addresses of a Service. `default/kubernetes` has none: the API server writes its own address
/// there, at which pods in the network of its node may listen as well.
fn hand_written<'a>(view: &View<'a>) -> impl Iterator<Item = Addr> + use<'a> {
    let service = view.service;
    let is_kubernetes = || service.key.namespace() == "default" && service.key.name() == "kubernetes";
    let counts = service.exempt.is_none() && !(service.selector == Selector::None && is_kubernetes());
    let groups = effective(view).filter(move |(author, ..)| counts && *author == Author::Hand);
    let endpoints = groups.flat_map(|(_, _, group)| &group.endpoints).map(|endpoint| Addr::from(endpoint.addr));
    endpoints.chain(service.external_ips.iter().filter(move |_| counts).map(|&addr| addr.into()))
}

/// Lists the pods that a Service selects, each with its port and protocol. The controller does not write the slices of
/// an ExternalName, so that any user may.
fn pods<'a>(view: &View<'a>) -> impl Iterator<Item = (Addr, (u16, u8))> + use<'a> {
    let counts = view.service.exempt != Some(Exempt::ExternalName);
    let selected = effective(view).filter(move |(author, ..)| counts && *author == Author::Selector);
    selected.flat_map(|(_, _, group)| {
        let ports = move || group.ports.iter().map(|port| (port.port.get(), port.proto as u8));
        group.endpoints.iter().flat_map(move |endpoint| ports().map(move |port| (endpoint.addr.into(), port)))
    })
}

#[cfg(test)]
mod tests;
