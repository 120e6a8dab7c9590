//! Beeline and kube-proxy: beside each other, hand-over and back, and Beeline with kube-proxy's label.

use super::{Story, life::ServiceLoad};
use lb_lab::{ChildProcess, kube_proxy::Mode};

use crate::{
    addresses::{self, at},
    cluster::Cluster,
    install, kube_proxy,
    pods::assert_none_failed,
    process::{asset, try_run, until},
};

pub const STORIES: &[Story] = &[
    (
        "a_hand_over_from_kube_proxy_and_back_fails_no_connection",
        a_hand_over_from_kube_proxy_and_back_fails_no_connection,
    ),
    ("the_drop_in_has_kube_proxys_label_and_endpoints", the_drop_in_has_kube_proxys_label_and_endpoints),
];

fn a_hand_over_from_kube_proxy_and_back_fails_no_connection(cluster: &Cluster) {
    install::remove(cluster);
    let proxies = start_kube_proxy(cluster);
    // kube-proxy translates the connections of this load.
    let load = ServiceLoad::start(cluster, "handover", &["tcp", "udp", "long"]);
    println!("   kube-proxy (nftables) serves the load");
    install::install(cluster, install::BESIDE_KUBE_PROXY);
    for node in ["node1", "node2"] {
        let said = until("rules and maps agree", 60, || install::beeline(cluster, node, "handover --dry-run"));
        println!("   $ beeline handover --dry-run   # on {node}\n{}", said.trim_end());
        let refused = install::beeline(cluster, node, "handover").expect_err("kube-proxy still runs");
        assert!(refused.contains("kube-proxy"), "{refused}");
    }
    drop(proxies);
    for node in ["node1", "node2"] {
        let said = install::beeline(cluster, node, "handover").unwrap_or_else(|error| panic!("{error}"));
        println!("   $ beeline handover   # on {node}, once kube-proxy has ended\n{}", said.trim_end());
    }
    println!("   the load, from kube-proxy to Beeline:");
    assert_none_failed(&load.counts());
    // Back to kube-proxy.
    let proxies = start_kube_proxy(cluster);
    install::remove(cluster);
    println!("   and back again:");
    assert_none_failed(&load.counts());
    drop(load);
    drop(proxies);
    for node in &cluster.nodes {
        let mut command = node.host_process(asset("kube-proxy"));
        let _said = try_run(command.arg("--cleanup"));
    }
    install::install(cluster, install::PLAIN);
}

/// Starts kube-proxy on both nodes, and waits until its rules are written.
fn start_kube_proxy(cluster: &Cluster) -> Vec<ChildProcess> {
    let running = cluster.nodes.iter().map(|node| kube_proxy::start(cluster, node, Mode::Nftables)).collect();
    for node in &cluster.nodes {
        until("kube-proxy is healthy", 60, || {
            try_run(
                std::process::Command::new("curl")
                    .args(["-sf", &format!("http://{}/healthz", at(&node.address(), 10256))]),
            )
        });
    }
    running
}

fn the_drop_in_has_kube_proxys_label_and_endpoints(cluster: &Cluster) {
    install::install(cluster, install::DROP_IN);
    let pods = cluster.kubectl(&["get", "pods", "-n", "kube-system", "-l", "k8s-app=kube-proxy", "--no-headers"]);
    println!("   $ kubectl get pods -n kube-system -l k8s-app=kube-proxy\n{}", pods.trim_end());
    assert_eq!(pods.lines().filter(|line| line.contains("Running")).count(), 2, "{pods}");
    for node in ["node1", "node2"] {
        let ask = |path: &str| {
            let url = format!("http://{}{path}", at(addresses::loopback(), 10249));
            try_run(cluster.node(node).host_process("curl").args(["-sf", &url]))
                .unwrap_or_else(|error| panic!("{error}"))
        };
        let mode = ask("/proxyMode");
        let metrics = ask("/metrics");
        let names = ["kubeproxy_sync_proxy_rules_duration_seconds", "kubeproxy_network_programming_duration_seconds"];
        assert!(names.iter().all(|name| metrics.contains(name)), "{metrics}");
        println!("   {node}: /proxyMode says {mode}, /metrics has kube-proxy's names");
    }
    let health = format!("http://{}/healthz", at(&addresses::node(1), 10256));
    let said = try_run(std::process::Command::new("curl").args(["-sf", &health])).expect("a healthy agent");
    println!("   :10256/healthz says {said}");
    assert!(said.contains("nodeEligible"), "{said}");
    install::install(cluster, install::PLAIN);
}
