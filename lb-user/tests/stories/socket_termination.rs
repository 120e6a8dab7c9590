//! Ending of sockets whose backend was removed: which sockets are ended, and what their application sees.

use std::{
    fs::File,
    net::{SocketAddr, TcpListener, UdpSocket},
    process::{Child, Command},
    thread,
    time::Duration,
};

use lb_common::{AddrPort, FrontendKey, Proto, Translation};
use lb_dataplane::sockets::{self, EndReport, Search};
use lb_kernel::sock_diag::bound_sockets;
use lb_lab::LabNamespace;
use rustix::{
    io::{Errno, Result},
    mount::mount_bind,
    net::{RecvFlags, recv},
};

use crate::{
    Story,
    agent::Agent,
    node::{StoryNode, ip, service},
    sockets::{Client, at, mapped, tcp_server, udp_server},
};

pub const STORIES: &[Story] = &[
    ("connected_udp_sockets_of_a_removed_backend_are_ended", connected_sockets_end),
    ("waiting_udp_receivers_of_a_removed_backend_are_woken", receivers_are_woken),
    ("udp_sockets_without_a_translation_to_the_removed_backend_are_not_ended", sockets_elsewhere_are_not_ended),
    ("udp_sockets_of_two_services_with_one_backend_address_are_distinguished", two_services_one_address),
    ("sockets_of_many_removed_backends_are_ended_at_once", many_backends),
    ("all_udp_sockets_except_those_of_live_backends_are_ended", all_except_live_backends),
    ("udp_sockets_in_other_network_namespaces_are_ended", other_namespaces),
    ("udp_sockets_bound_to_an_interface_are_ended", bound_to_an_interface),
    ("tcp_sockets_of_a_removed_backend_are_ended", tcp_sockets_end),
    ("sockets_bound_to_a_port_are_listed_with_their_process", bound_sockets_are_listed),
];

const VIP: &str = "10.96.0.53:53";
const VIP6: &str = "[fd96::53]:53";
const BACKEND: &str = "10.0.0.1:5353";
const BACKEND6: &str = "[fd00::1]:5353";

fn serve_dns(node: &StoryNode) -> Agent {
    node.write("dns.yaml", &service("dns", &["10.96.0.53", "fd96::53"], "UDP", 53, &[BACKEND, BACKEND6]));
    udp_server(BACKEND);
    udp_server(BACKEND6);
    node.agent(&[])
}

/// A backend that the story treats as removed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct DeadBackend {
    backend: u32,
    target: AddrPort,
    proto: Proto,
}

/// Ends sockets that were led to one of these backends.
fn end(node: &StoryNode, dead: &[DeadBackend]) -> EndReport {
    let search = |proto: Proto| {
        let peers = dead.iter().filter(|dead| dead.proto == proto).map(|dead| dead.target).collect();
        let is_lost = move |found: &Translation| {
            let target = AddrPort { addr: found.backend_addr, port: found.backend_port };
            dead.contains(&DeadBackend { backend: found.backend, target, proto })
        };
        Search { proto, peers: Some(peers), is_lost: Box::new(is_lost) }
    };
    sockets::end(&node.maps(), [Proto::Udp, Proto::Tcp].map(search).into()).expect("the maps and /proc")
}

/// Ends sockets that were led to any backend but these.
fn end_all(node: &StoryNode, proto: Proto, alive: &[u32]) -> EndReport {
    let is_lost = |found: &Translation| !alive.contains(&found.backend);
    let search = Search { proto, peers: None, is_lost: Box::new(is_lost) };
    sockets::end(&node.maps(), vec![search]).expect("the maps and /proc")
}

