//! `beeline watch` beside the real programs: what it shows of calls and handshakes, what it counts, and what it leaves
//! behind.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    net::{IpAddr, SocketAddr, TcpStream},
    os::fd::AsFd as _,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use aya_obj::generated::bpf_attach_type::BPF_CGROUP_SOCK_OPS;
use lb_common::{WatchCell, WatchKind, WatchRecord};
use lb_dataplane::{
    pins::Pins,
    watch::{WatchReader, WatchScope},
};
use lb_kernel::bpf;
use lb_lab::network::{Lan, LanOptions};
use rustix::{
    io::{Errno, ioctl_fionbio},
    process::{Pid, Signal, kill_process},
};
use serde_json::Value;

use crate::{
    Story,
    agent::{beeline, until},
    node::{StoryNode, ip, service},
    packets,
    sockets::{Client, at, tcp_ask, tcp_server, udp_server},
};

pub const STORIES: &[Story] = &[
    ("watch_shows_client_backend_and_cause_of_each_call", shows_calls),
    ("watch_shows_the_result_and_the_time_of_handshakes", shows_handshakes),
    ("watch_filters_by_service_and_by_failure", filters),
    ("watch_names_the_pod_of_a_process", names_the_pod),
    ("watch_shows_first_packets_of_clients_outside", shows_packets),
    ("watch_counts_every_call_of_a_burst", counts_a_burst),
    ("watch_says_how_many_events_were_lost", counts_lost_events),
    ("a_watch_that_begins_amid_calls_says_nothing_of_lost_events", begins_amid_calls),
    ("watch_reads_no_record_of_a_socket_without_a_service", no_record_without_a_service),
    ("a_killed_watch_leaves_nothing_behind", killed_watch),
    ("a_second_watch_is_refused", second_watch),
];

const VIP: &str = "10.96.0.1:80";

/// A running `beeline watch`, killed when dropped.
struct Watch {
    child: Child,
    out: PathBuf,
    messages: PathBuf,
}

impl Watch {
    /// Starts `beeline watch -o json` and waits until it reads.
    fn start(node: &StoryNode, arguments: &[&str]) -> Self {
        let (out, messages) = (node.directory.join("watch.out"), node.directory.join("watch.err"));
        let child = watch_command(node, arguments)
            .stdin(Stdio::null())
            .stdout(File::create(&out).expect("a file"))
            .stderr(File::create(&messages).expect("a file"))
            .spawn()
            .expect("the beeline binary");
        let watch = Self { child, out, messages };
        until("the watch reads", || watch.messages().contains("watching"));
        watch
    }

    fn messages(&self) -> String {
        fs::read_to_string(&self.messages).expect("a file")
    }

    /// Returns the events so far.
    fn events(&self) -> Vec<Value> {
        let text = fs::read_to_string(&self.out).expect("a file");
        let (whole, _) = text.rsplit_once('\n').unwrap_or_default();
        whole.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }

