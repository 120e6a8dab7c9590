//! NodeLocal DNSCache as its project ships it: a process of the node listens at the cluster IP of the DNS Service,
//! which an interface of the node has, and at a link-local address. It serves pods and the node, and the Service does
//! without it.

use std::{
    fs,
    net::{IpAddr, SocketAddr, TcpListener, UdpSocket},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use lb_kernel::bpf::typed::TypedMap;
use lb_lab::{
    LabNamespace,
    link::LinkSpec,
    network::{Lan, LanOptions},
};
use rustix::net::sockopt::{Timeout, set_socket_timeout};

use crate::{
    Story,
    agent::{Agent, until},
    node::{StoryNode, is_slow},
    packets, places,
    sockets::{Client, at, has_netns_cookie, tcp_ask, tcp_server, udp_server},
};

/// Environment variable with the directory of CoreDNS.
const PROGRAMS: &str = "BEELINE_COREDNS";

pub const STORIES: &[Story] = &[
    ("a_cache_at_the_cluster_ip_serves_pods_and_the_node_while_it_listens", serves_while_it_listens),
    ("a_cache_at_the_cluster_ip_that_is_killed_in_a_loop_loses_what_is_on_the_wire", killed_in_a_loop),
    ("a_cache_in_a_pod_that_is_killed_in_a_loop_loses_what_is_on_the_wire", killed_in_a_pod),
    ("packets_of_a_pod_reach_a_cache_at_the_cluster_ip_while_it_listens", packets_reach_it),
    ("packets_from_a_bridge_reach_a_cache_at_the_cluster_ip_while_it_listens", packets_from_a_bridge_reach_it),
];

/// Stories with real CoreDNS.
pub const REAL: &[Story] = &[("a_real_cache_at_the_cluster_ip_is_killed_in_a_loop_under_real_queries", real_cache)];

/// True if CoreDNS is there.
pub fn has_coredns() -> bool {
    std::env::var_os(PROGRAMS).is_some()
}

const DNS: &str = "10.96.0.10:53";
const DNS6: &str = "[fd96::10]:53";
const LINK_LOCAL: &str = "169.254.20.10:53";
const TARGET: u16 = 5353;

/// Two nodes; the first has the cache's interface, the second a pod of the DNS Service.
fn network() -> Lan {
    let lan = Lan::make(LanOptions { pods: 2, ..LanOptions::default() });
    // A bridge without ports, as every kernel has it, for the dummy interface.
    let setup = lan.node1.host.net.setup().link("nodelocaldns", &LinkSpec::bridge());
    let addresses = ["10.96.0.10/32", "fd96::10/128", "169.254.20.10/32"];
    addresses.iter().fold(setup, |setup, address| setup.address("nodelocaldns", address)).apply();
    let backend = lan.node2.pods.first().expect("a pod");
    backend.net.enter(|| {
        for ip in [backend.v4.into(), IpAddr::from(backend.v6)] {
            udp_server(&SocketAddr::new(ip, TARGET).to_string());
            tcp_server(&SocketAddr::new(ip, TARGET).to_string());
        }
    });
    lan
}

/// Returns the YAML of the DNS Service.
fn service(lan: &Lan) -> String {
    let backend = lan.node2.pods.first().expect("a pod");
    let mut yaml = "apiVersion: v1\nkind: Service\nmetadata: {name: kube-dns}\nspec:\n  clusterIP: 10.96.0.10\n  \
                    clusterIPs: [10.96.0.10, \"fd96::10\"]\n  \
                    ports: [{name: u, port: 53, protocol: UDP}, {name: t, port: 53, protocol: TCP}]\n---\n"
        .to_owned();
    for (family, ip) in [("IPv4", backend.v4.to_string()), ("IPv6", backend.v6.to_string())] {
        yaml += &format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: dns-{family}, labels: \
             {{kubernetes.io/service-name: kube-dns}}}}\naddressType: {family}\n\
             ports: [{{name: u, port: {TARGET}, protocol: UDP}}, {{name: t, port: {TARGET}, protocol: TCP}}]\n\
             endpoints: [{{addresses: [\"{ip}\"], nodeName: there}}]\n---\n"
        )
        .replace("dns-IP", "dns-ip");
    }
    yaml
}

/// The cache: sockets of the node at the addresses of its interface.
struct Cache {
    is_over: Arc<AtomicBool>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Cache {
    /// Starts it in the network namespace of the calling thread.
    fn start() -> Self {
        Self::start_at(&[(DNS, DNS), (DNS6, DNS6), (LINK_LOCAL, LINK_LOCAL)])
    }

    /// Starts it at these addresses, each with its answer.
    fn start_at(places: &[(&str, &'static str)]) -> Self {
        let is_over = Arc::<AtomicBool>::default();
        let mut threads = Vec::new();
        for (place, name) in places.iter().copied() {
            let (udp, over) = (UdpSocket::bind(place).expect("a free port"), Arc::clone(&is_over));
            udp.set_read_timeout(Some(Duration::from_millis(1))).expect("a time-out");
            threads.push(thread::spawn(move || {
                let mut buffer = [0; 64];
                while !over.load(Ordering::Relaxed) {
                    if let Ok((_, client)) = udp.recv_from(&mut buffer) {
                        let _gone = udp.send_to(name.as_bytes(), client);
                    }
                }
            }));
            let (tcp, over) = (TcpListener::bind(place).expect("a free port"), Arc::clone(&is_over));
            tcp.set_nonblocking(true).expect("a socket");
            threads.push(thread::spawn(move || {
                use std::io::Write as _;
                while !over.load(Ordering::Relaxed) {
                    match tcp.accept() {
                        Ok((mut stream, _)) => drop(stream.write_all(format!("{name} ").as_bytes())),
                        Err(_) => thread::sleep(Duration::from_millis(1)),
                    }
                }
            }));
        }
        Self { is_over, threads }
    }
}

impl Drop for Cache {
    /// Closes its sockets, as the end of a process does.
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        self.threads.drain(..).for_each(|thread| thread.join().expect("no panic"));
    }
}

/// Asks by a new UDP socket; none if no answer comes in time.
fn ask(to: SocketAddr) -> Option<String> {
    let client = Client::udp(to);
    let limit = Duration::from_millis(if is_slow() { 4000 } else { 300 });
    set_socket_timeout(client.fd(), Timeout::Recv, Some(limit)).expect("a time-out");
    client.send_to(to).ok()?;
    let (answer, from) = client.try_receive().ok()?;
    assert_eq!(from, Some(to), "{answer}");
    Some(answer)
}

/// Asserts who answers at an address, over UDP and TCP.
fn assert_answers(to: &str, expected: &str) {
    assert_eq!(ask(at(to)).as_deref(), Some(expected), "UDP to {to}");
    let connected = Client::udp(at(to));
    connected.connect(at(to)).expect("connected");
    connected.send().expect("sent");
    assert_eq!(connected.receive(), (expected.to_owned(), Some(at(to))), "connected UDP to {to}");
    assert_eq!(tcp_ask(at(to)).map(|(answer, _)| answer), Ok(expected.to_owned()), "TCP to {to}");
}

fn backends(lan: &Lan) -> [String; 2] {
    let backend = lan.node2.pods.first().expect("a pod");
    [SocketAddr::from((backend.v4, TARGET)).to_string(), SocketAddr::from((backend.v6, TARGET)).to_string()]
}

/// Starts the agent of node1 and waits until it knows the address as the node's.
fn agent(node: &StoryNode, lan: &Lan) -> Agent {
    node.write("dns.yaml", &service(lan));
    let agent = lan.node1.host.net.enter(|| node.agent(&["--devices", "none"]));
    wait_for_own_address(&agent);
    agent
}

fn wait_for_own_address(agent: &Agent) {
    agent.wait_for("the cluster IP is an address of the node", |dump| {
        let is_own = |frontend: &lb_common::Frontend| frontend.kind == lb_common::Kind::OwnAddress as u8;
        dump.frontends.values().filter(|frontend| is_own(frontend)).count() == 2
    });
}

fn serves_while_it_listens(node: &mut StoryNode) {
    let lan = network();
    let agent = agent(node, &lan);
    let pod = lan.node1.pods.first().expect("a pod");
    let [backend, backend6] = backends(&lan);
    let check = |expected: [&str; 2]| {
        pod.net.enter(|| {
            assert_answers(DNS, expected[0]);
            assert_answers(DNS6, expected[1]);
        });
        if has_netns_cookie() {
            lan.node1.host.net.enter(|| assert_answers(DNS, expected[0]));
        }
    };
    check([&backend, &backend6]);
    let cache = lan.node1.host.net.enter(Cache::start);
    check([DNS, DNS6]);
    pod.net.enter(|| assert_answers(LINK_LOCAL, LINK_LOCAL));
    // A socket at all addresses of the node, or in another pod, is no cache.
    drop(cache);
    let other = lan.node1.pods.get(1).expect("a pod");
    other
        .net
        .setup()
        .address("lo", "10.96.0.10/32")
        .address("lo", "fd96::10/128")
        .address("lo", "169.254.20.10/32")
        .up("lo")
        .apply();
    let elsewhere = other.net.enter(Cache::start);
    let everywhere = lan.node1.host.net.enter(|| UdpSocket::bind("[::]:53").expect("a free port"));
    check([&backend, &backend6]);
    drop((elsewhere, everywhere));
    // Without the interface the address is the Service's, listener or not.
    let cache = lan.node1.host.net.enter(Cache::start);
    check([DNS, DNS6]);
    lan.node1.host.net.ip("link del nodelocaldns");
    agent.wait_for("the cluster IP is the Service's alone", |dump| {
        dump.frontends.values().all(|frontend| frontend.kind != lb_common::Kind::OwnAddress as u8)
    });
    pod.net.enter(|| assert_answers(DNS, &backend));
    drop(cache);
}

/// Ends the resolver, also after a failure.
struct EndsResolver<'a>(&'a AtomicBool);

impl Drop for EndsResolver<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn killed_in_a_loop(node: &mut StoryNode) {
    let lan = network();
    let _agent = agent(node, &lan);
    let [backend, _] = backends(&lan);
    kill_in_a_loop(30, &lan, &backend, || ask(at(DNS)), || lan.node1.host.net.enter(Cache::start));
}

/// A cache in a pod, which takes the clients of the DNS Service. The objects say all the time that it is ready.
fn killed_in_a_pod(node: &mut StoryNode) {
    let lan = Lan::make(LanOptions { pods: 2, ..LanOptions::default() });
    let backend = lan.node2.pods.first().expect("a pod");
    let place = SocketAddr::from((backend.v4, TARGET)).to_string();
    backend.net.enter(|| {
        udp_server(&place);
        tcp_server(&place);
    });
    let cache = lan.node1.pods.get(1).expect("a pod");
    // As in a pod, whose namespace has a process that outlives the cache.
    let mut sandbox = cache.net.spawn(Command::new("sleep").arg("infinity"));
    let slice = format!(
        "apiVersion: v1\nkind: Service\n\
         metadata: {{name: cache, annotations: {{beeline.io/redirect-from: default/kube-dns}}}}\nspec:\n  \
         clusterIP: 10.96.0.20\n  clusterIPs: [10.96.0.20]\n  \
         ports: [{{name: u, port: 53, protocol: UDP}}, {{name: t, port: 53, protocol: TCP}}]\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: cache, labels: {{kubernetes.io/service-name: cache}}}}\naddressType: IPv4\n\
         ports: [{{name: u, port: {TARGET}, protocol: UDP}}, {{name: t, port: {TARGET}, protocol: TCP}}]\n\
         endpoints: [{{addresses: [\"{}\"], nodeName: here}}]\n",
        cache.v4
    );
    node.write("cache.yaml", &slice);
    node.write("dns.yaml", &service(&lan));
    let at_cache = SocketAddr::from((cache.v4, TARGET)).to_string();
    let start_cache = || cache.net.enter(|| Cache::start_at(&[(&at_cache, DNS)]));
    let first = start_cache();
    let agent = lan.node1.host.net.enter(|| node.agent(&["--devices", "none"]));
    agent.wait_for_log("takes the clients of another Service");
    drop(first);
    kill_in_a_loop(10, &lan, &place, || ask(at(DNS)), start_cache);
    // The cache's address in another namespace, as of a pod whose sandbox was made anew.
    let ends = || agent.log().matches("listens again").count();
    let (before, other) = (ends(), LabNamespace::new());
    other.setup().address("lo", &format!("{}/32", cache.v4)).up("lo").apply();
    let mut other_sandbox = other.spawn(Command::new("sleep").arg("infinity"));
    let _cache = other.enter(|| Cache::start_at(&[(&at_cache, DNS)]));
    until("it is found there", || ends() > before);
    let _ended = other_sandbox.kill();
    let _ended = other_sandbox.wait();
    let _ended = sandbox.kill();
    let _ended = sandbox.wait();
}

/// Starts and kills a cache in a loop, while a pod asks without a pause. The cache answers [`DNS`].
fn kill_in_a_loop<C>(
    kills: u32,
    lan: &Lan,
    backend: &str,
    ask: impl Fn() -> Option<String> + Send + Sync,
    start_cache: impl Fn() -> C,
) {
    let pod = lan.node1.pods.first().expect("a pod");
    let is_over = AtomicBool::default();
    let (by_cache, by_service, lost) = (AtomicU32::new(0), AtomicU32::new(0), AtomicU32::new(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            pod.net.enter(|| {
                while !is_over.load(Ordering::Relaxed) {
                    let count = match ask().as_deref() {
                        Some(DNS) => &by_cache,
                        Some(answer) if answer == backend => &by_service,
                        Some(answer) => panic!("an answer from {answer}"),
                        None => {
                            // Ten, since a busy machine takes its time.
                            assert!((0..10).any(|_| ask().is_some()), "one of the next is answered");
                            &lost
                        }
                    };
                    count.fetch_add(1, Ordering::Relaxed);
                    thread::sleep(Duration::from_millis(1));
                }
            });
        });
        let (start, _resolver) = (Instant::now(), EndsResolver(&is_over));
        let more = |count: &AtomicU32| {
            let before = count.load(Ordering::Relaxed);
            until("queries are answered", || count.load(Ordering::Relaxed) >= before + 10);
        };
        for _ in 0..kills {
            let cache = start_cache();
            more(&by_cache);
            drop(cache);
            more(&by_service);
        }
        println!("{by_cache:?} by the cache, {by_service:?} by the Service, {lost:?} lost in {:?}", start.elapsed());
    });
    // The resolver asks one at a time: each kill can meet one query.
    assert!(lost.into_inner() <= kills);
}

/// A CoreDNS, killed when dropped.
struct CoreDns(Child);

impl CoreDns {
    fn start(node: &StoryNode, net: &LabNamespace, name: &str, corefile: &str) -> Self {
        let program = PathBuf::from(std::env::var_os(PROGRAMS).expect("set by the runner")).join("coredns");
        let path = node.directory.join(name);
        fs::write(&path, corefile).expect("a file");
        let mut command = Command::new(program);
        command.arg("-conf").arg(path).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Self(net.spawn(&mut command))
    }
}

impl Drop for CoreDns {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _ended = self.0.wait();
    }
}

