//! The packet path by unusual routes: two uplinks that requests and replies use as they like, IPv4 by gateways of IPv6
//! (BGP unnumbered), a default route beside the main table (wg-quick), routes by traffic class and by port, two
//! networks on one uplink, pods with two interfaces, and a way out that gets narrower while a connection lasts.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    process::Command,
    thread,
    time::Duration,
};

use lb_lab::{
    link::LinkSpec,
    network::{Host, Lan, LanOptions, RpFilter},
};

use crate::{
    Story,
    agent::{Agent, run},
    node::StoryNode,
    packets::{NODE_PORT, TARGET, addresses, pod, serve, service},
    places::{agent, agent_with, ask, wait_for_devices},
    sockets::{kernel_is_since, tcp_server, udp_server},
};

pub const STORIES: &[Story] = &[
    ("packets_come_and_go_by_two_uplinks_without_reverse_path_filters", |node| by_two_uplinks(node, RpFilter::Off)),
    ("packets_come_and_go_by_two_uplinks_with_loose_reverse_path_filters", |node| {
        by_two_uplinks(node, RpFilter::Loose);
    }),
    ("packets_come_and_go_by_two_uplinks_with_strict_reverse_path_filters", |node| {
        by_two_uplinks(node, RpFilter::Strict);
    }),
    ("packets_come_in_at_addresses_of_lo_by_gateways_of_ipv6", by_gateways_of_ipv6),
    ("packets_come_in_beside_a_default_route_of_wg_quick", beside_wg_quick),
    ("packets_reach_the_second_interface_of_a_pod", second_interfaces),
    ("packets_reach_an_interface_of_a_pod_on_another_network", interfaces_on_another_network),
    ("packets_leave_with_the_source_address_of_the_network_that_they_go_to", two_networks),
    ("packets_follow_routes_that_traffic_classes_choose", routes_by_traffic_class),
    ("packets_follow_routes_that_ports_choose", routes_by_port),
    ("packets_of_a_connection_fit_a_device_whose_mtu_shrinks", mtu_shrinks),
];

fn has_nft() -> bool {
    Command::new("nft").arg("--version").output().is_ok()
}

/// Makes a host's addresses the endpoints, and waits until the maps have them.
fn move_to(node: &mut StoryNode, agent: &Agent, backends: [IpAddr; 2], name: &str) {
    node.write("web.yaml", &service("Cluster", &backends.map(|ip| (ip, name))).replace(", nodeName: none", ""));
    agent.wait_for("its backends", |dump| {
        dump.backends.len() == 4 && dump.backends.values().all(|to| backends.contains(&to.addr.to_ip()))
    });
}

/// As [`serve`], at other addresses.
fn serve_at(host: &Host, addresses: [IpAddr; 2]) {
    host.net.enter(|| {
        for server in addresses.map(|ip| SocketAddr::from((ip, TARGET)).to_string()) {
            tcp_server(&server);
            udp_server(&server);
        }
    });
}

/// Asks some times, by TCP and UDP.
fn assert_served(client: &Host, to: SocketAddr, backend: IpAddr) {
    let server = SocketAddr::from((backend, TARGET)).to_string();
    for _ in 0..5 {
        let [tcp, udp, _] = ask(client, to);
        assert_eq!([&tcp, &udp], [&server, &server], "{to}");
    }
}

