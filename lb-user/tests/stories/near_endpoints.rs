//! Endpoints near the client: preferred ones, and those of a Service that takes the clients of another. They come and
//! go under load, and no call fails.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use lb_lab::network::{Host, Lan, LanOptions};

use crate::{
    Story,
    agent::until,
    load::Load,
    node::{StoryNode, annotated},
    packets::{self, NODE_PORT, TARGET},
    sockets::{Client, at, tcp_ask, tcp_server, udp_server},
};

pub const STORIES: &[Story] = &[
    ("preferred_endpoints_come_and_go_without_a_failed_call", preferred),
    ("redirected_clients_come_and_go_without_a_failed_call", redirected),
    ("packets_reach_preferred_endpoints_and_those_of_a_service_that_takes_clients", by_packets),
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

/// A pod whose packets are translated, and a client outside.
fn by_packets(node: &mut StoryNode) {
    let lan = Lan::make(LanOptions { pods: 2, ..LanOptions::default() });
    let (client, near, far) = (packets::pod(&lan.node1), &lan.node1.pods[1], packets::pod(&lan.node2));
    [near, far].into_iter().for_each(packets::serve);
    let web = |endpoints: &[(&Host, &str)]| {
        let endpoints: Vec<_> = endpoints.iter().map(|&(host, on)| (IpAddr::from(host.v4), on)).collect();
        packets::service("Cluster", &endpoints)
    };
    let preferring = |endpoints: &[(&Host, &str)]| annotated(&web(endpoints), "beeline.io/prefer-local: \"true\"");
    let cache = |endpoints: &[(&Host, &str)]| {
        let renamed =
            web(endpoints).replace("web", "cache").replace("10.96.0.1", "10.96.0.9").replace("fd96::1", "fd96::9");
        let others = renamed.replace(&NODE_PORT.to_string(), "30081").replace("198.51.100.7", "198.51.100.8");
        annotated(&others, "beeline.io/redirect-from: default/web")
    };
    node.write("web.yaml", &web(&[(far, "there")]));
    let _agent = packets::agent(node, &lan, &["--pod-devices", "pod2"]);
    let answers = |from: &Host, to: SocketAddr| -> BTreeSet<String> {
        from.net.enter(|| {
            let by_tcp = (0..8).map(|_| tcp_ask(to).expect("an answer").0);
            by_tcp.chain((0..8).map(|_| Client::udp(to).ask(to).0)).collect()
        })
    };
    let cluster_ip = SocketAddr::from(([10, 96, 0, 1], 80));
    let node_port = SocketAddr::from((lan.node1.host.v4, NODE_PORT));
    let only = |host: &Host| BTreeSet::from([SocketAddr::from((host.v4, TARGET)).to_string()]);
    until("the pod's link has the programs", || {
        client.net.enter(|| Client::tcp(cluster_ip).connect(cluster_ip)).is_ok()
    });
    let reach = |what: &str, of_pod: &Host, of_client: &Host| {
        until(what, || {
            answers(client, cluster_ip) == only(of_pod) && answers(&lan.client, node_port) == only(of_client)
        });
    };
    node.write("web.yaml", &preferring(&[(near, "here"), (far, "there")]));
    reach("both reach the preferred endpoint", near, near);
    node.write("web.yaml", &preferring(&[(far, "there")]));
    reach("both reach the other one without it", far, far);
    node.write("web.yaml", &(web(&[(far, "there")]) + &cache(&[(near, "here"), (far, "there")])));
    reach("the pod is redirected, and the client outside is not", near, far);
    node.write("web.yaml", &(web(&[(far, "there")]) + &cache(&[(near, "elsewhere")])));
    reach("no client is redirected without an endpoint on this node", far, far);
}
