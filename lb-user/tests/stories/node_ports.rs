//! NodePorts at the socket, and the bind guard that keeps processes of the host off them.

use std::net::{TcpListener, UdpSocket};

use lb_common::Counter;
use rustix::{io::Errno, net::bind};

use crate::{
    Story,
    agent::until,
    kill::in_namespace,
    node::{Node, ip, service, with_spec},
    sockets::{Client, at, is_refusal, kernel_tells_netns, mapped, tcp_ask, tcp_server, udp_server},
};

pub const STORIES: &[Story] = &[
    ("rule_6_node_ports_answer_at_every_own_address", every_own_address),
    ("rule_6_a_pod_reaches_node_ports_but_not_by_its_own_loopback", from_a_pod),
    ("rule_6_node_ports_answer_at_new_addresses_at_once", new_addresses),
    ("rule_6_an_older_service_keeps_its_node_port", conflicts),
    ("rule_6_a_process_of_the_host_cannot_take_a_node_port", the_bind_guard),
    ("rule_6_who_was_bound_before_is_told_and_not_broken", bound_before),
    ("rule_6_a_server_answers_a_client_whose_port_is_a_node_port", answers_to_a_node_port),
];

const BACKEND: &str = "10.0.0.1:8080";
const BACKEND6: &str = "[fd00::1]:8080";

fn node_port(name: &str, vips: &[&str], protocol: &str, port: u16, backends: &[&str]) -> String {
    let yaml = service(name, vips, protocol, 80, backends);
    with_spec(&yaml, "type: NodePort").replacen("{port: 80", &format!("{{port: 80, nodePort: {port}"), 1)
}

fn web() -> String {
    node_port("web", &["10.96.0.1", "fd96::1"], "TCP", 30080, &[BACKEND, BACKEND6])
}

fn every_own_address(node: &mut Node) {
    tcp_server(BACKEND);
    tcp_server(BACKEND6);
    udp_server(BACKEND);
    node.write("web.yaml", &web());
    node.write("dns.yaml", &node_port("dns", &["10.96.0.53"], "UDP", 30080, &[BACKEND]));
    let _agent = node.agent(&[]);
    for address in ["10.0.0.3:30080", "192.0.2.42:30080"] {
        assert_eq!(tcp_ask(at(address)).expect("an answer").0, BACKEND, "{address}");
        assert_eq!(tcp_ask(mapped(at(address))).expect("an answer").0, BACKEND, "{address}, mapped");
        assert_eq!(Client::udp(at(address)).ask(at(address)), (BACKEND.to_owned(), Some(at(address))));
    }
    assert_eq!(tcp_ask(at("[fd00::2]:30080")).expect("an answer").0, BACKEND6);
    let client = Client::tcp(at("10.0.0.3:30080"));
    client.connect(at("10.0.0.3:30080")).expect("a connection");
    assert_eq!(client.peer(), Some(at("10.0.0.3:30080")));
    if kernel_tells_netns() {
        for address in ["127.0.0.1:30080", "0.0.0.0:30080"] {
            assert_eq!(tcp_ask(at(address)).expect("an answer").0, BACKEND, "{address}");
        }
        for address in ["[::1]:30080", "[::]:30080"] {
            assert_eq!(tcp_ask(at(address)).expect("an answer").0, BACKEND6, "{address}");
        }
    }
    // Neither another port, nor an address of nobody here.
    assert_eq!(tcp_ask(at("10.0.0.3:30081")).err(), Some(Errno::CONNREFUSED));
    assert!(tcp_ask(at("198.51.100.9:30080")).is_err());
    // Without endpoints the answer is as for a VIP.
    node.write("web.yaml", &node_port("web", &["10.96.0.1"], "TCP", 30080, &[]));
    until("no endpoint is left", || tcp_ask(at("10.0.0.3:30080")).is_err());
    is_refusal(Client::tcp(at("10.0.0.3:30080")).connect(at("10.0.0.3:30080")), Errno::CONNREFUSED);
}

fn from_a_pod(node: &mut Node) {
    node.write("dns.yaml", &node_port("dns", &["10.96.0.53"], "UDP", 30053, &["10.0.0.1:5353"]));
    let agent = node.agent(&[]);
    agent.wait_for("the node's addresses", |dump| dump.node_addrs.len() > 5);
    in_namespace(|| {
        // A pod on this node: its servers are where its sockets find them.
        udp_server("10.0.0.1:5353");
        let own = at("10.0.0.3:30053");
        let client = Client::udp(own);
        assert_eq!(client.ask(own), ("10.0.0.1:5353".to_owned(), Some(own)));
        if kernel_tells_netns() {
            udp_server("127.0.0.1:30053");
            let loopback = at("127.0.0.1:30053");
            assert_eq!(Client::udp(loopback).ask(loopback).0, "127.0.0.1:30053", "its own loopback is its own");
        }
    });
}

fn new_addresses(node: &mut Node) {
    tcp_server(BACKEND);
    node.write("web.yaml", &web());
    let _agent = node.agent(&[]);
    let to = at("203.0.113.5:30080");
    assert!(tcp_ask(to).is_err());
    ip(&["addr", "add", "203.0.113.5/32", "dev", "lo"]);
    until("the new address answers", || tcp_ask(to).is_ok_and(|(server, _)| server == BACKEND));
    ip(&["addr", "del", "203.0.113.5/32", "dev", "lo"]);
    ip(&["route", "add", "local", "203.0.113.5/32", "dev", "lo"]);
    until("it answers no more", || tcp_ask(to).err() == Some(Errno::CONNREFUSED));
}

