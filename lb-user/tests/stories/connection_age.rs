//! Connections of a limited age (`beeline.io/max-connection-age`): idle ones end, busy ones wait or have a grace, and
//! clients find a new endpoint.

use std::{
    collections::BTreeSet,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use rustix::io::Errno;

use crate::{
    Story,
    agent::{Agent, run, until},
    node::{StoryNode, annotated, service},
    socket_termination::in_namespace,
    sockets::{at, mapped},
    stale_sockets::ended_count,
};

pub const STORIES: &[Story] = &[
    ("old_idle_connections_end_and_their_clients_find_a_new_endpoint", clients_find_a_new_endpoint),
    ("old_busy_connections_stay_until_their_grace_is_over", busy_connections),
    ("old_connections_of_other_services_and_without_a_service_stay", others_stay),
    ("old_connections_in_other_network_namespaces_end", other_namespaces),
];

const VIP: &str = "10.96.0.1:80";
const VIP6: &str = "[fd96::1]:80";

/// Pause of the server before an answer, longer than a tick of the kernel.
const ANSWER: Duration = Duration::from_millis(60);

/// Starts a server that answers each request of a connection with its own name, after a pause.
fn serve(address: &str) {
    let listener = TcpListener::bind(address).expect("a free port");
    let name = address.to_owned();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (mut stream, name) = (stream, name.clone());
            thread::spawn(move || {
                let mut buffer = [0; 64];
                while stream.read(&mut buffer).is_ok_and(|length| length > 0) {
                    thread::sleep(ANSWER);
                    let _gone = stream.write_all(name.as_bytes());
                }
            });
        }
    });
}

fn connect(to: &str) -> TcpStream {
    let stream = TcpStream::connect(at(to)).expect("a connection");
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a time-out");
    stream
}

/// Sends a request, and returns the answer.
fn ask(stream: &mut TcpStream) -> std::io::Result<String> {
    stream.write_all(b"who")?;
    let mut buffer = [0; 64];
    let length = stream.read(&mut buffer)?;
    Ok(String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()).into_owned())
}

/// True if the socket was ended: the error of the first read, which does not wait, is ECONNABORTED.
fn has_ended(stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).expect("a mode");
    let read = (&*stream).read(&mut [0; 64]);
    stream.set_nonblocking(false).expect("a mode");
    match read {
        Ok(length) => panic!("{length} octets"),
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => false,
        Err(error) => {
            assert_eq!(error.raw_os_error(), Some(Errno::CONNABORTED.raw_os_error()), "{error}");
            true
        }
    }
}

fn web(age: &str, backends: &[&str]) -> String {
    let yaml = service("web", &["10.96.0.1", "fd96::1"], "TCP", 80, backends);
    annotated(&yaml, &format!("beeline.io/max-connection-age: {age}"))
}

fn ended(agent: &Agent) -> usize {
    agent.log().lines().filter(|line| line.contains("beeline.io/max-connection-age")).count()
}

fn clients_find_a_new_endpoint(node: &mut StoryNode) {
    let backends = ["10.0.0.1:8080", "[fd00::1]:8080", "10.0.0.2:8080"];
    backends.iter().for_each(|backend| serve(backend));
    node.write("web.yaml", &web("2s", &backends[..2]));
    let _agent = node.agent(&[]);
    let explained = run(node, &["explain", "default/web"]);
    let text = String::from_utf8_lossy(&explained.stdout).into_owned();
    assert!(text.contains("connections  idle TCP sockets of this node's clients end at an age of 2 s ±10 %"), "{text}");
    let mapped = mapped(at(VIP)).to_string();
    let mut clients: Vec<_> = [VIP, VIP, VIP6, &mapped].into_iter().map(connect).collect();
    let start = Instant::now();
    for client in &mut clients {
        ask(client).expect("an answer");
    }
    node.write("web.yaml", &web("2s", &backends));
    until("idle connections have ended", || {
        clients.retain(|client| !has_ended(client));
        clients.is_empty()
    });
    assert!(start.elapsed() > Duration::from_secs(4), "not before they were idle: {:?}", start.elapsed());
    let servers: BTreeSet<_> = (0..40).map(|_| ask(&mut connect(VIP)).expect("an answer")).collect();
    assert!(servers.contains(backends[2]), "{servers:?}");
    until("the ended connections are counted", || ended_count(node) == 4);
}

fn busy_connections(node: &mut StoryNode) {
    serve("10.0.0.1:8080");
    node.write("web.yaml", &web("1s", &["10.0.0.1:8080"]));
    let agent = node.agent(&[]);
    let mut busy = connect(VIP);
    let mut asking = connect(VIP);
    // The client has sent last: it may wait for an answer.
    let mut waiting = connect(VIP);
    ask(&mut waiting).expect("an answer");
    waiting.set_nodelay(true).expect("an option");
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(8) {
        ask(&mut busy).expect("an answer");
        ask(&mut asking).expect("an answer");
        thread::sleep(Duration::from_millis(100));
        waiting.write_all(b"who").expect("sent");
    }
    assert_eq!(ended(&agent), 0, "{}", agent.log());
    node.write("web.yaml", &web("1s grace 1s", &["10.0.0.1:8080"]));
    until("a busy connection has ended", || ask(&mut busy).is_err());
    until("the other one has", || ask(&mut asking).is_err());
}

fn others_stay(node: &mut StoryNode) {
    serve("10.0.0.1:8080");
    node.write("web.yaml", &web("1s", &["10.0.0.1:8080"]));
    node.write("other.yaml", &service("other", &["10.96.0.2"], "TCP", 80, &["10.0.0.1:8080"]));
    let _agent = node.agent(&[]);
    let mut others: Vec<_> = ["10.96.0.2:80", "10.0.0.1:8080"].into_iter().map(connect).collect();
    let mut aged = connect(VIP);
    for client in others.iter_mut().chain([&mut aged]) {
        ask(client).expect("an answer");
    }
    until("the connection through the Service has ended", || has_ended(&aged));
    thread::sleep(Duration::from_secs(2));
    assert!(!others.iter().any(has_ended));
}

fn other_namespaces(node: &mut StoryNode) {
    node.write("web.yaml", &web("1s", &["10.0.0.1:8080"]));
    let _agent = node.agent(&[]);
    let mapped = mapped(at(VIP)).to_string();
    // The agent finds the namespace by a process.
    let (mut process, mut clients) = in_namespace(|| {
        let process = Command::new("sleep").arg("1000").spawn().expect("a process");
        serve("10.0.0.1:8080");
        (process, [VIP, &mapped].map(connect))
    });
    for client in &mut clients {
        ask(client).expect("an answer");
    }
    for client in &clients {
        until("the connection has ended", || has_ended(client));
    }
    process.kill().and_then(|()| process.wait()).expect("a process");
}
