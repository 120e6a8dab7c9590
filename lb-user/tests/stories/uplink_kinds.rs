//! The packet path by a macvlan, an ipvlan, a bridge that filters VLANs, Open vSwitch and a team, with a priority tag,
//! in a VRF, by a device without an address or a route, at addresses without a network, of local routes, deprecated,
//! and of a virtual router, and by shapers; and streams from large frames to small ones, by devices without offloads,
//! and with BIG TCP.

use std::{
    net::{IpAddr, SocketAddr},
    process::{Command, Stdio},
};

use lb_lab::{
    network::{Host, Lan, LanOptions, RpFilter},
    packets::node::disable_offloads,
};

use crate::{
    Story,
    node::StoryNode,
    packets::{NODE_PORT, TARGET, addresses, pod, serve, service},
    places::{agent, ask, wait_for_devices},
    sockets::{kernel_is_since, tcp_digest, tcp_send},
};

pub const STORIES: &[Story] = &[
    ("packets_come_in_by_a_macvlan", |node| by(node, "mv0", &["ip link add mv0 link eth0 type macvlan mode bridge"])),
    ("packets_come_in_by_an_ipvlan", |node| by(node, "iv0", &["ip link add iv0 link eth0 type ipvlan mode l2"])),
    ("packets_come_in_by_a_vlan_of_a_bridge_that_filters_vlans", |node| by(node, "br0.10", FILTERING_BRIDGE)),
    ("packets_come_in_with_a_priority_tag", with_a_priority_tag),
    ("packets_come_in_by_a_port_of_open_vswitch", |node| by(node, "br-ex", OPEN_VSWITCH)),
    ("packets_come_in_by_a_team", |node| by(node, "team0", TEAM)),
    ("packets_come_in_by_a_device_in_a_vrf", in_a_vrf),
    ("packets_come_in_by_a_device_without_an_address_or_a_route", by_a_bare_device),
    ("packets_come_in_at_an_address_without_a_network", at_a_single_address),
    ("packets_come_in_at_addresses_of_local_routes", at_local_routes),
    ("packets_come_in_at_a_deprecated_address", at_a_deprecated_address),
    ("packets_come_in_at_addresses_with_virtual_link_addresses", at_virtual_routers),
    ("packets_come_in_and_leave_by_shapers_on_ifb_devices", by_shapers),
    ("packets_of_a_stream_pass_from_large_frames_to_small_ones", |node| stream(node, 9000, Offloads::Usual)),
    ("packets_of_a_stream_pass_devices_without_offloads", |node| stream(node, 1500, Offloads::None)),
    ("packets_of_a_stream_pass_devices_with_big_tcp", |node| stream(node, 1500, Offloads::Big)),
];

/// A bridge as uplink whose VLANs the bridge itself tells apart (Proxmox, "VLAN aware"): untagged on the wire, VLAN 10
/// within.
const FILTERING_BRIDGE: &[&str] = &[
    "ip link add br0 type bridge vlan_filtering 1",
    "ip link set eth0 master br0",
    "bridge vlan del dev eth0 vid 1",
    "bridge vlan add dev eth0 vid 10 pvid untagged",
    "bridge vlan add dev br0 vid 10 self",
    "ip link set br0 up",
    "ip link add link br0 name br0.10 type vlan id 10",
];

/// A port of Open vSwitch as uplink, as OVN-Kubernetes has it: the bridge has the node's addresses.
const OPEN_VSWITCH: &[&str] = &[
    "ovs-dpctl add-dp br-ex",
    "ovs-dpctl add-if br-ex eth0",
    "ovs-dpctl add-flow br-ex in_port(0),eth(),eth_type(0x0806),arp() 1",
    "ovs-dpctl add-flow br-ex in_port(1),eth(),eth_type(0x0806),arp() 0",
    "ovs-dpctl add-flow br-ex in_port(0),eth(),eth_type(0x0800),ipv4(frag=no) 1",
    "ovs-dpctl add-flow br-ex in_port(1),eth(),eth_type(0x0800),ipv4(frag=no) 0",
    "ovs-dpctl add-flow br-ex in_port(0),eth(),eth_type(0x86dd),ipv6(frag=no) 1",
    "ovs-dpctl add-flow br-ex in_port(1),eth(),eth_type(0x86dd),ipv6(frag=no) 0",
];

const TEAM: &[&str] = &[
    "ip link add team0 type team",
    "teamnl team0 setoption mode roundrobin",
    "ip link set eth0 down",
    "ip link set eth0 master team0",
    "ip link set team0 up",
    "ip link set eth0 up",
];

/// A device that joins a VRF loses its IPv6 addresses and its routes.
const VRF: &[&str] = &["ip link add red type vrf table 10", "ip link set red up", "ip link set eth0 master red"];

