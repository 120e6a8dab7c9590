//! The Services of pods with hostPorts, in the index of all Services.

use std::{collections::BTreeSet, sync::Arc};

use foldhash::HashSet;
use smallvec::smallvec;

use super::{World, by_address, entry, keep};
use crate::{
    event::Object,
    host_ports::{service, service_key},
    objects::{Key, Pod, Service},
};

/// The pods with hostPorts.
#[derive(Default)]
pub(super) struct HostPorts {
    /// The flag `--host-ports`.
    pub(super) are_served: bool,
    /// Keys of their Services.
    services: BTreeSet<Key>,
}

impl World {
    /// Lists the Services of this node's pods with hostPorts, by key.
    pub fn host_port_services(&self) -> impl Iterator<Item = &Service> {
        self.host_ports.services.iter().filter_map(|key| self.services.get(key)?.service.as_deref())
    }

    /// Takes over the hostPorts of a pod.
    pub(super) fn put_host_ports(&mut self, pod: &Pod) {
        if !self.host_ports.are_served {
            return;
        }
        let Some((mut service, mut slice)) = service(pod, &self.node_name) else {
            return self.remove_host_ports(&service_key(&pod.key));
        };
        let entry = entry(&mut self.services, &mut service.key);
        let is_same = |old: &[Arc<_>]| old.iter().map(AsRef::as_ref).eq([&slice]);
        if entry.service.as_deref() == Some(&service) && is_same(&entry.slices) {
            return;
        }
        keep(&mut slice.group, &mut self.interner, &mut self.networks);
        self.by_address.remove(&service.key, by_address::endpoints(entry.groups()));
        self.by_address.add(&service.key, by_address::endpoints([&slice.group]));
        entry.mark(&service.key, &mut self.dirty);
        self.host_ports.services.insert(service.key.clone());
        entry.slices = smallvec![Arc::new(slice)];
        entry.service = Some(Box::new(service));
    }

    /// Removes the Service of a pod that is gone, has ended, or has no hostPort any more.
    pub(super) fn remove_host_ports(&mut self, key: &Key) {
        if !self.host_ports.services.remove(key) {
            return;
        }
        let Some(entry) = self.services.get_mut(key) else { return };
        self.by_address.remove(key, by_address::endpoints(entry.groups()));
        entry.service = None;
        entry.slices.clear();
        entry.mark(key, &mut self.dirty);
    }

    /// Removes the Services of pods that are not among `pods`.
    pub(super) fn retain_host_ports(&mut self, pods: &[Object]) {
        let listed: HashSet<Key> = pods.iter().filter_map(Object::pod_key).map(service_key).collect();
        let gone: Vec<Key> = self.host_ports.services.iter().filter(|key| !listed.contains(*key)).cloned().collect();
        gone.iter().for_each(|key| self.remove_host_ports(key));
    }
}
