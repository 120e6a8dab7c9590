//! hostPorts of pods, without the CNI plugin portmap: callers on the node, in pods, outside and on another node; and
//! the life of a port, from its pod to the pod's successor.

use std::{
    net::{IpAddr, SocketAddr, TcpListener, UdpSocket},
    thread,
    time::Duration,
};

use lb_common::capacity;
use lb_kernel::bpf::typed::TypedMap;
use lb_lab::network::{Host, Lan, LanOptions};
use rustix::io::Errno;

use crate::{
    Story,
    agent::{Agent, run, until},
    node::StoryNode,
    packets::{TARGET, addresses, agent, serve},
    sctp_and_vlan::{has_sctp, sctp_ask, sctp_server},
    sockets::{Client, has_netns_cookie, tcp_ask, tcp_server},
};

pub const STORIES: &[Story] = &[
    ("host_ports_lead_clients_outside_and_on_another_node_to_the_pod", from_outside),
    ("host_ports_of_sctp_lead_to_the_pod", sctp_from_outside),
    ("host_ports_answer_the_node_and_its_pods_at_every_address_and_at_loopback", at_the_socket),
    ("host_ports_give_way_to_a_process_of_the_node_at_loopback_only", listeners_of_the_node),
    ("host_ports_are_free_when_the_pod_has_ended_and_the_successor_has_them_at_once", successor),
    ("host_ports_survive_the_agent_and_are_explained", survive_and_explained),
];

/// The hostPort without hostIP, and those with one: at the node's second address, and at loopback.
const ANY: u16 = 8080;
const SECOND: u16 = 8081;
const LOOPBACK: u16 = 8082;
/// Second addresses of node1.
const SECONDS: [&str; 2] = ["172.30.0.111", "fd30::111"];

/// Returns the YAML of a pod with the addresses of its host, and these hostPorts (hostIP, port) of both protocols.
fn pod(name: &str, host: &Host, phase: &str, host_ports: &[(&str, u16)]) -> String {
    let mut ports = String::new();
    for (host_ip, port) in host_ports {
        for protocol in ["TCP", "UDP", "SCTP"] {
            ports += &format!(
                "{{containerPort: {TARGET}, hostPort: {port}, hostIP: \"{host_ip}\", protocol: {protocol}}}, "
            );
        }
    }
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: apps, creationTimestamp: \
         \"2026-01-01T00:00:00Z\"}}\nspec:\n  nodeName: here\n  containers:\n  - ports: [{ports}]\n\
         status: {{phase: {phase}, podIPs: [{{ip: {}}}, {{ip: \"{}\"}}]}}\n---\n",
        host.v4, host.v6
    )
}

fn all_host_ports() -> Vec<(&'static str, u16)> {
    vec![("", ANY), (SECONDS[0], SECOND), (SECONDS[1], SECOND), ("127.0.0.1", LOOPBACK), ("::1", LOOPBACK)]
}

/// Makes a network with two pods on node1, whose second addresses are set.
fn lan() -> Lan {
    let lan = Lan::make(LanOptions { pods: 2, ..LanOptions::default() });
    let net = &lan.node1.host.net;
    net.run(&["ip", "address", "add", &format!("{}/24", SECONDS[0]), "dev", "eth0"]);
    net.run(&["ip", "address", "add", &format!("{}/64", SECONDS[1]), "dev", "eth0", "nodad"]);
    lan
}

fn wait_for_pod(agent: &Agent, frontends: usize) {
    agent.wait_for("the hostPorts are there", |dump| dump.frontends.len() == frontends && dump.node_addrs.len() >= 6);
}

/// Frontends of [`all_host_ports`]: for each of three protocols.
const FRONTENDS: usize = 3 * 6;

fn server_of(host: &Host, own: IpAddr) -> String {
    let ip = addresses(host).into_iter().find(|ip| ip.is_ipv4() == own.is_ipv4()).expect("of both families");
    SocketAddr::from((ip, TARGET)).to_string()
}

fn of_family(hosts: [IpAddr; 2], own: IpAddr) -> IpAddr {
    hosts.into_iter().find(|ip| ip.is_ipv4() == own.is_ipv4()).expect("of both families")
}

fn refused(to: SocketAddr) -> bool {
    tcp_ask(to).err() == Some(Errno::CONNREFUSED)
}

