//! Ejection by results: failed connects of a client keep a backend from it for a time, and from no other client.

use std::{
    collections::BTreeMap,
    fs,
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::fs::MetadataExt as _,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use lb_common::{EjectStats, EjectStatsKey, EjectionKey, Ejections, Scheduler};
use lb_dataplane::pins::link_name;
use lb_kernel::bpf::typed::TypedMap;
use lb_lab::LabNamespace;
use serde_json::Value;

use crate::{
    Story,
    agent::{Agent, run, until},
    health_and_metrics::{self, METRICS},
    node::{StoryNode, annotated, ip, is_slow, service},
    sockets::{Client, at, has_netns_cookie, mapped, tcp_ask, tcp_server},
};

pub const STORIES: &[Story] = &[
    ("a_refusing_endpoint_is_ejected_after_k_connects_and_comes_back_with_one", refusing_endpoint),
    ("a_refusing_endpoint_is_ejected_after_k_connects_with_every_scheduler", every_scheduler),
    ("a_silent_endpoint_is_ejected_by_patient_clients_only", silent_endpoint),
    ("never_more_than_half_of_a_list_is_ejected_and_never_the_last", half_of_a_list),
    ("a_client_that_fails_on_purpose_ejects_for_itself_only", attacker),
    ("ejections_outlive_the_agent_and_cost_nothing_without_the_annotation", outlives_the_agent),
];

const VIP: &str = "10.96.0.1:80";
pub const GOOD: [&str; 2] = ["10.0.0.1:8080", "10.0.0.2:8080"];
pub const DEAD: &str = "10.0.0.3:8080";

/// Time of the first ejection, s.
pub fn time() -> u64 {
    if is_slow() { 30 } else { 3 }
}

pub fn eject(failures: u32) -> String {
    format!("beeline.io/eject: \"{failures} in 1m for {}s\"", time())
}

fn web(annotations: &str, backends: &[&str]) -> String {
    annotated(&service("web", &["10.96.0.1", "fd96::1"], "TCP", 80, backends), annotations)
}

/// Servers that answered so many connects, and the number of failed connects.
fn connect(count: usize) -> (BTreeMap<String, usize>, usize) {
    let mut answers = BTreeMap::new();
    let mut failed = 0;
    for _ in 0..count {
        match tcp_ask(at(VIP)) {
            Ok((server, _)) => *answers.entry(server).or_default() += 1,
            Err(_) => failed += 1,
        }
    }
    (answers, failed)
}

fn failures(count: usize) -> usize {
    connect(count).1
}

/// Sums of failures and ejections of all service ports.
pub fn counted(node: &StoryNode) -> (u64, u64) {
    let map = TypedMap::<EjectStatsKey, EjectStats>::open(&node.maps(), "EJECT_STATS").expect("a map");
    let sums = map.read().expect("its entries").into_iter().filter(|(key, _)| key.backend == 0);
    sums.fold((0, 0), |sum, (_, counts)| (sum.0 + counts.failures, sum.1 + counts.ejections))
}

pub fn clients(node: &StoryNode) -> Vec<EjectionKey> {
    let map = TypedMap::<EjectionKey, Ejections>::open(&node.maps(), "EJECTIONS").expect("a map");
    map.read().expect("its entries").into_iter().map(|(key, _)| key).collect()
}

fn refusing_endpoint(node: &mut StoryNode) {
    GOOD.into_iter().for_each(tcp_server);
    node.write("web.yaml", &web(&(eject(3) + ", beeline.io/scheduler: rr"), &[GOOD[0], GOOD[1], DEAD]));
    let _agent = node.agent(&[]);
    let start = Instant::now();
    let (answers, failed) = connect(60);
    assert_eq!(failed, 3, "{answers:?}");
    assert!(start.elapsed().as_secs() < time(), "{:?}: too slow to tell", start.elapsed());
    assert!(GOOD.iter().all(|server| answers.get(*server).is_some_and(|count| *count > 20)), "{answers:?}");
    assert_eq!(counted(node), (3, 1));
    check_shown(node);
    // A trial when the time is over, which fails: twice the time.
    until("a trial", || failures(1) == 1);
    let second = Instant::now();
    assert!(second - start >= Duration::from_secs(time()), "{:?}", second - start);
    assert_eq!(failures(60), 0);
    assert_eq!(counted(node), (4, 2));
    tcp_server(DEAD);
    let mut answers = BTreeMap::new();
    until("the endpoint is back", || {
        let (new, failed) = connect(1);
        assert_eq!(failed, 0);
        answers.extend(new);
        answers.contains_key(DEAD)
    });
    assert!(second.elapsed() >= Duration::from_secs(2 * time() - 1), "{:?}", second.elapsed());
    let (answers, failed) = connect(30);
    assert_eq!((answers.get(DEAD), failed), (Some(&10), 0), "{answers:?}");
}

/// `get`, `explain` and the metrics show that one client has ejected the endpoint after three failures.
fn check_shown(node: &StoryNode) {
    let shown = |arguments: &[&str]| String::from_utf8(run(node, arguments).stdout).expect("text");
    let rows: Vec<Value> = serde_json::from_str(&shown(&["get", "backends", "-o", "json"])).expect("rows");
    let is_dead = |row: &&Value| row["address"] == "10.0.0.3";
    let dead = rows.iter().find(is_dead).expect("its row");
    assert_eq!((&dead["failures"], &dead["ejectedBy"]), (&Value::from(3), &Value::from(1)), "{dead}");
    assert!(rows.iter().all(|row| is_dead(&row) || row["ejectedBy"] == 0), "{rows:?}");
    let explained = shown(&["explain", "default/web"]);
    let told = explained.lines().filter(|line| line.contains("ejected by 1 client of this node"));
    assert!(told.eq(explained.lines().filter(|line| line.contains(DEAD))), "{explained}");
    let (_, metrics) = health_and_metrics::get(METRICS, "/metrics").expect("an answer");
    for (name, value) in
        [("beeline_connect_failures_total", 3), ("beeline_ejections_total", 1), ("beeline_ejected_backends", 1)]
    {
        let line = metrics.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        assert!(line.contains(r#"service_name="web""#) && line.ends_with(&format!(" {value}")), "{name}: {line}");
    }
}

fn every_scheduler(node: &mut StoryNode) {
    GOOD.into_iter().for_each(tcp_server);
    let _agent = node.agent(&[]);
    // The first Service with ejection: handshakes are followed a moment after it is there.
    let first = service("first", &["10.96.1.200"], "TCP", 80, &[GOOD[0], DEAD]);
    node.write("first.yaml", &annotated(&first, "beeline.io/eject: 2 in 1m for 1h"));
    let vip: SocketAddr = "10.96.1.200:80".parse().expect("an address");
    until("handshakes are followed", || {
        let _any = tcp_ask(vip);
        counted_of(node, "first") > 0
    });
    for (number, scheduler) in (1..).zip(Scheduler::ALL) {
        for (offset, affinity) in [(0, ""), (100, "sessionAffinity: ClientIP\n  ")] {
            let address = format!("10.96.1.{}", number + offset);
            let name = format!("web-{}", number + offset);
            let annotations = format!("beeline.io/eject: 2 in 1m for 1h, beeline.io/scheduler: {}", scheduler.name());
            let yaml = service(&name, &[&address], "TCP", 80, &[GOOD[0], GOOD[1], DEAD]);
            let yaml = annotated(&yaml, &annotations).replacen("clusterIP:", &format!("{affinity}clusterIP:"), 1);
            node.write(&format!("{name}.yaml"), &yaml);
            let vip: SocketAddr = format!("{address}:80").parse().expect("an address");
            let mut failed = 0;
            // Until the Service is there, nothing answers at its address.
            until("the Service is there", || tcp_ask(vip).is_ok() || counted_of(node, &name) > 0);
            for _ in 0..100 {
                failed += usize::from(tcp_ask(vip).is_err());
            }
            let counted = counted_of(node, &name);
            assert!(failed <= 2 && counted <= 2, "{} {affinity:?}: {failed} failed, {counted}", scheduler.name());
            let leads_anywhere = affinity.is_empty() && ![Scheduler::Sh, Scheduler::Dh].contains(&scheduler);
            assert!(!leads_anywhere || counted == 2, "{}: {counted} failed", scheduler.name());
        }
    }
}

/// Failures of the Service with this name.
fn counted_of(node: &StoryNode, name: &str) -> u64 {
    let store = lb_dataplane::store::BpfStore::open(&node.maps()).expect("maps");
    let map = TypedMap::<EjectStatsKey, EjectStats>::open(&node.maps(), "EJECT_STATS").expect("a map");
    let of_service = |key: &EjectStatsKey| {
        key.backend == 0 && store.name(key.service).is_some_and(|port| port.service.name() == name)
    };
    map.read().expect("its entries").iter().filter(|(key, _)| of_service(key)).map(|(_, counts)| counts.failures).sum()
}

/// A connect that the client gives up after a time.
fn give_up(after: Duration) -> bool {
    TcpStream::connect_timeout(&at(VIP), after).is_err()
}

fn silent_endpoint(node: &mut StoryNode) {
    GOOD.into_iter().for_each(tcp_server);
    // Takes packets and answers none.
    ip(&["link", "add", "silent", "type", "bridge"]);
    ip(&["link", "set", "silent", "up"]);
    ip(&["route", "add", "203.0.113.0/24", "dev", "silent"]);
    let silent = ["203.0.113.1:8080", "203.0.113.2:8080"];
    for address in silent.map(|address| at(address).ip().to_string()) {
        ip(&["neigh", "add", &address, "lladdr", "02:00:00:00:00:01", "dev", "silent", "nud", "permanent"]);
    }
    let annotations = eject(2) + ", beeline.io/scheduler: rr";
    node.write("web.yaml", &web(&annotations, &[GOOD[0], silent[0]]));
    let agent = node.agent(&[]);
    let hasty = Duration::from_millis(20);
    assert_eq!((0..20).filter(|_| give_up(hasty)).count(), 10, "the client's own haste ejects nothing");
    assert_eq!(counted(node), (0, 0));
    let patient = Duration::from_millis(if is_slow() { 800 } else { 300 });
    assert_eq!((0..20).filter(|_| give_up(patient)).count(), 2);
    assert_eq!(counted(node), (2, 1));
    // Clients that wait: the first SYN without an answer counts, once.
    node.write("web.yaml", &web(&annotations, &[GOOD[0], silent[1]]));
    agent.wait_for("the other endpoint", |dump| dump.slots.values().any(|slot| slot.addr == at(silent[1]).ip().into()));
    let waiting: Vec<_> = (0..4)
        .map(|_| thread::spawn(|| TcpStream::connect_timeout(&at(VIP), Duration::from_millis(3500)).is_ok()))
        .collect();
    thread::sleep(Duration::from_millis(1800));
    assert_eq!((0..20).filter(|_| give_up(hasty)).count(), 0, "two of them had no answer for a second");
    let answered = waiting.into_iter().map(|client| client.join().expect("its end"));
    assert_eq!(answered.filter(|is_ok| *is_ok).count(), 2);
    assert_eq!(counted(node), (4, 2), "each connect counts once");
}

fn half_of_a_list(node: &mut StoryNode) {
    let annotations = eject(1) + ", beeline.io/scheduler: rr";
    node.write("web.yaml", &web(&annotations, &[DEAD]));
    let agent = node.agent(&[]);
    assert_eq!(failures(10), 10);
    assert!(clients(node).len() == 1);
    tcp_server(DEAD);
    assert_eq!(failures(10), 0, "the last one is never ejected");
    // Two of five dead, then three of five: the third stays.
    let all = ["10.0.0.1:8081", "10.0.0.2:8081", "10.0.0.3:8081", "10.0.0.4:8081", "10.0.0.9:8081"];
    node.write("web.yaml", &web(&annotations, &all));
    agent.wait_for("five endpoints", |dump| dump.slots.len() == 5);
    all[3..].iter().for_each(|server| tcp_server(server));
    let start = Instant::now();
    let failed = failures(50);
    assert!(start.elapsed().as_secs() < time(), "{:?}: too slow to tell", start.elapsed());
    // Two are ejected after one failure each; the third gets its share: of three.
    assert!((2 + 10..=2 + 20).contains(&failed), "{failed} of 50");
}

fn attacker(node: &mut StoryNode) {
    GOOD.into_iter().chain([DEAD]).for_each(tcp_server);
    node.write(
        "web.yaml",
        &web("beeline.io/eject: 1 in 1m for 1h, beeline.io/scheduler: rr", &[GOOD[0], GOOD[1], DEAD]),
    );
    let _agent = node.agent(&[]);
    // A pod whose own network has the addresses, and no server.
    let pod = LabNamespace::new();
    pod.ip("link set lo up\naddr add 10.0.0.1/32 dev lo\naddr add 10.0.0.2/32 dev lo\naddr add 10.0.0.3/32 dev lo");
    pod.enter(|| assert_eq!(failures(30), 30));
    assert!(counted(node).1 > 0, "it has ejected");
    let (answers, failed) = connect(30);
    assert_eq!((answers.len(), failed), (3, 0), "{answers:?}");
    assert!(answers.values().all(|count| *count == 10), "all of them, in turn: {answers:?}");
    if !has_netns_cookie() {
        println!("LACKS cookies of network namespaces: processes of the node are one client");
        return;
    }
    // A process in the network namespace of the node, in another cgroup: an endpoint is dead, which it finds out for
    // that cgroup only.
    node.write(
        "web.yaml",
        &web("beeline.io/eject: 1 in 1m for 1h, beeline.io/scheduler: rr", &[GOOD[0], "10.0.0.4:8080"]),
    );
    let other = node.cgroup.join("other");
    fs::create_dir(&other).expect("a cgroup");
    let id = fs::metadata(&other).expect("a cgroup").ino();
    let enter = |cgroup: &Path| fs::write(cgroup.join("cgroup.procs"), std::process::id().to_string());
    enter(&other).expect("a move to the cgroup");
    until("the endpoint fails for the other cgroup", || {
        failures(4);
        clients(node).iter().any(|client| client.cgroup == id)
    });
    enter(&node.cgroup).expect("a move back");
    assert_eq!(failures(10), 1, "this cgroup learns by a failure of its own");
    assert_eq!(failures(10), 0);
    fs::remove_dir(&other).expect("an empty cgroup");
}

fn outlives_the_agent(node: &mut StoryNode) {
    GOOD.into_iter().for_each(tcp_server);
    let link = node.maps().join(link_name("follow_handshakes"));
    let backends = [GOOD[0], GOOD[1], DEAD];
    node.write("web.yaml", &web("beeline.io/scheduler: rr", &backends));
    let mut agent = node.agent(&[]);
    assert_eq!(failures(30), 10);
    assert!(!link.exists() && clients(node).is_empty(), "no program and no entry without the annotation");
    let ejecting = web("beeline.io/scheduler: rr, beeline.io/eject: 2 in 1m for 1h", &backends);
    node.write("web.yaml", &ejecting);
    until("the program is attached", || link.exists());
    assert_eq!(failures(30), 2);
    agent.wait_for_log("its endpoint 10.0.0.3:8080 is ejected by one client of the node, whose connects to it fail");
    // IPv6 sockets too, with a mapped address.
    let vip = mapped(at(VIP));
    assert!((0..10).all(|_| Client::tcp(vip).connect(vip).is_ok()));
    agent.kill();
    assert_eq!(failures(30), 0);
    let agent = node.agent(&[]);
    assert_eq!(failures(30), 0);
    assert_eq!(counted(node), (2, 1));
    // Another program takes the link away: it is put back.
    fs::remove_file(&link).expect("the pin");
    until("the pin is back", || link.exists());
    node.write("web.yaml", &web("beeline.io/scheduler: rr", &backends));
    until("the program is detached", || !link.exists());
    assert_eq!(failures(30), 10);
    check_refused_values(node, &agent, &backends);
}

/// A value that cannot be read leaves all as without the annotation, with a warning that names the cure.
fn check_refused_values(node: &StoryNode, agent: &Agent, backends: &[&str]) {
    node.write("web.yaml", &web("beeline.io/scheduler: rr, beeline.io/eject: often", backends));
    agent.wait_for_log("write 1 to 1000 in 1s to 1h for 1s to 1h");
    assert_eq!(failures(30), 10);
    assert!(TcpListener::bind(DEAD).is_ok(), "the endpoint is free");
}