/// Asks for the address of a name, and returns it; none if no answer comes in time.
fn resolve(to: SocketAddr, name: &str) -> Option<IpAddr> {
    static ID: AtomicU32 = AtomicU32::new(1);
    let id = ID.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    let mut query = vec![id[2], id[3], 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        query.push(u8::try_from(label.len()).expect("short"));
        query.extend(label.bytes());
    }
    // The root, type A, class IN.
    query.extend([0, 0, 1, 0, 1]);
    let socket = UdpSocket::bind("0.0.0.0:0").expect("a port");
    socket.set_read_timeout(Some(Duration::from_millis(300))).expect("a time-out");
    socket.send_to(&query, to).ok()?;
    let mut answer = [0; 512];
    let (len, from) = socket.recv_from(&mut answer).ok()?;
    let answer = answer.get(..len)?;
    assert_eq!((from, answer.get(..2)), (to, Some(&id[2..])));
    // One answer, with its address at the end.
    let address: [u8; 4] = answer.get(len.checked_sub(4)?..)?.try_into().ok()?;
    (answer.get(7) == Some(&1)).then(|| address.into())
}

fn real_cache(node: &mut StoryNode) {
    const UPSTREAM: &str = "10.96.0.11:53";
    let lan = network();
    let upstream = service(&lan)
        .replace("kube-dns", "upstream")
        .replace("10.96.0.10", "10.96.0.11")
        .replace("fd96::10", "fd96::11")
        .replace("dns-ip", "upstream-ip");
    let backend = lan.node2.pods.first().expect("a pod");
    let answers =
        |address: &str| format!("  template IN A {{\n    answer \"{{{{ .Name }}}} 60 IN A {address}\"\n  }}\n");
    let port = 5454;
    let pods = format!(".:{port} {{\n  bind {}\n{}}}\n", backend.v4, answers("192.0.2.2"));
    let _pod = CoreDns::start(node, &backend.net, "pods", &pods);
    node.write("upstream.yaml", &upstream.replace(&TARGET.to_string(), &port.to_string()));
    node.write("dns.yaml", &service(&lan).replace(&TARGET.to_string(), &port.to_string()));
    let agent = lan.node1.host.net.enter(|| node.agent(&["--devices", "none"]));
    wait_for_own_address(&agent);
    // As NodeLocal DNSCache does: it knows one name itself, and asks the Service of the same pods for the others.
    let bound = "bind 169.254.20.10 10.96.0.10";
    let corefile = format!(
        "who.test:53 {{\n  {bound}\n{}}}\n.:53 {{\n  {bound}\n  cache 30\n  forward . {UPSTREAM}\n}}\n",
        answers("192.0.2.1")
    );
    let who = || {
        resolve(at(DNS), "who.test").map(|address| match address {
            IpAddr::V4(address) if address.octets()[3] == 1 => DNS.to_owned(),
            other => other.to_string(),
        })
    };
    let pod = lan.node1.pods.first().expect("a pod");
    until("the pods of the Service answer", || pod.net.enter(who).as_deref() == Some("192.0.2.2"));
    let start = || CoreDns::start(node, &lan.node1.host.net, "cache", &corefile);
    kill_in_a_loop(8, &lan, "192.0.2.2", who, start);
    let _cache = start();
    until("the cache forwards", || {
        pod.net.enter(|| {
            who().as_deref() == Some(DNS)
                && [DNS, LINK_LOCAL]
                    .into_iter()
                    .all(|at_cache| resolve(at(at_cache), "web.default.svc.cluster.local") == "192.0.2.2".parse().ok())
        })
    });
}

