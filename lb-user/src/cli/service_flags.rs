//! The flags that decide what a Service means, for the agent and for a dry run alike.

use clap::Args;

use lb_common::Scheduler;

use lb_core::model::{CrossNamespace, ExternalIps, NodePortAddresses, Settings};

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
    external_ips: ExternalIps,

    /// Whether an endpoint that is written by hand and is a pod of another namespace counts: allow or refuse.
    #[arg(long, value_name = "allow|refuse", default_value = "allow")]
    cross_namespace_endpoints: CrossNamespace,

    /// At which of the node's addresses NodePorts answer: all, primary (the Node's InternalIPs), localhost, CIDRs, or a
    /// list of these.
    #[arg(long, value_name = "all|primary|localhost|CIDR,…", default_value = "all")]
    nodeport_addresses: NodePortAddresses,

    /// How backends are chosen where a Service does not say: random, rr, wrr, lc, wlc, sed, nq, sh, dh or mh, which is
    /// maglev.
    #[arg(long, visible_alias = "algorithm", alias = "ipvs-scheduler", value_name = "NAME", default_value = "random", value_parser = scheduler)]
    scheduler: Scheduler,
}

/// kube-proxy falls back to rr with a name that it does not know; here that is an error of the command line.
fn scheduler(name: &str) -> Result<Scheduler, String> {
    Scheduler::from_name(name).ok_or_else(|| {
        let known: Vec<_> = Scheduler::ALL.into_iter().map(Scheduler::name).collect();
        format!("unknown scheduler: want one of {}", known.join(", "))
    })
}

impl Meaning {
    /// What the flags say about the meaning of Services.
    pub(super) fn settings(&self) -> Settings {
        Settings {
            external_ips: self.external_ips.clone(),
            cross_namespace: self.cross_namespace_endpoints,
            nodeport_addresses: self.nodeport_addresses.clone(),
            scheduler: self.scheduler,
        }
    }

    /// The node's name, by default as kubelet chooses it.
    pub(super) fn node_name(&self) -> String {
        self.node_name.clone().unwrap_or_else(host_name)
    }
}

/// The name that kubelet gives a node of itself.
pub(super) fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().to_lowercase()
}
