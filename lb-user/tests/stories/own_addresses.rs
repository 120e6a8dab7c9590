//! Addresses that a caller's network namespace owns, such as those of Docker in a pod: what listens there wins over the
//! Service that has the same address and port.

use std::{
    net::{SocketAddr, UdpSocket},
    process::Command,
    time::Duration,
};

use lb_lab::LabNamespace;
use rustix::io::Errno;

use crate::{
    Story,
    agent::until,
    node::{StoryNode, ip, service, with_spec},
    sockets::{Client, assert_refused, at, mapped, tcp_ask, tcp_server, udp_server},
};

pub const STORIES: &[Story] = &[
    ("a_listener_at_an_own_address_of_a_pod_wins_over_services", pods_own_addresses),
    ("a_listener_at_all_addresses_takes_no_frontend", listeners_at_all_addresses),
    ("a_cache_on_the_node_has_the_address_of_its_service", cache_on_the_node),
];

const BACKEND: &str = "10.0.0.1:8080";
const BACKEND6: &str = "[fd00::1]:8080";
const VIP: &str = "10.96.0.1:443";
const VIP6: &str = "[fd96::1]:443";
/// A NodePort at an address of the node.
const NODE_PORT: &str = "10.0.0.9:30111";
/// A port of the cluster IP that no Service has.
const UNKNOWN: &str = "10.96.0.1:9253";

fn objects(node: &StoryNode) {
    for (protocol, name) in [("TCP", "tcp"), ("UDP", "udp")] {
        let vips = if protocol == "TCP" { ["10.96.0.1", "fd96::1"] } else { ["10.96.0.2", "fd96::2"] };
        let yaml = with_spec(&service(name, &vips, protocol, 443, &[BACKEND, BACKEND6]), "type: NodePort");
        node.write(&format!("{name}.yaml"), &yaml.replacen("{port: 443", "{port: 443, nodePort: 30111", 1));
    }
}

/// Makes a pod whose own backends answer to Services, and which owns `addresses`.
fn pod(addresses: &[&str]) -> LabNamespace {
    let net = LabNamespace::new();
    let setup = net.setup().up("lo").address("lo", "10.0.0.1/32").address("lo", "fd00::1/128");
    addresses.iter().fold(setup, |setup, address| setup.address("lo", address)).apply();
    net.enter(|| {
        // The kernel adds the route of an address a moment after it lets sockets have it.
        let is_usable = |address: &str| {
            let ip = address.split('/').next().expect("an address");
            let shown = Command::new("ip").args(["route", "get", ip]).output().expect("ip");
            String::from_utf8_lossy(&shown.stdout).starts_with("local")
        };
        until("the addresses are usable", || addresses.iter().chain(&["fd00::1"]).all(|address| is_usable(address)));
        tcp_server(BACKEND);
        tcp_server(BACKEND6);
        udp_server(BACKEND);
    });
    net
}

fn answers(to: SocketAddr) -> String {
    tcp_ask(to).expect("an answer").0
}

fn pods_own_addresses(node: &mut StoryNode) {
    objects(node);
    let _agent = node.agent(&[]);
    let own = ["10.0.0.9/32", "10.96.0.1/32", "10.96.0.2/32", "fd96::1/128"];
    let (nested, plain) = (pod(&own), pod(&[]));
    nested.enter(|| {
        // Nothing listens there yet.
        assert_eq!(answers(at(NODE_PORT)), BACKEND);
        assert_eq!(answers(at(VIP)), BACKEND);
        assert_refused(Client::tcp(at(UNKNOWN)).connect(at(UNKNOWN)), Errno::CONNREFUSED);
        for address in [NODE_PORT, VIP, VIP6, UNKNOWN] {
            tcp_server(address);
        }
        udp_server("10.96.0.2:443");
        udp_server(NODE_PORT);
        for address in [NODE_PORT, VIP, VIP6, UNKNOWN] {
            assert_eq!(answers(at(address)), address);
        }
        assert_eq!(answers(mapped(at(VIP))), VIP);
        for address in ["10.96.0.2:443", NODE_PORT] {
            let client = Client::udp(at(address));
            assert_eq!(client.ask(at(address)), (address.to_owned(), Some(at(address))));
            client.connect(at(address)).expect("connected");
            client.send().expect("sent");
            assert_eq!(client.receive().0, address);
        }
    });
    plain.enter(|| {
        assert_eq!(answers(at(NODE_PORT)), BACKEND);
        assert_eq!((answers(at(VIP)), answers(at(VIP6))), (BACKEND.to_owned(), BACKEND6.to_owned()));
        assert_eq!(Client::udp(at(VIP)).ask(at("10.96.0.2:443")).0, BACKEND);
        assert_refused(Client::tcp(at(UNKNOWN)).connect(at(UNKNOWN)), Errno::CONNREFUSED);
    });
}

fn listeners_at_all_addresses(node: &mut StoryNode) {
    objects(node);
    let _agent = node.agent(&[]);
    // The ports are known as bound to a single address, so that the kernel is asked.
    let other = pod(&[]);
    other.enter(|| ["10.0.0.1:443", "10.0.0.1:30111"].into_iter().for_each(tcp_server));
    pod(&["10.96.0.1/32", "10.0.0.9/32"]).enter(|| {
        for port in [443, 30111] {
            tcp_server(&format!("0.0.0.0:{port}"));
            udp_server(&format!("0.0.0.0:{port}"));
        }
        assert_eq!(answers(at(VIP)), BACKEND);
        assert_eq!(answers(at(NODE_PORT)), BACKEND);
        assert_eq!(Client::udp(at(VIP)).ask(at("10.96.0.2:443")).0, BACKEND);
    });
}

fn cache_on_the_node(node: &mut StoryNode) {
    const DNS: &str = "10.96.0.53:53";
    ip(&["addr", "add", "10.96.0.53/32", "dev", "lo"]);
    // The cache listens before the Service and the agent come.
    let cache = UdpSocket::bind(DNS).expect("a free port");
    cache.set_read_timeout(Some(Duration::from_millis(20))).expect("a time-out");
    tcp_server(DNS);
    udp_server(BACKEND);
    tcp_server(BACKEND);
    node.write("udp.yaml", &service("udp", &["10.96.0.53"], "UDP", 53, &[BACKEND]));
    let tcp = service("tcp", &["10.96.0.54"], "TCP", 53, &[BACKEND]);
    node.write("tcp.yaml", &with_spec(&tcp, "externalIPs: [10.96.0.53]"));
    let _agent = node.agent(&["--external-ips", "0.0.0.0/0"]);
    until("a query reaches the cache", || {
        let client = Client::udp(at(DNS));
        client.connect(at(DNS)).expect("connected");
        client.send().expect("sent");
        cache.recv_from(&mut [0; 16]).is_ok()
    });
    assert_eq!(answers(at(DNS)), DNS);
    drop(cache);
    assert_eq!(
        Client::udp(at(DNS)).ask(at(DNS)),
        (BACKEND.to_owned(), Some(at(DNS))),
        "the Service, without the cache"
    );
}
