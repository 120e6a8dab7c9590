//! The packet path with what some kernels lack: real SCTP sockets, and a VLAN device as uplink.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    os::fd::OwnedFd,
    process::Command,
    thread,
    time::Duration,
};

use lb_lab::network::{Lan, LanOptions};
use rustix::net::{AddressFamily, SocketType, bind, connect, ipproto, listen, socket};

use crate::{
    Story,
    agent::until,
    node::StoryNode,
    packets::{NODE_PORT, TARGET, addresses, agent, pod, serve, service},
    sockets::{Client, tcp_ask},
};

pub const STORIES: &[Story] = &[
    ("packets_of_sctp_reach_a_local_or_remote_pod", sctp_reaches_pods),
    ("packets_from_a_vlan_reach_a_local_or_remote_pod", vlan_clients_reach_pods),
];

/// Opens a one-to-one SCTP socket bound to an address, which is then the only one in its INIT (RFC 9260, 3.3.2).
fn sctp_socket(at: SocketAddr) -> rustix::io::Result<OwnedFd> {
    let family = if at.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket(family, SocketType::STREAM, Some(ipproto::SCTP))?;
    bind(&socket, &at)?;
    Ok(socket)
}

/// Starts a server that sends each client the address of the server and that of the client.
pub fn sctp_server(at: SocketAddr) {
    let socket = sctp_socket(at).expect("a free port");
    listen(&socket, 16).expect("a server");
    // accept(2) is the same for SCTP and TCP.
    let listener = TcpListener::from(socket);
    thread::spawn(move || {
        while let Ok((mut stream, client)) = listener.accept() {
            let _gone = stream.write_all(format!("{at} {}", client.ip()).as_bytes());
        }
    });
}

/// Returns the answer of such a server.
pub fn sctp_ask(from: IpAddr, to: SocketAddr) -> std::io::Result<String> {
    let socket = sctp_socket(SocketAddr::new(from, 0))?;
    connect(&socket, &to)?;
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut answer = [0; 200];
    let length = stream.read(&mut answer)?;
    Ok(String::from_utf8_lossy(answer.get(..length).unwrap_or_default()).into_owned())
}

/// True if the kernel has SCTP.
pub fn has_sctp() -> bool {
    let socket = sctp_socket(SocketAddr::from(([127, 0, 0, 1], 0)));
    if let Err(error) = &socket {
        println!("LACKS SCTP in this kernel: {error}");
    }
    socket.is_ok()
}

fn sctp_reaches_pods(node: &mut StoryNode) {
    if !has_sctp() {
        return;
    }
    let lan = Lan::make(LanOptions::default());
    let (here, there) = (pod(&lan.node1), pod(&lan.node2));
    for host in [here, there] {
        host.net.enter(|| addresses(host).into_iter().for_each(|ip| sctp_server((ip, TARGET).into())));
    }
    let agent = agent(node, &lan, &[]);
    for (host, name) in [(here, "here"), (there, "there")] {
        let endpoints = addresses(host).map(|ip| (ip, name));
        node.write("web.yaml", &service("Cluster", &endpoints).replace("UDP", "SCTP"));
        agent.wait_for("its backends are there", |dump| {
            dump.backends.len() == 4 && dump.backends.values().all(|b| addresses(host).contains(&b.addr.to_ip()))
        });
        let sides = addresses(&lan.client).into_iter().zip(addresses(&lan.node1.host)).zip(addresses(host));
        for ((client, own), backend) in sides {
            let to = SocketAddr::from((own, NODE_PORT));
            let seen = if name == "here" { client } else { own };
            for _ in 0..3 {
                let answer = lan.client.net.enter(|| sctp_ask(client, to)).expect("an answer");
                let server = SocketAddr::from((backend, TARGET));
                assert_eq!(answer, format!("{server} {seen}"), "SCTP to {to}, a backend {name}");
            }
        }
    }
}

/// The client dials through a VLAN on the wire of node1; the route to the remote backend has no VLAN.
fn vlan_clients_reach_pods(node: &mut StoryNode) {
    let lan = Lan::make(LanOptions::default());
    let add = ["link", "add", "link", "eth0", "name", "eth0.5", "type", "vlan", "id", "5"];
    let made = lan.node1.host.net.enter(|| Command::new("ip").args(add).output()).expect("the command ip");
    if !made.status.success() {
        println!("LACKS VLAN devices in this kernel: {}", String::from_utf8_lossy(&made.stderr).trim());
        return;
    }
    lan.client.net.run(&[&["ip"], add.as_slice()].concat());
    let (own, client) = (["172.31.5.1", "fd31:5::1"], ["172.31.5.2", "fd31:5::2"]);
    for (net, addresses) in [(&lan.node1.host.net, own), (&lan.client.net, client)] {
        net.run(&["ip", "link", "set", "eth0.5", "up"]);
        net.run(&["ip", "address", "add", &format!("{}/24", addresses[0]), "dev", "eth0.5"]);
        net.run(&["ip", "address", "add", &format!("{}/64", addresses[1]), "dev", "eth0.5", "nodad"]);
    }
    let (here, there) = (pod(&lan.node1), pod(&lan.node2));
    [here, there].into_iter().for_each(serve);
    let agent = agent(node, &lan, &[]);
    until("the programs are at the VLAN", || {
        let shown = lan.node1.host.net.enter(|| crate::agent::run(node, &["get", "devices"]));
        let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
        shown.lines().any(|row| row.starts_with("eth0.5 ") && row.contains("uplink"))
    });
    for (host, name) in [(here, "here"), (there, "there")] {
        node.write("web.yaml", &service("Cluster", &addresses(host).map(|ip| (ip, name))));
        agent.wait_for("its backends are there", |dump| {
            dump.backends.len() == 4 && dump.backends.values().all(|b| addresses(host).contains(&b.addr.to_ip()))
        });
        for ((own, client), backend) in own.into_iter().zip(client).zip(addresses(host)) {
            let to = SocketAddr::from((own.parse::<IpAddr>().expect("an address"), NODE_PORT));
            let (tcp, udp) = lan.client.net.enter(|| (tcp_ask(to), Client::udp(to).ask(to)));
            let (server, seen) = tcp.expect("an answer");
            assert_eq!(server, SocketAddr::from((backend, TARGET)).to_string(), "TCP to {to}, a backend {name}");
            if name == "here" {
                assert_eq!(seen, client, "the client address is kept");
            }
            assert_eq!(udp, (server, Some(to)), "UDP to {to}, a backend {name}");
        }
    }
}
