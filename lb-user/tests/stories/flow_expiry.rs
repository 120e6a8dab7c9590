//! Expiry of flows of the packet path: expired flows are removed and no others, also from a full map, within seconds.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket},
    time::{Duration, Instant},
};

use lb_common::{
    Addr, Flow, FlowEnds, FlowFlags, FlowKey, Hook, Hop, Tuple, capacity,
    flow::{Seen, partner_key},
};
use lb_dataplane::kube_proxy::remove::remove;
use lb_kernel::{
    bpf::typed::TypedMap,
    clock,
    netfilter::temporary_tables::{self, KEEP_ALIVE_TABLE, NOTRACK_TABLE},
};

use lb_lab::{
    network::{Lan, LanOptions},
    packets::PacketSpec,
};
use rustix::net::{AddressFamily, Protocol, SendFlags, SocketType};

use crate::{
    Story,
    agent::{Agent, run, until, until_polled_every},
    node::{StoryNode, is_slow, service},
    packets::{self, NODE_PORT, TARGET, addresses, pod},
    socket_termination::hold_connections,
};

pub const STORIES: &[Story] = &[
    ("flows_that_have_expired_are_removed_and_no_others", only_expired_flows_are_removed),
    ("flows_of_idle_connections_outlive_forged_resets", idle_connections_outlive_forged_resets),
    ("flows_without_marks_are_found_after_a_start", flows_without_marks_are_found),
    ("flows_that_have_expired_free_a_full_map_in_seconds", full_map_is_freed),
    ("flows_that_are_handed_over_bypass_conntrack_until_the_rules_are_released", untracked_flows_bypass_conntrack),
];

const SECOND: u64 = 1_000_000_000;

pub type Entry = (FlowKey, Flow);

pub fn open(node: &StoryNode) -> TypedMap<FlowKey, Flow> {
    TypedMap::open(&node.maps(), "FLOWS").expect("the pinned map")
}

pub fn put(map: &TypedMap<FlowKey, Flow>, entries: &[Entry]) {
    let (keys, values): (Vec<FlowKey>, Vec<Flow>) = entries.iter().copied().unzip();
    map.put(&keys, &values).expect("room for them");
}

fn addr(text: &str) -> Addr {
    text.parse::<std::net::IpAddr>().expect("an address").into()
}

/// Returns both entries of a flow of a client to a backend of this node. `forward` and `reverse` are the flags seen in
/// each direction and the time of its last packet.
pub fn pair(client: (&str, u16), proto: u8, forward: (u8, u64), reverse: (u8, u64)) -> [Entry; 2] {
    let (client, client_port) = (addr(client.0), client.1);
    let dialled = Tuple { src: client, dst: addr("10.96.0.1"), src_port: client_port, dst_port: 80 };
    let to = Tuple { dst: addr("10.0.0.1"), dst_port: 8080, ..dialled };
    let flow =
        |to, flags, used| Flow { to, service: 1, backend: 1, flags, forward: 0, reverse: 0, used, hop: Hop::UNKNOWN };
    let key = FlowKey::new(dialled, proto, Hook::Ingress);
    let own = Flow { forward: forward.0, ..flow(to, FlowFlags::PARTNER_EGRESS, forward.1) };
    let other = Flow { reverse: reverse.0, ..flow(dialled.reversed(), FlowFlags::REVERSE, reverse.1) };
    [(key, own), (partner_key(&key, &own), other)]
}

