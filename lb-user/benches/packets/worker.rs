//! The processes that make the traffic, each in a namespace: clients on one CPU, servers on the other.
//!
//! A worker reads one command a line, and answers each with a line of numbers.

use std::{
    fs,
    io::{BufRead as _, BufReader, IoSlice, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use lb_lab::{
    LabNamespace,
    traffic::{stay_on, tcp_open},
};
use rustix::{
    net::{MMsgHdr, SendAncillaryBuffer, SendFlags, sendmmsg, sockopt},
    time::{ClockId, clock_gettime},
};

/// Limit for a command.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Datagrams that one system call sends.
const BATCH: usize = 64;
/// Payload of a datagram, the size of a DNS query.
const PAYLOAD: [u8; 64] = [b'q'; 64];
/// Pause of the server between two polls of its sockets.
const POLL_PAUSE: Duration = Duration::from_millis(1);
/// Flows of a flood.
const FLOWS: usize = 16;

/// A worker process; killed when dropped.
struct Worker {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Worker {
    fn start(net: &LabNamespace, arguments: &[&str]) -> Self {
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        let mut child = net.spawn(command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()));
        let (stdin, stdout) = (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
        let mut worker = Self { child, stdin, stdout: BufReader::new(stdout) };
        worker.answer();
        worker
    }

    fn ask<const N: usize>(&mut self, question: &str) -> [f64; N] {
        writeln!(self.stdin, "{question}").expect("the worker lives");
        let answer = self.answer();
        let numbers: Vec<f64> = answer.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        numbers.try_into().unwrap_or_else(|_| panic!("{question}: {answer:?} is no answer"))
    }

    /// Moves it into a cgroup, to which its new sockets belong.
    fn join(&self, cgroup: &Path) {
        fs::write(cgroup.join("cgroup.procs"), self.child.id().to_string()).expect("joining a cgroup");
    }

    /// Reads the next line; kills the worker after the limit.
    fn answer(&mut self) -> String {
        let pid = rustix::process::Pid::from_child(&self.child);
        let (in_time, waits) = mpsc::channel::<()>();
        thread::scope(|scope| {
            scope.spawn(move || {
                if waits.recv_timeout(TIMEOUT) == Err(RecvTimeoutError::Timeout) {
                    let _ended = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
                }
            });
            let mut line = String::new();
            let read = self.stdout.read_line(&mut line);
            drop(in_time);
            assert!(read.is_ok_and(|len| len > 0), "a worker has failed, or was not done within {TIMEOUT:?}");
            line
        })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _ended = self.child.wait();
    }
}

/// A client.
pub struct ClientWorker(Worker);

/// The cost of some traffic.
#[derive(Clone, Copy)]
pub struct TrafficCost {
    /// Connections, bytes or datagrams.
    pub amount: f64,
    /// Elapsed time.
    pub seconds: f64,
    /// CPU time of the client and of ksoftirqd, in seconds.
    pub cpu: f64,
}

impl ClientWorker {
    /// Starts it in a namespace.
    pub fn start(net: &LabNamespace) -> Self {
        Self(Worker::start(net, &["--client"]))
    }

    /// Moves the worker into the cgroup of a node's processes.
    pub fn join(&self, cgroup: &Path) {
        self.0.join(cgroup);
    }

    /// True if the server behind an address has this name.
    pub fn reaches(&mut self, to: SocketAddr, name: SocketAddr) -> bool {
        self.0.ask::<1>(&format!("reaches {to} {name}")) == [1.0]
    }

    /// Opens connections and closes them at once.
    pub fn connects(&mut self, to: SocketAddr, count: u32) -> TrafficCost {
        self.cost(&format!("connects {to} {count}"))
    }

    /// Sends a stream until the server acknowledges all of it.
    pub fn stream(&mut self, to: SocketAddr, time: Duration) -> TrafficCost {
        self.cost(&format!("stream {to} {}", time.as_millis()))
    }

    /// Sends datagrams as fast as it can.
    pub fn flood(&mut self, to: SocketAddr, time: Duration) -> TrafficCost {
        self.cost(&format!("flood {to} {}", time.as_millis()))
    }

    fn cost(&mut self, question: &str) -> TrafficCost {
        let [amount, seconds, cpu] = self.0.ask(question);
        TrafficCost { amount, seconds, cpu }
    }
}

/// A server of TCP and UDP at one address.
pub struct ServerWorker {
    worker: Worker,
    /// Address of the worker, which is its name too.
    pub address: SocketAddr,
}

impl ServerWorker {
    /// Starts it in a namespace.
    pub fn start(net: &LabNamespace, address: SocketAddr) -> Self {
        Self { worker: Worker::start(net, &["--server", &address.to_string()]), address }
    }

    /// Moves the worker into the cgroup of a node's processes.
    pub fn join(&self, cgroup: &Path) {
        self.worker.join(cgroup);
    }

    /// Datagrams that arrived since the last call; waits until no more arrive.
    pub fn arrived(&mut self) -> f64 {
        let [count] = self.worker.ask("arrived");
        count
    }
}

/// Runs as a worker and does not return, if this process was started as one.
pub fn main(arguments: &[String]) {
    match arguments {
        [_, flag] if flag == "--client" => client(),
        [_, flag, address] if flag == "--server" => server(address.parse().expect("an address")),
        _ => {}
    }
}

fn reply(line: &str) {
    println!("{line}");
    // The reader may have ended.
    let _gone = std::io::stdout().flush();
}

fn lines() -> impl Iterator<Item = String> {
    std::io::stdin().lines().map_while(Result::ok)
}

fn client() -> ! {
    stay_on(0);
    reply("ready");
    for line in lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let [what, to, argument] = words.as_slice() else { panic!("{line:?}") };
        let to: SocketAddr = to.parse().expect("an address");
        let number = || argument.parse::<u32>().expect("a number");
        let time = || Duration::from_millis(number().into());
        let cost = match *what {
            "reaches" => {
                reply(&i32::from(name_of(to).is_ok_and(|name| name == *argument)).to_string());
                continue;
            }
            "connects" => connects(to, number()),
            "stream" => stream(to, time()),
            "flood" => flood(to, time()),
            _ => panic!("{line:?}"),
        };
        reply(&format!("{} {} {}", cost.amount, cost.seconds, cost.cpu));
    }
    std::process::exit(0);
}

fn name_of(to: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(1))?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    stream.write_all(b"n")?;
    let mut name = String::new();
    stream.read_to_string(&mut name)?;
    Ok(name)
}

fn connects(to: SocketAddr, count: u32) -> TrafficCost {
    let meter = Meter::start();
    for _ in 0..count {
        drop(tcp_open(to));
    }
    meter.read(count.into())
}

fn stream(to: SocketAddr, time: Duration) -> TrafficCost {
    let mut stream = TcpStream::connect(to).expect("a connection");
    let buffer = vec![b's'; 1 << 18];
    let (meter, mut sent) = (Meter::start(), 0);
    while meter.start.elapsed() < time {
        stream.write_all(&buffer).expect("written");
        sent += buffer.len();
    }
    stream.shutdown(std::net::Shutdown::Write).expect("an open connection");
    let mut end = Vec::new();
    stream.read_to_end(&mut end).expect("the server closes after us");
    meter.read(sent as f64)
}

fn flood(to: SocketAddr, time: Duration) -> TrafficCost {
    let sockets: Vec<UdpSocket> = (0..FLOWS)
        .map(|_| {
            let socket = UdpSocket::bind("0.0.0.0:0").expect("a port");
            socket.connect(to).expect("connected");
            socket
        })
        .collect();
    let payload = [IoSlice::new(&PAYLOAD)];
    let mut nothing: Vec<_> = (0..BATCH).map(|_| SendAncillaryBuffer::default()).collect();
    let mut batch: Vec<_> = nothing.iter_mut().map(|nothing| MMsgHdr::new(&payload, nothing)).collect();
    let (meter, mut sent) = (Meter::start(), 0);
    while meter.start.elapsed() < time {
        for socket in &sockets {
            sent += sendmmsg(socket, &mut batch, SendFlags::empty()).expect("sent");
        }
    }
    meter.read(sent as f64)
}

/// Elapsed time and CPU time since a start.
struct Meter {
    ksoftirqd: Ksoftirqd,
    cpu: f64,
    start: Instant,
}

impl Meter {
    fn start() -> Self {
        let ksoftirqd = Ksoftirqd::find();
        Self { cpu: thread_seconds() + ksoftirqd.seconds(), ksoftirqd, start: Instant::now() }
    }

    fn read(&self, amount: f64) -> TrafficCost {
        let seconds = self.start.elapsed().as_secs_f64();
        TrafficCost { amount, seconds, cpu: thread_seconds() + self.ksoftirqd.seconds() - self.cpu }
    }
}

/// Returns the CPU time of this thread. It includes the kernel's work on packets sent over veth, which runs in the
/// context of the thread, unless the kernel accounts for interrupts (CONFIG_IRQ_TIME_ACCOUNTING).
fn thread_seconds() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// The thread ksoftirqd of the clients' CPU, which processes packets under load.
struct Ksoftirqd(String);

impl Ksoftirqd {
    fn find() -> Self {
        let processes = fs::read_dir("/proc").expect("/proc").flatten();
        let is_ksoftirqd =
            |path: &Path| fs::read_to_string(path.join("comm")).is_ok_and(|name| name.trim() == "ksoftirqd/0");
        let path =
            processes.map(|process| process.path()).find(|path| is_ksoftirqd(path)).expect("the kernel's own thread");
        Self(path.join("schedstat").to_string_lossy().into_owned())
    }

    fn seconds(&self) -> f64 {
        let text = fs::read_to_string(&self.0).expect("the kernel counts");
        let nanoseconds: Option<f64> = text.split(' ').next().and_then(|word| word.parse().ok());
        nanoseconds.expect("nanoseconds come first") / 1e9
    }
}

fn server(address: SocketAddr) -> ! {
    stay_on(1);
    let listener = TcpListener::bind(address).expect("a free port");
    // A client that outruns this server for a moment must not wait a second for a dropped SYN.
    rustix::net::listen(&listener, 4096).expect("a longer queue");
    let socket = UdpSocket::bind(address).expect("a free port");
    // Large enough for the datagrams that arrive while this process waits for its CPU.
    sockopt::set_socket_recv_buffer_size_force(&socket, 1 << 27).expect("SO_RCVBUFFORCE");
    // The server polls, so that no packet pays for a wake-up on another CPU: in a virtual machine that can
    // cost as much as the rest of its route.
    listener.set_nonblocking(true).and_then(|()| socket.set_nonblocking(true)).expect("sockets");
    let count = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&count);
    thread::spawn(move || {
        let mut buffer = [0; PAYLOAD.len()];
        loop {
            while socket.recv(&mut buffer).is_ok() {
                counter.fetch_add(1, Ordering::Relaxed);
            }
            thread::sleep(POLL_PAUSE);
        }
    });
    thread::spawn(move || {
        loop {
            while let Ok((stream, _)) = listener.accept() {
                serve(stream, &address.to_string());
            }
            thread::sleep(POLL_PAUSE);
        }
    });
    reply("ready");
    let mut reported = 0;
    for _ in lines() {
        let mut arrived = count.load(Ordering::Relaxed);
        loop {
            thread::sleep(Duration::from_millis(50));
            let now = count.load(Ordering::Relaxed);
            if now == arrived {
                break;
            }
            arrived = now;
        }
        reply(&(arrived - reported).to_string());
        reported = arrived;
    }
    std::process::exit(0);
}

/// Serves a connection. Its first byte selects: none closes it, others ask for the name or begin a stream to discard.
fn serve(mut stream: TcpStream, name: &str) {
    let mut first = [0; 1];
    if !matches!(stream.read(&mut first), Ok(1)) {
        return;
    }
    if first == *b"n" {
        // The client may have ended.
        let _gone = stream.write_all(name.as_bytes());
        return;
    }
    let mut buffer = vec![0; 1 << 18];
    while matches!(stream.read(&mut buffer), Ok(1..)) {}
}
