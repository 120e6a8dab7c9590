//! The choice of a backend by scheduler, weights and affinity, and the exact counts of open sockets that some
//! schedulers use.

use std::{
    collections::BTreeMap,
    net::{SocketAddr, TcpStream},
    process::{Command, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use lb_common::AffinityKey;
use lb_dataplane::stats::{StatMaps, Stats};

use crate::{
    Story,
    agent::{Agent, until},
    node::{StoryNode, annotated, service, with_spec},
    socket_termination::in_namespace,
    sockets::{Client, at, tcp_ask, tcp_server, udp_server},
};

pub const STORIES: &[Story] = &[
    ("schedulers_distribute_connections_as_documented", schedulers_distribute),
    ("open_sockets_are_counted_exactly", open_sockets_are_counted),
    ("udp_sockets_count_as_open_until_they_are_closed", udp_sockets_are_counted),
    ("a_client_keeps_its_backend_until_its_affinity_times_out", client_keeps_its_backend),
    ("affinity_is_per_service_port_and_survives_an_agent_restart", affinity_per_port),
];

const VIP: &str = "10.96.0.1:80";
const BACKENDS: [&str; 4] = ["10.0.0.1:8080", "10.0.0.2:8080", "10.0.0.3:8080", "10.0.0.4:8080"];

fn web(scheduler: &str, weights: &str) -> String {
    let yaml = service("web", &["10.96.0.1"], "TCP", 80, &BACKENDS);
    annotated(&yaml, &format!("beeline.io/scheduler: {scheduler}, beeline.io/weights: \"{weights}\""))
}

fn stats(node: &StoryNode) -> Stats {
    StatMaps::open(&node.maps()).and_then(|maps| maps.read()).expect("the pinned maps")
}

fn open_sockets(node: &StoryNode) -> u64 {
    stats(node).backends.values().map(|stats| stats.open).sum()
}

/// Opens `count` connections one after the other. Returns them and the number per backend, in the order of `BACKENDS`.
fn open_connections(count: usize) -> (Vec<Client>, Vec<usize>) {
    let mut servers = BTreeMap::<String, usize>::new();
    let open = (0..count).map(|_| {
        let client = Client::tcp(at(VIP));
        client.connect(at(VIP)).expect("a connection");
        let (answer, _) = client.receive();
        *servers.entry(answer.split(' ').next().unwrap_or_default().to_owned()).or_default() += 1;
        client
    });
    let open: Vec<_> = open.collect();
    (open, BACKENDS.iter().map(|backend| servers.get(*backend).copied().unwrap_or(0)).collect())
}

fn schedulers_distribute(node: &mut StoryNode) {
    BACKENDS.into_iter().for_each(tcp_server);
    node.write("web.yaml", &web("random", ""));
    let agent = node.agent(&[]);
    // Scheduler, weights, expected connections per backend, and the tolerance.
    let cases: [(&str, &str, [usize; 4], usize); 8] = [
        ("rr", "", [25, 25, 25, 25], 0),
        ("wrr", "10.0.0.1=1, 10.0.0.2=2, 10.0.0.3=3, 10.0.0.4=4", [10, 20, 30, 40], 0),
        ("lc", "", [25, 25, 25, 25], 3),
        ("wlc", "10.0.0.1=1, 10.0.0.2=2, 10.0.0.3=3, 10.0.0.4=4", [10, 20, 30, 40], 4),
        ("sed", "10.0.0.1=1, 10.0.0.2=2, 10.0.0.3=3, 10.0.0.4=4", [10, 20, 30, 40], 4),
        ("nq", "10.0.0.1=1, 10.0.0.2=2, 10.0.0.3=3, 10.0.0.4=4", [10, 20, 30, 40], 4),
        ("random", "10.0.0.1=0, 10.0.0.2=0", [0, 0, 50, 50], 30),
        ("dh", "", [100, 0, 0, 0], 100),
    ];
    for (scheduler, weights, expected, slack) in cases {
        let before = agent.log().matches("changed service=default/web").count();
        node.write("web.yaml", &web(scheduler, weights));
        until("the change is in", || agent.log().matches("changed service=default/web").count() > before);
        let (clients, got) = open_connections(100);
        println!("{scheduler:6} {weights:50} {got:?}");
        assert!(got.iter().zip(expected).all(|(got, expected)| got.abs_diff(expected) <= slack), "{scheduler} {got:?}");
        if scheduler == "dh" {
            assert_eq!(
                got.iter().filter(|count| **count > 0).count(),
                1,
                "dh picks one backend for one destination address"
            );
        }
        drop(clients);
        until("no socket is counted as open", || open_sockets(node) == 0);
    }
}

/// Opens thousands of connections from several threads while the agent is killed and restarted and a backend comes and
/// goes; then covers an inherited socket and failed connects.
fn open_sockets_are_counted(node: &mut StoryNode) {
    const THREADS: usize = 8;
    const EACH: usize = 400;
    BACKENDS.into_iter().for_each(tcp_server);
    node.write("web.yaml", &web("lc", ""));
    let mut agent = node.agent(&[]);
    let vip = at(VIP);
    let done = AtomicUsize::new(0);
    let mut kept = Vec::new();
    thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                let done = &done;
                scope.spawn(move || {
                    let mut open: Vec<TcpStream> = Vec::new();
                    for n in 0..EACH {
                        open.push(TcpStream::connect(vip).expect("a connection"));
                        // Close most of them again, in mixed order.
                        if n % 10 != thread % 10 {
                            open.swap_remove((n * 7 + thread) % open.len());
                        }
                        done.fetch_add(1, Ordering::Relaxed);
                    }
                    open
                })
            })
            .collect();
        // Meanwhile kill and restart the agent, and remove and add a backend.
        until("a quarter is done", || done.load(Ordering::Relaxed) > THREADS * EACH / 4);
        agent.kill();
        agent = node.agent(&[]);
        node.write(
            "web.yaml",
            &annotated(&service("web", &["10.96.0.1"], "TCP", 80, &BACKENDS[..3]), "beeline.io/scheduler: lc"),
        );
        until("another quarter is done", || done.load(Ordering::Relaxed) > THREADS * EACH / 2);
        node.write("web.yaml", &web("lc", ""));
        for thread in threads {
            kept.extend(thread.join().expect("a thread"));
        }
    });
    let now = stats(node);
    let connections: u64 = now.ports.values().map(|stats| stats.connections).sum();
    let of_backends: u64 = now.backends.values().map(|stats| stats.connections).sum();
    println!("{} connections, {} open: {:?}", connections, kept.len(), now.backends);
    assert_eq!((connections, of_backends), ((THREADS * EACH) as u64, (THREADS * EACH) as u64));
    assert_eq!(open_sockets(node), kept.len() as u64);
    // A child process that inherited a socket keeps it open until it is killed.
    let mut child = Command::new("sleep")
        .arg("1000")
        .stdin(Stdio::from(std::os::fd::OwnedFd::from(kept.pop().expect("one"))))
        .spawn()
        .expect("sleep");
    let closed = kept.len();
    drop(kept);
    until("only the socket of the child is open", || open_sockets(node) == 1);
    assert!(closed > 0);
    child.kill().expect("it runs");
    child.wait().expect("it ends");
    until("no socket is counted as open", || open_sockets(node) == 0);
    // A failed connect does not stay counted as open.
    node.write("web.yaml", &service("web", &["10.96.0.1"], "TCP", 80, &["10.0.0.4:9"]));
    agent.wait_for("one backend", |dump| dump.backends.len() == 1);
    for _ in 0..20 {
        let client = Client::tcp(vip);
        assert!(client.connect(vip).is_err());
        assert!(client.connect(vip).is_err(), "a second connect of the same socket");
    }
    until("failed connects are not counted as open", || open_sockets(node) == 0);
}

