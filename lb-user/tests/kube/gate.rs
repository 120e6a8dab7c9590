//! A way to a server that can be closed, with all its connections, and opened again on the same port.

use std::{
    io,
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
};

/// Passes connections on until it is dropped.
pub(crate) struct Gate {
    listener: TcpListener,
    passing: Arc<Mutex<Passing>>,
    accepting: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Passing {
    closed: bool,
    streams: Vec<TcpStream>,
}

impl Gate {
    /// Opens a way to `port` of this machine; `at` 0 takes any free port.
    pub(crate) fn open(at: u16, port: u16) -> Self {
        Self::on(TcpListener::bind((Ipv4Addr::LOCALHOST, at)).unwrap(), port)
    }

    /// The same, from a listener of any network.
    pub(crate) fn on(listener: TcpListener, port: u16) -> Self {
        let accepted = listener.try_clone().unwrap();
        let passing: Arc<Mutex<Passing>> = Arc::default();
        let shared = Arc::clone(&passing);
        let accepting = thread::spawn(move || {
            for client in accepted.incoming() {
                if shared.lock().unwrap().closed {
                    return;
                }
                let (Ok(client), Ok(server)) = (client, TcpStream::connect((Ipv4Addr::LOCALHOST, port))) else {
                    continue;
                };
                let mut passing = shared.lock().unwrap();
                if passing.closed {
                    return;
                }
                pass(&client, &server);
                pass(&server, &client);
                passing.streams.extend([client, server]);
            }
        });
        Self { listener, passing, accepting: Some(accepting) }
    }

    /// Its port on 127.0.0.1.
    pub(crate) fn port(&self) -> u16 {
        self.address().port()
    }

    /// The URL of an API server behind it.
    pub(crate) fn url(&self) -> String {
        format!("https://{}", self.address())
    }

    fn address(&self) -> SocketAddr {
        self.listener.local_addr().unwrap()
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        let mut passing = self.passing.lock().unwrap();
        passing.closed = true;
        for stream in passing.streams.drain(..) {
            // Fails only if the peer has closed it.
            let _ = stream.shutdown(Shutdown::Both);
        }
        drop(passing);
        // Wakes the thread, which then sees that it is closed.
        let _ = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both);
        let _ = self.accepting.take().map(JoinHandle::join);
    }
}

fn pass(from: &TcpStream, to: &TcpStream) {
    let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
    thread::spawn(move || {
        let _ = io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Both);
    });
}
