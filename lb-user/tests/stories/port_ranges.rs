//! Port ranges of a VIP (`beeline.io/ports`) with real sockets: SIP with its media, FTP with its passive ports, changes
//! of a range while sockets are open, and clients outside.

use std::{
    net::{IpAddr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use lb_common::{Kind, Proto};
use lb_core::store::Dump;
use lb_lab::network::{Lan, LanOptions};
use rustix::io::Errno;

use crate::{
    Story,
    agent::{Agent, run, until},
    node::{StoryNode, annotated, ip, service, with_spec},
    packets::{self, addresses, pod},
    places,
    sockets::{Client, assert_refused, at, mapped, tcp_ask, tcp_server, udp_server},
};

pub const STORIES: &[Story] = &[
    ("port_ranges_keep_or_shift_the_port_dialled", ports_are_kept_or_shifted),
    ("port_ranges_let_the_media_of_a_call_meet_its_signalling", media_meets_signalling),
    ("affinity_of_a_whole_service_leads_signalling_and_media_of_both_protocols_to_one_endpoint", one_endpoint),
    ("port_ranges_serve_the_passive_ports_of_ftp", passive_ports_of_ftp),
    ("port_ranges_that_change_keep_the_sockets_of_the_ports_that_stay", ranges_change),
    ("port_ranges_leave_addresses_of_the_node_alone", addresses_of_the_node),
    ("port_ranges_serve_packets_of_clients_outside", clients_outside),
    ("affinity_of_a_whole_service_leads_the_packets_of_a_client_to_one_endpoint", one_endpoint_for_packets),
];

/// Returns the YAML of a Service with port 5060 of UDP at two cluster IPs and these port ranges, led to port 5060 of
/// the backends.
fn sip(ports: &str, backends: &[&str]) -> String {
    let backends: Vec<String> = backends
        .iter()
        .map(|backend| if backend.contains(':') { format!("[{backend}]:5060") } else { format!("{backend}:5060") })
        .collect();
    let backends: Vec<&str> = backends.iter().map(String::as_str).collect();
    annotated(
        &service("sip", &["10.96.0.60", "fd96::60"], "UDP", 5060, &backends),
        &format!("beeline.io/ports: \"{ports}\""),
    )
}

fn has_ranges(dump: &Dump) -> bool {
    !dump.port_ranges.is_empty()
}

/// Asserts that connected and unconnected sockets of a VIP reach `server`, and see the VIP.
fn assert_leads(proto: Proto, vip: SocketAddr, server: &str) {
    let dialled = if vip.is_ipv4() { vec![vip, mapped(vip)] } else { vec![vip] };
    for to in dialled {
        if proto == Proto::Tcp {
            let client = Client::tcp(to);
            client.connect(to).unwrap_or_else(|error| panic!("{to}: {error}"));
            assert_eq!(client.peer(), Some(to));
            assert_eq!(client.receive().0.split(' ').next(), Some(server), "{to}");
            continue;
        }
        let client = Client::udp(to);
        assert_eq!(client.ask(to), (server.to_owned(), Some(to)), "unconnected, {to}");
        client.connect(to).unwrap_or_else(|error| panic!("{to}: {error}"));
        assert_eq!(client.peer(), Some(to));
        client.send().expect("sent");
        assert_eq!(client.receive(), (server.to_owned(), Some(to)), "connected, {to}");
    }
}

fn ports_are_kept_or_shifted(node: &mut StoryNode) {
    for address in ["10.0.0.1", "[fd00::1]"] {
        for port in [5060, 5061, 5160, 40_000, 6070] {
            udp_server(&format!("{address}:{port}"));
        }
        for port in [7001, 7100, 443] {
            tcp_server(&format!("{address}:{port}"));
        }
    }
    node.write("sip.yaml", &sip("5060-5160/udp, 40000/udp, 6000-6099/tcp+1001, 443", &["10.0.0.1", "fd00::1"]));
    let agent = node.agent(&[]);
    agent.wait_for("the ranges", has_ranges);
    for (vip, backend) in [("10.96.0.60", "10.0.0.1"), ("[fd96::60]", "[fd00::1]")] {
        let dialled = |port: u16| at(&format!("{vip}:{port}"));
        let server = |port: u16| format!("{backend}:{port}");
        for port in [5060, 5061, 5160, 40_000] {
            assert_leads(Proto::Udp, dialled(port), &server(port));
        }
        for (port, target) in [(6000, 7001), (6099, 7100), (443, 443)] {
            assert_leads(Proto::Tcp, dialled(port), &server(target));
        }
        for port in [5059, 5061, 6100] {
            assert_refused(Client::tcp(dialled(port)).connect(dialled(port)), Errno::CONNREFUSED);
        }
        assert_refused(Client::udp(dialled(1)).send_to(dialled(5161)), Errno::CONNREFUSED);
    }
    // One socket with many ports of a VIP: an answer shows the port of its question.
    let client = Client::udp(at("10.96.0.60:5060"));
    for port in [5060, 5061, 5160, 5060] {
        let to = at(&format!("10.96.0.60:{port}"));
        assert_eq!(client.ask(to), (format!("10.0.0.1:{port}"), Some(to)));
    }
    // A single port within a range goes first.
    let exact = sip("5060-5160/udp", &["10.0.0.1"])
        .replacen("ports: [{port: 5060, protocol: UDP}]", "ports: [{port: 5061, protocol: UDP, name: x}]", 1)
        .replacen("ports: [{port: 5060, protocol: UDP}]", "ports: [{port: 6070, protocol: UDP, name: x}]", 1);
    node.write("sip.yaml", &exact);
    agent.wait_for("the single port", |dump| dump.frontends.keys().any(|key| key.port == 5061));
    assert_leads(Proto::Udp, at("10.96.0.60:5061"), "10.0.0.1:6070");
    assert_leads(Proto::Udp, at("10.96.0.60:5060"), "10.0.0.1:5060");
    for (what, expected) in [
        (&["get", "services"][..], "10.96.0.60:5060-5160"),
        (&["get", "frontends"], "5060-5160"),
        (&["get", "backends"], "default/sip:[ports]/UDP  10.0.0.1  *"),
        (&["trace", "udp", "10.96.0.60:5062"], "by its port range 5060-5160"),
        (&["trace", "udp", "10.96.0.60:5062"], "10.0.0.1:5062"),
        (&["explain", "default/sip", "-f", node.yaml.to_str().expect("text"), "--node-name", "here"], "10.0.0.1:*"),
    ] {
        let shown = String::from_utf8(run(node, what).stdout).expect("text");
        assert!(shown.contains(expected), "{what:?}: {shown}");
    }
}

fn media_meets_signalling(node: &mut StoryNode) {
    let backends = ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"];
    for backend in backends {
        for port in [5060, 16_384, 16_484] {
            udp_server(&format!("{backend}:{port}"));
        }
    }
    node.write("sip.yaml", &with_spec(&sip("5060/udp, 16384-16484/udp", &backends), "sessionAffinity: ClientIP"));
    // The ports of ranges are one service port, so that the affinity of the Service holds for all of them.
    let single = |yaml: &str| yaml.replace("ports: [{port: 5060", "ports: [{port: 5059");
    node.write(
        "sip.yaml",
        &single(&with_spec(&sip("5060/udp, 16384-16484/udp", &backends), "sessionAffinity: ClientIP")),
    );
    let agent = node.agent(&[]);
    agent.wait_for("the ranges", has_ranges);
    let server_of = |port: u16| {
        let to = at(&format!("10.96.0.60:{port}"));
        let (server, from) = Client::udp(to).ask(to);
        assert_eq!(from, Some(to));
        server.split(':').next().expect("an address").to_owned()
    };
    let signalling = server_of(5060);
    for _ in 0..20 {
        assert_eq!([5060, 16_384, 16_484].map(server_of), [signalling.as_str(); 3]);
    }
}

/// Signalling of TCP and UDP in `spec.ports`, media in a range.
fn one_endpoint(node: &mut StoryNode) {
    let backends = ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"];
    for backend in backends {
        tcp_server(&format!("{backend}:5061"));
        [5060, 16_384, 16_484].into_iter().for_each(|port| udp_server(&format!("{backend}:{port}")));
    }
    let yaml = |backends: &[&str]| {
        let yaml = with_spec(&sip("16384-16484/udp", backends), "sessionAffinity: ClientIP");
        let yaml = yaml.replace("beeline.io/ports", "beeline.io/affinity-scope: service, beeline.io/ports");
        yaml.replace("{port: 5060, protocol: UDP}", "{name: u, port: 5060, protocol: UDP}, {name: t, port: 5061}")
    };
    node.write("sip.yaml", &yaml(&backends));
    let mut agent = node.agent(&[]);
    agent.wait_for("the ranges", has_ranges);
    let by_udp = |port: u16| {
        let to = at(&format!("10.96.0.60:{port}"));
        let (server, from) = Client::udp(to).ask(to);
        assert_eq!(from, Some(to));
        server.split(':').next().expect("an address").to_owned()
    };
    let by_tcp = || {
        let (server, _) = tcp_ask(at("10.96.0.60:5061")).expect("an answer");
        server.split(':').next().expect("an address").to_owned()
    };
    let call = || {
        let media = by_udp(16_384);
        assert_eq!([by_tcp(), by_udp(5060), by_udp(16_484), by_udp(16_384)], [media.as_str(); 4]);
        media
    };
    let first = call();
    assert!((0..20).all(|_| call() == first));
    // The client's endpoint goes: all ports go on to one other.
    let left: Vec<&str> = backends.into_iter().filter(|backend| *backend != first).collect();
    node.write("sip.yaml", &yaml(&left));
    agent.wait_for("three endpoints", |dump| {
        dump.backends.values().all(|backend| backend.addr.to_ip().to_string() != first)
    });
    let next = call();
    assert!(next != first && (0..20).all(|_| call() == next));
    // The endpoint comes back: the client stays.
    node.write("sip.yaml", &yaml(&backends));
    agent.wait_for("four endpoints", |dump| {
        dump.backends.values().any(|backend| backend.addr.to_ip().to_string() == first)
    });
    assert!((0..20).all(|_| call() == next));
    // Without the ranges, which have the first ids, and over a restart, which removes what is over.
    agent.kill();
    node.write("sip.yaml", &yaml(&backends).replace(", beeline.io/ports: \"16384-16484/udp\"", ""));
    let agent = node.agent(&[]);
    agent.wait_for("no ranges", |dump| !has_ranges(dump));
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(2) {
        assert_eq!([by_tcp(), by_udp(5060)], [next.as_str(); 2]);
        thread::sleep(Duration::from_millis(50));
    }
}

fn passive_ports_of_ftp(node: &mut StoryNode) {
    tcp_server("10.0.0.1:21");
    for port in 30_000..30_010 {
        tcp_server(&format!("10.0.0.1:{port}"));
    }
    let ftp = annotated(
        &service("ftp", &["10.96.0.21"], "TCP", 21, &["10.0.0.1:21"]),
        "beeline.io/ports: \"30000-30009/tcp\"",
    );
    node.write("ftp.yaml", &ftp);
    let _agent = node.agent(&[]);
    assert_leads(Proto::Tcp, at("10.96.0.21:21"), "10.0.0.1:21");
    for port in 30_000..30_010 {
        assert_leads(Proto::Tcp, at(&format!("10.96.0.21:{port}")), &format!("10.0.0.1:{port}"));
    }
    for port in [29_999, 30_010] {
        assert!(tcp_ask(at(&format!("10.96.0.21:{port}"))).is_err());
    }
}

/// Asserts that a connected UDP socket has been ended.
fn wait_until_ended(what: &str, client: &Client) {
    until(what, || client.peer().is_none());
}

fn ranges_change(node: &mut StoryNode) {
    for port in [5060, 5070, 5080, 6070, 6080] {
        udp_server(&format!("10.0.0.1:{port}"));
        udp_server(&format!("10.0.0.2:{port}"));
    }
    node.write("sip.yaml", &sip("5060-5085/udp", &["10.0.0.1", "10.0.0.2"]));
    let agent = node.agent(&[]);
    agent.wait_for("the ranges", has_ranges);
    let connected = |port: u16| {
        let to = at(&format!("10.96.0.60:{port}"));
        let client = Client::udp(to);
        client.connect(to).expect("connected");
        client.send().expect("sent");
        let server = client.receive().0;
        (client, server)
    };
    let answers = |client: &Client| {
        client.send().expect("sent");
        client.receive().0
    };
    let (stays, server) = connected(5070);
    let (goes, _) = connected(5080);
    let (unconnected, to) = (Client::udp(at("10.96.0.60:5080")), at("10.96.0.60:5070"));
    let (first, _) = unconnected.ask(to);
    // Other blocks of the range have the port: the sockets stay where they are.
    node.write("sip.yaml", &sip("5061-5071/udp", &["10.0.0.1", "10.0.0.2"]));
    wait_until_ended("the socket of a port that has left", &goes);
    assert_eq!((stays.peer(), answers(&stays)), (Some(at("10.96.0.60:5070")), server.clone()));
    assert_eq!(unconnected.ask(to), (first, Some(to)));
    assert_refused(Client::udp(to).send_to(at("10.96.0.60:5080")), Errno::CONNREFUSED);
    // An endpoint leaves: its sockets end, or move.
    let [gone, left] =
        if server.starts_with("10.0.0.1:") { ["10.0.0.1", "10.0.0.2"] } else { ["10.0.0.2", "10.0.0.1"] };
    node.write("sip.yaml", &sip("5061-5071/udp", &[left]));
    wait_until_ended("the socket of an endpoint that has left", &stays);
    assert_eq!(unconnected.ask(to), (format!("{left}:5070"), Some(to)));
    println!("{gone} has left");
    // Another offset.
    let (shifted, _) = connected(5070);
    node.write("sip.yaml", &sip("5061-5071/udp+1000", &[left]));
    wait_until_ended("the socket of another offset", &shifted);
    assert_eq!(unconnected.ask(to), (format!("{left}:6070"), Some(to)));
    // No range at all.
    let (last, _) = connected(5070);
    node.write("sip.yaml", &service("sip", &["10.96.0.60"], "UDP", 5060, &["10.0.0.1:5060"]));
    wait_until_ended("the socket of a range that has gone", &last);
    assert_refused(unconnected.send_to(to), Errno::CONNREFUSED);
    let dump = agent.dump();
    assert!(dump.port_ranges.is_empty() && dump.backends.len() == 1, "{dump}");
}

fn addresses_of_the_node(node: &mut StoryNode) {
    tcp_server("10.0.0.9:2222");
    tcp_server("10.0.0.1:2222");
    let all = annotated(&service("all", &["10.96.0.9"], "TCP", 80, &["10.0.0.1:80"]), "beeline.io/ports: \"all\"");
    // 10.0.0.9 is an address of the node; 198.51.100.7 gets one later.
    node.write("all.yaml", &with_spec(&all, "externalIPs: [10.0.0.9, 198.51.100.7]"));
    let agent = node.agent(&[]);
    agent.wait_for("the ranges", has_ranges);
    assert_leads(Proto::Tcp, at("10.0.0.9:2222"), "10.0.0.9:2222");
    assert_leads(Proto::Tcp, at("10.96.0.9:2222"), "10.0.0.1:2222");
    assert_leads(Proto::Tcp, at("198.51.100.7:2222"), "10.0.0.1:2222");
    agent.wait_for_log("an interface of this node has the address");
    // The kubelet of another node.
    assert!(agent.dump().port_ranges.iter().all(|(key, frontend)| {
        let (first, last) = key.ports();
        frontend.kind == Kind::ClusterIp as u8 || !(first..=last).contains(&10_250) || key.proto != Proto::Tcp as u8
    }));
    // As clouds give each node the address of a load balancer: NodePorts answer there, and the rest is the Service's.
    let external = IpAddr::from([198, 51, 100, 7]);
    ip(&["route", "add", "local", "198.51.100.7", "dev", "lo"]);
    agent.wait_for("the local route is followed", |dump| dump.node_addrs.keys().any(|addr| addr.to_ip() == external));
    assert!(agent.dump().port_ranges.keys().any(|key| key.addr.to_ip() == external));
    assert_leads(Proto::Tcp, at("198.51.100.7:2222"), "10.0.0.1:2222");
    let explained = String::from_utf8(run(node, &["explain", "default/all"]).stdout).expect("text");
    let refused =
        |ip: &str| explained.lines().any(|line| line.contains(ip) && line.contains("an interface of this node"));
    assert!(refused("10.0.0.9") && !refused("198.51.100.7"), "{explained}");
    ip(&["route", "del", "local", "198.51.100.7", "dev", "lo"]);
    ip(&["addr", "add", "198.51.100.7/32", "dev", "lo"]);
    agent.wait_for("the ranges of the new address are gone", |dump| {
        dump.port_ranges.keys().all(|key| key.addr.to_ip() != external)
    });
    tcp_server("198.51.100.7:2222");
    assert_leads(Proto::Tcp, at("198.51.100.7:2222"), "198.51.100.7:2222");
}

/// Serves UDP and TCP ports of a pod.
fn serve(host: &lb_lab::network::Host, ports: &[u16]) {
    host.net.enter(|| {
        for ip in addresses(host) {
            for port in ports {
                let address = SocketAddr::from((ip, *port)).to_string();
                tcp_server(&address);
                udp_server(&address);
            }
        }
    });
}

fn clients_outside(node: &mut StoryNode) {
    let lan = Lan::make(LanOptions::default());
    let (node1, client) = (&lan.node1, &lan.client);
    client.net.run(&["ip", "route", "add", "198.51.100.7", "via", "172.30.0.11"]);
    for host in [pod(node1), pod(&lan.node2)] {
        serve(host, &[5060, 5061, 6100]);
    }
    let agent: Agent = places::agent(node, &lan);
    for (host, name) in [(pod(node1), "here"), (pod(&lan.node2), "there")] {
        let endpoints = addresses(host).map(|ip| (ip, name));
        let yaml = packets::service("Cluster", &endpoints);
        let yaml = yaml.replacen(
            "metadata: {name: web",
            "metadata: {annotations: {beeline.io/ports: \"5060-5099, 5100/udp+1000\"}, name: web",
            1,
        );
        assert!(yaml.contains("beeline.io/ports"), "{yaml}");
        node.write("web.yaml", &yaml);
        agent.wait_for("the ranges lead there", |dump| {
            has_ranges(dump) && dump.backends.values().all(|backend| addresses(host).contains(&backend.addr.to_ip()))
        });
        let [backend, _] = addresses(host);
        for port in [5060, 5061] {
            let server = SocketAddr::from((backend, port)).to_string();
            let to = SocketAddr::from(([198, 51, 100, 7], port));
            let [tcp, udp, _] = places::ask(client, to);
            assert_eq!([tcp, udp], [server.clone(), server], "{to}, an endpoint {name}");
        }
        let to = SocketAddr::from(([198, 51, 100, 7], 5100));
        let (udp, from) = client.net.enter(|| Client::udp(to).ask(to));
        assert_eq!((udp, from), (SocketAddr::from((backend, 6100)).to_string(), Some(to)));
    }
    // One client port for many ports of the VIP, as a phone has it.
    let client_of = |port: u16| {
        let to = SocketAddr::from(([198, 51, 100, 7], port));
        client.net.enter(|| {
            let socket = Client::udp(to);
            socket.bind("0.0.0.0:40000");
            socket.ask(to)
        })
    };
    let [backend, _] = addresses(pod(&lan.node2));
    for port in [5060, 5061, 5060] {
        let to = SocketAddr::from(([198, 51, 100, 7], port));
        assert_eq!(client_of(port), (SocketAddr::from((backend, port)).to_string(), Some(to)));
    }
    let flows = String::from_utf8(run(node, &["get", "flows"]).stdout).expect("text");
    assert!(flows.contains("198.51.100.7:5061"), "{flows}");
    // The range has gone: the flows of UDP end, and their next packets begin none.
    node.write("web.yaml", &packets::service("Cluster", &addresses(pod(node1)).map(|ip| (ip, "here"))));
    agent.wait_for("no ranges", |dump| !has_ranges(dump));
    until("the flows have gone", || {
        let flows = String::from_utf8(run(node, &["get", "flows"]).stdout).expect("text");
        !flows.lines().any(|flow| flow.starts_with("UDP") && flow.contains("198.51.100.7:5"))
    });
}

/// A client outside, with new flows for each part of a call: of TCP and UDP, at a single port and in a range.
fn one_endpoint_for_packets(node: &mut StoryNode) {
    let lan = Lan::make(LanOptions::default());
    let client = &lan.client;
    client.net.run(&["ip", "route", "add", "198.51.100.7", "via", "172.30.0.11"]);
    let pods = [(pod(&lan.node1), "here"), (pod(&lan.node2), "there")];
    for (host, _) in pods {
        packets::serve(host);
        serve(host, &[5060, 5061]);
    }
    let yaml = |pods: &[(&lb_lab::network::Host, &str)]| {
        let endpoints: Vec<_> =
            pods.iter().flat_map(|(host, name)| addresses(host).map(|address| (address, *name))).collect();
        let yaml = packets::service("Cluster", &endpoints).replacen(
            "metadata: {name: web",
            "metadata: {annotations: {beeline.io/affinity-scope: service, beeline.io/ports: \"5060-5099\"}, name: web",
            1,
        );
        yaml.replacen("  ports:\n", "  sessionAffinity: ClientIP\n  ports:\n", 1)
    };
    node.write("web.yaml", &yaml(&pods));
    let agent: Agent = places::agent(node, &lan);
    agent.wait_for("the ranges", has_ranges);
    let call = || {
        let met = [80, 5060, 5061].map(|port| {
            let [tcp, udp, _] = places::ask(client, SocketAddr::from(([198, 51, 100, 7], port)));
            [tcp, udp].map(|server| server.split(':').next().expect("an address").to_owned())
        });
        assert!(met.as_flattened().iter().all(|server| *server == met[0][0]), "{met:?}");
        met[0][0].clone()
    };
    let first = call();
    assert!((0..10).all(|_| call() == first));
    // The client's endpoint goes: all ports go on to the other one, and stay there when it comes back.
    let is_first = |host: &lb_lab::network::Host| addresses(host).iter().any(|address| address.to_string() == first);
    let left: Vec<_> = pods.into_iter().filter(|(host, _)| !is_first(host)).collect();
    node.write("web.yaml", &yaml(&left));
    let has =
        |dump: &Dump, address: &str| dump.backends.values().any(|backend| backend.addr.to_ip().to_string() == address);
    agent.wait_for("one endpoint", |dump| !has(dump, &first));
    let next = call();
    assert!(next != first && (0..10).all(|_| call() == next));
    node.write("web.yaml", &yaml(&pods));
    agent.wait_for("two endpoints", |dump| has(dump, &first));
    assert!((0..10).all(|_| call() == next));
}
