//! `get` and `top`: their counts are exact and outlive the agent, and `top` restores the terminal.

use std::{
    fs::File,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::fd::{AsFd as _, OwnedFd},
    process::Stdio,
    sync::{Arc, Mutex},
    thread,
};

use rustix::{
    io::Errno,
    process::{Pid, Signal, kill_process},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize},
};
use serde_json::Value;

use crate::{
    Story,
    agent::{beeline, run, until},
    node::{StoryNode, service},
    sockets::{Client, assert_refused, at, tcp_server, udp_server},
};

pub const STORIES: &[Story] = &[
    ("counts_of_get_and_top_are_exact_and_survive_the_agent", counts_are_exact),
    ("top_measures_rates_between_two_samples", top_measures_rates),
    ("top_restores_the_terminal", terminal_is_restored),
];

const VIP: &str = "10.96.0.1:80";
const DNS: &str = "10.96.0.53:53";
const THREADS: usize = 5;

fn two_services(node: &StoryNode) {
    let both = ["10.0.0.1:8080", "10.0.0.2:8080"];
    node.write("web.yaml", &service("web", &["10.96.0.1"], "TCP", 80, &both));
    both.into_iter().for_each(tcp_server);
    node.write("dns.yaml", &service("dns", &["10.96.0.53"], "UDP", 53, &["10.0.0.1:5353"]));
    udp_server("10.0.0.1:5353");
}

/// Opens `count` connections from several threads at once.
fn open_connections(count: usize) -> Vec<Client> {
    let open = || -> Vec<Client> {
        let client = |_| {
            let client = Client::tcp(at(VIP));
            client.connect(at(VIP)).expect("a connection");
            client
        };
        (0..count / THREADS).map(client).collect()
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(open)).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("its connections")).collect()
    })
}

