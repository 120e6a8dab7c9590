//! A small HTTP server for probes and scrapes. Clients may be slow or hostile: a connection carries one request and has
//! a deadline. Above the limit, a new connection ends one of the peer that has the most.

use std::{
    cmp::Reverse,
    collections::VecDeque,
    convert::Infallible,
    future::pending,
    io::{self, ErrorKind},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result};
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{ALLOW, CONTENT_TYPE, HeaderName, HeaderValue, X_CONTENT_TYPE_OPTIONS},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use lb_common::Proto;
use rustix::{io::Errno, net::sockopt::set_ipv6_v6only};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    task::{AbortHandle, JoinSet, yield_now},
    time::{sleep, timeout},
};
use tracing::{debug, info, warn};

use lb_kernel::sock_diag::bound_sockets;

/// Interval of tries to bind a port.
pub(crate) const RETRY: Duration = Duration::from_secs(5);
/// Pause after a failed accept: without free descriptors, the next one fails too.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);
/// Connections that wait to be accepted.
const BACKLOG: u32 = 128;
/// Maximum size of a request line with its headers, in bytes.
const MAX_HEAD: usize = 8 * 1024;

/// Address to listen at.
#[derive(Clone, Copy, Debug)]
pub struct BindAddress {
    /// IP address and port.
    pub address: SocketAddr,
    /// Flag that sets it, for messages.
    pub flag: &'static str,
}

/// Limits of one server.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ConnectionLimits {
    /// Maximum number of connections.
    pub(crate) connections: usize,
    /// Maximum lifetime of a connection.
    pub(crate) deadline: Duration,
}

/// Limits of all servers: the default timeout of kubelet and Prometheus is 10 s at most, and a node has few of them.
pub(crate) const LIMITS: ConnectionLimits = ConnectionLimits { connections: 32, deadline: Duration::from_secs(10) };

/// A response.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) content_type: &'static str,
    /// Additional header.
    pub(crate) header: Option<(HeaderName, HeaderValue)>,
    pub(crate) body: String,
}

impl Reply {
    pub(crate) fn text(status: StatusCode, body: &str) -> Self {
        Self { status, content_type: "text/plain; charset=utf-8", header: None, body: body.to_owned() }
    }

    pub(crate) fn not_found() -> Self {
        Self::text(StatusCode::NOT_FOUND, "not found\n")
    }
}

/// Binds the addresses, if need be after a wait, and answers GET requests by their path. Dropping the future closes all
/// connections.
pub(crate) async fn serve<A, F>(addresses: Vec<BindAddress>, limits: ConnectionLimits, answer: A) -> Result<()>
where
    A: Fn(String) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Reply> + Send + 'static,
{
    let mut servers = JoinSet::new();
    let is_one_of_several = addresses.len() > 1;
    for address in addresses {
        let answer = answer.clone();
        servers.spawn(async move {
            if is_one_of_several && !has_family(address.address) {
                return pending().await;
            }
            serve_on(listen(address).await, limits, answer).await
        });
    }
    match servers.join_next().await {
        Some(ended) => ended.context("a task")?,
        None => pending().await,
    }
}

/// False if the kernel, or this network namespace, lacks the family of a loopback address.
fn has_family(address: SocketAddr) -> bool {
    let errors = [Errno::AFNOSUPPORT, Errno::ADDRNOTAVAIL].map(|error| Some(error.raw_os_error()));
    match bind_one(SocketAddr::new(address.ip(), 0)) {
        Err(error) => !errors.contains(&error.raw_os_error()),
        Ok(_) => true,
    }
}

/// Answers GET requests by their path. Dropping the future closes all connections.
pub(crate) async fn serve_on<A, F>(listener: TcpListener, limits: ConnectionLimits, answer: A) -> Result<()>
where
    A: Fn(String) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Reply> + Send,
{
    let mut connections = JoinSet::new();
    // The oldest connection first.
    let mut open: VecDeque<Connection> = VecDeque::new();
    loop {
        let (stream, client) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                debug!(?listener, %error, "a connection could not be accepted");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let peer = peer_of(client.ip());
        if open.len() >= limits.connections {
            // Requests that have arrived are read before one connection has to go.
            yield_now().await;
        }
        while connections.try_join_next().is_some() {}
        open.retain(|connection| !connection.task.is_finished());
        if open.len() >= limits.connections {
            let loads: Vec<_> = open.iter().map(Connection::load).collect();
            // The new connection does not wait instead: a client with many connections could lock out the probes.
            if let Some(connection) = choose_victim(&loads, peer).and_then(|index| open.remove(index)) {
                connection.task.abort();
            }
        }
        let answer = answer.clone();
        let has_asked = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&has_asked);
        let task = connections.spawn(async move {
            if timeout(limits.deadline, serve_connection(stream, answer, &asked)).await.is_err() {
                debug!(%client, "closed the connection of a slow client");
            }
        });
        open.push_back(Connection { peer, has_asked, task });
    }
}