fn udp_sockets_are_counted(node: &mut StoryNode) {
    let backends = ["10.0.0.1:5353", "10.0.0.2:5353"];
    backends.into_iter().for_each(udp_server);
    let yaml = service("dns", &["10.96.0.53"], "UDP", 53, &backends);
    node.write("dns.yaml", &annotated(&yaml, "beeline.io/scheduler: lc"));
    let _agent = node.agent(&[]);
    let vip = at("10.96.0.53:53");
    let clients: Vec<_> = (0..40)
        .map(|n| {
            let client = Client::udp(vip);
            if n % 2 == 0 {
                client.connect(vip).expect("connected");
            } else {
                client.ask(vip);
                client.ask(vip);
            }
            client
        })
        .collect();
    let counts: Vec<_> = stats(node).backends.values().map(|stats| stats.open).collect();
    println!("{counts:?}");
    assert_eq!(counts, [20, 20], "lc balances two backends");
    // A reconnect to the same VIP counts once, not twice.
    clients.iter().step_by(2).for_each(|client| client.connect(vip).expect("connected"));
    assert_eq!(open_sockets(node), 40);
    drop(clients);
    until("no socket is counted as open", || open_sockets(node) == 0);
}

fn ask(to: SocketAddr) -> String {
    tcp_ask(to).expect("an answer").0
}

