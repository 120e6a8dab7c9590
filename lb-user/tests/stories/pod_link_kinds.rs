//! Pods behind links of other kinds: netkit, ports of Open vSwitch, and macvlans and ipvlans beside one of the node.
//! `cargo xtask kernels` runs these stories where Debian's modules are.

use std::net::{IpAddr, SocketAddr};

use lb_lab::network::{Host, Lan, LanOptions, RpFilter};

use crate::{
    Story,
    agent::{Agent, until},
    link_kinds::has,
    node::StoryNode,
    packets::{NODE_PORT, TARGET, addresses, pod, serve, service},
    places::{agent, agent_with, ask, wait_for_devices},
    sockets::{Client, tcp_ask, tcp_server, udp_server},
};

pub const STORIES: &[Story] = &[
    ("pods_behind_netkit_are_clients_and_backends_with_and_without_host_routing", netkit),
    ("pods_behind_open_vswitch_are_clients_and_backends", open_vswitch),
    ("pods_with_a_macvlan_beside_one_of_the_node_are_backends", |node| beside(node, "macvlan", "mode bridge")),
    ("pods_with_an_ipvlan_l2_beside_one_of_the_node_are_backends", |node| beside(node, "ipvlan", "mode l2")),
    ("pods_with_an_ipvlan_l3_beside_one_of_the_node_are_backends", |node| beside(node, "ipvlan", "mode l3")),
    ("pods_with_an_ipvlan_l3s_beside_one_of_the_node_are_backends", |node| beside(node, "ipvlan", "mode l3s")),
];

/// Makes these the endpoints, and waits until the maps have them.
fn move_to(node: &mut StoryNode, agent: &Agent, backends: [IpAddr; 2], name: &str) {
    node.write("web.yaml", &service("Cluster", &backends.map(|ip| (ip, name))).replace(", nodeName: none", ""));
    agent.wait_for("its backends", |dump| {
        dump.backends.len() == 4 && dump.backends.values().all(|to| backends.contains(&to.addr.to_ip()))
    });
}

/// Asks at a NodePort, and asserts who answers. Returns the client that the TCP server saw.
fn asked(client: &Host, dialled: IpAddr, backend: IpAddr) -> String {
    let (to, server) = (SocketAddr::from((dialled, NODE_PORT)), SocketAddr::from((backend, TARGET)).to_string());
    let [tcp, udp, seen] = ask(client, to);
    assert_eq!([&tcp, &udp], [&server, &server], "{to}");
    seen
}

/// Puts a pair of netkit devices in the place of the link of a pod, as Cilium's mode netkit does: ends of layer 3 that
/// ask for no neighbours, and yet have Ethernet headers.
fn replace_link(node: &Host, pod: &Host) {
    let name = format!("pod{}", pod.v4.octets()[3]);
    // The command of Debian 12 knows no peers of netkit. Its name is the first that is free.
    node.net.ip(&format!(
        "link del {name}\nlink add {name} type netkit\nlink set nk0 netns {} name eth0\nlink set {name} up\n",
        pod.net.path()
    ));
    for (ip, bits) in addresses(pod).into_iter().zip([32, 128]) {
        let gateway = if ip.is_ipv4() { "10.244.1.1" } else { "fd44:0:0:1::1" };
        let nodad = if ip.is_ipv4() { "" } else { " nodad" };
        node.net.ip(&format!("addr add {gateway}/{bits} dev {name}{nodad}\nroute add {ip}/{bits} dev {name}\n"));
        pod.net.ip(&format!(
            "link set eth0 up\naddr add {ip}/{bits} dev eth0{nodad}\nroute add {gateway}/{bits} dev eth0\n\
             route add default via {gateway}\n"
        ));
    }
}

fn netkit(node: &mut StoryNode) {
    if !has("netkit", "") {
        return;
    }
    let lan = Lan::make(LanOptions::default());
    let (host, here, there) = (&lan.node1.host, pod(&lan.node1), pod(&lan.node2));
    replace_link(host, here);
    [here, there].into_iter().for_each(serve);
    node.write("web.yaml", &service("Cluster", &[]));
    let mut agent = agent(node, &lan);
    wait_for_devices(node, &lan, &["eth0"]);
    move_to(node, &agent, addresses(here), "here");
    let sides = addresses(&lan.client).into_iter().zip(addresses(host)).zip(addresses(here));
    for ((client, own), backend) in sides {
        assert_eq!(asked(&lan.client, own, backend), client.to_string());
    }
    // Packets of the pod without sockets of the node: its link gets the programs with the first.
    move_to(node, &agent, addresses(there), "there");
    for (vip, backend) in ["10.96.0.1:80", "[fd96::1]:80"].into_iter().zip(addresses(there)) {
        let (vip, server) = (vip.parse().expect("an address"), SocketAddr::from((backend, TARGET)).to_string());
        assert_eq!(here.net.enter(|| tcp_ask(vip)).expect("an answer").0, server);
        assert_eq!(here.net.enter(|| Client::udp(vip).ask(vip)), (server, Some(vip)));
    }
    agent.terminate();
    let agent = agent_with(node, &lan, &["--host-routing"]);
    agent.wait_until_in_service();
    move_to(node, &agent, addresses(here), "here");
    let shown = || String::from_utf8(host.net.enter(|| crate::agent::run(node, &["get", "devices"])).stdout);
    until("the link is entered", || shown().is_ok_and(|shown| shown.contains("pod, host routing")));
    for (own, backend) in addresses(host).into_iter().zip(addresses(here)) {
        asked(&lan.client, own, backend);
    }
}

