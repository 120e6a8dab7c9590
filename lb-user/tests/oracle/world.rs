//! The world of one seed: a node with both proxies, and their answers to the same packets.

use std::{
    collections::BTreeSet,
    fs,
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream},
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use lb_common::{Family, Proto};
use lb_core::{model::Settings, objects::Key, per_family::PerFamily};
use lb_lab::{
    LabNamespace,
    kube_proxy::{KubeProxy, Mode, ServedNode},
    link::LinkSpec,
    process::ChildProcess,
    rng::Rng,
    sandbox::Inside,
};
use serde_json::{Value, json};

use crate::{
    answer::{Answer, Origin, Outcome, Packet},
    api::{ObjectServer, Resource},
    beeline::Beeline,
    exceptions::{Counts, Facts, exception},
    objects::{NODE, Objects, ZONES, generate},
    ruleset::Ruleset,
};

/// Services in each generation of objects.
const SERVICES: u64 = 200;
/// Generations of a world.
const GENERATIONS: u16 = 3;
/// Time for kube-proxy to write the rules of a generation.
const TIMEOUT: Duration = Duration::from_secs(180);
/// Differences that are printed.
const MAX_DIFFERENCES: usize = 40;

const NODE_ADDRESSES: [&str; 4] = ["172.30.0.11", "172.31.0.11", "fd30::11", "fd31::11"];
/// Ranges of cluster IPs.
pub const SERVICE_RANGES: [&str; 2] = ["10.96.0.0/16", "fd96::/108"];

/// Compares the answers of both proxies to the world of a seed.
pub fn compare(seed: u64) {
    let mut rng = Rng::new(seed);
    let mut node = Node::start(&mut rng);
    let mut beeline = Beeline::new(
        node.settings.clone(),
        &node.object,
        &node.addresses,
        &SERVICE_RANGES.map(|range| range.parse().expect("a range")),
    );
    let (mut differences, mut counts) = (Vec::new(), Counts::new());
    let (mut services, mut frontends, mut packets, mut checks) = (0, 0, 0, 0);
    for generation in 0..GENERATIONS {
        let objects = generate(&mut rng, SERVICES);
        let [v4, v6] = node.rules_for(&objects, generation);
        let facts = Facts::new(beeline.replace(&with_sentinel(&objects, generation)));
        services += objects.services.len();
        let (destinations, count) = destinations(&node, &beeline, [&v4, &v6]);
        frontends += count;
        for service in facts.services().filter(|service| !facts.has_doubtful_endpoints(service, &node.addresses)) {
            let Some((port, own)) = beeline.health(&service.key) else { continue };
            checks += own.len();
            differences.extend(own.into_iter().filter_map(|(family, count)| {
                let theirs = node.local_endpoints(port.get(), family, count);
                let text = format!("health of {:?}, {family:?}: kube-proxy {theirs:?}, Beeline {count}", service.key);
                (theirs != Some(count)).then_some(text)
            }));
        }
        for (to, proto) in destinations {
            let before = differences.len();
            for (origin, from) in clients(to.ip()) {
                let packet = Packet { origin, from, to, proto, node: &node.addresses };
                let theirs = if to.is_ipv4() { &v4 } else { &v6 }.answer(&packet);
                let own = beeline.answer(&packet);
                packets += 1;
                // One client of a frontend tells enough.
                if own == theirs || differences.len() > before {
                    continue;
                }
                match exception(&facts, &packet) {
                    Some(name) => *counts.entry(name).or_default() += 1,
                    None => differences.push(describe(&objects, &facts, &packet, &own, &theirs, generation)),
                }
            }
        }
    }
    assert!(node.kube_proxy.is_running(), "kube-proxy has ended:\n{}", node.kube_proxy.log());
    println!(
        "COMPARED seed {seed}: {services} Services, {frontends} frontends, {packets} packets, {checks} health checks; \
         exceptions {counts:?}"
    );
    let all = differences.len();
    differences.truncate(MAX_DIFFERENCES);
    assert!(
        differences.is_empty(),
        "seed {seed}, {all} differences (BEELINE_ORACLE_SEEDS={seed}..{}):\n{}",
        seed + 1,
        differences.join("\n")
    );
}

/// A difference, with the objects of its Service.
fn describe(
    objects: &Objects,
    facts: &Facts,
    packet: &Packet<'_>,
    own: &Answer,
    theirs: &Answer,
    generation: u16,
) -> String {
    let mut text = format!("{packet}, generation {generation}\n  kube-proxy {theirs}\n  Beeline    {own}\n");
    for value in objects.services.iter().chain(&objects.slices) {
        let (kind, metadata) = (&value["kind"], &value["metadata"]);
        let name =
            if kind == "Service" { &metadata["name"] } else { &metadata["labels"]["kubernetes.io/service-name"] };
        let key = Key::new(metadata["namespace"].as_str().unwrap_or_default(), name.as_str().unwrap_or_default());
        if facts.claims(packet, &key) {
            text += &format!("  {value}\n");
        }
    }
    text
}