    /// Waits for the first event with these values.
    fn wait_for(&self, wanted: &[(&str, Value)]) -> Value {
        let find = || {
            let is_wanted =
                |event: &Value| wanted.iter().all(|(key, value)| event.get(key).unwrap_or(&Value::Null) == value);
            self.events().into_iter().find(is_wanted)
        };
        until(&format!("an event with {wanted:?}"), || find().is_some());
        find().expect("an event")
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Ends it as Ctrl-C does, and returns all that it printed.
    fn finish(mut self) -> Vec<Value> {
        kill_process(self.pid(), Signal::INT).expect("it runs");
        assert!(self.child.wait().expect("it runs").success(), "{}", self.messages());
        self.events()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _ended = self.child.wait();
        println!("--- the watch's messages\n{}", self.messages());
    }
}

fn watch_command(node: &StoryNode, arguments: &[&str]) -> Command {
    let mut command = beeline();
    command.arg("--pins").arg(&node.pins).args(["watch", "-o", "json"]).args(arguments);
    command
}

fn text(value: &str) -> Value {
    Value::from(value)
}

/// A TCP Service with a server, one without endpoints, and a UDP Service.
fn serve(node: &StoryNode) {
    node.write("web.yaml", &service("web", &["10.96.0.1"], "TCP", 80, &["10.0.0.1:8080"]));
    node.write("empty.yaml", &service("empty", &["10.96.0.2"], "TCP", 80, &[]));
    node.write(
        "dns.yaml",
        &service("dns", &["10.96.0.53", "fd96::53"], "UDP", 53, &["10.0.0.2:5353", "[fd00::2]:5353"]),
    );
    tcp_server("10.0.0.1:8080");
    udp_server("10.0.0.2:5353");
    udp_server("[fd00::2]:5353");
}

fn shows_calls(node: &mut StoryNode) {
    serve(node);
    let _agent = node.agent(&[]);
    let watch = Watch::start(node, &[]);
    tcp_ask(at(VIP)).expect("a connection");
    let event = watch.wait_for(&[("dialled", text(VIP))]);
    let process = lb_kernel::process::comm("/proc/self".as_ref()).expect("a name");
    for (key, value) in [
        ("protocol", "tcp"),
        ("service", "default/web"),
        ("backend", "10.0.0.1:8080"),
        ("scheduler", "random"),
        ("handshake", "established"),
        ("process", &process),
    ] {
        assert_eq!(event[key], text(value), "{key} of {event}");
    }
    assert_eq!(event["pid"], Value::from(std::process::id()));
    let took = event["handshakeMs"].as_f64().expect("a time");
    assert!(took > 0.0 && took < 5000.0, "{event}");
    assert!(
        event["cgroup"].as_str().is_some_and(|cgroup| node.cgroup.ends_with(cgroup.trim_start_matches('/'))),
        "{event}"
    );

    for (dialled, cause, service) in
        [("10.96.0.2:80", "NoEndpoints", text("default/empty")), ("10.96.0.1:81", "UnknownPort", Value::Null)]
    {
        let errno = tcp_ask(at(dialled)).expect_err("refused");
        let event = watch.wait_for(&[("dialled", text(dialled))]);
        assert_eq!(event["refused"], text(cause), "{event}");
        assert_eq!(*event.get("service").unwrap_or(&Value::Null), service, "{event}");
        assert_eq!(event["errno"], text(if errno == Errno::CONNREFUSED { "ECONNREFUSED" } else { "EPERM" }));
        assert!(event.get("backend").is_none() && event.get("handshake").is_none(), "{event}");
    }

    // Ten datagrams of an unconnected socket are one event, over both families.
    for (vip, backend) in [("10.96.0.53:53", "10.0.0.2:5353"), ("[fd96::53]:53", "[fd00::2]:5353")] {
        let client = Client::udp(at(vip));
        for _ in 0..10 {
            client.ask(at(vip));
        }
        let event = watch.wait_for(&[("dialled", text(vip))]);
        assert_eq!((&event["protocol"], &event["backend"]), (&text("udp"), &text(backend)), "{event}");
        let client = Client::udp(at(vip));
        client.connect(at(vip)).expect("connected");
    }
    // Calls to no Service are no events.
    tcp_ask(at("10.0.0.1:8080")).expect("a connection");
    let events = watch.finish();
    let dialled: Vec<_> = events.iter().filter_map(|event| event["dialled"].as_str()).collect();
    let expected =
        [VIP, "10.96.0.2:80", "10.96.0.1:81", "10.96.0.53:53", "10.96.0.53:53", "[fd96::53]:53", "[fd96::53]:53"];
    assert_eq!(dialled, expected);
}

/// Makes 203.0.113.9, a neighbour that does not exist.
fn silent_neighbour() {
    ip(&["link", "add", "void", "type", "veth", "peer", "name", "other"]);
    ip(&["addr", "add", "203.0.113.1/24", "dev", "void"]);
    ip(&["link", "set", "void", "up"]);
    ip(&["link", "set", "other", "up"]);
    ip(&["neigh", "add", "203.0.113.9", "lladdr", "02:00:00:00:00:09", "dev", "void"]);
}

fn shows_handshakes(node: &mut StoryNode) {
    silent_neighbour();
    // Few SYNs.
    fs::write("/proc/sys/net/ipv4/tcp_syn_retries", "1").expect("a setting of this namespace");
    node.write("closed.yaml", &service("closed", &["10.96.0.3"], "TCP", 80, &["10.0.0.3:9"]));
    node.write("silent.yaml", &service("silent", &["10.96.0.4"], "TCP", 80, &["203.0.113.9:80"]));
    node.write(
        "open.yaml",
        &service("open", &["10.96.0.5", "fd96::5"], "TCP", 80, &["10.0.0.1:8080", "[fd00::1]:8080"]),
    );
    tcp_server("10.0.0.1:8080");
    tcp_server("[fd00::1]:8080");
    let _agent = node.agent(&[]);
    let watch = Watch::start(node, &[]);
    let connect = |to: &str| Client::tcp(at(to)).connect(at(to));

    assert_eq!(connect("10.96.0.3:80"), Err(Errno::CONNREFUSED));
    let event = watch.wait_for(&[("dialled", text("10.96.0.3:80"))]);
    assert_eq!((&event["handshake"], &event["backend"]), (&text("refused"), &text("10.0.0.3:9")), "{event}");

    assert_eq!(connect("10.96.0.4:80"), Err(Errno::TIMEDOUT));
    let pending = watch.wait_for(&[("dialled", text("10.96.0.4:80")), ("handshake", text("pending"))]);
    assert!(pending.get("again").is_none(), "{pending}");
    let event = watch.wait_for(&[("dialled", text("10.96.0.4:80")), ("handshake", text("unanswered"))]);
    assert!(event["again"] == true && event["syns"].as_u64().is_some_and(|syns| syns >= 2), "{event}");
    assert!(event["handshakeMs"].as_f64().is_some_and(|took| took > 2500.0), "{event}");

    let client = Client::tcp(at("10.96.0.4:80"));
    ioctl_fionbio(client.fd(), true).expect("a socket");
    assert_eq!(client.connect(at("10.96.0.4:80")), Err(Errno::INPROGRESS));
    drop(client);
    watch.wait_for(&[("dialled", text("10.96.0.4:80")), ("handshake", text("givenUp")), ("syns", Value::from(1))]);

    for vip in ["10.96.0.5:80", "[fd96::5]:80"] {
        connect(vip).expect("a connection");
        watch.wait_for(&[("dialled", text(vip)), ("handshake", text("established"))]);
    }
}

fn filters(node: &mut StoryNode) {
    serve(node);
    node.write("closed.yaml", &service("closed", &["10.96.0.3"], "TCP", 80, &["10.0.0.3:9"]));
    let _agent = node.agent(&[]);
    for (arguments, expected) in [
        (&["--service", "default/web"][..], &["10.96.0.1:80"][..]),
        (&["--service", "other/web"], &[]),
        (&["--namespace", "default"], &["10.96.0.1:80", "10.96.0.2:80", "10.96.0.3:80"]),
        (&["--refused"], &["10.96.0.2:80", "10.96.0.1:99"]),
        (&["--failed"], &["10.96.0.2:80", "10.96.0.3:80", "10.96.0.1:99"]),
    ] {
        let watch = Watch::start(node, arguments);
        for to in ["10.96.0.1:80", "10.96.0.2:80", "10.96.0.3:80", "10.96.0.1:99"] {
            let _result = Client::tcp(at(to)).connect(at(to));
        }
        let events = watch.finish();
        let dialled: BTreeSet<_> = events.iter().filter_map(|event| event["dialled"].as_str()).collect();
        assert_eq!(dialled, expected.iter().copied().collect(), "{arguments:?}");
    }
}

fn names_the_pod(node: &mut StoryNode) {
    const UID: &str = "0f3c9a2e-1b1d-4c55-9a2b-5c6f0a7d8e9f";
    const OTHER: &str = "11111111-1b1d-4c55-9a2b-5c6f0a7d8e9f";
    serve(node);
    fs::create_dir_all("/var/log").expect("a directory");
    // This mount namespace is the story's own.
    rustix::mount::mount("tmpfs", "/var/log", "tmpfs", rustix::mount::MountFlags::empty(), None).expect("a tmpfs");
    fs::create_dir_all(format!("/var/log/pods/shop_cart-7d9f_{UID}")).expect("a directory");
    let agent = node.agent(&[]);
    let watch = Watch::start(node, &[]);
    for (uid, key, value) in [(UID, "pod", "shop/cart-7d9f"), (OTHER, "podUid", OTHER)] {
        let pod = node.cgroup.join(format!("kubepods/burstable/pod{uid}/container"));
        fs::create_dir_all(&pod).expect("a cgroup");
        fs::write(pod.join("cgroup.procs"), std::process::id().to_string()).expect("joined");
        // A search for new cgroups waits in proportion to the last one.
        until(&format!("an event of {value}"), || {
            tcp_ask(at(VIP)).expect("a connection");
            watch.events().iter().any(|event| event.get(key) == Some(&text(value)))
        });
    }
    drop(watch);
    // Lines of text, with the name that the process gives itself.
    rustix::thread::set_name(c"a\nb \x1b[2J").expect("a name");
    let out = node.directory.join("text");
    let mut command = beeline();
    command.arg("--pins").arg(&node.pins).args(["watch", "--for", "2s"]).stdout(File::create(&out).expect("a file"));
    let mut child = command.spawn().expect("the beeline binary");
    until("the line is there", || {
        tcp_ask(at(VIP)).expect("a connection");
        fs::read_to_string(&out).expect("a file").contains("default/web")
    });
    assert!(child.wait().expect("it runs").success());
    let lines = fs::read_to_string(&out).expect("a file");
    print!("{lines}");
    let line = lines.lines().next().expect("a line");
    let pid = std::process::id();
    let expected = format!(
        r#" pod:{OTHER} "a\nb \u{{1b}}[2J"[{pid}] tcp 10.96.0.1:80 default/web -> 10.0.0.1:8080 by random: established in "#
    );
    assert!(line.contains(&expected), "{line}\n{expected}");
    drop(agent);
}

/// First packets that get a backend, are rejected, and are dropped; and none if they are not asked for.
fn shows_packets(node: &mut StoryNode) {
    let lan = Lan::make(LanOptions::default());
    let there = packets::pod(&lan.node2);
    packets::serve(there);
    let v4 = [IpAddr::from(there.v4)];
    node.write("web.yaml", &packets::service("Cluster", &v4.map(|ip| (ip, "there"))));
    let agent = packets::agent(node, &lan, &[]);
    agent.wait_for("the backends are there", |dump| dump.backends.len() == 2);
    let to = SocketAddr::from((lan.node1.host.v4, packets::NODE_PORT));
    let unserved = SocketAddr::from((lan.node1.host.v6, packets::NODE_PORT));
    let backend = SocketAddr::from((there.v4, packets::TARGET)).to_string();
    let client = lan.client.v4.to_string();
    let dial = |to| lan.client.net.enter(|| TcpStream::connect_timeout(&to, Duration::from_millis(300)).is_ok());

    let watch = Watch::start(node, &["--from", &client]);
    lan.client.net.enter(|| {
        tcp_ask(to).expect("an answer");
        Client::udp(to).ask(to);
    });
    for (protocol, port) in [("tcp", "t"), ("udp", "u")] {
        let event = watch.wait_for(&[("protocol", text(protocol))]);
        for (key, value) in
            [("service", "default/web"), ("port", port), ("backend", &backend), ("dialled", &to.to_string())]
        {
            assert_eq!(event[key], text(value), "{key} of {event}");
        }
        let from = event["client"].as_str().and_then(|from| from.parse::<SocketAddr>().ok());
        assert_eq!(from.map(|from| from.ip()), Some(lan.client.v4.into()), "{event}");
        assert!(event.get("handshake").is_none() && event.get("process").is_none(), "{event}");
    }
    assert!(!dial(unserved), "no endpoint of IPv6");
    let events = watch.finish();
    assert_eq!(events.len(), 2, "later packets, and other clients, are no events: {events:?}");

    let watch = Watch::start(node, &["--packets", "--refused"]);
    assert!(!dial(unserved) && dial(to));
    let event = watch.wait_for(&[("dialled", text(&unserved.to_string()))]);
    assert_eq!((&event["refused"], &event["service"]), (&text("NoEndpoints"), &text("default/web")), "{event}");
    assert!(event.get("backend").is_none() && event.get("errno").is_none(), "{event}");
    node.write("web.yaml", &packets::service("Local", &v4.map(|ip| (ip, "there"))));
    until("policy Local drops", || !dial(to));
    watch.wait_for(&[("refused", text("NoLocalEndpoints")), ("dialled", text(&to.to_string()))]);
    drop(watch);

    let watch = Watch::start(node, &[]);
    assert!(!dial(to));
    assert_eq!(watch.finish(), Vec::<Value>::new(), "packets are not asked for");
}

/// Connects of one run of [`burst`].
const CONNECTS: u32 = 20_000;

/// Connects by two threads as fast as the server accepts: one whose SYN finds the listener's queue full waits a second.
fn burst() {
    let connect = || {
        for _ in 0..CONNECTS / 2 {
            let socket = lb_lab::traffic::tcp_open(at(VIP));
            rustix::io::read(&socket, &mut [0; 1]).expect("an answer");
        }
    };
    thread::scope(|scope| {
        scope.spawn(connect);
        scope.spawn(connect);
    });
}

fn counts_a_burst(node: &mut StoryNode) {
    serve(node);
    let _agent = node.agent(&[]);
    let watch = Watch::start(node, &["--summary"]);
    let started = std::time::Instant::now();
    burst();
    println!("{CONNECTS} connects in {:?}", started.elapsed());
    let events = watch.finish();
    let summary = events.iter().find(|event| event.get("total").is_some()).expect("a summary");
    println!("{summary}");
    let count = |value: &Value| value.as_u64().expect("a number");
    let lost = (count(&summary["lostCalls"]), count(&summary["lostResults"]));
    assert_eq!(count(&summary["total"]["calls"]) + lost.0, u64::from(CONNECTS));
    assert!(lost.1 > 0 || count(&summary["total"]["pending"]) == 0);
    let backend = &summary["backends"][0];
    assert_eq!(backend["backend"], text("10.0.0.1:8080"));
    let times: u64 = backend["handshakes"].as_object().expect("an object").values().map(count).sum();
    assert_eq!(times + count(&backend["pending"]), count(&summary["total"]["calls"]));
    assert_eq!(summary["services"][0]["service"], text("default/web/tcp"));
}

fn counts_lost_events(node: &mut StoryNode) {
    serve(node);
    let _agent = node.agent(&[]);
    let watch = Watch::start(node, &[]);
    // A reader that does not run: the buffer becomes full. It may not stand still for a minute.
    kill_process(watch.pid(), Signal::STOP).expect("it runs");
    let started = std::time::Instant::now();
    let mut connects = 0;
    while cell(node, WatchCell::LostCalls) == 0 {
        burst();
        connects += CONNECTS;
    }
    println!("{connects} connects in {:?}", started.elapsed());
    kill_process(watch.pid(), Signal::CONT).expect("it runs");
    let message = || watch.events().into_iter().rev().find(|event| event.get("message").is_some());
    until("the loss is told while it runs", || message().is_some());
    let message = message().expect("a message");
    println!("{message}");
    let lost = message["lostCalls"].as_u64().expect("a number");
    assert!(lost > 0, "{message}");
    let calls =
        watch.finish().iter().filter(|event| event.get("dialled").is_some() && event.get("again").is_none()).count();
    assert_eq!(calls as u64 + lost, u64::from(connects));
}

fn begins_amid_calls(node: &mut StoryNode) {
    serve(node);
    let _agent = node.agent(&[]);
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                drop(lb_lab::traffic::tcp_open(at(VIP)));
                thread::sleep(Duration::from_micros(200));
            }
        });
        let losses: Vec<_> = (0..5)
            .map(|_| {
                let watch = Watch::start(node, &["--summary", "--for", "100ms"]);
                until("the summary is there", || !watch.events().is_empty());
                let message = |event: &Value| event["message"].as_str().map(str::to_owned);
                watch.events().iter().filter_map(message).collect::<Vec<_>>()
            })
            .collect();
        is_over.store(true, Ordering::Relaxed);
        assert_eq!(losses, vec![Vec::<String>::new(); 5]);
    });
}

