//! The addresses of the test network, in both families.

use lb_lab::packets::{FixtureService, PacketSpec};

/// Addresses and ports of one family, as `ADDRESS:PORT` unless noted.
#[derive(Clone, Copy, Debug)]
pub struct Net {
    /// A client outside.
    pub client: &'static str,
    /// The wildcard address of a NodePort frontend.
    pub any: &'static str,
    /// The NodePort at the node's own address.
    pub node_port: &'static str,
    /// The node's own address, without a port.
    pub node: &'static str,
    /// A cluster IP.
    pub cluster_ip: &'static str,
    /// A backend on this node, at `pod1`.
    pub local: &'static str,
    /// The same pod as a client.
    pub pod: &'static str,
    /// Another backend on this node, at `pod2`.
    pub local2: &'static str,
    /// A backend on another node.
    pub remote: &'static str,
    /// A backend on another node, behind the device `thin` with its smaller MTU.
    pub remote_thin: &'static str,
    /// A router between both ends, without a port.
    pub router: &'static str,
    /// Octets of an IP header.
    pub header: usize,
}

pub const V4: Net = Net {
    client: "198.51.100.9:4000",
    any: "0.0.0.0:30080",
    node_port: "192.0.2.1:30080",
    node: "192.0.2.1",
    cluster_ip: "10.96.0.1:80",
    local: "10.0.1.1:8080",
    pod: "10.0.1.1:5000",
    local2: "10.0.1.2:8080",
    remote: "10.0.2.1:8080",
    remote_thin: "10.0.3.1:8080",
    router: "192.0.2.77",
    header: 20,
};

pub const V6: Net = Net {
    client: "[2001:db8:9::9]:4000",
    any: "[::]:30080",
    node_port: "[2001:db8::1]:30080",
    node: "2001:db8::1",
    cluster_ip: "[fd96::1]:80",
    local: "[fd00:0:0:1::1]:8080",
    pod: "[fd00:0:0:1::1]:5000",
    local2: "[fd00:0:0:1::2]:8080",
    remote: "[fd00:0:0:2::1]:8080",
    remote_thin: "[fd00:0:0:3::1]:8080",
    router: "2001:db8::77",
    header: 40,
};

pub const BOTH: [Net; 2] = [V4, V6];

impl Net {
    /// True for the addresses of IPv4.
    pub fn is_v4(&self) -> bool {
        self.header == 20
    }
}

/// Returns the address in `ADDRESS:PORT`.
pub fn ip(end: &str) -> String {
    end.parse::<std::net::SocketAddr>().expect("an address and port").ip().to_string()
}

/// Returns the first packet of a flow of each protocol, and a service port without frontends for it.
pub fn each(net: Net) -> [(PacketSpec, FixtureService); 3] {
    [
        (PacketSpec::syn(net.client, net.node_port), FixtureService::tcp()),
        (PacketSpec::udp(net.client, net.node_port), FixtureService::udp()),
        (PacketSpec::sctp_init(net.client, net.node_port), FixtureService::sctp()),
    ]
}
