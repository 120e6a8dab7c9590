//! Clients and servers on plain sockets, one call of the kernel for one word here.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, TcpListener, UdpSocket},
    os::fd::{AsFd, OwnedFd},
    thread,
    time::Duration,
};

use rustix::{
    io::{Errno, Result},
    net::{
        AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, connect, getpeername, recvfrom, sendto,
        socket_with,
    },
};

use crate::node::is_slow;

/// Parses an address and port.
pub fn at(text: &str) -> SocketAddr {
    text.parse().expect("an address and port")
}

/// The same destination as an IPv6 socket names it.
pub fn mapped(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) => SocketAddr::V6(SocketAddrV6::new(ip.to_ipv6_mapped(), address.port(), 0, 0)),
        IpAddr::V6(_) => address,
    }
}

/// A TCP server that tells each client which address it reached and from where it came.
pub fn tcp_server(address: &str) {
    let listener = TcpListener::bind(address).expect("a free port");
    let name = address.to_owned();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            use std::io::Write as _;
            let mut stream = stream;
            let peer = stream.peer_addr().map(|peer| peer.ip().to_string()).unwrap_or_default();
            // The client may be gone already.
            let _gone = stream.write_all(format!("{name} {peer}").as_bytes());
        }
    });
}

/// A UDP server that answers each datagram with the address that it listens on.
pub fn udp_server(address: &str) {
    let socket = UdpSocket::bind(address).expect("a free port");
    let name = address.to_owned();
    thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, client)) = socket.recv_from(&mut buffer) {
            let _gone = socket.send_to(name.as_bytes(), client);
        }
    });
}

/// A TCP server of one client: what it was sent, as [`tcp_send`] sums it up.
pub fn tcp_digest(address: SocketAddr) -> thread::JoinHandle<(u64, u64)> {
    let listener = TcpListener::bind(address).expect("a free port");
    thread::spawn(move || {
        use std::io::Read as _;
        let (mut stream, _) = listener.accept().expect("a client");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a time-out");
        let (mut digest, mut buffer) = ((0, 0), vec![0; 1 << 18]);
        loop {
            let len = stream.read(&mut buffer).expect("the stream goes on or ends");
            if len == 0 {
                return digest;
            }
            sum_up(&mut digest, buffer.get(..len).unwrap_or_default());
        }
    })
}

/// Sends a stream of bytes that do not repeat soon, and sums it up: how many, and a number that depends on their order.
pub fn tcp_send(to: SocketAddr, bytes: usize) -> (u64, u64) {
    use std::io::Write as _;
    let mut stream = std::net::TcpStream::connect_timeout(&to, Duration::from_secs(5)).expect("a connection");
    stream.set_write_timeout(Some(Duration::from_secs(20))).expect("a time-out");
    let (mut digest, mut left, mut state) = ((0, 0), bytes, 1_u64);
    while left > 0 {
        let words = (0..1 << 13).flat_map(|_| {
            // Knuth's generator, of which the high half is good.
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            u32::to_ne_bytes((state >> 32) as u32)
        });
        let part: Vec<u8> = words.take(left).collect();
        sum_up(&mut digest, &part);
        stream.write_all(&part).expect("sent");
        left -= part.len();
    }
    digest
}

fn sum_up((count, sum): &mut (u64, u64), bytes: &[u8]) {
    for byte in bytes {
        *count += 1;
        *sum = sum.wrapping_mul(1_099_511_628_211).wrapping_add(u64::from(*byte));
    }
}

/// A client's socket.
pub struct Client {
    fd: OwnedFd,
}

impl Client {
    fn new(v6: bool, socket_type: SocketType) -> Self {
        let family = if v6 { AddressFamily::INET6 } else { AddressFamily::INET };
        let fd = socket_with(family, socket_type, SocketFlags::CLOEXEC, None).expect("a socket");
        let limit = Duration::from_secs(if is_slow() { 40 } else { 5 });
        rustix::net::sockopt::set_socket_timeout(&fd, rustix::net::sockopt::Timeout::Recv, Some(limit))
            .expect("a time-out");
        Self { fd }
    }