/// Dials from `count` other network namespaces. No server answers there; only the chosen backend matters.
fn dial_from_namespaces(count: usize, dial: impl Fn() -> Vec<SocketAddr> + Sync) -> usize {
    for _ in 0..count {
        in_namespace(|| {
            for to in dial() {
                let _refused = Client::tcp(to).connect(to);
            }
        });
    }
    count
}

/// Returns the backend of each affinity entry.
fn affinity_entries(node: &StoryNode) -> BTreeMap<AffinityKey, u32> {
    let affinity = StatMaps::open(&node.maps()).and_then(|maps| maps.affinity()).expect("the pinned maps");
    affinity.into_iter().map(|(key, value)| (key, value.backend)).collect()
}

fn sticky(seconds: u32, backends: &[&str]) -> String {
    let yaml = service("web", &["10.96.0.1"], "TCP", 80, backends);
    let yaml = with_spec(&yaml, "externalIPs: [192.0.2.7]");
    with_spec(
        &yaml,
        &format!("sessionAffinity: ClientIP\n  sessionAffinityConfig: {{clientIP: {{timeoutSeconds: {seconds}}}}}"),
    )
}

fn client_keeps_its_backend(node: &mut StoryNode) {
    BACKENDS.into_iter().for_each(tcp_server);
    node.write("web.yaml", &sticky(2, &BACKENDS));
    let agent = node.agent(&[]);
    let first = ask(at(VIP));
    // Each connect refreshes the affinity, for twice the time-out.
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(4) {
        assert_eq!(ask(at(VIP)), first);
        assert_eq!(ask(at("192.0.2.7:80")), first, "affinity holds for every frontend of the Service");
        thread::sleep(Duration::from_millis(200));
    }
    // Each network namespace is a client of its own.
    let others = dial_from_namespaces(12, || vec![at(VIP), at(VIP), at("192.0.2.7:80")]);
    let kept = affinity_entries(node);
    assert_eq!(kept.len(), 1 + others, "one entry per client: {kept:?}");
    assert!(kept.values().any(|other| other != kept.values().next().expect("some")), "{kept:?}");
    // After the time-out each connect chooses anew.
    let mut seen = std::collections::BTreeSet::new();
    until("another backend after the time-out", || {
        thread::sleep(Duration::from_millis(2100));
        seen.insert(ask(at(VIP)));
        seen.len() > 1
    });
    // When its backend is removed, the client gets another one and keeps it.
    let last = ask(at(VIP));
    let rest: Vec<_> = BACKENDS.into_iter().filter(|backend| *backend != last).collect();
    node.write("web.yaml", &sticky(100, &rest));
    agent.wait_for("three backends", |dump| dump.backends.len() == 3);
    let next = ask(at(VIP));
    assert_ne!(next, last);
    assert!((0..20).all(|_| ask(at(VIP)) == next));
}

fn affinity_per_port(node: &mut StoryNode) {
    let backends: Vec<String> = (1..=4).flat_map(|n| [80, 81].map(|port| format!("10.0.0.{n}:80{port}"))).collect();
    backends.iter().for_each(|backend| tcp_server(backend));
    let yaml = "apiVersion: v1\nkind: Service\nmetadata: {name: two}\nspec:\n  clusterIP: 10.96.0.1\n  \
        sessionAffinity: ClientIP\n  ports: [{name: a, port: 80}, {name: b, port: 81}]\n---\n\
        apiVersion: v1\nkind: Endpoints\nmetadata: {name: two}\nsubsets:\n\
        - addresses: [{ip: 10.0.0.1}, {ip: 10.0.0.2}, {ip: 10.0.0.3}, {ip: 10.0.0.4}]\n  \
        ports: [{name: a, port: 8080}, {name: b, port: 8081}]\n";
    node.write("two.yaml", yaml);
    let mut agent: Agent = node.agent(&[]);
    let ask_both = || (ask(at("10.96.0.1:80")), ask(at("10.96.0.1:81")));
    // With many clients, some get different backends for the two ports of the Service.
    let clients = dial_from_namespaces(16, || vec![at("10.96.0.1:80"), at("10.96.0.1:81")]);
    let (kept, backends) = (affinity_entries(node), agent.dump().backends);
    assert_eq!(kept.len(), 2 * clients);
    let mut hosts = BTreeMap::<lb_common::Addr, Vec<lb_common::Addr>>::new();
    kept.iter().for_each(|(key, backend)| hosts.entry(key.client).or_default().push(backends[backend].addr));
    assert!(hosts.values().any(|hosts| hosts[0] != hosts[1]), "{hosts:?}");
    let before = ask_both();
    agent.kill();
    assert_eq!(ask_both(), before);
    let _again = node.agent(&[]);
    assert!((0..10).all(|_| ask_both() == before));
}
