//! What a Kubernetes Service means: pure functions from the objects of one Service to its [`crate::spec::ServiceSpec`].
//! What is decided about a frontend or an endpoint is data ([`evaluate`]), of which the spec, the warnings and `explain` are
//! made.
//!
//! The reference is kube-proxy; where its source decided something, the file is named.

mod about;
pub mod claims;
mod compile;
pub mod cross_namespace;
pub mod endpoints;
pub mod evaluate;
pub mod explain;
pub mod frontends;
pub mod names;
mod nodeport_addresses;
pub mod pod_modes;
pub mod ranges;
pub mod reason;
pub mod topology;
mod warnings;
pub mod weights;

pub use about::about;
pub use compile::compile;
pub use cross_namespace::CrossNamespace;
pub use frontends::ExternalIps;
pub use nodeport_addresses::NodePortAddresses;

use std::collections::BTreeSet;

use lb_common::{Addr, Scheduler};

/// What the node's flags say about the meaning of Services.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Settings {
    /// `--external-ips`
    pub external_ips: ExternalIps,
    /// `--cross-namespace-endpoints`
    pub cross_namespace: CrossNamespace,
    /// `--nodeport-addresses`
    pub nodeport_addresses: NodePortAddresses,
    /// `--scheduler`: that of Services that name none.
    pub scheduler: Scheduler,
}

/// The node that this agent serves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NodeContext<'a> {
    /// Its name.
    pub node: &'a str,
    /// Its zone, if the Node has the label.
    pub zone: Option<&'a str>,
    /// Its addresses at which NodePorts answer, as far as they are known.
    pub node_ports: &'a BTreeSet<Addr>,
}

#[cfg(test)]
mod tests;
