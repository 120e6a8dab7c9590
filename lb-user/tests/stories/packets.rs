//! The packet path as external clients see it: real sockets, two nodes, strict reverse path filters, no netfilter
//! rules.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use lb_common::{FrontendKey, Hook, Proto};
use lb_kernel::bpf as sys;
use lb_lab::network::{Host, Lan, LanOptions};
use rustix::io::Errno;

use crate::{
    Story,
    agent::{Agent, until},
    devices::index,
    doctor::returning,
    node::StoryNode,
    sockets::{Client, tcp_ask, tcp_server, udp_server},
};

pub const STORIES: &[Story] = &[
    ("packets_for_a_node_port_reach_a_local_or_remote_pod", node_ports_reach_pods),
    ("packets_without_an_endpoint_are_rejected_or_dropped_as_the_policy_says", no_endpoint),
    ("packets_of_ten_thousand_connections_during_a_rollout_are_all_answered", rollout_fails_no_connection),
    ("packets_of_a_gigabyte_stream_arrive_across_restarts_and_kills", gigabyte_arrives),
    ("packets_under_host_routing_bypass_the_stack_of_the_node", host_routing_bypasses_the_stack),
    ("packets_reach_a_pod_whose_link_has_no_room_for_the_programs", full_hook_keeps_pods_reachable),
    ("packets_from_a_pod_device_reach_a_cluster_ip_and_the_pod_itself", pod_devices_translate),
];

pub const TARGET: u16 = 8080;
pub const NODE_PORT: u16 = 30080;

pub fn addresses(host: &Host) -> [IpAddr; 2] {
    [host.v4.into(), host.v6.into()]
}

pub fn serve(host: &Host) {
    host.net.enter(|| {
        for ip in addresses(host) {
            tcp_server(&SocketAddr::from((ip, TARGET)).to_string());
            udp_server(&SocketAddr::from((ip, TARGET)).to_string());
        }
    });
}

/// Returns a dual-stack Service with a TCP and a UDP port and these endpoints (address, node).
pub fn service(policy: &str, endpoints: &[(IpAddr, &str)]) -> String {
    let mut yaml = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: web}}\nspec:\n  type: LoadBalancer\n  \
         clusterIPs: [10.96.0.1, \"fd96::1\"]\n  clusterIP: 10.96.0.1\n  ipFamilies: [IPv4, IPv6]\n  \
         externalTrafficPolicy: {policy}\n  ports:\n  \
         - {{name: t, port: 80, protocol: TCP, nodePort: {NODE_PORT}}}\n  \
         - {{name: u, port: 80, protocol: UDP, nodePort: {NODE_PORT}}}\n\
         status: {{loadBalancer: {{ingress: [{{ip: 198.51.100.7}}]}}}}\n---\n"
    );
    for (family, is_v4) in [("IPv4", true), ("IPv6", false)] {
        yaml += &format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
             metadata: {{name: web-{family}, labels: {{kubernetes.io/service-name: web}}}}\naddressType: {family}\n\
             ports: [{{name: t, port: {TARGET}, protocol: TCP}}, {{name: u, port: {TARGET}, protocol: UDP}}]\n\
             endpoints:\n"
        )
        .to_lowercase()
        .replace("endpointslice\n", "EndpointSlice\n")
        .replace("apiversion", "apiVersion")
        .replace("addresstype: ipv", "addressType: IPv")
        .replace("protocol: tcp", "protocol: TCP")
        .replace("protocol: udp", "protocol: UDP");
        for (ip, node) in endpoints.iter().filter(|(ip, _)| ip.is_ipv4() == is_v4) {
            yaml += &format!("- {{addresses: [\"{ip}\"], nodeName: {node}}}\n");
        }
        yaml += "---\n";
    }
    yaml
}