/// As Antrea has it: pods are ports of a datapath of Open vSwitch, whose port `gw0` has the node's address among them.
fn open_vswitch(node: &mut StoryNode) {
    let lan = Lan::make(LanOptions::default());
    let (host, here, there) = (&lan.node1.host, pod(&lan.node1), pod(&lan.node2));
    let link = format!("pod{}", here.v4.octets()[3]);
    let command = |words: &[&str]| {
        let output = host.net.enter(|| std::process::Command::new("ovs-dpctl").args(words).output());
        output.is_ok_and(|output| output.status.success())
    };
    if !command(&["add-dp", "br-int"]) {
        return println!("LACKS Open vSwitch");
    }
    host.net.ip(&format!("addr flush dev {link}\nroute flush dev {link}\n"));
    host.net.ip_with(&["-6"], &format!("route flush dev {link}\n"));
    assert!(command(&["add-if", "br-int", &link]) && command(&["add-if", "br-int", "gw0,type=internal"]));
    for family in ["eth_type(0x0806),arp()", "eth_type(0x0800),ipv4(frag=no)", "eth_type(0x86dd),ipv6(frag=no)"] {
        for (from, to) in [(1, "2"), (2, "1")] {
            assert!(command(&["add-flow", "br-int", &format!("in_port({from}),eth(),{family}"), to]));
        }
    }
    host.net.ip("link set gw0 up\naddr add 10.244.1.1/24 dev gw0\naddr add fd44:0:0:1::1/64 dev gw0 nodad\n");
    [here, there].into_iter().for_each(serve);
    node.write("web.yaml", &service("Cluster", &[]));
    let agent = agent(node, &lan);
    wait_for_devices(node, &lan, &["eth0", "gw0"]);
    for name in ["none", "here"] {
        move_to(node, &agent, addresses(here), name);
        for (own, backend) in addresses(host).into_iter().zip(addresses(here)) {
            asked(&lan.client, own, backend);
        }
    }
    move_to(node, &agent, addresses(there), "there");
    for (vip, backend) in ["10.96.0.1:80", "[fd96::1]:80"].into_iter().zip(addresses(there)) {
        let (vip, server) = (vip.parse().expect("an address"), SocketAddr::from((backend, TARGET)).to_string());
        assert_eq!(here.net.enter(|| tcp_ask(vip)).expect("an answer").0, server);
        assert_eq!(here.net.enter(|| Client::udp(vip).ask(vip)), (server, Some(vip)));
    }
}

/// The pod has an address of the uplink's network on a device that stands on the uplink, and the node reaches it by one
/// of the same kind.
fn beside(node: &mut StoryNode, kind: &str, mode: &str) {
    let lan = Lan::make(LanOptions { rp_filter: RpFilter::Loose, ..LanOptions::default() });
    let (host, here) = (&lan.node1.host, pod(&lan.node1));
    let make = |name: &str| {
        let line = format!("link add {name} link eth0 type {kind} {mode}");
        let words = line.split(' ').collect::<Vec<_>>();
        host.net.enter(|| std::process::Command::new("ip").args(words).output()).is_ok_and(|made| made.status.success())
    };
    if !make("own0") || !make("of-pod") {
        return println!("LACKS links of kind {kind} with {mode}");
    }
    let backends: [IpAddr; 2] = ["172.30.0.77", "fd30::77"].map(|ip| ip.parse().expect("an address"));
    host.net.ip(&format!("link set of-pod netns {} name net1\nlink set own0 up\n", here.net.path()));
    here.net.ip("link set net1 up\naddr add 172.30.0.77/24 dev net1\naddr add fd30::77/64 dev net1 nodad\n");
    host.net.ip(
        "addr add 172.30.0.211/32 dev own0\naddr add fd30::211/128 dev own0 nodad\nroute add 172.30.0.77 dev own0\n\
         route add fd30::77 dev own0\n",
    );
    here.net.enter(|| {
        for server in backends.map(|ip| SocketAddr::from((ip, TARGET)).to_string()) {
            tcp_server(&server);
            udp_server(&server);
        }
    });
    node.write("web.yaml", &service("Cluster", &[]));
    let agent = agent(node, &lan);
    wait_for_devices(node, &lan, &["eth0", "own0"]);
    for name in ["none", "here"] {
        move_to(node, &agent, backends, name);
        for client in [&lan.client, &lan.node2.host] {
            for (own, backend) in addresses(host).into_iter().zip(backends) {
                asked(client, own, backend);
            }
        }
    }
}
