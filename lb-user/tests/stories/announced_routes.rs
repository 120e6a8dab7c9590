//! Load balancer addresses as routes for a routing daemon (`--lb-routes`): there exactly while the node shall attract
//! their traffic, and none of others is touched.

use std::{collections::BTreeSet, process::Command};

use lb_kernel::netlink::{
    NetlinkSocket,
    announced::{self, AnnouncedRoute},
};

use crate::{
    Story,
    agent::{run, until},
    node::{StoryNode, ip},
};

pub const STORIES: &[Story] = &[
    ("routes_to_announce_follow_policies_endpoints_and_the_node", routes_follow),
    ("routes_to_announce_are_listed_by_table_and_without_those_of_others", routes_are_listed_by_table),
    ("routes_to_announce_outlive_the_agent_and_end_with_the_datapath", routes_outlive_the_agent),
    ("services_get_addresses_of_pools_in_a_directory", addresses_of_pools_survive_a_restart),
];

/// The routes of a table: address and protocol.
fn routes(table: &str) -> BTreeSet<String> {
    let list = |family: &str| {
        let arguments = ["-N", family, "route", "show", "table", table];
        let output = Command::new("ip").args(arguments).output().expect("ip");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let text = list("-4") + &list("-6");
    let route = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let proto = words.iter().position(|word| *word == "proto").and_then(|at| words.get(at + 1));
        Some(format!("{} {}", words.first()?, proto?))
    };
    text.lines().filter_map(route).collect()
}

fn until_routes(table: &str, expected: &[&str]) {
    let expected: BTreeSet<String> = expected.iter().map(|text| (*text).to_owned()).collect();
    until(&format!("{expected:?}, not {:?}", routes(table)), || routes(table) == expected);
}

/// A Service of type LoadBalancer with these cluster IPs and load balancer addresses, and an endpoint on a node.
fn balancer(name: &str, ips: [&str; 2], policy: &str, node: &str, conditions: &str) -> String {
    let [vip, outside] = ips;
    let (family, endpoint) = if vip.contains(':') { ("IPv6", "fd00::1") } else { ("IPv4", "10.0.0.1") };
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\n\
         spec: {{type: LoadBalancer, clusterIPs: ['{vip}'], externalTrafficPolicy: {policy}, ports: [{{port: 80}}]}}\n\
         status: {{loadBalancer: {{ingress: [{{ip: '{outside}'}}]}}}}\n\
         ---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: {name}-x, labels: {{kubernetes.io/service-name: {name}}}}}\naddressType: {family}\n\
         ports: [{{name: '', port: 8080}}]\n\
         endpoints: [{{addresses: ['{endpoint}'], nodeName: {node}, conditions: {{{conditions}}}}}]\n"
    )
}

fn routes_follow(node: &mut StoryNode) {
    // Others in the same table, and the same protocol number in another one by hand.
    ip(&["route", "add", "198.51.100.0/24", "dev", "lo", "table", "190", "proto", "static"]);
    ip(&["route", "add", "198.51.100.7", "dev", "lo", "table", "190", "proto", "static"]);
    let others = ["198.51.100.0/24 4", "198.51.100.7 4"];
    let with = |ours: &[&str]| -> Vec<String> {
        others.iter().map(|text| (*text).to_owned()).chain(ours.iter().map(|addr| format!("{addr} 119"))).collect()
    };
    let check = |ours: &[&str]| {
        let expected = with(ours);
        until_routes("190", &expected.iter().map(String::as_str).collect::<Vec<_>>());
    };
    let cluster = balancer("a", ["10.96.0.1", "192.0.2.1"], "Cluster", "there", "");
    let six = balancer("b", ["fd96::1", "2001:db8::1"], "Cluster", "there", "");
    let local = |node: &str, conditions: &str| balancer("c", ["10.96.0.3", "192.0.2.3"], "Local", node, conditions);
    let clash = balancer("d", ["10.96.0.4", "198.51.100.7"], "Cluster", "there", "");
    node.write("a.yaml", &(cluster.clone() + &six + &clash));
    node.write("c.yaml", &local("there", ""));
    let agent = node.agent(&["--lb-routes", "190"]);
    check(&["192.0.2.1", "2001:db8::1"]);
    assert!(agent.log().contains("another program has a route to it in this table"), "{}", agent.log());
    // Local: with a ready endpoint on the node, and not while it only drains.
    node.write("c.yaml", &local("here", ""));
    check(&["192.0.2.1", "192.0.2.3", "2001:db8::1"]);
    node.write("c.yaml", &local("here", "ready: false, serving: true, terminating: true"));
    check(&["192.0.2.1", "2001:db8::1"]);
    node.write("c.yaml", &local("here", ""));
    check(&["192.0.2.1", "192.0.2.3", "2001:db8::1"]);
    // None while the node is cordoned, excluded, or leaving.
    let of_node = |metadata: &str, spec: &str| {
        format!("apiVersion: v1\nkind: Node\nmetadata: {{name: here, {metadata}}}\nspec: {{{spec}}}\n")
    };
    for (metadata, spec) in [
        ("", "unschedulable: true"),
        ("labels: {node.kubernetes.io/exclude-from-external-load-balancers: ''}", ""),
        ("", "taints: [{key: ToBeDeletedByClusterAutoscaler, effect: NoSchedule}]"),
    ] {
        node.write("node.yaml", &of_node(metadata, spec));
        check(&[]);
        node.write("node.yaml", &of_node("", ""));
        check(&["192.0.2.1", "192.0.2.3", "2001:db8::1"]);
    }
    node.write("c.yaml", "");
    std::fs::remove_file(node.directory.join("yaml/c.yaml")).expect("a file");
    check(&["192.0.2.1", "2001:db8::1"]);
}

