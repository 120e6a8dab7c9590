//! Sockets that outlive their backend: three kinds of UDP clients, and TCP clients of Services with each kind of drain.

use std::{
    io::Write as _,
    net::{TcpListener, UdpSocket},
    time::{Duration, Instant},
};

use lb_dataplane::stats::StatMaps;
use rustix::io::Errno;

use crate::{
    Story,
    agent::until,
    node::{StoryNode, annotated, service},
    sockets::{Client, at, udp_server},
};

pub const STORIES: &[Story] = &[
    ("a_connected_dns_proxy_soon_gets_answers_from_another_backend", dns_proxy),
    ("an_unconnected_statsd_client_moves_to_another_backend", statsd_client),
    ("a_bound_udp_server_is_never_ended", bound_server),
    ("udp_sockets_stay_while_their_endpoint_is_serving_terminating", stay_with_draining_endpoint),
    ("udp_sockets_stay_while_the_last_endpoint_is_serving_terminating", stay_with_last_draining_endpoint),
    ("udp_sockets_end_with_the_last_endpoint_of_their_service", end_with_the_last_endpoint),
    ("udp_sockets_that_lost_their_backend_without_an_agent_end_at_its_start", end_at_the_agents_start),
    ("ids_of_a_removed_backend_are_not_reused_across_a_restart_while_a_socket_has_them", ids_across_a_restart),
    ("tcp_drain_follows_the_annotation_of_the_service", tcp_drain_follows_annotation),
    ("tcp_drain_is_not_shortened_by_a_restart", tcp_drain_across_a_restart),
];

const VIP: &str = "10.96.0.53:53";
const BOTH: [&str; 2] = ["10.0.0.1:5353", "10.0.0.2:5353"];

fn dns(backends: &[&str]) -> String {
    service("dns", &["10.96.0.53"], "UDP", 53, backends)
}

/// Returns the number of sockets that the agent has ended.
pub fn ended_count(node: &StoryNode) -> u64 {
    let stats = StatMaps::open(&node.maps()).and_then(|maps| maps.read()).expect("the pinned maps");
    stats.killed.values().sum()
}

/// Returns a connected socket that has had an answer, and its backend.
fn connected() -> (Client, String) {
    let client = Client::udp(at(VIP));
    client.connect(at(VIP)).expect("connected");
    client.send().expect("sent");
    let (server, _) = client.receive();
    (client, server)
}

fn other(server: &str) -> &'static str {
    BOTH.into_iter().find(|backend| *backend != server).expect("there are two")
}

/// True if the socket was ended: the next call, and only that one, fails.
pub fn has_ended(client: &Client) -> bool {
    matches!(client.send(), Err(Errno::CONNABORTED | Errno::DESTADDRREQ | Errno::NOTCONN))
}

fn dns_proxy(node: &mut StoryNode) {
    BOTH.into_iter().for_each(udp_server);
    node.write("dns.yaml", &dns(&BOTH));
    let agent = node.agent(&[]);
    let (mut client, server) = connected();
    let before = agent.dump().backends.len();
    node.write("dns.yaml", &dns(&[other(&server)]));
    // As a proxy does: send queries without pause, and open a new socket after an error.
    let (mut removed, mut answered) = (None, None);
    until("an answer from the other backend", || {
        if removed.is_none() && agent.dump().backends.len() < before {
            removed = Some(Instant::now());
        }
        if client.send().and_then(|()| client.try_receive()).is_err() {
            (client, _) = connected();
            answered = Some(Instant::now());
        }
        answered.is_some()
    });
    let answered = answered.expect("an answer");
    // Unseen if the socket ended between two looks at the maps.
    let removed = removed.unwrap_or(answered);
    let outage = answered.saturating_duration_since(removed);
    println!("from the removal of the backend to an answer from the other one: {outage:?}");
    // The aim is 100 ms, which a busy machine may miss. A socket that is not ended would never get an answer.
    assert!(outage < Duration::from_secs(5), "{outage:?}");
    until("the ended socket is counted", || ended_count(node) == 1);
    agent.wait_for_log("ended sockets whose backend has gone");
}

