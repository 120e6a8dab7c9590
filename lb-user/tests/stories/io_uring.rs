//! Calls by io_uring: the kernel tries a call again that would wait, with the address that the hook has written.

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd as _, AsRawFd as _},
    ptr, thread,
    time::Duration,
};

use io_uring::{IoUring, opcode, squeue, types::Fd};
use rustix::{
    io::Errno,
    net::{SendFlags, SocketAddrAny, sendto, sockopt::set_socket_send_buffer_size},
};

use crate::{
    Story,
    agent::until,
    node::{StoryNode, ip, service},
    sockets::{Client, at, mapped, tcp_server, udp_server},
};

pub const STORIES: &[Story] = &[
    ("a_datagram_of_io_uring_that_is_tried_again_keeps_its_vip", datagrams_keep_their_vip),
    ("a_connect_by_io_uring_shows_its_vip", connects_show_their_vip),
];

const VIP: &str = "10.96.0.53:53";
const VIP6: &str = "[fd96::53]:53";
/// Neighbours whose link address is not known, so that datagrams to them wait in the buffer of their socket.
const NEIGHBOURS: [&str; 2] = ["10.9.9.9", "fd09::9"];

/// Makes a ring; none if this kernel has no io_uring.
fn ring() -> Option<IoUring> {
    IoUring::new(4).inspect_err(|error| println!("LACKS io_uring: {error}")).ok()
}

/// Submits a call, and returns what it returns after `meanwhile`.
#[expect(unsafe_code, reason = "the kernel reads the memory of a call until its end, for which this waits")]
fn call(ring: &mut IoUring, call: &squeue::Entry, meanwhile: impl FnOnce(&mut IoUring)) -> io::Result<u32> {
    // SAFETY: see the reason.
    unsafe { ring.submission().push(call) }.expect("room for a call");
    ring.submit().expect("submitted");
    meanwhile(ring);
    ring.submit_and_wait(1).expect("the end of the call");
    let code = ring.completion().next().expect("its result").result();
    u32::try_from(code).map_err(|_| io::Error::from_raw_os_error(-code))
}

fn fd(client: &Client) -> Fd {
    Fd(client.fd().as_fd().as_raw_fd())
}

/// Sends a datagram by io_uring to a socket whose buffer is full, until `meanwhile` makes room.
fn send(ring: &mut IoUring, client: &Client, to: SocketAddr, meanwhile: impl FnOnce()) -> io::Result<u32> {
    let (name, data) = (SocketAddrAny::from(to), *b"hello");
    let mut part = libc::iovec { iov_base: data.as_ptr().cast_mut().cast(), iov_len: data.len() };
    let message = libc::msghdr {
        msg_name: name.as_ptr().cast_mut().cast(),
        msg_namelen: name.addr_len(),
        msg_iov: &raw mut part,
        msg_iovlen: 1,
        msg_control: ptr::null_mut(),
        msg_controllen: 0,
        msg_flags: 0,
    };
    call(ring, &opcode::SendMsg::new(fd(client), &raw const message).build(), |ring| {
        thread::sleep(Duration::from_millis(100));
        assert_eq!(ring.completion().len(), 0, "the datagram waits");
        meanwhile();
    })
}

/// Makes a link to the neighbours.
fn make_link() {
    ip(&["link", "add", "near0", "type", "veth", "peer", "name", "near1"]);
    ip(&["addr", "add", "10.9.9.1/24", "dev", "near0"]);
    ip(&["addr", "add", "fd09::1/64", "dev", "near0", "nodad"]);
    ip(&["link", "set", "near0", "up"]);
    ip(&["link", "set", "near1", "up"]);
    until("the link is usable", || std::net::UdpSocket::bind("[fd09::1]:0").is_ok());
}

/// Fills the socket's buffer with datagrams to a neighbour.
fn fill(client: &Client, neighbour: SocketAddr) {
    set_socket_send_buffer_size(client.fd(), 1).expect("SO_SNDBUF");
    let full = (0..100).find_map(|_| sendto(client.fd(), &[0; 512], SendFlags::DONTWAIT, &neighbour).err());
    assert_eq!(full, Some(Errno::AGAIN));
}

fn datagrams_keep_their_vip(node: &mut StoryNode) {
    let Some(mut ring) = ring() else { return };
    let backends = ["10.0.0.1:5353", "[fd00::1]:5353"];
    backends.into_iter().for_each(udp_server);
    node.write("dns.yaml", &service("dns", &["10.96.0.53", "fd96::53"], "UDP", 53, &backends));
    make_link();
    let _agent = node.agent(&[]);
    let [v4, v6] = NEIGHBOURS.map(|ip| SocketAddr::new(ip.parse().expect("an address"), 9));
    for (vip, neighbour, backend) in [
        (at(VIP), v4, at(backends[0])),
        (at(VIP6), v6, at(backends[1])),
        (mapped(at(VIP)), mapped(v4), mapped(at(backends[0]))),
    ] {
        let client = Client::udp(vip);
        let link = |verb| {
            let ip = neighbour.ip().to_canonical().to_string();
            crate::node::ip(&["neigh", verb, &ip, "lladdr", "02:00:00:00:00:99", "dev", "near0"]);
        };
        for _ in 0..2 {
            fill(&client, neighbour);
            let sent = send(&mut ring, &client, vip, || link("replace"));
            assert_eq!(sent.expect("sent"), 5);
            assert_eq!(client.receive().1, Some(vip));
            link("del");
        }
        // The application sends to the backend itself.
        assert_eq!(client.ask(backend).1, Some(backend));
        assert_eq!(client.ask(vip).1, Some(vip));
    }
}

fn connects_show_their_vip(node: &mut StoryNode) {
    let Some(mut ring) = ring() else { return };
    tcp_server("10.0.0.1:8080");
    udp_server("10.0.0.1:5353");
    node.write("web.yaml", &service("web", &["10.96.0.1"], "TCP", 80, &["10.0.0.1:8080"]));
    node.write("dns.yaml", &service("dns", &["10.96.0.53"], "UDP", 53, &["10.0.0.1:5353"]));
    let _agent = node.agent(&[]);
    let web = at("10.96.0.1:80");
    for (client, vip) in [(Client::tcp(web), web), (Client::udp(at(VIP)), at(VIP))] {
        let name = SocketAddrAny::from(vip);
        let connect = opcode::Connect::new(fd(&client), name.as_ptr().cast(), name.addr_len()).build();
        call(&mut ring, &connect, |_| {}).expect("a connection");
        assert_eq!(client.peer(), Some(vip));
    }
}
