//! Load balancer addresses in a routing protocol: BIRD on two nodes announces the table of `--lb-routes` with the
//! documentation's configuration, and a BIRD outside leads its clients over both nodes.

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use lb_lab::network::{Host, Lan, LanOptions};

use crate::{
    Story,
    agent::until,
    node::StoryNode,
    packets::{TARGET, addresses, agent, has_link, pod, serve, service},
    sockets::tcp_ask,
};

pub const STORIES: &[Story] =
    &[("bird_announces_the_addresses_of_two_nodes_and_withdraws_them_within_a_second", bird_announces)];

/// Environment variable: directory of BIRD and its libraries.
const PROGRAMS: &str = "BEELINE_BIRD";
/// The page with the configuration.
const PAGE: &str = include_str!("../../../docs/operate/load-balancer-addresses.md");
const ADDRESS: &str = "198.51.100.7";
const ADDRESS6: &str = "2001:db8:64::7";
/// Limit for a withdrawal, from the change to the route of the peer. It takes less than a second, which is printed, but
/// on a busy machine. A route that BIRD reads only when it scans the table comes after a minute.
const LIMIT: Duration = Duration::from_secs(10);

/// True if BIRD is there.
pub fn has_bird() -> bool {
    std::env::var_os(PROGRAMS).is_some()
}

/// A running BIRD, killed when dropped.
struct Bird(Child);

impl Bird {
    fn start(node: &StoryNode, host: &Host, configuration: &str) -> Self {
        let programs = std::env::var_os(PROGRAMS).map(PathBuf::from).expect("the runner has checked it");
        let directory = node.directory.join(format!("bird-{}", host.v4));
        fs::create_dir(&directory).expect("a directory");
        fs::write(directory.join("bird.conf"), configuration).expect("a file");
        let mut command = Command::new(programs.join("bird"));
        command.args(["-f", "-c", "bird.conf", "-s", "bird.ctl"]).current_dir(&directory).stdin(Stdio::null());
        Self(host.net.spawn(command.env("LD_LIBRARY_PATH", &programs)))
    }
}

impl Drop for Bird {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _ended = self.0.wait();
    }
}

/// The configuration of the documentation, for a node and its peer.
fn documented(own: &Host, peer: &Host) -> String {
    let start = PAGE.find("router id 192.0.2.1;").expect("the example");
    let example = PAGE[start..].split("```").next().expect("its end");
    let (own, peer, peer6) = (own.v4.to_string(), peer.v4.to_string(), peer.v6.to_string());
    let example = example.replace("192.0.2.254", &peer).replace("2001:db8::254", &peer6);
    example.replace("router id 192.0.2.1;", &format!("router id {own};"))
}

/// A router outside, which uses all of its neighbours' routes at once.
fn router(own: &Host, nodes: [&Host; 2]) -> String {
    let sessions = nodes.map(|node| {
        format!(
            "protocol bgp {{ direct; local as 64512; neighbor {} as 64512; \
             ipv4 {{ import all; export none; }}; }}\n\
             protocol bgp {{ direct; local as 64512; neighbor {} as 64512; \
             ipv6 {{ import all; export none; }}; }}\n",
            node.v4, node.v6
        )
    });
    format!(
        "router id {};\nprotocol device {{}}\n\
         protocol kernel {{ merge paths on; ipv4 {{ import none; export all; }}; }}\n\
         protocol kernel {{ merge paths on; ipv6 {{ import none; export all; }}; }}\n{}",
        own.v4,
        sessions.concat()
    )
}

/// Next hops by which the router outside leads to an address; of IPv6 they may be link-local.
fn next_hops(client: &Host, family: &str, address: &str) -> BTreeSet<IpAddr> {
    let text = client.net.run(&["ip", family, "route", "show", address]);
    let words: Vec<&str> = text.split_whitespace().collect();
    words.windows(2).filter(|pair| pair[0] == "via").filter_map(|pair| pair[1].parse().ok()).collect()
}

/// Waits until the router leads the addresses to these nodes, and returns the time that it took.
fn until_next_hops(client: &Host, expected: &[&Host]) -> Duration {
    let start = Instant::now();
    let expected: BTreeSet<IpAddr> = expected.iter().map(|host| host.v4.into()).collect();
    until(&format!("{ADDRESS} by {expected:?}"), || next_hops(client, "-4", ADDRESS) == expected);
    until(&format!("{ADDRESS6} by as many"), || next_hops(client, "-6", ADDRESS6).len() == expected.len());
    start.elapsed()
}

