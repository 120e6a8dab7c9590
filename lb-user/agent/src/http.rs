//! Answers to HTTP on one port, for probes and scrapes. Whoever asks may be slow or hostile: each connection has one
//! request and a deadline, and there are few of them, of which a new one ends the oldest.

use std::{
    collections::VecDeque,
    convert::Infallible,
    io::{self, ErrorKind},
    net::SocketAddr,
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
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{sleep, timeout},
};
use tracing::{debug, info, warn};

use lb_kernel::sock_diag::bound_sockets;

/// How often a port is tried that cannot be had.
pub const RETRY: Duration = Duration::from_secs(5);
/// After an accept that failed, as it does without descriptors: nothing is gained by trying at once.
const PAUSE: Duration = Duration::from_secs(1);
/// The most that a request line and its headers may take.
const HEAD: usize = 8 * 1024;

/// Where to listen.
#[derive(Clone, Copy, Debug)]
pub struct Port {
    /// Address and port.
    pub address: SocketAddr,
    /// The flag that chose it.
    pub flag: &'static str,
}

/// What clients may cost.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at a time.
    pub connections: usize,
    /// From the first byte of a connection to its last.
    pub deadline: Duration,
}

/// kubelet and Prometheus wait no longer than ten seconds by default, and there are few of them.
pub const LIMITS: Limits = Limits { connections: 32, deadline: Duration::from_secs(10) };

/// An answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reply {
    /// 200, and others.
    pub status: StatusCode,
    /// What the body is.
    pub content_type: &'static str,
    /// Another header.
    pub header: Option<(HeaderName, HeaderValue)>,
    /// The body.
    pub body: String,
}

impl Reply {
    /// A text for people.
    #[must_use]
    pub fn text(status: StatusCode, body: &str) -> Self {
        Self { status, content_type: "text/plain; charset=utf-8", header: None, body: body.to_owned() }
    }

    /// There is nothing of that path.
    #[must_use]
    pub fn not_found() -> Self {
        Self::text(StatusCode::NOT_FOUND, "not found\n")
    }
}

/// Listens as soon as the port can be had, and answers GETs by their path until it is dropped, with all connections.
pub async fn serve<A, F>(port: Port, limits: Limits, answer: A) -> Result<()>
where
    A: Fn(String) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Reply> + Send,
{
    serve_on(listen(port).await, limits, answer).await
}

/// Answers GETs by their path until it is dropped, with all connections.
pub async fn serve_on<A, F>(listener: TcpListener, limits: Limits, answer: A) -> Result<()>
where
    A: Fn(String) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Reply> + Send,
{
    let mut connections = JoinSet::new();
    // The oldest first.
    let mut open = VecDeque::new();
    loop {
        let (stream, client) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                debug!(?listener, %error, "a connection could not be accepted");
                sleep(PAUSE).await;
                continue;
            }
        };
        while connections.try_join_next().is_some() {}
        open.retain(|connection: &tokio::task::AbortHandle| !connection.is_finished());
        // An answer takes a moment: the oldest of so many is one that does not ask, or does not read. To let the new one
        // wait instead would leave probes to the mercy of whoever opens connections.
        if open.len() >= limits.connections
            && let Some(oldest) = open.pop_front()
        {
            oldest.abort();
        }
        let answer = answer.clone();
        open.push_back(connections.spawn(async move {
            if timeout(limits.deadline, converse(stream, answer)).await.is_err() {
                debug!(%client, "a client took too long");
            }
        }));
    }
}

