//! Probes of hand-written endpoints: a server that dies without notice, comes back, answers badly, or is dead with all
//! others; and a restart of the agent meanwhile.

use std::{
    collections::BTreeSet,
    io::{ErrorKind, Read as _, Write as _},
    net::TcpListener,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU16, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crate::{
    Story,
    agent::{Agent, run, until},
    node::{StoryNode, annotated, service},
    sockets::{Client, at},
};

pub const STORIES: &[Story] = &[
    ("a_dead_hand_written_endpoint_is_left_after_its_probes_fail_and_used_again_after_they_pass", dies_and_comes_back),
    ("a_restart_brings_no_dead_hand_written_endpoint_back_and_takes_none_away", restart),
    ("a_hand_written_endpoint_with_a_bad_status_is_left_and_all_are_used_when_none_passes", bad_status),
];

const VIP: &str = "10.96.0.1:80";
const BACKENDS: [&str; 3] = ["10.0.0.1:8080", "10.0.0.2:8080", "10.0.0.3:8080"];

/// A server that answers each request with a status, until it is dropped.
struct Server {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    status: Arc<AtomicU16>,
}

impl Server {
    fn start(address: &str) -> Self {
        let listener = TcpListener::bind(address).expect("a free port");
        listener.set_nonblocking(true).expect("a mode");
        let (stop, status) = (Arc::<AtomicBool>::default(), Arc::new(AtomicU16::new(200)));
        let (is_stopped, answer) = (Arc::clone(&stop), Arc::clone(&status));
        let serve = move || {
            while !is_stopped.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((mut stream, _)) => {
                        let answer = format!("HTTP/1.1 {} x\r\n\r\n", answer.load(Ordering::Relaxed));
                        thread::spawn(move || {
                            let _gone = stream.set_nonblocking(false);
                            let _gone = stream.read(&mut [0; 512]);
                            let _gone = stream.write_all(answer.as_bytes());
                        });
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(Duration::from_millis(1)),
                    Err(_) => {}
                }
            }
        };
        Self { stop, thread: Some(thread::spawn(serve)), status }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().map(JoinHandle::join);
    }
}

fn web(probe: &str) -> String {
    let yaml = service("web", &["10.96.0.1"], "TCP", 80, &BACKENDS);
    annotated(&yaml, &format!("beeline.io/probe: \"{probe}\""))
}

/// The last parts of the addresses in the list.
fn in_use(agent: &Agent) -> BTreeSet<u8> {
    agent.dump().slots.values().map(|slot| slot.addr.octets[15]).collect()
}

/// Connects so many times. Returns the number of failures.
fn failures(connects: u32) -> u32 {
    (0..connects).filter(|_| Client::tcp(at(VIP)).connect(at(VIP)).is_err()).count() as u32
}

fn dies_and_comes_back(node: &mut StoryNode) {
    let mut servers: Vec<_> = BACKENDS.iter().map(|address| Server::start(address)).collect();
    node.write("web.yaml", &web("tcp every 1s fail 2"));
    let agent = node.agent(&["--metrics-bind-address", "127.0.0.1:10249"]);
    assert_eq!(in_use(&agent), [1, 2, 3].into(), "all are used at once");
    assert_eq!(failures(100), 0);
    drop(servers.pop());
    let start = Instant::now();
    let (mut failed, mut connects) = (0, 0);
    while in_use(&agent).contains(&3) {
        assert!(start.elapsed() < Duration::from_secs(30), "{}", agent.log());
        failed += failures(1);
        connects += 1;
        thread::sleep(Duration::from_millis(5));
    }
    println!("{failed} of {connects} connects failed in {:?} after the death", start.elapsed());
    assert!(failed > 0, "the death is noticed by the probes alone");
    assert_eq!((failures(500), in_use(&agent)), (0, [1, 2].into()));
    agent.wait_for_log("its endpoint 10.0.0.3:8080 is not used: its probe fails: connection refused");
    let explained = run(node, &["explain", "default/web"]);
    let text = String::from_utf8_lossy(&explained.stdout).into_owned();
    assert!(text.contains("10.0.0.3:8080  -  not used: its probe fails, or has not passed yet"), "{text}");
    assert!(text.contains("probe      TCP every 1 s, within 1 s; out after 2 failures, in after 1 passes"), "{text}");
    let (_, metrics) = crate::health_and_metrics::get("127.0.0.1:10249", "/metrics").expect("an answer");
    assert!(metrics.contains("beeline_probed_endpoints{state=\"failing\"} 1"), "{metrics}");
    servers.push(Server::start(BACKENDS[2]));
    until("the endpoint is used again", || in_use(&agent) == [1, 2, 3].into());
    agent.wait_for_log("passes its probe again");
    assert_eq!(failures(100), 0);
}

fn restart(node: &mut StoryNode) {
    let mut servers: Vec<_> = BACKENDS.iter().map(|address| Server::start(address)).collect();
    drop(servers.pop());
    node.write("web.yaml", &web("tcp every 1s fail 2"));
    let mut agent = node.agent(&[]);
    until("the dead endpoint is left", || in_use(&agent) == [1, 2].into());
    for _ in 0..2 {
        agent.kill();
        assert_eq!(failures(50), 0);
        agent = node.agent(&[]);
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(4) {
            assert_eq!((failures(20), in_use(&agent)), (0, [1, 2].into()), "{}", agent.log());
            thread::sleep(Duration::from_millis(20));
        }
    }
    // A server that comes while no agent runs is used after its first probe.
    agent.kill();
    servers.push(Server::start(BACKENDS[2]));
    let agent = node.agent(&[]);
    until("the endpoint is used again", || in_use(&agent) == [1, 2, 3].into());
    // A new endpoint waits for its first probe.
    let four = [&BACKENDS[..], &["10.0.0.4:8080"]].concat();
    let yaml = service("web", &["10.96.0.1"], "TCP", 80, &four);
    node.write("web.yaml", &annotated(&yaml, "beeline.io/probe: \"tcp every 1s fail 2\""));
    agent.wait_for_log("its endpoint 10.0.0.4:8080 is not used");
    assert_eq!((failures(50), in_use(&agent)), (0, [1, 2, 3].into()));
    servers.push(Server::start("10.0.0.4:8080"));
    until("the new endpoint is used", || in_use(&agent).contains(&4));
}

fn bad_status(node: &mut StoryNode) {
    let servers: Vec<_> = BACKENDS.iter().map(|address| Server::start(address)).collect();
    node.write("web.yaml", &web("http GET /healthz every 1s fail 2 pass 2"));
    let agent = node.agent(&[]);
    let set = |index: usize, status: u16| servers[index].status.store(status, Ordering::Relaxed);
    set(0, 503);
    until("the endpoint is left", || in_use(&agent) == [2, 3].into());
    agent.wait_for_log("its endpoint 10.0.0.1:8080 is not used: its probe fails: HTTP status 503");
    set(1, 404);
    until("the next one is left", || in_use(&agent) == [3].into());
    set(2, 500);
    until("all are used", || in_use(&agent) == [1, 2, 3].into());
    agent.wait_for_log("since no endpoint of the port passes");
    set(1, 200);
    until("the one that passes is used alone", || in_use(&agent) == [2].into());
    // Without the annotation, all are used.
    node.write("web.yaml", &service("web", &["10.96.0.1"], "TCP", 80, &BACKENDS));
    until("all are used", || in_use(&agent) == [1, 2, 3].into());
}
