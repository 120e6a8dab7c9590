//! A small network as real nodes have it: a client outside, two nodes, and pods behind them, each in a network
//! namespace.
//!
//! ```text
//! client 172.30.0.20 ─┐         ┌─ node1 172.30.0.11 ── pods 10.244.1.2, 10.244.1.3, ...
//!                     ├─ bridge ┤
//!                     │         └─ node2 172.30.0.12 ── pods 10.244.2.2, 10.244.2.3, ...
//! ```
//!
//! IPv6 is the same by fd30::11, ::12, ::20 and fd44:0:0:1::2. Nodes forward. Their default route is the client, which
//! stands for the outside. Pods have links as the CNI plugin ptp makes them.

use std::{
    fs,
    net::{Ipv4Addr, Ipv6Addr},
};

use crate::{
    link::{LinkSpec, Setup},
    netns::LabNamespace,
};

/// Reverse path filtering of the nodes (net.ipv4.conf.all.rp_filter).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RpFilter {
    /// No filter.
    Off = 0,
    /// The route back to the source must lead out of the device on which the packet came.
    Strict = 1,
    /// Some route back to the source must exist.
    Loose = 2,
}

/// Options of a network.
#[derive(Clone, Copy, Debug)]
pub struct LanOptions {
    /// MTU of all links.
    pub mtu: u16,
    /// Reverse path filtering of both nodes.
    pub rp_filter: RpFilter,
    /// Pods of each node, at most 200.
    pub pods: u8,
}

impl Default for LanOptions {
    /// Strict reverse path filtering, the hardest case, and one pod on each node.
    fn default() -> Self {
        Self { mtu: 1500, rp_filter: RpFilter::Strict, pods: 1 }
    }
}

/// A host of the network. Its link is `eth0`.
pub struct Host {
    /// Network namespace of the host.
    pub net: LabNamespace,
    /// IPv4 address of the host.
    pub v4: Ipv4Addr,
    /// IPv6 address of the host.
    pub v6: Ipv6Addr,
}

impl Host {
    pub(crate) fn new(v4: [u8; 4], v6: [u16; 8]) -> Self {
        let net = LabNamespace::new();
        disable_autoconfiguration(&net);
        Self { net, v4: v4.into(), v6: v6.into() }
    }

    /// Brings its links up and gives `eth0` its addresses, with prefixes of these lengths.
    pub(crate) fn setup(&self, bits: [u8; 2]) -> Setup<'_> {
        let Self { net, v4, v6 } = self;
        let [v4, v6] = [format!("{v4}/{}", bits[0]), format!("{v6}/{}", bits[1])];
        net.setup().up("lo").up("eth0").address("eth0", &v4).address("eth0", &v6)
    }
}

/// A node and its pods. The node's end of a pod's link has the name `pod` and the last octet of the pod's address:
/// `pod2`.
pub struct LabNode {
    /// The node itself.
    pub host: Host,
    /// Pods of the node, whose addresses end in 2, 3 and so on.
    pub pods: Vec<Host>,
}

/// The network. It ends with this value, and with the processes in it.
pub struct Lan {
    /// The client, outside of all nodes.
    pub client: Host,
    /// The first node.
    pub node1: LabNode,
    /// The second node.
    pub node2: LabNode,
    /// Holds the bridge.
    _bridge: LabNamespace,
}

impl Lan {
    /// Makes the network. Every address can be used at once.
    pub fn make(options: LanOptions) -> Self {
        let client = Host::new([172, 30, 0, 20], [0xfd30, 0, 0, 0, 0, 0, 0, 0x20]);
        let (node1, node2) = (LabNode::make(1, options), LabNode::make(2, options));
        let bridge = LabNamespace::new();
        disable_autoconfiguration(&bridge);
        // The bridge stands for a wire, which no netfilter sees.
        for family in ["arp", "ip", "ip6"] {
            // The file exists only with the module br_netfilter.
            bridge.enter(|| fs::write(format!("/proc/sys/net/bridge/bridge-nf-call-{family}tables"), "0").ok());
        }
        let mut setup = bridge.setup().link("wire", &LinkSpec::bridge());
        for (name, host) in [("client", &client), ("node1", &node1.host), ("node2", &node2.host)] {
            let port = LinkSpec::veth_to(&host.net, "eth0").mtu(options.mtu.into()).port_of("wire");
            setup = setup.link(name, &port);
        }
        setup.apply();
        let mut setup = client.setup([24, 64]);
        for number in [1, 2] {
            setup = setup
                .route(&format!("10.244.{number}.0/24 via 172.30.0.1{number}"))
                .route(&format!("fd44:0:0:{number}::/64 via fd30::1{number}"));
        }
        setup.apply();
        node1.connect(1, 2, options);
        node2.connect(2, 1, options);
        Self { client, node1, node2, _bridge: bridge }
    }
}

impl LabNode {
    fn make(number: u8, options: LanOptions) -> Self {
        let host = Host::new([172, 30, 0, 10 + number], [0xfd30, 0, 0, 0, 0, 0, 0, 0x10 + u16::from(number)]);
        // Before there is any link, since links copy `default`.
        for of in ["all", "default"] {
            host.net.set(&format!("ipv4/conf/{of}/rp_filter"), &(options.rp_filter as u8).to_string());
            // A packet that leaves by the link on which it came must not redirect the client.
            host.net.set(&format!("ipv4/conf/{of}/send_redirects"), "0");
            for family in ["ipv4", "ipv6"] {
                host.net.set(&format!("{family}/conf/{of}/forwarding"), "1");
            }
        }
        let pod =
            |last: u8| Host::new([10, 244, number, last], [0xfd44, 0, 0, u16::from(number), 0, 0, 0, u16::from(last)]);
        Self { host, pods: (2..2 + options.pods).map(pod).collect() }
    }

    /// Adds addresses, routes and pods, once the node is a port of the bridge.
    fn connect(&self, number: u8, other: u8, options: LanOptions) {
        let mut setup = self
            .host
            .setup([24, 64])
            .route(&format!("10.244.{other}.0/24 via 172.30.0.1{other}"))
            .route(&format!("fd44:0:0:{other}::/64 via fd30::1{other}"))
            .route("default via 172.30.0.20")
            .route("default via fd30::20");
        let [gateway, gateway6] = [format!("10.244.{number}.1"), format!("fd44:0:0:{number}::1")];
        for pod in &self.pods {
            let Host { net, v4, v6 } = pod;
            let link = format!("pod{}", v4.octets()[3]);
            // As ptp does: the gateway's address, alone in its prefix, on each of the links.
            setup = setup
                .link(&link, &LinkSpec::veth_to(net, "eth0").mtu(options.mtu.into()))
                .address(&link, &format!("{gateway}/32"))
                .address(&link, &format!("{gateway6}/128"))
                .route(&format!("{v4}/32 dev {link}"))
                .route(&format!("{v6}/128 dev {link}"));
        }
        setup.apply();
        for pod in &self.pods {
            pod.setup([32, 128])
                .route(&format!("{gateway}/32 dev eth0 scope link"))
                .route(&format!("{gateway6}/128 dev eth0"))
                .route(&format!("default via {gateway}"))
                .route(&format!("default via {gateway6}"))
                .apply();
        }
    }
}

/// Turns off duplicate address detection and router solicitations, before there is any link.
fn disable_autoconfiguration(net: &LabNamespace) {
    for (name, value) in [("accept_dad", "0"), ("dad_transmits", "0"), ("router_solicitations", "0")] {
        net.set(&format!("ipv6/conf/default/{name}"), value);
    }
}