/// Clients of a destination: a process of the node, a pod, and two hosts outside.
fn clients(to: IpAddr) -> [(Origin, IpAddr); 4] {
    let texts = match to {
        IpAddr::V4(_) => ["172.30.0.11", "10.244.1.5", "192.0.2.77", "100.64.0.1"],
        IpAddr::V6(_) => ["fd30::11", "fd44::5", "2001:db8:77::77", "2001:db8:99::1"],
    };
    let [process, pod, near, far] = texts.map(|text| text.parse().expect("an address"));
    [(Origin::Process, process), (Origin::Pod, pod), (Origin::Outside, near), (Origin::Outside, far)]
}

/// Destinations of the packets: all frontends of both proxies, NodePorts at several addresses, and ports and cluster
/// IPs that no Service has. Returns the number of frontends too.
fn destinations(node: &Node, beeline: &Beeline, rules: [&Ruleset; 2]) -> (BTreeSet<(SocketAddr, Proto)>, usize) {
    let mut all = beeline.frontends();
    rules.iter().for_each(|rules| all.extend(rules.frontends()));
    let mut node_ports = beeline.node_ports();
    rules.iter().for_each(|rules| node_ports.extend(rules.node_ports()));
    let count = all.len() + node_ports.len();
    let address = |text: &str| -> IpAddr { text.parse().expect("an address") };
    let elsewhere = ["127.0.0.1", "::1", "172.30.0.12", "fd30::12"].map(address);
    for ip in node.addresses.iter().copied().chain(elsewhere) {
        all.extend(node_ports.iter().map(|&(port, proto)| (SocketAddr::new(ip, port), proto)));
    }
    let unallotted = ["10.96.255.1", "fd96::ff:1"].map(address);
    for ip in beeline.cluster_ips().into_iter().chain(unallotted) {
        all.extend([Proto::Tcp, Proto::Udp].map(|proto| (SocketAddr::new(ip, 9), proto)));
    }
    (all, count)
}

/// A node with kube-proxy, in this thread's network namespace.
struct Node {
    server: ObjectServer,
    kube_proxy: ChildProcess,
    log: PathBuf,
    object: Value,
    addresses: BTreeSet<IpAddr>,
    settings: Settings,
    /// Addresses of health checks.
    health: PerFamily<IpAddr>,
}

