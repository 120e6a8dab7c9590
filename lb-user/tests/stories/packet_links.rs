//! Pods that send packets to Services without a socket of the node, and without a label: their links get the programs
//! after the first packet. The cgroup of the agent is empty, so that it serves no socket of a pod.

use std::{
    net::{IpAddr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use lb_common::{Counter, Device, DeviceFlags, GETS_NO_PROGRAMS};
use lb_dataplane::stats::counters;
use lb_kernel::bpf::typed::TypedMap;
use lb_lab::network::{Host, Lan, LanOptions};

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::process::Signal;

use crate::{
    Story,
    agent::{Agent, until},
    devices::index,
    node::StoryNode,
    packets::{NODE_PORT, TARGET, addresses, agent, pod, serve, service},
    sockets::{Client, tcp_ask},
};

pub const STORIES: &[Story] = &[
    ("packets_of_a_pod_without_sockets_are_served_after_the_first_and_after_a_kill", served_without_a_label),
    ("packets_that_a_pod_forwards_to_a_service_are_served", forwarded_packets),
    ("packets_of_a_pod_with_mode_off_are_refused", mode_off),
    ("packets_of_a_pod_without_sockets_wait_for_a_busy_agent", busy_agent),
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
fn udp_until_answered(host: &Host, to: SocketAddr) -> Duration {
    let began = Instant::now();
    host.net.enter(|| {
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
    // No device with programs sees packets to a NodePort of the pod's own node, until the pod's link has them.
    let own_node_ports = addresses(&lan.node1.host).map(|address| SocketAddr::from((address, NODE_PORT)));
    assert!(client.net.enter(|| tcp_ask(own_node_ports[0])).is_err());
    // The first segment of TCP is sent again after a second.
    let began = Instant::now();
    client.net.enter(|| tcp_ask(vips()[0])).expect("an answer");
    println!("the first connection took {:?}", began.elapsed());
    agent.wait_for_log("their links get the programs");
    assert_eq!(flags(node, &lan, "pod2"), DeviceFlags::POD | DeviceFlags::CHOSEN);
    assert_eq!(flags(node, &lan, "pod3"), WITHOUT, "the other pod pays nothing");
    // From the other pod, with datagrams first.
    let took = udp_until_answered(neighbour, vips()[1]);
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
