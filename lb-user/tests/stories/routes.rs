//! The network that stories of packets take place in: everything reaches everything by plain routes, without any proxy.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    os::fd::AsFd as _,
    time::{Duration, Instant},
};

use lb_lab::network::{Host, Lan, Options, RpFilter};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::{
    Story,
    agent::until,
    node::{Node, is_slow},
    sockets::{Client, tcp_ask, tcp_digest, tcp_send, tcp_server, udp_server},
};

pub const STORIES: &[Story] = &[
    ("a_lan_has_routes_between_all_of_its_hosts", routes),
    ("a_lan_looks_at_the_way_back_as_told", way_back),
    ("a_lan_of_any_mtu_carries_large_transfers", transfers),
    ("a_lan_leaves_nothing_and_is_quick", leaves_nothing),
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

/// Every server sees the client's own address, and every client the server's.
fn asks(client: &Host, server: &Host) {
    for (from, to) in addresses(client).into_iter().zip(addresses(server)) {
        let to = SocketAddr::from((to, PORT));
        let (tcp, udp) = client.net.enter(|| (tcp_ask(to).expect("an answer"), Client::udp(to).ask(to)));
        assert_eq!(tcp, (to.to_string(), from.to_string()));
        assert_eq!(udp, (to.to_string(), Some(to)));
    }
}

fn routes(_: &mut Node) {
    let lan = Lan::make(Options { pods: 2, ..Options::default() });
    let hosts: Vec<&Host> = [&lan.node1, &lan.node2].into_iter().flat_map(|node| &node.pods).collect();
    let hosts = [hosts, vec![&lan.client, &lan.node1.host, &lan.node2.host]].concat();
    hosts.iter().for_each(|host| serve(host));
    for client in &hosts {
        for server in &hosts {
            let is_node = |host: &Host| [lan.node1.host.v4, lan.node2.host.v4].contains(&host.v4);
            // A node speaks to its own pods with the address of their gateway, and to itself by loopback.
            if !is_node(client) {
                asks(client, server);
            }
        }
    }
}

fn way_back(_: &mut Node) {
    for (rp_filter, passes) in [(RpFilter::Strict, false), (RpFilter::Loose, true), (RpFilter::Off, true)] {
        let lan = Lan::make(Options { rp_filter, ..Options::default() });
        let pod = lan.node1.pods.first().expect("a pod");
        serve(&lan.client);
        // The pod speaks with an address of node2, for which the node has another way.
        let stranger = lan.node2.host.v4;
        pod.net.run(&["ip", "address", "add", &format!("{stranger}/32"), "dev", "eth0"]);
        let to = SocketAddr::from((lan.client.v4, PORT));
        // With its own address it learns where the gateway is; with the other one it would not be told.
        pod.net.enter(|| Client::udp(to).ask(to));
        let ends = ["ForwDatagrams", "IPReversePathFilter"];
        let [forwarded, refused] = ends.map(|end| count(&lan.node1.host, end));
        pod.net.enter(|| {
            let client = Client::udp(to);
            client.bind(&SocketAddr::from((stranger, 0)).to_string());
            client.send_to(to).expect("sent");
        });
        let expected = [forwarded + u32::from(passes), refused + u32::from(!passes)];
        until(&format!("{rp_filter:?}"), || ends.map(|end| count(&lan.node1.host, end)) == expected);
    }
}

/// A count of the kernel's, from `nstat`'s two tables.
fn count(host: &Host, name: &str) -> u32 {
    let read =
        || ["snmp", "netstat"].map(|file| fs::read_to_string(format!("/proc/thread-self/net/{file}")).expect("/proc"));
    let tables = host.net.enter(read).concat();
    let lines: Vec<Vec<&str>> = tables.lines().map(|line| line.split(' ').collect()).collect();
    let mut values = lines.chunks_exact(2).filter_map(|pair| match pair {
        [names, values] => values.get(names.iter().position(|known| *known == name)?)?.parse().ok(),
        _ => None,
    });
    values.next().expect("the kernel has such a count")
}

fn transfers(_: &mut Node) {
    for mtu in [1400, 1500, 9000] {
        let lan = Lan::make(Options { mtu, ..Options::default() });
        let pod = lan.node2.pods.first().expect("a pod");
        for ip in addresses(pod) {
            let to = SocketAddr::from((ip, PORT));
            let digest = pod.net.enter(|| tcp_digest(to));
            let sent = lan.client.net.enter(|| tcp_send(to, 20_000_000));
            assert_eq!(digest.join().expect("a digest"), sent, "{to}, {mtu}");
        }
    }
}

fn leaves_nothing(_: &mut Node) {
    let before = links();
    let start = Instant::now();
    let lan = Lan::make(Options { pods: 3, ..Options::default() });
    let took = start.elapsed();
    println!("made in {took:?}");
    assert!(took < Duration::from_secs(if is_slow() { 30 } else { 3 }));
    assert_eq!(links(), before, "nothing in the namespace of who makes it");
    // The client's own namespace is held here too; its link goes with the other end of it.
    let client = std::fs::File::open(lan.client.net.path()).expect("a namespace");
    drop(lan);
    std::thread::spawn(move || {
        move_into_link_name_space(client.as_fd(), Some(LinkNameSpaceType::Network)).expect("the namespace");
        until("the bridge has gone", || links() == ["lo"]);
    })
    .join()
    .expect("no panic");
}

/// Names of the links in this thread's namespace.
fn links() -> Vec<String> {
    let table = fs::read_to_string("/proc/thread-self/net/dev").expect("/proc");
    table.lines().filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned())).collect()
}
