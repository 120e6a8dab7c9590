//! The packet path across a change of the map layout.

use std::{
    fs,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::Duration,
};

use super::Version;
use aya::maps::MapInfo;
use lb_common::{Counter, Flow, FlowKey};
use lb_kernel::bpf::typed::TypedMap;
use lb_lab::network::{Host, Lan, LanOptions};
use rustix::thread::{CpuSet, sched_getcpu, sched_setaffinity};

use crate::{
    agent::{Agent, until},
    load::Load,
    node::StoryNode,
    packets::{NODE_PORT, TARGET, addresses, has_filters, pod, serve, service},
    socket_termination::hold_connections,
    sockets::{Client, tcp_ask},
};

/// Port of a server that echoes and keeps its connections.
const ECHO: u16 = 7;
/// NodePorts of the echo servers on node1 and on node2.
const LOCAL: u16 = 30_007;
const REMOTE: u16 = 30_008;
/// NodePorts that share affinity, of UDP and TCP.
const CALL: [u16; 2] = [30_060, 30_061];

fn echo(name: &str, vip: &str, node_port: u16, host: &Host, node: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\n\
         spec: {{type: NodePort, clusterIP: {vip}, clusterIPs: [{vip}], \
         ports: [{{port: {ECHO}, nodePort: {node_port}}}]}}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: {name}, labels: {{kubernetes.io/service-name: {name}}}}}\naddressType: IPv4\n\
         ports: [{{name: \"\", port: {ECHO}}}]\nendpoints: [{{addresses: [\"{}\"], nodeName: {node}}}]\n",
        host.v4
    )
}

/// A Service whose two NodePorts share affinity.
fn call(hosts: [&Host; 2]) -> String {
    let [here, there] = hosts.map(|host| host.v4);
    format!(
        "apiVersion: v1\nkind: Service\n\
         metadata: {{name: call, annotations: {{beeline.io/affinity-scope: service}}}}\n\
         spec:\n  type: NodePort\n  clusterIP: 10.96.0.9\n  clusterIPs: [10.96.0.9]\n  sessionAffinity: ClientIP\n  \
         ports:\n  - {{name: sip, port: 5060, protocol: UDP, nodePort: {}}}\n  \
         - {{name: sip-tls, port: 5061, nodePort: {}}}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: call, labels: {{kubernetes.io/service-name: call}}}}\naddressType: IPv4\n\
         ports: [{{name: sip, port: {TARGET}, protocol: UDP}}, {{name: sip-tls, port: {TARGET}, protocol: TCP}}]\n\
         endpoints: [{{addresses: [{here}], nodeName: here}}, {{addresses: [{there}], nodeName: there}}]\n",
        CALL[0], CALL[1]
    )
}

/// Calls both ports of the Service, and returns the one endpoint that answers.
fn ask_call(lan: &Lan) -> Result<String, String> {
    let [by_udp, by_tcp] = CALL.map(|port| SocketAddr::from((lan.node1.host.v4, port)));
    let signalling = lan.client.net.enter(|| Client::udp(by_udp)).ask(by_udp).0;
    let other = lan.client.net.enter(|| tcp_ask(by_tcp)).map_err(|error| error.to_string())?.0;
    // Both servers of an endpoint have one port, and so one name.
    if other == signalling { Ok(other) } else { Err(format!("{signalling} by UDP, {other} by TCP")) }
}

/// Makes two nodes and an external client, with one of each kind of server on each node.
fn lan(node: &StoryNode) -> &'static Lan {
    // Leaked: the workers use its namespaces until the process ends.
    let lan: &Lan = Box::leak(Box::new(Lan::make(LanOptions::default())));
    let mut endpoints = Vec::new();
    for (host, node_name, port) in [(pod(&lan.node1), "here", LOCAL), (pod(&lan.node2), "there", REMOTE)] {
        serve(host);
        host.net.enter(|| hold_connections(&SocketAddr::from((host.v4, ECHO)).to_string()));
        endpoints.extend(addresses(host).map(|ip| (ip, node_name)));
        let vip = if port == LOCAL { "10.96.0.7" } else { "10.96.0.8" };
        node.write(&format!("{node_name}.yaml"), &echo(node_name, vip, port, host, node_name));
    }
    node.write("web.yaml", &service("Cluster", &endpoints));
    node.write("call.yaml", &call([pod(&lan.node1), pod(&lan.node2)]));
    lan
}