const VIRTUAL_ROUTERS: &[&str] = &[
    "ip link add vrrp.51 link eth0 address 00:00:5e:00:01:33 type macvlan mode private",
    "ip link add vrrp6.51 link eth0 address 00:00:5e:00:02:33 type macvlan mode private",
    "ip link set vrrp.51 up",
    "ip link set vrrp6.51 up",
    "ip addr add 172.30.0.100/32 dev vrrp.51",
    "ip addr add fd30::100/128 dev vrrp6.51 nodad",
];

const SHAPERS: &[&str] = &[
    "ip link add ifb0 type ifb",
    "ip link add ifb1 type ifb",
    "ip link set ifb0 up",
    "ip link set ifb1 up",
    "tc qdisc add dev ifb0 root handle 1: tbf rate 100mbit burst 64k latency 400ms",
    "tc qdisc add dev ifb1 root handle 1: tbf rate 100mbit burst 64k latency 400ms",
    "tc qdisc add dev eth0 handle ffff: ingress",
    "tc filter add dev eth0 parent ffff: protocol all u32 match u32 0 0 action mirred egress redirect dev ifb0",
    "tc qdisc add dev eth0 root handle 1: htb",
    "tc filter add dev eth0 parent 1: protocol all u32 match u32 0 0 action mirred egress redirect dev ifb1",
];

/// Moves the addresses and routes of node1 to a device.
fn move_to(lan: &Lan, device: &str) {
    let Host { net, v4, v6 } = &lan.node1.host;
    net.ip(&format!(
        "addr flush dev eth0\nlink set {device} up\naddr add {v4}/24 dev {device}\n\
         addr add {v6}/64 dev {device} nodad\n\
         route replace 10.244.2.0/24 via 172.30.0.12\nroute replace fd44:0:0:2::/64 via fd30::12\n\
         route replace default via 172.30.0.20\nroute replace default via fd30::20\n"
    ));
}

/// Serves clients by NodePort, from a pod of node1 and from one of node2.
fn assert_served(node: &mut StoryNode, lan: &Lan, device: &str) {
    assert_served_at(node, lan, &[device], addresses(&lan.node1.host));
}

/// As [`assert_served`], at these addresses of node1.
fn assert_served_at(node: &mut StoryNode, lan: &Lan, devices: &[&str], dialled: [IpAddr; 2]) {
    for (backend, name) in [(pod(&lan.node1), "here"), (pod(&lan.node2), "there")] {
        serve(backend);
        node.write("web.yaml", &service("Cluster", &addresses(backend).map(|ip| (ip, name))));
        let agent = agent(node, lan);
        agent.wait_until_in_service();
        wait_for_devices(node, lan, devices);
        for (dialled, backend) in dialled.into_iter().zip(addresses(backend)) {
            let to = SocketAddr::from((dialled, NODE_PORT));
            let server = SocketAddr::from((backend, TARGET)).to_string();
            assert_eq!(ask(&lan.client, to)[..2], [server.clone(), server], "{to} by {devices:?}");
        }
    }
}

/// Runs commands on node1; false if the kernel lacks something.
fn is_done(lan: &Lan, commands: &[&str]) -> bool {
    commands.iter().all(|command| {
        let words: Vec<_> = command.split(' ').collect();
        let run = || Command::new(words[0]).args(&words[1..]).stderr(Stdio::null()).status();
        let is_done = lan.node1.host.net.enter(run).is_ok_and(|status| status.success());
        if !is_done {
            println!("LACKS {command}");
        }
        is_done
    })
}

fn by(node: &mut StoryNode, device: &str, commands: &[&str]) {
    let lan = Lan::make(LanOptions::default());
    if !is_done(&lan, commands) {
        return;
    }
    move_to(&lan, device);
    assert_served(node, &lan, device);
}

/// Frames carry a tag of IEEE 802.1Q that names no VLAN, as behind Cisco's virtual network cards, Hyper-V, or switches
/// that keep priorities. The kernel takes them for frames without a tag.
fn with_a_priority_tag(node: &mut StoryNode) {
    const NODE: &str = "02:00:00:00:00:11";
    let lan = Lan::make(LanOptions { rp_filter: RpFilter::Off, ..LanOptions::default() });
    if !is_done(&lan, &["ip link add t0 type veth", "ip link add v0 link t0 type vlan id 0", "ip link del t0"]) {
        return;
    }
    let [v4, v6] = addresses(&lan.node1.host);
    lan.node1.host.net.ip(&format!("link set eth0 address {NODE}\n"));
    for other in [&lan.client, &lan.node2.host] {
        other.net.ip(&format!(
            "link add tagged link eth0 type vlan id 0 egress-qos-map 0:3\n\
             link set tagged addrgenmode none\nlink set tagged up\n\
             neigh replace {v4} lladdr {NODE} dev tagged\nneigh replace {v6} lladdr {NODE} dev tagged\n\
             route add {v4} dev tagged src {}\nroute add {v6} dev tagged src {}\n",
            other.v4, other.v6
        ));
        for of in ["all", "eth0", "tagged"] {
            other.net.set(&format!("ipv4/conf/{of}/rp_filter"), "0");
        }
    }
    assert_served(node, &lan, "eth0");
}