fn statsd_client(node: &mut StoryNode) {
    BOTH.into_iter().for_each(udp_server);
    node.write("dns.yaml", &dns(&BOTH));
    let agent = node.agent(&[]);
    let client = Client::udp(at(VIP));
    let (server, _) = client.ask(at(VIP));
    assert!((0..10).all(|_| client.ask(at(VIP)).0 == server));
    node.write("dns.yaml", &dns(&[other(&server)]));
    agent.wait_for("one backend", |dump| dump.backends.len() == 1);
    for _ in 0..10 {
        assert_eq!(client.ask(at(VIP)), (other(&server).to_owned(), Some(at(VIP))));
    }
    let stats = StatMaps::open(&node.maps()).and_then(|maps| maps.read()).expect("the pinned maps");
    assert_eq!(stats.ports.values().map(|stats| stats.moved).sum::<u64>(), 1);
    assert_eq!(ended_count(node), 0);
}

fn bound_server(node: &mut StoryNode) {
    BOTH.into_iter().for_each(udp_server);
    node.write("dns.yaml", &dns(&BOTH));
    let agent = node.agent(&[]);
    // A server on this node that also sends to the Service, from the socket on which it receives.
    let server = UdpSocket::bind("10.0.0.4:99").expect("a free port");
    server.set_read_timeout(Some(Duration::from_secs(5))).expect("a time-out");
    let ask = || {
        server.send_to(b"hello", at(VIP)).expect("sent");
        let mut buffer = [0; 64];
        let (len, from) = server.recv_from(&mut buffer).expect("an answer");
        assert_eq!(from, at(VIP));
        String::from_utf8_lossy(buffer.get(..len).unwrap_or_default()).into_owned()
    };
    let first = ask();
    // A client that dialled the backend directly.
    let plain = Client::udp(at(&first));
    plain.connect(at(&first)).expect("connected");
    node.write("dns.yaml", &dns(&[other(&first)]));
    agent.wait_for("one backend", |dump| dump.backends.len() == 1);
    std::thread::sleep(Duration::from_millis(1500));
    let client = Client::udp(at("10.0.0.4:99"));
    client.send_to(at("10.0.0.4:99")).expect("sent");
    let (_, from) = server.recv_from(&mut [0; 64]).expect("a datagram of a client");
    assert_eq!(from.ip(), at("10.0.0.4:99").ip());
    assert_eq!(ask(), other(&first));
    plain.send().expect("a direct socket stays open");
    assert_eq!(plain.receive().0, first);
    assert_eq!(ended_count(node), 0);
}

/// Returns a Service with endpoints (address, conditions) in a slice.
fn sliced(endpoints: &[(&str, &str)]) -> String {
    let endpoints: String = endpoints
        .iter()
        .map(|(address, conditions)| format!("- {{addresses: [{address}], conditions: {{{conditions}}}}}\n"))
        .collect();
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: dns}}\nspec:\n  clusterIP: 10.96.0.53\n  \
         selector: {{app: dns}}\n  ports: [{{port: 53, protocol: UDP}}]\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: dns-1, labels: {{kubernetes.io/service-name: dns}}}}\naddressType: IPv4\n\
         ports: [{{name: '', port: 5353, protocol: UDP}}]\nendpoints:\n{endpoints}"
    )
}

