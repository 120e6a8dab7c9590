//! How much the world has changed, and when the cluster began what changed it: for metrics, decides nothing.

use std::time::SystemTime;

use crate::objects::Key;

/// Triggers that are kept: more wait only where passes fail, and then these tell enough.
const MOST: usize = 10_000;

/// How many objects have come, changed or gone.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Changes {
    /// Services.
    pub services: u64,
    /// EndpointSlices and Endpoints.
    pub endpoints: u64,
}

impl Changes {
    /// What came after `earlier`.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Self {
        Self { services: self.services - earlier.services, endpoints: self.endpoints - earlier.endpoints }
    }
}

/// When that happened for which endpoints have changed, as far as nobody has asked yet.
#[derive(Default)]
pub(super) struct Triggers {
    /// What came before is not measured, since nobody was there; without it nothing is.
    pub(super) since: Option<SystemTime>,
    waiting: Vec<(Key, SystemTime)>,
}

impl Triggers {
    /// Endpoints of this Service have changed.
    pub(super) fn note(&mut self, service: &Key, triggered: Option<SystemTime>) {
        let wanted = |time: &SystemTime| self.since.is_some_and(|since| *time > since);
        if let Some(time) = triggered.filter(wanted)
            && self.waiting.len() < MOST
        {
            self.waiting.push((service.clone(), time));
        }
    }

    /// Endpoints of this Service have gone; their time is that of an earlier change (kube-proxy,
    /// pkg/proxy/endpointschangetracker.go).
    pub(super) fn forget(&mut self, service: &Key) {
        self.waiting.retain(|(other, _)| other != service);
    }

    pub(super) fn take(&mut self) -> Vec<SystemTime> {
        std::mem::take(&mut self.waiting).into_iter().map(|(_, time)| time).collect()
    }
}
