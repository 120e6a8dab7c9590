//! What a Kubernetes Service means: pure functions from the objects of one Service to its [`crate::spec::ServiceSpec`].
//!
//! The reference is kube-proxy; where its source decided something, the file is named.

pub mod claims;
mod compile;
pub mod endpoints;
pub mod frontends;
mod nodeport_addresses;
pub mod topology;

pub use compile::compile;
pub use frontends::ExternalIps;
pub use nodeport_addresses::NodePortAddresses;

use lb_common::Scheduler;

/// What the node's flags say about the meaning of Services.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Settings {
    /// `--external-ips`
    pub external_ips: ExternalIps,
    /// `--nodeport-addresses`
    pub nodeport_addresses: NodePortAddresses,
    /// `--scheduler`: that of Services that name none.
    pub scheduler: Scheduler,
}

/// The node that this agent serves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Here<'a> {
    /// Its name.
    pub node: &'a str,
    /// Its zone, if the Node has the label.
    pub zone: Option<&'a str>,
}
