//! Load balancer addresses in a routing protocol: BIRD or FRR on two nodes announces the table of `--lb-routes` with
//! the documentation's configuration, and a BIRD or FRR outside leads its clients over both nodes.

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use lb_lab::{
    network::{Host, Lan, LanOptions},
    watchdog::Watchdog,
};
use rustix::process::{Pid, Signal, kill_process};

use crate::{
    Story,
    agent::{Agent, until},
    node::StoryNode,
    packets::{TARGET, addresses, agent, has_link, pod, serve, service},
    sockets::tcp_ask,
};

pub const STORIES: &[Story] = &[
    ("bird_announces_the_addresses_of_two_nodes_and_withdraws_them_within_a_second", bird_announces),
    ("frr_outside_follows_bird_and_frr_on_two_nodes_within_a_second", frr_follows),
];

/// Environment variables: directories of BIRD and FRR, and their libraries.
const BIRD: &str = "BEELINE_BIRD";
const FRR: &str = "BEELINE_FRR";
/// The page with the configurations.
const PAGE: &str = include_str!("../../../docs/operate/load-balancer-addresses.md");
const ADDRESS: &str = "198.51.100.7";
const ADDRESS6: &str = "2001:db8:64::7";
/// Limit for a withdrawal, from the change to the route of the peer. It takes less than a second, which is printed, but
/// on a busy machine. A route that BIRD reads only when it scans the table comes after a minute.
const LIMIT: Duration = Duration::from_secs(10);

/// True if BIRD and FRR are there.
pub fn has_daemons() -> bool {
    [BIRD, FRR].into_iter().all(|variable| std::env::var_os(variable).is_some())
}

/// A running program, ended when dropped. It removes its routes.
struct Daemon(Child);

impl Daemon {
    fn start(variable: &str, program: &str, host: &Host, directory: &Path, arguments: &[&str]) -> Self {
        let programs = std::env::var_os(variable).map(PathBuf::from).expect("the runner has checked it");
        let mut command = Command::new(programs.join(program));
        command.args(arguments).current_dir(directory).stdin(Stdio::null());
        Self(host.net.spawn(command.env("LD_LIBRARY_PATH", &programs)))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let pid = Pid::from_raw(self.0.id().cast_signed()).expect("a pid");
        let _ended = kill_process(pid, Signal::TERM);
        let _ended = self.0.wait();
    }
}

/// Makes a directory for the files of a daemon of a host.
fn directory_of(node: &StoryNode, name: &str, host: &Host) -> PathBuf {
    let directory = node.directory.join(format!("{name}-{}", host.v4));
    fs::create_dir_all(&directory).expect("a directory");
    directory
}

fn start_bird(node: &StoryNode, host: &Host, configuration: &str) -> Daemon {
    let directory = directory_of(node, "bird", host);
    fs::write(directory.join("bird.conf"), configuration).expect("a file");
    Daemon::start(BIRD, "bird", host, &directory, &["-f", "-c", "bird.conf", "-s", "bird.ctl"])
}

/// Starts zebra and bgpd of FRR; they end in the reverse order.
fn start_frr(node: &StoryNode, host: &Host, zebra: &str, bgpd: &str) -> [Daemon; 2] {
    let directory = directory_of(node, "frr", host);
    let path = |file: &str| directory.join(file).to_str().expect("text").to_owned();
    let socket = path("zserv.api");
    let start = |program: &str, configuration: &str| {
        fs::write(directory.join(program), configuration).expect("a file");
        let (pid, vty) = (path(&format!("{program}.pid")), path(""));
        // FRR refuses root for its user, unless root is in the group of its consoles.
        let own = ["-u", "root", "-g", "root", "-P", "0", "--vty_socket", &vty, "--log", "stdout"];
        let files = ["-f", program, "-i", &pid, "-z", &socket];
        Daemon::start(FRR, program, host, &directory, &[&files[..], &own].concat())
    };
    let _from_before = fs::remove_file(&socket);
    let zebra = start("zebra", zebra);
    until("zebra listens", || Path::new(&socket).exists());
    [start("bgpd", bgpd), zebra]
}

/// Gives this process and its children the group that FRR asks for.
fn make_group_of_frr(node: &StoryNode) {
    let file = node.directory.join("group");
    let groups = fs::read_to_string("/etc/group").expect("the groups");
    let others = groups.lines().filter(|line| !line.starts_with("frrvty:")).map(|line| format!("{line}\n"));
    fs::write(&file, others.collect::<String>() + "frrvty:x:992:root\n").expect("a file");
    rustix::mount::mount_bind(&file, "/etc/group").expect("a mount");
}

