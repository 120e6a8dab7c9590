//! Takeover of an id: a service port that succeeds another one keeps the ids of that service port and its backends, so
//! that sockets, flows, affinity and counts go on when a port, or a Service with all its frontends, is renamed.
//!
//! The predecessor goes away in the same plan, is of the same namespace, protocol and family, and leaves all its
//! frontends to its successor: no other frontend ever leads to a backend of the successor.

use foldhash::HashMap;

use super::{Planner, Scope};
use crate::{
    shadow::Port,
    spec::{PortKey, PortSpec, ServiceSpec},
};

/// The desired Services, to tell which service ports go away.
pub(super) struct Successions<'a> {
    /// Sorted by key.
    pub(super) desired: &'a [ServiceSpec],
    pub(super) scope: Scope,
}

impl Successions<'_> {
    /// True if the service port `key` goes away, whatever fits into the maps, when `successor` is brought up to date.
    fn goes_away(&self, key: &PortKey, successor: &ServiceSpec) -> bool {
        if key.service == successor.key {
            return successor.ports.iter().all(|port| port.key != *key);
        }
        match self.desired.binary_search_by(|spec| spec.key.cmp(&key.service)) {
            // A Service with ports may be refused, and then stays as it is.
            Ok(at) => self.desired.get(at).is_some_and(|spec| spec.ports.is_empty()),
            Err(_) => self.scope == Scope::World,
        }
    }
}

impl Planner<'_> {
    /// Finds the service port whose id `port`, which has none, takes over, and marks it as taken.
    pub(super) fn predecessor(&mut self, spec: &ServiceSpec, port: &PortSpec) -> Option<u32> {
        let shadow = self.shadow;
        let mut owned: HashMap<u32, usize> = HashMap::default();
        for (key, kind) in &port.frontends {
            if !kind.is_address()
                && let Some(frontend) = shadow.frontend(key)
            {
                *owned.entry(frontend.service).or_default() += 1;
            }
        }
        let candidates = owned.iter().filter_map(|(&id, &count)| Some((id, shadow.port(id)?, count)));
        let (id, ..) = candidates
            .filter(|(id, have, count)| {
                let dialled = have.frontends.iter().filter(|key| !key.is_address()).count();
                dialled == *count
                    && !self.taken.contains(id)
                    && self.is_in_scope(*id, port)
                    && self.succeeds(spec, port, have)
            })
            .max_by_key(|(id, _, count)| (*count, std::cmp::Reverse(*id)))?;
        self.taken.push(id);
        Some(id)
    }

    fn succeeds(&self, spec: &ServiceSpec, port: &PortSpec, have: &Port) -> bool {
        have.service.is_some()
            && have.key.as_ref().is_some_and(|old| {
                (old.proto, old.family) == (port.key.proto, port.key.family)
                    && old.service.namespace() == port.key.service.namespace()
                    && self.successions.goes_away(old, spec)
            })
    }
}