/// An open connection.
struct Connection {
    peer: IpAddr,
    /// True once a whole request head has arrived.
    has_asked: Arc<AtomicBool>,
    task: AbortHandle,
}

impl Connection {
    fn load(&self) -> (IpAddr, bool) {
        (self.peer, self.has_asked.load(Ordering::Relaxed))
    }
}

/// Returns the address that stands for a client: IPv4 as such, and the /64 network of IPv6, which one host owns as a
/// whole.
fn peer_of(client: IpAddr) -> IpAddr {
    match client.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & (!0 << 64)).into(),
        address => address,
    }
}

/// Chooses the connection that makes room for a new one of `newcomer`. Connections are listed from the oldest, with
/// their peer, and true for those with a whole request.
///
/// An answer takes a moment, so a connection without a request goes first: the oldest of the peer with the most
/// connections. A peer with fewer connections than the newcomer loses none to it.
fn choose_victim(open: &[(IpAddr, bool)], newcomer: IpAddr) -> Option<usize> {
    let count = |peer: IpAddr| open.iter().filter(|(other, _)| *other == peer).count() + usize::from(peer == newcomer);
    let own = count(newcomer);
    let silent = open.iter().enumerate().filter(|(_, (peer, has_asked))| !has_asked && count(*peer) >= own);
    // `min_by_key` returns the first of equals, which is the oldest.
    let oldest_silent = silent.min_by_key(|(_, (peer, _))| Reverse(count(*peer)));
    let oldest = || open.iter().enumerate().min_by_key(|(_, (peer, _))| Reverse(count(*peer)));
    oldest_silent.or_else(oldest).map(|(index, _)| index)
}

/// Serves one request; sets `has_asked` when its head has arrived.
async fn serve_connection<A, F>(stream: TcpStream, answer: A, has_asked: &AtomicBool)
where
    A: Fn(String) -> F,
    F: Future<Output = Reply>,
{
    let service = service_fn(async |request: Request<Incoming>| {
        has_asked.store(true, Ordering::Relaxed);
        let reply = match *request.method() {
            Method::GET | Method::HEAD => answer(request.uri().path().to_owned()).await,
            _ => Reply::text(StatusCode::METHOD_NOT_ALLOWED, "use GET\n"),
        };
        let mut response = Response::builder()
            .status(reply.status)
            .header(CONTENT_TYPE, reply.content_type)
            .header(X_CONTENT_TYPE_OPTIONS, "nosniff");
        if let Some((name, value)) = reply.header {
            response = response.header(name, value);
        }
        if reply.status == StatusCode::METHOD_NOT_ALLOWED {
            response = response.header(ALLOW, "GET, HEAD");
        }
        Ok::<_, Infallible>(response.body(Full::new(Bytes::from(reply.body))).expect("constant headers are valid"))
    });
    let connection =
        http1::Builder::new().keep_alive(false).max_buf_size(MAX_HEAD).serve_connection(TokioIo::new(stream), service);
    // An error means that the client went away or does not speak HTTP.
    let _client_error = connection.await;
}

/// Binds the address, and tries again until that works. The first failure is logged as a warning.
async fn listen(address: BindAddress) -> TcpListener {
    let mut has_failed = false;
    loop {
        match bind(address.address) {
            Ok(listener) => {
                if has_failed {
                    info!(address = %address.address, "the port is free now, and answers");
                }
                return listener;
            }
            Err(error) if !has_failed => {
                has_failed = true;
                warn_unavailable(address, error).await;
            }
            Err(error) => debug!(address = %address.address, %error, "the port is still unavailable"),
        }
        sleep(RETRY).await;
    }
}

/// Binds a listener. As in Go, a wildcard address means both families; 0.0.0.0 is IPv4 alone if the kernel has no IPv6.
fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    if address.ip() != Ipv4Addr::UNSPECIFIED {
        return bind_one(address);
    }
    match bind_one(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), address.port())) {
        Err(error) if error.raw_os_error() == Some(Errno::AFNOSUPPORT.raw_os_error()) => bind_one(address),
        result => result,
    }
}