/// The example of the documentation that begins with a line, for a node and its peer.
fn documented(first_line: &str, own: &Host, peer: &Host) -> String {
    let start = PAGE.find(first_line).expect("the example");
    let example = PAGE[start..].split("```").next().expect("its end");
    let (own, peer, peer6) = (own.v4.to_string(), peer.v4.to_string(), peer.v6.to_string());
    let example = example.replace("192.0.2.254", &peer).replace("2001:db8::254", &peer6);
    example.replace("router id 192.0.2.1;", &format!("router id {own};"))
}

fn start_documented_bird(node: &StoryNode, own: &Host, peer: &Host) -> Daemon {
    start_bird(node, own, &documented("router id 192.0.2.1;", own, peer))
}

/// Starts FRR with the example: its first line is for zebra, all others for bgpd.
fn start_documented_frr(node: &StoryNode, own: &Host, peer: &Host) -> [Daemon; 2] {
    let example = documented("ip import-table 190", own, peer);
    let (zebra, bgpd) = example.split_once('\n').expect("two parts");
    start_frr(node, own, zebra, bgpd)
}

/// BIRD outside, which uses all of its neighbours' routes at once.
fn bird_outside(own: &Host, nodes: [&Host; 2]) -> String {
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

/// FRR outside, as [`bird_outside`].
fn frr_outside(own: &Host, nodes: [&Host; 2]) -> String {
    let neighbours =
        nodes.map(|node| format!(" neighbor {} remote-as 64512\n neighbor {} remote-as 64512\n", node.v4, node.v6));
    let active = |addresses: [String; 2]| addresses.map(|address| format!("  neighbor {address} activate\n")).concat();
    format!(
        "router bgp 64512\n bgp router-id {}\n no bgp default ipv4-unicast\n{}\
         \x20address-family ipv4 unicast\n  maximum-paths ibgp 8\n{} exit-address-family\n\
         \x20address-family ipv6 unicast\n  maximum-paths ibgp 8\n{} exit-address-family\n",
        own.v4,
        neighbours.concat(),
        active(nodes.map(|node| node.v4.to_string())),
        active(nodes.map(|node| node.v6.to_string())),
    )
}

/// Next hops by which the router outside leads to an address; of IPv6 they may be link-local.
fn next_hops(client: &Host, family: &str, address: &str) -> BTreeSet<IpAddr> {
    let text = client.net.run(&["ip", family, "route", "show", address]);
    let words: Vec<&str> = text.split_whitespace().collect();
    words.windows(2).filter(|pair| pair[0] == "via").filter_map(|pair| pair[1].parse().ok()).collect()
}

/// Address families that a router outside learns.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Families {
    Both,
    V4,
}

impl Families {
    fn addresses(self) -> &'static [&'static str] {
        match self {
            Self::Both => &[ADDRESS, ADDRESS6],
            Self::V4 => &[ADDRESS],
        }
    }
}

