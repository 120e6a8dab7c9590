//! A way to an API server from a network namespace of its own.

use std::{
    net::{Ipv4Addr, TcpListener, TcpStream},
    thread,
};

use crate::lan::Namespace;

/// Makes the API server's port one of a node's loopback as well, where its certificate is good.
pub fn relay(net: &Namespace, port: u16) {
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
