//! Sockets and flows while Services change around them: they stay while their endpoint serves at the frontend that they
//! dialled, and go when it does not.

use std::{
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use crate::{
    Story,
    agent::{Agent, until},
    flow_expiry::{self, Entry},
    node::StoryNode,
    packets::{self, NODE_PORT},
    socket_termination::hold_connections,
    sockets::{Client, at, udp_server},
    stale_sockets::{ended_count, has_ended},
};
use lb_lab::network::{Lan, LanOptions};

pub const STORIES: &[Story] = &[
    ("udp_flows_end_with_the_last_endpoint_of_their_service_and_tcp_flows_stay", flows_end_with_the_last_endpoint),
    ("sockets_stay_when_a_port_or_a_service_is_renamed", sockets_stay_when_renamed),
    ("sockets_end_when_their_vip_moves_unless_their_endpoint_serves_there_too", sockets_follow_their_vip),
    ("sockets_of_a_vip_that_moved_without_an_agent_end_at_its_start", sockets_follow_their_vip_across_a_restart),
    ("udp_flows_follow_a_node_port_that_moves_to_another_service", flows_follow_a_node_port),
];

/// Longer than the time after which the agent searches for the second and last time.
const SEARCHED: Duration = Duration::from_millis(1300);

/// Returns a Service whose UDP port 53 and TCP port 80 are named after `port`, with hand-written endpoints. TCP
/// connections to a removed endpoint end at once.
fn dns(name: &str, port: &str, vip: &str, endpoints: &[&str]) -> String {
    let addresses: Vec<_> = endpoints.iter().map(|ip| format!("{{ip: {ip}}}")).collect();
    let addresses = addresses.join(", ");
    format!(
        "apiVersion: v1\nkind: Service\n\
         metadata: {{name: {name}, annotations: {{beeline.io/tcp-drain: on-removal}}}}\nspec:\n  clusterIP: {vip}\n  \
         ports:\n  - {{name: {port}-u, port: 53, protocol: UDP}}\n  \
         - {{name: {port}-t, port: 80, protocol: TCP}}\n---\n\
         apiVersion: v1\nkind: Endpoints\nmetadata: {{name: {name}}}\nsubsets:\n- addresses: [{addresses}]\n  \
         ports: [{{name: {port}-u, port: 5353, protocol: UDP}}, {{name: {port}-t, port: 8080, protocol: TCP}}]\n---\n"
    )
}

fn serve() {
    for ip in ["10.0.0.1", "10.0.0.2"] {
        udp_server(&format!("{ip}:5353"));
        hold_connections(&format!("{ip}:8080"));
    }
}

/// Returns sockets that are connected to the UDP port and the TCP port of a VIP.
fn connect(vip: &str) -> [Client; 2] {
    let [to_udp, to_tcp] = [53, 80].map(|port| at(&format!("{vip}:{port}")));
    let (udp, tcp) = (Client::udp(to_udp), Client::tcp(to_tcp));
    udp.connect(to_udp).expect("connected");
    tcp.connect(to_tcp).expect("a connection");
    [udp, tcp]
}

/// Sends by both sockets, and returns the endpoint that answers over UDP.
fn ask([udp, tcp]: &[Client; 2]) -> String {
    tcp.send().expect("the connection is open");
    udp.send().expect("the UDP socket is open");
    udp.receive().0
}

fn wait_for_name(agent: &Agent, name: &str) {
    agent.wait_for(name, |dump| dump.names.values().any(|key| key.to_string().starts_with(name)));
}

fn assert_both_end([udp, tcp]: &[Client; 2]) {
    until("the UDP socket ends", || has_ended(udp));
    until("the connection ends", || tcp.send().is_err());
}

fn sockets_stay_when_renamed(node: &mut StoryNode) {
    const VIP: &str = "10.96.0.53";
    let both = ["10.0.0.1", "10.0.0.2"];
    serve();
    node.write("dns.yaml", &dns("dns", "old", VIP, &both));
    let agent = node.agent(&[]);
    let clients = connect(VIP);
    let server = ask(&clients);
    for (name, port) in [("dns", "new"), ("other", "new"), ("another", "last")] {
        node.write("dns.yaml", &dns(name, port, VIP, &both));
        wait_for_name(&agent, &format!("default/{name}:{port}"));
        thread::sleep(SEARCHED);
        assert_eq!(ask(&clients), server, "{name} {port}");
        assert_eq!(ended_count(node), 0, "{name} {port}");
    }
    let rest: Vec<_> = both.into_iter().filter(|ip| !server.starts_with(&format!("{ip}:"))).collect();
    node.write("dns.yaml", &dns("another", "last", VIP, &rest));
    until("the UDP socket ends with its endpoint", || has_ended(&clients[0]));
}

fn sockets_follow_their_vip(node: &mut StoryNode) {
    const VIP: &str = "10.96.0.53";
    serve();
    let write = |a: (&str, &[&str]), b: (&str, &[&str])| {
        node.write("dns.yaml", &[dns("a", "p", a.0, a.1), dns("b", "p", b.0, b.1)].concat());
    };
    write((VIP, &["10.0.0.1"]), ("10.96.0.54", &["10.0.0.2"]));
    let agent = node.agent(&[]);
    let clients = connect(VIP);
    assert_eq!(ask(&clients), "10.0.0.1:5353");
    write(("10.96.0.55", &["10.0.0.1"]), (VIP, &["10.0.0.2"]));
    assert_both_end(&clients);
    let clients = connect(VIP);
    assert_eq!(ask(&clients), "10.0.0.2:5353");
    until("the ended sockets are counted", || ended_count(node) == 2);
    // The VIP goes to a Service that has the endpoint too.
    write((VIP, &["10.0.0.1", "10.0.0.2"]), ("10.96.0.54", &["10.0.0.2"]));
    agent.wait_for("both endpoints", |dump| dump.backends.len() == 6);
    thread::sleep(SEARCHED);
    assert_eq!(ask(&clients), "10.0.0.2:5353");
    assert_eq!(ended_count(node), 2);
    // That Service loses the endpoint, and the Service that led the sockets there keeps it.
    write((VIP, &["10.0.0.1"]), ("10.96.0.54", &["10.0.0.2"]));
    assert_both_end(&clients);
    let clients = connect(VIP);
    assert_eq!(ask(&clients), "10.0.0.1:5353");
    // The frontend goes, and the Service with its endpoint stays.
    write(("10.96.0.55", &["10.0.0.1"]), ("10.96.0.54", &["10.0.0.2"]));
    assert_both_end(&clients);
}

fn sockets_follow_their_vip_across_a_restart(node: &mut StoryNode) {
    const VIP: &str = "10.96.0.53";
    serve();
    let write = |a: &str, b: &str| {
        node.write("dns.yaml", &[dns("a", "p", a, &["10.0.0.1"]), dns("b", "p", b, &["10.0.0.2"])].concat());
    };
    write(VIP, "10.96.0.54");
    let mut agent = node.agent(&[]);
    let clients = connect(VIP);
    assert_eq!(ask(&clients), "10.0.0.1:5353");
    agent.kill();
    write("10.96.0.55", VIP);
    let _second_agent = node.agent(&[]);
    assert_both_end(&clients);
}

fn flows_follow_a_node_port(node: &mut StoryNode) {
    let lan = Lan::make(LanOptions { pods: 2, ..LanOptions::default() });
    let [first, second] = lan.node1.pods.as_slice() else { panic!("two pods") };
    [first, second].into_iter().for_each(packets::serve);
    let of = |pod| packets::service("Cluster", &packets::addresses(pod).map(|ip| (ip, "here")));
    let (web, other) = (of(first), of(second));
    let other = other.replace("web", "other").replace("10.96.0.1", "10.96.0.2").replace("fd96::1", "fd96::2");
    let other = other.replace("198.51.100.7", "198.51.100.8");
    let write = |web_port: u16, other_port: u16| {
        let with =
            |yaml: &str, port: u16| yaml.replace(&format!("nodePort: {NODE_PORT}"), &format!("nodePort: {port}"));
        node.write("web.yaml", &[with(&web, web_port), with(&other, other_port)].concat());
    };
    write(NODE_PORT, NODE_PORT + 1);
    let agent = packets::agent(node, &lan, &[]);
    agent.wait_for("all backends", |dump| dump.backends.len() == 8);
    let node_ports = packets::addresses(&lan.node1.host).map(|ip| SocketAddr::from((ip, NODE_PORT)));
    let clients = node_ports.map(|to| (lan.client.net.enter(|| Client::udp(to)), to));
    let servers = |pod| packets::addresses(pod).map(|ip| SocketAddr::from((ip, packets::TARGET)).to_string());
    let answers = || clients.iter().map(|(client, to)| client.ask(*to).0).collect::<Vec<_>>();
    assert_eq!(answers(), servers(first));
    write(NODE_PORT + 1, NODE_PORT);
    until("the flows lead to the other Service", || answers() == servers(second));
}

/// Returns the entries of `FLOWS` of a protocol that lead to a backend, or back.
fn flows(node: &StoryNode, proto: u8) -> Vec<Entry> {
    let entries = flow_expiry::open(node).read().expect("the map");
    entries.into_iter().filter(|(key, flow)| key.proto == proto && flow.backend != 0).collect()
}

fn flows_end_with_the_last_endpoint(node: &mut StoryNode) {
    const TCP: u8 = 6;
    const UDP: u8 = 17;
    let lan = Lan::make(LanOptions::default());
    let pod = packets::pod(&lan.node1);
    packets::serve(pod);
    node.write("web.yaml", &packets::service("Cluster", &packets::addresses(pod).map(|ip| (ip, "here"))));
    let agent = packets::agent(node, &lan, &[]);
    agent.wait_for("all backends", |dump| dump.backends.len() == 4);
    let node_ports = packets::addresses(&lan.node1.host).map(|ip| SocketAddr::from((ip, NODE_PORT)));
    for to in node_ports {
        lan.client.net.enter(|| (Client::udp(to).ask(to), crate::sockets::tcp_ask(to).expect("an answer")));
    }
    assert_eq!(flows(node, UDP).len(), 4, "two clients, two directions");
    let tcp = flows(node, TCP).len();
    node.write("web.yaml", &packets::service("Cluster", &[]));
    agent.wait_for("no backend", |dump| dump.backends.is_empty());
    let removed = Instant::now();
    until("the UDP flows are removed", || flows(node, UDP).is_empty());
    // Garbage collection would remove them after 30 s.
    assert!(removed.elapsed() < Duration::from_secs(10), "{:?}", removed.elapsed());
    assert_eq!(flows(node, TCP).len(), tcp);
}