/// Starts a version on node1 at an empty cgroup, so that the socket path serves no client.
fn start(version: Version, node: &StoryNode, lan: &Lan) -> Agent {
    start_with(version, node, lan, &[])
}

fn start_with(version: Version, node: &StoryNode, lan: &Lan, more: &[&str]) -> Agent {
    let cgroup = node.cgroup.join("node1");
    fs::create_dir_all(&cgroup).expect("a cgroup");
    let flags = [&["--devices", "eth0", "--cgroup", cgroup.to_str().expect("text")], more].concat();
    lan.node1.host.net.enter(|| version.start(node, &flags))
}

/// Pause between two new flows. A masqueraded flow holds one of 28,976 ports per backend for minutes.
const PAUSE: Duration = Duration::from_millis(20);

/// Starts workers of an external client that open new connections and use open ones.
fn start_load(lan: &'static Lan) -> Load {
    let mut load = Load::default();
    for own in addresses(&lan.node1.host) {
        let to = SocketAddr::from((own, NODE_PORT));
        load.add(if to.is_ipv4() { "new TCP" } else { "new TCP over IPv6" }, move || {
            thread::sleep(PAUSE);
            lan.client.net.enter(|| tcp_ask(to).map(drop)).map_err(|error| error.to_string())
        });
    }
    let to = SocketAddr::from((lan.node1.host.v4, NODE_PORT));
    load.add("new UDP", move || {
        thread::sleep(PAUSE);
        let client = lan.client.net.enter(|| Client::udp(to));
        let (_, from) = client.ask(to);
        if from == Some(to) { Ok(()) } else { Err(format!("an answer of {from:?}")) }
    });
    let called = ask_call(lan).expect("an answer");
    load.add("affinity of a whole Service", move || {
        thread::sleep(PAUSE);
        let server = ask_call(lan)?;
        if server == called { Ok(()) } else { Err(format!("{server} instead of {called}")) }
    });
    for (port, what) in [(LOCAL, "open TCP to a pod here"), (REMOTE, "open TCP to a pod elsewhere")] {
        let to = SocketAddr::from((lan.node1.host.v4, port));
        let open = lan.client.net.enter(|| {
            let client = Client::tcp(to);
            client.connect(to).expect("a connection");
            client
        });
        load.add(what, move || {
            open.send().map_err(|error| error.to_string())?;
            open.receive();
            Ok(())
        });
    }
    // One open UDP flow per backend.
    for host in [pod(&lan.node1), pod(&lan.node2)] {
        let server = SocketAddr::from((host.v4, TARGET)).to_string();
        let (socket, first) = (0..64)
            .map(|_| {
                let client = lan.client.net.enter(|| Client::udp(to));
                let answer = client.ask(to);
                (client, answer)
            })
            .find(|(_, (name, _))| *name == server)
            .expect("a flow to this backend");
        load.add(
            if host.v4 == pod(&lan.node1).v4 { "open UDP to a pod here" } else { "open UDP to a pod elsewhere" },
            {
                move || {
                    let answer = socket.ask(to);
                    if answer == first { Ok(()) } else { Err(format!("{answer:?} instead of {first:?}")) }
                }
            },
        );
    }
    load
}

fn wait_until_attached(version: Version, node: &StoryNode, lan: &Lan) {
    let has_link = || {
        let pins = fs::read_dir(version.maps(node)).expect("the pins").flatten();
        pins.map(|pin| pin.file_name().to_string_lossy().into_owned()).any(|name| name.starts_with("link_tc_ingress_"))
    };
    until("the programs are at the device", || has_link() || has_filters(lan));
}