fn only_expired_flows_are_removed(node: &mut StoryNode) {
    const TCP: u8 = 6;
    const UDP: u8 = 17;
    // UDP flows stay only while their endpoint serves.
    node.write("web.yaml", &service("web", &["10.96.0.1"], "UDP", 80, &["10.0.0.1:8080"]));
    let mut agent = node.agent(&[]);
    agent.kill();
    let map = open(node);
    let now = clock::monotonic_ns();
    let ago = |seconds: u64| now.saturating_sub(seconds * SECOND);
    let reset = Seen::ANY | Seen::RST;
    let expired = [
        pair(("192.0.2.1", 1), TCP, (reset, ago(12)), (Seen::ANY, ago(13))),
        pair(("192.0.2.1", 2), TCP, (Seen::ANY, ago(13)), (reset, ago(12))),
        pair(("192.0.2.1", 3), UDP, (Seen::ANY, ago(31)), (0, 0)),
    ]
    .concat();
    let [alone, _] = pair(("192.0.2.1", 4), UDP, (Seen::ANY, ago(31)), (0, 0));
    // The reverse entry of this flow has been replaced by that of another flow.
    let [orphaned, (taken, answer)] = pair(("192.0.2.1", 5), TCP, (reset, ago(12)), (Seen::ANY, now));
    let [_, (_, of_another)] = pair(("192.0.2.1", 6), TCP, (0, 0), (Seen::ANY, now));
    assert_ne!(answer.to, of_another.to);
    let live = [
        pair(("192.0.2.2", 1), TCP, (Seen::ANY, ago(3600)), (Seen::ANY, ago(3600))).as_slice(),
        // The flags and times of both directions together decide.
        &pair(("192.0.2.2", 2), UDP, (Seen::ANY | Seen::AGAIN, ago(40)), (Seen::ANY, ago(40))),
        &pair(("192.0.2.2", 3), UDP, (Seen::ANY, now), (0, ago(200))),
        &pair(("192.0.2.2", 4), TCP, (Seen::ANY | Seen::FIN, ago(100)), (Seen::ANY, ago(100))),
        &[(taken, of_another)],
    ]
    .concat();
    put(&map, &[expired.as_slice(), &[alone, orphaned], &live].concat());
    let mut agent = node.agent(&[]);
    let keys = |entries: &[Entry]| entries.iter().map(|(key, _)| *key).collect::<std::collections::BTreeSet<_>>();
    let kept = keys(&live);
    until("the expired flows are removed", || keys(&map.read().expect("the map")) == kept);
    let shown = |arguments: &[&str]| {
        let output = run(node, &[&["get", "flows"], arguments].concat());
        assert!(output.status.success());
        let text = String::from_utf8(output.stdout).expect("text");
        text.lines().skip(1).map(|line| line.split_whitespace().map(str::to_owned).collect()).collect::<Vec<Vec<_>>>()
    };
    let udp = shown(&["--proto", "udp", "--backend", "10.0.0.1"]);
    let states: Vec<_> =
        udp.iter().map(|row| (row.get(1).map(String::as_str), row.get(5).map(String::as_str))).collect();
    let wanted = [(Some("192.0.2.2:2"), Some("ASSURED")), (Some("192.0.2.2:3"), Some("UNREPLIED"))];
    assert_eq!(states, wanted);
    assert_eq!(shown(&["--client", "192.0.2.0/24"]).len(), 4);
    assert_eq!(shown(&["--client", "192.0.2.1"]).len(), 0);
    assert_eq!(shown(&["--service", "default/unknown"]).len(), 0);
    assert!(!run(node, &["get", "services", "--proto", "tcp"]).status.success());
    let json = run(node, &["get", "flows", "-o", "json", "--proto", "tcp"]);
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).expect("JSON");
    assert_eq!(json.pointer("/0/vip"), Some(&"10.96.0.1:80".into()), "{json}");
    agent.kill();
    assert_eq!(keys(&map.read().expect("the map")), kept, "no live flow is removed");
}

/// Sends data and a reset that continues them, with the addresses and ports of a flow, and sequence numbers that
/// neither end has.
fn forge_reset(key: &FlowKey) {
    let end = |addr: Addr, port| SocketAddr::new(addr.to_ip(), port);
    let (from, to) = (end(key.tuple.src, key.tuple.src_port), end(key.tuple.dst, key.tuple.dst_port));
    let data = PacketSpec::tcp(&from.to_string(), &to.to_string()).flags("A").numbered(77);
    let reset = data.clone().flags("R").numbered(data.next_seq());
    let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    // IPPROTO_RAW: the packet has its IP header.
    let raw = Protocol::from_raw(255.try_into().expect("not zero"));
    let socket = rustix::net::socket(family, SocketType::RAW, Some(raw)).expect("a raw socket");
    let to = SocketAddr::new(to.ip(), 0);
    for packet in [data, reset] {
        rustix::net::sendto(&socket, &packet.ip(), SendFlags::empty(), &to).expect("sent");
    }
}

/// Waits for a whole round of the agent through the map.
fn wait_for_a_round(map: &TypedMap<FlowKey, Flow>) {
    // An entry that is over may be found by the rest of a round; a second one is found by the next round.
    for port in 1..=2 {
        let [(key, flow), _] = pair(("192.0.2.1", port), 6, (Seen::ANY | Seen::RST, 0), (0, 0));
        put(map, &[(key, flow)]);
        let is_gone = || map.get(&key).expect("the map").is_none();
        until_polled_every(Duration::from_millis(200), "an expired flow is removed", is_gone);
    }
}

