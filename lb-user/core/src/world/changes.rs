//! Counts of changes, and the times of the events that caused them: for metrics, decides nothing.

use std::time::SystemTime;

use crate::objects::Key;

/// Most triggers that are kept: more wait only where passes fail, and then these are enough.
const MAX_TRIGGERS: usize = 10_000;

/// Counts of the objects that came, changed or went.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Changes {
    /// Services.
    pub services: u64,
    /// EndpointSlices and Endpoints.
    pub endpoints: u64,
}

impl Changes {
    /// Counts of the changes after `earlier`.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Self {
        Self { services: self.services - earlier.services, endpoints: self.endpoints - earlier.endpoints }
    }
}

/// Times of the events that caused changes of endpoints, until [`Triggers::take`].
#[derive(Default)]
pub(super) struct Triggers {
    /// Earlier triggers are not measured, since no agent ran; none are measured without it.
    pub(super) since: Option<SystemTime>,
    waiting: Vec<(Key, SystemTime)>,
}

impl Triggers {
    /// Notes the trigger of a change of the Service's endpoints.
    pub(super) fn note(&mut self, service: &Key, triggered: Option<SystemTime>) {
        let is_measured = |time: &SystemTime| self.since.is_some_and(|since| *time > since);
        if let Some(time) = triggered.filter(is_measured)
            && self.waiting.len() < MAX_TRIGGERS
        {
            self.waiting.push((service.clone(), time));
        }
    }

    /// Removes the triggers of a Service whose endpoints have gone: their times are of an earlier change (kube-proxy,
    /// pkg/proxy/endpointschangetracker.go).
    pub(super) fn forget(&mut self, service: &Key) {
        self.waiting.retain(|(other, _)| other != service);
    }

    pub(super) fn take(&mut self) -> Vec<SystemTime> {
        std::mem::take(&mut self.waiting).into_iter().map(|(_, time)| time).collect()
    }
}