/// Asserts that of 40 connects of the client to each address none fails, and that they reach the servers of all of
/// these pods, and no others.
#[track_caller]
fn assert_reached(client: &Host, pods: &[&Host]) {
    for address in [ADDRESS, ADDRESS6] {
        let to = SocketAddr::new(address.parse().expect("an address"), 80);
        let server = |pod: &&Host| SocketAddr::new(if to.is_ipv4() { pod.v4.into() } else { pod.v6.into() }, TARGET);
        let expected: BTreeSet<String> = pods.iter().map(|pod| server(pod).to_string()).collect();
        let ask = || tcp_ask(to).expect("an answer").0;
        let reached: BTreeSet<String> = client.net.enter(|| (0..40).map(|_| ask()).collect());
        assert_eq!(reached, expected, "{address}");
    }
}

fn bird_announces(node: &mut StoryNode) {
    let lan = Lan::make(LanOptions::default());
    let (client, nodes) = (&lan.client, [&lan.node1.host, &lan.node2.host]);
    let pods = [pod(&lan.node1), pod(&lan.node2)];
    pods.into_iter().for_each(serve);
    // By ports too, so that connections of one client go over both nodes.
    client.net.set("ipv4/fib_multipath_hash_policy", "1");
    client.net.set("ipv6/fib_multipath_hash_policy", "1");
    let second = StoryNode {
        cgroup: node.cgroup.join("node2"),
        pins: node.pins.with_file_name("beeline2"),
        yaml: node.directory.join("second/yaml"),
        directory: node.directory.join("second"),
    };
    [&second.cgroup, &second.yaml]
        .into_iter()
        .for_each(|directory| fs::create_dir_all(directory).expect("a directory"));
    // Each agent is on the node "here".
    let endpoints = |places: &[(&Host, &str)]| -> String {
        let endpoints: Vec<_> = places.iter().flat_map(|(pod, node)| addresses(pod).map(|ip| (ip, *node))).collect();
        let both = format!("{{ip: {ADDRESS}}}, {{ip: \"{ADDRESS6}\"}}");
        service("Local", &endpoints).replace(&format!("{{ip: {ADDRESS}}}"), &both)
    };
    let [one, two] = pods;
    node.write("web.yaml", &endpoints(&[(one, "here"), (two, "there")]));
    second.write("web.yaml", &endpoints(&[(one, "there"), (two, "here")]));
    let _first = agent(node, &lan, &["--lb-routes", "190"]);
    let cgroup = second.cgroup.to_str().expect("text");
    let flags = ["--devices", "eth0*", "--lb-routes", "190", "--cgroup", cgroup];
    let _second = nodes[1].net.enter(|| second.agent(&flags));
    until("the programs are at the device of node2", || has_link(&second) || has_filters(&lan));
    let _birds = [
        Bird::start(node, nodes[0], &documented(nodes[0], client)),
        Bird::start(node, nodes[1], &documented(nodes[1], client)),
        Bird::start(node, client, &router(client, nodes)),
    ];
    println!("sessions and routes after {:?}", until_next_hops(client, &nodes));
    assert_reached(client, &pods);

    // The last local endpoint goes.
    second.write("web.yaml", &endpoints(&[(two, "here")]));
    node.write("web.yaml", &endpoints(&[(two, "there")]));
    let took = until_next_hops(client, &[nodes[1]]);
    println!("withdrawn without a local endpoint after {took:?}");
    assert!(took < LIMIT, "{took:?}");
    assert_reached(client, &[two]);
    node.write("web.yaml", &endpoints(&[(one, "here"), (two, "there")]));
    println!("back after {:?}", until_next_hops(client, &nodes));

    // The node is to be drained; it serves on.
    let cordoned =
        |is: bool| format!("apiVersion: v1\nkind: Node\nmetadata: {{name: here}}\nspec: {{unschedulable: {is}}}\n");
    node.write("node.yaml", &cordoned(true));
    let took = until_next_hops(client, &[nodes[1]]);
    println!("withdrawn from a cordoned node after {took:?}");
    assert!(took < LIMIT, "{took:?}");
    assert_reached(client, &[two]);
    node.write("node.yaml", &cordoned(false));
    until_next_hops(client, &nodes);
}

/// True if filters run at the uplink of node2, as on a kernel without TCX.
fn has_filters(lan: &Lan) -> bool {
    lan.node2.host.net.run(&["tc", "filter", "show", "dev", "eth0", "ingress"]).contains("tc_ingress")
}
