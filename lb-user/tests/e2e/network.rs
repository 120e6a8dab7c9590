//! The network: a bridge with control plane, nodes and outside, each in a network namespace. lb-lab's network does not
//! fit: nsenter, kubelet and story need namespaces with names, and the CNI plugin makes the pods.
//!
//! | Namespace | Address | Programs |
//! |---|---|---|
//! | `control` | 172.30.0.10, fd30::10 | etcd, API server, controllers, CoreDNS |
//! | `node1` | 172.30.0.11, fd30::11 | kubelet, containerd, pods in 10.244.1.0/24 |
//! | `node2` | 172.30.0.12, fd30::12 | kubelet, containerd, pods in 10.244.2.0/24 |
//! | `outside` | 172.30.0.20, fd30::20 | clients and servers outside the cluster; default route of the nodes |

use std::fs;

use rustix::mount::{MountFlags, mount};

use crate::process::run;

/// Address of the API server and CoreDNS.
pub const CONTROL: &str = "172.30.0.10";
/// Address of the outside.
pub const OUTSIDE: &str = "172.30.0.20";
/// Numbers of the nodes.
pub const NODES: [usize; 2] = [1, 2];

/// The IPv4 address of a node.
pub fn node_address(number: usize) -> String {
    format!("172.30.0.1{number}")
}

/// Makes the network. Only this process and its children see the names of the namespaces.
pub fn make() {
    // For the names of namespaces, and for files that programs leave in /run.
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

/// Routes a load balancer's address from outside to a node, as a cloud would.
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
    for sysctl in sysctls.map(|name| format!("net.ipv4.{name}")).iter().map(String::as_str).chain([
        "net.ipv6.conf.all.forwarding=1",
        // The outside forwards packets between nodes, and must not redirect the nodes to a shorter route.
        "net.ipv4.conf.all.send_redirects=0",
        "net.ipv4.conf.eth0.send_redirects=0",
    ]) {
        let (key, value) = sysctl.split_once('=').expect("a value");
        let path = format!("/proc/sys/{}", key.replace('.', "/"));
        run("nsenter", &[&format!("--net=/run/netns/{name}"), "sh", "-c", &format!("echo {value} > {path}")]);
    }
}

fn ip(words: &str) {
    run("ip", &words.split(' ').collect::<Vec<_>>());
}
