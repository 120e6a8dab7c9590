//! The demo's own clients, for what curl cannot do: questions over UDP, and connecting without pause while a file changes.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::dns;
use crate::run;

/// How many connections in a row must go where they should before it is believed.
const IN_A_ROW: u32 = 200;

/// Whether each question has its own socket.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// A new one for each.
    OwnSockets,
    /// The same for all.
    OneSocket,
}

/// Asks as a resolver does: by a socket that is not connected, and believing only replies from the address asked.
/// Prints a line for each answer: who sent it, and what it says.
pub(super) fn ask(server: SocketAddr, count: u32, form: Form) -> Result<ExitCode> {
    let any: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let open = || -> std::io::Result<UdpSocket> {
        let socket = UdpSocket::bind((any, 0))?;
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        Ok(socket)
    };
    let mut socket = open().context("opening a UDP socket")?;
    for number in 0..count {
        if number > 0 && form == Form::OwnSockets {
            socket = open().context("opening a UDP socket")?;
        }
        let id = u16::try_from(number % 0xffff)?;
        socket.send_to(&dns::question(id, "who.are.you"), server).context("sending the question")?;
        let mut reply = [0; 512];
        let (len, from) = socket.recv_from(&mut reply).context("waiting for the answer")?;
        ensure!(from == server, "the answer comes from {from}, and {server} was asked");
        let text = dns::text(&reply[..len], id).context("the answer is none to the question")?;
        run::print(&format!("{from} {text}"));
    }
    Ok(ExitCode::SUCCESS)
}

/// Puts `from` in the place of `to` while connecting to `dial` without pause, until all go where they should. Prints the
/// time in ms from the edit to the last connection that did not, and how many connections there were.
pub(super) fn edit(from: &Path, to: &Path, dial: SocketAddr, want: &[String]) -> Result<ExitCode> {
    std::fs::rename(from, to).with_context(|| format!("putting {} into place", to.display()))?;
    let start = Instant::now();
    let (mut last, mut total, mut in_a_row) = (Duration::ZERO, 0u32, 0u32);
    while in_a_row < IN_A_ROW {
        ensure!(start.elapsed() < Duration::from_secs(5), "no effect within 5 s");
        let name = who_answers(dial)?;
        let is_wanted = name.as_ref().map_or(want.is_empty(), |name| want.contains(name));
        (total, in_a_row) = (total + 1, if is_wanted { in_a_row + 1 } else { 0 });
        if !is_wanted {
            last = start.elapsed();
        }
    }
    run::print(&format!("{:.1} {total}", last.as_secs_f64() * 1e3));
    Ok(ExitCode::SUCCESS)
}

/// The backend's name, or none if the connection is refused. All else is an error.
fn who_answers(dial: SocketAddr) -> Result<Option<String>> {
    let mut stream = match TcpStream::connect(dial) {
        Ok(stream) => stream,
        // The second on kernels before 5.18.
        Err(error) if matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::PermissionDenied) => {
            return Ok(None);
        }
        Err(error) => bail!("connecting to {dial}: {error}"),
    };
    stream.write_all(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n")?;
    let mut response = String::new();
    stream.read_to_string(&mut response)?;
    let (_, body) = response.split_once("\r\n\r\n").context("no HTTP answer")?;
    Ok(body.split(' ').next().map(str::to_owned))
}