fn routes_are_listed_by_table(_: &mut StoryNode) {
    let mut netlink = NetlinkSocket::open().expect("a socket");
    let route = |table, address: &str| AnnouncedRoute { table, address: address.parse().expect("an address") };
    let all =
        [route(190, "192.0.2.1"), route(190, "2001:db8::1"), route(1000, "192.0.2.2"), route(1000, "2001:db8::2")];
    let list = |netlink: &mut NetlinkSocket, table| announced::list(netlink, table).expect("a list");
    // A table without a route does not exist.
    assert_eq!([None, Some(190), Some(1000)].map(|table| list(&mut netlink, table).len()), [0; 3]);
    ip(&["route", "add", "198.51.100.7", "dev", "lo", "table", "190", "proto", "static"]);
    ip(&["-6", "route", "add", "2001:db8::7", "dev", "lo", "table", "190", "proto", "static"]);
    assert!(list(&mut netlink, Some(190)).is_empty(), "routes of others");
    for route in all {
        announced::add(&mut netlink, route).expect("a route");
    }
    assert_eq!(list(&mut netlink, None), all.into());
    assert_eq!(list(&mut netlink, Some(190)), all[..2].iter().copied().collect());
    assert_eq!(list(&mut netlink, Some(1000)), all[2..].iter().copied().collect());
}

fn routes_outlive_the_agent(node: &mut StoryNode) {
    node.write("a.yaml", &balancer("a", ["10.96.0.1", "192.0.2.1"], "Cluster", "there", ""));
    let mut agent = node.agent(&["--lb-routes", "190"]);
    until_routes("190", &["192.0.2.1 119"]);
    agent.kill();
    until_routes("190", &["192.0.2.1 119"]);
    // Another table, and none: the flag decides about all routes of the protocol.
    let mut agent = node.agent(&["--lb-routes", "191"]);
    until_routes("191", &["192.0.2.1 119"]);
    until_routes("190", &[]);
    agent.terminate();
    until_routes("191", &["192.0.2.1 119"]);
    let mut agent = node.agent(&[]);
    until_routes("191", &[]);
    agent.terminate();
    let mut agent = node.agent(&["--lb-routes", "191"]);
    until_routes("191", &["192.0.2.1 119"]);
    agent.terminate();
    let output = run(node, &["cleanup"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.starts_with("removed 1 route to announce"), "before anything else: {text}");
    until_routes("191", &[]);
}

fn addresses_of_pools_survive_a_restart(node: &mut StoryNode) {
    let pending = |name: &str, vip: &str| {
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\n\
             spec: {{type: LoadBalancer, clusterIPs: ['{vip}'], ports: [{{port: 80}}]}}\n"
        )
    };
    let pool = "apiVersion: beeline.io/v1alpha1\nkind: AddressPool\nmetadata: {name: p}\n\
                spec: {addresses: [192.0.2.1-192.0.2.9]}\n";
    node.write("pool.yaml", pool);
    node.write("b.yaml", &pending("b", "10.96.0.2"));
    let mut agent = node.agent(&["--lb-routes", "190"]);
    until_routes("190", &["192.0.2.1 119"]);
    agent.terminate();
    // Without memory the first by name would get the lowest address.
    node.write("a.yaml", &pending("a", "10.96.0.1"));
    let agent = node.agent(&["--lb-routes", "190"]);
    until_routes("190", &["192.0.2.1 119", "192.0.2.2 119"]);
    let explained = run(node, &["explain", "default/b"]);
    let text = String::from_utf8_lossy(&explained.stdout).into_owned();
    assert!(text.contains("address    192.0.2.1 from pool p"), "{text}\n{}", agent.log());
}
