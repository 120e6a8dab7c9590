//! Sockets whose backend has gone: which of them are ended, and what their application sees.

use std::{
    ffi::CStr,
    fs::File,
    net::{SocketAddr, TcpListener, UdpSocket},
    process::{Child, Command},
    thread,
    time::Duration,
};

use lb_common::AddrPort;
use lb_common::{FrontendKey, Proto};
use lb_dataplane::sockets::{Dead, Report, end, end_all};
use lb_kernel::sock_diag::bound;
use lb_lab::Namespace;
use rustix::{
    io::{Errno, Result},
    mount::mount_bind,
    net::{RecvFlags, recv},
};

use crate::{
    Story,
    agent::Agent,
    node::{Node, ip, service},
    sockets::{Client, at, mapped, tcp_server, udp_server},
};

pub const STORIES: &[Story] = &[
    ("kill_connected_udp_sockets_of_a_dead_backend_end", connected_sockets_end),
    ("kill_udp_receivers_that_wait_are_woken", receivers_are_woken),
    ("kill_udp_sockets_that_are_elsewhere_are_untouched", sockets_elsewhere_are_untouched),
    ("kill_udp_backends_of_two_services_at_one_address_are_told_apart", two_services_one_address),
    ("kill_many_dead_backends_at_once", many_backends),
    ("kill_all_but_those_of_backends_that_live", all_but_those_that_live),
    ("kill_sockets_of_other_network_namespaces_end", other_namespaces),
    ("kill_udp_sockets_bound_to_an_interface_end", bound_to_an_interface),
    ("kill_tcp_sockets_of_a_dead_backend_end", tcp_sockets_end),
    ("kill_tells_who_is_bound_to_a_port", bound_sockets_are_told),
];

const VIP: &str = "10.96.0.53:53";
const VIP6: &str = "[fd96::53]:53";
const BACKEND: &str = "10.0.0.1:5353";
const BACKEND6: &str = "[fd00::1]:5353";

fn dns(node: &Node) -> Agent {
    node.write("dns.yaml", &service("dns", &["10.96.0.53", "fd96::53"], "UDP", 53, &[BACKEND, BACKEND6]));
    udp_server(BACKEND);
    udp_server(BACKEND6);
    node.agent(&[])
}

/// The backends of a VIP, as if they were gone.
fn dead(agent: &Agent, vip: SocketAddr, proto: Proto) -> Vec<Dead> {
    let dump = agent.dump();
    let vip = AddrPort::from(vip);
    let service = dump.frontends.get(&FrontendKey::new(vip.addr, vip.port, proto)).expect("a frontend").service;
    let backends = dump.backends.iter().filter(|(_, backend)| backend.service == service);
    backends
        .map(|(id, backend)| Dead { backend: *id, target: AddrPort { addr: backend.addr, port: backend.port }, proto })
        .collect()
}

/// Ends sockets; how many.
fn ended(node: &Node, dead: &[Dead]) -> u64 {
    count(&end(&node.maps(), dead).expect("the maps and /proc"))
}

fn count(report: &Report) -> u64 {
    println!("{report:?}");
    assert!(report.failures.is_empty(), "{:?}", report.failures);
    report.ended.values().sum()
}

fn connected(to: SocketAddr) -> Client {
    let client = Client::udp(to);
    client.connect(to).expect("connected");
    client.send().expect("sent");
    client.receive();
    client
}

fn receive(client: &Client) -> Result<usize> {
    recv(client.fd(), &mut [0; 64][..], RecvFlags::empty()).map(|(_, length)| length)
}

/// What a connected socket that was ended says, once: it has no peer then.
fn has_ended(client: &Client) {
    assert_eq!(client.peer(), None);
    assert_eq!(receive(client), Err(Errno::CONNABORTED));
    assert_eq!(client.send(), Err(Errno::DESTADDRREQ));
}

fn still_talks(client: &Client) {
    client.send().expect("sent");
    client.receive();
}