    /// A TCP socket of the destination's family.
    pub fn tcp(destination: SocketAddr) -> Self {
        Self::new(destination.is_ipv6(), SocketType::STREAM)
    }

    /// A UDP socket of the destination's family.
    pub fn udp(destination: SocketAddr) -> Self {
        Self::new(destination.is_ipv6(), SocketType::DGRAM)
    }

    pub fn bind(&self, address: &str) {
        bind(&self.fd, &at(address)).expect("one of our addresses");
    }

    pub fn connect(&self, to: SocketAddr) -> Result<()> {
        connect(&self.fd, &to)
    }

    pub fn disconnect(&self) {
        rustix::net::connect_unspec(&self.fd).expect("connect(AF_UNSPEC)");
    }

    pub fn peer(&self) -> Option<SocketAddr> {
        address(getpeername(&self.fd).ok()?)
    }

    pub fn send_to(&self, to: SocketAddr) -> Result<()> {
        sendto(&self.fd, b"hello", SendFlags::empty(), &to).map(drop)
    }

    pub fn send(&self) -> Result<()> {
        rustix::net::send(&self.fd, b"hello", SendFlags::NOSIGNAL).map(drop)
    }

    /// What came, and from whom as the kernel tells it.
    pub fn receive(&self) -> (String, Option<SocketAddr>) {
        self.try_receive().expect("an answer in time")
    }

    /// The same of a socket that may be ended.
    pub fn try_receive(&self) -> Result<(String, Option<SocketAddr>)> {
        let mut buffer = [0; 128];
        let (len, _, from) = recvfrom(&self.fd, &mut buffer[..], RecvFlags::empty())?;
        let text = String::from_utf8_lossy(buffer.get(..len).unwrap_or_default()).into_owned();
        Ok((text, from.and_then(|from| address(Some(from)))))
    }

    /// One question and its answer.
    pub fn ask(&self, to: SocketAddr) -> (String, Option<SocketAddr>) {
        self.send_to(to).expect("a datagram sent");
        self.receive()
    }

    pub fn fd(&self) -> impl AsFd + '_ {
        &self.fd
    }
}

fn address(any: Option<rustix::net::SocketAddrAny>) -> Option<SocketAddr> {
    SocketAddr::try_from(any?).ok()
}

/// Connects a new TCP socket; which server answered and where it saw the client.
pub fn tcp_ask(to: SocketAddr) -> Result<(String, String)> {
    let client = Client::tcp(to);
    client.connect(to)?;
    let (answer, _) = client.receive();
    let (server, seen) = answer.split_once(' ').unwrap_or((&answer, ""));
    Ok((server.to_owned(), seen.to_owned()))
}

/// The error of a refused call: what was decided, or EPERM where the kernel cannot say more.
pub fn is_refusal(result: Result<()>, wanted: Errno) {
    let error = result.expect_err("the call is refused");
    if error == Errno::PERM && !kernel_has_set_retval() {
        println!("LACKS bpf_set_retval: a refused call fails with EPERM");
        return;
    }
    assert_eq!(error, wanted);
}

/// Whether the kernel tells which network namespace is the node's own (SO_NETNS_COOKIE). Elsewhere the programs take the
/// first one, which a story's is not.
pub fn kernel_tells_netns() -> bool {
    let tells = lb_kernel::netns::cookie().is_ok();
    if !tells {
        println!("LACKS SO_NETNS_COOKIE: what concerns the node's own network namespace is not looked at");
    }
    tells
}

fn kernel_has_set_retval() -> bool {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy().into_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(5), Some(18))
}

/// The unspecified address of a destination's family.
pub fn any(destination: SocketAddr) -> SocketAddr {
    let ip = if destination.is_ipv4() { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) };
    SocketAddr::new(ip, 0)
}
