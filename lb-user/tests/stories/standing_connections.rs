//! Connections that netfilter translates when the programs come: as kube-proxy's, they stand, however many connections
//! begin meanwhile, and at whatever port of the node netfilter masquerades them.

use std::{
    collections::BTreeSet,
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use lb_common::{FlowFlags, FlowKey, Tuple};
use lb_dataplane::flows::Flows;
use lb_kernel::{
    clock::boot_time_ns,
    netfilter::conntrack::{Connection, Conntrack},
};
use lb_lab::network::{Host, Lan, LanOptions};
use rustix::{
    net::{
        AddressFamily, SocketFlags, SocketType, bind, connect, socket_with,
        sockopt::{Timeout, set_socket_linger, set_socket_reuseaddr, set_socket_timeout},
    },
    process::{Resource, Rlimit, getrlimit, setrlimit},
};

use crate::{
    Story,
    agent::{self, until},
    node::StoryNode,
    packets::{NODE_PORT, TARGET, addresses, agent, pod, service},
};

pub const STORIES: &[Story] =
    &[("connections_of_netfilter_stand_while_the_programs_come_and_others_begin", connections_stand)];

/// Standing connections to a NodePort, of each family.
const STANDING: u16 = 500;
/// The first port of standing connections.
const FIRST_STANDING: u16 = 10000;
/// Clients that open one connection after the other, for each family.
const OPENERS: u16 = 2;
/// Ports from which a client opens its connections, in turn: netfilter knows each from a connection that is over.
const PORTS: u16 = 100;
/// The first port of the clients that open connections.
const FIRST_PORT: u16 = 20000;
/// Limit for an answer.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Hand-overs: to Beeline and back.
const ROUNDS: usize = 3;

/// Answers each octet with itself, on a thread for each connection.
fn echo(host: &Host) {
    for ip in addresses(host) {
        let listener = host.net.enter(|| TcpListener::bind((ip, TARGET))).expect("a free port");
        thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let answer = move || {
                    let mut octet = [0];
                    while stream.read_exact(&mut octet).is_ok() && stream.write_all(&octet).is_ok() {}
                };
                let small = thread::Builder::new().stack_size(1 << 16);
                small.spawn(answer).expect("a thread");
            }
        });
    }
}

fn exchange(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.write_all(b"?")?;
    stream.read_exact(&mut [0])
}

/// Opens a connection from a port.
fn open(from: SocketAddr, to: SocketAddr) -> std::io::Result<TcpStream> {
    let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    set_socket_reuseaddr(&socket, true)?;
    set_socket_timeout(&socket, Timeout::Send, Some(TIMEOUT))?;
    bind(&socket, &from)?;
    connect(&socket, &to)?;
    Ok(TcpStream::from(socket))
}

/// Opens a connection, and ends it by a reset, so that its port does not wait.
fn open_once(from: SocketAddr, to: SocketAddr) -> std::io::Result<()> {
    let mut stream = open(from, to)?;
    exchange(&mut stream)?;
    set_socket_linger(&stream, Some(Duration::ZERO))?;
    Ok(())
}

/// Destination NAT of the NodePort to these backends, with masquerade to the ports that Beeline masquerades to. The
/// tables have the name of kube-proxy's, to which `beeline cleanup` hands flows.
fn add_kube_proxy(lan: &Lan, backends: [IpAddr; 2]) {
    for (family, backend) in ["ip", "ip6"].into_iter().zip(backends) {
        let backend = SocketAddr::from((backend, TARGET));
        lan.node1.host.net.run(&[
            "nft",
            &format!(
                "table {family} kube-proxy {{ \
                   chain in {{ type nat hook prerouting priority dstnat; tcp dport {NODE_PORT} dnat to {backend}; }}; \
                   chain out {{ type nat hook postrouting priority srcnat; \
                     meta l4proto tcp ct status dnat masquerade to :1024-29999 fully-random; }}; }}"
            ),
        ]);
    }
}

/// The open connections to the NodePort that netfilter translates.
fn of_netfilter(lan: &Lan) -> Vec<Connection> {
    let listed =
        lan.node1.host.net.enter(|| Conntrack::open().and_then(|conntrack| conntrack.expect("netfilter").list_dnat()));
    listed.expect("conntrack").into_iter().filter(|connection| !connection.is_closed).collect()
}