/// Starts the agent of node1, which is called "here". Its cgroup is empty, so that the socket path serves no client.
pub fn agent(node: &StoryNode, lan: &Lan, more: &[&str]) -> Agent {
    let cgroup = node.cgroup.join("node1");
    fs::create_dir_all(&cgroup).expect("a cgroup");
    // eth0 and the VLAN devices on it.
    let flags = [&["--devices", "eth0*", "--cgroup", cgroup.to_str().expect("text")], more].concat();
    let agent = lan.node1.host.net.enter(|| node.agent(&flags));
    agent.wait_until_in_service();
    // Poll the device: a restarted agent logs nothing about devices that are attached already.
    until("the programs are at the device", || has_link(node) || has_filters(lan));
    agent
}

/// True if a TCX link at ingress is pinned.
pub fn has_link(node: &StoryNode) -> bool {
    let pins = fs::read_dir(node.maps()).expect("the pins");
    pins.flatten().any(|pin| pin.file_name().to_string_lossy().starts_with("link_tc_ingress_"))
}

/// True if a filter runs at the uplink of node1, as on a kernel without TCX.
pub fn has_filters(lan: &Lan) -> bool {
    lan.node1.host.net.run(&["tc", "filter", "show", "dev", "eth0", "ingress"]).contains("tc_ingress")
}

pub fn pod(node: &lb_lab::network::LabNode) -> &Host {
    node.pods.first().expect("a pod")
}

fn wait_for_backends(agent: &Agent, count: usize) {
    agent.wait_for("the backends are there", |dump| dump.backends.len() == count);
}

/// A local backend sees the client address, a remote one the address of node1, and the client sees the NodePort.
fn node_ports_reach_pods(node: &mut StoryNode) {
    let lan = Lan::make(LanOptions::default());
    let (here, there) = (pod(&lan.node1), pod(&lan.node2));
    [here, there].into_iter().for_each(serve);
    let mut agent = None;
    for (host, name) in [(here, "here"), (there, "there")] {
        let endpoints = addresses(host).map(|ip| (ip, name));
        node.write("web.yaml", &service("Cluster", &endpoints));
        let agent = agent.get_or_insert_with(|| self::agent(node, &lan, &[]));
        let wanted: Vec<IpAddr> = addresses(host).into();
        agent.wait_for("its backends are there", |dump| {
            dump.backends.len() == 4 && dump.backends.values().all(|backend| wanted.contains(&backend.addr.to_ip()))
        });
        let sides = addresses(&lan.client).into_iter().zip(addresses(&lan.node1.host)).zip(addresses(host));
        for ((client, own), backend) in sides {
            let to = SocketAddr::from((own, NODE_PORT));
            let (tcp, udp) = lan.client.net.enter(|| (tcp_ask(to).expect("an answer"), Client::udp(to).ask(to)));
            let server = SocketAddr::from((backend, TARGET)).to_string();
            let seen = if name == "here" { client } else { own };
            assert_eq!(tcp, (server.clone(), seen.to_string()), "TCP to {to}, a backend {name}");
            assert_eq!(udp, (server, Some(to)), "UDP to {to}, a backend {name}");
        }
    }
}

