//! Interning: one copy of the names of nodes and zones, and of lists of ports, that many objects repeat.

use std::{hash::Hash, sync::Arc};

use foldhash::HashSet;

use crate::objects::{EndpointGroup, EndpointPort, Service, ServicePort};

/// The shared copies.
#[derive(Default)]
pub(super) struct Interner {
    names: HashSet<Arc<str>>,
    service_ports: HashSet<Arc<[ServicePort]>>,
    endpoint_ports: HashSet<Arc<[EndpointPort]>>,
}

impl Interner {
    pub(super) fn share_service(&mut self, service: &mut Service) {
        share(&mut self.service_ports, &mut service.ports);
    }

    pub(super) fn share_group(&mut self, group: &mut EndpointGroup) {
        share(&mut self.endpoint_ports, &mut group.ports);
        for endpoint in &mut group.endpoints {
            let hints = endpoint.hints.iter_mut().flat_map(|hints| hints.zones.iter_mut().chain(&mut hints.nodes));
            endpoint.node.iter_mut().chain(hints).for_each(|name| share(&mut self.names, name));
        }
        group.endpoints.shrink_to_fit();
    }

    /// Drops copies that no object uses any more.
    pub(super) fn remove_unused(&mut self) {
        self.names.retain(|name| Arc::strong_count(name) > 1);
        self.service_ports.retain(|ports| Arc::strong_count(ports) > 1);
        self.endpoint_ports.retain(|ports| Arc::strong_count(ports) > 1);
    }
}

fn share<T: ?Sized + Eq + Hash>(copies: &mut HashSet<Arc<T>>, value: &mut Arc<T>) {
    match copies.get(value) {
        Some(copy) => *value = Arc::clone(copy),
        None => drop(copies.insert(Arc::clone(value))),
    }
}
