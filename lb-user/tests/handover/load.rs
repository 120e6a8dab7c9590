//! The traffic: servers that tell who they are, and clients that count what fails. Each is a process of its own, so
//! that pods can be in the agent's cgroup and clients outside are not.

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

use lb_lab::Namespace;
use serde::{Deserialize, Serialize};

use crate::network::Network;

/// Port of the backends.
pub const TARGET: u16 = 8080;

/// Long connections of each kind to each destination, and the pause between two of their messages.
const LONG: usize = 3;
const PACE: Duration = Duration::from_millis(10);
/// The pause between two short connections to a destination.
const SHORT_PACE: Duration = Duration::from_millis(3);
/// More than a lost packet takes that is sent again, and than a machine with other work may add.
const PATIENCE: Duration = Duration::from_secs(15);

/// Does what the arguments say, if they are those of a server or a client, and ends.
pub fn main(words: &[String]) {
    match words {
        [_, flag, ips @ ..] if flag == "--serve" => serve(ips.iter().map(|ip| ip.parse().unwrap())),
        [_, flag, destinations @ ..] if flag == "--load" => {
            let destinations = destinations.iter().map(|text| text.parse().unwrap()).collect();
            println!("{}", serde_json::to_string(&count(destinations)).unwrap());
        }
        _ => return,
    }
    std::process::exit(0);
}

/// A backend; it ends with the value.
pub struct Server(Child);

impl Server {
    pub fn start(net: &Namespace, ips: [IpAddr; 2]) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.arg("--serve").args(ips.map(|ip| ip.to_string())).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = net.spawn(&mut command);
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        Self(child)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _ended = self.0.wait();
    }
}

/// Answers each byte, and each datagram, by the number of its node.
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
pub struct Counted {
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

/// Clients outside and in a pod, from now on.
pub struct Load {
    name: &'static str,
    clients: Vec<(&'static str, Child)>,
}

/// The counts of all clients.
pub struct Sum {
    name: &'static str,
    counts: Vec<(&'static str, Counted)>,
}

impl Load {
    pub fn start(network: &Network<'_>, name: &'static str) -> Self {
        let [outside, inside] = network.destinations();
        let start = |net: &Namespace, destinations: &[SocketAddr]| {
            let mut command = Command::new(std::env::current_exe().unwrap());
            command.arg("--load").args(destinations.iter().map(SocketAddr::to_string));
            net.spawn(command.stdin(Stdio::piped()).stdout(Stdio::piped()))
        };
        let pod = start(&network.lan.node1.pods[0].net, &inside);
        std::fs::write(network.pods().join("cgroup.procs"), pod.id().to_string()).unwrap();
        let mut clients = vec![("pod", pod), ("outside", start(&network.lan.client.net, &outside))];
        for (_, client) in &mut clients {
            // It waits until it is where it belongs.
            client.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
        }
        Self { name, clients }
    }

    pub fn end(mut self) -> Sum {
        let count = |(name, mut client): (&'static str, Child)| {
            drop(client.stdin.take());
            let mut text = String::new();
            client.stdout.take().unwrap().read_to_string(&mut text).unwrap();
            client.wait().unwrap();
            (name, serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text:?}")))
        };
        Sum { name: self.name, counts: std::mem::take(&mut self.clients).into_iter().map(count).collect() }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        for (_, client) in &mut self.clients {
            let _ended = client.kill();
            let _ended = client.wait();
        }
    }
}

impl Sum {
    pub fn has_failed(&self) -> bool {
        self.counts.iter().any(|(_, counted)| {
            !counted.failed.is_empty()
                || !counted.broken.is_empty()
                || counted.lost + counted.moved > 0
                || counted.short == 0
                || counted.exchanges == 0
                || counted.datagrams == 0
        })
    }
}

impl fmt::Display for Sum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.name)?;
        for (name, counted) in &self.counts {
            let Counted {
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
            } = counted;
            write!(
                f,
                " {name}: {short} connections (the slowest {slowest_ms} ms, {slow_at}), {} failed {failed:?}; {long} long ones with {exchanges} exchanges, {} broken \
                 {broken:?}; {sockets} UDP sockets with {datagrams} questions, {lost} unanswered, {moved} times another backend.",
                failed.len(),
                broken.len()
            )?;
        }
        Ok(())
    }
}

