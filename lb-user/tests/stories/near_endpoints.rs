//! Endpoints near the client: preferred ones, and those of a Service that takes the clients of another. They come and
//! go under load, and no call fails.

use std::{collections::BTreeSet, net::SocketAddr};

use crate::{
    Story,
    agent::until,
    load::Load,
    node::StoryNode,
    sockets::{Client, at, tcp_ask, tcp_server, udp_server},
};

pub const STORIES: &[Story] = &[
    ("preferred_endpoints_come_and_go_without_a_failed_call", preferred),
    ("redirected_clients_come_and_go_without_a_failed_call", redirected),
];

const DNS: &str = "10.96.0.10:53";
const FAR: [&str; 2] = ["10.0.0.1:5353", "10.0.0.2:5353"];
const NEAR: &str = "10.0.0.3:5353";

/// Times that the near endpoint comes and goes.
const TURNS: u32 = 20;

/// Returns the YAML of a Service and of its slice, with endpoints by IP, node and readiness.
fn service(name: &str, vip: &str, annotations: &str, endpoints: &[(&str, &str, bool)]) -> String {
    let mut yaml = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: dns, annotations: {{{annotations}}}}}\n\
         spec:\n  clusterIP: {vip}\n  clusterIPs: [{vip}]\n  selector: {{app: {name}}}\n  \
         ports: [{{name: u, port: 53, protocol: UDP}}, {{name: t, port: 53, protocol: TCP}}]\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: {name}-1, namespace: dns, labels: {{kubernetes.io/service-name: {name}}}}}\n\
         addressType: IPv4\nports: [{{name: u, port: 5353, protocol: UDP}}, {{name: t, port: 5353, protocol: TCP}}]\n\
         endpoints:\n"
    );
    for (ip, on, ready) in endpoints {
        let conditions = format!("{{ready: {ready}, serving: true, terminating: {}}}", !ready);
        yaml += &format!("- {{addresses: [{ip}], nodeName: {on}, conditions: {conditions}}}\n");
    }
    yaml + "---\n"
}

fn preferred(node: &mut StoryNode) {
    come_and_go(node, |is_ready| {
        let endpoints = [("10.0.0.1", "there", true), ("10.0.0.2", "there", true), ("10.0.0.3", "here", is_ready)];
        service("dns", "10.96.0.10", "beeline.io/prefer-local: \"true\"", &endpoints)
    });
}

fn redirected(node: &mut StoryNode) {
    come_and_go(node, |is_ready| {
        let far = [("10.0.0.1", "here", true), ("10.0.0.2", "there", true)];
        let near = [("10.0.0.3", "here", is_ready), ("10.0.0.4", "there", true)];
        let cache = service("cache", "10.96.0.20", "beeline.io/redirect-from: dns/dns", &near);
        service("dns", "10.96.0.10", "", &far) + &cache
    });
}

/// Lets the near endpoint drain and get ready in turn, under load.
fn come_and_go(node: &StoryNode, objects: impl Fn(bool) -> String) {
    for server in FAR.into_iter().chain([NEAR]) {
        udp_server(server);
        tcp_server(server);
    }
    node.write("objects.yaml", &objects(true));
    let _agent = node.agent(&[]);
    let mut load = Load::default();
    let vip = at(DNS);
    load.add("a new UDP socket", move || ask(&Client::udp(vip), vip).map(drop));
    let kept = Client::udp(vip);
    load.add("one unconnected UDP socket", move || ask(&kept, vip).map(drop));
    load.add("a new TCP socket", move || tcp_ask(vip).map(drop).map_err(|error| error.to_string()));
    for turn in 0..TURNS {
        let is_near = turn % 2 == 0;
        node.write("objects.yaml", &objects(is_near));
        until("new sockets are led there", || {
            let answers: BTreeSet<String> = (0..8).map(|_| ask(&Client::udp(vip), vip).expect("an answer")).collect();
            let by_tcp = tcp_ask(vip).expect("an answer").0;
            answers.iter().chain([&by_tcp]).all(|answer| (answer == NEAR) == is_near)
        });
        load.more(5);
    }
    load.end();
}

/// Asks by a UDP socket; the answer must come from the address asked.
fn ask(client: &Client, to: SocketAddr) -> Result<String, String> {
    client.send_to(to).map_err(|error| format!("sending: {error}"))?;
    let (answer, from) = client.try_receive().map_err(|error| format!("receiving: {error}"))?;
    if from == Some(to) { Ok(answer) } else { Err(format!("{answer} from {from:?}")) }
}
