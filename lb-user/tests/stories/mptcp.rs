//! MPTCP sockets through a VIP. The kernel connects TCP sockets of its own for them, and runs no hook when these close.

use std::{net::SocketAddr, os::fd::OwnedFd, thread, time::Duration};

use lb_common::{TcpSock, Translation};
use lb_dataplane::stats::StatMaps;
use lb_kernel::bpf::typed::TypedMap;
use rustix::{
    io::Errno,
    net::{
        AddressFamily, Protocol, SocketType, accept, bind, connect, getpeername, listen, socket,
        sockopt::{set_socket_linger, set_socket_reuseaddr},
    },
};

use crate::{
    Story,
    agent::until,
    node::{StoryNode, service},
    sockets::{Client, at},
};

pub const STORIES: &[Story] = &[
    ("mptcp_sockets_show_the_vip_and_count_as_open_until_they_close", show_the_vip_and_are_counted),
    ("mptcp_sockets_leave_nothing_behind", leave_nothing_behind),
];

/// Stories that run for minutes, if asked for by `--ignored`.
pub const LONG: &[Story] = &[("a_million_mptcp_sockets_leave_nothing_behind", a_million)];

const VIP: &str = "10.96.0.1:80";
const VIP6: &str = "[fd96::1]:80";

fn mptcp(to: SocketAddr) -> Result<OwnedFd, Errno> {
    let protocol = Protocol::from_raw(262.try_into().expect("not zero"));
    let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    socket(family, SocketType::STREAM, Some(protocol))
}

/// Starts a server that takes each connection, and holds it until the client closes.
fn server(address: &str) -> Result<(), Errno> {
    let listener = mptcp(at(address))?;
    set_socket_reuseaddr(&listener, true)?;
    bind(&listener, &at(address))?;
    listen(&listener, 4096)?;
    thread::spawn(move || {
        let mut held = std::collections::VecDeque::new();
        while let Ok(client) = accept(&listener) {
            held.push_back(client);
            if held.len() > 1_000 {
                held.pop_front();
            }
        }
    });
    Ok(())
}

/// Starts servers and agent. `None` if this kernel has no MPTCP, or does not tell its programs of it.
fn start(node: &StoryNode) -> Option<crate::agent::Agent> {
    let backends = ["10.0.0.1:8080", "10.0.0.2:8080", "[fd00::1]:8080"];
    if let Some(error) = backends.into_iter().find_map(|backend| server(backend).err()) {
        println!("LACKS MPTCP in this kernel: {error}");
        return None;
    }
    if !lb_kernel::bpf::has_mptcp_sock() {
        println!("LACKS bpf_skc_to_mptcp_sock: entries of MPTCP sockets stay until the node restarts");
        return None;
    }
    node.write("web.yaml", &service("web", &["10.96.0.1", "fd96::1"], "TCP", 80, &backends));
    Some(node.agent(&[]))
}

/// Connects a socket that closes by a reset, which leaves no port in TIME_WAIT.
fn open(vip: SocketAddr) -> OwnedFd {
    let socket = mptcp(vip).expect("a socket");
    set_socket_linger(&socket, Some(Duration::ZERO)).expect("SO_LINGER");
    connect(&socket, &vip).expect("a connection");
    socket
}

/// Returns the number of entries of TCP sockets, and of sockets that count as open.
fn entries_and_open(node: &StoryNode) -> (usize, u64) {
    let map = aya::maps::MapData::from_pin(node.maps().join("TCP_SOCKS")).expect("the pinned map");
    let places: aya::maps::Array<_, TcpSock> = aya::maps::Map::Array(map).try_into().expect("its types");
    let held = places.iter().flatten().filter(|place| place.cookie != 0).count();
    let more: TypedMap<u64, Translation> = TypedMap::open(&node.maps(), "TCP_MORE").expect("the pinned map");
    let stats = StatMaps::open(&node.maps()).and_then(|maps| maps.read()).expect("the counts");
    (held + more.read().expect("read").len(), stats.backends.values().map(|backend| backend.open).sum())
}

fn show_the_vip_and_are_counted(node: &mut StoryNode) {
    let Some(_agent) = start(node) else { return };
    let sockets: Vec<_> = (0..200).map(|number| open(at([VIP, VIP6][number % 2]))).collect();
    for (number, socket) in sockets.iter().enumerate() {
        let peer = getpeername(socket).expect("a peer");
        assert_eq!(peer.and_then(|peer| SocketAddr::try_from(peer).ok()), Some(at([VIP, VIP6][number % 2])));
    }
    assert_eq!(entries_and_open(node), (0, 200));
    drop(sockets);
    until("no socket counts as open", || entries_and_open(node) == (0, 0));
    // A refused connection counts until its socket closes, and a retry counts once.
    let other = Client::tcp(at(VIP));
    other.connect(at(VIP)).expect("a connection");
    assert_eq!(entries_and_open(node), (1, 1), "a TCP socket is not affected");
}

fn churn(node: &StoryNode, count: usize) {
    let Some(_agent) = start(node) else { return };
    let held: Vec<_> = (0..10).map(|_| open(at(VIP))).collect();
    let workers = (0..2).map(|_| thread::spawn(move || (0..count / 2).for_each(|_| drop(open(at(VIP))))));
    workers.collect::<Vec<_>>().into_iter().for_each(|worker| worker.join().expect("no failed connection"));
    until("the sockets that are open are counted", || entries_and_open(node) == (0, 10));
    drop(held);
    until("nothing is left", || entries_and_open(node) == (0, 0));
}

fn leave_nothing_behind(node: &mut StoryNode) {
    churn(node, if crate::node::is_slow() { 500 } else { 20_000 });
}

fn a_million(node: &mut StoryNode) {
    churn(node, 1_000_000);
}