/// The client has an address that the node reaches by its second uplink. Its packets come by the first, then by both in
/// turn, as from a router that balances packets.
fn by_two_uplinks(node: &mut StoryNode, rp_filter: RpFilter) {
    if !has_nft() {
        return println!("LACKS nft: no rule alternates");
    }
    let lan = Lan::make(LanOptions { rp_filter, ..LanOptions::default() });
    let (host, client) = (&lan.node1.host, &lan.client);
    host.net
        .setup()
        .link("eth1", &LinkSpec::veth_to(&client.net, "eth1"))
        .address("eth1", "10.9.0.1/24")
        .address("eth1", "fd09::1/64")
        .apply();
    for device in ["all", "eth0", "eth1"] {
        client.net.set(&format!("ipv4/conf/{device}/rp_filter"), "0");
        // The node would not answer the other address where a filter is strict.
        client.net.set(&format!("ipv4/conf/{device}/arp_announce"), "2");
    }
    client.net.ip("link set eth1 up\naddr add 10.9.0.42/24 dev eth1\naddr add fd09::42/64 dev eth1 nodad\n\
         addr add 203.0.113.9/32 dev lo\naddr add fd99::9/128 dev lo nodad\n\
         route add 172.30.0.11 dev eth0 src 203.0.113.9\n\
         route add 198.51.100.7 via 172.30.0.11 src 203.0.113.9\n\
         route add fd30::11 dev eth0 src fd99::9\n\
         route add 172.30.0.11 via 10.9.0.1 table 7\nroute add 198.51.100.7 via 10.9.0.1 table 7\n\
         route add fd30::11 via fd09::1 table 7\nrule add fwmark 7 lookup 7\n");
    client.net.ip_with(&["-6"], "rule add fwmark 7 lookup 7\n");
    host.net.ip("route add 203.0.113.9 via 10.9.0.42\nroute add fd99::9 via fd09::42\n");
    let pods = [(pod(&lan.node1), "here"), (pod(&lan.node2), "there")];
    pods.iter().for_each(|(pod, _)| serve(pod));
    node.write("web.yaml", &service("Cluster", &[]));
    let agent = agent(node, &lan);
    wait_for_devices(node, &lan, &["eth0", "eth1"]);
    for is_alternating in [false, true] {
        if is_alternating {
            client.net.run(&[
                "nft",
                "table inet alternate { chain out { type route hook output priority mangle; \
                 ip saddr 203.0.113.9 numgen inc mod 2 0 meta mark set 7; \
                 ip6 saddr fd99::9 numgen inc mod 2 0 meta mark set 7; }; }",
            ]);
        }
        for (backend, name) in pods {
            move_to(node, &agent, addresses(backend), name);
            let [v4, v6] = addresses(backend);
            assert_served(client, SocketAddr::from((host.v6, NODE_PORT)), v6);
            // Strict filters drop what the kernel itself forwards, as with kube-proxy.
            if name == "there" || rp_filter != RpFilter::Strict {
                assert_served(client, SocketAddr::from((host.v4, NODE_PORT)), v4);
                assert_served(client, SocketAddr::from(([198, 51, 100, 7], 80)), v4);
            }
        }
    }
}

/// RFC 5549: the node's addresses are on `lo`, and its uplink has a link-local address of IPv6 alone.
fn by_gateways_of_ipv6(node: &mut StoryNode) {
    let lan = Lan::make(LanOptions::default());
    let Host { net, v4, v6 } = &lan.node1.host;
    lan.client.net.ip("addr add fe80::20/64 dev eth0 nodad\n");
    lan.node2.host.net.ip("addr add fe80::12/64 dev eth0 nodad\n");
    net.ip(&format!(
        "addr flush dev eth0\naddr add fe80::11/64 dev eth0 nodad\naddr add {v4}/32 dev lo\n\
         addr add {v6}/128 dev lo nodad\n\
         route replace 0.0.0.0/0 via inet6 fe80::20 dev eth0 src {v4}\n\
         route replace 10.244.2.0/24 via inet6 fe80::12 dev eth0 src {v4}\n\
         route replace default via fe80::20 dev eth0 src {v6}\n\
         route replace fd44:0:0:2::/64 via fe80::12 dev eth0 src {v6}\n"
    ));
    for other in [&lan.client, &lan.node2.host] {
        other
            .net
            .ip(&format!("route add {v4}/32 via inet6 fe80::11 dev eth0\nroute add {v6}/128 via fe80::11 dev eth0\n"));
    }
    let pods = [(pod(&lan.node1), "here"), (pod(&lan.node2), "there")];
    pods.iter().for_each(|(pod, _)| serve(pod));
    node.write("web.yaml", &service("Cluster", &[]));
    let agent = agent(node, &lan);
    wait_for_devices(node, &lan, &["eth0"]);
    for (backend, name) in pods {
        move_to(node, &agent, addresses(backend), name);
        for (own, backend) in addresses(&lan.node1.host).into_iter().zip(addresses(backend)) {
            assert_served(&lan.client, SocketAddr::from((own, NODE_PORT)), backend);
        }
    }
}

/// The rules of `wg-quick` for `AllowedIPs = 0.0.0.0/0, ::/0`: what the main table knows only by its default route goes
/// by the tunnel, unless it is the tunnel's own.
fn beside_wg_quick(node: &mut StoryNode) {
    let lan = Lan::make(LanOptions { rp_filter: RpFilter::Loose, ..LanOptions::default() });
    let (far, _tunnel) = match lan.node1.add_tunnel() {
        Ok(added) => added,
        Err(error) => return println!("LACKS TUN devices: {error}"),
    };
    for family in ["-4", "-6"] {
        let rules = "route add default dev tun0 table 51820\nrule add not fwmark 51820 table 51820\n\
                     rule add table main suppress_prefixlength 0\n";
        lan.node1.host.net.ip_with(&[family], rules);
    }
    let (distant, distant6) = ("203.0.113.5", "fd99::5");
    far.net.ip(&format!(
        "addr add {distant}/32 dev lo\naddr add {distant6}/128 dev lo nodad\n\
         route add 172.30.0.11 dev eth0 src {distant}\nroute add fd30::11 dev eth0 src {distant6}\n"
    ));
    let pods = [(pod(&lan.node1), "here"), (pod(&lan.node2), "there")];
    pods.iter().for_each(|(pod, _)| serve(pod));
    node.write("web.yaml", &service("Cluster", &[]));
    let agent = agent(node, &lan);
    wait_for_devices(node, &lan, &["eth0", "tun0"]);
    for (backend, name) in pods {
        move_to(node, &agent, addresses(backend), name);
        for (own, backend) in addresses(&lan.node1.host).into_iter().zip(addresses(backend)) {
            for client in [&lan.client, &far] {
                assert_served(client, SocketAddr::from((own, NODE_PORT)), backend);
            }
        }
    }
}