fn connected_sockets_end(node: &mut Node) {
    let agent = dns(node);
    let both = [dead(&agent, at(VIP), Proto::Udp), dead(&agent, at(VIP6), Proto::Udp)].concat();
    for vip in [at(VIP), at(VIP6), mapped(at(VIP))] {
        let (one, two) = (connected(vip), connected(vip));
        assert_eq!(ended(node, &both), 2);
        has_ended(&one);
        // The application may as well send first.
        two.send().expect_err("a socket without a peer");
        assert_eq!(receive(&two), Err(Errno::CONNABORTED));
        // And it can begin again.
        two.connect(vip).expect("connected");
        still_talks(&two);
        assert_eq!(ended(node, &both), 1);
    }
    assert_eq!(ended(node, &both), 0);
}

fn receivers_are_woken(node: &mut Node) {
    let agent = dns(node);
    let client = connected(at(VIP));
    thread::scope(|scope| {
        let waiting = scope.spawn(|| receive(&client));
        // Woken or not yet waiting, it sees the same.
        assert_eq!(ended(node, &dead(&agent, at(VIP), Proto::Udp)), 1);
        assert_eq!(waiting.join().expect("no panic"), Err(Errno::CONNABORTED));
    });
}

fn sockets_elsewhere_are_untouched(node: &mut Node) {
    let agent = dns(node);
    udp_server("10.0.0.4:7");
    let direct = [connected(at(BACKEND)), connected(at(BACKEND6)), connected(mapped(at(BACKEND)))];
    let unconnected = Client::udp(at(VIP));
    unconnected.ask(at(VIP));
    let left = connected(at(VIP));
    left.disconnect();
    let elsewhere = connected(at(VIP));
    elsewhere.connect(at("10.0.0.4:7")).expect("connected");
    // To the very backend that it was given, by its own address.
    let turned = connected(at(VIP));
    turned.connect(at(BACKEND)).expect("connected");
    // It spoke to the VIP once, and is connected to the backend by its own address.
    let spoke = Client::udp(at(VIP));
    spoke.ask(at(VIP));
    spoke.connect(at(BACKEND)).expect("connected");
    let backends = [dead(&agent, at(VIP), Proto::Udp), dead(&agent, at(VIP6), Proto::Udp)].concat();
    assert_eq!(ended(node, &backends), 0);
    for client in direct.iter().chain([&elsewhere, &turned, &spoke]) {
        still_talks(client);
    }
    for client in [&unconnected, &left] {
        assert_eq!(client.ask(at(VIP)).1, Some(at(VIP)));
    }
    // An id alone, or an address alone, names no backend.
    let _connected = connected(at(VIP));
    let [wanted] = backends.iter().filter(|dead| dead.target == at(BACKEND).into()).collect::<Vec<_>>()[..] else {
        panic!("{backends:?}")
    };
    assert_eq!(ended(node, &[Dead { backend: wanted.backend + 100, ..*wanted }]), 0);
    assert_eq!(ended(node, &[Dead { target: at("10.0.0.4:7").into(), ..*wanted }]), 0);
    assert_eq!(ended(node, &[Dead { proto: Proto::Tcp, ..*wanted }]), 0);
    assert_eq!(ended(node, &[*wanted]), 1);
}

fn two_services_one_address(node: &mut Node) {
    node.write("b.yaml", &service("b", &["10.96.0.2"], "UDP", 53, &[BACKEND]));
    let agent = dns(node);
    let (first, second) = (connected(at(VIP)), connected(at("10.96.0.2:53")));
    assert_eq!(ended(node, &dead(&agent, at("10.96.0.2:53"), Proto::Udp)), 1);
    still_talks(&first);
    has_ended(&second);
}

fn many_backends(node: &mut Node) {
    // More than the kernel's filter is made for.
    let backends: Vec<_> = (0..70).map(|n| format!("10.0.0.1:{}", 6000 + n)).collect();
    let backends: Vec<_> = backends.iter().map(String::as_str).collect();
    node.write("dns.yaml", &service("dns", &["10.96.0.53"], "UDP", 53, &backends));
    backends.iter().for_each(|backend| udp_server(backend));
    let agent = node.agent(&[]);
    let clients: Vec<_> = (0..150).map(|_| connected(at(VIP))).collect();
    let mut dead = dead(&agent, at(VIP), Proto::Udp);
    assert_eq!(dead.len(), backends.len());
    let rest = dead.split_off(20);
    let few = ended(node, &dead);
    assert_eq!(few + ended(node, &[dead, rest].concat()), 150);
    clients.iter().for_each(has_ended);
}

