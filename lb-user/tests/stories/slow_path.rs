//! Flows that the kernel itself forwards: by devices without an Ethernet header, under IPsec policies, and by routes
//! that marks choose.

use std::{
    net::{IpAddr, SocketAddr, TcpStream},
    time::Duration,
};

use lb_common::ServiceFlags;
use lb_lab::network::{Host, LabNode, Lan, LanOptions, RpFilter};

use crate::{
    Story,
    agent::{Agent, run, until},
    node::StoryNode,
    packets::{NODE_PORT, TARGET, addresses, pod, serve, service},
    places::{agent, agent_with, ask, wait_for_devices},
};

pub const STORIES: &[Story] = &[
    ("slow_path_leads_through_devices_without_ethernet_in_both_directions", devices_without_ethernet),
    ("slow_path_leaves_packets_to_ipsec_policies", ipsec_policies),
    ("slow_path_follows_routes_that_marks_choose", routes_by_marks),
    ("slow_path_masquerades_all_clients_with_the_flag", all_clients_are_masqueraded),
];

/// Returns the value of a counter.
fn count(node: &StoryNode, counter: &str) -> u64 {
    let counters = String::from_utf8(run(node, &["get", "counters"]).stdout).expect("text");
    let row = counters.lines().find(|line| line.contains(counter)).expect("a counter");
    row.split_whitespace().find_map(|word| word.parse().ok()).expect("a number")
}

/// Makes these the endpoints, and waits until the maps have them.
fn move_to(node: &mut StoryNode, agent: &Agent, backend: &Host, node_name: &str) {
    node.write("web.yaml", &service("Cluster", &addresses(backend).map(|ip| (ip, node_name))));
    agent.wait_for("its backends", |dump| {
        dump.backends.len() == 4 && dump.backends.values().all(|to| addresses(backend).contains(&to.addr.to_ip()))
    });
}

fn node_port(ip: IpAddr) -> SocketAddr {
    SocketAddr::from((ip, NODE_PORT))
}

fn devices_without_ethernet(node: &mut StoryNode) {
    let lan = Lan::make(LanOptions::default());
    let node1 = &lan.node1;
    let (far, _tunnel) = match node1.add_tunnel() {
        Ok(added) => added,
        Err(error) => return println!("LACKS TUN devices: {error}"),
    };
    let (here, there) = (pod(node1), pod(&lan.node2));
    [&far, here, there].into_iter().for_each(serve);
    node.write("web.yaml", &service("Cluster", &[]));
    let agent = agent(node, &lan);
    wait_for_devices(node, &lan, &["eth0", "tun0"]);
    let by_tun: [IpAddr; 2] = [[10, 8, 0, 1].into(), "fd08::1".parse().expect("an address")];
    let clients: [(&Host, [IpAddr; 2]); 2] = [(&lan.client, addresses(&node1.host)), (&far, by_tun)];
    // A client that is its own backend is included (hairpin).
    for (backend, name) in [(&far, "there"), (there, "there"), (here, "here")] {
        move_to(node, &agent, backend, name);
        for (client, dialled) in clients {
            for (own, backend) in dialled.into_iter().zip(addresses(backend)) {
                let to = node_port(own);
                let server = SocketAddr::from((backend, TARGET)).to_string();
                for _ in 0..3 {
                    let [tcp, udp, _] = ask(client, to);
                    assert_eq!([&tcp, &udp], [&server, &server], "{} to {to}", client.v4);
                }
            }
        }
    }
    move_to(node, &agent, &far, "there");
    let to = node_port(lan.node1.host.v4.into()).to_string();
    let trace = |node: &StoryNode, from: &Host| {
        let words = ["trace", "tcp", &to, "--from", &from.v4.to_string()];
        String::from_utf8(lan.node1.host.net.enter(|| run(node, &words)).stdout).expect("text")
    };
    let text = trace(node, &lan.client);
    assert!(text.contains("the slow path by tun0") && text.contains("without an Ethernet header"), "{text}");
    move_to(node, &agent, there, "there");
    let text = trace(node, &lan.client);
    assert!(text.contains("a redirect to eth0, masqueraded as 172.30.0.11"), "{text}");
    assert!(count(node, "slow_path_no_ethernet") >= 100, "its packets are counted");
    assert_eq!(count(node, "no_route"), 0);
}