/// TCP sockets that are closed during their handshake.
fn no_record_without_a_service(node: &mut StoryNode) {
    silent_neighbour();
    node.write("silent.yaml", &service("silent", &["10.96.0.4"], "TCP", 80, &["203.0.113.9:80"]));
    let _agent = node.agent(&[]);
    let mut reader = WatchReader::open(&Pins::at(node.pins.clone()), WatchScope::Sockets).expect("a reader");
    let mut cookies = Vec::new();
    for to in ["203.0.113.9:80", "10.96.0.4:80"] {
        let client = Client::tcp(at(to));
        ioctl_fionbio(client.fd(), true).expect("a socket");
        assert_eq!(client.connect(at(to)), Err(Errno::INPROGRESS));
        cookies.push(rustix::net::sockopt::socket_cookie(client.fd()).expect("a socket"));
    }
    let given_up = |record: &WatchRecord| record.kind == WatchKind::GivenUp as u8;
    let records = reader.finish().expect("the maps");
    let sockets: Vec<_> = records.iter().filter(|record| given_up(record)).map(|record| record.socket).collect();
    assert_eq!(sockets, cookies[1..], "{records:?}");
}

/// The value of a cell of the map `WATCH`.
fn cell(node: &StoryNode, cell: WatchCell) -> u64 {
    let map = bpf::open_pin(&node.maps().join("WATCH")).expect("the pinned map");
    bpf::lookup(map.as_fd(), &(cell as u32)).expect("the map").expect("a cell")
}

