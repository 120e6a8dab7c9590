//! Beeline and kube-proxy: beside each other, one after the other, and one in the other's place.

use super::{Story, life::Load};
use lb_lab::{Process, kube_proxy::Mode};

use crate::{
    cluster::Cluster,
    install, kube_proxy,
    network::node_address,
    pods::assert_none_failed,
    process::{asset, try_run, until},
};

pub const STORIES: &[Story] = &[
    ("it_takes_over_from_kube_proxy_and_gives_back", it_takes_over_from_kube_proxy_and_gives_back),
    ("who_looks_for_kube_proxy_finds_it", who_looks_for_kube_proxy_finds_it),
];

fn it_takes_over_from_kube_proxy_and_gives_back(cluster: &Cluster) {
    install::remove(cluster);
    let proxies = start_kube_proxy(cluster);
    // Before the load: its connections are kube-proxy's.
    let load = Load::start(cluster, "handover", &["tcp", "udp", "long"]);
    println!("   kube-proxy (nftables) serves the load");
    install::install(cluster, install::BESIDE_KUBE_PROXY);
    for node in ["node1", "node2"] {
        let said = until("both answer alike", 60, || install::beeline(cluster, node, "handover --dry-run"));
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
    // And back.
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

/// On both nodes; its rules are there when this returns.
fn start_kube_proxy(cluster: &Cluster) -> Vec<Process> {
    let running = cluster.nodes.iter().map(|node| kube_proxy::start(cluster, node, Mode::Nftables)).collect();
    for node in &cluster.nodes {
        until("kube-proxy is well", 60, || {
            try_run(
                std::process::Command::new("curl").args(["-sf", &format!("http://{}:10256/healthz", node.address())]),
            )
        });
    }
    running
}

fn who_looks_for_kube_proxy_finds_it(cluster: &Cluster) {
    install::install(cluster, install::DROP_IN);
    let pods = cluster.kubectl(&["get", "pods", "-n", "kube-system", "-l", "k8s-app=kube-proxy", "--no-headers"]);
    println!("   $ kubectl get pods -n kube-system -l k8s-app=kube-proxy\n{}", pods.trim_end());
    assert_eq!(pods.lines().filter(|line| line.contains("Process")).count(), 2, "{pods}");
    for node in ["node1", "node2"] {
        let ask = |path: &str| {
            let url = format!("http://127.0.0.1:10249{path}");
            try_run(cluster.node(node).host_process("curl").args(["-sf", &url]))
                .unwrap_or_else(|error| panic!("{error}"))
        };
        let mode = ask("/proxyMode");
        let metrics = ask("/metrics");
        let names = ["kubeproxy_sync_proxy_rules_duration_seconds", "kubeproxy_network_programming_duration_seconds"];
        assert!(names.iter().all(|name| metrics.contains(name)), "{metrics}");
        println!("   {node}: /proxyMode says {mode}, /metrics has kube-proxy's names");
    }
    let health = format!("http://{}:10256/healthz", node_address(1));
    let said = try_run(std::process::Command::new("curl").args(["-sf", &health])).expect("it is well");
    println!("   :10256/healthz says {said}");
    assert!(said.contains("nodeEligible"), "{said}");
    install::install(cluster, install::PLAIN);
}