/// The agent's cgroup is empty: packets decide. `--nodeport-addresses` does not restrict hostPorts.
fn from_outside(node: &mut StoryNode) {
    let lan = lan();
    let web = &lan.node1.pods[0];
    serve(web);
    node.write("web.yaml", &pod("web", web, "Running", &all_host_ports()));
    let agent = agent(node, &lan, &["--host-ports", "--nodeport-addresses", "localhost"]);
    wait_for_pod(&agent, FRONTENDS);
    let second = SECONDS.map(|ip| ip.parse::<IpAddr>().expect("an address"));
    let own = addresses(&lan.node1.host);
    // The client, another node, and a pod there, which its node does not masquerade.
    for client in [&lan.client, &lan.node2.host, &lan.node2.pods[0]] {
        for to in own.into_iter().chain(second).map(|ip| SocketAddr::from((ip, ANY))) {
            let (tcp, udp) = client.net.enter(|| (tcp_ask(to).expect("an answer"), Client::udp(to).ask(to)));
            let server = server_of(web, to.ip());
            let seen = of_family(addresses(client), to.ip()).to_string();
            assert_eq!(tcp, (server.clone(), seen), "TCP to {to}");
            assert_eq!(udp, (server, Some(to)), "UDP to {to}");
        }
        for to in second.map(|ip| SocketAddr::from((ip, SECOND))) {
            assert_eq!(client.net.enter(|| tcp_ask(to)).expect("an answer").0, server_of(web, to.ip()), "{to}");
        }
        // Another address than that of the hostIP, loopback, and another port.
        for to in own.into_iter().flat_map(|ip| [SECOND, LOOPBACK, 8083].map(|port| SocketAddr::from((ip, port)))) {
            assert!(client.net.enter(|| refused(to)), "{to}");
        }
    }
}

fn sctp_from_outside(node: &mut StoryNode) {
    if !has_sctp() {
        return;
    }
    let lan = lan();
    let web = &lan.node1.pods[0];
    web.net.enter(|| addresses(web).into_iter().for_each(|ip| sctp_server((ip, TARGET).into())));
    node.write("web.yaml", &pod("web", web, "Running", &all_host_ports()));
    let agent = agent(node, &lan, &["--host-ports"]);
    wait_for_pod(&agent, FRONTENDS);
    for (client, own) in addresses(&lan.client).into_iter().zip(addresses(&lan.node1.host)) {
        let to = SocketAddr::from((own, ANY));
        let answer = lan.client.net.enter(|| sctp_ask(client, to)).expect("an answer");
        assert_eq!(answer, format!("{} {client}", server_of(web, own)), "SCTP to {to}");
    }
}

/// Starts an agent on node1 that serves the sockets of this process, whatever network namespace they are in.
fn socket_agent(node: &StoryNode, lan: &Lan, more: &[&str]) -> Agent {
    let flags = [&["--devices", "eth0", "--host-ports"], more].concat();
    lan.node1.host.net.enter(|| node.agent(&flags))
}

fn at_the_socket(node: &mut StoryNode) {
    let lan = lan();
    let [web, other] = &lan.node1.pods[..] else { panic!("two pods") };
    serve(web);
    node.write("web.yaml", &pod("web", web, "Running", &all_host_ports()));
    let agent = socket_agent(node, &lan, &["--nodeport-addresses", "primary"]);
    wait_for_pod(&agent, FRONTENDS);
    let at = |ip: &str, port: u16| SocketAddr::from((ip.parse::<IpAddr>().expect("an address"), port));
    let own = addresses(&lan.node1.host).map(|ip| ip.to_string());
    let answers = |host: &Host, to: SocketAddr| {
        host.net.enter(|| {
            let (tcp, udp) = (tcp_ask(to).expect("an answer"), Client::udp(to).ask(to));
            assert_eq!(udp, (tcp.0.clone(), Some(to)), "{to}");
            tcp
        })
    };
    // The node, another pod, and the pod itself.
    for caller in [&lan.node1.host, other, web] {
        for ip in own.iter().map(String::as_str).chain(SECONDS) {
            let (server, seen) = answers(caller, at(ip, ANY));
            assert_eq!(server, server_of(web, at(ip, ANY).ip()));
            let is_pod = !std::ptr::eq(caller, &raw const lan.node1.host);
            if is_pod {
                assert_eq!(seen, of_family(addresses(caller), at(ip, ANY).ip()).to_string(), "a pod keeps its address");
            }
        }
        assert_eq!(answers(caller, at(SECONDS[0], SECOND)).0, server_of(web, at(SECONDS[0], SECOND).ip()));
        assert!(caller.net.enter(|| refused(at(&own[0], SECOND))), "the hostIP is another address");
    }
    if !has_netns_cookie() {
        return;
    }
    // Loopback is the node's for its own processes, and a pod's own for the pod.
    let net = &lan.node1.host;
    for (ip, port) in [("127.0.0.1", ANY), ("::1", ANY), ("127.0.0.1", LOOPBACK), ("::1", LOOPBACK)] {
        assert_eq!(answers(net, at(ip, port)).0, server_of(web, at(ip, port).ip()), "{ip} {port}");
        for pod in [other, web] {
            assert!(pod.net.enter(|| refused(at(ip, port))), "{ip} {port} in a pod");
        }
    }
    for (ip, port) in [("0.0.0.0", ANY), ("::", ANY)] {
        assert_eq!(net.net.enter(|| tcp_ask(at(ip, port))).expect("an answer").0, server_of(web, at(ip, port).ip()));
    }
    assert!(net.net.enter(|| refused(at(&own[0], LOOPBACK))), "a hostIP of loopback");
    // As Kubernetes' test dials: from an address of the node to loopback.
    net.net.enter(|| {
        let client = Client::tcp(at("127.0.0.1", LOOPBACK));
        client.bind(&format!("{}:0", own[0]));
        client.connect(at("127.0.0.1", LOOPBACK)).expect("a connection");
        assert_eq!(client.receive().0, format!("{} {}", server_of(web, at(&own[0], 0).ip()), own[0]));
        assert_eq!(client.peer(), Some(at("127.0.0.1", LOOPBACK)));
    });
}