fn stay_with_draining_endpoint(node: &mut StoryNode) {
    BOTH.into_iter().for_each(udp_server);
    let ready = "ready: true";
    node.write("dns.yaml", &sliced(&[("10.0.0.1", ready), ("10.0.0.2", ready)]));
    let agent = node.agent(&[]);
    let (client, server) = connected();
    let with = |conditions| {
        let of = |address: &str| if server.starts_with(address) { conditions } else { ready };
        sliced(&[("10.0.0.1", of("10.0.0.1:")), ("10.0.0.2", of("10.0.0.2:"))])
    };
    node.write("dns.yaml", &with("ready: false, serving: true, terminating: true"));
    agent.wait_for("one in the list", |dump| dump.services.values().all(|service| service.cluster_len == 1));
    for _ in 0..100 {
        client.send().expect("the backend still serves");
        assert_eq!(client.receive().0, server);
        std::thread::sleep(Duration::from_millis(2));
    }
    assert_eq!(connected().1, other(&server), "a new socket gets the other backend");
    node.write("dns.yaml", &with("ready: false, serving: false, terminating: true"));
    until("the socket ends when its backend stops serving", || has_ended(&client));
    until("the ended socket is counted", || ended_count(node) == 1);
}

fn stay_with_last_draining_endpoint(node: &mut StoryNode) {
    BOTH.into_iter().for_each(udp_server);
    node.write("dns.yaml", &sliced(&[("10.0.0.1", "ready: true")]));
    let agent = node.agent(&[]);
    let (client, server) = connected();
    node.write("dns.yaml", &sliced(&[("10.0.0.1", "ready: false, serving: true, terminating: true")]));
    node.write("later.yaml", &service("later", &["10.96.0.9"], "TCP", 80, &["10.0.0.1:8080"]));
    agent.wait_for("a later change", |dump| dump.services.len() == 2);
    for _ in 0..100 {
        client.send().expect("the backend still serves");
        assert_eq!(client.receive().0, server);
        std::thread::sleep(Duration::from_millis(2));
    }
    assert_eq!(connected().1, server, "a new socket gets it too, since there is no other");
    node.write("dns.yaml", &sliced(&[("10.0.0.1", "ready: false, serving: false, terminating: true")]));
    until("the socket ends when its backend stops serving", || has_ended(&client));
}

/// A client that only sends, such as statsd, would never notice that its endpoint has gone.
fn end_with_the_last_endpoint(node: &mut StoryNode) {
    BOTH.into_iter().for_each(udp_server);
    node.write("dns.yaml", &dns(&BOTH[..1]));
    let agent = node.agent(&[]);
    let (client, _) = connected();
    node.write("dns.yaml", &dns(&[]));
    let mut removed = None;
    until("the socket ends", || {
        if removed.is_none() && agent.dump().backends.is_empty() {
            removed = Some(Instant::now());
        }
        has_ended(&client)
    });
    // The aim is 100 ms, which a busy machine may miss.
    let outage = removed.map(|removed| removed.elapsed()).unwrap_or_default();
    println!("from the removal of the last endpoint to the end of the socket: {outage:?}");
    assert!(outage < Duration::from_secs(5), "{outage:?}");
    node.write("dns.yaml", &dns(&BOTH[1..]));
    agent.wait_for("another backend", |dump| dump.backends.len() == 1);
    assert_eq!(connected().1, BOTH[1], "a new socket is served");
}

fn end_at_the_agents_start(node: &mut StoryNode) {
    BOTH.into_iter().for_each(udp_server);
    for (already_ended, is_last) in [(0, false), (1, true)] {
        node.write("dns.yaml", &dns(&BOTH));
        let mut agent = node.agent(&[]);
        agent.wait_for("both backends", |dump| dump.backends.len() == 2);
        let (client, server) = connected();
        agent.kill();
        node.write("dns.yaml", &if is_last { dns(&[]) } else { dns(&[other(&server)]) });
        let _second_agent = node.agent(&[]);
        until("the socket ends", || has_ended(&client));
        until("the ended socket is counted", || ended_count(node) == already_ended + 1);
    }
}