fn json(node: &StoryNode, arguments: &[&str]) -> Value {
    let output = run(node, arguments);
    assert!(output.status.success(), "{arguments:?}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// Returns the counts of a Service in `get services`: connections, open, refused, no endpoints, no local endpoints.
fn service_counts(node: &StoryNode, name: &str) -> [u64; 5] {
    let rows = json(node, &["get", "services", "-o", "json"]);
    let row = rows.as_array().and_then(|rows| rows.iter().find(|row| row["name"] == name)).expect("a row");
    counts(row)
}

fn counts(row: &Value) -> [u64; 5] {
    ["connections", "open", "refused", "noEndpoints", "noLocalEndpoints"]
        .map(|field| row[field].as_u64().expect("a number"))
}

/// Returns the same counts of a Service in `top`.
fn top_counts(node: &StoryNode, name: &str) -> [u64; 5] {
    let report = json(node, &["top", "-b", "-d", "0.2", "-o", "json"]);
    assert_eq!(report["connectionsPerSecond"], 0.0, "no connection is opened while top measures");
    let rows = report["ports"].as_array().expect("rows");
    counts(rows.iter().find(|row| row["service"] == format!("default/{name}")).expect("a row"))
}

/// Returns the connections and the open sockets of all backends of a Service, and the number of its backends.
fn backend_counts(node: &StoryNode, service: &str) -> [u64; 3] {
    let rows = json(node, &["get", "backends", "-o", "json"]);
    let rows: Vec<_> = rows.as_array().expect("rows").iter().filter(|row| row["service"] == service).collect();
    let sum = |field: &str| rows.iter().map(|row| row[field].as_u64().expect("a number")).sum();
    [sum("connections"), sum("open"), rows.len() as u64]
}

fn counts_are_exact(node: &mut StoryNode) {
    two_services(node);
    node.write("empty.yaml", &service("empty", &["10.96.0.2"], "TCP", 80, &[]));
    let local = service("local", &["10.96.0.3"], "TCP", 80, &["10.0.0.1:8080"])
        .replace("spec:\n", "spec:\n  internalTrafficPolicy: Local\n");
    node.write("local.yaml", &local);
    let mut agent = node.agent(&[]);

    let mut clients = open_connections(50);
    let resolvers: Vec<_> = (0..7).map(|_| Client::udp(at(DNS))).collect();
    for client in &resolvers {
        // A second datagram of the same socket is not a second connection.
        client.ask(at(DNS));
        client.ask(at(DNS));
    }
    let check = |web: [u64; 5], dns: [u64; 5]| {
        assert_eq!((service_counts(node, "web"), service_counts(node, "dns")), (web, dns));
        assert_eq!((top_counts(node, "web"), top_counts(node, "dns")), (web, dns));
        assert_eq!(backend_counts(node, "default/web/TCP"), [web[0], web[1], 2]);
        assert_eq!(backend_counts(node, "default/dns/UDP"), [dns[0], dns[1], 1]);
    };
    check([50, 50, 0, 0, 0], [7, 7, 0, 0, 0]);
    clients.truncate(30);
    check([50, 30, 0, 0, 0], [7, 7, 0, 0, 0]);

    for _ in 0..3 {
        assert_refused(Client::tcp(at("10.96.0.2:80")).connect(at("10.96.0.2:80")), Errno::CONNREFUSED);
    }
    for _ in 0..2 {
        assert_refused(Client::tcp(at("10.96.0.3:80")).connect(at("10.96.0.3:80")), Errno::HOSTUNREACH);
    }
    let check_refused = || {
        assert_eq!((service_counts(node, "empty"), top_counts(node, "empty")), ([0, 0, 3, 3, 0], [0, 0, 3, 3, 0]));
        assert_eq!((service_counts(node, "local"), top_counts(node, "local")), ([0, 0, 2, 0, 2], [0, 0, 2, 0, 2]));
    };
    check_refused();

    let pid = agent.pid();
    assert_eq!(json(node, &["top", "-b", "-d", "0.01", "-o", "json"])["agent"], pid);
    agent.kill();
    assert_eq!(json(node, &["top", "-b", "-d", "0.01", "-o", "json"])["agent"], Value::Null);
    check([50, 30, 0, 0, 0], [7, 7, 0, 0, 0]);
    // Without an agent the programs still count.
    clients.extend(open_connections(5));
    drop(resolvers);
    check([55, 35, 0, 0, 0], [7, 0, 0, 0, 0]);
    let agent = node.agent(&[]);
    check([55, 35, 0, 0, 0], [7, 0, 0, 0, 0]);
    check_refused();
    clients.extend(open_connections(5));
    check([60, 40, 0, 0, 0], [7, 0, 0, 0, 0]);

    // A backend is removed while its sockets stay open.
    node.write("web.yaml", &service("web", &["10.96.0.1"], "TCP", 80, &["10.0.0.1:8080"]));
    agent.wait_for("three backends", |dump| dump.backends.len() == 3);
    assert_eq!(service_counts(node, "web"), [60, 40, 0, 0, 0]);
    assert_eq!(backend_counts(node, "default/web/TCP"), [60, 40, 2]);
    let table = run(node, &["get", "backends", "-o", "wide"]);
    assert!(String::from_utf8_lossy(&table.stdout).contains("gone"));
    drop(clients);
    assert_eq!(service_counts(node, "web"), [60, 0, 0, 0, 0]);
    let table = run(node, &["get", "backends", "-o", "wide"]);
    assert!(!String::from_utf8_lossy(&table.stdout).contains("gone"));
}

fn top_measures_rates(node: &mut StoryNode) {
    two_services(node);
    let _agent = node.agent(&[]);
    let mut top = beeline();
    top.arg("--pins").arg(&node.pins).args(["top", "--batch", "--delay=1", "--iterations=2", "--output=json"]);
    let mut top = top.stdout(Stdio::piped()).spawn().expect("the beeline binary");
    let mut lines = BufReader::new(top.stdout.take().expect("its output")).lines();
    let mut report = || -> Value {
        serde_json::from_str(&lines.next().expect("a line").expect("a line")).expect("a JSON object per sample")
    };
    assert_eq!(report()["connectionsPerSecond"], 0.0);
    // The counters of the first line were read before it was printed: these connections belong to the second.
    let _clients = open_connections(20);
    let second = report();
    let opened = |row: &Value| {
        let number = |value: &Value| value.as_f64().expect("a number");
        (number(&row["connectionsPerSecond"]) * number(&second["seconds"])).round()
    };
    assert_eq!(opened(&second), 20.0);
    let web = second["ports"].as_array().and_then(|rows| rows.iter().find(|row| row["service"] == "default/web"));
    assert_eq!(opened(web.expect("a row")), 20.0);
    assert!(top.wait().expect("top exits").success());
    let without_terminal = run(node, &["top"]);
    let error = String::from_utf8_lossy(&without_terminal.stderr);
    assert!(without_terminal.status.code() == Some(1) && error.contains("top -b"), "{error}");
}

fn terminal_is_restored(node: &mut StoryNode) {
    two_services(node);
    let _agent = node.agent(&[]);
    for signal in [None, Some(Signal::TERM), Some(Signal::INT)] {
        let (screen, terminal) = open_terminal();
        let lines = LocalModes::ICANON | LocalModes::ECHO;
        assert!(tcgetattr(&terminal).expect("a terminal").local_modes.contains(lines));
        let end = || Stdio::from(terminal.try_clone().expect("a descriptor"));
        let mut top = beeline();
        top.arg("--pins").arg(&node.pins).args(["top", "-d", "0.1"]).env("TERM", "xterm");
        let mut top = top.stdin(end()).stdout(end()).stderr(end()).spawn().expect("the beeline binary");
        let mut keys = screen.try_clone().expect("a descriptor");
        let shown = collect_output(screen);
        let shows = |text: &str| shown.lock().expect("no panic").contains(text);
        until("the Services are shown", || shows("default/web") && shows("default/dns"));
        assert!(!tcgetattr(&terminal).expect("a terminal").local_modes.intersects(lines));
        keys.write_all(b"\r").expect("a key");
        until("the backends of the selected Service are shown", || shows("10.0.0.1:") && shows("elsewhere"));
        match signal {
            None => keys.write_all(b"q").expect("a key"),
            Some(signal) => kill_process(Pid::from_child(&top), signal).expect("a process"),
        }
        assert!(top.wait().expect("top exits").success());
        assert!(
            tcgetattr(&terminal).expect("a terminal").local_modes.contains(lines),
            "line mode and echo are on again"
        );
        until("the main screen and the cursor are back", || shows("\x1b[?1049l") && shows("\x1b[?25h"));
    }
}

/// Opens a pseudo-terminal: the user's side and the program's side.
fn open_terminal() -> (File, OwnedFd) {
    let screen = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
    grantpt(&screen).and_then(|()| unlockpt(&screen)).expect("a terminal");
    let path = ptsname(&screen, Vec::new()).expect("its name");
    let path = path.to_str().expect("a path");
    let terminal = File::options().read(true).write(true).open(path).expect("a terminal");
    let size = Winsize { ws_row: 24, ws_col: 120, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(terminal.as_fd(), size).expect("a terminal");
    (File::from(screen), OwnedFd::from(terminal))
}

/// Collects the output of the terminal on a thread.
fn collect_output(mut screen: File) -> Arc<Mutex<String>> {
    let shown = Arc::new(Mutex::new(String::new()));
    let collected = Arc::clone(&shown);
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = screen.read(&mut buffer) {
            let text = String::from_utf8_lossy(buffer.get(..count).unwrap_or_default()).into_owned();
            collected.lock().expect("no panic").push_str(&text);
        }
    });
    shown
}
