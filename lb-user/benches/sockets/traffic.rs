//! The traffic of the bench: servers in processes of their own, and loops of a client.

use std::{
    fmt,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use lb_lab::traffic::{stay_on, tcp_open};
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with};

/// VIP of a backend on this node's loopback.
pub const VIP: Ipv4Addr = Ipv4Addr::new(10, 97, 0, 1);
/// VIP of a backend on the other node.
pub const VETH_VIP: Ipv4Addr = Ipv4Addr::new(10, 97, 0, 2);
/// Port of the VIPs.
pub const PORT: u16 = 80;
/// A backend on this node.
pub const LOOPBACK: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
/// A backend on the other node.
pub const VETH: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 2);
/// Port of the backends.
pub const TARGET: u16 = 8080;

/// Connections of one variant in one round.
const CONNECTS: u32 = 400;
const UDP_CONNECTS: u32 = 5_000;
const UDP_SOCKETS: u32 = 1_000;

/// The place of the backend.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Topology {
    /// On this node.
    Loopback,
    /// In another network namespace, behind a veth pair: another node.
    Veth,
}

impl fmt::Display for Topology {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Loopback => "loopback",
            Self::Veth => "two nodes",
        })
    }
}

/// The variants that the bench compares with the floor.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum SocketVariant {
    /// A served process that dials the backend itself.
    Miss,
    /// A served process that dials the VIP.
    Vip,
}

/// Medians over the rounds.
pub struct SocketFigures {
    /// Nanoseconds of the floor.
    pub floor: f64,
    rounds: Vec<[f64; 3]>,
}

impl SocketFigures {
    fn new(rounds: Vec<[f64; 3]>) -> Self {
        Self { floor: median(rounds.iter().map(|[floor, ..]| *floor)), rounds }
    }

    /// Time of a variant as a ratio to the floor.
    pub fn ratio(&self, variant: SocketVariant) -> f64 {
        median(
            self.rounds
                .iter()
                .map(|[floor, miss, vip]| if variant == SocketVariant::Vip { vip / floor } else { miss / floor }),
        )
    }

    /// Nanoseconds of a variant above the floor.
    pub fn added(&self, variant: SocketVariant) -> f64 {
        median(
            self.rounds
                .iter()
                .map(|[floor, miss, vip]| if variant == SocketVariant::Vip { vip - floor } else { miss - floor }),
        )
    }
}

/// The median.
pub fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn run(program: &str, arguments: &[&str]) {
    let status = Command::new(program).args(arguments).status().expect("the command is there");
    assert!(status.success(), "{program} {arguments:?}");
}

/// Adds the addresses of this node.
pub fn addresses() {
    run("ip", &["link", "set", "lo", "up"]);
    run("ip", &["addr", "add", "10.0.0.1/32", "dev", "lo"]);
    run("ip", &["route", "add", "local", "10.2.0.0/16", "dev", "lo"]);
}

/// Waits for its end of the veth pair, and serves there. `$0` is this program.
const SERVER_BEHIND_VETH: &str = "ip link set lo up
while ! ip addr add 10.1.0.2/24 dev there 2>/dev/null; do sleep 0.05; done
ip link set there up
exec \"$0\" --server 10.1.0.2:8080";

/// The server processes; killed when dropped.
pub struct SocketServers(Vec<Child>);

impl SocketServers {
    /// Starts one on this node, and one on another behind a veth pair.
    pub fn start() -> Self {
        let exe = std::env::current_exe().expect("this program");
        let here =
            Command::new(&exe).args(["--server", &format!("{LOOPBACK}:{TARGET}")]).stdout(Stdio::piped()).spawn();
        let there = Command::new("unshare")
            .args(["--net", "sh", "-c", SERVER_BEHIND_VETH])
            .arg(&exe)
            .stdout(Stdio::piped())
            .spawn();
        let anywhere = Command::new(&exe).args(["--server", crate::choice::ANYWHERE]).stdout(Stdio::piped()).spawn();
        let mut children = vec![anywhere.expect("a server"), here.expect("a server"), there.expect("a server")];
        let there = children.last().map(|child| child.id().to_string()).unwrap_or_default();
        // The process is in its own namespace once its namespace differs from ours.
        let ours = std::fs::read_link("/proc/self/ns/net").expect("/proc");
        while std::fs::read_link(format!("/proc/{there}/ns/net")).expect("/proc") == ours {
            thread::sleep(Duration::from_millis(5));
        }
        run("ip", &["link", "add", "here", "type", "veth", "peer", "name", "there", "netns", &there]);
        run("ip", &["addr", "add", "10.1.0.1/24", "dev", "here"]);
        run("ip", &["link", "set", "here", "up"]);
        for child in &mut children {
            let mut ready = [0; 1];
            child.stdout.as_mut().expect("a pipe").read_exact(&mut ready).expect("the server says that it listens");
        }
        Self(children)
    }
}

impl Drop for SocketServers {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ended = child.kill();
            let _ended = child.wait();
        }
    }
}

