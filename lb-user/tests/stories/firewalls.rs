//! Firewalls of the host that drop what is forwarded, as firewalld and ufw make them: `doctor` tells it before clients
//! do, and its cure serves them. Others, as OpenWrt's, have netfilter offload open connections to a flowtable.

use std::{
    net::{SocketAddr, TcpStream},
    process::Command,
    time::Duration,
};

use lb_lab::network::{Host, Lan, LanOptions, RpFilter};

use crate::{
    Story,
    agent::until,
    doctor::DoctorRun,
    node::StoryNode,
    packets::{NODE_PORT, TARGET, addresses, agent, pod, serve, service},
    places,
    sockets::{Client, tcp_ask, tcp_digest, tcp_send},
};

pub const STORIES: &[Story] = &[
    ("firewalls_of_the_host_that_drop_what_is_forwarded_are_told_with_a_cure", told),
    ("firewalls_that_offload_connections_to_a_flowtable_serve_streams_of_clients_outside", flowtable),
];

/// Open connections leave the hook at ingress, behind the programs there, for the device to their destination.
const FLOWTABLE: &str = "
table inet speed {
    flowtable fast { hook ingress priority filter; devices = { eth0, pod2, tun0 }; }
    chain forward {
        type filter hook forward priority filter;
        meta l4proto { tcp, udp } counter flow add @fast
        ct state invalid drop
    }
}";

/// Forwarding of firewalld 1.3 with the zone public, without its zones for other devices.
const FIREWALLD: &str = r#"
table inet firewalld {
    chain filter_FORWARD {
        type filter hook forward priority filter + 10; policy accept;
        ct state { established, related } accept
        ct status dnat accept
        iifname "lo" accept
        ct state invalid drop
        jump filter_FORWARD_ZONES
        reject with icmpx admin-prohibited
    }
    chain filter_FORWARD_ZONES {
        goto filter_FWD_public
    }
    chain filter_FWD_public {
        jump filter_FORWARD_POLICIES_pre
        jump filter_FWD_public_allow
        reject with icmpx admin-prohibited
    }
    chain filter_FWD_public_allow {
        oifname "eth0" accept
    }
    chain filter_FORWARD_POLICIES_pre {
    }
}"#;

/// Forwarding of ufw 0.36 as `ufw enable` makes it. Argument: the program's prefix.
const UFW: &str = "$0-restore <<EOF
*filter
:FORWARD DROP [0:0]
:ufw-before-forward - [0:0]
:ufw-user-forward - [0:0]
:ufw-reject-forward - [0:0]
-A FORWARD -j ufw-before-forward
-A FORWARD -j ufw-reject-forward
-A ufw-before-forward -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A ufw-before-forward -j ufw-user-forward
COMMIT
EOF";

