//! Flags that set the interpretation of Services, for the agent and for commands that read objects.

use clap::Args;

use lb_common::Scheduler;

use lb_core::model::{CrossNamespace, ExternalIps, NodePortAddresses, RedirectNamespaces, ServiceCidrs, Settings};

/// Flags that set the interpretation of Services.
#[derive(Args)]
pub(super) struct ServiceArgs {
    /// Name of this node in the cluster [default: the host name]
    #[arg(long, value_name = "NAME", env = "NODE_NAME")]
    node_name: Option<String>,

    /// Serve only Services whose label service.kubernetes.io/service-proxy-name has this value.
    #[arg(long, value_name = "NAME")]
    pub(super) service_proxy_name: Option<String>,

    /// Served spec.externalIPs: any, none, or a list of CIDRs.
    #[arg(long, value_name = "any|none|CIDR,…", default_value = "any")]
    external_ips: ExternalIps,

    /// Endpoints written by hand with the address of a pod in another namespace: allow or refuse.
    #[arg(long, value_name = "allow|refuse", default_value = "allow")]
    cross_namespace_endpoints: CrossNamespace,

    /// Namespaces whose Services may take the clients of Services of other namespaces by beeline.io/redirect-from:
    /// none, or a list of names.
    #[arg(long, value_name = "none|NAMESPACE,…", default_value = "none")]
    redirect_namespaces: RedirectNamespaces,

    /// Node addresses that serve NodePorts: all, primary (the Node's InternalIPs), localhost, CIDRs, or a list of
    /// these.
    #[arg(long, value_name = "all|primary|localhost|CIDR,…", default_value = "all")]
    nodeport_addresses: NodePortAddresses,

    /// Serve the hostPorts of this node's pods, in the place of the CNI plugin portmap. Watches the pods of this node.
    #[arg(long)]
    pub(super) host_ports: bool,

    /// Ranges of cluster IPs, in which calls to an address of no Service fail at once: api (the ServiceCIDR objects of
    /// the cluster), none, or a list of CIDRs.
    #[arg(long, value_name = "api|none|CIDR,…", default_value = "api")]
    service_cidrs: ServiceCidrs,

    /// Default scheduler of Services without their own: random, rr, wrr, lc, wlc, sed, nq, sh, dh, or mh (Maglev).
    #[arg(long, visible_alias = "algorithm", alias = "ipvs-scheduler", value_name = "NAME", default_value = "random",
        value_parser = scheduler)]
    scheduler: Scheduler,
}

/// Parses the name of a scheduler. An unknown name is an error; kube-proxy falls back to rr.
fn scheduler(name: &str) -> Result<Scheduler, String> {
    Scheduler::from_name(name).ok_or_else(|| {
        let known: Vec<_> = Scheduler::ALL.into_iter().map(Scheduler::name).collect();
        format!("unknown scheduler: want one of {}", known.join(", "))
    })
}

impl ServiceArgs {
    /// Returns the settings of the model.
    pub(super) fn settings(&self) -> Settings {
        Settings {
            external_ips: self.external_ips.clone(),
            cross_namespace: self.cross_namespace_endpoints,
            redirect_namespaces: self.redirect_namespaces.clone(),
            nodeport_addresses: self.nodeport_addresses.clone(),
            service_cidrs: self.service_cidrs.clone(),
            scheduler: self.scheduler,
            host_ports: self.host_ports,
        }
    }

    /// Returns the node's name; by default kubelet's choice.
    pub(super) fn node_name(&self) -> String {
        self.node_name.clone().unwrap_or_else(host_name)
    }
}

/// Returns the default name of a node in kubelet: the host name in lower case.
pub(super) fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().to_lowercase()
}
