//! The same places for IPv4 and for IPv6.

use lb_lab::packets::{Packet, ServicePort};

/// Addresses and ports of one family.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    /// Outside.
    pub client: &'static str,
    /// Under which a NodePort stands.
    pub any: &'static str,
    /// Where it is dialled.
    pub node_port: &'static str,
    /// The node.
    pub node: &'static str,
    pub cluster_ip: &'static str,
    /// A backend on this node, at `pod1`.
    pub here: &'static str,
    /// The pod's own port for what it dials itself.
    pub pod: &'static str,
    /// Another one, at `pod2`.
    pub beside: &'static str,
    /// A backend elsewhere.
    pub there: &'static str,
    /// One behind a way that carries less.
    pub beyond: &'static str,
    /// A router that is neither end.
    pub router: &'static str,
    /// Octets of an IP header.
    pub header: usize,
}

pub const V4: Family = Family {
    client: "198.51.100.9:4000",
    any: "0.0.0.0:30080",
    node_port: "192.0.2.1:30080",
    node: "192.0.2.1",
    cluster_ip: "10.96.0.1:80",
    here: "10.0.1.1:8080",
    pod: "10.0.1.1:5000",
    beside: "10.0.1.2:8080",
    there: "10.0.2.1:8080",
    beyond: "10.0.3.1:8080",
    router: "192.0.2.77",
    header: 20,
};

pub const V6: Family = Family {
    client: "[2001:db8:9::9]:4000",
    any: "[::]:30080",
    node_port: "[2001:db8::1]:30080",
    node: "2001:db8::1",
    cluster_ip: "[fd96::1]:80",
    here: "[fd00:0:0:1::1]:8080",
    pod: "[fd00:0:0:1::1]:5000",
    beside: "[fd00:0:0:1::2]:8080",
    there: "[fd00:0:0:2::1]:8080",
    beyond: "[fd00:0:0:3::1]:8080",
    router: "2001:db8::77",
    header: 40,
};

pub const BOTH: [Family; 2] = [V4, V6];

/// The address of an address and port.
pub fn ip(end: &str) -> String {
    end.parse::<std::net::SocketAddr>().expect("an address and port").ip().to_string()
}

/// The first packet of each protocol, and a Service for it.
pub fn each(of: Family) -> [(Packet, ServicePort); 3] {
    [
        (Packet::syn(of.client, of.node_port), ServicePort::tcp()),
        (Packet::udp(of.client, of.node_port), ServicePort::udp()),
        (Packet::sctp_init(of.client, of.node_port), ServicePort::sctp()),
    ]
}
