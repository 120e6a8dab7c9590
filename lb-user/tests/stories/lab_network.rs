//! The network of the packet stories: without a proxy every host reaches every other by plain routes.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    os::fd::AsFd as _,
    time::{Duration, Instant},
};

use lb_lab::network::{Host, Lan, LanOptions, RpFilter};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::{
    Story,
    agent::until,
    node::StoryNode,
    sockets::{Client, tcp_ask, tcp_digest, tcp_send, tcp_server, udp_server},
};

pub const STORIES: &[Story] = &[
    ("a_lan_has_routes_between_all_of_its_hosts", hosts_reach_each_other),
    ("a_lan_filters_the_reverse_path_as_configured", reverse_path_is_filtered),
    ("a_lan_of_any_mtu_carries_large_transfers", transfers_arrive),
    ("a_lan_is_built_quickly_and_removed_completely", network_is_removed),
];

const PORT: u16 = 8080;

fn addresses(host: &Host) -> [IpAddr; 2] {
    [host.v4.into(), host.v6.into()]
}

fn serve(host: &Host) {
    host.net.enter(|| {
        for ip in addresses(host) {
            tcp_server(&SocketAddr::from((ip, PORT)).to_string());
            udp_server(&SocketAddr::from((ip, PORT)).to_string());
        }
    });
}

/// Asserts that the server sees the address of the client, and the client that of the server.
fn assert_reachable(client: &Host, server: &Host) {
    for (from, to) in addresses(client).into_iter().zip(addresses(server)) {
        let to = SocketAddr::from((to, PORT));
        let (tcp, udp) = client.net.enter(|| (tcp_ask(to).expect("an answer"), Client::udp(to).ask(to)));
        assert_eq!(tcp, (to.to_string(), from.to_string()));
        assert_eq!(udp, (to.to_string(), Some(to)));
    }
}

fn hosts_reach_each_other(_: &mut StoryNode) {
    let lan = Lan::make(LanOptions { pods: 2, ..LanOptions::default() });
    let hosts: Vec<&Host> = [&lan.node1, &lan.node2].into_iter().flat_map(|node| &node.pods).collect();
    let hosts = [hosts, vec![&lan.client, &lan.node1.host, &lan.node2.host]].concat();
    hosts.iter().for_each(|host| serve(host));
    for client in &hosts {
        for server in &hosts {
            let is_node = |host: &Host| [lan.node1.host.v4, lan.node2.host.v4].contains(&host.v4);
            // A node uses the gateway address towards its own pods, and loopback towards itself.
            if !is_node(client) {
                assert_reachable(client, server);
            }
        }
    }
}

fn reverse_path_is_filtered(_: &mut StoryNode) {
    for (rp_filter, passes) in [(RpFilter::Strict, false), (RpFilter::Loose, true), (RpFilter::Off, true)] {
        let lan = Lan::make(LanOptions { rp_filter, ..LanOptions::default() });
        let pod = lan.node1.pods.first().expect("a pod");
        serve(&lan.client);
        // The pod uses an address of node2 as its source, to which node1 has another route.
        let foreign_source = lan.node2.host.v4;
        pod.net.run(&["ip", "address", "add", &format!("{foreign_source}/32"), "dev", "eth0"]);
        let to = SocketAddr::from((lan.client.v4, PORT));
        // Resolve the gateway with the pod's own address first: the gateway would not answer to the other one.
        pod.net.enter(|| Client::udp(to).ask(to));
        let counters = ["ForwDatagrams", "IPReversePathFilter"];
        let [forwarded, refused] = counters.map(|name| count(&lan.node1.host, name));
        pod.net.enter(|| {
            let client = Client::udp(to);
            client.bind(&SocketAddr::from((foreign_source, 0)).to_string());
            client.send_to(to).expect("sent");
        });
        let expected = [forwarded + u32::from(passes), refused + u32::from(!passes)];
        until(&format!("{rp_filter:?}"), || counters.map(|name| count(&lan.node1.host, name)) == expected);
    }
}

/// Returns a counter of the kernel, from the two tables that `nstat` reads.
fn count(host: &Host, name: &str) -> u32 {
    let read =
        || ["snmp", "netstat"].map(|file| fs::read_to_string(format!("/proc/thread-self/net/{file}")).expect("/proc"));
    let tables = host.net.enter(read).concat();
    let lines: Vec<Vec<&str>> = tables.lines().map(|line| line.split(' ').collect()).collect();
    let mut values = lines.chunks_exact(2).filter_map(|pair| match pair {
        [names, values] => values.get(names.iter().position(|known| *known == name)?)?.parse().ok(),
        _ => None,
    });
    values.next().expect("the kernel has this counter")
}

fn transfers_arrive(_: &mut StoryNode) {
    for mtu in [1400, 1500, 9000] {
        let lan = Lan::make(LanOptions { mtu, ..LanOptions::default() });
        let pod = lan.node2.pods.first().expect("a pod");
        for ip in addresses(pod) {
            let to = SocketAddr::from((ip, PORT));
            let digest = pod.net.enter(|| tcp_digest(to));
            let sent = lan.client.net.enter(|| tcp_send(to, 20_000_000));
            assert_eq!(digest.join().expect("a digest"), sent, "{to}, {mtu}");
        }
    }
}

fn network_is_removed(_: &mut StoryNode) {
    let before = links();
    let start = Instant::now();
    let lan = Lan::make(LanOptions { pods: 3, ..LanOptions::default() });
    let took = start.elapsed();
    println!("made in {took:?}");
    assert!(took < Duration::from_secs(30));
    assert_eq!(links(), before, "no link is left in the namespace of the caller");
    // Hold the namespace of the client: its link goes with its peer.
    let client = std::fs::File::open(lan.client.net.path()).expect("a namespace");
    drop(lan);
    std::thread::spawn(move || {
        move_into_link_name_space(client.as_fd(), Some(LinkNameSpaceType::Network)).expect("the namespace");
        until("the link of the client is removed", || links() == ["lo"]);
    })
    .join()
    .expect("no panic");
}

/// Returns the names of the links in this thread's namespace.
fn links() -> Vec<String> {
    let table = fs::read_to_string("/proc/thread-self/net/dev").expect("/proc");
    table.lines().filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned())).collect()
}
