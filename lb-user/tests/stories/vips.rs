//! VIPs as hosts see them: a port that no Service has is refused at once, and pings are answered; an address that a
//! host has is that host's.

use std::{
    io::ErrorKind,
    net::{IpAddr, SocketAddr, TcpStream},
    time::Duration,
};

use lb_lab::network::{Host, Lan, LanOptions};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, ipproto, recvfrom, sendto, socket_with, sockopt,
};

use crate::{
    Story,
    agent::until,
    node::{StoryNode, ip},
    packets::{addresses, agent, pod, serve, service},
    sockets::{Client, assert_refused, at, mapped, tcp_ask, tcp_server},
};

pub const STORIES: &[Story] = &[
    ("vips_refuse_unknown_ports_and_answer_pings_wherever_the_client_is", vips_behave),
    ("vips_that_are_the_address_of_a_host_are_left_to_that_host", hosts_keep_their_addresses),
    ("cluster_ips_that_no_service_has_are_refused_at_once", unallotted_are_refused),
    ("vips_do_not_answer_pings_with_the_flag", pings_are_ignored),
];

/// The load balancer's address of [`service`].
const EXTERNAL: [u8; 4] = [198, 51, 100, 7];
const CLUSTER: [u8; 4] = [10, 96, 0, 1];

/// The error of a connect within two seconds.
fn connect(host: &Host, to: SocketAddr) -> Option<ErrorKind> {
    host.net.enter(|| TcpStream::connect_timeout(&to, Duration::from_secs(2)).err().map(|error| error.kind()))
}

/// True if a host gets the answer to a ping within a second.
fn ping(host: &Host, to: IpAddr) -> bool {
    // Processes of any group may open sockets for pings.
    host.net.set("ipv4/ping_group_range", "0 2147483647");
    host.net.enter(|| {
        let (family, proto, request, reply) = match to {
            IpAddr::V4(_) => (AddressFamily::INET, ipproto::ICMP, 8, 0),
            IpAddr::V6(_) => (AddressFamily::INET6, ipproto::ICMPV6, 128, 129),
        };
        let socket = socket_with(family, SocketType::DGRAM, SocketFlags::CLOEXEC, Some(proto)).expect("a socket");
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(Duration::from_secs(1))).expect("a time-out");
        let message = [&[request, 0, 0, 0, 0, 0, 0, 9][..], b"some octets"].concat();
        sendto(&socket, &message, SendFlags::empty(), &SocketAddr::new(to, 0)).expect("sent");
        let mut answer = [0; 64];
        let Ok((len, _, from)) = recvfrom(&socket, &mut answer[..], RecvFlags::empty()) else { return false };
        let from = from.and_then(|from| SocketAddr::try_from(from).ok()).map(|from| from.ip());
        assert_eq!((from, answer.first()), (Some(to), Some(&reply)));
        assert_eq!(answer.get(6..len), message.get(6..));
        true
    })
}

/// Makes the client the router of the network: it sends packets for VIPs to node1.
fn route_vips(lan: &Lan) {
    lan.client.net.set("ipv4/conf/all/forwarding", "1");
    lan.client.net.set("ipv6/conf/all/forwarding", "1");
    lan.client.net.set("ipv4/conf/all/send_redirects", "0");
    lan.client.net.set("ipv4/conf/eth0/send_redirects", "0");
    let (v4, v6) = (lan.node1.host.v4.to_string(), lan.node1.host.v6.to_string());
    for (prefix, via) in [("10.96.0.0/16", &v4), ("198.51.100.7/32", &v4), ("fd96::/112", &v6)] {
        lan.client.net.run(&["ip", "route", "add", prefix, "via", via]);
    }
}

fn vips_behave(node: &mut StoryNode) {
    let lan = Lan::make(LanOptions::default());
    route_vips(&lan);
    let here = pod(&lan.node1);
    serve(here);
    node.write("web.yaml", &service("Cluster", &addresses(here).map(|ip| (ip, "here"))));
    let agent = agent(node, &lan, &[]);
    agent.wait_for("the backends are there", |dump| dump.backends.len() == 4);
    let cluster: [IpAddr; 2] = [CLUSTER.into(), "fd96::1".parse().expect("an address")];
    let external = IpAddr::from(EXTERNAL);
    // Packets of the client outside, of the node itself and of a pod without programs at its link go by the network.
    for host in [&lan.client, &lan.node1.host, here, pod(&lan.node2)] {
        for vip in [cluster[0], cluster[1], external] {
            let unknown = SocketAddr::new(vip, 81);
            assert_eq!(connect(host, unknown), Some(ErrorKind::ConnectionRefused), "{unknown} from {}", host.v4);
            assert!(ping(host, vip), "{vip} from {}", host.v4);
        }
    }
    let known = SocketAddr::new(external, 80);
    assert_eq!(connect(&lan.client, known), None);
}

