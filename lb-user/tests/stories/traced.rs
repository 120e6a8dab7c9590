//! `beeline trace` against the kernel: for random Services, callers, destinations and protocols the verdict that it
//! prints is the verdict that then happens to a real socket or a real packet.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    io::{self, ErrorKind, Read as _},
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    path::{Path, PathBuf},
    time::Duration,
};

use lb_lab::{
    network::{Host, Lan, LanOptions},
    rng::Rng,
};

use crate::{
    Story,
    agent::{run, until},
    node::{StoryNode, is_slow},
    packets::{TARGET, addresses, serve},
    pod_modes::{OFF, PACKET, Process, cgroupfs_name, pod, wait_for},
    sockets::has_netns_cookie,
};

pub const STORIES: &[Story] = &[("trace_prints_the_verdict_that_happens", verdicts_happen)];

/// Services at one time.
const SERVICES: u16 = 16;
/// Generations of Services.
const GENERATIONS: usize = 2;
/// Calls in each generation.
const CALLS: usize = 70;
/// The same on an emulated machine, where each takes seconds.
const SLOW_CALLS: usize = 15;

/// A caller.
struct Caller<'a> {
    name: &'static str,
    host: &'a Host,
    /// Arguments of `trace`, without an address.
    client: Option<String>,
    /// The cgroup in which its sockets are made.
    cgroup: PathBuf,
}

impl Caller<'_> {
    /// True if its packets are translated, and not its sockets.
    fn sends_packets(&self) -> bool {
        self.name == "outside" || self.name == "pod in mode packet"
    }
}

/// The verdict in a trace.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Reaches {
        backends: BTreeSet<SocketAddr>,
        exact: Option<SocketAddr>,
        sources: BTreeMap<IpAddr, Source>,
    },
    /// An error of the call, or of an answer to its packets.
    Fails(&'static [ErrorKind]),
    Dropped,
    Unchanged,
}

/// The address that a backend sees.
#[derive(Debug, PartialEq, Eq)]
enum Source {
    Client,
    Node,
}

/// The fate of a call.
#[derive(Debug)]
enum Fate {
    Answered { server: SocketAddr, seen: Option<IpAddr>, peer: SocketAddr },
    Failed(io::Error),
    Silent,
}

const REFUSED: &[ErrorKind] = &[ErrorKind::ConnectionRefused];
const UNREACHABLE: &[ErrorKind] = &[ErrorKind::HostUnreachable];

