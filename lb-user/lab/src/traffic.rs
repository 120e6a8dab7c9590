//! The connections of the benches, and the CPUs that their ends run on.

use std::{net::SocketAddr, os::fd::OwnedFd, time::Duration};

use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with, sockopt};

/// Keeps this process on one CPU. Client and server have one each, so that the scheduler's choice is not measured.
pub fn stay_on(cpu: usize) {
    let mut set = rustix::thread::CpuSet::new();
    set.set(cpu);
    rustix::thread::sched_setaffinity(None, &set).expect("a CPU of this machine");
}

/// Opens a connection over IPv4 that ends by a reset, so that it leaves no port in TIME_WAIT.
pub fn tcp_open(to: SocketAddr) -> OwnedFd {
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None).expect("a socket");
    sockopt::set_socket_linger(&socket, Some(Duration::ZERO)).expect("SO_LINGER");
    connect(&socket, &to).expect("a connection");
    socket
}
