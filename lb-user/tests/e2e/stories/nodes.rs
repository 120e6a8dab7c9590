//! Nodes that lose power, and nodes after the removal of Beeline.

use std::time::Instant;

use super::Story;
use crate::{
    addresses::{self, at},
    cluster::Cluster,
    install,
    pods::{OutsideLoad, PodLoad, Web, ask_from_outside, assert_none_failed},
    process::{try_run, until},
};

pub const STORIES: &[Story] = &[
    ("a_node_without_pins_serves_again_after_power_on", a_node_without_pins_serves_again_after_power_on),
    ("a_node_with_pins_serves_again_after_power_on", a_node_with_pins_serves_again_after_power_on),
    (
        "services_are_served_without_the_daemonset_until_cleanup",
        services_are_served_without_the_daemonset_until_cleanup,
    ),
];

const WEB: Web<'_> =
    Web { name: "steady", replicas: 2, node: Some("node2"), service: "type: NodePort", port: "nodePort: 30091" };

/// The NodePort of the Service at a node.
fn node_port(number: usize) -> String {
    format!("tcp={}", at(&addresses::node(number), 30091))
}

fn a_node_without_pins_serves_again_after_power_on(cluster: &Cluster) {
    restart(cluster, false);
}

fn a_node_with_pins_serves_again_after_power_on(cluster: &Cluster) {
    restart(cluster, true);
}

/// Powers node1 off and on. Clients of node2 must see no failure.
fn restart(cluster: &Cluster, keeps_pins: bool) {
    WEB.make(cluster);
    let target = format!("tcp={}", WEB.vip(cluster));
    let bystander = PodLoad::start(cluster, "bystander", "node2", &[&target]);
    let name = if keeps_pins { "bystander-with-pins" } else { "bystander-without-pins" };
    let outside = OutsideLoad::start(cluster, name, &[&node_port(2)]);
    let node = cluster.node("node1");
    node.power_off();
    if keeps_pins {
        // The pinned programs still translate for processes in the node's cgroup.
        let answer = ask_on(cluster, "node1", &target).expect("an answer");
        println!("   nothing runs on node1, and a process there gets {answer}");
    } else {
        node.lose_pins();
        // The kernel detaches unpinned programs after a moment.
        let refused = until("nothing translates", 20, || match ask_on(cluster, "node1", &target) {
            Err(error) => Ok(error),
            Ok(answer) => Err(answer),
        });
        println!("   node1 has lost its pins: {}", refused.trim_end().rsplit("failed: ").next().unwrap_or_default());
    }
    let start = Instant::now();
    node.power_on();
    let answer = until("node1 serves Services", 180, || ask_on(cluster, "node1", &target));
    println!("   {:.1} s after power came back a process of node1 gets {answer}", start.elapsed().as_secs_f64());
    cluster.until_nodes_are_ready();
    cluster.until_rolled_out("daemonset/beeline", "kube-system");
    until("the agent on node1 answers", 60, || install::beeline(cluster, "node1", "get services"));
    until("node1 answers outside", 60, || ask_from_outside(&node_port(1)));
    println!("   after {:.1} s its agent runs and its NodePorts answer", start.elapsed().as_secs_f64());
    assert_none_failed(&bystander.counts().into_iter().chain(outside.counts()).collect::<Vec<_>>());
}

fn services_are_served_without_the_daemonset_until_cleanup(cluster: &Cluster) {
    WEB.make(cluster);
    let target = format!("tcp={}", WEB.vip(cluster));
    let node_port = node_port(1);
    install::delete(cluster);
    let answer = ask_on(cluster, "node1", &target).expect("an answer");
    println!("   the DaemonSet is deleted, and a process of node1 gets {answer}");
    let answer = ask_from_outside(&node_port).expect("an answer");
    println!("   and the outside gets {answer}");
    for node in ["node1", "node2"] {
        let output = install::beeline_on_host(cluster, node, "cleanup").expect("cleanup ends well");
        println!("   $ beeline cleanup   # on {node}\n{}", output.trim_end());
        let left = try_run(cluster.node(node).inside("ls").arg("/sys/fs/bpf")).expect("ls");
        assert!(!left.contains("beeline"), "left in the bpffs of {node}: {left}");
        assert!(ask_on(cluster, node, &target).is_err(), "{node} still translates");
    }
    assert!(ask_from_outside(&node_port).is_err(), "node1 still answers outside");
    install::install(cluster, install::PLAIN);
    until("node1 serves again", 60, || ask_on(cluster, "node1", &target));
    until("node1 answers outside", 60, || ask_from_outside(&node_port));
    println!("   installed again, Beeline serves again");
}

/// Sends one query from a process of a node, and returns the answer.
pub fn ask_on(cluster: &Cluster, node: &str, target: &str) -> Result<String, String> {
    let own = std::env::current_exe().expect("this program");
    try_run(cluster.node(node).host_process(own).args(["ask", target])).map(|answer| answer.trim_end().to_owned())
}