fn verdicts_happen(node: &mut StoryNode) {
    if !has_netns_cookie() {
        return;
    }
    let seed = std::env::var("BEELINE_TRACE_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    println!("BEELINE_TRACE_SEED={seed}");
    let random = &mut Rng::new(seed);
    let lan = Lan::make(LanOptions { pods: 4, ..LanOptions::default() });
    let [plain, packet, off, backend] = &lan.node1.pods[..] else { panic!("four pods") };
    let [far, farther, ..] = &lan.node2.pods[..] else { panic!("four pods") };
    let servers = [(backend, "here"), (far, "there"), (farther, "there")];
    servers.iter().for_each(|(host, _)| serve(host));
    for range in ["10.96.0.0/16", "198.51.100.0/23"] {
        lan.client.net.run(&["ip", "route", "add", range, "via", "172.30.0.11"]);
    }
    for range in ["fd96::/64", "2001:db8:7::/64"] {
        lan.client.net.run(&["ip", "route", "add", range, "via", "fd30::11"]);
    }
    let processes =
        [("a", plain), ("b", packet), ("c", off)].map(|(name, host)| Process::start(node, host, &cgroupfs_name(name)));
    let pods = pod("a", plain, None) + &pod("b", packet, Some("packet")) + &pod("c", off, Some("off"));
    node.write("pods.yaml", &pods);
    let inside = node.cgroup.join("kubepods");
    let outside = node.cgroup.join("outside");
    fs::create_dir_all(&outside).expect("a cgroup");
    let pid = |index: usize| Some(processes[index].pid().to_string());
    let callers = [
        Caller { name: "host", host: &lan.node1.host, client: None, cgroup: inside.clone() },
        Caller { name: "pod", host: plain, client: pid(0), cgroup: inside.clone() },
        Caller { name: "pod in mode packet", host: packet, client: pid(1), cgroup: inside.clone() },
        Caller { name: "pod in mode off", host: off, client: pid(2), cgroup: inside.clone() },
        Caller { name: "outside", host: &lan.client, client: None, cgroup: outside.clone() },
    ];
    node.write("web.yaml", &services(random, &lan, &servers));
    let cgroup = inside.to_str().expect("text");
    let agent = lan.node1.host.net.enter(|| node.agent(&["--devices", "eth0", "--cgroup", cgroup]));
    agent.wait_for_log("devices of the packet path");
    wait_for(node, "b", PACKET);
    wait_for(node, "c", OFF);
    let (mut differences, mut counts) = (Vec::new(), BTreeMap::<String, usize>::new());
    for generation in 0..GENERATIONS {
        if generation > 0 {
            node.write("web.yaml", &services(random, &lan, &servers));
        }
        let port = generation_port(generation);
        node.write("sentinel.yaml", &crate::node::service("sentinel", &["10.96.9.9"], "TCP", port, &[]));
        agent.wait_for("the Services of this generation", |dump| dump.frontends.keys().any(|key| key.port == port));
        let known = || lb_dataplane::netns_addrs::read(&node.maps()).expect("the map");
        until("source addresses are known", || known().len() >= 4);
        for _ in 0..if is_slow() { SLOW_CALLS } else { CALLS } {
            // More callers with Services than without.
            let caller = &callers[random.pick(&[0, 0, 1, 1, 2, 2, 2, 3, 4, 4, 4, 4])];
            let (proto, to) = (random.pick(&["tcp", "udp"]), destination(random, &servers, &lan));
            let text = traced(node, &lan, caller, proto, to);
            let verdict = verdict(&text, caller.name == "outside");
            // An ICMP error reaches connected sockets only.
            let connects = random.index(2) == 0 || (caller.sends_packets() && matches!(verdict, Verdict::Fails(_)));
            move_to(&caller.cgroup);
            let timeout = timeout(&verdict);
            let call = || if proto == "tcp" { call_tcp(to, timeout) } else { call_udp(connects, to, timeout) };
            let fate = caller.host.net.enter(call);
            if let Err(difference) = agrees(&verdict, &fate, caller, to, &lan) {
                differences.push(format!("{} by {proto} to {to}: {difference}: {fate:?}\n{text}", caller.name));
            }
            let kind = format!("{verdict:?}").split([' ', '(']).next().unwrap_or_default().to_owned();
            *counts.entry(kind).or_default() += 1;
        }
    }
    move_to(&outside);
    assert!(differences.is_empty(), "{} of {}:\n{}", differences.len(), GENERATIONS * CALLS, differences.join("\n"));
    assert!(counts.len() == 4 || is_slow(), "some verdict does not occur: {counts:?}");
}

fn generation_port(generation: usize) -> u16 {
    40_000 + u16::try_from(generation).expect("few")
}

/// Moves this process into a cgroup, in which its next sockets are made.
fn move_to(cgroup: &Path) {
    fs::write(cgroup.join("cgroup.procs"), std::process::id().to_string()).expect("the cgroup exists");
}

/// Random Services, number `n` with the addresses 10.96.0.n, fd96::n and so on.
fn services(random: &mut Rng, lan: &Lan, servers: &[(&Host, &str)]) -> String {
    let mut yaml = String::new();
    for number in 1..=SERVICES {
        let scheduler = random.pick(&["random", "random", "rr", "wrr", "sh", "dh", "lc", "mh"]);
        let kind = random.pick(&["ClusterIP", "NodePort", "LoadBalancer", "LoadBalancer", "LoadBalancer"]);
        let [internal, external] = [0; 2].map(|_| random.pick(&["Cluster", "Local"]));
        let affinity = random.pick(&["None", "None", "ClientIP"]);
        let node_port = |offset: u16| match kind {
            "ClusterIP" => String::new(),
            _ => format!(", nodePort: {}", 30_000 + 2 * number + offset),
        };
        write!(
            yaml,
            "apiVersion: v1\nkind: Service\n\
             metadata: {{name: s{number}, annotations: {{beeline.io/scheduler: {scheduler}}}}}\nspec:\n  \
             type: {kind}\n  clusterIPs: [10.96.0.{number}, \"fd96::{number:x}\"]\n  ipFamilies: [IPv4, IPv6]\n  \
             internalTrafficPolicy: {internal}\n  externalTrafficPolicy: {external}\n  sessionAffinity: {affinity}\n  \
             ports:\n  - {{name: t, port: 80, protocol: TCP{}}}\n  - {{name: u, port: 80, protocol: UDP{}}}\n",
            node_port(0),
            node_port(1)
        )
        .expect("a String takes everything");
        if random.index(3) == 0 {
            _ = writeln!(yaml, "  externalIPs: [198.51.101.{number}]");
        }
        // The first one always has ranges, so that the agent knows the addresses of all callers.
        if number == 1 || random.index(3) == 0 {
            let hosts = [&lan.client, &lan.node1.host, &lan.node1.pods[0], &lan.node1.pods[1], &lan.node2.host];
            let host = hosts[random.index(hosts.len())];
            let wide = random.pick(&["", ", 10.244.0.0/16", ", 172.30.0.0/24"]);
            _ = writeln!(yaml, "  loadBalancerSourceRanges: [{}/32, \"{}/128\"{wide}]", host.v4, host.v6);
        }
        if number == 1 || kind == "LoadBalancer" {
            let ingress = format!("[{{ip: 198.51.100.{number}}}, {{ip: \"2001:db8:7::{number:x}\"}}]");
            _ = writeln!(yaml, "status: {{loadBalancer: {{ingress: {ingress}}}}}");
        }
        yaml += "---\n";
        let states = ["", "", "", ", conditions: {ready: false, terminating: true}", ", conditions: {ready: false}"];
        let endpoints: Vec<_> = servers.iter().filter(|_| random.index(2) > 0).collect();
        let states_of = |_: &&(&Host, &str)| random.pick(&states);
        let states: Vec<_> = endpoints.iter().map(states_of).collect();
        for (family, index) in [("IPv4", 0), ("IPv6", 1)] {
            write!(
                yaml,
                "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
                 metadata: {{name: s{number}-{index}, labels: {{kubernetes.io/service-name: s{number}}}}}\n\
                 addressType: {family}\n\
                 ports: [{{name: t, port: {TARGET}, protocol: TCP}}, {{name: u, port: {TARGET}, protocol: UDP}}]\n\
                 endpoints:\n"
            )
            .expect("a String takes everything");
            for ((host, place), state) in endpoints.iter().zip(&states) {
                _ = writeln!(yaml, "- {{addresses: [\"{}\"], nodeName: {place}{state}}}", addresses(host)[index]);
            }
            yaml += "---\n";
        }
    }
    yaml
}

/// A frontend, mostly; else an unknown port or address, or a backend itself.
fn destination(random: &mut Rng, servers: &[(&Host, &str)], lan: &Lan) -> SocketAddr {
    let number = 1 + u16::try_from(random.index(usize::from(SERVICES))).expect("few");
    let is_v6 = random.index(3) == 0;
    let port = if random.index(8) == 0 { 81 } else { 80 };
    let text = match (random.index(14), is_v6) {
        (0..=3, false) => format!("10.96.0.{number}:{port}"),
        (0..=3, true) => format!("[fd96::{number:x}]:{port}"),
        (4..=7, false) => format!("198.51.100.{number}:{port}"),
        (4..=7, true) => format!("[2001:db8:7::{number:x}]:{port}"),
        (8, _) => format!("198.51.101.{number}:{port}"),
        (9..=11, _) => {
            let ip = addresses(&lan.node1.host)[usize::from(is_v6)];
            let offset = u16::try_from(random.index(2)).expect("few");
            return SocketAddr::new(ip, 30_000 + 2 * number + offset);
        }
        (12, false) => "10.96.7.7:80".to_owned(),
        (12, true) => "[fd96::7:7]:80".to_owned(),
        _ => {
            let (host, _) = servers[random.index(servers.len())];
            return SocketAddr::new(addresses(host)[usize::from(is_v6)], TARGET);
        }
    };
    text.parse().expect("an address and port")
}

/// Text of the trace for a caller.
fn traced(node: &StoryNode, lan: &Lan, caller: &Caller<'_>, proto: &str, to: SocketAddr) -> String {
    let to_text = to.to_string();
    let mut arguments = vec!["trace", proto, &to_text];
    let from = addresses(caller.host)[usize::from(to.is_ipv6())].to_string();
    match &caller.client {
        Some(pid) => arguments.extend(["--pid", pid]),
        None if caller.name == "outside" => arguments.extend(["--from", &from]),
        None => {}
    }
    let output = lan.node1.host.net.enter(|| run(node, &arguments));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Reads a trace.
fn verdict(text: &str, is_outside: bool) -> Verdict {
    let field = |name: &str| {
        text.lines()
            .filter_map(move |line| line.trim_start().strip_prefix(name))
            .map(str::trim_start)
            .collect::<Vec<_>>()
    };
    let first = |line: &str| line.split([' ', ',']).next().and_then(|word| word.parse::<SocketAddr>().ok());
    let verdicts = field("verdict ");
    let [verdict] = verdicts[..] else { panic!("not one verdict: {text}") };
    if verdict.starts_with("goes there") {
        let backends = field("backend ").into_iter().filter_map(first).collect();
        let ways = field("way ").into_iter().filter_map(|line| {
            let (backend, way) = line.strip_prefix("to ")?.split_once(": ")?;
            Some((backend.parse().ok()?, if way.contains("masquerade") { Source::Node } else { Source::Client }))
        });
        return Verdict::Reaches {
            backends,
            exact: field("choice ").into_iter().find_map(first),
            sources: ways.collect(),
        };
    }
    if verdict.contains("packets go where the routes lead them") {
        // The default route of the node leads to the client.
        return if is_outside { Verdict::Fails(REFUSED) } else { Verdict::Unchanged };
    }
    if verdict.contains("ICMP host unreachable") || verdict.contains("EHOSTUNREACH") {
        Verdict::Fails(UNREACHABLE)
    } else if verdict.contains("ECONNREFUSED") || verdict.contains("rejected") {
        Verdict::Fails(REFUSED)
    } else if verdict.starts_with("dropped") {
        Verdict::Dropped
    } else if verdict.contains("unchanged") {
        Verdict::Unchanged
    } else {
        panic!("an unknown verdict: {text}")
    }
}

/// Time for an answer: short if none is expected, so that the story ends soon.
fn timeout(verdict: &Verdict) -> Duration {
    let is_silent = matches!(verdict, Verdict::Dropped | Verdict::Unchanged);
    Duration::from_millis(match (is_slow(), is_silent) {
        (true, _) => 10_000,
        (false, true) => 300,
        (false, false) => 3_000,
    })
}

fn call_tcp(to: SocketAddr, timeout: Duration) -> Fate {
    let ask = || {
        let mut stream = TcpStream::connect_timeout(&to, timeout)?;
        stream.set_read_timeout(Some(timeout))?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok((answer, stream.peer_addr()?))
    };
    fate(ask())
}

/// Connects a UDP socket, or names the destination of the datagram.
fn call_udp(connects: bool, to: SocketAddr, timeout: Duration) -> Fate {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let ask = || {
        let socket = UdpSocket::bind(any)?;
        socket.set_read_timeout(Some(timeout))?;
        let mut buffer = [0; 128];
        if connects {
            socket.connect(to)?;
            socket.send(b"?")?;
        } else {
            socket.send_to(b"?", to)?;
        }
        let (length, from) = socket.recv_from(&mut buffer)?;
        Ok((String::from_utf8_lossy(&buffer[..length]).into_owned(), from))
    };
    fate(ask())
}

fn fate(answer: io::Result<(String, SocketAddr)>) -> Fate {
    match answer {
        Ok((answer, peer)) => {
            let (server, seen) = answer.split_once(' ').unwrap_or((&answer, ""));
            Fate::Answered { server: server.parse().expect("the server's name"), seen: seen.parse().ok(), peer }
        }
        Err(error) if matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock) => Fate::Silent,
        Err(error) => Fate::Failed(error),
    }
}

/// Compares a verdict with the fate of the call.
fn agrees(verdict: &Verdict, fate: &Fate, caller: &Caller<'_>, to: SocketAddr, lan: &Lan) -> Result<(), String> {
    let ok = match (verdict, fate) {
        (Verdict::Reaches { backends, exact, sources }, Fate::Answered { server, seen, peer }) => {
            let own = addresses(caller.host)[usize::from(to.is_ipv6())];
            let of_node = addresses(&lan.node1.host);
            let source_agrees = match (seen, sources.get(&server.ip())) {
                (Some(seen), Some(Source::Client)) => *seen == own,
                (Some(seen), Some(Source::Node)) => of_node.contains(seen),
                // A trace of a socket tells no way.
                (_, None) => caller.name != "outside",
                (None, Some(_)) => true,
            };
            backends.contains(server) && exact.is_none_or(|exact| exact == *server) && *peer == to && source_agrees
        }
        (Verdict::Fails(kinds), Fate::Failed(error)) => kinds.contains(&error.kind()),
        (Verdict::Dropped, Fate::Silent) => true,
        // Without a Service only the destination itself answers.
        (Verdict::Unchanged, Fate::Answered { server, .. }) => *server == to,
        (Verdict::Unchanged, Fate::Silent | Fate::Failed(_)) => to.port() != TARGET,
        _ => false,
    };
    if ok { Ok(()) } else { Err(format!("traced {verdict:?}")) }
}
