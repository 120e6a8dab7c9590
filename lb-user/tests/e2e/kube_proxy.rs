//! The real kube-proxy on a node of the cluster, as a process of the host.

use std::fs;

use lb_lab::{
    ChildProcess,
    kube_proxy::{Mode, configuration},
};

use crate::{addresses, cluster::Cluster, node::E2eNode, process::asset};

/// Starts kube-proxy. Its rules outlive the process, which is killed when dropped.
pub fn start(cluster: &Cluster, node: &E2eNode, mode: Mode) -> ChildProcess {
    let config = cluster.directory.join(format!("kube-proxy-{}.yaml", node.name()));
    let text = configuration(mode, &node.name(), &addresses::pod_ranges(), &cluster.control.kubeconfig());
    fs::write(&config, text).expect("a file");
    let log = cluster.directory.join(format!("log/{}-kube-proxy.log", node.name()));
    ChildProcess::start_appending(node.host_process(asset("kube-proxy")).arg("--config").arg(config), &log)
}