fn ids_across_a_restart(node: &mut StoryNode) {
    BOTH.into_iter().for_each(udp_server);
    node.write("dns.yaml", &dns(&BOTH[..1]));
    let mut agent = node.agent(&[]);
    let client = Client::udp(at(VIP));
    client.ask(at(VIP));
    let first = agent.dump().backends.into_keys().next();
    node.write("dns.yaml", &dns(&[]));
    agent.wait_for("no backend", |dump| dump.backends.is_empty());
    agent.kill();
    let second_agent = node.agent(&[]);
    node.write("dns.yaml", &dns(&BOTH[1..]));
    second_agent.wait_for("another backend", |dump| dump.backends.len() == 1);
    // Invariant I7: the socket still names the first backend id, so no other backend may get it.
    let second = second_agent.dump().backends.into_keys().next();
    assert!(first < second, "{first:?} {second:?}");
    assert_eq!(client.ask(at(VIP)).0, BOTH[1]);
}

/// Starts a TCP server that sends its address and keeps each connection open.
fn holding_server(address: &str) {
    let listener = TcpListener::bind(address).expect("a free port");
    let name = address.to_owned();
    std::thread::spawn(move || {
        let mut open = Vec::new();
        for mut stream in listener.incoming().flatten() {
            let _gone = stream.write_all(name.as_bytes());
            open.push(stream);
        }
    });
}

fn tcp_drain_follows_annotation(node: &mut StoryNode) {
    const WEB: &str = "10.96.0.1:80";
    for (drain, ends_after) in [("none", None), ("on-removal", Some(0)), ("after 2s", Some(2))] {
        let backends = ["10.0.0.1:8080", "10.0.0.2:8080"];
        if drain == "none" {
            backends.into_iter().for_each(holding_server);
        }
        let web = |backends: &[&str]| {
            let yaml = service("web", &["10.96.0.1"], "TCP", 80, backends);
            annotated(&yaml, &format!("beeline.io/tcp-drain: {drain}"))
        };
        node.write("web.yaml", &web(&backends));
        let agent = node.agent(&[]);
        agent.wait_for("two backends", |dump| dump.backends.len() == 2);
        let client = Client::tcp(at(WEB));
        client.connect(at(WEB)).expect("a connection");
        let (answer, _) = client.receive();
        let rest: Vec<_> = backends.into_iter().filter(|backend| *backend != answer).collect();
        let start = Instant::now();
        node.write("web.yaml", &web(&rest));
        agent.wait_for("one backend", |dump| dump.backends.len() == 1);
        match ends_after {
            None => {
                std::thread::sleep(Duration::from_millis(1500));
                client.send().expect("the connection stays");
            }
            Some(seconds) => {
                until("the connection ends", || client.send().is_err());
                let took = start.elapsed();
                println!("{drain}: ended after {took:?}");
                assert!(took >= Duration::from_secs(seconds), "{took:?}");
            }
        }
    }
}

fn tcp_drain_across_a_restart(node: &mut StoryNode) {
    const WEB: &str = "10.96.0.1:80";
    let backends = ["10.0.0.1:8080", "10.0.0.2:8080"];
    backends.into_iter().for_each(holding_server);
    let web = |backends: &[&str]| {
        annotated(&service("web", &["10.96.0.1"], "TCP", 80, backends), "beeline.io/tcp-drain: after 3s")
    };
    node.write("web.yaml", &web(&backends));
    let mut agent = node.agent(&[]);
    let client = Client::tcp(at(WEB));
    client.connect(at(WEB)).expect("a connection");
    let (answer, _) = client.receive();
    agent.kill();
    let rest: Vec<_> = backends.into_iter().filter(|backend| *backend != answer).collect();
    node.write("web.yaml", &web(&rest));
    let start = Instant::now();
    let _second_agent = node.agent(&[]);
    until("the connection ends", || client.send().is_err());
    let took = start.elapsed();
    println!("ended {took:?} after the agent's start");
    assert!(took >= Duration::from_secs(3), "{took:?}");
}
