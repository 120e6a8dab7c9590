//! The addresses of the node in the maps: added, removed, and chosen by `--nodeport-addresses`.

use std::{collections::BTreeSet, net::IpAddr};

use lb_core::store::Dump;
use rustix::process::Signal;

use crate::{
    Story,
    agent::{Agent, until},
    node::{ADDRESSES, StoryNode, ip},
};

pub const STORIES: &[Story] = &[
    ("the_maps_follow_the_addresses_of_the_node", maps_follow_addresses),
    ("lost_netlink_events_lose_no_address", lost_events_lose_no_address),
    ("a_tentative_address_is_not_served_before_it_is_usable", tentative_addresses_are_not_served),
    ("the_nodeport_addresses_flag_chooses_the_addresses", flag_chooses_addresses),
];

fn set(texts: &[&str]) -> BTreeSet<IpAddr> {
    texts.iter().map(|text| text.parse().expect("an address")).collect()
}

fn node_addresses(dump: &Dump) -> BTreeSet<IpAddr> {
    dump.node_addrs.keys().map(|addr| addr.to_ip()).collect()
}

/// Returns the addresses that the node has at the start.
fn initial_addresses() -> BTreeSet<IpAddr> {
    let configured = ADDRESSES.iter().filter_map(|address| address.split('/').next()).collect::<Vec<_>>();
    &set(&configured) | &set(&["127.0.0.1", "::1"])
}

fn wait_for(agent: &Agent, expected: &BTreeSet<IpAddr>) {
    agent.wait_for(&format!("the maps hold {expected:?}"), |dump| node_addresses(dump) == *expected);
}

fn maps_follow_addresses(node: &mut StoryNode) {
    let agent = node.agent(&[]);
    let before = agent.dump();
    assert_eq!(node_addresses(&before), initial_addresses(), "the first pass writes the initial addresses");
    for new in ["10.0.0.77", "fd00::77"] {
        ip(&["addr", "add", new, "dev", "lo"]);
        wait_for(&agent, &(&initial_addresses() | &set(&[new])));
        let mut dump = agent.dump();
        dump.node_addrs.retain(|addr, _| addr.to_ip() != set(&[new]).pop_first().expect("one"));
        assert_eq!(dump, before, "no other entry changes");
        ip(&["addr", "del", new, "dev", "lo"]);
        wait_for(&agent, &initial_addresses());
        assert_eq!(agent.dump(), before);
    }
    // As clouds give the addresses of load balancers, to the interface or to `lo`.
    for new in ["10.0.0.79", "fd00::79"] {
        ip(&["route", "add", "local", new, "dev", "lo", "proto", "66"]);
        wait_for(&agent, &(&initial_addresses() | &set(&[new])));
        ip(&["route", "del", "local", new, "dev", "lo"]);
        wait_for(&agent, &initial_addresses());
        assert_eq!(agent.dump(), before);
    }
    // An address that is configured twice stays until both entries are removed.
    ip(&["addr", "add", "10.0.0.1/24", "dev", "lo"]);
    ip(&["addr", "add", "10.0.0.78/32", "dev", "lo"]);
    wait_for(&agent, &(&initial_addresses() | &set(&["10.0.0.78"])));
    ip(&["addr", "del", "10.0.0.1/24", "dev", "lo"]);
    ip(&["addr", "del", "10.0.0.78/32", "dev", "lo"]);
    wait_for(&agent, &initial_addresses());
    let log = agent.log();
    assert!(log.contains("addresses of the node added=1 removed=0 total=15"), "{log}");
    assert!(log.contains("addresses of the node added=0 removed=1 total=14"), "{log}");
}