/// Returns the backends of a VIP, as if they had been removed.
fn dead_backends(agent: &Agent, vip: SocketAddr, proto: Proto) -> Vec<DeadBackend> {
    let dump = agent.dump();
    let vip = AddrPort::from(vip);
    let service = dump.frontends.get(&FrontendKey::new(vip.addr, vip.port, proto)).expect("a frontend").service;
    let backends = dump.backends.iter().filter(|(_, backend)| backend.service == service);
    backends
        .map(|(id, backend)| DeadBackend {
            backend: *id,
            target: AddrPort { addr: backend.addr, port: backend.port },
            proto,
        })
        .collect()
}

/// Ends the sockets of the dead backends and returns their number.
fn end_sockets(node: &StoryNode, dead: &[DeadBackend]) -> u64 {
    count_ended(&end(node, dead))
}

fn count_ended(report: &EndReport) -> u64 {
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

/// Asserts that a connected UDP socket was ended: it has no peer, and the first receive returns ECONNABORTED.
fn assert_ended(client: &Client) {
    assert_eq!(client.peer(), None);
    assert_eq!(receive(client), Err(Errno::CONNABORTED));
    assert_eq!(client.send(), Err(Errno::DESTADDRREQ));
}

fn assert_open(client: &Client) {
    client.send().expect("sent");
    client.receive();
}

fn connected_sockets_end(node: &mut StoryNode) {
    let agent = serve_dns(node);
    let both = [dead_backends(&agent, at(VIP), Proto::Udp), dead_backends(&agent, at(VIP6), Proto::Udp)].concat();
    for vip in [at(VIP), at(VIP6), mapped(at(VIP))] {
        let (one, two) = (connected(vip), connected(vip));
        assert_eq!(end_sockets(node, &both), 2);
        assert_ended(&one);
        // An application may also send first.
        two.send().expect_err("a socket without a peer");
        assert_eq!(receive(&two), Err(Errno::CONNABORTED));
        // The application can connect the socket again.
        two.connect(vip).expect("connected");
        assert_open(&two);
        assert_eq!(end_sockets(node, &both), 1);
    }
    assert_eq!(end_sockets(node, &both), 0);
}

fn receivers_are_woken(node: &mut StoryNode) {
    let agent = serve_dns(node);
    let client = connected(at(VIP));
    thread::scope(|scope| {
        let waiting = scope.spawn(|| receive(&client));
        // The error is the same if the thread does not wait yet.
        assert_eq!(end_sockets(node, &dead_backends(&agent, at(VIP), Proto::Udp)), 1);
        assert_eq!(waiting.join().expect("no panic"), Err(Errno::CONNABORTED));
    });
}

fn sockets_elsewhere_are_not_ended(node: &mut StoryNode) {
    let agent = serve_dns(node);
    udp_server("10.0.0.4:7");
    let direct = [connected(at(BACKEND)), connected(at(BACKEND6)), connected(mapped(at(BACKEND)))];
    let unconnected = Client::udp(at(VIP));
    unconnected.ask(at(VIP));
    let disconnected = connected(at(VIP));
    disconnected.disconnect();
    let elsewhere = connected(at(VIP));
    elsewhere.connect(at("10.0.0.4:7")).expect("connected");
    // Reconnected to the address of its backend, without translation.
    let direct_later = connected(at(VIP));
    direct_later.connect(at(BACKEND)).expect("connected");
    // Sent to the VIP once, then connected to the address of the backend.
    let sent_before = Client::udp(at(VIP));
    sent_before.ask(at(VIP));
    sent_before.connect(at(BACKEND)).expect("connected");
    let backends = [dead_backends(&agent, at(VIP), Proto::Udp), dead_backends(&agent, at(VIP6), Proto::Udp)].concat();
    assert_eq!(end_sockets(node, &backends), 0);
    for client in direct.iter().chain([&elsewhere, &direct_later, &sent_before]) {
        assert_open(client);
    }
    for client in [&unconnected, &disconnected] {
        assert_eq!(client.ask(at(VIP)).1, Some(at(VIP)));
    }
    // Id, address and protocol must all match.
    let _connected = connected(at(VIP));
    let [wanted] = backends.iter().filter(|dead| dead.target == at(BACKEND).into()).collect::<Vec<_>>()[..] else {
        panic!("{backends:?}")
    };
    assert_eq!(end_sockets(node, &[DeadBackend { backend: wanted.backend + 100, ..*wanted }]), 0);
    assert_eq!(end_sockets(node, &[DeadBackend { target: at("10.0.0.4:7").into(), ..*wanted }]), 0);
    assert_eq!(end_sockets(node, &[DeadBackend { proto: Proto::Tcp, ..*wanted }]), 0);
    assert_eq!(end_sockets(node, &[*wanted]), 1);
}

fn two_services_one_address(node: &mut StoryNode) {
    node.write("b.yaml", &service("b", &["10.96.0.2"], "UDP", 53, &[BACKEND]));
    let agent = serve_dns(node);
    let (first, second) = (connected(at(VIP)), connected(at("10.96.0.2:53")));
    assert_eq!(end_sockets(node, &dead_backends(&agent, at("10.96.0.2:53"), Proto::Udp)), 1);
    assert_open(&first);
    assert_ended(&second);
}

fn many_backends(node: &mut StoryNode) {
    // More backends than fit into one sock_diag filter.
    let backends: Vec<_> = (0..70).map(|n| format!("10.0.0.1:{}", 6000 + n)).collect();
    let backends: Vec<_> = backends.iter().map(String::as_str).collect();
    node.write("dns.yaml", &service("dns", &["10.96.0.53"], "UDP", 53, &backends));
    backends.iter().for_each(|backend| udp_server(backend));
    let agent = node.agent(&[]);
    let clients: Vec<_> = (0..150).map(|_| connected(at(VIP))).collect();
    let mut dead = dead_backends(&agent, at(VIP), Proto::Udp);
    assert_eq!(dead.len(), backends.len());
    let rest = dead.split_off(20);
    let few = end_sockets(node, &dead);
    assert_eq!(few + end_sockets(node, &[dead, rest].concat()), 150);
    clients.iter().for_each(assert_ended);
}

fn all_except_live_backends(node: &mut StoryNode) {
    node.write("b.yaml", &service("b", &["10.96.0.2"], "UDP", 53, &["10.0.0.3:5353"]));
    udp_server("10.0.0.3:5353");
    let agent = serve_dns(node);
    let (dying, living) = ([at(VIP), at(VIP6), mapped(at(VIP))].map(connected), connected(at("10.96.0.2:53")));
    let unconnected = Client::udp(at(VIP));
    unconnected.ask(at(VIP));
    let alive: Vec<_> = dead_backends(&agent, at("10.96.0.2:53"), Proto::Udp).iter().map(|dead| dead.backend).collect();
    assert_eq!(count_ended(&end_all(node, Proto::Udp, &alive)), 3);
    dying.iter().for_each(assert_ended);
    assert_open(&living);
    unconnected.ask(at(VIP));
}

fn other_namespaces(node: &mut StoryNode) {
    let agent = serve_dns(node);
    // mountinfo escapes the space.
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
    let both = [dead_backends(&agent, at(VIP), Proto::Udp), dead_backends(&agent, at(VIP6), Proto::Udp)].concat();
    assert_eq!(end_sockets(node, &both), 4);
    for client in [&here, &kept_by_mount].into_iter().chain(&kept_by_process) {
        assert_ended(client);
    }
    // A scan of the agent may hold the mount open at this moment: a plain unmount would find it busy.
    rustix::mount::unmount(&mount, rustix::mount::UnmountFlags::DETACH).expect("unmounted");
    // The visits to other namespaces have not moved this thread.
    assert_open(&connected(at(VIP)));
}

fn bound_to_an_interface(node: &mut StoryNode) {
    let agent = serve_dns(node);
    ip(&["link", "add", "there", "type", "veth", "peer", "name", "other"]);
    ip(&["addr", "add", "192.0.2.1/24", "dev", "there"]);
    ip(&["link", "set", "there", "up"]);
    let client = Client::udp(at(VIP));
    bind_to_device(&client, "there");
    client.connect(at(VIP)).expect("connected");
    assert_eq!(end_sockets(node, &dead_backends(&agent, at(VIP), Proto::Udp)), 1);
    assert_ended(&client);
}

fn bind_to_device(client: &Client, name: &str) {
    lb_kernel::socket_options::bind_to_device(&client.fd(), name).expect("SO_BINDTODEVICE");
}

/// Runs `work` in a new network namespace with the first backend of each family on `lo`.
pub fn in_namespace<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let net = LabNamespace::new();
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

fn tcp_sockets_end(node: &mut StoryNode) {
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

    let web = dead_backends(&agent, at("10.96.0.1:80"), Proto::Tcp);
    let mut doomed: Vec<_> = web.into_iter().filter(|dead| dead.target == at("10.0.0.1:8080").into()).collect();
    doomed.extend(dead_backends(&agent, at("[fd96::1]:80"), Proto::Tcp));
    let gone = end_sockets(node, &doomed);
    assert!((5..36).contains(&gone), "about half of the connections have this backend: {gone}");
    let (dead, alive): (Vec<_>, Vec<_>) = through.iter().partition(|client| client.peer().is_none());
    assert_eq!(dead.len() as u64, gone);
    for client in dead {
        assert_eq!(receive(client), Err(Errno::CONNABORTED));
        assert_eq!(client.send(), Err(Errno::PIPE));
    }
    for client in alive.iter().skip(1).copied().chain(&direct) {
        assert_open(client);
    }
    // A search without peers distinguishes translated and direct connections by socket cookie.
    let left = alive.len() as u64;
    assert_eq!(count_ended(&end_all(node, Proto::Tcp, &[])), left);
    direct.iter().for_each(assert_open);
}

/// Starts a TCP server that echoes and keeps its connections open.
pub fn hold_connections(address: &str) {
    use std::io::{Read as _, Write as _};
    let listener = TcpListener::bind(address).expect("a free port");
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let (mut stream, mut buffer) = (stream, [0; 64]);
                while let Ok(length) = stream.read(&mut buffer) {
                    if length == 0 {
                        // The client closed its half; keep the other one open.
                        thread::sleep(Duration::from_secs(60));
                        return;
                    }
                    let _gone = stream.write_all(buffer.get(..length).unwrap_or_default());
                }
            });
        }
    });
}