/// True if a buffer of a watch is in the maps.
fn has_ring(node: &StoryNode) -> bool {
    let map = bpf::open_pin(&node.maps().join("WATCH_RING")).expect("the pinned map");
    bpf::lookup::<u32, u32>(map.as_fd(), &0).expect("the map").is_some()
}

/// Programs that the kernel runs for TCP sockets of the served cgroup when they change their state.
fn sock_ops(node: &StoryNode) -> usize {
    let cgroup = File::open(&node.cgroup).expect("the cgroup");
    bpf::programs_at(cgroup, BPF_CGROUP_SOCK_OPS).expect("a list").len()
}

fn killed_watch(node: &mut StoryNode) {
    serve(node);
    let _agent = node.agent(&[]);
    let before = sock_ops(node);
    assert_eq!(cell(node, WatchCell::Sockets), 0);
    for signal in [Signal::KILL, Signal::TERM] {
        let mut watch = Watch::start(node, &[]);
        tcp_ask(at(VIP)).expect("a connection");
        watch.wait_for(&[("dialled", text(VIP))]);
        assert!(sock_ops(node) == before + 1 && cell(node, WatchCell::Sockets) > 0 && has_ring(node));
        kill_process(watch.pid(), signal).expect("it runs");
        watch.child.wait().expect("it ran");
        until("the program for handshakes is gone", || sock_ops(node) == before);
        // The agent looks each half minute.
        assert_eq!(has_ring(node), signal == Signal::KILL);
        lb_dataplane::watch::remove_abandoned(&node.maps()).expect("the maps");
        assert!(!has_ring(node) && cell(node, WatchCell::Sockets) == 0);
    }
    let lost = cell(node, WatchCell::LostCalls);
    tcp_ask(at(VIP)).expect("a connection");
    assert_eq!(cell(node, WatchCell::LostCalls), lost, "no program writes records");
    // Another watch begins with its own count of lost events.
    let watch = Watch::start(node, &["--summary", "--for", "100ms"]);
    thread::sleep(Duration::from_millis(1));
    let summary = watch.wait_for(&[("lostCalls", Value::from(0))]);
    assert_eq!(summary["total"]["calls"], Value::from(0));
}

fn second_watch(node: &mut StoryNode) {
    serve(node);
    let _agent = node.agent(&[]);
    let watch = Watch::start(node, &[]);
    let second = watch_command(node, &["--for", "1s"]).output().expect("the beeline binary");
    let message = String::from_utf8_lossy(&second.stderr).into_owned();
    assert_eq!(second.status.code(), Some(1), "{message}");
    assert!(message.contains(&format!("another `beeline watch` (pid {})", watch.child.id())), "{message}");
    drop(watch);
    let third = watch_command(node, &["--for", "10ms"]).output().expect("the beeline binary");
    assert!(third.status.success(), "{}", String::from_utf8_lossy(&third.stderr));
}
