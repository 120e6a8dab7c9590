//! Ejection by the errors of UDP sockets: an endpoint whose host answers with ICMP errors gets no new sockets of the
//! client that heard them.

use std::{collections::BTreeMap, fs, net::SocketAddr, time::Instant};

use lb_dataplane::pins::link_name;
use lb_lab::{LabNamespace, link::LinkSpec};
use rustix::io::Errno;

use crate::{
    Story,
    agent::until,
    ejection::{DEAD, GOOD, clients, counted, eject, time},
    node::{StoryNode, annotated, ip, service},
    sockets::{Client, at, mapped, udp_server},
    verifier::errors_tracepoint,
};

pub const STORIES: &[Story] = &[
    ("a_udp_endpoint_that_refuses_is_ejected_after_k_sockets_and_comes_back_with_one", refusing_endpoint),
    ("a_udp_clients_own_errors_eject_nothing_and_harm_no_other_client", own_errors),
    ("udp_ejections_outlive_the_agent_and_cost_nothing_without_the_annotation", outlives_the_agent),
];

const VIP: &str = "10.96.0.1:53";
const VIP6: &str = "[fd96::1]:53";

fn dns(annotations: &str, backends: &[&str]) -> String {
    annotated(&service("dns", &["10.96.0.1", "fd96::1"], "UDP", 53, backends), annotations)
}

/// False, with a line that says so, if the kernel does not tell the errors of sockets.
fn has_tracepoint() -> bool {
    let is_there = errors_tracepoint().is_some();
    if !is_there {
        println!("LACKS the tracepoint inet_sk_error_report: no endpoint of UDP is ejected");
    }
    is_there
}

/// Asks by a new connected socket.
fn ask(vip: SocketAddr) -> Result<String, Errno> {
    let client = Client::udp(vip);
    client.connect(vip)?;
    client.send()?;
    client.try_receive().map(|(server, _)| server)
}

/// Servers that answered so many sockets, and the number of sockets that heard an error.
fn connect(vip: &str, count: usize) -> (BTreeMap<String, usize>, usize) {
    let (mut answers, mut failed) = (BTreeMap::new(), 0);
    for _ in 0..count {
        match ask(at(vip)) {
            Ok(server) => *answers.entry(server).or_default() += 1,
            Err(Errno::CONNREFUSED) => failed += 1,
            Err(error) => panic!("{error}"),
        }
    }
    (answers, failed)
}

fn failures(count: usize) -> usize {
    connect(VIP, count).1
}

fn refusing_endpoint(node: &mut StoryNode) {
    if !has_tracepoint() {
        return;
    }
    GOOD.into_iter().for_each(udp_server);
    node.write("dns.yaml", &dns(&(eject(3) + ", beeline.io/scheduler: rr"), &[GOOD[0], GOOD[1], DEAD]));
    let _agent = node.agent(&[]);
    let start = Instant::now();
    let (answers, failed) = connect(VIP, 60);
    assert_eq!(failed, 3, "{answers:?}");
    assert!(start.elapsed().as_secs() < time(), "{:?}: too slow to tell", start.elapsed());
    assert!(GOOD.iter().all(|server| answers.get(*server).is_some_and(|count| *count > 20)), "{answers:?}");
    assert_eq!(counted(node), (3, 1));
    until("a trial", || failures(1) == 1);
    assert_eq!(failures(60), 0);
    assert_eq!(counted(node), (4, 2));
    udp_server(DEAD);
    until("the endpoint is back", || {
        let (answers, failed) = connect(VIP, 1);
        assert_eq!(failed, 0);
        answers.contains_key(DEAD)
    });
    let (answers, failed) = connect(VIP, 30);
    assert_eq!((answers.get(DEAD), failed), (Some(&10), 0), "{answers:?}");
    // IPv6, and IPv4 by a socket of IPv6.
    let good6 = "[fd00::1]:8080";
    udp_server(good6);
    node.write("dns.yaml", &dns(&(eject(2) + ", beeline.io/scheduler: rr"), &[good6, "[fd00::3]:8080"]));
    until("the endpoints of IPv6", || ask(at(VIP6)).is_ok());
    assert_eq!(connect(VIP6, 20).1 + connect(VIP6, 20).1, 2);
    node.write("dns.yaml", &dns(&(eject(2) + ", beeline.io/scheduler: rr"), &[GOOD[0], "10.0.0.4:8080"]));
    until("the endpoints of IPv4", || ask(mapped(at(VIP))).is_ok());
    let failed = (0..40).filter(|_| ask(mapped(at(VIP))) == Err(Errno::CONNREFUSED)).count();
    assert!((1..=2).contains(&failed), "{failed}");
}

