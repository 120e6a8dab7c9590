//! Endpoints on this node that take the clients of other Services, as of the last pass.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::AddrPort;
use lb_core::{objects::Key, spec::ServiceSpec};

/// Endpoints that take the clients of a Service, by that Service.
#[derive(Default)]
pub(super) struct RedirectTargets(BTreeMap<Key, BTreeSet<AddrPort>>);

impl RedirectTargets {
    pub(super) fn update(&mut self, spec: &ServiceSpec) {
        if spec.redirect_targets.is_empty() {
            self.0.remove(&spec.key);
        } else {
            self.0.insert(spec.key.clone(), spec.redirect_targets.clone());
        }
    }

    /// Returns the endpoints, each once.
    pub(super) fn all(&self) -> BTreeSet<AddrPort> {
        self.0.values().flatten().copied().collect()
    }
}
