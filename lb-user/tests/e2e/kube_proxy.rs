//! The real kube-proxy on a node of the cluster, as a process of its host.

use std::fs;

use crate::{
    cluster::Cluster,
    node::Node,
    process::{Running, asset},
};

/// Starts it in one of its modes; it runs until it is dropped, and leaves its rules.
pub fn start(cluster: &Cluster, node: &Node, mode: &str) -> Running {
    let config = cluster.directory.join(format!("kube-proxy-{}.yaml", node.name()));
    let text = format!(
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: {mode}\n\
         clientConnection: {{kubeconfig: {}}}\nhostnameOverride: {}\nclusterCIDR: 10.244.0.0/16,fd44::/48\n\
         conntrack: {{maxPerCore: 0}}\n",
        cluster.control.kubeconfig().display(),
        node.name()
    );
    fs::write(&config, text).expect("a file");
    let log = cluster.directory.join(format!("log/{}-kube-proxy.log", node.name()));
    Running::start(node.host_process(asset("kube-proxy")).arg("--config").arg(config), &log)
}