/// Two nodes with an agent each, that announce the address of a Service with a pod on each of them, and a client.
struct Place<'a> {
    node: &'a StoryNode,
    second: StoryNode,
    client: &'a Host,
    nodes: [&'a Host; 2],
    pods: [&'a Host; 2],
    watchdog: Watchdog,
    _agents: [Agent; 2],
}

impl<'a> Place<'a> {
    fn make(node: &'a StoryNode, lan: &'a Lan) -> Self {
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
        let watchdog = Watchdog::start(&node.directory);
        write_web(node, &second, "Local", &[(pods[0], 1), (pods[1], 2)]);
        let first = agent(node, lan, &["--lb-routes", "190"]);
        let cgroup = second.cgroup.to_str().expect("text");
        let flags = ["--devices", "eth0*", "--lb-routes", "190", "--cgroup", cgroup];
        let agents = [first, nodes[1].net.enter(|| second.agent(&flags))];
        until("the programs are at the device of node2", || has_link(&second) || has_filters(lan));
        Self { node, second, client, nodes, pods, watchdog, _agents: agents }
    }

    /// Sets the policy of the Service, and the nodes of its endpoints.
    fn set_web(&self, policy: &str, endpoints: &[(&Host, u8)]) {
        write_web(self.node, &self.second, policy, endpoints);
    }

    /// Waits until the router leads the addresses to these nodes, and returns the time that it took.
    fn until_next_hops(&self, families: Families, expected: &[&Host]) -> Duration {
        let start = Instant::now();
        let addresses: BTreeSet<IpAddr> = expected.iter().map(|host| host.v4.into()).collect();
        until(&format!("{ADDRESS} by {addresses:?}"), || next_hops(self.client, "-4", ADDRESS) == addresses);
        if families == Families::Both {
            let count = || next_hops(self.client, "-6", ADDRESS6).len();
            until(&format!("{ADDRESS6} by as many"), || count() == expected.len());
        }
        start.elapsed()
    }

    /// As [`Self::until_next_hops`], within a second.
    fn assert_withdrawn(&self, what: &str, families: Families, left: &Host) {
        let start = Instant::now();
        let took = self.until_next_hops(families, &[left]);
        let lost = self.watchdog.lost(start);
        println!("withdrawn from {what} after {took:.3?}, on a machine that may have lost {lost:.3?}");
        assert!(took < LIMIT + lost, "{what}: {took:?}, {lost:?} lost");
    }

    /// Moves routes by all that moves them.
    fn check(&self, families: Families) {
        let (nodes, [one, two]) = (self.nodes, self.pods);
        let reached = |pods: &[&Host]| until_reached(self.client, families, pods);
        println!("sessions and routes after {:?}", self.until_next_hops(families, &nodes));
        reached(&[one, two]);

        // The last local endpoint goes.
        self.set_web("Local", &[(two, 2)]);
        self.assert_withdrawn("a node without a local endpoint", families, nodes[1]);
        reached(&[two]);

        // Every node attracts traffic for it.
        self.set_web("Cluster", &[(two, 2)]);
        println!("back with the policy Cluster after {:?}", self.until_next_hops(families, &nodes));
        reached(&[two]);

        // The node is to be drained; it serves on.
        let cordoned =
            |is: bool| format!("apiVersion: v1\nkind: Node\nmetadata: {{name: here}}\nspec: {{unschedulable: {is}}}\n");
        for policy in ["Cluster", "Local"] {
            self.set_web(policy, &[(one, 1), (two, 2)]);
            self.until_next_hops(families, &nodes);
            reached(&[one, two]);
            self.node.write("node.yaml", &cordoned(true));
            self.assert_withdrawn(&format!("a cordoned node, policy {policy}"), families, nodes[1]);
            let served = if policy == "Local" { vec![two] } else { vec![one, two] };
            reached(&served);
            self.node.write("node.yaml", &cordoned(false));
            self.until_next_hops(families, &nodes);
        }
    }
}

/// Writes the Service for both agents, each of which is on the node "here".
fn write_web(node: &StoryNode, second: &StoryNode, policy: &str, endpoints: &[(&Host, u8)]) {
    for (number, node) in [(1, node), (2, second)] {
        let place = |of: u8| if of == number { "here" } else { "there" };
        let endpoints: Vec<_> =
            endpoints.iter().flat_map(|(pod, of)| addresses(pod).map(|ip| (ip, place(*of)))).collect();
        let both = format!("{{ip: {ADDRESS}}}, {{ip: \"{ADDRESS6}\"}}");
        node.write("web.yaml", &service(policy, &endpoints).replace(&format!("{{ip: {ADDRESS}}}"), &both));
    }
}

/// Waits until 40 connects of the client to each address reach the servers of all of these pods, and no others. None
/// fails meanwhile.
#[track_caller]
fn until_reached(client: &Host, families: Families, pods: &[&Host]) {
    for address in families.addresses() {
        let to = SocketAddr::new(address.parse().expect("an address"), 80);
        let server = |pod: &&Host| SocketAddr::new(if to.is_ipv4() { pod.v4.into() } else { pod.v6.into() }, TARGET);
        let expected: BTreeSet<String> = pods.iter().map(|pod| server(pod).to_string()).collect();
        let ask = || tcp_ask(to).expect("an answer").0;
        let reached = || client.net.enter(|| (0..40).map(|_| ask()).collect::<BTreeSet<String>>());
        until(&format!("{address} reaches {expected:?}"), || reached() == expected);
    }
}

fn bird_announces(node: &mut StoryNode) {
    let lan = Lan::make(LanOptions::default());
    let place = Place::make(node, &lan);
    let (client, nodes) = (place.client, place.nodes);
    let _on_nodes = nodes.map(|host| start_documented_bird(node, host, client));
    let _outside = start_bird(node, client, &bird_outside(client, nodes));
    place.check(Families::Both);
}

fn frr_follows(node: &mut StoryNode) {
    make_group_of_frr(node);
    let lan = Lan::make(LanOptions::default());
    let place = Place::make(node, &lan);
    let (client, nodes) = (place.client, place.nodes);
    let outside = || start_frr(node, client, "", &frr_outside(client, nodes));
    {
        let _on_nodes = nodes.map(|host| start_documented_bird(node, host, client));
        let _outside = outside();
        place.check(Families::Both);
    }
    place.set_web("Local", &[(place.pods[0], 1), (place.pods[1], 2)]);
    let _on_nodes = nodes.map(|host| start_documented_frr(node, host, client));
    let _outside = outside();
    place.check(Families::V4);
}

/// True if filters run at the uplink of node2, as on a kernel without TCX.
fn has_filters(lan: &Lan) -> bool {
    lan.node2.host.net.run(&["tc", "filter", "show", "dev", "eth0", "ingress"]).contains("tc_ingress")
}