/// Asserts that neither direction of these connections is a flow of the programs', or may become one.
fn assert_left_to_netfilter(node: &StoryNode, connections: &[Connection]) {
    let flows = Flows::open(&node.maps()).expect("the map").read().expect("the map");
    let left: BTreeSet<(Tuple, u8)> = flows
        .into_iter()
        .filter(|(_, flow)| flow.flags & FlowFlags::NETFILTER != 0)
        .map(|(FlowKey { tuple, proto, .. }, _)| (tuple, proto))
        .collect();
    let is_missing = |connection: &&Connection| {
        [connection.original, connection.reply].iter().any(|tuple| !left.contains(&(*tuple, connection.proto)))
    };
    let missing: Vec<_> = connections.iter().filter(is_missing).collect();
    assert!(missing.is_empty(), "{} of {} connections: {:?}", missing.len(), connections.len(), missing.first());
}

fn connections_stand(node: &mut StoryNode) {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).expect("the hard limit is allowed");
    let lan = Lan::make(LanOptions::default());
    let backend = pod(&lan.node2);
    echo(backend);
    add_kube_proxy(&lan, addresses(backend));
    node.write("web.yaml", &service("Cluster", &addresses(backend).map(|ip| (ip, "there"))));
    let node_ports = addresses(&lan.node1.host).map(|ip| SocketAddr::from((ip, NODE_PORT)));
    let ways = || addresses(&lan.client).into_iter().zip(node_ports);
    let stand = |(from, to)| {
        let ports = FIRST_STANDING..FIRST_STANDING + STANDING;
        ports.map(move |port| open((from, port).into(), to).expect("netfilter serves the NodePort"))
    };
    let mut standing: Vec<TcpStream> = lan.client.net.enter(|| ways().flat_map(stand).collect());
    let own = |stream: &TcpStream| stream.local_addr().map(|own| (own.ip(), own.port())).expect("an address");
    let clients: BTreeSet<(IpAddr, u16)> = standing.iter().map(own).collect();
    let (running, opened, failed) = (AtomicBool::new(true), AtomicUsize::new(0), AtomicUsize::new(0));
    let open_others = |from: IpAddr, first_port: u16, to: SocketAddr| {
        lan.client.net.join();
        for port in (first_port..first_port + PORTS).cycle() {
            if !running.load(Ordering::Relaxed) {
                break;
            }
            let began = boot_time_ns() / 1_000_000;
            if let Err(error) = open_once((from, port).into(), to) {
                println!("{from}:{port} from {began} to {} ms: {error}", boot_time_ns() / 1_000_000);
                failed.fetch_add(1, Ordering::Relaxed);
            }
            opened.fetch_add(1, Ordering::Relaxed);
        }
    };
    let more = |count: usize| {
        let until_then = opened.load(Ordering::Relaxed) + count;
        until("connections begin", || opened.load(Ordering::Relaxed) >= until_then);
    };
    /// Ends the openers, after a failure too.
    struct End<'a>(&'a AtomicBool);
    impl Drop for End<'_> {
        fn drop(&mut self) {
            self.0.store(false, Ordering::Relaxed);
        }
    }
    let mut broken = 0;
    thread::scope(|scope| {
        let _end = End(&running);
        for (from, to) in ways() {
            for first_port in (FIRST_PORT..).step_by(PORTS.into()).take(OPENERS.into()) {
                scope.spawn(move || open_others(from, first_port, to));
            }
        }
        for _ in 0..ROUNDS {
            let note = |what: &str| println!("{what} at {} ms", boot_time_ns() / 1_000_000);
            more(200);
            note("the agent starts");
            let mut agent = agent(node, &lan, &[]);
            agent.wait_for_log("are left to it");
            let mut left = of_netfilter(&lan);
            left.retain(|Connection { original, .. }| clients.contains(&(original.src.to_ip(), original.src_port)));
            assert_eq!(left.len(), clients.len());
            assert_left_to_netfilter(node, &left);
            note("it serves");
            more(200);
            for stream in &mut standing {
                broken += usize::from(exchange(stream).inspect_err(|error| println!("{stream:?}: {error}")).is_err());
            }
            note("exchanged with it");
            if broken > 0 {
                break;
            }
            assert!(agent.terminate().success());
            note("cleanup");
            assert!(lan.node1.host.net.enter(|| agent::run(node, &["cleanup"])).status.success());
            note("it is over");
            for stream in &mut standing {
                broken += usize::from(exchange(stream).inspect_err(|error| println!("{stream:?}: {error}")).is_err());
            }
            note("exchanged without it");
            if broken > 0 {
                break;
            }
        }
    });
    let [opened, failed] = [opened, failed].map(AtomicUsize::into_inner);
    println!("{} standing connections, {broken} broken; {opened} opened, {failed} failed", standing.len());
    assert_eq!(broken, 0);
    assert_eq!(failed, 0);
}