fn lost_events_lose_no_address(node: &mut StoryNode) {
    const COUNT: usize = 2000;
    let agent = node.agent(&[]);
    let many: BTreeSet<IpAddr> = (1_u32..).take(COUNT).map(|i| IpAddr::from((0x0a02_0000 + i).to_be_bytes())).collect();
    let change = |verb: &str| {
        let batch = node.directory.join(verb);
        let lines: String = many.iter().map(|addr| format!("addr {verb} {addr}/32 dev lo\n")).collect();
        std::fs::write(&batch, lines).expect("a file");
        ip(&["-batch", batch.to_str().expect("its name is text")]);
    };
    // More events than the socket buffer holds while the agent is stopped.
    agent.signal(Signal::STOP);
    change("add");
    assert!(lost_events(&agent) > 0, "the kernel drops events, or this story tests nothing");
    agent.signal(Signal::CONT);
    wait_for(&agent, &(&initial_addresses() | &many));
    change("del");
    wait_for(&agent, &initial_addresses());
    let changes = agent.log().matches("addresses of the node").count();
    assert!(changes < COUNT / 10, "{changes} changes");
}

/// Returns the number of netlink events that the kernel dropped for the agent.
fn lost_events(agent: &Agent) -> u64 {
    let sockets = std::fs::read_to_string(format!("/proc/{}/net/netlink", agent.pid())).expect("a running agent");
    let mut rows = sockets.lines().map(|row| row.split_whitespace().collect::<Vec<_>>());
    let names = rows.next().expect("a heading");
    let at = names.iter().position(|name| *name == "Drops").expect("the kernel counts drops");
    rows.filter_map(|row| row.get(at)?.parse::<u64>().ok()).sum()
}

fn tentative_addresses_are_not_served(node: &mut StoryNode) {
    let agent = node.agent(&[]);
    let veth = ["link", "add", "here", "type", "veth", "peer", "name", "there"];
    if !std::process::Command::new("ip").args(veth).status().is_ok_and(|status| status.success()) {
        println!("LACKS veth: no address is tentative");
        return;
    }
    for link in ["here", "there"] {
        ip(&["link", "set", link, "up"]);
    }
    // Duplicate address detection takes about a second on such an interface.
    ip(&["addr", "add", "fd00:1::1/64", "dev", "here"]);
    ip(&["addr", "add", "10.1.0.1/24", "dev", "here"]);
    let fresh: IpAddr = "fd00:1::1".parse().expect("an address");
    let usable = || std::net::UdpSocket::bind((fresh, 0)).is_ok();
    wait_for(&agent, &(&initial_addresses() | &set(&["10.1.0.1"])));
    assert!(!usable(), "the address is still tentative, or this story tests nothing");
    until("the address is served", || {
        let is_served = node_addresses(&agent.dump()).contains(&fresh);
        assert!(!is_served || usable());
        is_served
    });
    assert_eq!(
        node_addresses(&agent.dump()),
        &initial_addresses() | &set(&["10.1.0.1", "fd00:1::1"]),
        "no link-local address"
    );
    ip(&["link", "del", "here"]);
    wait_for(&agent, &initial_addresses());
}

fn flag_chooses_addresses(node: &mut StoryNode) {
    let write = |internal: &[&str]| {
        let list: String = internal.iter().map(|ip| format!("{{type: InternalIP, address: \"{ip}\"}}, ")).collect();
        node.write(
            "node.yaml",
            &format!(
                "apiVersion: v1\nkind: Node\nmetadata: {{name: here}}\nstatus:\n  addresses: [{list}{{type: Hostname, \
                 address: here}}]\n"
            ),
        );
    };
    write(&["10.0.0.2", "fd00::2", "203.0.113.1"]);
    let check = |flag: &str, expected: &[&str]| {
        let agent = node.agent(&["--nodeport-addresses", flag]);
        assert_eq!(node_addresses(&agent.dump()), set(expected), "{flag}");
        agent
    };
    check("10.0.0.0/30", &["10.0.0.1", "10.0.0.2", "10.0.0.3"]).kill();
    check("localhost", &["127.0.0.1", "::1"]).kill();
    check("localhost,fd00::9/128", &["127.0.0.1", "::1", "fd00::9"]).kill();
    // Addresses of the Node object that no interface has are not served.
    let agent = check("primary", &["10.0.0.2", "fd00::2"]);
    write(&["10.0.0.3", "10.0.0.77"]);
    wait_for(&agent, &set(&["10.0.0.3"]));
    ip(&["addr", "add", "10.0.0.77", "dev", "lo"]);
    wait_for(&agent, &set(&["10.0.0.3", "10.0.0.77"]));
}
