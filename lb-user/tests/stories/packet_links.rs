//! Pods that send packets to Services without a socket of the node, and without a label: their links get the programs
//! after the first packet. The cgroup of the agent is empty, so that it serves no socket of a pod.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    os::fd::OwnedFd,
    thread,
    time::{Duration, Instant},
};

use lb_common::{Counter, Device, DeviceFlags, GETS_NO_PROGRAMS};
use lb_dataplane::stats::counters;
use lb_kernel::bpf::{self as sys, typed::TypedMap};
use lb_lab::{
    LabNamespace,
    network::{Lan, LanOptions},
};
use rustix::{
    io::Errno,
    net::sockopt::{Timeout, set_socket_timeout},
    process::{Pid, PidfdFlags, PidfdGetfdFlags, Signal, pidfd_getfd, pidfd_open},
};

use crate::{
    Story,
    agent::{Agent, run, until},
    devices::index,
    node::StoryNode,
    packets::{NODE_PORT, TARGET, addresses, agent, pod, serve, service},
    sockets::{Client, any, has_ingress_ifindex, tcp_ask, tcp_server, udp_server},
};

pub const STORIES: &[Story] = &[
    ("packets_of_a_pod_without_sockets_are_served_after_the_first_and_after_a_kill", served_without_a_label),
    ("packets_that_a_pod_forwards_to_a_service_are_served", forwarded_packets),
    ("packets_of_a_pod_with_mode_off_are_refused", mode_off),
    ("packets_of_a_pod_without_sockets_wait_for_a_busy_agent", busy_agent),
    ("packets_of_a_pod_without_sockets_to_addresses_of_its_node_are_served_after_the_first", addresses_of_the_node),
    ("packets_of_a_pod_to_sockets_of_its_node_reach_them", sockets_of_the_node),
    ("packets_of_a_pod_to_a_node_port_that_a_socket_got_from_the_kernel_reach_it_but_the_first", ports_of_the_kernel),
];

const VIPS: [&str; 2] = ["10.96.0.1:80", "[fd96::1]:80"];

fn vips() -> [SocketAddr; 2] {
    VIPS.map(|vip| vip.parse().expect("an address"))
}

/// The flags of a link of node1 in `DEVICES`.
fn flags(node: &StoryNode, lan: &Lan, link: &str) -> u32 {
    let devices = TypedMap::<u32, Device>::open(&node.maps(), "DEVICES").expect("the map");
    let link = lan.node1.host.net.enter(|| index(link));
    devices.get(&link).expect("the map").expect("an entry").flags
}

/// Number of packets dropped while a link was about to get the programs.
fn dropped(node: &StoryNode) -> u64 {
    let all = counters(&node.maps()).expect("the counters");
    all.into_iter().find(|(counter, _)| *counter == Counter::AwaitsPrograms).map_or(0, |(_, count)| count)
}

fn start(node: &mut StoryNode, lan: &Lan, backends: &[(IpAddr, &str)]) -> Agent {
    node.write("web.yaml", &service("Cluster", backends));
    let agent = agent(node, lan, &[]);
    agent.wait_for("its backends are there", |dump| dump.backends.len() == 2 * backends.len());
    agent
}

/// Sends a datagram each tenth of a second until one is answered, and returns the time that it took.
fn udp_until_answered(client: &LabNamespace, to: SocketAddr) -> Duration {
    let began = Instant::now();
    client.enter(|| {
        let client = Client::udp(to);
        set_socket_timeout(client.fd(), Timeout::Recv, Some(Duration::from_millis(100))).expect("SO_RCVTIMEO");
        until("a datagram is answered", || client.send_to(to).is_ok() && client.try_receive().is_ok());
    });
    began.elapsed()
}

