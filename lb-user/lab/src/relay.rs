//! A route to the API server from a network namespace without one: a relay of its port.

use std::{
    net::{Ipv4Addr, TcpListener, TcpStream},
    thread,
};

use crate::netns::LabNamespace;

/// Relays the API server's port of 127.0.0.1, for which its certificate is good, to the same port in a namespace.
pub fn relay(net: &LabNamespace, port: u16) {
    let listener = net.enter(|| TcpListener::bind((Ipv4Addr::LOCALHOST, port))).expect("a free port");
    thread::spawn(move || {
        for near in listener.incoming().flatten() {
            let Ok(far) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)) else { continue };
            for (mut from, mut to) in [(near.try_clone(), far.try_clone()), (Ok(far), Ok(near))]
                .into_iter()
                .filter_map(|(from, to)| Some((from.ok()?, to.ok()?)))
            {
                thread::spawn(move || {
                    let _ended = std::io::copy(&mut from, &mut to);
                    let _ended = to.shutdown(std::net::Shutdown::Write);
                });
            }
        }
    });
}
