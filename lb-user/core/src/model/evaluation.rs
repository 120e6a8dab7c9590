//! The decisions about one Service, as data.

use lb_common::{AddrPort, Family, Scheduler, ServiceFlags};

use super::{
    endpoints::EndpointOrigin,
    frontends::{RequestedFrontend, RequestedRange},
    ranges::SourceRanges,
    reason::EvaluatedEndpoint,
    tiers::Tiers,
    topology::Narrowing,
};
use crate::{
    objects::{EndpointGroup, Key, ServicePort},
    per_family::PerFamily,
    warning::Warning,
};

/// The flags with which a service port has a local list.
pub const LOCAL: u32 = ServiceFlags::INTERNAL_LOCAL | ServiceFlags::EXTERNAL_LOCAL;

/// The decisions about a Service.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Evaluation<'a> {
    /// The frontends that it gets, sorted by key.
    pub frontends: Vec<RequestedFrontend>,
    /// The port ranges that it gets.
    pub port_ranges: Vec<RequestedRange>,
    /// Ports that are served, in the order of `spec.ports`.
    pub ports: Vec<EvaluatedPort<'a>>,
    /// Clients that are let in at its load balancer addresses.
    pub ranges: PerFamily<SourceRanges>,
    /// Warnings for its owner, each once. Denied frontends are among them.
    pub warnings: Vec<Warning>,
}

/// The decisions about an entry of `spec.ports`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EvaluatedPort<'a> {
    /// The entry.
    pub port: &'a ServicePort,
    /// Index of the port in `spec.ports`.
    pub index: usize,
    /// The scheduler that chooses backends.
    pub scheduler: Scheduler,
    /// Every endpoint whose object has the port, sorted by family and target. The copy that counts comes before its
    /// duplicates.
    pub endpoints: Vec<EvaluatedEndpoint<'a>>,
    /// The rules that keep ready endpoints out of the cluster list.
    pub narrowing: PerFamily<Narrowing>,
    /// The tiers of its endpoints, where they have different ones.
    pub tiers: PerFamily<Option<Tiers>>,
    /// The Service whose endpoints on this node take the clients of the cluster IPs.
    pub redirected_to: PerFamily<Option<&'a Key>>,
    /// The endpoints on this node of that Service, of both families, closed ones included.
    pub redirect_targets: Vec<AddrPort>,
    /// [`ServiceFlags`] of the service port.
    pub flags: PerFamily<u32>,
    /// Endpoints whose object has no such port.
    pub unmatched: Vec<(EndpointOrigin<'a>, &'a EndpointGroup)>,
}

impl<'a> EvaluatedPort<'a> {
    /// Returns the endpoints of a family.
    #[must_use]
    pub(crate) fn endpoints_of(&self, family: Family) -> &[EvaluatedEndpoint<'a>] {
        let (v4, v6) = self.endpoints.split_at(self.endpoints.partition_point(EvaluatedEndpoint::is_v4));
        match family {
            Family::V4 => v4,
            Family::V6 => v6,
        }
    }
}
