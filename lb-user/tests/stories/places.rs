//! Backends and clients wherever a node reaches them: on the node itself, behind links without addresses, behind
//! bridges, and on directly connected networks. No endpoint has a `nodeName`, or all have a wrong one.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
};

use lb_lab::network::{Host, Lan, LanOptions};

use crate::{
    Story,
    agent::{Agent, run, until},
    node::StoryNode,
    packets::{NODE_PORT, TARGET, addresses, pod, serve, service},
    sockets::{Client, tcp_ask},
};

pub const STORIES: &[Story] = &[
    ("places_of_backends_are_what_the_routes_say", backends_are_where_the_routes_say),
    ("places_by_which_node_ports_answer_are_all_devices_and_own_addresses", node_ports_answer_everywhere),
    ("places_behind_a_bridge_are_served_where_netfilter_sees_bridged_packets", bridges_with_netfilter_are_served),
];

/// Starts the agent of node1 without a choice of devices. Its cgroup is empty: clients are seen by their packets alone.
pub fn agent(node: &StoryNode, lan: &Lan) -> Agent {
    agent_with(node, lan, &[])
}

/// As [`agent`], with more flags.
pub fn agent_with(node: &StoryNode, lan: &Lan, more: &[&str]) -> Agent {
    let cgroup = node.cgroup.join("node1");
    fs::create_dir_all(&cgroup).expect("a cgroup");
    let flags = [&["--cgroup", cgroup.to_str().expect("text")], more].concat();
    lan.node1.host.net.enter(|| node.agent(&flags))
}

/// Returns a Service without an endpoint's `nodeName`, or with that of another node.
fn service_at(endpoints: &[IpAddr], node_name: Option<&str>) -> String {
    let endpoints: Vec<_> = endpoints.iter().map(|ip| (*ip, node_name.unwrap_or("none"))).collect();
    service("Cluster", &endpoints).replace(", nodeName: none", "")
}

/// Asks by TCP and UDP. Returns the servers, and the client address that the TCP server saw.
pub fn ask(from: &Host, to: SocketAddr) -> [String; 3] {
    from.net.enter(|| {
        let (tcp, seen) = tcp_ask(to).unwrap_or_else(|error| panic!("{} to {to}: {error}", from.v4));
        let (udp, replier) = Client::udp(to).ask(to);
        assert_eq!(replier, Some(to), "UDP to {to}");
        [tcp, udp, seen]
    })
}