fn bind_one(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if address.ip() == Ipv6Addr::UNSPECIFIED {
        // The sysctl net.ipv6.bindv6only may say otherwise.
        set_ipv6_v6only(&socket, false)?;
    }
    // Connections of an earlier agent may be in TIME_WAIT.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

async fn warn_unavailable(BindAddress { address, flag }: BindAddress, error: io::Error) {
    if error.kind() != ErrorKind::AddrInUse {
        warn!("nothing answers at {address}: {error}; choose another address with {flag}. The agent keeps trying");
        return;
    }
    let holder = port_holder(address.port()).await;
    warn!(
        "{holder} holds {address}: end it (kube-proxy has the same port), or choose another address with {flag}. \
         Services are served meanwhile, and the agent takes the port once it is free"
    );
}

/// Describes the process that listens on a TCP port, as far as the kernel tells.
pub(crate) async fn port_holder(port: u16) -> String {
    let holder = tokio::task::spawn_blocking(move || find_holder(port)).await.context("a task").flatten();
    holder.unwrap_or_else(|_| "another process".to_owned())
}

fn find_holder(port: u16) -> Result<String> {
    let sockets = bound_sockets(&|proto, other| proto == Proto::Tcp && other == port)?;
    let owner = sockets.into_iter().find_map(|socket| socket.owner).context("no owner was found")?;
    Ok(format!("{} (pid {})", owner.comm, owner.pid))
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        time::Instant,
    };

    use super::*;

    /// Starts a server on a free port of 127.0.0.1.
    async fn start(limits: ConnectionLimits) -> SocketAddr {
        let address = free_port().await;
        start_at(address, limits).await;
        address
    }

    async fn free_port() -> SocketAddr {
        let free = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        free.local_addr().expect("an address")
    }

    async fn start_at(address: SocketAddr, limits: ConnectionLimits) {
        let bind = BindAddress { address, flag: "--test" };
        tokio::spawn(serve(vec![bind], limits, async |path: String| match path.as_str() {
            "/hello" => Reply::text(StatusCode::OK, "hello\n"),
            "/slow" => {
                sleep(Duration::from_millis(200)).await;
                Reply::text(StatusCode::OK, "slow\n")
            }
            _ => Reply::not_found(),
        }));
        let loopback = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), address.port());
        while TcpStream::connect(loopback).await.is_err() {
            sleep(Duration::from_millis(1)).await;
        }
    }

    /// Sends a request and returns all that the server sends back.
    async fn send(address: SocketAddr, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(address).await.expect("a connection");
        // The server may close the connection before it has read everything.
        let _closed = stream.write_all(request).await;
        let mut answer = Vec::new();
        let _reset = stream.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).into_owned()
    }

    #[tokio::test]
    async fn a_connection_has_one_request_and_only_get_and_head_are_answered() {
        let address = start(LIMITS).await;
        let answer =
            send(address, b"GET /hello HTTP/1.1\r\nHost: a\r\n\r\nGET /hello HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\nhello\n"), "{answer}");
        assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{answer}");
        assert!(answer.contains("x-content-type-options: nosniff\r\n"), "{answer}");
        let check = async |request: &str, expected: &str| {
            let answer = send(address, request.as_bytes()).await;
            assert!(answer.starts_with(expected), "{request}: {answer}");
        };
        check("HEAD /hello HTTP/1.0\r\n\r\n", "HTTP/1.0 200").await;
        check("GET /hello?x=1 HTTP/1.0\r\n\r\n", "HTTP/1.0 200").await;
        check("GET /other HTTP/1.0\r\n\r\n", "HTTP/1.0 404").await;
        check("POST /hello HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n", "HTTP/1.1 405").await;
        check("nonsense\r\n\r\n", "HTTP/1.1 400").await;
        check(&format!("GET /{} HTTP/1.0\r\n\r\n", "a".repeat(2 * MAX_HEAD)), "HTTP/1.1 4").await;
    }

    #[tokio::test]
    async fn a_new_client_is_answered_however_many_silent_connections_are_open() {
        let address = start(LIMITS).await;
        let mut silent = Vec::new();
        for _ in 0..200 {
            let mut stream = TcpStream::connect(address).await.expect("a connection");
            stream.write_all(b"GET /hello HTTP/1.1\r\nX").await.expect("room");
            silent.push(stream);
        }
        let start = Instant::now();
        assert!(send(address, b"GET /hello HTTP/1.0\r\n\r\n").await.contains("hello"));
        assert!(start.elapsed() < LIMITS.deadline / 2, "the answer does not wait for a deadline");
    }

    #[test]
    fn a_new_connection_takes_the_place_of_a_silent_one_of_the_peer_with_the_most() {
        let peer = |number: u8| IpAddr::from([192, 0, 2, number]);
        // Each letter is a connection, the oldest first: peer by letter, in capitals if its request has arrived.
        let check = |open: &str, newcomer: char, victim: Option<usize>| {
            let number = |letter: char| peer(letter.to_ascii_lowercase() as u8);
            let loads: Vec<_> = open.chars().map(|letter| (number(letter), letter.is_ascii_uppercase())).collect();
            assert_eq!(choose_victim(&loads, number(newcomer)), victim, "{open} {newcomer}");
        };
        check("", 'a', None);
        check("aaaa", 'b', Some(0));
        check("baaa", 'a', Some(1));
        check("baaa", 'b', Some(1));
        check("BAaa", 'a', Some(2));
        check("bAAA", 'a', Some(1));
        check("AAAb", 'b', Some(3));
        check("AAbb", 'c', Some(2));
        check("AAAA", 'b', Some(0));
        check("abcd", 'e', Some(0));
        check("Abcd", 'e', Some(1));
    }

    #[test]
    fn a_network_of_ipv6_is_one_peer_and_an_ipv4_address_is_one_in_either_form() {
        let peer = |text: &str| peer_of(text.parse().expect("an address")).to_string();
        assert_eq!(peer("192.0.2.1"), "192.0.2.1");
        assert_eq!(peer("::ffff:192.0.2.1"), "192.0.2.1");
        assert_eq!(peer("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
    }

    #[tokio::test]
    async fn a_wildcard_address_answers_in_both_families() {
        if TcpListener::bind("[::1]:0").await.is_err() {
            println!("skipped: no IPv6 loopback");
            return;
        }
        for wildcard in [IpAddr::from(Ipv4Addr::UNSPECIFIED), Ipv6Addr::UNSPECIFIED.into()] {
            let port = free_port().await.port();
            start_at(SocketAddr::new(wildcard, port), LIMITS).await;
            for ip in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
                let answer = send(SocketAddr::new(ip, port), b"GET /hello HTTP/1.0\r\n\r\n").await;
                assert!(answer.ends_with("hello\n"), "{wildcard} at {ip}: {answer}");
            }
        }
    }

    #[tokio::test]
    async fn slow_connections_of_one_peer_do_not_end_the_connection_of_another() {
        let address = start(LIMITS).await;
        let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
        socket.bind("127.0.0.2:0".parse().expect("an address")).expect("a loopback address");
        let mut prober = socket.connect(address).await.expect("a connection");
        prober.write_all(b"GET /hello HTTP/1.0\r\n").await.expect("room");
        let mut silent = Vec::new();
        for _ in 0..100 {
            silent.push(TcpStream::connect(address).await.expect("a connection"));
        }
        // An answer shows that the server has accepted the connections before it.
        assert!(send(address, b"GET /hello HTTP/1.0\r\n\r\n").await.contains("hello"));
        prober.write_all(b"\r\n").await.expect("an open connection");
        let mut answer = String::new();
        prober.read_to_string(&mut answer).await.expect("an open connection");
        assert!(answer.ends_with("hello\n"), "{answer}");
    }

    #[tokio::test]
    async fn a_whole_request_is_answered_however_many_silent_connections_come_after_it() {
        let address = start(LIMITS).await;
        let mut prober = TcpStream::connect(address).await.expect("a connection");
        prober.write_all(b"GET /slow HTTP/1.0\r\n\r\n").await.expect("room");
        let mut silent = Vec::new();
        for _ in 0..100 {
            silent.push(TcpStream::connect(address).await.expect("a connection"));
        }
        let mut answer = String::new();
        prober.read_to_string(&mut answer).await.expect("an open connection");
        assert!(answer.ends_with("slow\n"), "{answer}");
    }

    #[tokio::test]
    async fn a_client_that_takes_too_long_is_cut_off() {
        let address = start(ConnectionLimits { deadline: Duration::from_millis(50), ..LIMITS }).await;
        assert_eq!(send(address, b"GET /hello HTTP/1.1\r\n").await, "");
    }
}