/// As Multus with the plugin `bridge` makes it: the pod's default route stays with its first interface.
fn second_interfaces(node: &mut StoryNode) {
    let lan = Lan::make(LanOptions::default());
    let (host, here) = (&lan.node1.host, pod(&lan.node1));
    host.net
        .setup()
        .link("br1", &LinkSpec::bridge())
        .address("br1", "10.50.0.1/24")
        .address("br1", "fd50::1/64")
        .link("second", &LinkSpec::veth_to(&here.net, "net1").port_of("br1"))
        .apply();
    here.net.ip("link set net1 up\naddr add 10.50.0.2/24 dev net1\naddr add fd50::2/64 dev net1 nodad\n");
    let second: [IpAddr; 2] = [[10, 50, 0, 2].into(), "fd50::2".parse().expect("an address")];
    serve_at(here, second);
    node.write("web.yaml", &service("Cluster", &[]));
    for (flags, name) in [(&[][..], "none"), (&["--masquerade", "always"], "here")] {
        let agent = agent_with(node, &lan, flags);
        wait_for_devices(node, &lan, &["eth0", "br1"]);
        move_to(node, &agent, second, name);
        for (own, backend) in addresses(host).into_iter().zip(second) {
            assert_served(&lan.client, SocketAddr::from((own, NODE_PORT)), backend);
        }
    }
}

/// As Multus with SR-IOV makes it: the pod is a neighbour of the node on another network, and has no gateway there.
fn interfaces_on_another_network(node: &mut StoryNode) {
    let lan = Lan::make(LanOptions::default());
    let interface = lan.node1.add_network();
    serve(&interface);
    node.write("web.yaml", &service("Cluster", &[]));
    let agent = agent(node, &lan);
    wait_for_devices(node, &lan, &["eth0", "eth1"]);
    move_to(node, &agent, addresses(&interface), "here");
    for (own, backend) in addresses(&lan.node1.host).into_iter().zip(addresses(&interface)) {
        assert_served(&lan.client, SocketAddr::from((own, NODE_PORT)), backend);
    }
}

/// The uplink has addresses of two networks, such as public and private, or global and unique local ones. A backend in
/// the second network knows no way to the first.
fn two_networks(node: &mut StoryNode) {
    if !kernel_is_since(6, 7) {
        return println!("LACKS the source address in look-ups of routes");
    }
    let lan = Lan::make(LanOptions::default());
    let (host, other) = (&lan.node1.host, &lan.node2.host);
    host.net.ip("addr add 10.9.0.1/24 dev eth0\naddr add fd09::1/64 dev eth0 nodad\n");
    other.net.ip("addr flush dev eth0\naddr add 10.9.0.42/24 dev eth0\naddr add fd09::42/64 dev eth0 nodad\n\
         route flush table main\nroute add 10.9.0.0/24 dev eth0\nroute add fd09::/64 dev eth0\n");
    let [own, backends]: [[IpAddr; 2]; 2] =
        [["10.9.0.1", "fd09::1"], ["10.9.0.42", "fd09::42"]].map(|pair| pair.map(|ip| ip.parse().expect("an address")));
    serve_at(other, backends);
    node.write("web.yaml", &service("Cluster", &[]));
    let agent = agent(node, &lan);
    wait_for_devices(node, &lan, &["eth0"]);
    move_to(node, &agent, backends, "none");
    for ((dialled, backend), own) in addresses(host).into_iter().zip(backends).zip(own) {
        let (to, server) = (SocketAddr::from((dialled, NODE_PORT)), SocketAddr::from((backend, TARGET)).to_string());
        assert_eq!(ask(&lan.client, to), [server.clone(), server, own.to_string()], "{to}");
        let words = ["trace", "tcp", &to.to_string(), "--from", &lan.client.v4.to_string()];
        let trace = String::from_utf8(host.net.enter(|| run(node, &words)).stdout).expect("text");
        assert!(dialled.is_ipv6() || trace.contains(&format!("masqueraded as {own}")), "{trace}");
    }
}