pub(super) fn upgrade_and_rollback(node: &mut StoryNode) {
    let lan = lan(node);
    let mut version = Version::Own;
    let mut agent = start(version, node, lan);
    agent.wait_until_in_service();
    wait_until_attached(version, node, lan);
    let load = start_load(lan);
    load.more(20);
    for round in 0..4 {
        if round < 2 {
            assert!(agent.terminate().success());
        } else {
            agent.kill();
        }
        load.more(10);
        version = version.other();
        agent = start(version, node, lan);
        agent.wait_for_log("out of service");
        version.assert_alone(node);
        wait_until_attached(version, node, lan);
        load.more(20);
    }
    load.end();
}

pub(super) fn interrupted(node: &mut StoryNode) {
    let lan = lan(node);
    let mut first = start(Version::Own, node, lan);
    first.wait_until_in_service();
    wait_until_attached(Version::Own, node, lan);
    let load = start_load(lan);
    load.more(20);
    first.kill();
    let next = super::interrupt(|version| start(version, node, lan), node, || load.more(4));
    for version in [next, next.other()] {
        let mut agent = start(version, node, lan);
        agent.wait_until_in_service();
        until("the other version is removed", || !version.other().maps(node).exists());
        version.assert_alone(node);
        wait_until_attached(version, node, lan);
        load.more(10);
        agent.kill();
    }
    load.end();
}

/// Open connections and flows go on, and new ones begin, while `FLOWS` gets another size and gets it back.
pub(super) fn resized(node: &mut StoryNode) {
    let lan = lan(node);
    let mut agent = start(Version::Own, node, lan);
    agent.wait_until_in_service();
    wait_until_attached(Version::Own, node, lan);
    let load = start_load(lan);
    load.more(20);
    let size = || MapInfo::from_pin(node.maps().join("FLOWS")).expect("the pinned map").max_entries();
    let usual = size();
    for (flag, wanted) in [(Some("flows=100000"), 100_000), (Some("flows=700000"), 700_000), (None, 700_000)] {
        agent.kill();
        load.more(10);
        let more: Vec<&str> = flag.into_iter().flat_map(|flag| ["--map-size", flag]).collect();
        agent = start_with(Version::Own, node, lan, &more);
        agent.wait_until_in_service();
        assert_eq!((size(), size() == usual), (wanted, false));
        assert_eq!(agent.log().contains("the flows have moved"), flag.is_some(), "{}", agent.log());
        load.more(20);
    }
    load.end();
}

/// Segments that node1 refused, and datagrams to no socket of it: replies that no flow claimed.
fn refused_replies(lan: &Lan) -> Vec<(String, u64)> {
    let text = lan.node1.host.net.enter(|| {
        ["snmp", "snmp6"]
            .map(|name| fs::read_to_string(format!("/proc/thread-self/net/{name}")).expect("/proc"))
            .concat()
    });
    let mut counts = Vec::new();
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    for pair in lines.windows(2) {
        for (name, count) in pair[0].iter().zip(&pair[1]).filter(|_| pair[0].first() == pair[1].first()) {
            if ["OutRsts", "NoPorts"].contains(name) {
                counts.push((format!("{}{name}", pair[0][0]), count.parse().expect("a number")));
            }
        }
    }
    let v6 = lines.iter().find(|line| line.first() == Some(&"Udp6NoPorts")).expect("a count");
    counts.push(("Udp6NoPorts".to_owned(), v6[1].parse().expect("a number")));
    counts
}

