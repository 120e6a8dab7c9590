//! The traffic: backends that answer with the number of their node, and clients that count failures. Each is a process
//! of its own, so that pods are in the agent's cgroup and clients outside are not.

use std::{
    fmt,
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use lb_lab::LabNamespace;
use serde::{Deserialize, Serialize};

use crate::network::Network;

/// Port of the backends.
pub const TARGET: u16 = 8080;

/// Long connections, and UDP sockets, to each destination.
const LONG: usize = 3;
/// Pause between two messages of a long connection or a UDP socket.
const PACE: Duration = Duration::from_millis(20);
/// Pause between two short connections to a destination.
const SHORT_PACE: Duration = Duration::from_millis(10);
/// Limit for an answer: longer than the retransmissions of a lost packet, and than delays of a busy machine.
const TIMEOUT: Duration = Duration::from_secs(15);

/// Runs as a backend or a client if the arguments say so, and ends the process.
pub fn main(words: &[String]) {
    match words {
        [_, flag, ips @ ..] if flag == "--serve" => serve(ips.iter().map(|ip| ip.parse().unwrap())),
        [_, flag, destinations @ ..] if flag == "--load" => {
            let destinations = destinations.iter().map(|text| text.parse().unwrap()).collect();
            println!("{}", serde_json::to_string(&run_client(destinations)).unwrap());
        }
        _ => return,
    }
    std::process::exit(0);
}

/// A backend; killed when dropped.
pub struct BackendProcess(Child);

impl BackendProcess {
    pub fn start(net: &LabNamespace, ips: [IpAddr; 2]) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.arg("--serve").args(ips.map(|ip| ip.to_string())).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = net.spawn(&mut command);
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        Self(child)
    }
}

impl Drop for BackendProcess {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _ended = self.0.wait();
    }
}

/// Answers each byte and each datagram with the number of its node.
fn serve(ips: impl Iterator<Item = IpAddr>) {
    let listen = |ip: IpAddr| {
        let name = match ip {
            IpAddr::V4(v4) => [v4.octets()[2]],
            IpAddr::V6(v6) => [v6.octets()[7]],
        };
        (name, TcpListener::bind((ip, TARGET)).unwrap(), UdpSocket::bind((ip, TARGET)).unwrap())
    };
    let listeners: Vec<_> = ips.map(listen).collect();
    println!("ready");
    for (name, tcp, udp) in listeners {
        thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((_, from)) = udp.recv_from(&mut buffer) {
                let _lost = udp.send_to(&name, from);
            }
        });
        thread::spawn(move || {
            for mut stream in tcp.incoming().flatten() {
                thread::spawn(move || {
                    let mut byte = [0];
                    while stream.read_exact(&mut byte).is_ok() && stream.write_all(&name).is_ok() {}
                });
            }
        });
    }
    loop {
        thread::park();
    }
}

/// The counts of a client.
#[derive(Serialize, Deserialize, Default)]
pub struct LoadCounts {
    short: usize,
    slowest_ms: u128,
    slow_at: String,
    failed: Vec<String>,
    long: usize,
    exchanges: usize,
    broken: Vec<String>,
    sockets: usize,
    datagrams: usize,
    lost: usize,
    moved: usize,
}

/// Clients outside and in a pod; killed when dropped.
pub struct HandoverLoad {
    name: &'static str,
    clients: Vec<(&'static str, Child)>,
}

/// The counts of all clients.
pub struct LoadResult {
    name: &'static str,
    counts: Vec<(&'static str, LoadCounts)>,
}

impl HandoverLoad {
    pub fn start(network: &Network<'_>, name: &'static str) -> Self {
        let [outside, inside] = network.destinations();
        let start = |net: &LabNamespace, destinations: &[SocketAddr]| {
            let mut command = Command::new(std::env::current_exe().unwrap());
            command.arg("--load").args(destinations.iter().map(SocketAddr::to_string));
            net.spawn(command.stdin(Stdio::piped()).stdout(Stdio::piped()))
        };
        let pod = start(&network.lan.node1.pods[0].net, &inside);
        std::fs::write(network.pods().join("cgroup.procs"), pod.id().to_string()).unwrap();
        let mut clients = vec![("pod", pod), ("outside", start(&network.lan.client.net, &outside))];
        for (_, client) in &mut clients {
            // The client waits for this line, so that its sockets are made in its cgroup.
            client.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
        }
        Self { name, clients }
    }

