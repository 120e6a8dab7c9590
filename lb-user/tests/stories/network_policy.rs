//! NetworkPolicy as a CNI enforces it, here by nftables rules where each node forwards packets: the rules see client
//! and backend although Beeline translates (CVE-2026-33726, CVE-2025-30162).

use lb_lab::network::{Host, Lan, LanOptions};
use std::{
    net::{IpAddr, SocketAddr, TcpStream},
    time::Duration,
};

use crate::{
    Story,
    agent::until,
    node::StoryNode,
    packets::{addresses, agent, pod, serve, service},
    sockets::tcp_ask,
};

pub const STORIES: &[Story] =
    &[("network_policy_of_a_cni_sees_client_and_backend_on_both_nodes", policy_sees_both_ends)];

const TARGET: u16 = 8080;

/// Makes a node forward only between this client and the port of this server.
fn forward_only(node: &lb_lab::network::LabNode, client: IpAddr, server: IpAddr) {
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

fn policy_sees_both_ends(node: &mut StoryNode) {
    let lan = Lan::make(LanOptions { pods: 2, ..LanOptions::default() });
    let tool = std::process::Command::new("nft").arg("--version").output();
    if tool.is_err() {
        println!("LACKS nft: no policy can be enforced");
        return;
    }
    let (caller, here, there) = (pod(&lan.node1), &lan.node1.pods[1], pod(&lan.node2));
    [here, there].into_iter().for_each(serve);
    let other_client = |ip: IpAddr| if ip.is_ipv4() { "192.0.2.99" } else { "fd99::9" }.parse().expect("an address");
    let serve_from = |agent: &crate::agent::Agent, host: &Host, name: &str| {
        node.write("web.yaml", &service("Cluster", &addresses(host).map(|ip| (ip, name))));
        agent.wait_for("its backends are there", |dump| {
            dump.backends.len() == 4 && dump.backends.values().all(|b| addresses(host).contains(&b.addr.to_ip()))
        });
    };

    // An external client and a backend on the dialled node: the rules of the node see both addresses.
    node.write("web.yaml", &service("Cluster", &[]));
    let mut outside = agent(node, &lan, &[]);
    serve_from(&outside, here, "here");
    let ends = addresses(&lan.client).into_iter().zip(addresses(&lan.node1.host)).zip(addresses(here));
    for ((client, own), server) in ends {
        let to = SocketAddr::from((own, 30080));
        forward_only(&lan.node1, client, server);
        assert!(is_answered(&lan.client, to), "{client} is let in to {server}");
        forward_only(&lan.node1, other_client(client), server);
        assert!(!is_answered(&lan.client, to), "{client} is not let in to {server}");
    }
    // A remote backend: the rules of its node see the dialled node as the client, as with kube-proxy.
    serve_from(&outside, there, "there");
    let ends = addresses(&lan.client).into_iter().zip(addresses(&lan.node1.host)).zip(addresses(there));
    for ((client, own), server) in ends {
        let to = SocketAddr::from((own, 30080));
        forward_only(&lan.node2, own, server);
        assert!(is_answered(&lan.client, to), "{own} is let in to {server}");
        forward_only(&lan.node2, client, server);
        assert!(!is_answered(&lan.client, to), "{own} is not let in to {server}");
    }
    outside.kill();

    // A pod dials a cluster IP: the rules of both nodes see the pod and the backend.
    let inside = lan.node1.host.net.enter(|| node.agent(&["--devices", "eth0"]));
    for (host, name, policed) in [(here, "here", vec![&lan.node1]), (there, "there", vec![&lan.node1, &lan.node2])] {
        serve_from(&inside, host, name);
        let vips: [IpAddr; 2] = ["10.96.0.1", "fd96::1"].map(|vip| vip.parse().expect("an address"));
        for ((client, vip), server) in addresses(caller).into_iter().zip(vips).zip(addresses(host)) {
            let to = SocketAddr::from((vip, 80));
            policed.iter().for_each(|node| forward_only(node, client, server));
            until("the pod is answered", || is_answered(caller, to));
            let (_, seen) = caller.net.enter(|| tcp_ask(to)).expect("an answer");
            assert_eq!(seen, client.to_string());
            for node in &policed {
                forward_only(node, other_client(client), server);
                assert!(!is_answered(caller, to), "{client} is not let in to {server}");
                forward_only(node, client, server);
            }
        }
        policed.iter().for_each(|node| {
            node.host.net.run(&["nft", "delete table inet cni"]);
        });
    }
}
