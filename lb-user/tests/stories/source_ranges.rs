//! `loadBalancerSourceRanges` at the socket: pods and processes of the node are let in by the address that their calls
//! would have.

use std::{
    io::ErrorKind,
    net::{IpAddr, SocketAddr, TcpStream},
    process::{Child, Command},
    time::Duration,
};

use lb_common::Counter;
use lb_lab::network::{Host, Lan, LanOptions};
use rustix::io::{Errno, Result};

use crate::{
    Story,
    agent::{Agent, run, until},
    node::StoryNode,
    packets::{addresses, pod, serve, service},
    sockets::{Client, assert_refused, has_netns_cookie, tcp_ask},
};

pub const STORIES: &[Story] = &[
    ("source_ranges_bind_pods_and_processes_of_the_node", ranges_bind_everybody),
    ("source_ranges_of_an_unknown_caller_let_the_call_go_on_by_packets", unknown_callers_go_on),
];

const VIPS: [&str; 2] = ["198.51.100.7:80", "[2001:db8:7::7]:80"];

/// A process that keeps the network namespace of a pod visible.
struct Process(Child);

impl Process {
    fn of(host: &Host) -> Self {
        Self(host.net.spawn(Command::new("sleep").arg("1000")))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _ended = self.0.wait();
    }
}

/// The Service with load balancer addresses of both families, which let in these hosts; all hosts if there are none.
fn restricted(backend: &Host, hosts: &[&Host]) -> String {
    let prefix = |ip: IpAddr| format!("\"{ip}/{}\"", if ip.is_ipv4() { 32 } else { 128 });
    let ranges: Vec<_> = hosts.iter().flat_map(|host| addresses(host)).map(prefix).collect();
    service("Cluster", &addresses(backend).map(|ip| (ip, "there")))
        .replace("[{ip: 198.51.100.7}]", "[{ip: 198.51.100.7}, {ip: \"2001:db8:7::7\"}]")
        .replacen("  ports:\n", &format!("  loadBalancerSourceRanges: [{}]\n  ports:\n", ranges.join(", ")), 1)
}

/// The results of each kind of call from a host: TCP, connected UDP, and UDP to an address, in both families.
fn calls(host: &Host) -> Vec<Result<()>> {
    let of = |vip: SocketAddr| {
        let udp = Client::udp(vip);
        let connected = udp.connect(vip).map(|()| {
            udp.send().expect("sent");
            assert_eq!(udp.receive().1, Some(vip));
        });
        let sent = Client::udp(vip);
        let sent = sent.send_to(vip).map(|()| assert_eq!(sent.receive().1, Some(vip)));
        [tcp_ask(vip).map(drop), connected, sent]
    };
    let vips = VIPS.map(|vip| vip.parse().expect("an address and port"));
    host.net.enter(|| vips.into_iter().flat_map(of).collect())
}

fn is_let_in(host: &Host) -> bool {
    calls(host).iter().all(Result::is_ok)
}

fn assert_kept_out(host: &Host) {
    for call in calls(host) {
        assert_refused(call, Errno::HOSTUNREACH);
    }
}

/// Starts the agent of node1, which serves the sockets of this process.
fn agent(node: &StoryNode, lan: &Lan) -> Agent {
    let agent = lan.node1.host.net.enter(|| node.agent(&["--devices", "eth0"]));
    agent.wait_for("the backends are there", |dump| dump.backends.len() == 4);
    agent
}

fn ranges_bind_everybody(node: &mut StoryNode) {
    if !has_netns_cookie() {
        return;
    }
    let lan = Lan::make(LanOptions { pods: 2, ..LanOptions::default() });
    let [one, other] = &lan.node1.pods[..] else { panic!("two pods") };
    let (host, backend) = (&lan.node1.host, pod(&lan.node2));
    serve(backend);
    let processes = [one, other].map(Process::of);
    node.write("web.yaml", &restricted(backend, &[]));
    let agent = agent(node, &lan);
    let known = || lb_dataplane::netns_addrs::read(&node.maps()).expect("the map");
    for caller in [one, other, host] {
        assert!(is_let_in(caller), "without ranges: {}", caller.v4);
    }
    for (inside, outside) in [(one, [other, host]), (other, [one, host]), (host, [one, other])] {
        node.write("web.yaml", &restricted(backend, &[inside]));
        // A call in between would go to the network.
        until("source addresses are known", || known().len() >= 3);
        let is_restricted = || calls(outside[0]).iter().all(|call| *call == Err(Errno::HOSTUNREACH));
        until("the ranges are in service", || is_restricted() && is_let_in(inside));
        outside.into_iter().for_each(assert_kept_out);
        assert!(is_let_in(inside), "{}", inside.v4);
    }
    // `trace` says why, for the pod of a process.
    let pid = processes[0].0.id().to_string();
    let traced = host.net.enter(|| run(node, &["trace", "tcp", VIPS[0], "--pid", &pid]));
    let text = String::from_utf8_lossy(&traced.stdout).into_owned();
    assert!(text.contains("the client is in none of spec.loadBalancerSourceRanges"), "{text}");
    assert!(text.contains("EHOSTUNREACH") && !traced.status.success(), "{text}");
    agent.wait_for_log("lets in other source ranges");
    // A socket that is bound has its address.
    let vip: SocketAddr = VIPS[0].parse().expect("an address and port");
    let bound = |address: &str| {
        host.net.enter(|| {
            let client = Client::tcp(vip);
            client.bind(address);
            client.connect(vip)
        })
    };
    assert_eq!(bound(&format!("{}:0", host.v4)), Ok(()));
    assert_refused(bound("10.244.1.1:0"), Errno::HOSTUNREACH);
    node.write("web.yaml", &restricted(backend, &[]));
    until("there are no ranges", || is_let_in(one) && is_let_in(other) && is_let_in(host));
    until("no address is kept", || known().is_empty());
}

/// No process shows the network namespaces of the pods, so their calls go to the network. There the ranges bind
/// packets, once the agent has attached the programs to the pod's link: its first packet is lost.
fn unknown_callers_go_on(node: &mut StoryNode) {
    let lan = Lan::make(LanOptions { pods: 2, ..LanOptions::default() });
    let [inside, outside] = &lan.node1.pods[..] else { panic!("two pods") };
    let backend = pod(&lan.node2);
    serve(backend);
    node.write("web.yaml", &restricted(backend, &[inside]));
    let _agent = agent(node, &lan);
    let vip: SocketAddr = VIPS[0].parse().expect("an address and port");
    let connect = |host: &Host| host.net.enter(|| TcpStream::connect_timeout(&vip, Duration::from_secs(2)));
    let refused = || {
        let counters = lb_dataplane::stats::counters(&node.maps()).expect("the counters");
        counters.into_iter().find(|(counter, _)| *counter == Counter::SourceRange).map_or(0, |(_, count)| count)
    };
    until("a pod in the ranges is let in", || connect(inside).is_ok());
    assert_eq!(refused(), 0);
    until("packets of another pod are dropped", || {
        let error = connect(outside).expect_err("kept out");
        assert_ne!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
        refused() > 0
    });
}
