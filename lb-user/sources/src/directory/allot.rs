//! Load balancer addresses from pools in the files: as `beeline lb` in a cluster, but into the objects that the
//! directory sends instead of into a status.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;

use crate::{
    convert::{BalancerClass, NAMESPACE_NAME},
    yaml::AddressContent,
};
use lb_core::{
    allot::{AddressPool, AddressRequest, ClusterAddresses, allot},
    event::{Object, ObjectKind},
    label_selector::Labels,
    objects::{AddressReport, Key, Service},
};

/// Load balancer addresses by Service.
type ByService = BTreeMap<Key, Vec<IpAddr>>;

/// Reads the load balancer addresses of an earlier run, as the maps have them.
#[derive(Clone)]
pub struct RememberedAddresses(Arc<dyn Fn() -> ByService + Send + Sync>);

impl RememberedAddresses {
    /// Makes it from a function that reads them.
    pub fn new(read: impl Fn() -> ByService + Send + Sync + 'static) -> Self {
        Self(Arc::new(read))
    }
}

impl Default for RememberedAddresses {
    fn default() -> Self {
        Self::new(BTreeMap::new)
    }
}

impl fmt::Debug for RememberedAddresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RememberedAddresses")
    }
}

/// Addresses that Services have from pools.
#[derive(Debug)]
pub(super) enum Allotted {
    /// Addresses of an earlier run; read when the files have a pool.
    Remembered(RememberedAddresses),
    /// Addresses of this run.
    Known(ByService),
}

impl Default for Allotted {
    fn default() -> Self {
        Self::Remembered(RememberedAddresses::default())
    }
}

impl Allotted {
    /// Gives the Services their addresses; returns the problems of pools. Without a pool no Service gets any.
    pub(super) fn update<'a>(
        &mut self,
        contents: impl Iterator<Item = &'a AddressContent> + Clone,
        objects: &mut BTreeMap<ObjectKind, Vec<Object>>,
    ) -> Vec<String> {
        let mut problems = Vec::new();
        let mut pools: Vec<AddressPool> = Vec::new();
        for pool in contents.clone().flat_map(|content| &content.pools) {
            if pools.iter().any(|other| other.name == pool.name) {
                let name = pool.name.escape_debug();
                problems.push(format!("AddressPool {name} is there twice: the first counts; remove one"));
            } else {
                pools.push(pool.clone());
            }
        }
        if pools.is_empty() && matches!(self, Self::Remembered(_)) {
            return problems;
        }
        let mut services: BTreeMap<Key, &mut Service> = BTreeMap::new();
        let mut cluster = ClusterAddresses::default();
        for object in objects.values_mut().flatten() {
            match object {
                Object::Service(service) => {
                    cluster.service_ranges.extend(service.cluster_ips.iter().copied().map(IpNet::from));
                    services.insert(service.key.clone(), service);
                }
                Object::Node(node) => cluster.nodes.extend(&node.internal_ips),
                _ => {}
            }
        }
        for (key, labels) in contents.clone().flat_map(|content| &content.namespaces) {
            cluster.namespaces.entry(key.name().into()).or_insert_with(|| with_name(key.name(), labels.clone()));
        }
        let before = self.take();
        let mut requests: Vec<AddressRequest> = Vec::new();
        let mut seen = BTreeSet::new();
        for (class, request) in contents.flat_map(|content| &content.requests) {
            let Some(service) = services.get(&request.key).filter(|_| seen.insert(&request.key)) else { continue };
            if *class == BalancerClass::Other {
                cluster.foreign.extend(request.holds.iter().map(|addr| (*addr, request.key.clone())));
                continue;
            }
            let namespace = request.key.namespace();
            cluster.namespaces.entry(namespace.into()).or_insert_with(|| with_name(namespace, Labels::new()));
            // A status in a file takes precedence over a remembered address.
            let in_file = Some(&service.ingress_ips).filter(|ips| !ips.is_empty());
            let holds = in_file.or_else(|| before.get(&request.key)).cloned().unwrap_or_default();
            requests.push(AddressRequest { holds, ..request.clone() });
        }
        let allotments = allot(&pools, &requests, &cluster);
        let mut known = ByService::new();
        for (key, allotment) in allotments.services {
            let Some(service) = services.get_mut(&key) else { continue };
            let report = AddressReport { is_clean: allotment.problems.is_empty(), message: allotment.message() };
            service.address_report = Some(Arc::new(report));
            service.ingress_ips = allotment.addresses.into_iter().map(|(addr, _)| addr).collect();
            known.insert(key, service.ingress_ips.clone());
        }
        *self = Self::Known(known);
        for (name, usage) in allotments.pools {
            let name = name.escape_debug();
            problems.extend(usage.problems.iter().map(|problem| format!("AddressPool {name}: {problem}")));
        }
        problems
    }

    fn take(&mut self) -> ByService {
        match std::mem::take(self) {
            Self::Remembered(remembered) => (remembered.0)(),
            Self::Known(known) => known,
        }
    }
}

fn with_name(name: &str, mut labels: Labels) -> Labels {
    labels.entry(NAMESPACE_NAME.to_owned()).or_insert_with(|| name.to_owned());
    labels
}
