//! The network: one bridge, and on it the control plane, the nodes and the outside, each in a network namespace.
//!
//! | Namespace | Address | What runs there |
//! |---|---|---|
//! | `control` | 172.30.0.10, fd30::10 | etcd, API server, controllers, CoreDNS |
//! | `node1`, `node2` | 172.30.0.11 and .12, fd30::11 and ::12 | kubelet, containerd, pods of 10.244.1.0/24 and 10.244.2.0/24 |
//! | `outside` | 172.30.0.20, fd30::20 | clients and servers that are no part of the cluster; the nodes' default route |

use std::fs;

use rustix::mount::{MountFlags, mount};

use crate::process::run;

/// Where the API server and CoreDNS are.
pub const CONTROL: &str = "172.30.0.10";
/// Where what is no part of the cluster is.
pub const OUTSIDE: &str = "172.30.0.20";
/// The nodes.
pub const NODES: [usize; 2] = [1, 2];

/// The IPv4 address of a node.
pub fn node_address(number: usize) -> String {
    format!("172.30.0.1{number}")
}

/// Makes all of it. The names of the namespaces are seen by this process and its children alone.
pub fn make() {
    // Names of namespaces, and all that programs leave below /run.
    mount("tmpfs", "/run", "tmpfs", MountFlags::empty(), None).expect("a tmpfs");
    fs::create_dir("/run/netns").expect("a directory");
    ip("link set lo up");
    ip("link add br0 type bridge");
    ip("link set br0 up");
    ip("addr add 172.30.0.1/24 dev br0");
    add("control", "10");
    add("outside", "20");
    for number in NODES {
        add(&format!("node{number}"), &format!("1{number}"));
    }
    for number in NODES {
        let node = format!("node{number}");
        for other in ["control", "outside", "node1", "node2"].into_iter().filter(|other| **other != node) {
            ip(&format!("-n {other} route add 10.244.{number}.0/24 via {}", node_address(number)));
            ip(&format!("-n {other} -6 route add fd44:0:0:{number}::/64 via fd30::1{number}"));
        }
        ip(&format!("-n {node} route add default via {OUTSIDE}"));
        ip(&format!("-n {node} -6 route add default via fd30::20"));
    }
    ip(&format!("-n control route add default via {OUTSIDE}"));
}

/// Leads a load balancer's address from outside to a node, as a cloud would.
pub fn route_outside(address: &str, node: usize) {
    ip(&format!("-n outside route replace {address} via {}", node_address(node)));
}

fn add(name: &str, octet: &str) {
    ip(&format!("netns add {name}"));
    ip(&format!("link add {name} type veth peer name eth0 netns {name}"));
    ip(&format!("link set {name} master br0 up"));
    ip(&format!("-n {name} link set lo up"));
    ip(&format!("-n {name} link set eth0 up"));
    ip(&format!("-n {name} addr add 172.30.0.{octet}/24 dev eth0"));
    ip(&format!("-n {name} -6 addr add fd30::{octet}/64 dev eth0 nodad"));
    let sysctls = ["ip_forward=1", "conf.all.rp_filter=0", "conf.default.rp_filter=0", "conf.eth0.rp_filter=0"];
    for sysctl in sysctls.map(|of_ipv4| format!("net.ipv4.{of_ipv4}")).iter().map(String::as_str).chain([
        "net.ipv6.conf.all.forwarding=1",
        // The outside sends on what nodes send to each other by way of it, and tells nobody a shorter way.
        "net.ipv4.conf.all.send_redirects=0",
        "net.ipv4.conf.eth0.send_redirects=0",
    ]) {
        let (name_of, value) = sysctl.split_once('=').expect("a value");
        let path = format!("/proc/sys/{}", name_of.replace('.', "/"));
        run("nsenter", &[&format!("--net=/run/netns/{name}"), "sh", "-c", &format!("echo {value} > {path}")]);
    }
}

fn ip(words: &str) {
    run("ip", &words.split(' ').collect::<Vec<_>>());
}
