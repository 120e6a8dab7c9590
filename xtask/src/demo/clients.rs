//! Clients of the demo for what curl cannot do: DNS queries, and connections without pause while a file changes.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::dns;
use crate::run;

/// Connections in a row to wanted backends that end the watch.
const IN_A_ROW: u32 = 200;

/// The sockets of the queries.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Sockets {
    /// A new socket for each query.
    OnePerQuery,
    /// One socket for all queries.
    Shared,
}

/// Sends queries as a resolver does: from an unconnected socket, accepting only answers from the address of the query.
/// Prints a line for each answer: its source and its text.
pub(super) fn ask(server: SocketAddr, count: u32, sockets: Sockets) -> Result<ExitCode> {
    let any: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let open = || -> std::io::Result<UdpSocket> {
        let socket = UdpSocket::bind((any, 0))?;
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        Ok(socket)
    };
    let mut socket = open().context("opening a UDP socket")?;
    for number in 0..count {
        if number > 0 && sockets == Sockets::OnePerQuery {
            socket = open().context("opening a UDP socket")?;
        }
        let id = u16::try_from(number % 0xffff)?;
        socket.send_to(&dns::query(id, "who.are.you"), server).context("sending the query")?;
        let mut reply = [0; 512];
        let (len, from) = socket.recv_from(&mut reply).context("waiting for the answer")?;
        ensure!(from == server, "the answer to a query to {server} comes from {from}");
        let text = dns::text(&reply[..len], id).context("the answer is not to this query")?;
        run::print(&format!("{from} {text}"));
    }
    Ok(ExitCode::SUCCESS)
}

/// Renames `from` to `to` and connects to `dial` without pause until only wanted backends answer. Prints the time in ms
/// from the edit to the last connection to another backend, and the number of connections.
pub(super) fn edit(from: &Path, to: &Path, dial: SocketAddr, want: &[String]) -> Result<ExitCode> {
    std::fs::rename(from, to).with_context(|| format!("replacing {}", to.display()))?;
    let start = Instant::now();
    let (mut last, mut total, mut in_a_row) = (Duration::ZERO, 0u32, 0u32);
    while in_a_row < IN_A_ROW {
        ensure!(start.elapsed() < Duration::from_secs(5), "the edit has no effect within 5 s");
        let name = backend_at(dial)?;
        let is_wanted = name.as_ref().map_or(want.is_empty(), |name| want.contains(name));
        (total, in_a_row) = (total + 1, if is_wanted { in_a_row + 1 } else { 0 });
        if !is_wanted {
            last = start.elapsed();
        }
    }
    run::print(&format!("{:.1} {total}", last.as_secs_f64() * 1e3));
    Ok(ExitCode::SUCCESS)
}

/// The name of the backend that answers, or none if the connection is refused.
fn backend_at(dial: SocketAddr) -> Result<Option<String>> {
    let mut stream = match TcpStream::connect(dial) {
        Ok(stream) => stream,
        // EPERM on kernels before 5.18.
        Err(error) if matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::PermissionDenied) => {
            return Ok(None);
        }
        Err(error) => bail!("connecting to {dial}: {error}"),
    };
    stream.write_all(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n")?;
    let mut response = String::new();
    stream.read_to_string(&mut response)?;
    let (_, body) = response.split_once("\r\n\r\n").context("no HTTP response")?;
    Ok(body.split(' ').next().map(str::to_owned))
}
