//! Endpoints on this node that have closed a socket at which they listened.

use std::collections::BTreeSet;

use foldhash::HashSet;
use lb_common::{Addr, AddrPort};

use super::World;

impl World {
    /// True if an endpoint on this node has closed a socket at which it listened.
    pub(crate) fn has_closed(&self, target: &AddrPort) -> bool {
        self.closed.contains(target)
    }

    /// Takes the closed endpoints over, and marks the Services of other ones than before.
    pub(super) fn set_closed(&mut self, closed: BTreeSet<AddrPort>) {
        let addrs: HashSet<Addr> = closed.symmetric_difference(&self.closed).map(|target| target.addr).collect();
        self.closed = closed;
        for key in self.services_with_endpoints_at(&addrs) {
            if let Some(entry) = self.services.get_mut(&key) {
                entry.mark(&key, &mut self.dirty);
            }
        }
    }
}