fn hosts_keep_their_addresses(node: &mut StoryNode) {
    let lan = Lan::make(LanOptions::default());
    route_vips(&lan);
    let here = pod(&lan.node1);
    serve(here);
    // As the load balancer of k3s does it: the addresses of Services are those of the nodes.
    let own = [lan.node1.host.v4, lan.node2.host.v4];
    let text = service("Cluster", &addresses(here).map(|ip| (ip, "here")));
    let [one, two] = own;
    node.write("web.yaml", &text.replace("[{ip: 198.51.100.7}]", &format!("[{{ip: {one}}}, {{ip: {two}}}]")));
    let agent = agent(node, &lan, &[]);
    agent.wait_for("the backends are there", |dump| dump.backends.len() == 4);
    for host in [&lan.node1.host, &lan.node2.host] {
        host.net.enter(|| tcp_server(&format!("{}:10250", host.v4)));
    }
    for from in [&lan.client, &lan.node1.host, here] {
        for ip in own {
            assert_eq!(connect(from, SocketAddr::new(ip.into(), 10_250)), None, "{ip} from {}", from.v4);
            assert!(ping(from, ip.into()), "{ip} from {}", from.v4);
        }
    }
}

fn unallotted_are_refused(node: &mut StoryNode) {
    let backends = ["10.0.0.1:8080", "[fd00::1]:8080"];
    node.write("web.yaml", &crate::node::service("web", &["10.96.0.1", "fd96::1"], "TCP", 80, &backends));
    backends.into_iter().for_each(tcp_server);
    let agent = node.agent(&["--service-cidrs", "10.96.0.0/16,fd96::/112"]);
    agent.wait_for("the Service", |dump| !dump.backends.is_empty());
    agent.wait_for_log("ranges of cluster IPs");
    for unknown in [at("10.96.9.9:80"), at("[fd96::9]:80"), mapped(at("10.96.9.9:80"))] {
        assert_refused(Client::tcp(unknown).connect(unknown), Errno::HOSTUNREACH);
        assert_refused(Client::udp(unknown).send_to(unknown), Errno::HOSTUNREACH);
    }
    agent.wait_for_log("asked for the cluster IP");
    assert!(tcp_ask(at("10.96.0.1:80")).is_ok() && tcp_ask(at("[fd96::1]:80")).is_ok());
    assert_refused(Client::tcp(at("10.97.0.1:80")).connect(at("10.97.0.1:80")), Errno::NETUNREACH);
    // A Service that gets the address is served.
    node.write("late.yaml", &crate::node::service("late", &["10.96.9.9"], "TCP", 80, &["10.0.0.1:8080"]));
    until("the new Service is served", || tcp_ask(at("10.96.9.9:80")).is_ok());
    // A range with an address of the node has hosts.
    ip(&["addr", "add", "10.96.77.1/32", "dev", "lo"]);
    agent.wait_for_log("the node's own address 10.96.77.1 is in the range");
    let refused = || Client::tcp(at("10.96.9.8:80")).connect(at("10.96.9.8:80")) == Err(Errno::HOSTUNREACH);
    until("the range is not used", || !refused());
}

fn pings_are_ignored(node: &mut StoryNode) {
    let lan = Lan::make(LanOptions::default());
    route_vips(&lan);
    node.write("web.yaml", &service("Cluster", &[]));
    let agent = agent(node, &lan, &["--vip-pings", "ignore"]);
    agent.wait_for("the Service", |dump| !dump.services.is_empty());
    assert!(!ping(&lan.client, CLUSTER.into()) && !ping(&lan.client, EXTERNAL.into()));
    let refused = || connect(&lan.client, SocketAddr::from((EXTERNAL, 81))) == Some(ErrorKind::ConnectionRefused);
    until("other packets are answered", refused);
}
