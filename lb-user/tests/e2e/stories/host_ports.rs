//! hostPorts of pods that kubelet starts, without the CNI plugin portmap where the network has none.

use super::{Story, nodes::ask_on};

use crate::{
    addresses::{self, at},
    cluster::Cluster,
    install,
    pods::{IMAGE, ask, ask_from_outside, client},
    process::until,
};

pub const STORIES: &[Story] = &[(
    "host_ports_of_pods_answer_by_address_and_protocol_and_end_with_the_pod",
    host_ports_of_pods_answer_by_address_and_protocol_and_end_with_the_pod,
)];

/// The port of Kubernetes' own test of hostPorts.
const PORT: u16 = 54323;

/// Makes a pod on node1 with a hostPort, and waits until it is ready.
fn pod(cluster: &Cluster, name: &str, host_ip: &str, protocol: &str) {
    cluster.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  nodeName: node1\n  \
         terminationGracePeriodSeconds: 1\n  containers:\n  - name: web\n    image: {IMAGE}\n    \
         args: [serve, '8080']\n    readinessProbe: {{tcpSocket: {{port: 8080}}, periodSeconds: 1}}\n    \
         resources: {{requests: {{cpu: 50m}}}}\n    \
         ports: [{{containerPort: 8080, hostPort: {PORT}, hostIP: '{host_ip}', protocol: {protocol}}}]\n"
    ));
    cluster.kubectl(&["wait", "--for=condition=Ready", &format!("pod/{name}"), "--timeout=120s"]);
}

/// Waits for an answer of this pod.
fn until_answered(pod: &str, target: &str, ask: impl Fn(&str) -> Result<String, String>) -> String {
    until("the pod answers at its hostPort", 30, || {
        let answer = ask(target)?;
        if answer.split(' ').next() == Some(pod) { Ok(answer) } else { Err(answer) }
    })
}

fn host_ports_of_pods_answer_by_address_and_protocol_and_end_with_the_pod(cluster: &Cluster) {
    install::install(cluster, install::HOST_PORTS);
    client(cluster, "host-client", "node1", true);
    client(cluster, "client-node1", "node1", false);
    let (node, loopback) = (addresses::node(1), addresses::loopback());
    // As Kubernetes' test does it (test/e2e/network/hostport.go): one port, by hostIP and protocol of three pods.
    pod(cluster, "host-port-1", loopback, "TCP");
    pod(cluster, "host-port-2", &node, "TCP");
    pod(cluster, "host-port-3", &node, "UDP");
    let at_loopback = format!("tcp={}", at(loopback, PORT));
    let at_node = format!("tcp={}", at(&node, PORT));
    for (pod, target) in
        [("host-port-1", &at_loopback), ("host-port-2", &at_node), ("host-port-3", &format!("udp={}", at(&node, PORT)))]
    {
        let answer = until_answered(pod, target, |target| ask(cluster, "host-client", target));
        println!("   a pod on node1's own network -> {target} -> {answer}");
        let answer = until_answered(pod, target, |target| ask_on(cluster, "node1", target));
        println!("   a process of node1 -> {target} -> {answer}");
    }
    for (pod, target) in [("host-port-2", &at_node), ("host-port-3", &format!("udp={}", at(&node, PORT)))] {
        let answer = until_answered(pod, target, ask_from_outside);
        println!("   outside -> {target} -> {answer}");
        assert_eq!(answer.split(' ').nth(1), Some(addresses::outside()), "the pod sees the client");
        for (caller, answer) in [
            ("a pod of node1", until_answered(pod, target, |target| ask(cluster, "client-node1", target))),
            ("a process of node2", until_answered(pod, target, |target| ask_on(cluster, "node2", target))),
        ] {
            println!("   {caller} -> {target} -> {answer}");
        }
    }
    let refused = ask(cluster, "client-node1", &at_loopback).expect_err("its own loopback");
    assert!(refused.contains("refused"), "{refused}");
    println!("   a pod of node1 -> its own {loopback}, port {PORT}: refused");

    cluster.kubectl(&["delete", "pod", "host-port-2", "--wait=true"]);
    let refused = until("the port is free", 10, || match ask_from_outside(&at_node) {
        Err(error) if error.contains("refused") => Ok(error),
        other => Err(format!("{other:?}")),
    });
    println!("   its pod is deleted: {}", refused.trim_end().rsplit("failed: ").next().unwrap_or_default());
    // kubelet refuses a pod without hostIP beside one with it.
    cluster.kubectl(&["delete", "pod", "host-port-1", "--wait=true"]);
    pod(cluster, "host-port-4", "", "TCP");
    let answer = until_answered("host-port-4", &at_node, ask_from_outside);
    println!("   the next pod, without hostIP: outside -> {at_node} -> {answer}");
    for target in [at_loopback, format!("tcp=[::1]:{PORT}"), at_node] {
        let answer = until_answered("host-port-4", &target, |target| ask_on(cluster, "node1", target));
        println!("   a process of node1 -> {target} -> {answer}");
    }
    let shown = install::beeline(cluster, "node1", "explain default/pod/host-port-4");
    let shown = shown.unwrap_or_else(|error| panic!("{error}"));
    println!("   $ beeline explain default/pod/host-port-4\n{}", shown.trim_end());
    let anywhere = at(addresses::first("0.0.0.0", "::"), PORT);
    // A network may give the node further addresses, such as that of docker0.
    let line = shown.lines().find_map(|line| line.trim().strip_prefix(&format!("{anywhere}/TCP")));
    let answers = line.and_then(|line| line.trim().strip_prefix("HostPort  owned, answers at ")).unwrap_or_default();
    let answers: Vec<&str> = answers.split(", ").collect();
    assert!([loopback, node.as_str()].iter().all(|address| answers.contains(address)), "{shown}");

    for name in ["host-port-3", "host-port-4"] {
        cluster.kubectl(&["delete", "pod", name, "--wait=false"]);
    }
    install::install(cluster, install::PLAIN);
}