/// At loopback a process of the node goes first; elsewhere the pod does, as with portmap. No bind is refused, so that a
/// daemon of the node, and a pod in its network that succeeds this one, can start at any time.
fn listeners_of_the_node(node: &mut StoryNode) {
    if !has_netns_cookie() {
        return;
    }
    let lan = lan();
    let web = &lan.node1.pods[0];
    serve(web);
    let own = lan.node1.host.v4;
    let server = server_of(web, own.into());
    let ask = |to: &str| lan.node1.host.net.enter(|| tcp_ask(to.parse().expect("an address and port")));
    let at_own = format!("{own}:{ANY}");
    lan.node1.host.net.enter(|| {
        // Before the agent, and before the pod.
        tcp_server("127.0.0.1:4056");
        let agent = socket_agent(node, &lan, &[]);
        // A resolver of the node at loopback, where no hostPort is, costs no call to a Service with its port a look-up.
        tcp_server("127.0.0.1:4057");
        tcp_server(&format!("{own}:4058"));
        let marks = TypedMap::<u32, u32>::open(&node.maps(), "BOUND_PORTS").expect("the map");
        let mark = |port: u16| marks.get(&capacity::bound_port(port)).expect("a look-up");
        assert_eq!([4057, 4058].map(mark), [Some(0), Some(1)]);
        let host_ports = [("", 4056), ("", 4057), ("", ANY), ("", SECOND), ("::", LOOPBACK)];
        node.write("web.yaml", &pod("web", web, "Running", &host_ports));
        wait_for_pod(&agent, 3 * 9);
        for earlier in ["127.0.0.1:4056", "127.0.0.1:4057"] {
            until("the earlier listener goes first", || ask(earlier).is_ok_and(|(name, _)| name == earlier));
        }
        agent.wait_for_log("is a hostPort of apps/pod/web");
        assert_eq!(ask(&at_own).expect("an answer").0, server);
        // After it.
        assert_eq!(ask(&format!("127.0.0.1:{SECOND}")).expect("an answer").0, server);
        tcp_server(&format!("127.0.0.1:{SECOND}"));
        assert_eq!(ask(&format!("127.0.0.1:{SECOND}")).expect("an answer").0, format!("127.0.0.1:{SECOND}"));
        let _at_own_address = TcpListener::bind(&at_own).expect("no guard");
        assert_eq!(ask(&at_own).expect("an answer").0, server);
        let _at_all = TcpListener::bind(("::", LOOPBACK)).expect("no guard");
        assert_eq!(
            ask(&format!("[::1]:{LOOPBACK}")).expect("an answer").0,
            server_of(web, "::1".parse().expect("one"))
        );
    });
}

/// Waits for one answer of a UDP server to a socket that stays the same, as a client of a log server has one.
fn server_of_datagram(socket: &UdpSocket, to: SocketAddr) -> Option<String> {
    socket.send_to(b"?", to).ok()?;
    let mut buffer = [0; 64];
    let (len, _) = socket.recv_from(&mut buffer).ok()?;
    Some(String::from_utf8_lossy(&buffer[..len]).into_owned())
}