/// The main table has no route to the backend: only packets of a traffic class (DSCP) have one, by a rule or by a route
/// of their own.
fn routes_by_traffic_class(node: &mut StoryNode) {
    if !has_nft() {
        return println!("LACKS nft: no rule sets a traffic class");
    }
    let lan = Lan::make(LanOptions { rp_filter: RpFilter::Off, ..LanOptions::default() });
    let (host, there) = (&lan.node1.host, pod(&lan.node2));
    serve(there);
    lan.client.net.run(&[
        "nft",
        "table inet class { chain out { type filter hook output priority mangle; \
         meta nfproto ipv4 ip dscp set 4; meta nfproto ipv6 ip6 dscp set 4; }; }",
    ]);
    for (family, pods, gateway) in [("-4", "10.244.2.0/24", "172.30.0.12"), ("-6", "fd44:0:0:2::/64", "fd30::12")] {
        host.net.ip_with(
            &[family],
            &format!(
                "route del {pods} via {gateway}\nroute add unreachable {pods}\n\
                 rule add tos 0x10 lookup 101\nroute add {pods} via {gateway} table 101\n"
            ),
        );
    }
    node.write("web.yaml", &service("Cluster", &[]));
    let agent = agent(node, &lan);
    wait_for_devices(node, &lan, &["eth0"]);
    move_to(node, &agent, addresses(there), "there");
    let ask_all = || {
        for (own, backend) in addresses(host).into_iter().zip(addresses(there)) {
            assert_served(&lan.client, SocketAddr::from((own, NODE_PORT)), backend);
        }
    };
    ask_all();
    // Routes of IPv6 have no traffic class.
    host.net.ip("rule del tos 0x10 lookup 101\nroute add 10.244.2.0/24 tos 0x10 via 172.30.0.12\n");
    host.net.ip("route del unreachable fd44:0:0:2::/64\nroute add fd44:0:0:2::/64 via fd30::12\n");
    ask_all();
}

/// The main table has no route to the backend, and only rules for its port have one.
fn routes_by_port(node: &mut StoryNode) {
    let lan = Lan::make(LanOptions { rp_filter: RpFilter::Off, ..LanOptions::default() });
    let (host, there) = (&lan.node1.host, pod(&lan.node2));
    serve(there);
    for (family, pods, gateway) in [("-4", "10.244.2.0/24", "172.30.0.12"), ("-6", "fd44:0:0:2::/64", "fd30::12")] {
        host.net.ip_with(
            &[family],
            &format!(
                "route del {pods} via {gateway}\nroute add unreachable {pods}\n\
                 rule add ipproto tcp dport {TARGET} lookup 101\nrule add ipproto udp dport {TARGET} lookup 101\n\
                 route add {pods} via {gateway} table 101\n"
            ),
        );
    }
    node.write("web.yaml", &service("Cluster", &[]));
    let agent = agent(node, &lan);
    wait_for_devices(node, &lan, &["eth0"]);
    move_to(node, &agent, addresses(there), "there");
    for (own, backend) in addresses(host).into_iter().zip(addresses(there)) {
        assert_served(&lan.client, SocketAddr::from((own, NODE_PORT)), backend);
    }
}

/// A connection of a client whose link is wider than the way to the backend becomes.
fn mtu_shrinks(node: &mut StoryNode) {
    const PART: usize = 1 << 20;
    let lan = Lan::make(LanOptions::default());
    let far = lan.node1.add_network();
    node.write("web.yaml", &service("Cluster", &[]));
    let agent = agent(node, &lan);
    wait_for_devices(node, &lan, &["eth0", "eth1"]);
    move_to(node, &agent, addresses(&far), "none");
    for (own, backend) in addresses(&lan.node1.host).into_iter().zip(addresses(&far)) {
        let listener = far.net.enter(|| TcpListener::bind((backend, TARGET))).expect("a free port");
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a client");
            let mut part = vec![0; PART];
            while stream.read_exact(&mut part).is_ok() && stream.write_all(b"!").is_ok() {}
        });
        let mut stream = lan.client.net.enter(|| TcpStream::connect((own, NODE_PORT))).expect("a connection");
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a time-out");
        for mtu in [1500, 1400, 1300] {
            lan.node1.host.net.ip(&format!("link set eth1 mtu {mtu}\n"));
            far.net.ip(&format!("link set eth0 mtu {mtu}\n"));
            stream.write_all(&vec![7; PART]).expect("sent");
            stream.read_exact(&mut [0]).unwrap_or_else(|error| panic!("{own} with an MTU of {mtu}: {error}"));
        }
        drop(stream);
        server.join().expect("the server ends");
        lan.node1.host.net.ip("link set eth1 mtu 1500\n");
        far.net.ip("link set eth0 mtu 1500\n");
    }
}
