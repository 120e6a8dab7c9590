//! The flags that decide what a Service means, for the agent and for a dry run alike.

use clap::Args;

use crate::model::ExternalIps;

/// What a Service means here.
#[derive(Args)]
pub(super) struct Meaning {
    /// Name of this node in the cluster [default: the host name]
    #[arg(long, value_name = "NAME", env = "NODE_NAME")]
    node_name: Option<String>,

    /// Serve the Services whose label service.kubernetes.io/service-proxy-name has this value, and no others.
    #[arg(long, value_name = "NAME")]
    pub(super) service_proxy_name: Option<String>,

    /// Which spec.externalIPs are served: any, none, or a list of CIDRs.
    #[arg(long, value_name = "any|none|CIDR,…", default_value = "any")]
    pub(super) external_ips: ExternalIps,
}

impl Meaning {
    /// The node's name, by default as kubelet chooses it.
    pub(super) fn node_name(&self) -> String {
        let host_name = || rustix::system::uname().nodename().to_string_lossy().to_lowercase();
        self.node_name.clone().unwrap_or_else(host_name)
    }
}
