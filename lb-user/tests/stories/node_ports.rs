//! NodePorts on the socket path, and the bind guard that keeps processes of the host from binding to them.

use std::{
    net::{Ipv6Addr, SocketAddr, TcpListener, UdpSocket},
    time::Duration,
};

use lb_common::Counter;
use rustix::{io::Errno, net::bind};

use crate::{
    Story,
    agent::until,
    node::{StoryNode, ip, service, with_spec},
    socket_termination::in_namespace,
    sockets::{Client, assert_refused, at, has_netns_cookie, mapped, tcp_ask, tcp_server, udp_server},
};

pub const STORIES: &[Story] = &[
    ("node_ports_answer_at_every_address_of_the_node", every_node_address),
    ("a_pod_reaches_node_ports_but_not_at_its_own_loopback", from_a_pod),
    ("node_ports_answer_at_new_addresses_at_once", new_addresses),
    ("an_older_service_keeps_its_node_port", older_service_wins),
    ("a_process_of_the_host_cannot_bind_to_a_node_port", bind_guard_refuses),
    ("a_socket_of_ipv6_alone_may_bind_to_a_node_port_of_ipv4", bind_guard_knows_families),
    ("a_socket_bound_before_the_node_port_is_logged_and_keeps_working", earlier_socket_is_logged),
    ("a_server_answers_a_client_whose_port_is_a_node_port", answers_to_a_node_port),
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

fn every_node_address(node: &mut StoryNode) {
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
    if has_netns_cookie() {
        for address in ["127.0.0.1:30080", "0.0.0.0:30080"] {
            assert_eq!(tcp_ask(at(address)).expect("an answer").0, BACKEND, "{address}");
        }
        for address in ["[::1]:30080", "[::]:30080"] {
            assert_eq!(tcp_ask(at(address)).expect("an answer").0, BACKEND6, "{address}");
        }
    }
    // No answer at another port, nor at an address that the node does not have.
    assert_eq!(tcp_ask(at("10.0.0.3:30081")).err(), Some(Errno::CONNREFUSED));
    assert!(tcp_ask(at("198.51.100.9:30080")).is_err());
    // Without endpoints a NodePort refuses as a VIP does.
    node.write("web.yaml", &node_port("web", &["10.96.0.1"], "TCP", 30080, &[]));
    until("no endpoint is left", || tcp_ask(at("10.0.0.3:30080")).is_err());
    assert_refused(Client::tcp(at("10.0.0.3:30080")).connect(at("10.0.0.3:30080")), Errno::CONNREFUSED);
}

fn from_a_pod(node: &mut StoryNode) {
    node.write("dns.yaml", &node_port("dns", &["10.96.0.53"], "UDP", 30053, &["10.0.0.1:5353"]));
    let agent = node.agent(&[]);
    agent.wait_for("the node's addresses", |dump| dump.node_addrs.len() > 5);
    in_namespace(|| {
        // A pod on this node. The backend runs in its namespace, where the translated socket finds it.
        udp_server("10.0.0.1:5353");
        let own = at("10.0.0.3:30053");
        let client = Client::udp(own);
        assert_eq!(client.ask(own), ("10.0.0.1:5353".to_owned(), Some(own)));
        if has_netns_cookie() {
            udp_server("127.0.0.1:30053");
            let loopback = at("127.0.0.1:30053");
            assert_eq!(Client::udp(loopback).ask(loopback).0, "127.0.0.1:30053", "a pod's loopback is not translated");
        }
    });
}

fn new_addresses(node: &mut StoryNode) {
    tcp_server(BACKEND);
    node.write("web.yaml", &web());
    let _agent = node.agent(&[]);
    let to = at("203.0.113.5:30080");
    assert!(tcp_ask(to).is_err());
    ip(&["addr", "add", "203.0.113.5/32", "dev", "lo"]);
    until("the new address answers", || tcp_ask(to).is_ok_and(|(server, _)| server == BACKEND));
    ip(&["addr", "del", "203.0.113.5/32", "dev", "lo"]);
    // The kernel still takes the address for its own; NodePorts follow routes to single addresses alone.
    ip(&["route", "add", "local", "203.0.113.0/24", "dev", "lo"]);
    until("the removed address refuses", || tcp_ask(to).err() == Some(Errno::CONNREFUSED));
}

fn older_service_wins(node: &mut StoryNode) {
    tcp_server(BACKEND);
    tcp_server("10.0.0.2:8080");
    let old =
        |yaml: String| yaml.replacen("metadata: {", "metadata: {creationTimestamp: \"2020-01-01T00:00:00Z\", ", 1);
    node.write("a.yaml", &node_port("a", &["10.96.0.1"], "TCP", 30080, &[BACKEND]));
    node.write("b.yaml", &old(node_port("b", &["10.96.0.2"], "TCP", 30080, &["10.0.0.2:8080"])));
    let agent = node.agent(&[]);
    assert_eq!(tcp_ask(at("10.0.0.3:30080")).expect("an answer").0, "10.0.0.2:8080");
    agent.wait_for_log("belongs to the Service default/b, which is older");
    assert_eq!(tcp_ask(at("10.96.0.1:80")).expect("its VIP answers").0, BACKEND);
}

fn answers_to_a_node_port(node: &mut StoryNode) {
    udp_server("10.0.0.1:5353");
    udp_server("[fd00::1]:5353");
    let agent = node.agent(&[]);
    agent.wait_for("the node's addresses", |dump| dump.node_addrs.len() > 5);
    // Bind before the Service exists: the kernel may choose a port that becomes a NodePort later.
    let clients = ["10.0.0.3:30053", "[fd00::3]:30053"].map(|own| UdpSocket::bind(own).expect("a free port"));
    let backends = ["10.0.0.1:5353", "[fd00::1]:5353"];
    node.write("dns.yaml", &node_port("dns", &["10.96.0.53", "fd96::53"], "UDP", 30053, &backends));
    agent.wait_for("a Service", |dump| dump.backends.len() == 2);
    for (client, (server, other)) in
        clients.iter().zip([("10.0.0.4:7000", "10.0.0.9:0"), ("[fd00::4]:7000", "[fd00::9]:0")])
    {
        udp_server(server);
        client.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
        for _ in 0..2 {
            client.send_to(b"?", server).expect("sent");
            let mut buffer = [0; 64];
            let (len, from) = client.recv_from(&mut buffer).expect("an answer");
            assert_eq!((&buffer[..len], from), (server.as_bytes(), at(server)));
        }
        // A socket without a datagram from that client reaches the Service.
        let asking = UdpSocket::bind(other).expect("a free port");
        asking.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
        asking.send_to(b"?", client.local_addr().expect("bound")).expect("sent");
        let (_, from) = asking.recv_from(&mut [0; 64]).expect("an answer");
        assert_eq!(from, client.local_addr().expect("bound"));
    }
}

/// Returns the error of a bind to an address, if any.
fn bind_error(address: &str, udp: bool) -> Option<Errno> {
    let to = at(address);
    let client = if udp { Client::udp(to) } else { Client::tcp(to) };
    bind(client.fd(), &to).err()
}

/// Binds `[::]:port` of IPv6 only.
fn bind_error_v6_only(port: u16, udp: bool) -> Option<Errno> {
    let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    let client = if udp { Client::udp(any) } else { Client::tcp(any) };
    rustix::net::sockopt::set_ipv6_v6only(client.fd(), true).expect("an option");
    bind(client.fd(), &any).err()
}

/// A Service of one family, and sockets that bind the other one's addresses.
fn bind_guard_knows_families(node: &mut StoryNode) {
    node.write("web.yaml", &node_port("web", &["10.96.0.1"], "TCP", 30080, &[BACKEND]));
    node.write("dns.yaml", &node_port("dns", &["10.96.0.53"], "UDP", 30053, &["10.0.0.1:53"]));
    node.write("six.yaml", &node_port("six", &["fd96::1"], "TCP", 30081, &["[fd00::1]:8080"]));
    let agent = node.agent(&[]);
    agent.wait_for("three Services", |dump| dump.backends.len() == 3);
    if !has_netns_cookie() {
        return;
    }
    for (port, udp) in [(30080, false), (30053, true)] {
        assert_refused(bind_error(&format!("[::]:{port}"), udp).map_or(Ok(()), Err), Errno::ADDRINUSE);
        assert_eq!(bind_error_v6_only(port, udp), None, "{port}");
    }
    assert_refused(bind_error_v6_only(30081, false).map_or(Ok(()), Err), Errno::ADDRINUSE);
    assert_eq!(bind_error("0.0.0.0:30081", false), None);
}

fn bind_guard_refuses(node: &mut StoryNode) {
    node.write("web.yaml", &web());
    let agent = node.agent(&[]);
    if !has_netns_cookie() {
        return;
    }
    for address in ["0.0.0.0:30080", "10.0.0.3:30080", "127.0.0.1:30080", "[::]:30080", "[fd00::2]:30080"] {
        assert_refused(bind_error(address, false).map_or(Ok(()), Err), Errno::ADDRINUSE);
    }
    // The guard allows another port, another protocol, and port 0.
    for (address, udp) in [("0.0.0.0:30081", false), ("0.0.0.0:30080", true), ("0.0.0.0:0", false)] {
        assert_eq!(bind_error(address, udp), None, "{address}");
    }
    // A pod has its own ports.
    in_namespace(|| assert_eq!(bind_error("0.0.0.0:30080", false), None));
    agent.wait_for_log(&format!("(pid {}) asked for port 30080, a NodePort of default/web/TCP", std::process::id()));
    let counters = lb_dataplane::stats::counters(&node.maps()).expect("the counters");
    assert!(counters.contains(&(Counter::BindRefused, 5)), "{counters:?}");
    // When the Service is removed, the port is free.
    std::fs::remove_file(node.yaml.join("web.yaml")).expect("the file");
    agent.wait_for("no Service", |dump| dump.frontends.is_empty());
    assert_eq!(bind_error("0.0.0.0:30080", false), None);
}

fn earlier_socket_is_logged(node: &mut StoryNode) {
    let listener = TcpListener::bind("10.0.0.3:30080").expect("a free port");
    let _udp = UdpSocket::bind("0.0.0.0:30081").expect("a free port");
    tcp_server(BACKEND);
    node.write("web.yaml", &web());
    let agent = node.agent(&[]);
    let pid = std::process::id();
    agent.wait_for_log("port 30080/TCP is a NodePort of default/web/TCP, and ");
    agent.wait_for_log(&format!("(pid {pid}) is bound to 10.0.0.3:30080 there"));
    // The earlier socket stays open for clients that the socket path does not translate.
    assert_eq!(listener.local_addr().expect("an open socket"), at("10.0.0.3:30080"));
    assert_eq!(tcp_ask(at("10.0.0.3:30080")).expect("the Service").0, BACKEND);
    assert!(!agent.log().contains("30081"));
    node.write("dns.yaml", &node_port("dns", &["10.96.0.53"], "UDP", 30081, &[BACKEND]));
    agent.wait_for_log("port 30081/UDP is a NodePort of default/dns/UDP, and ");
}