/// One request and its answer.
async fn converse<A, F>(stream: TcpStream, answer: A)
where
    A: Fn(String) -> F,
    F: Future<Output = Reply>,
{
    let service = service_fn(async |request: Request<Incoming>| {
        let reply = match *request.method() {
            Method::GET | Method::HEAD => answer(request.uri().path().to_owned()).await,
            _ => Reply::text(StatusCode::METHOD_NOT_ALLOWED, "only GET is answered\n"),
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
        Ok::<_, Infallible>(response.body(Full::new(Bytes::from(reply.body))).expect("headers that are constant"))
    });
    let connection =
        http1::Builder::new().keep_alive(false).max_buf_size(HEAD).serve_connection(TokioIo::new(stream), service);
    // A client that goes away, or does not speak HTTP, harms only itself.
    let _its_own_fault = connection.await;
}

/// Waits for the port if need be; says so once.
async fn listen(port: Port) -> TcpListener {
    let mut waits = false;
    loop {
        match TcpListener::bind(port.address).await {
            Ok(listener) => {
                if waits {
                    info!(address = %port.address, "the port is free now, and answers");
                }
                return listener;
            }
            Err(error) if !waits => {
                waits = true;
                tell(port, error).await;
            }
            Err(error) => debug!(address = %port.address, %error, "the port is still not to be had"),
        }
        sleep(RETRY).await;
    }
}

async fn tell(Port { address, flag }: Port, error: io::Error) {
    if error.kind() != ErrorKind::AddrInUse {
        warn!("nothing answers at {address}: {error}; choose another address with {flag}. It is tried again quietly");
        return;
    }
    let holder = holder(address.port()).await;
    warn!(
        "{holder} holds {address}: end it (kube-proxy has the same port), or choose another address with {flag}. \
         Services are served meanwhile, and the port is taken when it is free"
    );
}

/// Who listens on a TCP port, as far as that can be found out.
pub async fn holder(port: u16) -> String {
    let holder = tokio::task::spawn_blocking(move || find_holder(port)).await.context("a task").flatten();
    holder.unwrap_or_else(|_| "another process".to_owned())
}

fn find_holder(port: u16) -> Result<String> {
    let sockets = bound_sockets(&|proto, other| proto == Proto::Tcp && other == port)?;
    let owner = sockets.into_iter().find_map(|socket| socket.owner).context("no owner is in sight")?;
    Ok(format!("{} (pid {})", owner.comm, owner.pid))
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        time::Instant,
    };

    use super::*;

    /// A server on a port that the kernel chooses.
    async fn start(limits: Limits) -> SocketAddr {
        let free = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = free.local_addr().expect("an address");
        drop(free);
        let port = Port { address, flag: "--test" };
        tokio::spawn(serve(port, limits, async |path: String| match path.as_str() {
            "/hello" => Reply::text(StatusCode::OK, "hello\n"),
            _ => Reply::not_found(),
        }));
        while TcpStream::connect(address).await.is_err() {
            sleep(Duration::from_millis(1)).await;
        }
        address
    }

    /// What comes back for these bytes, to the end of the connection.
    async fn say(address: SocketAddr, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(address).await.expect("a connection");
        // A server that has heard enough may end the connection before all is said.
        let _ended = stream.write_all(request).await;
        let mut answer = Vec::new();
        let _reset = stream.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).into_owned()
    }

    #[tokio::test]
    async fn a_connection_has_one_request_and_only_get_and_head_are_answered() {
        let address = start(LIMITS).await;
        let answer =
            say(address, b"GET /hello HTTP/1.1\r\nHost: a\r\n\r\nGET /hello HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\nhello\n"), "{answer}");
        assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{answer}");
        assert!(answer.contains("x-content-type-options: nosniff\r\n"), "{answer}");
        let check = async |request: &str, expected: &str| {
            let answer = say(address, request.as_bytes()).await;
            assert!(answer.starts_with(expected), "{request}: {answer}");
        };
        check("HEAD /hello HTTP/1.0\r\n\r\n", "HTTP/1.0 200").await;
        check("GET /hello?x=1 HTTP/1.0\r\n\r\n", "HTTP/1.0 200").await;
        check("GET /other HTTP/1.0\r\n\r\n", "HTTP/1.0 404").await;
        check("POST /hello HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n", "HTTP/1.1 405").await;
        check("nonsense\r\n\r\n", "HTTP/1.1 400").await;
        check(&format!("GET /{} HTTP/1.0\r\n\r\n", "a".repeat(2 * HEAD)), "HTTP/1.1 4").await;
    }

    #[tokio::test]
    async fn who_comes_last_is_answered_however_many_say_nothing() {
        let address = start(LIMITS).await;
        let mut silent = Vec::new();
        for _ in 0..200 {
            let mut stream = TcpStream::connect(address).await.expect("a connection");
            stream.write_all(b"GET /hello HTTP/1.1\r\nX").await.expect("room");
            silent.push(stream);
        }
        let start = Instant::now();
        assert!(say(address, b"GET /hello HTTP/1.0\r\n\r\n").await.contains("hello"));
        assert!(start.elapsed() < LIMITS.deadline / 2, "it waited for no deadline");
    }

    #[tokio::test]
    async fn a_client_that_takes_too_long_is_cut_off() {
        let address = start(Limits { deadline: Duration::from_millis(50), ..LIMITS }).await;
        assert_eq!(say(address, b"GET /hello HTTP/1.1\r\n").await, "");
    }
}
