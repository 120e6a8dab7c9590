//! Connections to Services from pods, from the host and from outside.

use std::collections::BTreeSet;

use super::Story;
use lb_lab::ChildProcess;

use crate::{
    addresses::{self, at},
    cluster::Cluster,
    cni::Cni,
    network::{NODES, route_outside},
    pods::{Web, ask, ask_from_outside, client},
    process::{until, within},
};

pub const STORIES: &[Story] = &[
    ("cluster_ips_lead_to_every_backend", cluster_ips_lead_to_every_backend),
    ("dns_answers_through_its_vip", dns_answers_through_its_vip),
    ("host_network_pods_and_host_processes_are_served", host_network_pods_and_host_processes_are_served),
    ("node_ports_and_load_balancers_answer_clients_outside", node_ports_and_load_balancers_answer_clients_outside),
    ("a_service_without_selector_leads_to_a_server_outside", a_service_without_selector_leads_to_a_server_outside),
    (
        "connections_to_a_service_without_endpoints_are_refused_at_once",
        connections_to_a_service_without_endpoints_are_refused_at_once,
    ),
    ("pods_reach_the_world_from_ports_that_are_node_ports", pods_reach_the_world_from_ports_that_are_node_ports),
];

/// Splits an answer: the name of the server, and the client's address as the server saw it.
pub(super) fn parts(answer: &str) -> (&str, &str) {
    let mut words = answer.split_whitespace();
    (words.next().unwrap_or_default(), words.next().unwrap_or_default())
}

fn cluster_ips_lead_to_every_backend(cluster: &Cluster) {
    let web = Web { name: "web", replicas: 4, node: None, service: "", port: "" };
    web.make(cluster);
    for node in ["node1", "node2"] {
        client(cluster, &format!("client-{node}"), node, false);
        for vip in web.vips(cluster) {
            for kind in ["tcp", "udp"] {
                let target = format!("{kind}={}", at(&vip, 80));
                let mut seen = BTreeSet::new();
                until("every backend has answered", 120, || {
                    let answer = ask(cluster, &format!("client-{node}"), &target)?;
                    seen.insert(parts(&answer).0.to_owned());
                    if seen.len() == 4 { Ok(()) } else { Err(format!("only {seen:?}")) }
                });
                println!("   a pod on {node} -> {target}: all of {}", seen.len());
            }
        }
    }
}

fn dns_answers_through_its_vip(cluster: &Cluster) {
    for node in ["node1", "node2"] {
        client(cluster, &format!("client-{node}"), node, false);
        let answer =
            ask(cluster, &format!("client-{node}"), "tcp=web.default.svc.cluster.local:80").expect("an answer");
        println!("   a pod on {node} -> web.default.svc.cluster.local, by {} -> {answer}", at(addresses::dns(), 53));
        assert!(answer.starts_with("web-"), "{answer}");
    }
}

fn host_network_pods_and_host_processes_are_served(cluster: &Cluster) {
    let web = Web { name: "web", replicas: 4, node: None, service: "", port: "" };
    web.make(cluster);
    client(cluster, "host-client", "node1", true);
    let target = "tcp=web.default.svc.cluster.local:80";
    let answer = ask(cluster, "host-client", target).expect("an answer");
    println!("   a pod on node1's own network -> {target} -> {answer}");
    assert!(answer.starts_with("web-"), "{answer}");
    let own = std::env::current_exe().expect("this program");
    let vip = web.vip(cluster);
    let mut process = cluster.node("node2").host_process(own);
    let answer = crate::process::try_run(process.args(["ask", &format!("tcp={vip}")])).expect("an answer");
    println!("   a process of node2 -> {vip} -> {}", answer.trim_end());
    assert!(answer.starts_with("web-"), "{answer}");
}

