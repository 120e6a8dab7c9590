//! What the traffic of the benches is made of.

use std::{net::SocketAddr, time::Duration};

use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with, sockopt};

/// Keeps this process on one CPU. Client and server have one each, lest the scheduler's choice be what is measured.
pub fn stay_on(cpu: usize) {
    let mut set = rustix::thread::CpuSet::new();
    set.set(cpu);
    rustix::thread::sched_setaffinity(None, &set).expect("a CPU of this machine");
}

/// A connection over IPv4 that ends by a reset, so that no port is left waiting.
pub fn tcp_open(to: SocketAddr) -> std::os::fd::OwnedFd {
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None).expect("a socket");
    sockopt::set_socket_linger(&socket, Some(Duration::ZERO)).expect("SO_LINGER");
    connect(&socket, &to).expect("a connection");
    socket
}
