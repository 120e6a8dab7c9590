//! What the maps shall say about one Service.

use std::{fmt, num::NonZeroU16, sync::Arc};

use ipnet::IpNet;
use lb_common::{AddrPort, BackendFlags, Family, FrontendKey, Kind, List, Proto, Scheduler};

use crate::{
    objects::{Drain, Key},
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
    /// Its protocol.
    pub proto: Proto,
    /// Its family.
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

/// A backend that a service port shall have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Member {
    /// Address and port.
    pub target: AddrPort,
    /// [`lb_common::BackendFlags`]. With neither CLUSTER nor LOCAL it is given to no socket, and kept only if it is there
    /// already, for the sockets that have it.
    pub flags: u16,
    /// How many slots it has in each of its lists; at least 1. More than 1 only with a scheduler that weighs.
    pub weight: u16,
}

impl Member {
    /// Whether it stands in a list.
    #[must_use]
    pub const fn is_in(&self, list: List) -> bool {
        self.flags & BackendFlags::of(list) != 0
    }
}

/// The wanted state of one service port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PortSpec {
    /// Which service port.
    pub key: PortKey,
    /// What clients dial, sorted, each once; only those that this service port owns (invariant I6).
    pub frontends: Vec<(FrontendKey, Kind)>,
    /// The backends, sorted by target, each once.
    pub backends: Vec<Member>,
    /// [`lb_common::ServiceFlags`].
    pub flags: u32,
    /// Who may come to its load balancer addresses, sorted, each once; some exactly where the flags say so.
    pub ranges: Vec<IpNet>,
    /// How backends are chosen.
    pub scheduler: Scheduler,
    /// Seconds for which a client keeps its backend; 0 without affinity.
    pub affinity_seconds: u32,
    /// What becomes of TCP sockets whose backend has gone.
    pub drain: Drain,
}

/// What a load balancer outside hears that asks whether to send a Service's clients to this node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Health {
    /// Where it asks.
    pub port: NonZeroU16,
    /// Ready endpoints on this node, by address; none of a family in which the Service is not served.
    pub ready: PerFamily<Option<usize>>,
}

/// The wanted state of one Service: all its service ports. A Service that is not served has none.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServiceSpec {
    /// The Service.
    pub key: Key,
    /// Its service ports, sorted by key.
    pub ports: Vec<PortSpec>,
    /// What is told of it at its `healthCheckNodePort`, if it has one.
    pub health: Option<Health>,
    /// Warnings for its owner, each once.
    pub warnings: Vec<Warning>,
}

impl ServiceSpec {
    /// A Service that is not there.
    #[must_use]
    pub const fn gone(key: Key) -> Self {
        Self { key, ports: Vec::new(), health: None, warnings: Vec::new() }
    }
}