fn node_ports_and_load_balancers_answer_clients_outside(cluster: &Cluster) {
    let (one, two) = (addresses::node(1), addresses::node(2));
    let (open_ip, local_ip) =
        (addresses::first("172.31.0.10", "fd31::10"), addresses::first("172.31.0.11", "fd31::11"));
    let web =
        Web { name: "open", replicas: 2, node: Some("node1"), service: "type: LoadBalancer", port: "nodePort: 30080" };
    web.make(cluster);
    set_ingress(cluster, "open", open_ip);
    route_outside(open_ip, 2);
    // Every node answers, wherever the backends are.
    for target in [at(&one, 30080), at(&two, 30080), at(open_ip, 80)] {
        for kind in ["tcp", "udp"] {
            let answer = answered_outside(&format!("{kind}={target}"), |answer| answer.starts_with("open-"));
            println!("   outside -> {kind} {target} -> {answer}");
        }
    }
    // Policy Local: the node with the backend keeps the client's address; the other node drops.
    let local = Web {
        name: "local",
        replicas: 2,
        node: Some("node1"),
        service: "type: LoadBalancer\n  externalTrafficPolicy: Local\n  healthCheckNodePort: 30999",
        port: "nodePort: 30081",
    };
    local.make(cluster);
    set_ingress(cluster, "local", local_ip);
    route_outside(local_ip, 1);
    let at_local = at(local_ip, 80);
    for target in [format!("tcp={}", at(&one, 30081)), format!("udp={at_local}"), format!("tcp={at_local}")] {
        let answer = answered_outside(&target, |answer| parts(answer).1 == addresses::outside());
        println!("   outside -> {target} -> {answer}");
    }
    let refused = ask_from_outside(&format!("tcp={}", at(&two, 30081))).expect_err("node2 has no backend of it");
    assert!(refused.contains("timed out"), "{refused}");
    println!("   outside -> tcp {two}:30081, which has no backend of a Local Service: nothing answers");
    for (node, address, code) in [(1, &one, "200"), (2, &two, "503")] {
        let probe =
            ["-s", "-o", "/dev/null", "-w", "%{http_code}", "-m", "5", &format!("http://{}/", at(address, 30999))];
        let output =
            until("the health check answers", 20, || crate::process::try_run(within("outside", "curl").args(probe)));
        println!("   outside -> healthCheckNodePort of node{node}: {output}");
        assert_eq!(output, code);
    }
    web.remove(cluster);
    local.remove(cluster);
}

fn a_service_without_selector_leads_to_a_server_outside(cluster: &Cluster) {
    let own = std::env::current_exe().expect("this program");
    let log = cluster.directory.join("log/outside-server.log");
    let server = ChildProcess::start_appending(within("outside", own).args(["serve", "9376"]), &log);
    cluster.apply(&format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: my-service}}\n\
         spec: {{type: NodePort, ports: [{{port: 80, targetPort: 9376, nodePort: 30083}}]}}\n---\n\
         apiVersion: v1\nkind: Endpoints\nmetadata: {{name: my-service}}\nsubsets:\n\
         - addresses: [{{ip: '{}'}}]\n  ports: [{{port: 9376}}]\n",
        addresses::outside()
    ));
    client(cluster, "client-node1", "node1", false);
    let target = "tcp=my-service.default.svc.cluster.local:80";
    let answer = until("the Service answers", 30, || ask(cluster, "client-node1", target));
    println!("   a pod on node1 -> {target} -> the server outside says {answer}");
    let comes_from = parts(&answer).1;
    if Cni::chosen().masquerades() {
        assert_eq!(comes_from, addresses::node(1));
    } else {
        assert!(addresses::is_of_pod_on(1, comes_from), "{answer}");
    }
    // By way of a node, whose rules need not accept what it forwards.
    for number in NODES {
        let target = format!("tcp={}", at(&addresses::node(number), 30083));
        let answer = answered_outside(&target, |answer| parts(answer).1 == addresses::node(number));
        println!("   outside -> {target} -> {answer}");
    }
    cluster.kubectl(&["delete", "service,endpoints", "my-service", "--ignore-not-found"]);
    drop(server);
}

