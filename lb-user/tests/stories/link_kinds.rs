//! The packet path over kinds of links that this machine's kernel may lack: overlays between the nodes, and a bond as
//! uplink. `cargo xtask kernels` runs them where Debian's modules are.

use std::{
    io::Write as _,
    net::SocketAddr,
    process::{Command, Stdio},
};

use lb_lab::{
    netns::LabNamespace,
    network::{Host, Lan, LanOptions},
};

use crate::{
    Story,
    agent::Agent,
    node::StoryNode,
    packets::{NODE_PORT, TARGET, addresses, pod, serve, service},
    places::{agent, ask, wait_for_devices},
    sockets::{tcp_digest, tcp_send},
};

pub const STORIES: &[Story] = &[
    ("packets_reach_pods_behind_ipip_as_calico_has_it", |node| behind(node, &IPIP)),
    ("packets_reach_pods_behind_gre", |node| behind(node, &GRE)),
    ("packets_reach_pods_behind_sit", |node| behind(node, &SIT)),
    ("packets_reach_pods_behind_vxlan", |node| behind(node, &VXLAN)),
    ("packets_reach_pods_behind_geneve", |node| behind(node, &GENEVE)),
    ("packets_reach_pods_behind_wireguard", |node| behind(node, &WIREGUARD)),
    ("packets_come_in_by_a_bond", by_a_bond),
];

/// Arguments of a bond.
pub const BOND: &str = "mode active-backup miimon 100";

/// NodePort and target port of the Service that takes much data.
const BULK: (u16, u16) = (30081, 8081);

/// Name of the overlay's device on both nodes.
const DEVICE: &str = "over0";

/// An overlay between the nodes, by which each reaches the pods of the other.
struct Overlay {
    /// Kind of the device, as ip(8) has it.
    kind: &'static str,
    /// Arguments of the kind. In them and in routes stand `OWN` and `PEER` for the nodes' addresses, `OTHER` for the
    /// peer's number.
    arguments: &'static str,
    /// Routes by the device to the other's pods.
    routes: &'static [&'static str],
    /// True for IPv4, and for IPv6, if the overlay carries its packets.
    families: [bool; 2],
}

/// One device for all peers; the route has the peer.
const IPIP: Overlay = Overlay {
    kind: "ipip",
    arguments: "local OWN",
    routes: &["10.244.OTHER.0/24 via PEER onlink"],
    families: [true, false],
};
const SIT: Overlay = Overlay {
    kind: "sit",
    arguments: "local OWN",
    routes: &["fd44:0:0:OTHER::/64 via ::PEER onlink"],
    families: [false, true],
};
const GRE: Overlay = Overlay {
    kind: "gre",
    arguments: "local OWN remote PEER",
    routes: &["10.244.OTHER.0/24", "fd44:0:0:OTHER::/64"],
    families: [true, true],
};
const VXLAN: Overlay = Overlay {
    kind: "vxlan",
    arguments: "id 42 local OWN remote PEER dstport 8472",
    routes: &[
        "10.244.OTHER.0/24 via 10.244.OTHER.254 onlink",
        "fd44:0:0:OTHER::fe",
        "fd44:0:0:OTHER::/64 via fd44:0:0:OTHER::fe",
    ],
    families: [true, true],
};
const GENEVE: Overlay = Overlay { kind: "geneve", arguments: "id 42 remote PEER", ..VXLAN };
const WIREGUARD: Overlay = Overlay { kind: "wireguard", arguments: "", ..GRE };