/// The time, by which what failed is found among what was done then: the same clock for all processes.
pub fn clock() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("{:.3} s", now.as_secs_f64() % 1000.0)
}

/// Makes a short connection. Returns the name of the server.
pub fn ask(to: SocketAddr, patience: Duration) -> io::Result<u8> {
    let mut stream = TcpStream::connect_timeout(&to, patience)?;
    exchange(&mut stream)
}

fn exchange(stream: &mut TcpStream) -> io::Result<u8> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"?")?;
    let mut byte = [0];
    stream.read_exact(&mut byte)?;
    Ok(byte[0])
}

/// The counts of a thread.
type Thread = JoinHandle<Counted>;

/// Is a client of all of these until its input ends.
fn count(destinations: Vec<SocketAddr>) -> Counted {
    let mut input = io::stdin().lines();
    input.next().unwrap().unwrap();
    let goes_on = Arc::new(AtomicBool::new(true));
    let mut threads: Vec<Thread> = Vec::new();
    let mut add = |work: fn(SocketAddr, &AtomicBool) -> Counted, to| {
        let goes_on = Arc::clone(&goes_on);
        threads.push(thread::spawn(move || work(to, &goes_on)));
    };
    for to in destinations {
        add(short, to);
        for _ in 0..LONG {
            add(long, to);
            add(datagrams, to);
        }
    }
    while input.next().is_some() {}
    goes_on.store(false, Ordering::Relaxed);
    let mut sum = Counted::default();
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

fn short(to: SocketAddr, goes_on: &AtomicBool) -> Counted {
    let mut counted = Counted::default();
    while goes_on.load(Ordering::Relaxed) {
        counted.short += 1;
        let start = Instant::now();
        if let Err(error) = ask(to, PATIENCE) {
            counted.failed.push(format!("{to} at {}: {error}", clock()));
        }
        let took = start.elapsed().as_millis();
        if took > counted.slowest_ms {
            (counted.slowest_ms, counted.slow_at) = (took, format!("{to} at {}", clock()));
        }
        thread::sleep(SHORT_PACE);
    }
    counted
}

fn long(to: SocketAddr, goes_on: &AtomicBool) -> Counted {
    let mut counted = Counted { long: 1, ..Counted::default() };
    let mut stream = match TcpStream::connect_timeout(&to, PATIENCE) {
        Ok(stream) => stream,
        Err(error) => {
            counted.failed.push(format!("{to} at {}: {error}", clock()));
            return counted;
        }
    };
    while goes_on.load(Ordering::Relaxed) {
        if let Err(error) = exchange(&mut stream) {
            let port = stream.local_addr().map_or(0, |own| own.port());
            counted.broken.push(format!("{to} from {port} at {}, {} exchanges: {error}", clock(), counted.exchanges));
            break;
        }
        counted.exchanges += 1;
        thread::sleep(PACE);
    }
    counted
}

fn datagrams(to: SocketAddr, goes_on: &AtomicBool) -> Counted {
    let mut counted = Counted { sockets: 1, ..Counted::default() };
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).unwrap();
    socket.connect(to).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    let mut backend = None;
    while goes_on.load(Ordering::Relaxed) {
        let mut byte = [0];
        counted.datagrams += 1;
        match socket.send(b"?").and_then(|_| socket.recv(&mut byte)) {
            Ok(_) => {
                counted.moved += usize::from(backend.is_some_and(|backend| backend != byte[0]));
                backend = Some(byte[0]);
            }
            Err(_) => counted.lost += 1,
        }
        thread::sleep(PACE);
    }
    counted
}