fn bound_sockets_are_listed(_node: &mut StoryNode) {
    tcp_server("10.0.0.1:30080");
    tcp_server("[fd00::1]:30080");
    let connected = UdpSocket::bind("10.0.0.2:30053").expect("a free port");
    connected.connect("10.0.0.1:30054").expect("connected");
    let _bound = UdpSocket::bind("[fd00::1]:30053").expect("a free port");
    let _other_port = UdpSocket::bind("10.0.0.1:30054").expect("a free port");
    let _other_proto = TcpListener::bind("10.0.0.1:30053").expect("a free port");
    in_namespace(|| UdpSocket::bind("10.0.0.1:30053").expect("a free port"));

    let found =
        bound_sockets(&|proto, port| (proto == Proto::Tcp && port == 30080) || (proto == Proto::Udp && port == 30053))
            .expect("a list");
    println!("{found:?}");
    let addresses: Vec<_> = found.iter().map(|bound| (bound.proto, bound.address)).collect();
    let wanted =
        [(Proto::Tcp, at("10.0.0.1:30080")), (Proto::Tcp, at("[fd00::1]:30080")), (Proto::Udp, at("[fd00::1]:30053"))];
    assert_eq!(addresses, wanted);
    for bound in &found {
        let owner = bound.owner.as_ref().expect("this process");
        assert_eq!(owner.pid, std::process::id());
        assert_eq!(owner.comm, std::fs::read_to_string("/proc/self/comm").expect("a name").trim_end());
    }
    assert_eq!(bound_sockets(&|_, port| port == 1).expect("a list"), []);
}