/// A version that sets no marks in `FLOW_ENDS` may serve between two starts of this version.
fn flows_without_marks_are_found(node: &mut StoryNode) {
    let lan = Lan::make(LanOptions::default());
    let mut agent = serve_echo(node, &lan);
    let mut streams = dial(&lan, 4);
    ask(&mut streams);
    let ends = TypedMap::<u32, u64>::open(&node.maps(), "FLOW_ENDS").expect("the pinned map");
    let are_complete = || ends.get(&FlowEnds::ARE_COMPLETE).expect("an element") == Some(1);
    until("the marks are complete", are_complete);
    agent.kill();
    let marked: Vec<u32> =
        (0..FlowEnds::ARE_COMPLETE).filter(|place| ends.get(place).expect("an element") != Some(0)).collect();
    assert!(marked.len() >= 2, "both addresses of the node: {marked:?}");
    ends.put(&marked, &vec![0; marked.len()]).expect("elements");
    let _agent = packets::agent(node, &lan, &[]);
    ask(&mut streams);
    until("the marks are complete again", are_complete);
    ask(&mut streams);
}

/// Serves echo servers of a pod on each node at a NodePort, for clients outside.
fn serve_echo(node: &mut StoryNode, lan: &Lan) -> Agent {
    let nodes = [(pod(&lan.node1), "here"), (pod(&lan.node2), "there")];
    let endpoints: Vec<_> = nodes.iter().flat_map(|(host, name)| addresses(host).map(|ip| (ip, *name))).collect();
    for (host, _) in nodes {
        host.net.enter(|| addresses(host).map(|ip| hold_connections(&SocketAddr::from((ip, TARGET)).to_string())));
    }
    node.write("web.yaml", &packets::service("Cluster", &endpoints));
    packets::agent(node, lan, &[])
}

/// Connects to that NodePort, in turn over IPv4 and IPv6.
fn dial(lan: &Lan, count: usize) -> Vec<TcpStream> {
    let own = addresses(&lan.node1.host);
    lan.client
        .net
        .enter(|| (0..count).map(|n| TcpStream::connect((own[n % 2], NODE_PORT)).expect("a connection")).collect())
}

fn ask(streams: &mut [TcpStream]) {
    for stream in streams {
        stream.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
        stream.write_all(b"hello").expect("the flow leads to the server");
        stream.read_exact(&mut [0; 5]).expect("an echo");
    }
}

fn idle_connections_outlive_forged_resets(node: &mut StoryNode) {
    let lan = Lan::make(LanOptions::default());
    let _agent = serve_echo(node, &lan);
    let mut streams = dial(&lan, 12);
    ask(&mut streams);
    let map = open(node);
    let flows = || map.read().expect("the map").into_iter().filter(|(key, _)| key.proto == 6).collect::<Vec<_>>();
    let entered = flows().into_iter().map(|(key, _)| key).filter(|key| key.hook == Hook::Ingress as u8);
    let entered: Vec<_> = entered.collect();
    assert!(entered.len() > streams.len(), "flows to remote pods have both entries at ingress");
    lan.client.net.enter(|| entered.iter().for_each(forge_reset));
    // A minute passes.
    let aged: Vec<_> =
        flows().into_iter().map(|(key, flow)| (key, Flow { used: flow.used - (14 << 32), ..flow })).collect();
    assert_eq!(aged.len(), 2 * streams.len());
    put(&map, &aged);
    wait_for_a_round(&map);
    ask(&mut streams);
    // A true reset ends a flow.
    for stream in streams.drain(..) {
        rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).expect("SO_LINGER");
    }
    let shown = || {
        let output = run(node, &["get", "flows", "--proto", "tcp"]);
        String::from_utf8(output.stdout).expect("text")
    };
    until("every flow is closed", || !shown().contains("ESTABLISHED") && shown().matches("CLOSE").count() == 12);
}

/// Returns a value of the agent's metrics.
fn metric(name: &str) -> f64 {
    let mut stream = TcpStream::connect("127.0.0.1:10249").expect("the metrics port");
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").expect("the request is sent");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("the agent answers");
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("{name} is missing:\n{text}")).trim().parse().expect("a number")
}