fn all_but_those_that_live(node: &mut Node) {
    node.write("b.yaml", &service("b", &["10.96.0.2"], "UDP", 53, &["10.0.0.3:5353"]));
    udp_server("10.0.0.3:5353");
    let agent = dns(node);
    let (dying, living) = ([at(VIP), at(VIP6), mapped(at(VIP))].map(connected), connected(at("10.96.0.2:53")));
    let unconnected = Client::udp(at(VIP));
    unconnected.ask(at(VIP));
    let alive: Vec<_> = dead(&agent, at("10.96.0.2:53"), Proto::Udp).iter().map(|dead| dead.backend).collect();
    let report = end_all(&node.maps(), Proto::Udp, &|backend| alive.contains(&backend));
    assert_eq!(count(&report.expect("the maps and /proc")), 3);
    dying.iter().for_each(has_ended);
    still_talks(&living);
    unconnected.ask(at(VIP));
}

fn other_namespaces(node: &mut Node) {
    let agent = dns(node);
    let mount = node.directory.join("a namespace");
    File::create(&mount).expect("a file");
    let here = connected(at(VIP));
    let kept_by_mount = in_namespace(|| {
        mount_bind("/proc/thread-self/ns/net", &mount).expect("a bind mount");
        connect_without_server(at(VIP6))
    });
    let (_process, kept_by_process) = in_namespace(|| {
        let process = Command::new("sleep").arg("1000").spawn().expect("a process");
        (Process(process), [connect_without_server(at(VIP)), connect_without_server(mapped(at(VIP)))])
    });
    let both = [dead(&agent, at(VIP), Proto::Udp), dead(&agent, at(VIP6), Proto::Udp)].concat();
    assert_eq!(ended(node, &both), 4);
    for client in [&here, &kept_by_mount].into_iter().chain(&kept_by_process) {
        has_ended(client);
    }
    rustix::mount::unmount(&mount, rustix::mount::UnmountFlags::empty()).expect("unmounted");
    // The thread that looked around has not taken us anywhere.
    still_talks(&connected(at(VIP)));
}

fn bound_to_an_interface(node: &mut Node) {
    let agent = dns(node);
    ip(&["link", "add", "there", "type", "veth", "peer", "name", "else"]);
    ip(&["addr", "add", "192.0.2.1/24", "dev", "there"]);
    ip(&["link", "set", "there", "up"]);
    let client = Client::udp(at(VIP));
    bind_to_device(&client, c"there");
    client.connect(at(VIP)).expect("connected");
    assert_eq!(ended(node, &dead(&agent, at(VIP), Proto::Udp)), 1);
    has_ended(&client);
}

fn bind_to_device(client: &Client, name: &CStr) {
    lb_kernel::device_options::bind_to_device(client.fd(), name).expect("SO_BINDTODEVICE");
}

/// Runs `work` in a network namespace that has the node's backends on `lo`.
pub fn in_namespace<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let net = Namespace::new();
    net.setup().up("lo").address("lo", "10.0.0.1/32").address("lo", "fd00::1/128").apply();
    net.enter(work)
}

fn connect_without_server(to: SocketAddr) -> Client {
    let client = Client::udp(to);
    client.connect(to).expect("connected");
    client
}

struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _ended = self.0.wait();
    }
}