/// Waits until the agent knows the devices: the last of them has an entry and, but for links of pods, the programs.
pub fn wait_for_devices(node: &StoryNode, lan: &Lan, served: &[&str]) {
    let shown = || {
        let output = lan.node1.host.net.enter(|| run(node, &["get", "devices"]));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let has_programs = |shown: &str, name: &str| {
        shown.lines().any(|line| line.starts_with(&format!("{name} ")) && line.contains(" uplink"))
    };
    until("all devices but links of pods have the programs", || {
        let shown = shown();
        served.iter().all(|name| has_programs(&shown, name))
    });
    let shown = shown();
    for line in shown.lines().filter(|line| line.starts_with("pod") || line.starts_with("cali")) {
        assert!(!line.contains(" tcx ") && !line.contains(" clsact "), "{line}");
    }
}

fn backends_are_where_the_routes_say(node: &mut StoryNode) {
    let lan = Lan::make(LanOptions::default());
    let (node1, client) = (&lan.node1, &lan.client);
    let (host, container, unnumbered) = (node1.add_network(), node1.add_container(), node1.add_unnumbered_pod());
    let by_eth1: [IpAddr; 2] = [[10, 9, 0, 1].into(), "fd09::1".parse().expect("an address")];
    let by_docker0: [IpAddr; 2] = [[172, 17, 0, 1].into(), "fd17::1".parse().expect("an address")];
    client.net.run(&["ip", "route", "add", "198.51.100.7", "via", "172.30.0.11"]);
    client.net.run(&["ip", "route", "add", "10.96.0.1", "via", "172.30.0.11"]);
    let places = [
        ("the node itself", &node1.host, addresses(client)),
        ("a pod behind a numbered link", pod(node1), addresses(client)),
        ("a pod behind an unnumbered link", &unnumbered, addresses(client)),
        ("a container behind a bridge", &container, by_docker0),
        ("a host on a second network", &host, by_eth1),
    ];
    places.iter().for_each(|(_, backend, _)| serve(backend));
    node.write("web.yaml", &service_at(&[], None));
    let agent = agent(node, &lan);
    wait_for_devices(node, &lan, &["eth0", "eth1", "docker0"]);
    for node_name in [None, Some("there")] {
        for (place, backend, seen) in &places {
            node.write("web.yaml", &service_at(&addresses(backend), node_name));
            agent.wait_for(place, |dump| {
                dump.backends.len() == 4
                    && dump.backends.values().all(|to| addresses(backend).contains(&to.addr.to_ip()))
            });
            for ((own, backend), seen) in addresses(&node1.host).into_iter().zip(addresses(backend)).zip(seen) {
                let server = SocketAddr::from((backend, TARGET)).to_string();
                let external = [SocketAddr::from(([198, 51, 100, 7], 80)), SocketAddr::from(([10, 96, 0, 1], 80))];
                let external = external.into_iter().filter(|_| own.is_ipv4());
                for to in external.chain([SocketAddr::from((own, NODE_PORT))]) {
                    let wanted = [server.clone(), server.clone(), seen.to_string()];
                    assert_eq!(ask(client, to), wanted, "{place}, {to}, nodeName {node_name:?}");
                }
            }
        }
    }
    let counters = String::from_utf8(run(node, &["get", "counters"]).stdout).expect("text");
    let row = counters.lines().find(|line| line.contains("no_route")).expect("a counter");
    assert!(row.split_whitespace().any(|word| word == "0"), "{row}");
}

fn node_ports_answer_everywhere(node: &mut StoryNode) {
    let lan = Lan::make(LanOptions::default());
    let node1 = &lan.node1;
    let (host, container) = (node1.add_network(), node1.add_container());
    let (here, far) = (pod(node1), pod(&lan.node2));
    [here, far, &host, &container].into_iter().for_each(serve);
    node.write("web.yaml", &service_at(&[], None));
    let agent = agent(node, &lan);
    wait_for_devices(node, &lan, &["eth0", "eth1", "docker0"]);
    let own: [[IpAddr; 2]; 3] = [
        [[10, 9, 0, 1].into(), "fd09::1".parse().expect("an address")],
        [[172, 17, 0, 1].into(), "fd17::1".parse().expect("an address")],
        addresses(&node1.host),
    ];
    // The host has no route to other networks than its own.
    let clients: [(&Host, &[[IpAddr; 2]]); 2] = [(&host, &own[..1]), (&container, &own[..])];
    for (backend, node_name) in
        [(far, None), (here, None), (here, Some("here")), (&host, None), (&container, None), (&container, Some("here"))]
    {
        node.write("web.yaml", &service_at(&addresses(backend), node_name));
        agent.wait_for("its backends", |dump| {
            dump.backends.len() == 4 && dump.backends.values().all(|to| addresses(backend).contains(&to.addr.to_ip()))
        });
        // A client that is its own backend is included (hairpin).
        for (client, addresses_dialled) in clients {
            for dialled in addresses_dialled {
                for (own, backend) in dialled.iter().zip(addresses(backend)) {
                    let to = SocketAddr::from((*own, NODE_PORT));
                    let server = SocketAddr::from((backend, TARGET)).to_string();
                    let [tcp, udp, _] = ask(client, to);
                    assert_eq!([&tcp, &udp], [&server, &server], "{} to {to}, nodeName {node_name:?}", client.v4);
                }
            }
        }
    }
}

/// br_netfilter, which Kubernetes asks for, hands packets to netfilter before they reach the bridge itself, and so with
/// the address that the client dialled. As on hosts with Docker, netfilter masquerades containers.
fn bridges_with_netfilter_are_served(node: &mut StoryNode) {
    if std::process::Command::new("nft").arg("--version").output().is_err() {
        return println!("LACKS nft: no rule masquerades");
    }
    let lan = Lan::make(LanOptions::default());
    let node1 = &lan.node1;
    let (container, here) = (node1.add_container(), pod(node1));
    serve(here);
    for family in ["ip", "ip6"] {
        let path = format!("/proc/sys/net/bridge/bridge-nf-call-{family}tables");
        if node1.host.net.enter(|| fs::write(path, "1")).is_err() {
            return println!("LACKS br_netfilter");
        }
    }
    node1.host.net.run(&[
        "nft",
        "table inet docker { chain out { type nat hook postrouting priority srcnat; \
         ip saddr 172.17.0.0/16 oifname != docker0 masquerade; \
         ip6 saddr fd17::/64 oifname != docker0 masquerade; }; }",
    ]);
    node.write("web.yaml", &service_at(&addresses(here), None));
    let agent = agent(node, &lan);
    wait_for_devices(node, &lan, &["eth0", "docker0"]);
    agent.wait_for("its backends", |dump| dump.backends.len() == 4);
    let by_docker0: [IpAddr; 2] = [[172, 17, 0, 1].into(), "fd17::1".parse().expect("an address")];
    for dialled in [by_docker0, addresses(&node1.host)] {
        for (own, backend) in dialled.into_iter().zip(addresses(here)) {
            let server = SocketAddr::from((backend, TARGET)).to_string();
            for _ in 0..3 {
                let [tcp, udp, _] = ask(&container, SocketAddr::from((own, NODE_PORT)));
                assert_eq!([&tcp, &udp], [&server, &server], "{own}");
            }
        }
    }
}