/// The kernel of the test has no ESP: a policy that blocks stands for encryption. As behind kube-proxy, it names
/// the address of the node, which the backend sees.
fn ipsec_policies(node: &mut StoryNode) {
    let listed = std::process::Command::new("ip").args(["xfrm", "policy", "list"]).output();
    if !listed.is_ok_and(|listed| listed.status.success()) {
        return println!("LACKS IPsec policies in this kernel");
    }
    let lan = Lan::make(LanOptions::default());
    let (host, there) = (&lan.node1.host, pod(&lan.node2));
    serve(there);
    node.write("web.yaml", &service("Cluster", &[]));
    let agent = agent(node, &lan);
    wait_for_devices(node, &lan, &["eth0"]);
    move_to(node, &agent, there, "there");
    let own = addresses(host);
    own.iter().for_each(|ip| drop(ask(&lan.client, node_port(*ip))));
    assert_eq!(count(node, "slow_path_ipsec"), 0, "there is no policy yet");
    let policy = |verb: &str| {
        for (own, pods) in [("172.30.0.11/32", "10.244.2.0/24"), ("fd30::11/128", "fd44:0:0:2::/64")] {
            let action = if verb == "add" { &["action", "block"][..] } else { &[] };
            let words = ["ip", "xfrm", "policy", verb, "src", own, "dst", pods, "dir", "out"];
            host.net.run(&[&words, action].concat());
        }
    };
    policy("add");
    until("packets to the backend are the policy's", || {
        own.iter().all(|ip| {
            let dialled =
                lan.client.net.enter(|| TcpStream::connect_timeout(&node_port(*ip), Duration::from_millis(300)));
            dialled.is_err()
        })
    });
    assert!(count(node, "slow_path_ipsec") > 0);
    policy("delete");
    until("the redirect is back", || {
        let before = count(node, "slow_path_ipsec");
        own.iter().for_each(|ip| drop(ask(&lan.client, node_port(*ip))));
        count(node, "slow_path_ipsec") == before
    });
}

/// The main table has no route to the backend: only packets with a mark of netfilter have one.
fn routes_by_marks(node: &mut StoryNode) {
    if std::process::Command::new("nft").arg("--version").output().is_err() {
        return println!("LACKS nft: no rule sets a mark");
    }
    // A check of the reverse path would not know the mark either.
    let lan = Lan::make(LanOptions { rp_filter: RpFilter::Off, ..LanOptions::default() });
    let LabNode { host, .. } = &lan.node1;
    let there = pod(&lan.node2);
    serve(there);
    node.write("web.yaml", &service("Cluster", &[]));
    // As providers of a second line do it: the mark of a connection is restored as a whole.
    host.net.run(&[
        "nft",
        "table inet lines { chain in { type filter hook prerouting priority mangle; \
         ct mark != 0 meta mark set ct mark accept; iifname eth0 meta mark set 7; ct mark set meta mark; }; }",
    ]);
    for (family, pods, gateway) in [("-4", "10.244.2.0/24", "172.30.0.12"), ("-6", "fd44:0:0:2::/64", "fd30::12")] {
        for command in [
            format!("route del {pods} via {gateway}"),
            format!("route add unreachable {pods}"),
            "rule add fwmark 7 lookup 101".to_owned(),
            format!("route add {pods} via {gateway} table 101"),
        ] {
            let words: Vec<&str> = ["ip", family].into_iter().chain(command.split(' ')).collect();
            host.net.run(&words);
        }
    }
    let agent = agent(node, &lan);
    wait_for_devices(node, &lan, &["eth0"]);
    move_to(node, &agent, there, "there");
    for (own, backend) in addresses(host).into_iter().zip(addresses(there)) {
        let server = SocketAddr::from((backend, TARGET)).to_string();
        for _ in 0..3 {
            let [tcp, udp, seen] = ask(&lan.client, node_port(own));
            assert_eq!([tcp, udp, seen], [server.clone(), server.clone(), own.to_string()]);
        }
    }
    assert!(count(node, "slow_path_marks") > 0);
}

/// Backends see the node, as behind kube-proxy, but with `externalTrafficPolicy: Local`.
fn all_clients_are_masqueraded(node: &mut StoryNode) {
    let lan = Lan::make(LanOptions::default());
    let host = &lan.node1.host;
    let here = pod(&lan.node1);
    serve(here);
    let agent = agent_with(node, &lan, &["--masquerade", "always"]);
    wait_for_devices(node, &lan, &["eth0"]);
    for policy in ["Cluster", "Local"] {
        node.write("web.yaml", &service(policy, &addresses(here).map(|ip| (ip, "here"))));
        agent.wait_for("the backends and the policy", |dump| {
            let is_local = |flags: u32| flags & ServiceFlags::EXTERNAL_LOCAL != 0;
            dump.backends.len() == 4 && dump.services.values().all(|port| is_local(port.flags) == (policy == "Local"))
        });
        for ((own, backend), client) in addresses(host).into_iter().zip(addresses(here)).zip(addresses(&lan.client)) {
            let server = SocketAddr::from((backend, TARGET)).to_string();
            let [tcp, udp, seen] = ask(&lan.client, node_port(own));
            assert_eq!([&tcp, &udp], [&server, &server], "{policy}");
            assert_eq!(seen == client.to_string(), policy == "Local", "{policy}: the backend sees {seen}");
        }
    }
    assert!(count(node, "slow_path_policy") > 0);
    let to = node_port(host.v4.into()).to_string();
    let words = ["trace", "tcp", &to, "--from", &lan.client.v4.to_string()];
    let trace = |node: &StoryNode| String::from_utf8(host.net.enter(|| run(node, &words)).stdout).expect("text");
    assert!(!trace(node).contains("always"), "{}", trace(node));
    node.write("web.yaml", &service("Cluster", &addresses(here).map(|ip| (ip, "here"))));
    until("the trace has the way", || trace(node).contains("netfilter masquerades (--masquerade always)"));
}