struct Firewall {
    /// Commands that make its rules.
    rules: Vec<Vec<String>>,
    /// Commands of its rules for pods.
    accept: Vec<Vec<String>>,
    /// Words of the cure.
    cure: &'static str,
    /// Commands that remove it.
    remove: Vec<Vec<String>>,
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn firewalls(pod: &Host) -> [Firewall; 2] {
    let to_pods = |family: &str, ip: &str| {
        format!(
            "add rule inet firewalld filter_FORWARD_POLICIES_pre {family} daddr {ip} jump filter_FWD_policy_to-pods"
        )
    };
    let (v4, v6) = (pod.v4.to_string(), pod.v6.to_string());
    let ufw = [("iptables", &v4), ("ip6tables", &v6)];
    [
        Firewall {
            rules: vec![words(&["nft", FIREWALLD])],
            accept: vec![
                words(&["nft", "add chain inet firewalld filter_FWD_policy_to-pods"]),
                words(&["nft", "add rule inet firewalld filter_FWD_policy_to-pods accept"]),
                words(&["nft", &to_pods("ip", &v4)]),
                words(&["nft", &to_pods("ip6", &v6)]),
            ],
            cure: "firewall-cmd",
            remove: vec![words(&["nft", "delete table inet firewalld"])],
        },
        Firewall {
            rules: ufw.iter().map(|(program, _)| words(&["sh", "-ec", UFW, program])).collect(),
            accept: ufw
                .iter()
                .map(|(program, ip)| words(&[program, "-A", "ufw-user-forward", "-d", ip, "-j", "ACCEPT"]))
                .collect(),
            cure: "ufw route allow",
            remove: ufw.iter().map(|(program, _)| words(&[program, "-P", "FORWARD", "ACCEPT"])).collect(),
        },
    ]
}

fn told(node: &mut StoryNode) {
    if ["nft", "iptables-restore"].iter().any(|tool| Command::new(tool).arg("--version").output().is_err()) {
        println!("no firewalls: nft and iptables are not installed");
        return;
    }
    let lan = Lan::make(LanOptions::default());
    let (here, there) = (pod(&lan.node1), pod(&lan.node2));
    [here, there].into_iter().for_each(serve);
    let write = |host: &Host, name: &str| {
        node.write("web.yaml", &service("Cluster", &addresses(host).map(|ip| (ip, name))));
    };
    write(there, "there");
    let agent = agent(node, &lan, &[]);
    let of_node = addresses(&lan.node1.host).map(|own| SocketAddr::from((own, NODE_PORT)));
    let connect = |to: SocketAddr| lan.client.net.enter(|| TcpStream::connect_timeout(&to, Duration::from_millis(700)));
    let is_served = |host: &Host| {
        let servers = addresses(host).map(|ip| ip.to_string());
        of_node.into_iter().zip(servers).all(|(to, server)| {
            connect(to).is_ok()
                && lan.client.net.enter(|| tcp_ask(to)).is_ok_and(|(answer, _)| answer.contains(&server))
                && lan.client.net.enter(|| Client::udp(to).ask(to)).0.contains(&server)
        })
    };
    let run = |commands: &[Vec<String>]| {
        for command in commands {
            let command: Vec<&str> = command.iter().map(String::as_str).collect();
            lan.node1.host.net.run(&command);
        }
    };
    let doctor = |severity, cure| {
        let report = lan.node1.host.net.enter(|| DoctorRun::new(node, &[]));
        report.assert_finding(severity, "netfilter", "drops forwarded packets", cure);
    };
    for firewall in firewalls(here) {
        run(&firewall.rules);
        // Backends elsewhere are reached by a redirect, which no forwarding sees.
        write(there, "there");
        until("a pod elsewhere serves", || is_served(there));
        write(here, "here");
        agent.wait_for("the pod here is the backend", |dump| {
            dump.backends.values().all(|backend| addresses(here).contains(&backend.addr.to_ip()))
        });
        for to in of_node {
            connect(to).expect_err("the firewall drops packets to the pod");
        }
        doctor("warning", firewall.cure);
        run(&firewall.accept);
        until("the pod here serves", || is_served(here));
        doctor("note", "none if ");
        run(&firewall.remove);
    }
}

fn flowtable(node: &mut StoryNode) {
    const OCTETS: usize = 8 << 20;
    let lan = Lan::make(LanOptions { rp_filter: RpFilter::Loose, ..LanOptions::default() });
    let (far, _tunnel) = match lan.node1.add_tunnel() {
        Ok(added) => added,
        Err(error) => return println!("LACKS TUN devices: {error}"),
    };
    let host = &lan.node1.host;
    match host.net.enter(|| Command::new("nft").arg(FLOWTABLE).output()) {
        Ok(made) if made.status.success() => {}
        Ok(made) => {
            let error = String::from_utf8_lossy(&made.stderr).into_owned();
            assert!(error.contains("Could not process rule"), "{error}");
            return println!("LACKS flowtables of nftables");
        }
        Err(error) => return println!("LACKS nft: {error}"),
    }
    // The client's address is kept, the packets are redirected, and netfilter masquerades them (the slow path).
    for (backend, name) in [(pod(&lan.node1), "here"), (pod(&lan.node2), "there"), (&far, "there")] {
        let endpoints = addresses(backend).map(|ip| (ip, name));
        node.write("web.yaml", &service("Cluster", &endpoints));
        let agent = places::agent(node, &lan);
        agent.wait_for("its backends", |dump| dump.backends.len() == 4);
        places::wait_for_devices(node, &lan, &["eth0", "tun0"]);
        for (dialled, ip) in addresses(host).into_iter().zip(addresses(backend)) {
            let received = backend.net.enter(|| tcp_digest(SocketAddr::from((ip, TARGET))));
            let sent = lan.client.net.enter(|| tcp_send(SocketAddr::from((dialled, NODE_PORT)), OCTETS));
            assert_eq!(received.join().expect("the server"), sent, "to {dialled}, {name}");
        }
    }
    let chain = host.net.run(&["nft", "list", "chain", "inet", "speed", "forward"]);
    let seen = chain.split_once("packets ").and_then(|(_, rest)| rest.split_once(' ')?.0.parse::<u32>().ok());
    assert!(seen.is_some_and(|seen| seen < 400), "streams are offloaded: {chain}");
}
