//! One copy of each name that many objects repeat: nodes, zones, ports, namespaces. No interpretation.

use std::sync::Arc;

use foldhash::HashSet;

use crate::objects::{EndpointGroup, Service};

/// The names.
#[derive(Default)]
pub(super) struct Names {
    known: HashSet<Arc<str>>,
}

impl Names {
    pub(super) fn service(&mut self, service: &mut Service) {
        service.ports.iter_mut().for_each(|port| self.share(&mut port.name));
    }

    pub(super) fn group(&mut self, group: &mut EndpointGroup) {
        group.ports.iter_mut().for_each(|port| self.share(&mut port.name));
        for endpoint in &mut group.endpoints {
            let names = endpoint.node.iter_mut().chain(&mut endpoint.zone_hints).chain(&mut endpoint.node_hints);
            names.for_each(|name| self.share(name));
        }
        group.ports.shrink_to_fit();
        group.endpoints.shrink_to_fit();
    }

    /// Drops the names that no object uses any more.
    pub(super) fn forget_unused(&mut self) {
        self.known.retain(|name| Arc::strong_count(name) > 1);
    }

    fn share(&mut self, name: &mut Arc<str>) {
        match self.known.get(name) {
            Some(known) => *name = Arc::clone(known),
            None => drop(self.known.insert(Arc::clone(name))),
        }
    }
}