fn conflicts(node: &mut Node) {
    tcp_server(BACKEND);
    tcp_server("10.0.0.2:8080");
    let old =
        |yaml: String| yaml.replacen("metadata: {", "metadata: {creationTimestamp: \"2020-01-01T00:00:00Z\", ", 1);
    node.write("a.yaml", &node_port("a", &["10.96.0.1"], "TCP", 30080, &[BACKEND]));
    node.write("b.yaml", &old(node_port("b", &["10.96.0.2"], "TCP", 30080, &["10.0.0.2:8080"])));
    let agent = node.agent(&[]);
    assert_eq!(tcp_ask(at("10.0.0.3:30080")).expect("an answer").0, "10.0.0.2:8080");
    agent.wait_for_log("belongs to the Service default/b, which is older");
    assert_eq!(tcp_ask(at("10.96.0.1:80")).expect("its own VIP").0, BACKEND);
}

fn answers_to_a_node_port(node: &mut Node) {
    udp_server("10.0.0.1:5353");
    udp_server("[fd00::1]:5353");
    let agent = node.agent(&[]);
    agent.wait_for("the node's addresses", |dump| dump.node_addrs.len() > 5);
    // Bound before, as a socket is whose port the kernel chose.
    let clients = ["10.0.0.3:30053", "[fd00::3]:30053"].map(|own| UdpSocket::bind(own).expect("a free port"));
    let backends = ["10.0.0.1:5353", "[fd00::1]:5353"];
    node.write("dns.yaml", &node_port("dns", &["10.96.0.53", "fd96::53"], "UDP", 30053, &backends));
    agent.wait_for("a Service", |dump| dump.backends.len() == 2);
    for (client, (server, other)) in
        clients.iter().zip([("10.0.0.4:7000", "10.0.0.9:0"), ("[fd00::4]:7000", "[fd00::9]:0")])
    {
        udp_server(server);
        client.set_read_timeout(Some(std::time::Duration::from_secs(5))).expect("a timeout");
        for _ in 0..2 {
            client.send_to(b"?", server).expect("sent");
            let mut buffer = [0; 64];
            let (len, from) = client.recv_from(&mut buffer).expect("an answer");
            assert_eq!((&buffer[..len], from), (server.as_bytes(), at(server)));
        }
        // A socket that has heard nothing from there asks the Service.
        let asking = UdpSocket::bind(other).expect("a free port");
        asking.set_read_timeout(Some(std::time::Duration::from_secs(5))).expect("a timeout");
        asking.send_to(b"?", client.local_addr().expect("bound")).expect("sent");
        let (_, from) = asking.recv_from(&mut [0; 64]).expect("an answer");
        assert_eq!(from, client.local_addr().expect("bound"));
    }
}

/// The error of a bind to an address, if any.
fn bind_error(address: &str, udp: bool) -> Option<Errno> {
    let to = at(address);
    let client = if udp { Client::udp(to) } else { Client::tcp(to) };
    bind(client.fd(), &to).err()
}

fn the_bind_guard(node: &mut Node) {
    node.write("web.yaml", &web());
    let agent = node.agent(&[]);
    if !kernel_tells_netns() {
        return;
    }
    for address in ["0.0.0.0:30080", "10.0.0.3:30080", "127.0.0.1:30080", "[::]:30080", "[fd00::2]:30080"] {
        is_refusal(bind_error(address, false).map_or(Ok(()), Err), Errno::ADDRINUSE);
    }
    // Another port, another protocol, an address of nobody, a port of the kernel's choice.
    for (address, udp) in [("0.0.0.0:30081", false), ("0.0.0.0:30080", true), ("0.0.0.0:0", false)] {
        assert_eq!(bind_error(address, udp), None, "{address}");
    }
    // A pod has ports of its own.
    in_namespace(|| assert_eq!(bind_error("0.0.0.0:30080", false), None));
    agent.wait_for_log("port 30080 is a NodePort of default/web/TCP, and ");
    agent.wait_for_log(&format!("(pid {}) asked for it", std::process::id()));
    let counters = lb_dataplane::stats::counters(&node.maps()).expect("the counters");
    assert!(counters.contains(&(Counter::BindRefused, 5)), "{counters:?}");
    // The Service goes, and the port is free.
    std::fs::remove_file(node.yaml.join("web.yaml")).expect("it is there");
    agent.wait_for("no Service", |dump| dump.frontends.is_empty());
    assert_eq!(bind_error("0.0.0.0:30080", false), None);
}

fn bound_before(node: &mut Node) {
    let listener = TcpListener::bind("10.0.0.3:30080").expect("a free port");
    let _udp = UdpSocket::bind("0.0.0.0:30081").expect("a free port");
    tcp_server(BACKEND);
    node.write("web.yaml", &web());
    let agent = node.agent(&[]);
    let pid = std::process::id();
    agent.wait_for_log("port 30080/TCP is a NodePort of default/web/TCP, and ");
    agent.wait_for_log(&format!("(pid {pid}) is bound to 10.0.0.3:30080 there"));
    // Its socket lives: who is not on this node's hooks still reaches it.
    assert_eq!(listener.local_addr().expect("it is there"), at("10.0.0.3:30080"));
    assert_eq!(tcp_ask(at("10.0.0.3:30080")).expect("the Service").0, BACKEND);
    assert!(!agent.log().contains("30081"));
    node.write("dns.yaml", &node_port("dns", &["10.96.0.53"], "UDP", 30081, &[BACKEND]));
    agent.wait_for_log("port 30081/UDP is a NodePort of default/dns/UDP, and ");
}
