//! Calls as SIP makes them: signalling at two ports of two protocols, media at a range of ports, all at one endpoint.

use std::collections::BTreeMap;

use super::{
    Story,
    nodes::ask_on,
    services::{answered_outside, parts, set_ingress},
};
use crate::{
    addresses::{self, at},
    cluster::Cluster,
    network::route_outside,
    pods::{IMAGE, ask, ask_from_outside, client},
    process::until,
};

pub const STORIES: &[Story] = &[(
    "signalling_and_media_of_a_call_meet_one_endpoint_and_move_together",
    signalling_and_media_of_a_call_meet_one_endpoint_and_move_together,
)];

/// The ports of a call, as in `udp` and 5060: its signalling, and the ends and the middle of the range of its media.
const PORTS: [(&str, u16); 5] = [("udp", 5060), ("tcp", 5061), ("udp", 16384), ("udp", 16391), ("udp", 16399)];
const NODES: [&str; 2] = ["node1", "node2"];

fn make(cluster: &Cluster) {
    let ports: String = [5060, 5061].into_iter().chain(16384..16400).map(|port| format!(", '{port}'")).collect();
    cluster.apply(&format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: sip}}\nspec:\n  replicas: 3\n  \
         selector: {{matchLabels: {{app: sip}}}}\n  \
         template:\n    metadata: {{labels: {{app: sip}}}}\n    spec:\n      \
         terminationGracePeriodSeconds: 1\n      containers:\n      - name: sip\n        image: {IMAGE}\n        \
         args: [serve{ports}]\n        readinessProbe: {{tcpSocket: {{port: 5061}}, periodSeconds: 1}}\n        \
         resources: {{requests: {{cpu: 50m}}}}\n---\n\
         apiVersion: v1\nkind: Service\nmetadata:\n  name: sip\n  \
         annotations: {{beeline.io/ports: 16384-16399/udp}}\nspec:\n  type: LoadBalancer\n  selector: {{app: sip}}\n  \
         sessionAffinity: ClientIP\n  ipFamilyPolicy: PreferDualStack\n  ports:\n  \
         - {{name: sip, port: 5060, protocol: UDP}}\n  - {{name: sip-tls, port: 5061, protocol: TCP}}\n"
    ));
    cluster.until_rolled_out("deployment/sip", "default");
}

/// The endpoints that answered a client at the ports of a call.
fn call(address: &str, ask: impl Fn(&str) -> Result<String, String>) -> Vec<String> {
    let endpoint = |(kind, port): (&str, u16)| {
        let target = format!("{kind}={}", at(address, port));
        let answer = until("the port answers", 60, || ask(&target));
        parts(&answer).0.to_owned()
    };
    PORTS.map(endpoint).to_vec()
}

/// The endpoints that answered each client: pods and processes of the nodes, at each cluster IP, and outside.
fn calls(cluster: &Cluster, vips: &[String], ingress: &str) -> BTreeMap<String, Vec<String>> {
    let mut all = BTreeMap::new();
    for (node, vip) in NODES.into_iter().flat_map(|node| vips.iter().map(move |vip| (node, vip))) {
        for number in 1..=2 {
            let pod = format!("caller-{node}-{number}");
            all.insert(format!("{pod} by {vip}"), call(vip, |target| ask(cluster, &pod, target)));
        }
        all.insert(format!("a process of {node} by {vip}"), call(vip, |target| ask_on(cluster, node, target)));
    }
    all.insert("outside".to_owned(), call(ingress, ask_from_outside));
    all
}

/// Prints the endpoint of each call, and asserts that each has one.
#[track_caller]
fn assert_of_one(what: &str, calls: &BTreeMap<String, Vec<String>>) {
    for (caller, endpoints) in calls {
        println!("   {what}: {caller} -> {}", endpoints[0]);
        assert!(endpoints.iter().all(|endpoint| *endpoint == endpoints[0]), "{what}: {caller}: {endpoints:?}");
    }
}

fn restart_agents(cluster: &Cluster) {
    cluster.kubectl(&["rollout", "restart", "daemonset/beeline", "--namespace=kube-system"]);
    cluster.until_rolled_out("daemonset/beeline", "kube-system");
}

fn signalling_and_media_of_a_call_meet_one_endpoint_and_move_together(cluster: &Cluster) {
    make(cluster);
    let ingress = addresses::first("172.31.0.12", "fd31::12");
    set_ingress(cluster, "sip", ingress);
    route_outside(ingress, 2);
    let service = cluster.get("service sip");
    let vips = service["spec"]["clusterIPs"].as_array().expect("cluster IPs");
    let vips: Vec<String> = vips.iter().filter_map(|vip| vip.as_str().map(str::to_owned)).collect();
    for node in NODES {
        (1..=2).for_each(|number| client(cluster, &format!("caller-{node}-{number}"), node, false));
    }
    answered_outside(&format!("udp={}", at(ingress, 16384)), |answer| answer.starts_with("sip-"));
    // Of 7 calls or more to 3 endpoints, each with 4 more ports, all meet one endpoint once in 10^13 times.
    let apart = calls(cluster, &vips, ingress);
    let is_apart = |endpoints: &&Vec<String>| endpoints.iter().any(|endpoint| *endpoint != endpoints[0]);
    println!(
        "   affinity for each port: {} of {} calls are apart",
        apart.values().filter(is_apart).count(),
        apart.len()
    );
    assert!(apart.values().any(|endpoints| is_apart(&endpoints)), "{apart:?}");

    cluster.kubectl(&["annotate", "service/sip", "beeline.io/affinity-scope=service"]);
    // Agents that start have read it.
    restart_agents(cluster);
    let before = calls(cluster, &vips, ingress);
    assert_of_one("affinity for the Service", &before);

    restart_agents(cluster);
    assert_eq!(calls(cluster, &vips, ingress), before, "calls go on over a restart of the agents");

    let gone = before[&format!("caller-node1-1 by {}", vips[0])][0].clone();
    cluster.kubectl(&["delete", "pod", &gone, "--wait=true"]);
    cluster.until_rolled_out("deployment/sip", "default");
    let after = calls(cluster, &vips, ingress);
    assert_of_one(&format!("without {gone}"), &after);
    for (caller, endpoints) in &after {
        let stays = before[caller][0] != gone;
        assert!(endpoints[0] != gone && (!stays || *endpoints == before[caller]), "{caller}: {endpoints:?}");
    }
    for node in NODES {
        for number in 1..=2 {
            cluster.kubectl(&["delete", "pod", &format!("caller-{node}-{number}"), "--wait=false"]);
        }
    }
    cluster.kubectl(&["delete", "deployment,service", "sip", "--wait=false"]);
}