/// Flows that enter by one device and whose replies enter by another begin while `FLOWS` gets another size. Devices in
/// between keep the programs of the two apart in time.
pub(super) fn resized_amid_devices(node: &mut StoryNode) {
    const BETWEEN: u8 = 250;
    let lan: &Lan = Box::leak(Box::new(Lan::make(LanOptions::default())));
    let node1 = &lan.node1;
    let mut lines = String::new();
    for number in 0..BETWEEN {
        lines += &format!(
            "link add mid{number} up type veth peer name end{number}\naddress add 10.77.{number}.1/24 dev mid{number}\n"
        );
    }
    node1.host.net.ip(&lines);
    let backend = node1.add_network();
    serve(&backend);
    node.write("web.yaml", &service("Cluster", &addresses(&backend).map(|ip| (ip, "there"))));
    let start = |more: &[&str]| crate::places::agent_with(node, lan, more);
    let mut agent = start(&[]);
    crate::places::wait_for_devices(node, lan, &["eth0", "mid0", "eth1"]);
    let (mut load, lost) = (Load::default(), Arc::<AtomicU32>::default());
    for to in addresses(&node1.host).map(|own| SocketAddr::from((own, NODE_PORT))) {
        load.add("new TCP", move || lan.client.net.enter(|| tcp_ask(to).map(drop)).map_err(|error| error.to_string()));
        let lost = Arc::clone(&lost);
        load.add("new UDP", move || {
            let client = lan.client.net.enter(|| Client::udp(to));
            let ask = || client.send_to(to).and_then(|()| client.try_receive());
            let answer = ask().or_else(|_late| {
                lost.fetch_add(1, Ordering::Relaxed);
                ask()
            });
            match answer {
                Ok((_, Some(from))) if from == to => Ok(()),
                answer => Err(format!("an answer: {answer:?}")),
            }
        });
    }
    load.more(20);
    let before = refused_replies(lan);
    for size in ["100000", "200000", "300000", "400000"] {
        agent.kill();
        agent = start(&["--map-size", &format!("flows={size}")]);
        agent.wait_for_log("the flows have moved");
        load.more(20);
        assert_eq!(refused_replies(lan), before, "each reply has a flow");
        let counters = lb_dataplane::stats::counters(&node.maps()).expect("the counters");
        assert!(counters.iter().all(|(_, count)| *count == 0), "nothing is dropped: {counters:?}");
    }
    load.end();
    // A busy machine may lose a datagram elsewhere: the programs and the node have refused none.
    let lost = lost.load(Ordering::Relaxed);
    println!("{lost} datagrams came to nothing");
    assert!(lost <= 2);
}

/// Flows that get no answer give way to new ones also after `FLOWS`, and with it their queues, got smaller.
pub(super) fn give_way_after_shrinking(node: &mut StoryNode) {
    let lan = Lan::make(LanOptions::default());
    let backend = pod(&lan.node1);
    // No server answers there.
    node.write("web.yaml", &service("Cluster", &addresses(backend).map(|ip| (ip, "here"))));
    let mut agent = start(Version::Own, node, &lan);
    agent.wait_until_in_service();
    wait_until_attached(Version::Own, node, &lan);
    // Each CPU has a queue of its own.
    let mut cpus = CpuSet::new();
    cpus.set(sched_getcpu());
    sched_setaffinity(None, &cpus).expect("a CPU of this machine");
    let to = SocketAddr::from((lan.node1.host.v4, NODE_PORT));
    let begin = |flows: u32| {
        let clients: Vec<Client> = (0..flows).map(|_| lan.client.net.enter(|| Client::udp(to))).collect();
        clients.iter().for_each(|client| client.send_to(to).expect("sent"));
    };
    begin(300);
    agent.kill();
    let flows = TypedMap::<FlowKey, Flow>::open(&node.maps(), "FLOWS").expect("the pinned map");
    let keys: Vec<FlowKey> = flows.read().expect("the flows").into_iter().map(|(key, _)| key).collect();
    assert!(keys.len() >= 500, "{} entries", keys.len());
    flows.delete(&keys).expect("removed");
    agent = start_with(Version::Own, node, &lan, &["--map-size", "flows=256"]);
    agent.wait_for_log("the flows have moved");
    begin(300);
    let counters = lb_dataplane::stats::counters(&node.maps()).expect("the counters");
    let count = |wanted: Counter| counters.iter().find(|(counter, _)| *counter == wanted).expect("a counter").1;
    assert_eq!(count(Counter::FlowsFull), 0, "{counters:?}");
    assert!(count(Counter::FlowsEarlyDrop) >= 100, "{counters:?}");
}
