//! NetworkPolicy as a CNI would enforce it, here by nftables where each node forwards: it sees client and backend, whoever
//! balances (CVE-2026-33726, CVE-2025-30162).

use lb_lab::network::{Host, Lan, Options};
use std::{
    net::{IpAddr, SocketAddr, TcpStream},
    time::Duration,
};

use crate::{
    Story,
    agent::until,
    node::Node,
    packets::{addresses, agent, pod, serve, service},
    sockets::tcp_ask,
};

pub const STORIES: &[Story] = &[("policy_of_others_sees_client_and_backend_here_and_elsewhere", policy)];

const TARGET: u16 = 8080;

/// On this node nothing is forwarded but between this client and this server, at its port.
fn let_only(node: &lb_lab::network::Node, client: IpAddr, server: IpAddr) {
    let ip = if server.is_ipv4() { "ip" } else { "ip6" };
    let rules = format!(
        "table inet cni\ndelete table inet cni\ntable inet cni {{\nchain forward {{\n\
         type filter hook forward priority 0; policy drop;\n\
         icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} accept\n\
         {ip} saddr {client} {ip} daddr {server} tcp dport {TARGET} accept\n\
         {ip} saddr {server} tcp sport {TARGET} {ip} daddr {client} accept\n}}\n}}\n"
    );
    node.host.net.run(&["nft", &rules]);
}

fn is_answered(client: &Host, to: SocketAddr) -> bool {
    client.net.enter(|| TcpStream::connect_timeout(&to, Duration::from_millis(500)).is_ok())
}

fn policy(node: &mut Node) {
    let lan = Lan::make(Options { pods: 2, ..Options::default() });
    let tool = std::process::Command::new("nft").arg("--version").output();
    if tool.is_err() {
        println!("LACKS nft: nobody looks at what others see of packets");
        return;
    }
    let (caller, here, there) = (pod(&lan.node1), &lan.node1.pods[1], pod(&lan.node2));
    [here, there].into_iter().for_each(serve);
    let stranger = |ip: IpAddr| if ip.is_ipv4() { "192.0.2.99" } else { "fd99::9" }.parse().expect("an address");
    let serve_by = |agent: &crate::agent::Agent, host: &Host, name: &str| {
        node.write("web.yaml", &service("Cluster", &addresses(host).map(|ip| (ip, name))));
        agent.wait_for("its backends are there", |dump| {
            dump.backends.len() == 4 && dump.backends.values().all(|b| addresses(host).contains(&b.addr.to_ip()))
        });
    };

    // A client outside, and a backend on the node that it dials: the node's rules see the two.
    node.write("web.yaml", &service("Cluster", &[]));
    let mut outside = agent(node, &lan, &[]);
    serve_by(&outside, here, "here");
    let ends = addresses(&lan.client).into_iter().zip(addresses(&lan.node1.host)).zip(addresses(here));
    for ((client, own), server) in ends {
        let to = SocketAddr::from((own, 30080));
        let_only(&lan.node1, client, server);
        assert!(is_answered(&lan.client, to), "{client} is let in to {server}");
        let_only(&lan.node1, stranger(client), server);
        assert!(!is_answered(&lan.client, to), "{client} is not let in to {server}");
    }
    // A backend elsewhere: its own node sees this node for the client, as with kube-proxy.
    serve_by(&outside, there, "there");
    let ends = addresses(&lan.client).into_iter().zip(addresses(&lan.node1.host)).zip(addresses(there));
    for ((client, own), server) in ends {
        let to = SocketAddr::from((own, 30080));
        let_only(&lan.node2, own, server);
        assert!(is_answered(&lan.client, to), "{own} is let in to {server}");
        let_only(&lan.node2, client, server);
        assert!(!is_answered(&lan.client, to), "{own} is not let in to {server}");
    }
    outside.kill();

    // A pod that dials a cluster IP: both nodes see the pod and the backend.
    let inside = lan.node1.host.net.enter(|| node.agent(&["--devices", "eth0"]));
    for (host, name, watched) in [(here, "here", vec![&lan.node1]), (there, "there", vec![&lan.node1, &lan.node2])] {
        serve_by(&inside, host, name);
        let vips: [IpAddr; 2] = ["10.96.0.1", "fd96::1"].map(|vip| vip.parse().expect("an address"));
        for ((client, vip), server) in addresses(caller).into_iter().zip(vips).zip(addresses(host)) {
            let to = SocketAddr::from((vip, 80));
            watched.iter().for_each(|node| let_only(node, client, server));
            until("the pod is answered", || is_answered(caller, to));
            let (_, seen) = caller.net.enter(|| tcp_ask(to)).expect("an answer");
            assert_eq!(seen, client.to_string());
            for node in &watched {
                let_only(node, stranger(client), server);
                assert!(!is_answered(caller, to), "{client} is not let in to {server}");
                let_only(node, client, server);
            }
        }
        watched.iter().for_each(|node| {
            node.host.net.run(&["nft", "delete table inet cni"]);
        });
    }
}