fn own_errors(node: &mut StoryNode) {
    if !has_tracepoint() {
        return;
    }
    GOOD.into_iter().for_each(udp_server);
    let annotations = "beeline.io/eject: 1 in 1m for 1h, beeline.io/scheduler: rr";
    let router = LabNamespace::new();
    LabNamespace::current()
        .setup()
        .link("eth0", &LinkSpec::veth_to(&router, "eth0"))
        .address("eth0", "198.18.0.1/24")
        .route("203.0.113.0/24 via 198.18.0.2")
        .apply();
    router.ip("link set eth0 up\naddr add 198.18.0.2/24 dev eth0\nlink add narrow mtu 1280 type bridge\n");
    router.ip("link set narrow up\nroute add 203.0.113.0/24 dev narrow");
    router.set("ipv4/ip_forward", "1");
    node.write("dns.yaml", &dns(annotations, &["203.0.113.1:53"]));
    let _agent = node.agent(&["--devices", "none"]);
    let vip = at(VIP);
    // A datagram too large for the path, as a router says.
    let client = Client::udp(vip);
    client.connect(vip).expect("an endpoint");
    client.send_large().expect("a datagram");
    assert_eq!(client.try_receive().expect_err("no answer"), Errno::MSGSIZE);
    // A socket that went on to another Service, and to a server, which refuse.
    let plain = "10.96.0.2:53";
    node.write("plain.yaml", &service("plain", &["10.96.0.2"], "UDP", 53, &["10.0.0.4:9"]));
    until("the other Service", || ask(at(plain)) == Err(Errno::CONNREFUSED));
    for refusing in [plain, "10.0.0.4:9"].map(at) {
        client.connect(vip).expect("an endpoint");
        client.connect(refusing).expect("a route");
        client.send().expect("a datagram");
        assert_eq!(client.try_receive().expect_err("a refusal"), Errno::CONNREFUSED);
    }
    // A route of the client's own that leads nowhere.
    node.write("dns.yaml", &dns(annotations, &["203.0.113.1:53", GOOD[1]]));
    ip(&["route", "replace", "unreachable", "203.0.113.0/24"]);
    until("the other endpoint", || ask(vip).is_ok());
    assert_eq!((0..10).filter(|_| ask(vip) == Err(Errno::HOSTUNREACH)).count(), 5);
    assert_eq!((counted(node), clients(node).len()), ((0, 0), 0));
    // A pod whose own network has the addresses, and no server.
    node.write("dns.yaml", &dns(annotations, &[GOOD[0], GOOD[1], DEAD]));
    udp_server(DEAD);
    until("the third endpoint", || ask(vip).is_ok_and(|server| server == DEAD));
    let pod = LabNamespace::new();
    pod.ip("link set lo up\naddr add 10.0.0.1/32 dev lo\naddr add 10.0.0.2/32 dev lo\naddr add 10.0.0.3/32 dev lo");
    pod.enter(|| assert_eq!(failures(30), 30));
    assert!(counted(node).1 > 0, "it has ejected");
    let (answers, failed) = connect(VIP, 30);
    assert_eq!((answers.len(), failed), (3, 0), "{answers:?}");
}

fn outlives_the_agent(node: &mut StoryNode) {
    if !has_tracepoint() {
        return;
    }
    GOOD.into_iter().for_each(udp_server);
    let link = node.maps().join(link_name("follow_errors"));
    let backends = [GOOD[0], GOOD[1], DEAD];
    node.write("dns.yaml", &dns("beeline.io/scheduler: rr", &backends));
    let mut agent = node.agent(&[]);
    assert_eq!(failures(30), 10);
    assert!(!link.exists() && clients(node).is_empty(), "no program and no entry without the annotation");
    node.write("dns.yaml", &dns("beeline.io/scheduler: rr, beeline.io/eject: 2 in 1m for 1h", &backends));
    until("the program is attached", || link.exists());
    assert!(!node.maps().join(link_name("follow_handshakes")).exists(), "no Service of TCP asks for it");
    // One failure before the agent ends, one without it.
    until("a failure", || failures(1) == 1);
    agent.kill();
    assert_eq!(failures(30), 1);
    let _agent = node.agent(&[]);
    assert_eq!(failures(30), 0);
    assert_eq!(counted(node), (2, 1));
    fs::remove_file(&link).expect("the pin");
    until("the pin is back", || link.exists());
    node.write("dns.yaml", &dns("beeline.io/scheduler: rr", &backends));
    until("the program is detached", || !link.exists());
    assert_eq!(failures(30), 10);
}