fn no_endpoint(node: &mut StoryNode) {
    let lan = Lan::make(LanOptions::default());
    let there = pod(&lan.node2);
    serve(there);
    node.write("web.yaml", &service("Cluster", &[]));
    let agent = agent(node, &lan, &[]);
    let own = lan.node1.host.v4;
    for own in addresses(&lan.node1.host) {
        let to = SocketAddr::from((own, NODE_PORT));
        lan.client.net.enter(|| {
            assert_reset(to);
            let udp = Client::udp(to);
            udp.connect(to).expect("UDP");
            udp.send().expect("sent");
            // The ICMP error reaches the socket.
            until("the datagram is refused", || udp.send() == Err(Errno::CONNREFUSED));
        });
    }
    // A port of no Service at a cluster IP that the client routes to this node.
    lan.client.net.run(&["ip", "route", "add", "10.96.0.0/16", "via", &own.to_string()]);
    let unknown = SocketAddr::from(([10, 96, 0, 1], 81));
    lan.client.net.enter(|| assert_reset(unknown));
    // Policy Local with a remote endpoint only: packets are dropped.
    node.write("web.yaml", &service("Local", &addresses(there).map(|ip| (ip, "there"))));
    wait_for_backends(&agent, 4);
    let to = SocketAddr::from((own, NODE_PORT));
    let trace = |from: &str| {
        let output = crate::agent::run(node, &["trace", "tcp", &to.to_string(), "--from", from]);
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert!(trace(&lan.client.v4.to_string()).contains("dropped"), "{}", trace("172.30.0.20"));
    let silent = lan.client.net.enter(|| TcpStream::connect_timeout(&to, Duration::from_millis(500)));
    assert_eq!(silent.expect_err("dropped").kind(), std::io::ErrorKind::TimedOut);
    // The external policy does not affect a cluster IP: an external client reaches it, masqueraded as the node.
    let vip = SocketAddr::from(([10, 96, 0, 1], 80));
    let (_, seen) = lan.client.net.enter(|| tcp_ask(vip).expect("an answer"));
    assert_eq!(seen, own.to_string());
}

fn assert_reset(to: SocketAddr) {
    let error = TcpStream::connect_timeout(&to, Duration::from_secs(2)).expect_err("no server answers");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{to}");
}

fn rollout_fails_no_connection(node: &mut StoryNode) {
    const CONNECTIONS: usize = 10_000;
    let lan = Lan::make(LanOptions { pods: 2, ..LanOptions::default() });
    let hosts: Vec<(&Host, &str)> = [(&lan.node1, "here"), (&lan.node2, "there")]
        .iter()
        .flat_map(|(node, name)| node.pods.iter().map(move |pod| (pod, *name)))
        .collect();
    hosts.iter().for_each(|(host, _)| serve(host));
    let subset = |mask: usize| -> Vec<(IpAddr, &str)> {
        let chosen = hosts.iter().enumerate().filter(|(index, _)| mask >> index & 1 == 1);
        chosen.flat_map(|(_, (host, name))| addresses(host).map(|ip| (ip, *name))).collect()
    };
    node.write("web.yaml", &service("Cluster", &subset(0b1111)));
    let agent = agent(node, &lan, &[]);
    wait_for_backends(&agent, 16);
    let (done, over) = (AtomicUsize::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            for mask in (1..16_usize).cycle() {
                if over.load(Ordering::Relaxed) {
                    break;
                }
                node.write("web.yaml", &service("Cluster", &subset(mask)));
                thread::sleep(Duration::from_millis(100));
            }
        });
        let to = SocketAddr::from((lan.node1.host.v4, NODE_PORT));
        let failed: Vec<_> = lan.client.net.enter(|| {
            let ask = |_| {
                let answer = tcp_ask(to);
                done.fetch_add(1, Ordering::Relaxed);
                answer.err()
            };
            (0..CONNECTIONS).filter_map(ask).collect()
        });
        over.store(true, Ordering::Relaxed);
        assert!(failed.is_empty(), "{} of {CONNECTIONS} failed: {:?}", failed.len(), failed.first());
    });
    assert_eq!(done.load(Ordering::Relaxed), CONNECTIONS);
}

/// A stream arrives while the agent is killed and restarted (without host routing) and the endpoints are removed.
fn gigabyte_arrives(node: &mut StoryNode) {
    const BYTES: usize = 1 << 30;
    let lan = Lan::make(LanOptions::default());
    let (here, there) = (pod(&lan.node1), pod(&lan.node2));
    for (host, name, flags) in
        [(here, "here", [].as_slice()), (there, "there", &[]), (here, "here", &["--host-routing"])]
    {
        node.write("web.yaml", &service("Cluster", &addresses(host).map(|ip| (ip, name))));
        let mut first = agent(node, &lan, flags);
        if !flags.is_empty() {
            until("the pod's link has the programs", || is_host_routed(node, &lan, "pod2"));
        }
        first.wait_for("its backends are there", |dump| {
            dump.backends.values().filter(|backend| addresses(host).contains(&backend.addr.to_ip())).count() == 4
        });
        let received = host.net.enter(|| receive_pattern(SocketAddr::from((host.v4, TARGET)), BYTES));
        let to = SocketAddr::from((lan.node1.host.v4, NODE_PORT));
        thread::scope(|scope| {
            let sent = scope.spawn(|| lan.client.net.enter(|| send(to, BYTES)));
            thread::sleep(Duration::from_millis(300));
            first.kill();
            let second = agent(node, &lan, &[]);
            node.write("web.yaml", &service("Cluster", &[]));
            wait_for_backends(&second, 0);
            sent.join().expect("the stream is sent");
            assert_eq!(received.join().expect("the server"), BYTES, "a backend {name} {flags:?}");
        });
    }
}

