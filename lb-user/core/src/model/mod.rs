//! The meaning of a Kubernetes Service: pure functions from the objects of one Service to its
//! [`crate::spec::ServiceSpec`]. Decisions about frontends and endpoints are data (`evaluation`), from which the
//! spec, the warnings and `explain` are made.
//!
//! The reference is kube-proxy; where its source decides a question, the comment names the file.

mod claimant;
pub mod claims;
pub mod cluster_ranges;
mod compile;
pub mod cross_namespace;
mod endpoints;
mod evaluate;
pub(crate) mod evaluation;
pub mod explain;
pub mod fan_out;
pub mod frontends;
mod names;
mod nodeport_addresses;
pub mod pod_modes;
mod port_ranges;
pub mod probes;
pub(crate) mod range_claims;
mod ranges;
pub mod reason;
pub mod redirects;
pub mod slow_start;
pub mod tiers;
mod topology;
mod warnings;
mod weights;

pub use cluster_ranges::ServiceCidrs;
pub use compile::compile;
pub use cross_namespace::CrossNamespace;
pub use frontends::ExternalIps;
pub use nodeport_addresses::NodePortAddresses;
pub use redirects::RedirectNamespaces;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use lb_common::{Addr, NodeAddr, NodeAddrFlags, Scheduler};

use claims::Claims;
use cross_namespace::CrossNamespaceIndex;
use redirects::RedirectIndex;
use slow_start::SlowStarts;

use crate::{shadow::Shadow, world::World};

/// Flags of the agent that change the meaning of Services.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Settings {
    /// `--external-ips`
    pub external_ips: ExternalIps,
    /// `--cross-namespace-endpoints`
    pub cross_namespace: CrossNamespace,
    /// `--redirect-namespaces`
    pub redirect_namespaces: RedirectNamespaces,
    /// `--nodeport-addresses`
    pub nodeport_addresses: NodePortAddresses,
    /// `--service-cidrs`
    pub service_cidrs: ServiceCidrs,
    /// `--scheduler`, for Services that name none.
    pub scheduler: Scheduler,
    /// `--host-ports`: hostPorts of this node's pods are served.
    pub host_ports: bool,
}

impl Settings {
    /// Returns the content of `NODE_ADDRS`: the addresses of NodePorts among `own`, the addresses of the node's
    /// interfaces; all of them where hostPorts are served. `primary` are the InternalIPs of the Node object.
    #[must_use]
    pub fn node_addrs(&self, own: &BTreeSet<IpAddr>, primary: &[IpAddr]) -> BTreeMap<Addr, NodeAddr> {
        let node_ports = self.nodeport_addresses.choose(own, primary);
        let entry = |addr: Addr| {
            let host_only = if addr.to_ip().is_loopback() { NodeAddrFlags::HOST_ONLY } else { 0 };
            let left_out = if node_ports.contains(&addr) { 0 } else { NodeAddrFlags::NO_NODE_PORTS };
            (addr, NodeAddr { flags: host_only | left_out })
        };
        let own = own.iter().map(|&ip| Addr::from(ip)).filter(|addr| self.host_ports || node_ports.contains(addr));
        own.map(entry).collect()
    }
}

/// The node of this agent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NodeContext<'a> {
    /// Name of the Node.
    pub name: &'a str,
    /// The Node's label `topology.kubernetes.io/zone`.
    pub zone: Option<&'a str>,
    /// Addresses of the node at which NodePorts answer, as far as they are known.
    pub node_ports: &'a BTreeSet<Addr>,
    /// The addresses of all its interfaces, as far as they are known.
    pub own: &'a BTreeSet<Addr>,
}

/// The facts about other Services on which the decisions about one depend.
#[derive(Clone, Copy)]
pub struct ClusterContext<'a> {
    /// Owners of frontends.
    pub claims: &'a Claims,
    /// Addresses of pods of other namespaces.
    pub cross_namespace: &'a CrossNamespaceIndex,
    /// Services that take the clients of others.
    pub redirects: &'a RedirectIndex,
    /// The maps before this decision; none if they are unknown.
    pub maps: Option<&'a Shadow>,
    /// Endpoints whose weight rises.
    pub slow_starts: &'a SlowStarts,
    /// The objects.
    pub world: &'a World,
}

#[cfg(test)]
mod tests;
