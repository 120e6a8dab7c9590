//! Clients of the Service that never changes: on the node, in a pod, and outside. Each is a process of its own, so that
//! it is in the right cgroup.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use lb_lab::{LabNamespace, rng::Rng};

use crate::{
    exact::Row,
    objects::{CHANGING, STEADY, STEADY_PORT},
    testbed::Testbed,
};

/// Time for an answer.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Long connections of a client.
const LONG: usize = 8;

/// Wall-clock time in seconds, to compare the times of failures with those of kills.
pub fn clock() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs() % 100_000)
}

/// Asks for the server's name.
pub fn ask_tcp(to: SocketAddr, timeout: Duration) -> io::Result<(TcpStream, SocketAddr)> {
    let stream = TcpStream::connect_timeout(&to, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    let mut name = String::new();
    BufReader::new(&stream).read_line(&mut name)?;
    let server = name.trim().parse().map_err(|_| io::Error::other(format!("no name: {name:?}")))?;
    Ok((stream, server))
}

/// Asks for the server's name with a datagram.
pub fn ask_udp(to: SocketAddr, timeout: Duration) -> io::Result<(UdpSocket, SocketAddr)> {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any)?;
    socket.set_read_timeout(Some(timeout))?;
    socket.send_to(b"?", to)?;
    let mut buffer = [0; 64];
    let (length, from) = socket.recv_from(&mut buffer)?;
    let name = String::from_utf8_lossy(&buffer[..length]).trim().to_owned();
    let server = name.parse().map_err(|_| io::Error::other(format!("no name: {name:?}")))?;
    if from == to { Ok((socket, server)) } else { Err(io::Error::other(format!("the answer is from {from}"))) }
}

/// Running clients.
pub struct Clients(Vec<(&'static str, Child)>);

impl Clients {
    pub fn start(testbed: &Testbed) -> Self {
        let lan = &testbed.lan;
        let start = |place: &'static str, net: &LabNamespace, cgroup: &str, to: SocketAddr| {
            // The child is born in this process's cgroup.
            testbed.move_to(cgroup);
            let mut command = Command::new(std::env::current_exe().unwrap());
            command.args(["--client", place, &to.to_string()]).stdin(Stdio::piped()).stdout(Stdio::piped());
            (place, net.spawn(&mut command))
        };
        let vip = |index: usize| SocketAddr::new(STEADY[index].parse().unwrap(), 80);
        let node_port = SocketAddr::new(lan.node1.host.v4.into(), STEADY_PORT);
        let clients = vec![
            start("node", &lan.node1.host.net, "node1/kubepods", vip(0)),
            start("pod", &lan.node1.pods[0].net, "node1/kubepods", vip(1)),
            start("outside", &lan.client.net, "outside", node_port),
        ];
        testbed.move_to("outside");
        Self(clients)
    }

    /// Ends the clients, and returns their counts.
    pub fn end(self) -> Vec<Row> {
        let mut rows = Vec::new();
        for (place, mut child) in self.0 {
            drop(child.stdin.take());
            let mut text = String::new();
            child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
            child.wait().unwrap();
            let (numbers, errors) = text.split_once('\n').unwrap_or((&text, ""));
            let numbers: Vec<u64> = numbers.split(' ').map(|number| number.parse().unwrap_or(u64::MAX)).collect();
            let [calls, failed, broken, others] = numbers[..] else { panic!("{text}") };
            println!("errors of the client {place}: {errors}");
            // A flood may push out one flow that begins, as `cargo xtask bench flood` has it.
            let allowed = if place == "outside" { calls / 1_000 } else { 0 };
            rows.push(Row::told(&format!("calls, {place}"), calls));
            rows.push(Row::told(&format!("calls to changing Services, {place}"), others));
            rows.push(Row::at_most(&format!("calls that failed, {place}"), failed, &allowed));
            rows.push(Row::exactly(&format!("long connections that broke, {place}"), broken, &0));
        }
        rows
    }
}

#[derive(Default)]
struct Counts {
    calls: AtomicU64,
    failed: AtomicU64,
    broken: AtomicU64,
    others: AtomicU64,
}

/// A question to a server.
type Ask = fn(SocketAddr) -> io::Result<()>;

/// A call, or a connection with its exchanges.
type Work = Box<dyn Fn(&Counts) -> io::Result<()> + Send>;

/// A client, until its standard input ends.
pub fn main(place: &str, steady: SocketAddr) {
    let (counts, is_over) = (Arc::new(Counts::default()), Arc::new(AtomicBool::new(false)));
    let errors = Arc::new(std::sync::Mutex::new(Vec::new()));
    let mut threads = Vec::new();
    let mut start = |what: &'static str, work: Work, pause: u64| {
        let (counts, is_over, errors) = (Arc::clone(&counts), Arc::clone(&is_over), Arc::clone(&errors));
        threads.push(thread::spawn(move || {
            while !is_over.load(Ordering::Relaxed) {
                if let Err(error) = work(&counts) {
                    counts.failed.fetch_add(1, Ordering::Relaxed);
                    let mut errors = errors.lock().unwrap();
                    if errors.len() < 20 {
                        errors.push(format!("{} s, {what}: {error}", clock()));
                    }
                }
                thread::sleep(Duration::from_millis(pause));
            }
        }));
    };
    let call = |counts: &Counts| counts.calls.fetch_add(1, Ordering::Relaxed);
    let short: [(&str, Ask); 2] =
        [("TCP", |to| ask_tcp(to, TIMEOUT).map(drop)), ("UDP", |to| ask_udp(to, TIMEOUT).map(drop))];
    for (what, ask) in short {
        let work = move |counts: &Counts| {
            call(counts);
            ask(steady)
        };
        start(what, Box::new(work), 10);
    }
    for long in 0..LONG {
        start(
            "a long connection",
            Box::new(move |counts| {
                call(counts);
                let (mut stream, _) = ask_tcp(steady, TIMEOUT)?;
                // Some seconds of exchanges, and then another connection.
                for _ in 0..100 * (1 + long) {
                    if stream.write_all(b"x").and_then(|()| stream.read_exact(&mut [0])).is_err() {
                        counts.broken.fetch_add(1, Ordering::Relaxed);
                        return Ok(());
                    }
                    thread::sleep(Duration::from_millis(20));
                }
                Ok(())
            }),
            1,
        );
    }
    let is_outside = place == "outside";
    let rng = std::sync::Mutex::new(Rng::new(u64::from(std::process::id())));
    start(
        "a changing Service",
        Box::new(move |counts| {
            let number = rng.lock().unwrap().below(CHANGING);
            counts.others.fetch_add(1, Ordering::Relaxed);
            let text =
                if is_outside { format!("198.51.100.{}", number + 1) } else { format!("10.96.0.{}", number + 1) };
            let ip: IpAddr = text.parse().unwrap();
            // The Service may be gone, or have no endpoint.
            let to = SocketAddr::new(ip, 80);
            let _answer = (ask_tcp(to, Duration::from_millis(100)), ask_udp(to, Duration::from_millis(100)));
            Ok(())
        }),
        5,
    );
    io::copy(&mut io::stdin(), &mut io::sink()).unwrap();
    is_over.store(true, Ordering::Relaxed);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
    println!("{} {} {} {}", of(&counts.calls), of(&counts.failed), of(&counts.broken), of(&counts.others));
    println!("{:?}", errors.lock().unwrap());
}
