//! Addresses of the cluster. It has both families, and IPv4 is the first; or IPv6 alone, down to the nodes.

use std::net::{IpAddr, SocketAddr};

use crate::cni::Cni;

/// True if the cluster has no IPv4.
pub fn is_ipv6_only() -> bool {
    Cni::chosen() == Cni::PtpIpv6
}

/// The address of the cluster's first family.
pub fn first<'a>(v4: &'a str, v6: &'a str) -> &'a str {
    if is_ipv6_only() { v6 } else { v4 }
}

/// The address of the API server and CoreDNS.
pub fn control() -> &'static str {
    first("172.30.0.10", "fd30::10")
}

/// The address of the outside.
pub fn outside() -> &'static str {
    first("172.30.0.20", "fd30::20")
}

/// An address that no network of the nodes has; their default route leads to it.
pub fn world() -> &'static str {
    first("203.0.113.20", "2001:db8:113::20")
}

/// The address of a node.
pub fn node(number: usize) -> String {
    first(&format!("172.30.0.1{number}"), &format!("fd30::1{number}")).to_owned()
}

/// The address of DNS.
pub fn dns() -> &'static str {
    first("10.96.0.10", "fd96::a")
}

/// The loopback address.
pub fn loopback() -> &'static str {
    first("127.0.0.1", "::1")
}

/// Ranges of one kind, with a comma between the families.
pub fn ranges(v4: &str, v6: &str) -> String {
    if is_ipv6_only() { v6.to_owned() } else { format!("{v4},{v6}") }
}

/// The ranges of cluster IPs.
pub fn service_ranges() -> String {
    ranges("10.96.0.0/16", "fd96::/108")
}

/// The ranges of all pods.
pub fn pod_ranges() -> String {
    ranges("10.244.0.0/16", "fd44::/48")
}

/// The ranges of a node's pods, of the first family first.
pub fn pods(number: usize) -> Vec<String> {
    let ranges = ranges(&format!("10.244.{number}.0/24"), &format!("fd44:0:0:{number}::/64"));
    ranges.split(',').map(str::to_owned).collect()
}

/// True if the address is a pod's on this node.
pub fn is_of_pod_on(number: usize, address: &str) -> bool {
    address.starts_with(first(&format!("10.244.{number}."), &format!("fd44:0:0:{number}:")))
}

/// Joins an address and a port.
pub fn at(address: &str, port: u16) -> String {
    let address: IpAddr = address.parse().expect("an address");
    SocketAddr::new(address, port).to_string()
}