fn packets_reach_it(node: &mut StoryNode) {
    let lan = network();
    node.write("dns.yaml", &service(&lan));
    // The agent's cgroup is empty: the pod's packets alone are translated. The agent finds the cache when it starts.
    let cache = lan.node1.host.net.enter(Cache::start);
    let agent = packets::agent(node, &lan, &["--pod-devices", "pod2"]);
    wait_for_own_address(&agent);
    let pod = lan.node1.pods.first().expect("a pod");
    let [backend, backend6] = backends(&lan);
    let check = |expected: [&str; 2]| {
        pod.net.enter(|| {
            assert_answers(DNS, expected[0]);
            assert_answers(DNS6, expected[1]);
        });
    };
    drop(cache);
    until("the pod's link has the programs", || pod.net.enter(|| ask(at(DNS))).is_some());
    check([&backend, &backend6]);
    let cache = lan.node1.host.net.enter(Cache::start);
    check([DNS, DNS6]);
    // A pod whose link has no programs reaches the cache too, and gets no programs.
    let [_, other] = lan.node1.pods.as_slice() else { panic!("two pods") };
    other.net.enter(|| {
        assert_answers(DNS, DNS);
        assert_answers(DNS6, DNS6);
    });
    let links = TypedMap::<u32, u64>::open(&node.maps(), "PACKET_LINKS").expect("the map");
    assert_eq!(links.read().expect("the map"), []);
    // A socket that has the cache's answers goes on with the Service.
    let (kept, other) = pod.net.enter(|| (Client::udp(at(DNS)), Client::udp(at(DNS))));
    assert_eq!(kept.ask(at(DNS)).0, DNS);
    other.send_to(at(DNS)).expect("sent");
    assert_eq!(other.receive().0, DNS);
    drop(cache);
    assert_eq!(kept.ask(at(DNS)).0, backend);
    check([&backend, &backend6]);
}

/// Pods behind a bridge, as of the plugin bridge and flannel, whose calls may be left untranslated or make no socket of
/// this node.
fn packets_from_a_bridge_reach_it(node: &mut StoryNode) {
    let lan = network();
    let pod = lan.node1.add_container();
    node.write("dns.yaml", &service(&lan));
    let cache = lan.node1.host.net.enter(Cache::start);
    let agent = places::agent(node, &lan);
    places::wait_for_devices(node, &lan, &["eth0", "docker0"]);
    wait_for_own_address(&agent);
    let [backend, backend6] = backends(&lan);
    let check = |expected: [&str; 2]| {
        pod.net.enter(|| {
            assert_answers(DNS, expected[0]);
            assert_answers(DNS6, expected[1]);
        });
    };
    check([DNS, DNS6]);
    drop(cache);
    check([&backend, &backend6]);
    let _cache = lan.node1.host.net.enter(Cache::start);
    check([DNS, DNS6]);
}