fn served_without_a_label(node: &mut StoryNode) {
    let lan = Lan::make(LanOptions { pods: 2, ..LanOptions::default() });
    let [client, neighbour] = lan.node1.pods.as_slice() else { panic!("two pods") };
    serve(neighbour);
    serve(pod(&lan.node2));
    let endpoints = [(neighbour, "here"), (pod(&lan.node2), "there")];
    let backends: Vec<_> = endpoints.iter().flat_map(|(host, name)| addresses(host).map(|ip| (ip, *name))).collect();
    let mut agent = start(node, &lan, &backends);
    const WITHOUT: u32 = DeviceFlags::POD | DeviceFlags::NO_PROGRAMS;
    assert_eq!(flags(node, &lan, "pod2"), WITHOUT);
    let own_node_ports = addresses(&lan.node1.host).map(|address| SocketAddr::from((address, NODE_PORT)));
    // The first segment of TCP is sent again after a second.
    let began = Instant::now();
    client.net.enter(|| tcp_ask(vips()[0])).expect("an answer");
    println!("the first connection took {:?}", began.elapsed());
    agent.wait_for_log("their links get the programs");
    assert_eq!(flags(node, &lan, "pod2"), DeviceFlags::POD | DeviceFlags::CHOSEN);
    assert_eq!(flags(node, &lan, "pod3"), WITHOUT, "the other pod pays nothing");
    // From the other pod, with datagrams first.
    let took = udp_until_answered(&neighbour.net, vips()[1]);
    println!("the first answered datagram took {took:?}");
    let before = dropped(node);
    let all_at_once = || {
        for host in [client, neighbour] {
            for at in vips().into_iter().chain(own_node_ports) {
                host.net.enter(|| tcp_ask(at)).expect("an answer");
                host.net.enter(|| Client::udp(at).ask(at));
            }
        }
        assert_eq!(dropped(node), before, "each packet is served at once");
    };
    all_at_once();
    agent.kill();
    all_at_once();
    let agent = self::agent(node, &lan, &[]);
    all_at_once();
    agent.wait_until_in_service();
    all_at_once();
}

/// ServiceLB of k3s and gateways of a VPN do this: rules inside the pod translate to a cluster IP, and masquerade.
fn forwarded_packets(node: &mut StoryNode) {
    if std::process::Command::new("nft").arg("--version").output().is_err() {
        return println!("LACKS nft: no rule translates");
    }
    let lan = Lan::make(LanOptions::default());
    let gateway = pod(&lan.node1);
    serve(pod(&lan.node2));
    let backends = addresses(pod(&lan.node2)).map(|ip| (ip, "there"));
    let _agent = start(node, &lan, &backends);
    gateway.net.set("ipv4/conf/all/forwarding", "1");
    gateway.net.set("ipv6/conf/all/forwarding", "1");
    gateway.net.run(&[
        "nft",
        "table inet lb { \
           chain in { type nat hook prerouting priority dstnat; \
             meta nfproto ipv4 meta l4proto { tcp, udp } th dport 9000 dnat ip to 10.96.0.1:80; \
             meta nfproto ipv6 meta l4proto { tcp, udp } th dport 9000 dnat ip6 to [fd96::1]:80; }; \
           chain out { type nat hook postrouting priority srcnat; masquerade; }; }",
    ]);
    for (address, backend) in addresses(gateway).into_iter().zip(addresses(pod(&lan.node2))) {
        let to = SocketAddr::from((address, 9000));
        let server = SocketAddr::from((backend, TARGET)).to_string();
        assert_eq!(lan.client.net.enter(|| tcp_ask(to)).expect("an answer").0, server);
        let before = dropped(node);
        assert_eq!(lan.client.net.enter(|| Client::udp(to).ask(to)).0, server);
        assert_eq!(dropped(node), before, "the datagram is served at once");
    }
}

fn mode_off(node: &mut StoryNode) {
    let lan = Lan::make(LanOptions::default());
    let client = pod(&lan.node1);
    serve(pod(&lan.node2));
    let backends = addresses(pod(&lan.node2)).map(|ip| (ip, "there"));
    let agent = start(node, &lan, &backends);
    let netns = client.net.path();
    node.write(
        "pod.yaml",
        &format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: a, namespace: apps, labels: {{beeline.io/path: 'off'}}, \
             annotations: {{beeline.io/netns: {netns}}}}}\nspec: {{nodeName: here}}\nstatus: {{phase: Running}}\n"
        ),
    );
    agent.wait_for_log("the pod has another mode");
    for vip in vips() {
        let refused = client.net.enter(|| tcp_ask(vip));
        refused.expect_err("a packet to a cluster IP does not leave the node");
    }
    assert_eq!(flags(node, &lan, "pod2") & DeviceFlags::CHOSEN, 0);
    let links = TypedMap::<u32, u64>::open(&node.maps(), "PACKET_LINKS").expect("the map");
    assert_eq!(links.read().expect("the map"), [(lan.node1.host.net.enter(|| index("pod2")), GETS_NO_PROGRAMS)]);
}