fn tcp_sockets_end(node: &mut Node) {
    node.write("web.yaml", &service("web", &["10.96.0.1"], "TCP", 80, &["10.0.0.1:8080", "10.0.0.2:8080"]));
    node.write("six.yaml", &service("six", &["fd96::1"], "TCP", 80, &["[fd00::1]:8080"]));
    for server in ["10.0.0.1:8080", "10.0.0.2:8080", "[fd00::1]:8080"] {
        hold_connections(server);
    }
    let agent = node.agent(&[]);
    let connect = |to| {
        let client = Client::tcp(to);
        client.connect(to).expect("a connection");
        client
    };
    let direct = [connect(at("10.0.0.1:8080")), connect(mapped(at("10.0.0.1:8080"))), connect(at("[fd00::1]:8080"))];
    let mut through: Vec<_> =
        (0..40).map(|n| connect(if n % 2 == 0 { at("10.96.0.1:80") } else { mapped(at("10.96.0.1:80")) })).collect();
    through.push(connect(at("[fd96::1]:80")));
    let closing = through.first().expect("a client");
    rustix::net::shutdown(closing.fd(), rustix::net::Shutdown::Write).expect("half closed");

    let web = dead(&agent, at("10.96.0.1:80"), Proto::Tcp);
    let mut doomed: Vec<_> = web.into_iter().filter(|dead| dead.target == at("10.0.0.1:8080").into()).collect();
    doomed.extend(dead(&agent, at("[fd96::1]:80"), Proto::Tcp));
    let gone = ended(node, &doomed);
    assert!((5..36).contains(&gone), "about half of them: {gone}");
    let (dead, alive): (Vec<_>, Vec<_>) = through.iter().partition(|client| client.peer().is_none());
    assert_eq!(dead.len() as u64, gone);
    for client in dead {
        assert_eq!(receive(client), Err(Errno::CONNABORTED));
        assert_eq!(client.send(), Err(Errno::PIPE));
    }
    for client in alive.iter().skip(1).copied().chain(&direct) {
        still_talks(client);
    }
    // By cookie they are told apart as well when all sockets are looked at.
    let left = alive.len() as u64;
    let report = end_all(&node.maps(), Proto::Tcp, &|_| false).expect("the maps and /proc");
    assert_eq!(count(&report), left);
    direct.iter().for_each(still_talks);
}

/// A TCP server that echoes and closes nothing.
pub fn hold_connections(address: &str) {
    use std::io::{Read as _, Write as _};
    let listener = TcpListener::bind(address).expect("a free port");
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let (mut stream, mut buffer) = (stream, [0; 64]);
                while let Ok(length) = stream.read(&mut buffer) {
                    if length == 0 {
                        // Half closed: the other half stays open.
                        thread::sleep(Duration::from_secs(60));
                        return;
                    }
                    let _gone = stream.write_all(buffer.get(..length).unwrap_or_default());
                }
            });
        }
    });
}

fn bound_sockets_are_told(_node: &mut Node) {
    tcp_server("10.0.0.1:30080");
    tcp_server("[fd00::1]:30080");
    let connected = UdpSocket::bind("10.0.0.2:30053").expect("a free port");
    connected.connect("10.0.0.1:30054").expect("connected");
    let _bound = UdpSocket::bind("[fd00::1]:30053").expect("a free port");
    let _other_port = UdpSocket::bind("10.0.0.1:30054").expect("a free port");
    let _other_proto = TcpListener::bind("10.0.0.1:30053").expect("a free port");
    in_namespace(|| UdpSocket::bind("10.0.0.1:30053").expect("a free port"));

    let found = bound(&|proto, port| (proto == Proto::Tcp && port == 30080) || (proto == Proto::Udp && port == 30053))
        .expect("a list");
    println!("{found:?}");
    let places: Vec<_> = found.iter().map(|bound| (bound.proto, bound.address)).collect();
    let wanted =
        [(Proto::Tcp, at("10.0.0.1:30080")), (Proto::Tcp, at("[fd00::1]:30080")), (Proto::Udp, at("[fd00::1]:30053"))];
    assert_eq!(places, wanted);
    for bound in &found {
        let owner = bound.owner.as_ref().expect("this process");
        assert_eq!(owner.pid, std::process::id());
        assert_eq!(owner.comm, std::fs::read_to_string("/proc/self/comm").expect("a name").trim_end());
    }
    assert_eq!(bound(&|_, port| port == 1).expect("a list"), []);
}