/// Runs a program that is to read a text and to print one; none if it does not exist or fails.
fn output(net: &LabNamespace, words: &[&str], input: &str) -> Option<String> {
    let [program, arguments @ ..] = words else { return None };
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = net.enter(|| command.spawn()).ok()?;
    child.stdin.take()?.write_all(input.as_bytes()).ok()?;
    let output = child.wait_with_output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// True if this machine's kernel has a kind of links.
pub fn has(kind: &str, arguments: &str) -> bool {
    let net = LabNamespace::new();
    let line = format!("link add probe0 type {kind} {arguments}\n");
    let has = output(&net, &["ip", "-batch", "-"], &line).is_some();
    if !has {
        println!("LACKS links of kind {kind}");
    }
    has
}

/// Lays the overlay. False if WireGuard's command is missing.
fn lay(lan: &Lan, overlay: &Overlay) -> bool {
    let nodes = [(&lan.node1, 1, 2), (&lan.node2, 2, 1)];
    for (node, own, other) in nodes {
        let text = |text: &str| {
            text.replace("OWN", &format!("172.30.0.1{own}"))
                .replace("PEER", &format!("172.30.0.1{other}"))
                .replace("OTHER", &other.to_string())
        };
        let net = &node.host.net;
        let mut setup = net
            .setup()
            .ip(&text(&format!("link add {DEVICE} type {} {}", overlay.kind, overlay.arguments)))
            .up(DEVICE)
            // As Calico and Flannel do: an address of the node's own range, from which it sends to the other's pods.
            .address(DEVICE, &format!("10.244.{own}.254/32"))
            .address(DEVICE, &format!("fd44:0:0:{own}::fe/128"));
        for route in overlay.routes {
            setup = setup.ip(&text(&format!("route replace {route} dev {DEVICE}")));
        }
        setup.apply();
    }
    if overlay.kind != "wireguard" {
        return true;
    }
    let net = &lan.node1.host.net;
    let keys = nodes.map(|_| {
        let private = output(net, &["wg", "genkey"], "")?;
        let public = output(net, &["wg", "pubkey"], &private)?;
        Some((private, public))
    });
    let [Some(first), Some(second)] = keys else {
        println!("LACKS the command wg");
        return false;
    };
    for ((node, own, other), (private, public)) in nodes.into_iter().zip([(&first.0, &second.1), (&second.0, &first.1)])
    {
        let ranges = format!("10.244.{other}.0/24,fd44:0:0:{other}::/64");
        let [port, endpoint] = [format!("5182{own}"), format!("172.30.0.1{other}:5182{other}")];
        let words = ["wg", "set", DEVICE, "listen-port", &port, "private-key", "/proc/self/fd/0", "peer", public];
        let words = [words.as_slice(), &["allowed-ips", &ranges, "endpoint", &endpoint]].concat();
        output(&node.host.net, &words, private).expect("WireGuard is set up");
    }
    true
}

/// Asks both NodePorts of node1, whose backends are `at`. The remote pod sees the address of the overlay.
fn behind(node: &mut StoryNode, overlay: &Overlay) {
    if !has(overlay.kind, &overlay.arguments.replace("OWN", "192.0.2.1").replace("PEER", "192.0.2.2")) {
        return;
    }
    let lan = Lan::make(LanOptions::default());
    if !lay(&lan, overlay) {
        return;
    }
    let (client, there) = (&lan.client, pod(&lan.node2));
    serve(there);
    let _agent = serve_from(node, &lan, there, DEVICE);
    let own = ["10.244.1.254", "fd44:0:0:1::fe"];
    let families = addresses(&lan.node1.host).into_iter().zip(addresses(there)).zip(own).zip(overlay.families);
    for (((dialled, backend), own), _) in families.filter(|(_, carried)| *carried) {
        let (to, server) = (SocketAddr::from((dialled, NODE_PORT)), SocketAddr::from((backend, TARGET)).to_string());
        assert_eq!(ask(client, to), [server.clone(), server, own.to_owned()], "{to} by {}", overlay.kind);
        // Full segments of the client, which do not fit into the overlay.
        let received = there.net.enter(|| tcp_digest((backend, BULK.1).into()));
        let sent = client.net.enter(|| tcp_send((dialled, BULK.0).into(), 300_000));
        assert_eq!(received.join().expect("a server"), sent, "{to} by {}", overlay.kind);
    }
}

/// Starts the agent of node1 with two Services of this backend, and waits until the device has the programs.
fn serve_from(node: &StoryNode, lan: &Lan, backend: &Host, device: &str) -> Agent {
    let web = service("Cluster", &addresses(backend).map(|ip| (ip, "there")));
    let bulk = [("web", "bulk"), ("10.96.0.1", "10.96.0.2"), ("fd96::1", "fd96::2"), ("198.51.100.7", "198.51.100.8")];
    let bulk = bulk.into_iter().fold(web.clone(), |yaml, (from, to)| yaml.replace(from, to));
    let bulk =
        bulk.replace(&NODE_PORT.to_string(), &BULK.0.to_string()).replace(&TARGET.to_string(), &BULK.1.to_string());
    node.write("web.yaml", &web);
    node.write("bulk.yaml", &bulk);
    let agent = agent(node, lan);
    wait_for_devices(node, lan, &[device]);
    agent.wait_for("the backends", |dump| dump.backends.len() == 8);
    agent
}

/// Makes the uplink of node1 a port of a new device, which takes over its addresses and routes.
pub fn make_uplink_a_port(lan: &Lan, device: &str, kind: &str) {
    let node1 = &lan.node1.host;
    let setup = node1.net.setup().ip(&format!("link add {device} type {kind}")).ip("link set eth0 down");
    let setup = setup.ip("address flush dev eth0").ip(&format!("link set eth0 master {device}")).up("eth0").up(device);
    let setup = setup.address(device, &format!("{}/24", node1.v4)).address(device, &format!("{}/64", node1.v6));
    let setup = setup.route("10.244.2.0/24 via 172.30.0.12").route("fd44:0:0:2::/64 via fd30::12");
    setup.route("default via 172.30.0.20").route("default via fd30::20").apply();
}

fn by_a_bond(node: &mut StoryNode) {
    if !has("bond", BOND) {
        return;
    }
    let lan = Lan::make(LanOptions::default());
    let node1 = &lan.node1.host;
    make_uplink_a_port(&lan, "bond0", &format!("bond {BOND}"));
    for backend in [pod(&lan.node1), pod(&lan.node2)] {
        serve(backend);
        let agent = serve_from(node, &lan, backend, "bond0");
        for (dialled, backend) in addresses(node1).into_iter().zip(addresses(backend)) {
            let to = SocketAddr::from((dialled, NODE_PORT));
            let server = SocketAddr::from((backend, TARGET)).to_string();
            assert_eq!(ask(&lan.client, to)[..2], [server.clone(), server], "{to} by a bond");
        }
        drop(agent);
    }
}
