//! Clients and servers on plain sockets. Each method of a client makes one system call.

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

/// Returns the IPv4-mapped IPv6 form of an address.
pub fn mapped(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) => SocketAddr::V6(SocketAddrV6::new(ip.to_ipv6_mapped(), address.port(), 0, 0)),
        IpAddr::V6(_) => address,
    }
}

/// Starts a TCP server that sends each client the address of the server and the IP of the client.
pub fn tcp_server(address: &str) {
    let listener = TcpListener::bind(address).expect("a free port");
    let name = address.to_owned();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            use std::io::Write as _;
            let mut stream = stream;
            let peer = stream.peer_addr().map(|peer| peer.ip().to_string()).unwrap_or_default();
            // The client may have closed already.
            let _gone = stream.write_all(format!("{name} {peer}").as_bytes());
        }
    });
}

/// Starts a UDP server that answers each datagram with its own address.
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

/// Starts a TCP server for one client that returns the digest of the received stream, as [`tcp_send`] does.
pub fn tcp_digest(address: SocketAddr) -> thread::JoinHandle<(u64, u64)> {
    let listener = TcpListener::bind(address).expect("a free port");
    thread::spawn(move || {
        use std::io::Read as _;
        let (mut stream, _) = listener.accept().expect("a client");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a time-out");
        let (mut digest, mut buffer) = ((0, 0), vec![0; 1 << 18]);
        loop {
            let len = stream.read(&mut buffer).expect("data or the end of the stream");
            if len == 0 {
                return digest;
            }
            update_digest(&mut digest, buffer.get(..len).unwrap_or_default());
        }
    })
}

/// Sends a pseudo-random stream and returns its digest: length, and a hash of its bytes.
pub fn tcp_send(to: SocketAddr, bytes: usize) -> (u64, u64) {
    use std::io::Write as _;
    let mut stream = std::net::TcpStream::connect_timeout(&to, Duration::from_secs(5)).expect("a connection");
    stream.set_write_timeout(Some(Duration::from_secs(20))).expect("a time-out");
    let (mut digest, mut left, mut state) = ((0, 0), bytes, 1_u64);
    while left > 0 {
        let words = (0..1 << 13).flat_map(|_| {
            // Knuth's generator; the high half is the most random.
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            u32::to_ne_bytes((state >> 32) as u32)
        });
        let part: Vec<u8> = words.take(left).collect();
        update_digest(&mut digest, &part);
        stream.write_all(&part).expect("sent");
        left -= part.len();
    }
    digest
}

fn update_digest((count, sum): &mut (u64, u64), bytes: &[u8]) {
    for byte in bytes {
        *count += 1;
        *sum = sum.wrapping_mul(1_099_511_628_211).wrapping_add(u64::from(*byte));
    }
}

/// The socket of a client.
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

    /// Opens a TCP socket of the destination's family.
    pub fn tcp(destination: SocketAddr) -> Self {
        Self::new(destination.is_ipv6(), SocketType::STREAM)
    }

    /// Opens a UDP socket of the destination's family.
    pub fn udp(destination: SocketAddr) -> Self {
        Self::new(destination.is_ipv6(), SocketType::DGRAM)
    }

    pub fn bind(&self, address: &str) {
        bind(&self.fd, &at(address)).expect("an address of this node");
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

    /// Sends a datagram of 1,400 octets.
    pub fn send_large(&self) -> Result<()> {
        rustix::net::send(&self.fd, &[0; 1400], SendFlags::NOSIGNAL).map(drop)
    }

    /// Receives a message. Returns its text and the source address from recvfrom.
    pub fn receive(&self) -> (String, Option<SocketAddr>) {
        self.try_receive().expect("an answer in time")
    }

    /// Receives as [`Self::receive`], from a socket that may have been ended.
    pub fn try_receive(&self) -> Result<(String, Option<SocketAddr>)> {
        let mut buffer = [0; 128];
        let (len, _, from) = recvfrom(&self.fd, &mut buffer[..], RecvFlags::empty())?;
        let text = String::from_utf8_lossy(buffer.get(..len).unwrap_or_default()).into_owned();
        Ok((text, from.and_then(|from| address(Some(from)))))
    }

    /// Sends a datagram and receives the answer.
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

/// Connects a new TCP socket. Returns the address of the server and the client IP that it saw.
pub fn tcp_ask(to: SocketAddr) -> Result<(String, String)> {
    let client = Client::tcp(to);
    client.connect(to)?;
    let (answer, _) = client.receive();
    let (server, seen) = answer.split_once(' ').unwrap_or((&answer, ""));
    Ok((server.to_owned(), seen.to_owned()))
}

/// Asserts that a call was refused with this error, or with EPERM where the kernel lacks bpf_set_retval.
pub fn assert_refused(result: Result<()>, wanted: Errno) {
    let error = result.expect_err("the call is refused");
    if error == Errno::PERM && !kernel_has_set_retval() {
        println!("LACKS bpf_set_retval: a refused call fails with EPERM");
        return;
    }
    assert_eq!(error, wanted);
}

/// True if the kernel has SO_NETNS_COOKIE. Without it the programs take the initial network namespace for the node's,
/// which a story does not run in.
pub fn has_netns_cookie() -> bool {
    let has_cookie = lb_kernel::netns::cookie().is_ok();
    if !has_cookie {
        println!("LACKS SO_NETNS_COOKIE: checks of the node's own network namespace are skipped");
    }
    has_cookie
}

/// True if the kernel tells a program of a look-up of sockets by which link the packet came.
pub fn has_ingress_ifindex() -> bool {
    let has_field = kernel_is_since(5, 17);
    if !has_field {
        println!("LACKS the link of a packet in look-ups of sockets: a pod must send a packet to a cluster IP first");
    }
    has_field
}

fn kernel_has_set_retval() -> bool {
    kernel_is_since(5, 18)
}

/// True if the kernel has this version, or a later one.
pub fn kernel_is_since(major: u32, minor: u32) -> bool {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy().into_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(major), Some(minor))
}

/// Returns the unspecified address of a destination's family.
pub fn any(destination: SocketAddr) -> SocketAddr {
    let ip = if destination.is_ipv4() { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) };
    SocketAddr::new(ip, 0)
}
