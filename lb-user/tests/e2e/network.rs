//! The network: a bridge with control plane, nodes and outside, each in a network namespace. lb-lab's network does not
//! fit: nsenter, kubelet and story need namespaces with names, and the CNI plugin makes the pods.
//!
//! | Namespace | Address | Programs |
//! |---|---|---|
//! | `control` | 172.30.0.10, fd30::10 | etcd, API server, controllers, CoreDNS |
//! | `node1` | 172.30.0.11, fd30::11 | kubelet, containerd, pods in 10.244.1.0/24 |
//! | `node2` | 172.30.0.12, fd30::12 | kubelet, containerd, pods in 10.244.2.0/24 |
//! | `outside` | 172.30.0.20, fd30::20 | clients and servers outside the cluster; default route of the nodes |
//!
//! `outside` has the address 203.0.113.20, or 2001:db8:113::20 without IPv4, a place in the world, too. For pods that
//! are routed by source there is a second bridge, with the same last octets in 172.29.0.0/24 and fd29::/64. Its other
//! end refuses packets of the first network, as a cloud does: packets leave by the device that has their address.

use std::fs;

use rustix::mount::{MountFlags, mount};

use crate::{
    addresses,
    cni::{Cni, Routes},
    process::run,
};

/// Numbers of the nodes.
pub const NODES: [usize; 2] = [1, 2];

/// Makes the network. Only this process and its children see the names of the namespaces.
pub fn make() {
    // For the names of namespaces, and for files that programs leave in /run.
    mount("tmpfs", "/run", "tmpfs", MountFlags::empty(), None).expect("a tmpfs");
    fs::create_dir("/run/netns").expect("a directory");
    ip("link set lo up");
    let networks = networks();
    for network in &networks {
        ip(&format!("link add br{network} type bridge"));
        ip(&format!("link set br{network} up"));
    }
    ip(&format!("addr add {} dev br0 nodad", addresses::first("172.30.0.1/24", "fd30::1/64")));
    for (name, octet) in [("control", "10"), ("outside", "20"), ("node1", "11"), ("node2", "12")] {
        add(name, octet, &networks);
    }
    ip(&format!("-n outside addr add {} dev lo", addresses::world()));
    for number in NODES {
        let node = format!("node{number}");
        let gateways = match Cni::chosen().routes() {
            Routes::First => Some((format!("172.30.0.1{number}"), format!("fd30::1{number}"))),
            Routes::Second => Some((format!("172.29.0.1{number}"), format!("fd29::1{number}"))),
            Routes::ByDaemon => None,
        };
        for other in ["control", "outside", "node1", "node2"].into_iter().filter(|other| **other != node) {
            for pods in addresses::pods(number) {
                if let Some((v4, v6)) = &gateways {
                    let gateway = if pods.contains(':') { v6 } else { v4 };
                    ip(&format!("-n {other} route add {pods} via {gateway}"));
                }
            }
        }
        for gateway in addresses::ranges("172.30.0.20", "fd30::20").split(',') {
            ip(&format!("-n {node} route add default via {gateway}"));
        }
    }
    ip(&format!("-n control route add default via {}", addresses::outside()));
    if networks.len() > 1 {
        for network in &networks {
            sysctl("outside", &format!("net.ipv4.conf.eth{network}.rp_filter"), "1");
        }
    }
}

/// Routes a load balancer's address from outside to a node, as a cloud would.
pub fn route_outside(address: &str, node: usize) {
    ip(&format!("-n outside route replace {address} via {}", addresses::node(node)));
}

/// Connects a node to the bridge of the first network (`up`), or takes it off (`down`).
pub fn set_link(node: &str, state: &str) {
    ip(&format!("link set {node}-0 {state}"));
}

/// The networks of the nodes, each with a bridge and a device of that number.
fn networks() -> Vec<usize> {
    if Cni::chosen().routes() == Routes::Second { vec![0, 1] } else { vec![0] }
}

fn add(name: &str, octet: &str, networks: &[usize]) {
    ip(&format!("netns add {name}"));
    ip(&format!("-n {name} link set lo up"));
    for network in networks {
        // 172.30 and 172.29.
        let prefix = 30 - network;
        ip(&format!("link add {name}-{network} type veth peer name eth{network} netns {name}"));
        ip(&format!("link set {name}-{network} master br{network} up"));
        ip(&format!("-n {name} link set eth{network} up"));
        let own = addresses::ranges(&format!("172.{prefix}.0.{octet}/24"), &format!("fd{prefix}::{octet}/64"));
        for own in own.split(',') {
            ip(&format!("-n {name} addr add {own} dev eth{network} nodad"));
        }
        sysctl(name, &format!("net.ipv4.conf.eth{network}.rp_filter"), "0");
        // The outside forwards packets between nodes, and must not redirect the nodes to a shorter route.
        sysctl(name, &format!("net.ipv4.conf.eth{network}.send_redirects"), "0");
    }
    for (key, value) in [
        ("net.ipv4.ip_forward", "1"),
        ("net.ipv4.conf.all.rp_filter", "0"),
        ("net.ipv4.conf.default.rp_filter", "0"),
        ("net.ipv6.conf.all.forwarding", "1"),
        ("net.ipv4.conf.all.send_redirects", "0"),
    ] {
        sysctl(name, key, value);
    }
}

fn sysctl(namespace: &str, key: &str, value: &str) {
    let path = format!("/proc/sys/{}", key.replace('.', "/"));
    run("nsenter", &[&format!("--net=/run/netns/{namespace}"), "sh", "-c", &format!("echo {value} > {path}")]);
}

fn ip(words: &str) {
    run("ip", &words.split(' ').collect::<Vec<_>>());
}