/// The uplink has a routing table of its own, and pods have none: routes lead from one to the other.
fn in_a_vrf(node: &mut StoryNode) {
    if !kernel_is_since(6, 1) {
        return println!("LACKS routes of a VRF in look-ups");
    }
    let lan = Lan::make(LanOptions { rp_filter: RpFilter::Loose, ..LanOptions::default() });
    if !is_done(&lan, VRF) {
        return;
    }
    let (host, here) = (&lan.node1.host, pod(&lan.node1));
    let uplinks = [("172.30.0.20", "10.244.2.0/24", "172.30.0.12"), ("fd30::20", "fd44:0:0:2::/64", "fd30::12")];
    host.net.ip(&format!("addr add {}/64 dev eth0 nodad\n", host.v6));
    for ((client, pods, node2), here) in uplinks.into_iter().zip(addresses(here)) {
        host.net.ip(&format!(
            "route add default via {client} table 10\nroute add {pods} via {node2} table 10\n\
             route add {here} dev pod2 table 10\nroute replace default via {client} dev eth0 onlink\n"
        ));
    }
    assert_served(node, &lan, "eth0");
}

/// A load balancer outside sends the packets of clients by a tunnel, and answers go past it (DSR). Its end on the node
/// has neither an address nor a route; the service addresses are on `lo`.
fn by_a_bare_device(node: &mut StoryNode) {
    let lan = Lan::make(LanOptions { rp_filter: RpFilter::Off, ..LanOptions::default() });
    for (host, own, peer) in [(&lan.node1.host, 11, 20), (&lan.client, 20, 11)] {
        host.net.ip(&format!(
            "link add lb0 address 02:00:00:00:00:{own} type vxlan id 9 local 172.30.0.{own} remote 172.30.0.{peer} \
             dstport 4799\nlink set lb0 addrgenmode none\nlink set lb0 up\n"
        ));
    }
    lan.node1.host.net.ip("addr add 198.51.100.9/32 dev lo\naddr add fd98::9/128 dev lo nodad\n");
    for of in ["all", "eth0", "lb0"] {
        lan.client.net.set(&format!("ipv4/conf/{of}/rp_filter"), "0");
    }
    lan.client.net.ip(
        "neigh add 10.99.0.1 lladdr 02:00:00:00:00:11 dev lb0\nneigh add fd99::1 lladdr 02:00:00:00:00:11 dev lb0\n\
         route add 198.51.100.9 via 10.99.0.1 dev lb0 onlink src 172.30.0.20\n\
         route add fd98::9 via fd99::1 dev lb0 onlink src fd30::20\n",
    );
    let dialled = ["198.51.100.9", "fd98::9"].map(|ip| ip.parse().expect("an address"));
    assert_served_at(node, &lan, &["eth0", "lb0"], dialled);
}

/// As clouds give it: a /32 and a /128, and a gateway that only a route names.
fn at_a_single_address(node: &mut StoryNode) {
    let lan = Lan::make(LanOptions::default());
    for (family, name) in [("ipv4", "forwarding"), ("ipv6", "forwarding"), ("ipv4", "send_redirects")] {
        lan.client.net.set(&format!("{family}/conf/all/{name}"), if name == "forwarding" { "1" } else { "0" });
    }
    let Host { net, v4, v6 } = &lan.node1.host;
    net.ip(&format!(
        "addr flush dev eth0\naddr add {v4}/32 dev eth0\naddr add {v6}/128 dev eth0 nodad\n\
         route del fd44:0:0:2::/64\nroute add 172.30.0.20/32 dev eth0 scope link\nroute add fd30::20/128 dev eth0\n\
         route replace default via 172.30.0.20\nroute replace default via fd30::20\n"
    ));
    assert_served(node, &lan, "eth0");
}

/// Google's guest agent gives a node the addresses of its load balancers by local routes alone.
fn at_local_routes(node: &mut StoryNode) {
    let lan = Lan::make(LanOptions::default());
    let dialled: [IpAddr; 2] = ["198.51.100.50", "fd98::50"].map(|ip| ip.parse().expect("an address"));
    for (ip, own) in dialled.into_iter().zip(addresses(&lan.node1.host)) {
        lan.node1.host.net.ip(&format!("route add local {ip} dev eth0\n"));
        lan.client.net.ip(&format!("route add {ip} via {own}\n"));
    }
    assert_served_at(node, &lan, &["eth0"], dialled);
}

