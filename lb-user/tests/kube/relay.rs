//! A relay to a server that can be closed, with all its connections, and opened again on the same port.

use std::{
    io,
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
};

/// Relays connections until it is dropped.
pub(crate) struct Relay {
    listener: TcpListener,
    relayed: Arc<Mutex<Relayed>>,
    acceptor: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Relayed {
    closed: bool,
    streams: Vec<TcpStream>,
}

impl Relay {
    /// Relays port `at` of 127.0.0.1 to `port`; `at` 0 takes any free port.
    pub(crate) fn open(at: u16, port: u16) -> Self {
        Self::from(TcpListener::bind((Ipv4Addr::LOCALHOST, at)).unwrap(), port)
    }

    /// Relays connections of a listener in any network namespace to `port` of 127.0.0.1.
    pub(crate) fn from(listener: TcpListener, port: u16) -> Self {
        let accepted = listener.try_clone().unwrap();
        let relayed: Arc<Mutex<Relayed>> = Arc::default();
        let shared = Arc::clone(&relayed);
        let acceptor = thread::spawn(move || {
            for client in accepted.incoming() {
                if shared.lock().unwrap().closed {
                    return;
                }
                let (Ok(client), Ok(server)) = (client, TcpStream::connect((Ipv4Addr::LOCALHOST, port))) else {
                    continue;
                };
                let mut relayed = shared.lock().unwrap();
                if relayed.closed {
                    return;
                }
                copy_in_background(&client, &server);
                copy_in_background(&server, &client);
                relayed.streams.extend([client, server]);
            }
        });
        Self { listener, relayed, acceptor: Some(acceptor) }
    }

    /// Port of the relay on 127.0.0.1.
    pub(crate) fn port(&self) -> u16 {
        self.address().port()
    }

    /// The URL of the API server behind the relay.
    pub(crate) fn url(&self) -> String {
        format!("https://{}", self.address())
    }

    fn address(&self) -> SocketAddr {
        self.listener.local_addr().unwrap()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let mut relayed = self.relayed.lock().unwrap();
        relayed.closed = true;
        for stream in relayed.streams.drain(..) {
            // Fails only if the peer has closed the connection.
            let _ = stream.shutdown(Shutdown::Both);
        }
        drop(relayed);
        // Wakes the acceptor, which then finds `closed` set.
        let _ = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both);
        let _ = self.acceptor.take().map(JoinHandle::join);
    }
}

fn copy_in_background(from: &TcpStream, to: &TcpStream) {
    let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
    thread::spawn(move || {
        let _ = io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Both);
    });
}
