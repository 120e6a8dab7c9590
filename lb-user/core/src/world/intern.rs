//! One copy of what many objects repeat: names of nodes and zones, lists of ports. No interpretation.

use std::{hash::Hash, sync::Arc};

use foldhash::HashSet;

use crate::objects::{EndpointGroup, EndpointPort, Service, ServicePort};

/// The names.
#[derive(Default)]
pub(super) struct Names {
    known: HashSet<Arc<str>>,
    service_ports: HashSet<Arc<[ServicePort]>>,
    endpoint_ports: HashSet<Arc<[EndpointPort]>>,
}

impl Names {
    pub(super) fn service(&mut self, service: &mut Service) {
        share(&mut self.service_ports, &mut service.ports);
    }

    pub(super) fn group(&mut self, group: &mut EndpointGroup) {
        share(&mut self.endpoint_ports, &mut group.ports);
        for endpoint in &mut group.endpoints {
            let hints = endpoint.hints.iter_mut().flat_map(|hints| hints.zones.iter_mut().chain(&mut hints.nodes));
            endpoint.node.iter_mut().chain(hints).for_each(|name| share(&mut self.known, name));
        }
        group.endpoints.shrink_to_fit();
    }

    /// Drops the names that no object uses any more.
    pub(super) fn forget_unused(&mut self) {
        self.known.retain(|name| Arc::strong_count(name) > 1);
        self.service_ports.retain(|ports| Arc::strong_count(ports) > 1);
        self.endpoint_ports.retain(|ports| Arc::strong_count(ports) > 1);
    }
}

fn share<T: ?Sized + Eq + Hash>(known: &mut HashSet<Arc<T>>, one: &mut Arc<T>) {
    match known.get(one) {
        Some(known) => *one = Arc::clone(known),
        None => drop(known.insert(Arc::clone(one))),
    }
}