fn connections_to_a_service_without_endpoints_are_refused_at_once(cluster: &Cluster) {
    let web = Web { name: "empty", replicas: 0, node: None, service: "type: NodePort", port: "nodePort: 30082" };
    web.make(cluster);
    client(cluster, "client-node1", "node1", false);
    let vip = web.vip(cluster);
    let refused = until("a pod is refused", 20, || match ask(cluster, "client-node1", &format!("tcp={vip}")) {
        Err(error) if error.contains("refused") => Ok(error),
        other => Err(format!("{other:?}")),
    });
    println!("   a pod -> {vip}: {}", last_line(&refused));
    let target = format!("tcp={}", at(&addresses::node(1), 30082));
    let refused = until("the outside is refused", 20, || match ask_from_outside(&target) {
        Err(error) if error.contains("refused") => Ok(error),
        other => Err(format!("{other:?}")),
    });
    println!("   outside -> {target}: {}", last_line(&refused));
    web.remove(cluster);
}

/// With 500 NodePorts of each protocol, and ports of clients and of a CNI's masquerade drawn from 1024 to 65535, one in
/// 130 connections of pods has a Service's port on the node.
fn pods_reach_the_world_from_ports_that_are_node_ports(cluster: &Cluster) {
    let own = std::env::current_exe().expect("this program");
    let log = cluster.directory.join("log/world-server.log");
    let world = at(addresses::world(), 9379);
    let server = ChildProcess::start_appending(within("outside", own).args(["serve", &world]), &log);
    Web { name: "web", replicas: 4, node: None, service: "", port: "" }.make(cluster);
    let names: Vec<String> = (0..10).map(|number| format!("ports-{number}")).collect();
    for (number, name) in names.iter().enumerate() {
        let ports = (0..50).map(|port| 31_000 + number * 100 + port * 2).fold(String::new(), |ports, port| {
            let udp = port + 1;
            ports
                + &format!(
                    "  - {{name: t{port}, port: {port}, targetPort: 8080, nodePort: {port}, protocol: TCP}}\n  \
                 - {{name: u{udp}, port: {udp}, targetPort: 8080, nodePort: {udp}, protocol: UDP}}\n"
                )
        });
        cluster.apply(&format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\n\
             spec:\n  type: NodePort\n  selector: {{app: web}}\n  ports:\n{ports}"
        ));
    }
    for node in NODES {
        let target = format!("udp={}", at(&addresses::node(node), 31999));
        answered_outside(&target, |answer| answer.starts_with("web-"));
        let client_name = format!("client-node{node}");
        client(cluster, &client_name, &format!("node{node}"), false);
        for kind in ["tcp", "udp"] {
            let target = format!("{kind}={world}");
            let times = ["exec", &client_name, "--", "/e2e", "ask-often", &target, "4000"];
            let counts = cluster.try_kubectl(&times).unwrap_or_else(|error| panic!("{error}"));
            println!("   a pod on node{node} -> {target}, with 1,000 NodePorts: {}", counts.trim_end());
        }
    }
    for name in names {
        cluster.kubectl(&["delete", "service", &name, "--wait=false"]);
    }
    drop(server);
}

fn last_line(text: &str) -> &str {
    text.lines().find(|line| line.contains("refused")).unwrap_or_default().rsplit("failed: ").next().unwrap_or_default()
}

/// Sets the address of the load balancer, in place of a cloud's controller.
pub(super) fn set_ingress(cluster: &Cluster, service: &str, address: &str) {
    let status = format!(r#"{{"status":{{"loadBalancer":{{"ingress":[{{"ip":"{address}"}}]}}}}}}"#);
    cluster.kubectl(&["patch", "service", service, "--subresource=status", "--type=merge", "--patch", &status]);
}

pub(super) fn answered_outside(target: &str, is_right: impl Fn(&str) -> bool) -> String {
    until("the outside is answered", 30, || {
        let answer = ask_from_outside(target)?;
        if is_right(&answer) { Ok(answer) } else { Err(answer) }
    })
}
