//! The desired state of the maps for one Service.

use std::{collections::BTreeSet, fmt, net::IpAddr, num::NonZeroU16, sync::Arc};

use ipnet::IpNet;
use lb_common::{AddrPort, BackendFlags, Family, FrontendKey, Kind, List, Proto, Scheduler};

use crate::{
    announce::Candidates,
    objects::{Drain, Eject, Key, Probe},
    per_family::PerFamily,
    warning::Warning,
};

/// A service port: the unit that owns an id, frontends and backend lists.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortKey {
    /// The Service.
    pub service: Key,
    /// Name of the port; empty for a single unnamed one.
    pub name: Arc<str>,
    /// Protocol.
    pub proto: Proto,
    /// Address family.
    pub family: Family,
}

impl fmt::Display for PortKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.service)?;
        if !self.name.is_empty() {
            write!(f, ":{}", self.name)?;
        }
        write!(f, "/{}", self.proto.name())?;
        // As netstat does: TCP, TCP6.
        if self.family == Family::V6 { write!(f, "6") } else { Ok(()) }
    }
}

impl fmt::Debug for PortKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A desired backend of a service port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Member {
    /// Address and port.
    pub target: AddrPort,
    /// [`lb_common::BackendFlags`]. Without CLUSTER and LOCAL no new socket gets the backend; an existing entry is kept
    /// for the sockets that have it.
    pub flags: u16,
    /// Number of slots in each of its lists, at least 1; more than 1 only with a weighted scheduler.
    pub weight: u16,
}

impl Member {
    /// True if the backend is in a list.
    #[must_use]
    pub const fn is_listed(&self) -> bool {
        self.is_in(List::Cluster) || self.is_in(List::Local)
    }

    /// True if the backend is in the list.
    #[must_use]
    pub(crate) const fn is_in(&self, list: List) -> bool {
        self.flags & BackendFlags::of(list) != 0
    }
}

/// The desired state of one service port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PortSpec {
    /// The service port.
    pub key: PortKey,
    /// Frontends and blocks of port ranges that the service port owns (invariant I6), sorted, without duplicates.
    pub frontends: Vec<(FrontendKey, Kind)>,
    /// Backends, sorted by address and port, without duplicates.
    pub backends: Vec<Member>,
    /// [`lb_common::ServiceFlags`].
    pub flags: u32,
    /// Source ranges of its load balancer addresses, sorted, without duplicates; non-empty exactly if the flags enforce
    /// them.
    pub ranges: Vec<IpNet>,
    /// The scheduler.
    pub scheduler: Scheduler,
    /// Affinity time-out in seconds; 0 without affinity.
    pub affinity_seconds: u32,
    /// Treatment of TCP sockets whose backend is removed.
    pub drain: Drain,
    /// Ejection of backends; TCP and UDP only.
    pub eject: Option<Eject>,
}

/// The answer at a `healthCheckNodePort`, for external load balancers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Health {
    /// The `healthCheckNodePort`.
    pub port: NonZeroU16,
    /// Ready endpoints on this node, by address; none of a family in which the Service is not served.
    pub ready: PerFamily<Option<usize>>,
}

/// The endpoints of a Service that are probed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ProbeTargets {
    /// The question to each.
    pub probe: Probe,
    /// Addresses and ports of the endpoints.
    pub targets: BTreeSet<AddrPort>,
}

/// The desired state of one Service: all its service ports. A Service that is not served has none.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServiceSpec {
    /// The Service.
    pub key: Key,
    /// Service ports, sorted by key.
    pub ports: Vec<PortSpec>,
    /// The answer at its `healthCheckNodePort`, if it has one.
    pub health: Option<Health>,
    /// The endpoints to probe, if there are any.
    pub probes: Option<ProbeTargets>,
    /// Endpoints on this node that take the clients of its cluster IPs, closed ones included.
    pub redirect_targets: BTreeSet<AddrPort>,
    /// Load balancer addresses that the Service owns, with the nodes that may attract traffic for each: all nodes, but
    /// with externalTrafficPolicy Local those with a ready endpoint. Sorted, each once.
    pub attracted: Vec<(IpAddr, Candidates)>,
    /// Warnings for its owner, each once.
    pub warnings: Vec<Warning>,
}

impl ServiceSpec {
    /// Returns the spec of a deleted Service.
    #[must_use]
    pub const fn gone(key: Key) -> Self {
        Self {
            key,
            ports: Vec::new(),
            health: None,
            probes: None,
            redirect_targets: BTreeSet::new(),
            attracted: Vec::new(),
            warnings: Vec::new(),
        }
    }
}