/// An agent that does not get to run for longer than TCP waits before it sends its second segment.
fn busy_agent(node: &mut StoryNode) {
    let lan = Lan::make(LanOptions::default());
    serve(pod(&lan.node2));
    let backends = addresses(pod(&lan.node2)).map(|ip| (ip, "there"));
    let agent = start(node, &lan, &backends);
    agent.signal(Signal::STOP);
    thread::scope(|scope| {
        let asks = scope.spawn(|| pod(&lan.node1).net.enter(|| tcp_ask(vips()[0])));
        until("the second segment is dropped too", || dropped(node) >= 2 || asks.is_finished());
        agent.signal(Signal::CONT);
        asks.join().expect("no panic").expect("an answer");
    });
}

/// Returns the agent's link at the look-up of sockets, which is pinned nowhere.
fn socket_lookup_link(agent: &Agent) -> Option<OwnedFd> {
    let pid = Pid::from_raw(agent.pid().cast_signed())?;
    let of_agent = pidfd_open(pid, PidfdFlags::empty()).expect("a running agent");
    let numbers = fs::read_dir(format!("/proc/{}/fd", agent.pid())).expect("the descriptors of the agent");
    let is_link = |number: &i32| {
        let info = fs::read_to_string(format!("/proc/{}/fdinfo/{number}", agent.pid())).unwrap_or_default();
        info.lines().any(|line| line.split_whitespace().eq(["link_type:", "netns"]))
    };
    let link = numbers.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).find(is_link)?;
    Some(pidfd_getfd(of_agent, link, PidfdGetfdFlags::empty()).expect("a descriptor of the agent"))
}

/// Each pod sends its first packet to a frontend at an address of its node: a NodePort, or an interface's load balancer
/// address.
fn addresses_of_the_node(node: &mut StoryNode) {
    if !has_ingress_ifindex() {
        return;
    }
    let lan = Lan::make(LanOptions { pods: 8, ..LanOptions::default() });
    serve(pod(&lan.node2));
    let backends = addresses(pod(&lan.node2)).map(|ip| (ip, "there"));
    lan.node1.host.net.setup().address("lo", "198.51.100.7/32").apply();
    let mut agent = start(node, &lan, &backends);
    let mut pods = lan.node1.pods.iter();
    let mut fresh = || &pods.next().expect("a pod that has sent nothing").net;
    let [v4, v6] = addresses(&lan.node1.host).map(|address| SocketAddr::from((address, NODE_PORT)));
    let load_balancer: SocketAddr = "198.51.100.7:80".parse().expect("an address");
    for to in [v4, v6, load_balancer] {
        let (pod, before) = (fresh(), dropped(node));
        let began = Instant::now();
        // The first segment is sent again after a second.
        pod.enter(|| tcp_ask(to)).unwrap_or_else(|error| panic!("TCP to {to}: {error}"));
        println!("TCP to {to} took {:?}", began.elapsed());
        assert!(dropped(node) > before, "the first segment was dropped");
        let before = dropped(node);
        pod.enter(|| tcp_ask(to).and_then(|_| tcp_ask(vips()[0]))).expect("an answer");
        assert_eq!(dropped(node), before, "others are served at once");
    }
    for to in [v4, v6] {
        println!("UDP to {to} took {:?}", udp_until_answered(fresh(), to));
    }
    // Connections that begin while the agent attaches the programs.
    let many = fresh();
    thread::scope(|scope| {
        let ask = |number: u32| {
            thread::sleep(Duration::from_millis(2) * number);
            many.enter(|| tcp_ask(v4)).map(drop)
        };
        let asking: Vec<_> = (0..100).map(|number| scope.spawn(move || ask(number))).collect();
        let failed: Vec<_> = asking.into_iter().filter_map(|one| one.join().expect("no panic").err()).collect();
        assert_eq!(failed, [], "of 100 connections");
    });
    sys::detach_link(socket_lookup_link(&agent).expect("a link")).expect("detached");
    agent.wait_for_log("detached from the network namespace: socket_lookup");
    fresh().enter(|| tcp_ask(v4)).expect("an answer");
    agent.kill();
    let late = fresh();
    assert_eq!(late.enter(|| tcp_ask(v4)), Err(Errno::CONNREFUSED), "nothing attaches the programs");
    let _agent = self::agent(node, &lan, &[]);
    late.enter(|| tcp_ask(v4)).expect("an answer");
}

