//! The Services of the bench: for the API server, and as the files of a directory.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
};

use lb_lab::{
    api_client::{ApiClient, NAMESPACE},
    network::{LabNode, Lan},
};
use serde_json::{Value, json};

/// Port of the backends, for TCP and UDP.
pub const TARGET: u16 = 8080;
/// NodePort, for TCP and UDP, of the Service whose backend is the pod on node1.
pub const LOCAL: u16 = 30080;
/// The same for the pod on node2.
pub const REMOTE: u16 = 30081;
/// The last of this many Services has a TCP NodePort; the others are cluster IPs without traffic.
pub const NODE_PORT_EACH: u32 = 10;

/// NodePort of the Service `number`, if it has one.
pub fn node_port(number: u32) -> u16 {
    u16::try_from(30_100 + number / NODE_PORT_EACH).expect("few enough Services for the range of NodePorts")
}

/// Makes the nodes.
pub fn add_nodes(cluster: &ApiClient, lan: &Lan) {
    for (name, node) in [("node1", &lan.node1.host), ("node2", &lan.node2.host)] {
        cluster.add_node(name, &[IpAddr::from(node.v4), node.v6.into()]);
    }
}

/// Makes the Services `from..to`, the last one after all others.
pub fn add(cluster: &ApiClient, lan: &Lan, from: u32, to: u32) {
    for range in [from..to - 1, to - 1..to] {
        cluster.add_services(range.map(|number| (service(number), slice(lan, number))));
    }
}

/// Writes the Services below `to` into a directory, in place of the Services there.
pub fn write(directory: &Path, lan: &Lan, to: u32) {
    let objects = (0..to).flat_map(|number| [service(number), slice(lan, number)]);
    // JSON is YAML.
    let text: String = objects.map(|object| format!("{object}\n---\n")).collect();
    let staged = directory.with_extension("staged");
    fs::write(&staged, text).and_then(|()| fs::rename(staged, directory.join("services.yaml"))).expect("a file");
}

fn name(number: u32) -> String {
    format!("service-{number:05}")
}

fn service(number: u32) -> Value {
    let cluster_ip = Ipv4Addr::from_bits(Ipv4Addr::new(10, 96, 1, 0).to_bits() + number);
    let port = |protocol: &str, node_port: Option<u16>| {
        let mut port = json!({"name": protocol.to_lowercase(), "protocol": protocol, "port": 80, "targetPort": TARGET});
        if let Some(node_port) = node_port {
            port["nodePort"] = node_port.into();
        }
        port
    };
    let ports = match number {
        0 => vec![port("TCP", Some(LOCAL)), port("UDP", Some(LOCAL))],
        1 => vec![port("TCP", Some(REMOTE)), port("UDP", Some(REMOTE))],
        _ if is_last_of_each(number) => vec![port("TCP", Some(node_port(number)))],
        _ => vec![port("TCP", None)],
    };
    let kind = if number < 2 || is_last_of_each(number) { "NodePort" } else { "ClusterIP" };
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name(number), "namespace": NAMESPACE},
        "spec": {"type": kind, "clusterIP": cluster_ip, "selector": {"app": name(number)}, "ports": ports},
    })
}

fn slice(lan: &Lan, number: u32) -> Value {
    let pod = |node: &LabNode| node.pods.first().expect("a pod").v4;
    let endpoints = match number {
        1 => vec![("node2", pod(&lan.node2))],
        _ if number == 0 || is_last_of_each(number) => vec![("node1", pod(&lan.node1))],
        _ => (0..=number as u8 % 3).map(|at| ("node2", Ipv4Addr::new(10, 244, 2, 200 + at))).collect(),
    };
    let endpoints: Vec<Value> = endpoints
        .into_iter()
        .map(|(node, address)| json!({"addresses": [address], "conditions": {"ready": true}, "nodeName": node}))
        .collect();
    let ports: &[&str] = if number < 2 { &["TCP", "UDP"] } else { &["TCP"] };
    let ports: Vec<Value> = ports
        .iter()
        .map(|protocol| json!({"name": protocol.to_lowercase(), "port": TARGET, "protocol": protocol}))
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": format!("{}-x7k2p", name(number)),
            "namespace": NAMESPACE,
            "labels": {"kubernetes.io/service-name": name(number)},
        },
        "addressType": "IPv4",
        "ports": ports,
        "endpoints": endpoints,
    })
}

fn is_last_of_each(number: u32) -> bool {
    number % NODE_PORT_EACH == NODE_PORT_EACH - 1
}

/// The address of a node's backend.
pub fn pod(node: &LabNode) -> SocketAddr {
    (node.pods.first().expect("a pod").v4, TARGET).into()
}