    pub fn end(mut self) -> LoadResult {
        let count = |(name, mut client): (&'static str, Child)| {
            drop(client.stdin.take());
            let mut text = String::new();
            client.stdout.take().unwrap().read_to_string(&mut text).unwrap();
            client.wait().unwrap();
            (name, serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text:?}")))
        };
        LoadResult { name: self.name, counts: std::mem::take(&mut self.clients).into_iter().map(count).collect() }
    }
}

impl Drop for HandoverLoad {
    fn drop(&mut self) {
        for (_, client) in &mut self.clients {
            let _ended = client.kill();
            let _ended = client.wait();
        }
    }
}

impl LoadResult {
    pub fn has_failed(&self) -> bool {
        self.counts.iter().any(|(_, counts)| {
            !counts.failed.is_empty()
                || !counts.broken.is_empty()
                || counts.lost + counts.moved > 0
                || counts.short == 0
                || counts.exchanges == 0
                || counts.datagrams == 0
        })
    }
}

impl fmt::Display for LoadResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.name)?;
        for (name, counts) in &self.counts {
            let LoadCounts {
                short,
                slowest_ms,
                slow_at,
                failed,
                long,
                exchanges,
                broken,
                sockets,
                datagrams,
                lost,
                moved,
            } = counts;
            write!(
                f,
                " {name}: {short} connections (the slowest {slowest_ms} ms, {slow_at}), {} failed {failed:?}; \
                 {long} long connections with {exchanges} exchanges, {} broken {broken:?}; {sockets} UDP sockets \
                 with {datagrams} queries, {lost} unanswered, {moved} times another backend.",
                failed.len(),
                broken.len()
            )?;
        }
        Ok(())
    }
}

/// Returns the wall-clock time, with which failures are matched with the steps of the story.
pub fn clock() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("{:.3} s", now.as_secs_f64() % 1000.0)
}

/// Makes a short connection. Returns the number of the backend's node.
pub fn connect_once(to: SocketAddr, timeout: Duration) -> io::Result<u8> {
    let mut stream = TcpStream::connect_timeout(&to, timeout)?;
    exchange(&mut stream)
}

fn exchange(stream: &mut TcpStream) -> io::Result<u8> {
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.write_all(b"?")?;
    let mut byte = [0];
    stream.read_exact(&mut byte)?;
    Ok(byte[0])
}

/// A thread of a client.
type Thread = JoinHandle<LoadCounts>;

/// Runs the threads of a client until its standard input ends.
fn run_client(destinations: Vec<SocketAddr>) -> LoadCounts {
    let mut input = io::stdin().lines();
    input.next().unwrap().unwrap();
    let running = Arc::new(AtomicBool::new(true));
    let mut threads: Vec<Thread> = Vec::new();
    let mut add = |work: fn(SocketAddr, &AtomicBool) -> LoadCounts, to| {
        let running = Arc::clone(&running);
        threads.push(thread::spawn(move || work(to, &running)));
    };
    for to in destinations {
        add(short, to);
        for _ in 0..LONG {
            add(long, to);
            add(datagrams, to);
        }
    }
    while input.next().is_some() {}
    running.store(false, Ordering::Relaxed);
    let mut sum = LoadCounts::default();
    for thread in threads {
        let one = thread.join().unwrap();
        sum.short += one.short;
        if one.slowest_ms > sum.slowest_ms {
            (sum.slowest_ms, sum.slow_at) = (one.slowest_ms, one.slow_at);
        }
        sum.failed.extend(one.failed);
        sum.long += one.long;
        sum.exchanges += one.exchanges;
        sum.broken.extend(one.broken);
        sum.sockets += one.sockets;
        sum.datagrams += one.datagrams;
        sum.lost += one.lost;
        sum.moved += one.moved;
    }
    sum
}

fn short(to: SocketAddr, running: &AtomicBool) -> LoadCounts {
    let mut counts = LoadCounts::default();
    while running.load(Ordering::Relaxed) {
        counts.short += 1;
        let start = Instant::now();
        if let Err(error) = connect_once(to, TIMEOUT) {
            counts.failed.push(format!("{to} at {}: {error}", clock()));
        }
        let took = start.elapsed().as_millis();
        if took > counts.slowest_ms {
            (counts.slowest_ms, counts.slow_at) = (took, format!("{to} at {}", clock()));
        }
        thread::sleep(SHORT_PACE);
    }
    counts
}

fn long(to: SocketAddr, running: &AtomicBool) -> LoadCounts {
    let mut counts = LoadCounts { long: 1, ..LoadCounts::default() };
    let mut stream = match TcpStream::connect_timeout(&to, TIMEOUT) {
        Ok(stream) => stream,
        Err(error) => {
            counts.failed.push(format!("{to} at {}: {error}", clock()));
            return counts;
        }
    };
    while running.load(Ordering::Relaxed) {
        if let Err(error) = exchange(&mut stream) {
            let port = stream.local_addr().map_or(0, |own| own.port());
            counts.broken.push(format!("{to} from {port} at {}, {} exchanges: {error}", clock(), counts.exchanges));
            break;
        }
        counts.exchanges += 1;
        thread::sleep(PACE);
    }
    counts
}

fn datagrams(to: SocketAddr, running: &AtomicBool) -> LoadCounts {
    let mut counts = LoadCounts { sockets: 1, ..LoadCounts::default() };
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).unwrap();
    socket.connect(to).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    let mut backend = None;
    while running.load(Ordering::Relaxed) {
        let mut byte = [0];
        counts.datagrams += 1;
        match socket.send(b"?").and_then(|_| socket.recv(&mut byte)) {
            Ok(_) => {
                counts.moved += usize::from(backend.is_some_and(|backend| backend != byte[0]));
                backend = Some(byte[0]);
            }
            Err(_) => counts.lost += 1,
        }
        thread::sleep(PACE);
    }
    counts
}
