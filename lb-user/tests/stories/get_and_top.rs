//! What `get` and `top` count is what sockets did, to the last one, and the agent's end changes no count.

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
    sockets::{Client, at, is_refusal, tcp_server, udp_server},
};

pub const STORIES: &[Story] = &[
    ("counts_of_get_and_top_are_exact_and_survive_the_agent", counts_are_exact),
    ("top_measures_rates_between_two_samples", rates_are_measured),
    ("top_restores_the_terminal", terminal_is_given_back),
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

/// So many connections, opened by several threads at once.
fn connections(count: usize) -> Vec<Client> {
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

/// Of the Service's row: connections, open, refused, and of these without endpoints and without local ones.
fn services(node: &StoryNode, name: &str) -> [u64; 5] {
    let rows = json(node, &["get", "services", "-o", "json"]);
    let row = rows.as_array().and_then(|rows| rows.iter().find(|row| row["name"] == name)).expect("a row");
    numbers(row)
}

fn numbers(row: &Value) -> [u64; 5] {
    ["connections", "open", "refused", "noEndpoints", "noLocalEndpoints"]
        .map(|field| row[field].as_u64().expect("a number"))
}

/// Of the Service's row in `top`.
fn top(node: &StoryNode, name: &str) -> [u64; 5] {
    let report = json(node, &["top", "-b", "-d", "0.2", "-o", "json"]);
    assert_eq!(report["connectionsPerSecond"], 0.0, "nothing happened meanwhile");
    let rows = report["ports"].as_array().expect("rows");
    numbers(rows.iter().find(|row| row["service"] == format!("default/{name}")).expect("a row"))
}

/// Connections and open sockets of the Service's backends, together, and how many backends there are.
fn backends(node: &StoryNode, service: &str) -> [u64; 3] {
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

    let mut clients = connections(50);
    let asking: Vec<_> = (0..7).map(|_| Client::udp(at(DNS))).collect();
    for client in &asking {
        // A second datagram of the same socket is no other connection.
        client.ask(at(DNS));
        client.ask(at(DNS));
    }
    let check = |web: [u64; 5], dns: [u64; 5]| {
        assert_eq!((services(node, "web"), services(node, "dns")), (web, dns));
        assert_eq!((top(node, "web"), top(node, "dns")), (web, dns));
        assert_eq!(backends(node, "default/web/TCP"), [web[0], web[1], 2]);
        assert_eq!(backends(node, "default/dns/UDP"), [dns[0], dns[1], 1]);
    };
    check([50, 50, 0, 0, 0], [7, 7, 0, 0, 0]);
    clients.truncate(30);
    check([50, 30, 0, 0, 0], [7, 7, 0, 0, 0]);

    for _ in 0..3 {
        is_refusal(Client::tcp(at("10.96.0.2:80")).connect(at("10.96.0.2:80")), Errno::CONNREFUSED);
    }
    for _ in 0..2 {
        is_refusal(Client::tcp(at("10.96.0.3:80")).connect(at("10.96.0.3:80")), Errno::HOSTUNREACH);
    }
    let refused = || {
        assert_eq!((services(node, "empty"), top(node, "empty")), ([0, 0, 3, 3, 0], [0, 0, 3, 3, 0]));
        assert_eq!((services(node, "local"), top(node, "local")), ([0, 0, 2, 0, 2], [0, 0, 2, 0, 2]));
    };
    refused();

    let pid = agent.pid();
    assert_eq!(json(node, &["top", "-b", "-d", "0.01", "-o", "json"])["agent"], pid);
    agent.kill();
    assert_eq!(json(node, &["top", "-b", "-d", "0.01", "-o", "json"])["agent"], Value::Null);
    check([50, 30, 0, 0, 0], [7, 7, 0, 0, 0]);
    // The kernel goes on counting.
    clients.extend(connections(5));
    drop(asking);
    check([55, 35, 0, 0, 0], [7, 0, 0, 0, 0]);
    let agent = node.agent(&[]);
    check([55, 35, 0, 0, 0], [7, 0, 0, 0, 0]);
    refused();
    clients.extend(connections(5));
    check([60, 40, 0, 0, 0], [7, 0, 0, 0, 0]);

    // A backend leaves, and its sockets do not.
    node.write("web.yaml", &service("web", &["10.96.0.1"], "TCP", 80, &["10.0.0.1:8080"]));
    agent.wait_for("three backends", |dump| dump.backends.len() == 3);
    assert_eq!(services(node, "web"), [60, 40, 0, 0, 0]);
    assert_eq!(backends(node, "default/web/TCP"), [60, 40, 2]);
    let table = run(node, &["get", "backends", "-o", "wide"]);
    assert!(String::from_utf8_lossy(&table.stdout).contains("gone"));
    drop(clients);
    assert_eq!(services(node, "web"), [60, 0, 0, 0, 0]);
    let table = run(node, &["get", "backends", "-o", "wide"]);
    assert!(!String::from_utf8_lossy(&table.stdout).contains("gone"));
}

fn rates_are_measured(node: &mut StoryNode) {
    two_services(node);
    let _agent = node.agent(&[]);
    let mut top = beeline();
    top.arg("--pins").arg(&node.pins).args(["top", "--batch", "--delay=1", "--iterations=2", "--output=json"]);
    let mut top = top.stdout(Stdio::piped()).spawn().expect("the beeline binary");
    let mut lines = BufReader::new(top.stdout.take().expect("its output")).lines();
    let mut report = || -> Value {
        serde_json::from_str(&lines.next().expect("a line").expect("a line")).expect("a JSON object for each look")
    };
    assert_eq!(report()["connectionsPerSecond"], 0.0);
    // What stands in the first line was read before it was written: these are of the second alone.
    let _clients = connections(20);
    let second = report();
    let happened = |row: &Value| {
        let number = |value: &Value| value.as_f64().expect("a number");
        (number(&row["connectionsPerSecond"]) * number(&second["seconds"])).round()
    };
    assert_eq!(happened(&second), 20.0);
    let web = second["ports"].as_array().and_then(|rows| rows.iter().find(|row| row["service"] == "default/web"));
    assert_eq!(happened(web.expect("a row")), 20.0);
    assert!(top.wait().expect("its end").success());
    let refused = run(node, &["top"]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(refused.status.code() == Some(1) && said.contains("top -b"), "{said}");
}

fn terminal_is_given_back(node: &mut StoryNode) {
    two_services(node);
    let _agent = node.agent(&[]);
    for signal in [None, Some(Signal::TERM), Some(Signal::INT)] {
        let (screen, terminal) = terminal();
        let lines = LocalModes::ICANON | LocalModes::ECHO;
        assert!(tcgetattr(&terminal).expect("a terminal").local_modes.contains(lines));
        let end = || Stdio::from(terminal.try_clone().expect("a descriptor"));
        let mut top = beeline();
        top.arg("--pins").arg(&node.pins).args(["top", "-d", "0.1"]).env("TERM", "xterm");
        let mut top = top.stdin(end()).stdout(end()).stderr(end()).spawn().expect("the beeline binary");
        let mut keys = screen.try_clone().expect("a descriptor");
        let shown = watch(screen);
        let shows = |text: &str| shown.lock().expect("what is shown").contains(text);
        until("the Services are shown", || shows("default/web") && shows("default/dns"));
        assert!(!tcgetattr(&terminal).expect("a terminal").local_modes.intersects(lines));
        keys.write_all(b"\r").expect("a key");
        until("its backends are shown", || shows("10.0.0.1:") && shows("elsewhere"));
        match signal {
            None => keys.write_all(b"q").expect("a key"),
            Some(signal) => kill_process(Pid::from_child(&top), signal).expect("a process"),
        }
        assert!(top.wait().expect("its end").success());
        assert!(tcgetattr(&terminal).expect("a terminal").local_modes.contains(lines), "lines are lines again");
        until("the screen is what it was", || shows("\x1b[?1049l") && shows("\x1b[?25h"));
    }
}

/// A terminal: what a user sees and types, and what a program has.
fn terminal() -> (File, OwnedFd) {
    let screen = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
    grantpt(&screen).and_then(|()| unlockpt(&screen)).expect("a terminal");
    let path = ptsname(&screen, Vec::new()).expect("its name");
    let path = path.to_str().expect("a path");
    let terminal = File::options().read(true).write(true).open(path).expect("a terminal");
    let size = Winsize { ws_row: 24, ws_col: 120, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(terminal.as_fd(), size).expect("a terminal");
    (File::from(screen), OwnedFd::from(terminal))
}

/// Collects what is shown.
fn watch(mut screen: File) -> Arc<Mutex<String>> {
    let shown = Arc::new(Mutex::new(String::new()));
    let collected = Arc::clone(&shown);
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = screen.read(&mut buffer) {
            let text = String::from_utf8_lossy(buffer.get(..count).unwrap_or_default()).into_owned();
            collected.lock().expect("what is shown").push_str(&text);
        }
    });
    shown
}