fn successor(node: &mut StoryNode) {
    let lan = lan();
    let [old, new] = &lan.node1.pods[..] else { panic!("two pods") };
    [old, new].into_iter().for_each(serve);
    let own = lan.node1.host.v4;
    let to = SocketAddr::from((own, ANY));
    let ports = [("", ANY)];
    let terminating = |yaml: String| {
        yaml.replacen("creationTimestamp", "deletionTimestamp: \"2026-01-02T00:00:00Z\", creationTimestamp", 1)
    };
    node.write("old.yaml", &pod("old", old, "Running", &ports));
    let agent = agent(node, &lan, &["--host-ports"]);
    wait_for_pod(&agent, 3 * 2);
    let udp = lan.client.net.enter(|| UdpSocket::bind("0.0.0.0:0").expect("a socket"));
    udp.set_read_timeout(Some(Duration::from_millis(500))).expect("a timeout");
    let ask = || lan.client.net.enter(|| tcp_ask(to));
    let server = |host: &Host| server_of(host, own.into());
    assert_eq!((ask().expect("an answer").0, server_of_datagram(&udp, to)), (server(old), Some(server(old))));
    // While it terminates it serves.
    node.write("old.yaml", &terminating(pod("old", old, "Running", &ports)));
    thread::sleep(Duration::from_millis(300));
    assert_eq!(ask().expect("an answer").0, server(old));
    // The successor is there before the old pod is gone: no client is refused meanwhile.
    node.write("new.yaml", &pod("new", new, "Running", &ports));
    until("the successor answers", || ask().expect("no client is refused").0 == server(new));
    until("the flow of UDP goes over", || server_of_datagram(&udp, to) == Some(server(new)));
    node.write("old.yaml", &pod("old", old, "Succeeded", &ports));
    assert_eq!(ask().expect("an answer").0, server(new));
    // An ended pod has no port any more, though its object stays; the next pod has the port.
    node.write("new.yaml", &pod("new", new, "Failed", &ports));
    until("the port is free", || lan.client.net.enter(|| refused(to)));
    node.write("old.yaml", &pod("old", old, "Running", &ports));
    until("the next pod answers", || ask().is_ok_and(|(name, _)| name == server(old)));
    std::fs::remove_file(node.yaml.join("old.yaml")).expect("the file");
    until("the port is free", || lan.client.net.enter(|| refused(to)));
}

fn survive_and_explained(node: &mut StoryNode) {
    let lan = lan();
    let web = &lan.node1.pods[0];
    serve(web);
    node.write("web.yaml", &pod("web", web, "Running", &all_host_ports()));
    let mut agent = self::agent(node, &lan, &["--host-ports"]);
    wait_for_pod(&agent, FRONTENDS);
    let to = SocketAddr::from((lan.node1.host.v4, ANY));
    let ask = || lan.client.net.enter(|| tcp_ask(to)).expect("an answer").0;
    agent.kill();
    assert_eq!(ask(), server_of(web, to.ip()));
    let agent = self::agent(node, &lan, &["--host-ports"]);
    assert!(agent.log().contains("writes=0"), "{}", agent.log());
    assert_eq!(ask(), server_of(web, to.ip()));

    let text = |arguments: &[&str]| {
        let output = lan.node1.host.net.enter(|| run(node, arguments));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let explained = text(&["explain", "apps/pod/web"]);
    for line in [
        "Pod apps/web",
        &format!("  addresses  {}, {}", web.v4, web.v6),
        "  127.0.0.1:8082/TCP      HostPort  owned",
        "port 8080/TCP, IPv4: 1 in the cluster list, 1 in the local list, for clients outside",
        "  agree: the pinned maps of this node hold exactly this",
    ] {
        assert!(explained.lines().any(|other| other == line), "{line:?} in\n{explained}");
    }
    let frontends = text(&["get", "frontends"]);
    let is_ours = |row: &&str| row.contains("HostPort") && row.contains("apps/pod/web:8080/UDP");
    assert!(frontends.lines().any(|row| is_ours(&row)), "{frontends}");
    let traced = text(&["trace", "tcp", &to.to_string()]);
    assert!(traced.contains("HostPort of apps/pod/web:8080/TCP") && traced.contains("goes there"), "{traced}");
    let elsewhere = text(&["trace", "tcp", &format!("198.51.100.1:{ANY}")]);
    assert!(elsewhere.contains("is a hostPort of apps/pod/web"), "{elsewhere}");

    // Without the flag the ports are free, and no pod is asked for.
    drop(agent);
    let agent = self::agent(node, &lan, &[]);
    agent.wait_for("no hostPort is left", |dump| dump.frontends.is_empty());
    assert!(lan.client.net.enter(|| refused(to)));
}
