//! One probe: a TCP connection, or an HTTP request on it. The error is the cause, in words that are the same on each
//! node.

use std::{io::ErrorKind, net::SocketAddr, time::Duration};

use lb_common::AddrPort;
use lb_core::objects::{Probe, ProbeQuestion};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

/// Longest status line that is read.
const LINE: usize = 256;

/// Asks an endpoint. The error is the cause of the failure.
pub(super) async fn ask(target: AddrPort, probe: &Probe) -> Result<(), String> {
    let limit = Duration::from_secs(probe.timeout.get().into());
    let late = || format!("no answer in {} s", probe.timeout);
    timeout(limit, question(super::address(target), &probe.question)).await.unwrap_or_else(|_| Err(late()))
}

async fn question(target: SocketAddr, question: &ProbeQuestion) -> Result<(), String> {
    let mut stream = TcpStream::connect(target).await.map_err(|error| cause(&error))?;
    let ProbeQuestion::HttpGet(path) = question else { return Ok(()) };
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {target}\r\nUser-Agent: beeline-probe\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.map_err(|error| cause(&error))?;
    let mut line = Vec::new();
    while line.len() < LINE && !line.contains(&b'\n') {
        if stream.read_buf(&mut line).await.map_err(|error| cause(&error))? == 0 {
            break;
        }
    }
    match status(&line) {
        Some(200..=399) => Ok(()),
        Some(status) => Err(format!("HTTP status {status}")),
        None => Err("the answer is not HTTP".to_owned()),
    }
}

/// Parses the status of a response (RFC 9112, section 4).
fn status(response: &[u8]) -> Option<u16> {
    let rest = response.strip_prefix(b"HTTP/1.")?.get(1..)?.strip_prefix(b" ")?;
    let (digits, rest) = rest.split_at_checked(3)?;
    let ends = rest.first().is_some_and(|byte| b" \r\n".contains(byte));
    let status = str::from_utf8(digits).ok().filter(|_| ends)?.parse().ok()?;
    (100..=999).contains(&status).then_some(status)
}

fn cause(error: &std::io::Error) -> String {
    match error.kind() {
        ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => "connection reset".to_owned(),
        ErrorKind::HostUnreachable => "no route to the host".to_owned(),
        ErrorKind::NetworkUnreachable => "no route to the network".to_owned(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::num::{NonZeroU8, NonZeroU32};
    use tokio::net::TcpListener;

    fn probe(question: ProbeQuestion) -> Probe {
        let (time, count) = (NonZeroU32::new(1).expect("not 0"), NonZeroU8::new(1).expect("not 0"));
        Probe { question, every: time, timeout: time, fail: count, pass: count }
    }

    /// Starts a server that answers each request with `answer`, and then closes; None never answers.
    async fn serve(answer: Option<&'static str>) -> AddrPort {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut request = vec![0; 1024];
                    let length = stream.read(&mut request).await.unwrap_or(0);
                    let wanted = format!("GET /healthz?a=b HTTP/1.1\r\nHost: {address}\r\n");
                    let is_good = request.get(..length).is_some_and(|sent| sent.starts_with(wanted.as_bytes()));
                    match answer {
                        Some(answer) if is_good => _ = stream.write_all(answer.as_bytes()).await,
                        Some(_) => {}
                        None => std::future::pending().await,
                    }
                });
            }
        });
        address.into()
    }

    #[tokio::test]
    async fn an_answer_passes_by_its_status_and_a_failure_has_a_cause() {
        let get = probe(ProbeQuestion::HttpGet("/healthz?a=b".into()));
        for (answer, expected) in [
            (Some("HTTP/1.1 200 OK\r\n\r\nfine"), Ok(())),
            (Some("HTTP/1.0 302 Found\r\n"), Ok(())),
            (Some("HTTP/1.1 204\r\n"), Ok(())),
            (Some("HTTP/1.1 503 Service Unavailable\r\n"), Err("HTTP status 503")),
            (Some("HTTP/1.1 404 \n"), Err("HTTP status 404")),
            (Some("HTTP/1.1 20"), Err("the answer is not HTTP")),
            (Some("HTTP/2 200 OK\r\n"), Err("the answer is not HTTP")),
            (Some("SSH-2.0-OpenSSH_9.6\r\n"), Err("the answer is not HTTP")),
            (Some(""), Err("the answer is not HTTP")),
            (None, Err("no answer in 1 s")),
        ] {
            let result = ask(serve(answer).await, &get).await;
            assert_eq!(result, expected.map_err(str::to_owned), "{answer:?}");
        }
    }

    #[tokio::test]
    async fn a_tcp_probe_passes_if_the_endpoint_accepts() {
        let tcp = probe(ProbeQuestion::Tcp);
        assert_eq!(ask(serve(None).await, &tcp).await, Ok(()));
        let closed = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let refused = ask(closed.expect("a free port").into(), &tcp).await;
        assert_eq!(refused, Err("connection refused".to_owned()));
    }

    #[test]
    fn no_prefix_of_a_response_panics() {
        let response = b"HTTP/1.1 200 OK\r\n";
        for end in 0..response.len() {
            assert_eq!(status(&response[..end]).is_some(), end > 12, "{end}");
        }
    }
}