impl Node {
    fn start(rng: &mut Rng) -> Self {
        let net = LabNamespace::current();
        let mut setup = net.setup().link("eth0", &LinkSpec::veth("peer")).up("peer");
        for (address, length) in NODE_ADDRESSES.into_iter().zip([24, 24, 64, 64]) {
            setup = setup.address("eth0", &format!("{address}/{length}"));
        }
        setup.apply();
        let mut labels = json!({"kubernetes.io/hostname": NODE});
        if let Some(zone) = rng.pick(&[None, Some(ZONES[0]), Some(ZONES[1])]) {
            labels["topology.kubernetes.io/zone"] = json!(zone);
        }
        let internal = ["172.30.0.11", "fd30::11"].map(|ip| json!({"type": "InternalIP", "address": ip}));
        let object = json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE, "labels": labels},
            "status": {"addresses": internal},
        });
        let range = json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "kubernetes"},
            "spec": {"cidrs": SERVICE_RANGES},
        });
        let server = ObjectServer::start();
        server.replace(Resource::Nodes, std::slice::from_ref(&object));
        server.replace(Resource::ServiceCidrs, &[range]);
        let directory = Inside::find().expect("set by the runner").directory;
        let kubeconfig = directory.join("kubeconfig");
        let text = format!(
            "apiVersion: v1\nkind: Config\nclusters: [{{name: c, cluster: {{server: '{}'}}}}]\n\
             contexts: [{{name: x, context: {{cluster: c, user: ''}}}}]\ncurrent-context: x\n",
            server.url()
        );
        fs::write(&kubeconfig, text).expect("a file");
        let (theirs, own) = rng.pick(&[
            ("[0.0.0.0/0, '::/0']", "all"),
            ("[primary]", "primary"),
            ("[172.31.0.0/16, 'fd31::/16']", "172.31.0.0/16,fd31::/16"),
        ]);
        let settings = Settings { nodeport_addresses: own.parse().expect("addresses"), ..Settings::default() };
        let served = ServedNode {
            node: NODE,
            pods: "10.244.0.0/16,fd44::/48",
            kubeconfig: &kubeconfig,
            directory: &directory,
            options: &format!("nodePortAddresses: {theirs}\nnftables: {{minSyncPeriod: 100ms, syncPeriod: 1h}}\n"),
        };
        let kube_proxy = KubeProxy::find(Mode::Nftables).expect("asked before").start(&served);
        let addresses = NODE_ADDRESSES.map(|text| text.parse().expect("an address")).into();
        let log = directory.join(format!("kube-proxy-{NODE}.log"));
        let health = if own.starts_with("172.31") { ["172.31.0.11", "fd31::11"] } else { ["172.30.0.11", "fd30::11"] };
        let [v4, v6] = health.map(|text| text.parse().expect("an address"));
        Self { server, kube_proxy, log, object, addresses, settings, health: PerFamily { v4, v6 } }
    }

    /// The local endpoints that kube-proxy tells at a `healthCheckNodePort`, which it updates after its rules.
    fn local_endpoints(&self, port: u16, family: Family, expected: usize) -> Option<usize> {
        let ask = || {
            let mut stream = TcpStream::connect((self.health[family], port)).ok()?;
            write!(stream, "GET / HTTP/1.0\r\n\r\n").ok()?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).ok()?;
            let (_, body) = answer.split_once("\r\n\r\n")?;
            let body: Value = serde_json::from_str(body).ok()?;
            body["localEndpoints"].as_u64().and_then(|count| usize::try_from(count).ok())
        };
        let start = Instant::now();
        loop {
            let told = ask();
            if told == Some(expected) || start.elapsed() > Duration::from_secs(3) {
                return told;
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Gives kube-proxy the objects of a generation, and returns its rules for each family.
    fn rules_for(&self, objects: &Objects, generation: u16) -> [Ruleset; 2] {
        let all = with_sentinel(objects, generation);
        self.server.replace(Resource::EndpointSlices, &all.slices);
        self.server.replace(Resource::Services, &all.services);
        let start = Instant::now();
        // The endpoints of the node's zone, or all endpoints of a node without zone: kube-proxy reads its Node beside
        // the Services.
        let zone = self.object.pointer("/metadata/labels/topology.kubernetes.io~1zone").and_then(Value::as_str);
        let is_used = |at: usize| zone.is_none_or(|zone| ZONES[at] == zone);
        let port = sentinel_port(generation);
        [0, 1].map(|at| {
            let all = SENTINEL_ENDPOINTS[at].into_iter().enumerate().filter(|(at, _)| is_used(*at));
            let all = all.map(|(_, ip)| SocketAddr::new(ip.parse().expect("an address"), port)).collect();
            let wanted = Outcome::Endpoints(all);
            let to = SocketAddr::new(SENTINEL_IPS[at].parse().expect("an address"), port);
            let from = to.ip();
            let packet = Packet { origin: Origin::Outside, from, to, proto: Proto::Tcp, node: &self.addresses };
            loop {
                let has_sentinel = |rules: &Ruleset| rules.answer(&packet).outcome == wanted;
                if let Some(rules) = Ruleset::read(["ip", "ip6"][at]).filter(has_sentinel) {
                    return rules;
                }
                if start.elapsed() > TIMEOUT {
                    let log = fs::read_to_string(&self.log).unwrap_or_default();
                    panic!("kube-proxy has not written its rules:\n{}", &log[log.len().saturating_sub(6000)..]);
                }
                thread::sleep(Duration::from_millis(100));
            }
        })
    }
}

const fn sentinel_port(generation: u16) -> u16 {
    20_000 + generation
}

/// Addresses of the last Service.
const SENTINEL_IPS: [&str; 2] = ["10.96.255.254", "fd96::ff:fffe"];

/// Endpoints of the sentinel in each family, for each of [`ZONES`].
const SENTINEL_ENDPOINTS: [[&str; 2]; 2] = [["11.255.0.1", "11.255.0.2"], ["fd44:ffff::1", "fd44:ffff::2"]];

/// The objects of a generation and a last Service. kube-proxy reads the objects of a kind in order, so that rules which
/// lead from its frontend to its endpoints have all others too. The port's name binds the slice to the generation.
fn with_sentinel(objects: &Objects, generation: u16) -> Objects {
    let port = sentinel_port(generation);
    let ips = SENTINEL_IPS;
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "zz", "name": "sentinel"},
        "spec": {
            "type": "ClusterIP", "clusterIP": ips[0], "clusterIPs": ips, "ipFamilies": ["IPv4", "IPv6"],
            "ports": [{"name": format!("p{port}"), "protocol": "TCP", "port": port}],
        },
    });
    let slice = |name: &str, family: &str, addresses: [&str; 2]| {
        let endpoint = |(address, zone): (&str, &str)| {
            let hints = json!({"forZones": [{"name": zone}]});
            json!({"addresses": [address], "conditions": {}, "hints": hints})
        };
        let endpoints: Vec<_> = addresses.into_iter().zip(ZONES).map(endpoint).collect();
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family,
            "metadata": {"namespace": "zz", "name": name, "labels": {"kubernetes.io/service-name": "sentinel"}},
            "ports": [{"name": format!("p{port}"), "protocol": "TCP", "port": port}],
            "endpoints": endpoints,
        })
    };
    let [v4, v6] = SENTINEL_ENDPOINTS;
    let slices = [slice("sentinel-4", "IPv4", v4), slice("sentinel-6", "IPv6", v6)];
    Objects {
        services: objects.services.iter().cloned().chain([service]).collect(),
        slices: objects.slices.iter().cloned().chain(slices).collect(),
    }
}