/// Returns the pattern that a stream repeats. Its length is not a power of two, so that a shifted stream differs.
fn pattern() -> Vec<u8> {
    (0..1_000_003_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

fn send(to: SocketAddr, mut left: usize) {
    let pattern = pattern();
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(5)).expect("a connection");
    stream.set_write_timeout(Some(Duration::from_secs(20))).expect("a time-out");
    while left > 0 {
        let part = pattern.get(..left.min(pattern.len())).unwrap_or_default();
        stream.write_all(part).expect("sent");
        left -= part.len();
    }
}

/// Starts a server for one client that returns the number of octets received before the first wrong one.
fn receive_pattern(address: SocketAddr, most: usize) -> thread::JoinHandle<usize> {
    let listener = TcpListener::bind(address).expect("a free port");
    thread::spawn(move || {
        let pattern = [pattern(), pattern()].concat();
        let (mut stream, _) = listener.accept().expect("a client");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a time-out");
        let (mut count, mut buffer) = (0, vec![0; 1 << 18]);
        while count < most {
            let len = stream.read(&mut buffer).expect("data or the end of the stream");
            let start = count % (pattern.len() / 2);
            if len == 0 || buffer.get(..len) != pattern.get(start..start + len) {
                break;
            }
            count += len;
        }
        count
    })
}

/// True if host routing applies to the pod behind a link of node1.
fn is_host_routed(node: &StoryNode, lan: &Lan, link: &str) -> bool {
    let devices = lan.node1.host.net.enter(|| crate::agent::run(node, &["get", "devices"]));
    let devices = String::from_utf8_lossy(&devices.stdout).into_owned();
    devices.lines().any(|line| line.starts_with(link) && line.contains("pod, host routing"))
}

/// The stack of the node forwards all packets between an external client and a local pod, and none with
/// `--host-routing`.
fn host_routing_bypasses_the_stack(node: &mut StoryNode) {
    let lan = Lan::make(LanOptions::default());
    let here = pod(&lan.node1);
    serve(here);
    node.write("web.yaml", &service("Cluster", &addresses(here).map(|ip| (ip, "here"))));
    // Packets that the stack of the node has forwarded (ForwDatagrams of IPv4 and IPv6).
    let forwarded = || {
        let read = |path| lan.node1.host.net.enter(|| fs::read_to_string(path)).expect("the node's counters");
        let (v4, v6) = (read("/proc/thread-self/net/snmp"), read("/proc/thread-self/net/snmp6"));
        let v4 = v4.lines().filter_map(|line| line.strip_prefix("Ip: ")).nth(1).expect("the numbers");
        let v6 = v6.lines().find_map(|line| line.strip_prefix("Ip6OutForwDatagrams")).expect("the number");
        let number = |text: Option<&str>| text.and_then(|text| text.trim().parse::<u64>().ok()).expect("a number");
        number(v4.split(' ').nth(5)) + number(Some(v6))
    };
    let ask = || {
        let before = forwarded();
        for (client, (own, backend)) in
            addresses(&lan.client).into_iter().zip(addresses(&lan.node1.host).into_iter().zip(addresses(here)))
        {
            let to = SocketAddr::from((own, NODE_PORT));
            let (tcp, udp) = lan.client.net.enter(|| (tcp_ask(to).expect("an answer"), Client::udp(to).ask(to)));
            let server = SocketAddr::from((backend, TARGET)).to_string();
            assert_eq!(tcp, (server.clone(), client.to_string()), "TCP to {to}");
            assert_eq!(udp, (server, Some(to)), "UDP to {to}");
        }
        forwarded() - before
    };
    let mut first = agent(node, &lan, &[]);
    wait_for_backends(&first, 4);
    assert!(ask() >= 20, "the stack forwards each packet");
    first.terminate();
    let second = agent(node, &lan, &["--host-routing"]);
    until("the pod's link has the programs", || is_host_routed(node, &lan, "pod2"));
    wait_for_backends(&second, 4);
    assert_eq!(ask(), 0, "the stack forwards no packet");
}

/// Without room for the programs at a pod device, host routing is off for that pod: its replies would not be
/// translated.
fn full_hook_keeps_pods_reachable(node: &mut StoryNode) {
    let lan = Lan::make(LanOptions::default());
    let here = pod(&lan.node1);
    serve(here);
    node.write("web.yaml", &service("Cluster", &addresses(here).map(|ip| (ip, "here"))));
    const TC_ACT_UNSPEC: i32 = -1;
    // Attach programs until the kernel refuses (BPF_MPROG_MAX, include/linux/bpf_mprog.h).
    let foreign: Vec<_> = lan.node1.host.net.enter(|| {
        let link = index("pod2");
        let attach = || {
            let program = sys::load_classifier(c"theirs", &returning(TC_ACT_UNSPEC)).expect("a program");
            sys::attach_tcx(&program, link, Hook::Ingress).ok()
        };
        std::iter::from_fn(attach).take(1000).collect()
    });
    if foreign.is_empty() {
        println!("LACKS TCX: there is always room at a link");
        return;
    }
    let agent = agent(node, &lan, &["--host-routing"]);
    agent.wait_for_log("the devices of the packet path are not as they should be");
    wait_for_backends(&agent, 4);
    for own in addresses(&lan.node1.host) {
        let to = SocketAddr::from((own, NODE_PORT));
        lan.client.net.enter(|| tcp_ask(to)).expect("an answer");
    }
}

/// The agent does not serve the sockets of the pod; the programs at the pod device translate its packets.
fn pod_devices_translate(node: &mut StoryNode) {
    let lan = Lan::make(LanOptions { pods: 2, ..LanOptions::default() });
    let (client, neighbour, far) = (pod(&lan.node1), &lan.node1.pods[1], pod(&lan.node2));
    [client, neighbour, far].into_iter().for_each(serve);
    let agent = agent(node, &lan, &["--pod-devices", "pod2"]);
    for (host, name) in [(neighbour, "here"), (far, "there"), (client, "here")] {
        node.write("web.yaml", &service("Cluster", &addresses(host).map(|ip| (ip, name))));
        // Frontends are written last.
        let vip = |text: &str, proto| FrontendKey::new(text.parse::<IpAddr>().expect("an address").into(), 80, proto);
        let vips = [Proto::Tcp, Proto::Udp].map(|proto| [vip("10.96.0.1", proto), vip("fd96::1", proto)]).concat();
        agent.wait_for("its backends are there", |dump| {
            dump.backends.len() == 4
                && dump.backends.values().all(|b| addresses(host).contains(&b.addr.to_ip()))
                && vips.iter().all(|vip| dump.frontends.contains_key(vip))
        });
        for (vip, own, backend, gateway) in [
            (
                IpAddr::from([10, 96, 0, 1]),
                IpAddr::from(client.v4),
                IpAddr::from(host.v4),
                IpAddr::from(lan.node1.host.v4),
            ),
            ("fd96::1".parse().expect("an address"), client.v6.into(), host.v6.into(), lan.node1.host.v6.into()),
        ] {
            let to = SocketAddr::from((vip, 80));
            let (tcp, udp) = client.net.enter(|| (tcp_ask(to).expect("an answer"), Client::udp(to).ask(to)));
            let server = SocketAddr::from((backend, TARGET)).to_string();
            assert_eq!(tcp.0, server, "TCP to {to} at {backend}");
            // A pod that is its own backend sees an address of the node as the client (hairpin masquerade).
            if backend == own {
                assert_ne!(tcp.1, own.to_string());
                let _any_of_the_nodes_addresses = gateway;
            } else {
                assert_eq!(tcp.1, own.to_string());
            }
            assert_eq!(udp, (server, Some(to)), "UDP to {to} at {backend}");
        }
    }
}