/// Sockets of the node at ports that are those of Services at other addresses.
fn sockets_of_the_node(node: &mut StoryNode) {
    let lan = Lan::make(LanOptions { pods: 2, ..LanOptions::default() });
    let backends = addresses(pod(&lan.node2)).map(|ip| (ip, "there"));
    let agent = start(node, &lan, &backends);
    let (at_one, at_all) = (addresses(&lan.node1.host).map(|address| SocketAddr::from((address, 80))), "[::]:8443");
    lan.node1.host.net.enter(|| {
        for at in at_one.map(|at| at.to_string()).iter().map(String::as_str).chain([at_all]) {
            tcp_server(at);
            udp_server(at);
        }
    });
    for client in &lan.node1.pods {
        for to in at_one {
            let answer = client.net.enter(|| tcp_ask(to)).expect("an answer");
            assert_eq!(answer.0, to.to_string());
            assert_eq!(client.net.enter(|| Client::udp(to).ask(to)), (to.to_string(), Some(to)));
            let to = SocketAddr::new(to.ip(), 8443);
            assert_eq!(client.net.enter(|| tcp_ask(to)).expect("an answer").0, at_all);
            assert_eq!(client.net.enter(|| Client::udp(to).ask(to)).0, at_all);
            let nowhere = SocketAddr::new(to.ip(), NODE_PORT + 1);
            assert_eq!(client.net.enter(|| tcp_ask(nowhere)), Err(Errno::CONNREFUSED), "a port of nothing");
        }
    }
    assert_eq!(dropped(node), 0);
    for link in ["pod2", "pod3"] {
        assert_eq!(flags(node, &lan, link), DeviceFlags::POD | DeviceFlags::NO_PROGRAMS, "they pay nothing");
    }
    assert!(socket_lookup_link(&agent).is_some());
    let doctor = lan.node1.host.net.enter(|| run(node, &["doctor"]));
    let doctor = String::from_utf8_lossy(&doctor.stdout);
    let is_there = doctor.contains(", and socket_lookup at the look-up of sockets");
    assert!(is_there || !has_ingress_ifindex(), "{doctor}");
    lan.node1.host.net.ip("link del pod2\nlink del pod3\n");
    until("a node without links of pods pays nothing", || socket_lookup_link(&agent).is_none());
}

/// An unconnected socket of the host gets the port of a NodePort, since the range from which the kernel takes ports has
/// it, and asks pods.
fn ports_of_the_kernel(node: &mut StoryNode) {
    if !has_ingress_ifindex() {
        return;
    }
    let lan = Lan::make(LanOptions { pods: 2, ..LanOptions::default() });
    lan.node1.pods.iter().for_each(serve);
    let backends = addresses(pod(&lan.node2)).map(|ip| (ip, "there"));
    let _agent = start(node, &lan, &backends);
    lan.node1.host.net.set("ipv4/ip_local_port_range", &format!("{NODE_PORT} {NODE_PORT}"));
    for pod in &lan.node1.pods {
        let before = dropped(node);
        for to in addresses(pod).map(|ip| SocketAddr::from((ip, TARGET))) {
            lan.node1.host.net.enter(|| {
                let client = Client::udp(to);
                client.bind(&any(to).to_string());
                set_socket_timeout(client.fd(), Timeout::Recv, Some(Duration::from_millis(300))).expect("SO_RCVTIMEO");
                let is_answered = || client.send_to(to).is_ok() && client.try_receive().is_ok();
                assert_eq!(is_answered(), to.is_ipv6(), "the first answer of the pod, by IPv4, is lost");
                until("the link has the programs, by which answers pass", is_answered);
                assert!((0..5).all(|_| is_answered()), "all later answers of {to} arrive");
            });
        }
        assert!(dropped(node) > before);
    }
}