fn full_map_is_freed(node: &mut StoryNode) {
    node.write("web.yaml", &service("web", &["10.96.0.1"], "UDP", 80, &["10.0.0.1:8080"]));
    let mut agent = node.agent(&[]);
    agent.kill();
    let map = open(node);
    // Every 64th flow was last used in the future, so that it stays live; all others have expired.
    let now = clock::monotonic_ns();
    let future = now + 3600 * SECOND;
    let at = |n: u32| if n.is_multiple_of(64) { future } else { now.saturating_sub(40 * SECOND) };
    let count = u32::try_from(capacity::FLOWS / 2).expect("a number");
    let entries: Vec<Entry> = (0..count)
        .flat_map(|n| {
            let client = std::net::Ipv4Addr::from(0xc612_0000 + (n >> 8)).to_string();
            let port = 1024 + u16::try_from(n & 0xff).expect("8 bits");
            pair((&client, port), 17, (Seen::ANY, at(n)), (0, at(n)))
        })
        .collect();
    put(&map, &entries);
    let live = entries.iter().filter(|(_, flow)| flow.used == future).count();
    let full = map.read().expect("the map").len();
    assert_eq!(full, capacity::FLOWS, "the map is full");
    drop(entries);
    let start = Instant::now();
    let agent = node.agent(&[]);
    println!("in service after {:?}", start.elapsed());
    let limit = Duration::from_secs(if is_slow() { 180 } else { 30 });
    let mut left = full;
    while left > live {
        assert!(start.elapsed() < limit, "{left} of {full} are left");
        std::thread::sleep(Duration::from_millis(100));
        left = map.read().expect("the map").len();
    }
    println!("{full} entries, {live} of them live, were freed {:?} after the start", start.elapsed());
    until("the round is over", || metric("beeline_flow_round_seconds") > 0.0);
    println!(
        "the round took {} s, its longest step {} s",
        metric("beeline_flow_round_seconds"),
        metric("beeline_flow_longest_step_seconds")
    );
    assert_eq!(metric("beeline_flow_entries_expired_total"), (full - live) as f64);
    assert_eq!(metric("beeline_map_entries{map=\"FLOWS\"}"), live as f64);
    drop(agent);
}

/// In both families conntrack sees all traffic except the untracked tuples, and those again after the release.
fn untracked_flows_bypass_conntrack(_: &mut StoryNode) {
    const PORTS: [u16; 2] = [4001, 5001];
    const HOSTS: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
    // Conntrack tracks nothing in a namespace without a rule that needs it. Removing kube-proxy's rules, of which there
    // are none here, installs such a rule.
    if let Err(error) = remove() {
        println!("LACKS rules of nf_tables about connections: {error}");
        return;
    }
    let tracked = || {
        let text = std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count").expect("conntrack counts");
        text.trim().parse::<usize>().expect("a number")
    };
    let exchange = |host: IpAddr, ports: [u16; 2]| {
        let [client, server] = ports.map(|port| UdpSocket::bind((host, port)).expect("a free port"));
        client.send_to(b"?", (host, ports[1])).expect("sent");
        server.recv_from(&mut [0]).expect("received");
        server.send_to(b"!", (host, ports[0])).expect("sent");
        client.recv_from(&mut [0]).expect("received");
    };
    let tuples =
        HOSTS.map(|host| (Tuple { src: host.into(), dst: host.into(), src_port: PORTS[0], dst_port: PORTS[1] }, 17));
    temporary_tables::add_notrack(&tuples).expect("rules");
    let before = tracked();
    HOSTS.into_iter().for_each(|host| exchange(host, PORTS));
    assert_eq!(tracked(), before, "conntrack sees neither direction");
    HOSTS.into_iter().for_each(|host| exchange(host, [4002, 5001]));
    assert_eq!(tracked(), before + 2, "conntrack sees other flows");
    assert!(
        temporary_tables::remove(NOTRACK_TABLE).expect("rules")
            && !temporary_tables::remove(NOTRACK_TABLE).expect("rules")
    );
    HOSTS.into_iter().for_each(|host| exchange(host, PORTS));
    assert_eq!(tracked(), before + 4, "conntrack sees the tuples again");
    assert!(
        temporary_tables::has_keep_alive().expect("rules")
            && temporary_tables::remove(KEEP_ALIVE_TABLE).expect("rules")
    );
}