/// Temporary addresses (RFC 8981) are deprecated before they end: connections to them go on.
fn at_a_deprecated_address(node: &mut StoryNode) {
    let lan = Lan::make(LanOptions::default());
    let Host { net, v6, .. } = &lan.node1.host;
    net.ip(&format!("addr add fd30::1b/64 dev eth0 nodad\naddr change {v6}/64 dev eth0 preferred_lft 0\n"));
    assert_served(node, &lan, "eth0");
}

/// As keepalived gives a virtual router's addresses (`use_vmac`): on macvlans with link addresses of VRRP (RFC 9568,
/// 7.3), without reverse path filters, beside an uplink that has the node's own addresses and all routes.
fn at_virtual_routers(node: &mut StoryNode) {
    let lan = Lan::make(LanOptions { rp_filter: RpFilter::Off, ..LanOptions::default() });
    if !is_done(&lan, VIRTUAL_ROUTERS) {
        return;
    }
    // keepalived: the virtual router's devices alone answer for its addresses.
    lan.node1.host.net.set("ipv4/conf/eth0/arp_ignore", "1");
    let dialled = ["172.30.0.100", "fd30::100"].map(|ip| ip.parse().expect("an address"));
    assert_served_at(node, &lan, &["eth0", "vrrp.51", "vrrp6.51"], dialled);
}

/// As wondershaper and the plugin `bandwidth` do it: what enters, and what leaves, passes an ifb device with a queue.
fn by_shapers(node: &mut StoryNode) {
    let lan = Lan::make(LanOptions::default());
    if !is_done(&lan, SHAPERS) {
        return;
    }
    assert_served(node, &lan, "eth0");
    for name in ["ifb0", "ifb1"] {
        let sent = lan.node1.host.net.run(&["tc", "-s", "qdisc", "show", "dev", name]);
        assert!(!sent.contains("Sent 0 bytes"), "{sent}");
    }
}

/// Offloads of all devices.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Offloads {
    Usual,
    None,
    /// BIG TCP over IPv6: segments of more than 64 KiB, whose IP header has no length.
    Big,
}

fn stream(node: &mut StoryNode, mtu: u16, offloads: Offloads) {
    const OCTETS: usize = 8 << 20;
    let lan = Lan::make(LanOptions { mtu, ..LanOptions::default() });
    let pods = [pod(&lan.node1), pod(&lan.node2)];
    if mtu > 1500 {
        for (host, pod) in [(&lan.node1.host, pods[0]), (&lan.node2.host, pods[1])] {
            host.net.ip(&format!("link set pod{} mtu 1500\n", pod.v4.octets()[3]));
            pod.net.ip("link set eth0 mtu 1500\n");
        }
    }
    if offloads == Offloads::Big {
        let mut links = vec![(&lan.client, "eth0".to_owned()), (&lan.node1.host, "eth0".to_owned())];
        for (host, pod) in [(&lan.node1.host, pods[0]), (&lan.node2.host, pods[1])] {
            links.extend([(host, format!("pod{}", pod.v4.octets()[3])), (pod, "eth0".to_owned())]);
        }
        links.push((&lan.node2.host, "eth0".to_owned()));
        for (host, link) in links {
            let sizes = "gso_max_size 200000 gro_max_size 200000";
            let words = format!("link set dev {link} {sizes}");
            let run = || Command::new("ip").args(words.split(' ')).stderr(Stdio::null()).status();
            if !host.net.enter(run).is_ok_and(|status| status.success()) {
                return println!("LACKS BIG TCP");
            }
        }
    }
    if offloads == Offloads::None {
        for host in [&lan.client, &lan.node1.host, &lan.node2.host, pods[0], pods[1]] {
            host.net.enter(|| disable_offloads("eth0"));
        }
    }
    for (backend, name) in pods.into_iter().zip(["here", "there"]) {
        node.write("web.yaml", &service("Cluster", &addresses(backend).map(|ip| (ip, name))));
        let agent = agent(node, &lan);
        agent.wait_until_in_service();
        wait_for_devices(node, &lan, &["eth0"]);
        for (dialled, ip) in addresses(&lan.node1.host).into_iter().zip(addresses(backend)) {
            let received = backend.net.enter(|| tcp_digest(SocketAddr::from((ip, TARGET))));
            let sent = lan.client.net.enter(|| tcp_send(SocketAddr::from((dialled, NODE_PORT)), OCTETS));
            assert_eq!(received.join().expect("the server"), sent, "to {dialled}, a pod {name}");
        }
    }
}
