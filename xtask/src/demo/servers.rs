//! The backends of the demo: each answers over HTTP or DNS with its name and the address of its client.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};

use super::dns;
use crate::run;

/// Delay of the response to `GET /held`, while the demo lists the open connection.
const HELD: Duration = Duration::from_millis(500);

/// Serves until stdin ends. Prints `serving` once every address listens.
pub(super) fn main(http: &[String], dns: &[String]) -> Result<ExitCode> {
    for backend in http {
        let (name, address) = parse(backend)?;
        let listener = TcpListener::bind(address).with_context(|| format!("listening at {address}"))?;
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let name = name.clone();
                // A client that hangs up needs no response.
                std::thread::spawn(move || drop(serve_http(&name, stream)));
            }
        });
    }
    for backend in dns {
        let (name, address) = parse(backend)?;
        let socket = UdpSocket::bind(address).with_context(|| format!("listening at {address}"))?;
        std::thread::spawn(move || serve_dns(&name, &socket));
    }
    run::print("serving");
    std::io::stdin().read_to_end(&mut Vec::new()).context("waiting for the demo's end")?;
    Ok(ExitCode::SUCCESS)
}

fn parse(backend: &str) -> Result<(String, SocketAddr)> {
    let (name, address) = backend.split_once('=').with_context(|| format!("{backend} is not NAME=ADDR:PORT"))?;
    let address = address.parse().with_context(|| format!("{address} is not ADDR:PORT"))?;
    Ok((name.to_owned(), address))
}

fn serve_http(name: &str, mut stream: TcpStream) -> std::io::Result<()> {
    let (peer, own) = (stream.peer_addr()?, stream.local_addr()?);
    let mut request = BufReader::new(stream.try_clone()?);
    let mut first = String::new();
    request.read_line(&mut first)?;
    let mut line = String::new();
    while request.read_line(&mut line)? > 2 {
        line.clear();
    }
    let body = format!("{name} at {own}, asked by {peer}\n");
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    if first.starts_with("GET /held ") {
        std::thread::sleep(HELD);
    }
    stream.write_all((head + &body).as_bytes())
}

fn serve_dns(name: &str, socket: &UdpSocket) {
    let mut query = [0; 512];
    while let Ok((len, peer)) = socket.recv_from(&mut query) {
        let own = socket.local_addr().map(|own| own.to_string()).unwrap_or_default();
        let answer = dns::answer(&query[..len], &format!("{name} at {own}, asked by {peer}"));
        if let Some(answer) = answer {
            drop(socket.send_to(&answer, peer));
        }
    }
}