/// Runs a server. The first byte of a connection selects: none closes it, others ask for an echo or begin a stream.
pub fn serve(address: &str) -> ! {
    stay_on(1);
    let listener = TcpListener::bind(address).expect("a free port");
    // A client that outruns this server for a moment must not wait a second for a dropped SYN.
    rustix::net::listen(&listener, 4096).expect("a longer queue");
    let _udp = std::net::UdpSocket::bind(address).expect("a free port");
    print!("r");
    std::io::stdout().flush().expect("a pipe");
    loop {
        let Ok((mut stream, _)) = listener.accept() else { continue };
        let mut first = [0; 1];
        if !matches!(stream.read(&mut first), Ok(1)) {
            continue;
        }
        let _nodelay = stream.set_nodelay(true);
        if first == *b"e" {
            while stream.write_all(&first).is_ok() && matches!(stream.read(&mut first), Ok(1)) {}
        } else {
            let mut buffer = vec![0; 1 << 18];
            while matches!(stream.read(&mut buffer), Ok(1..)) {}
        }
    }
}

fn target(variant: Option<SocketVariant>, topology: Topology) -> SocketAddr {
    match (variant, topology) {
        (Some(SocketVariant::Vip), Topology::Loopback) => (VIP, PORT).into(),
        (Some(SocketVariant::Vip), Topology::Veth) => (VETH_VIP, PORT).into(),
        (_, Topology::Loopback) => (LOOPBACK, TARGET).into(),
        (_, Topology::Veth) => (VETH, TARGET).into(),
    }
}

const VARIANTS: [Option<SocketVariant>; 3] = [None, Some(SocketVariant::Miss), Some(SocketVariant::Vip)];

fn rounds(count: usize, join: impl Fn(bool), measure: impl Fn(Option<SocketVariant>) -> f64) -> SocketFigures {
    let mut all = Vec::new();
    // The first round warms up. The order rotates, so that no testbed always follows the same one.
    for round in 0..=count {
        let mut times = [0.0; 3];
        for step in 0..VARIANTS.len() {
            let index = (round + step) % VARIANTS.len();
            let (Some(variant), Some(time)) = (VARIANTS.get(index), times.get_mut(index)) else { continue };
            join(variant.is_some());
            *time = measure(*variant);
        }
        if round > 0 {
            all.push(times);
        }
    }
    SocketFigures::new(all)
}

/// Nanoseconds of a connect and close.
pub fn tcp_connects(topology: Topology, count: usize, join: impl Fn(bool)) -> SocketFigures {
    rounds(count, join, |variant| {
        let to = target(variant, topology);
        let start = Instant::now();
        for _ in 0..CONNECTS {
            tcp_connect(to);
        }
        nanoseconds(start, CONNECTS)
    })
}

/// Opens a connection and ends it by a reset, which leaves no port in TIME_WAIT.
pub fn tcp_connect(to: SocketAddr) {
    drop(tcp_open(to));
}

/// Nanoseconds of a connect() of one UDP socket.
pub fn udp_connects(count: usize, join: impl Fn(bool)) -> SocketFigures {
    rounds(count, join, |variant| {
        let to = target(variant, Topology::Loopback);
        let socket = udp();
        let start = Instant::now();
        for _ in 0..UDP_CONNECTS {
            connect(&socket, &to).expect("connected");
        }
        nanoseconds(start, UDP_CONNECTS)
    })
}

/// Nanoseconds of a new UDP socket with connect() and close: a DNS look-up without its datagrams.
pub fn new_udp_sockets(count: usize, join: impl Fn(bool)) -> SocketFigures {
    rounds(count, join, |variant| {
        let to = target(variant, Topology::Loopback);
        let start = Instant::now();
        for _ in 0..UDP_SOCKETS {
            udp_connect(to);
        }
        nanoseconds(start, UDP_SOCKETS)
    })
}

/// Opens, connects and closes a UDP socket.
pub fn udp_connect(to: SocketAddr) {
    connect(udp(), &to).expect("connected");
}

/// A UDP socket.
pub fn udp() -> std::os::fd::OwnedFd {
    socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None).expect("a socket")
}

fn nanoseconds(start: Instant, count: u32) -> f64 {
    start.elapsed().as_secs_f64() * 1e9 / f64::from(count)
}

/// Ratio of the time of a request and response through a VIP.
pub fn request_response(count: usize) -> f64 {
    pairs(count, |to| {
        let mut stream = TcpStream::connect(to).expect("a connection");
        stream.set_nodelay(true).expect("TCP_NODELAY");
        let mut byte = *b"e";
        let start = Instant::now();
        for _ in 0..5_000 {
            stream.write_all(&byte).expect("written");
            stream.read_exact(&mut byte).expect("an echo");
        }
        start.elapsed().as_secs_f64()
    })
}

/// Ratio of the time to send a stream through a VIP.
pub fn stream(count: usize) -> f64 {
    pairs(count, |to| {
        let mut stream = TcpStream::connect(to).expect("a connection");
        let buffer = vec![b's'; 1 << 18];
        let start = Instant::now();
        for _ in 0..600 {
            stream.write_all(&buffer).expect("written");
        }
        start.elapsed().as_secs_f64()
    })
}

fn pairs(count: usize, measure: impl Fn(SocketAddr) -> f64) -> f64 {
    let (direct, vip) = (target(None, Topology::Loopback), target(Some(SocketVariant::Vip), Topology::Loopback));
    let ratios = (0..=count).map(|round| {
        if round % 2 == 0 {
            let (a, b) = (measure(direct), measure(vip));
            b / a
        } else {
            let (b, a) = (measure(vip), measure(direct));
            b / a
        }
    });
    median(ratios.skip(1))
}
