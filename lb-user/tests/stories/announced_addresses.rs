//! Addresses that a node announces on its link: clients of the same network reach Services at them, hear of them, and
//! `doctor` finds a second host that answers.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{IpAddr, SocketAddr, TcpStream},
    path::Path,
    process::Command,
    thread,
    time::Duration,
};

use lb_common::LinkAddr;
use lb_dataplane::{
    announced_addresses::{self, AnnouncedAddresses, boot_time_ns},
    devices::answering::{AnsweringLink, AnsweringLinks},
    pins::Pins,
};
use lb_kernel::{
    netns::NetNamespace,
    packet_socket::{PacketSocket, ReceivedFrames},
};
use lb_lab::network::{Host, Lan, LanOptions};
use tokio::sync::watch;

use crate::{
    Story,
    agent::until,
    doctor::DoctorRun,
    link_kinds::{BOND, has, make_uplink_a_port},
    node::StoryNode,
    packets::{TARGET, addresses, agent, pod, serve, service},
    places,
    sockets::tcp_ask,
};

pub const STORIES: &[Story] = &[
    ("announced_addresses_are_answered_on_the_link_until_the_deadline", answered_until_the_deadline),
    ("announced_addresses_of_an_earlier_agent_stay_until_their_deadline", kept_until_the_deadline),
    ("announced_addresses_are_answered_by_a_bridge", answered_by_a_bridge),
    ("announced_addresses_are_answered_by_a_bond", answered_by_a_bond),
    ("announced_addresses_are_answered_in_a_vlan", answered_in_a_vlan),
    ("doctor_finds_a_second_host_that_answers_for_an_announced_address", second_answerer),
];

const V4: &str = "172.30.0.77";
const V6: &str = "fd30::77";
/// Time to wait for a frame.
const MOMENT: Duration = Duration::from_millis(2);
const GROUP: &str = "ff0200000000000000000001ff000077";

fn announced() -> BTreeSet<IpAddr> {
    [V4, V6].map(|text| text.parse().expect("an address")).into()
}

/// A Service at the addresses, with a pod of node1.
fn serve_at_addresses(node: &StoryNode, lan: &Lan) {
    let backend = pod(&lan.node1);
    serve(backend);
    let yaml = service("Cluster", &addresses(backend).map(|ip| (ip, "here")));
    node.write("web.yaml", &yaml.replace("{ip: 198.51.100.7}", &format!("{{ip: {V4}}}, {{ip: \"{V6}\"}}")));
}

/// The announcements of node1, as the agent runs them, in a thread that ends with the story.
fn announce_at_node1(node: &StoryNode, lan: &Lan) -> AnnouncedAddresses {
    until("eth0 may answer", || announced_addresses::read(&node.maps()).is_ok_and(|state| !state.links.is_empty()));
    let state = announced_addresses::read(&node.maps()).expect("the maps");
    let link =
        |(index, address): (u32, LinkAddr)| (index, AnsweringLink { address, has_carrier: true, networks: Vec::new() });
    let by_index: BTreeMap<_, _> = state.links.into_iter().map(link).collect();
    let (links, receiver) = watch::channel(AnsweringLinks { by_index, is_known: true });
    let announced = AnnouncedAddresses::open(&Pins::at(node.pins.clone())).expect("the maps");
    let run = announced.run(receiver);
    let path = lan.node1.host.net.path();
    thread::spawn(move || {
        let there = NetNamespace::open(Path::new(&path)).and_then(|there| there.enter());
        there.expect("the namespace of node1");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(run).expect("announcements");
        drop(links);
    });
    announced
}

fn asks(from: &Host, to: &str) -> Option<String> {
    let to = SocketAddr::new(to.parse().expect("an address"), 80);
    from.net.enter(|| {
        TcpStream::connect_timeout(&to, Duration::from_millis(500)).ok()?;
        tcp_ask(to).ok().map(|(server, _)| server)
    })
}

fn groups(host: &Host) -> String {
    host.net.enter(|| fs::read_to_string("/proc/thread-self/net/igmp6").expect("/proc"))
}

fn forget_neighbours(host: &Host) {
    host.net.run(&["ip", "neigh", "flush", "dev", "eth0"]);
}

fn link_of(host: &Host, device: &str) -> String {
    let text = host.net.run(&["ip", "-o", "link", "show", device]);
    text.split_whitespace().skip_while(|word| *word != "link/ether").nth(1).expect("a link address").to_owned()
}

/// Asserts that a client hears these announcements of the first second: requests, replies and advertisements.
fn hears(client: &Host, expected: [usize; 3], announce: impl FnOnce()) {
    let text = client.net.run(&["ip", "-o", "link", "show", "eth0"]);
    let index = text.split(':').next().and_then(|index| index.parse().ok()).expect("an index");
    let open = |frames| client.net.enter(|| PacketSocket::open_for(index, frames).expect("a packet socket"));
    let (arp, ndp) = (open(ReceivedFrames::Arp), open(ReceivedFrames::NeighbourAdvertisements));
    announce();
    let (mut counts, mut frame) = ([0; 3], [0; 128]);
    let mut hear = || {
        if arp.receive(&mut frame, MOMENT).is_ok() && frame[28..32] == [172, 30, 0, 77] && frame[..6] == [0xff; 6] {
            counts[usize::from(frame[21] == 2)] += 1;
        }
        if ndp.receive(&mut frame, MOMENT).is_ok() && frame[..6] == [0x33, 0x33, 0, 0, 0, 1] {
            counts[2] += 1;
        }
        counts
    };
    until("the announcements are heard", || hear() == expected);
    // No more of them.
    for _ in 0..100 {
        hear();
    }
    assert_eq!(hear(), expected, "requests, replies and advertisements");
}

/// Waits until a client reaches a Service at an address.
fn reaches(from: &Host, to: &str, backend: IpAddr) {
    let server = SocketAddr::from((backend, TARGET)).to_string();
    until(&format!("{to} is answered"), || asks(from, to).as_ref() == Some(&server));
}

fn answered_until_the_deadline(node: &mut StoryNode) {
    let lan = Lan::make(LanOptions::default());
    let (client, node1) = (&lan.client, &lan.node1.host);
    serve_at_addresses(node, &lan);
    let _agent = agent(node, &lan, &[]);
    for to in [V4, V6] {
        assert_eq!(asks(client, to), None, "{to} is not announced yet");
    }
    let mut announced = announce_at_node1(node, &lan);
    assert!(announced.held().is_empty() && announced.deadline() == 0);
    hears(client, [3, 3, 3], || {
        announced.set(&self::announced()).expect("the maps");
        announced.renew(boot_time_ns() + 3_600_000_000_000).expect("the map");
    });
    assert!(groups(node1).contains(GROUP), "{}", groups(node1));
    let own = link_of(node1, "eth0");
    for (to, backend) in [V4, V6].into_iter().zip(addresses(pod(&lan.node1))) {
        forget_neighbours(client);
        reaches(client, to, backend);
        let neighbours = client.net.run(&["ip", "neigh", "show", to]);
        assert!(neighbours.contains(&own), "{own} in {neighbours}");
    }
    assert_eq!(announced_addresses::read(&node.maps()).expect("the maps").claims, []);
    // No answer after the deadline, and announcements again when it is renewed.
    announced.renew(1).expect("the map");
    for to in [V4, V6] {
        forget_neighbours(client);
        assert_eq!(asks(client, to), None, "{to} after the deadline");
    }
    hears(client, [3, 3, 3], || announced.renew(u64::MAX).expect("the map"));
    [V4, V6].into_iter().zip(addresses(pod(&lan.node1))).for_each(|(to, backend)| reaches(client, to, backend));
    // An address that is given up is neither answered nor announced.
    let v6 = BTreeSet::from([V6.parse().expect("an address")]);
    hears(client, [0, 0, 3], || {
        announced.set(&BTreeSet::new()).expect("the map");
        announced.set(&v6).expect("the map");
    });
    forget_neighbours(client);
    assert_eq!(asks(client, V4), None);
    reaches(client, V6, pod(&lan.node1).v6.into());
    announced.set(&BTreeSet::new()).expect("the map");
    until("the group is left", || !groups(node1).contains(GROUP));
}

/// Has node1 announce the addresses, and the client reach them at the link address of a device.
fn answers_at(node: &StoryNode, lan: &Lan, device: &str) {
    serve_at_addresses(node, lan);
    let _agent = places::agent(node, lan);
    places::wait_for_devices(node, lan, &[device]);
    let mut announced = announce_at_node1(node, lan);
    announced.set(&self::announced()).expect("the maps");
    announced.renew(u64::MAX).expect("the map");
    let own = link_of(&lan.node1.host, device);
    for (to, backend) in [V4, V6].into_iter().zip(addresses(pod(&lan.node1))) {
        reaches(&lan.client, to, backend);
        let neighbours = lan.client.net.run(&["ip", "neigh", "show", to]);
        assert!(neighbours.contains(&own), "{own} in {neighbours}");
    }
}

fn answered_by_a_bridge(node: &mut StoryNode) {
    let lan = Lan::make(LanOptions::default());
    make_uplink_a_port(&lan, "br0", "bridge");
    answers_at(node, &lan, "br0");
}

fn answered_by_a_bond(node: &mut StoryNode) {
    if !has("bond", BOND) {
        return;
    }
    let lan = Lan::make(LanOptions::default());
    make_uplink_a_port(&lan, "bond0", &format!("bond {BOND}"));
    answers_at(node, &lan, "bond0");
}

/// The addresses are of a network in the VLAN, and no host asks for them beside it.
fn answered_in_a_vlan(node: &mut StoryNode) {
    let lan = Lan::make(LanOptions::default());
    let made = lan.node1.host.net.enter(|| {
        let arguments = ["link", "add", "link", "eth0", "name", "eth0.5", "type", "vlan", "id", "5"];
        Command::new("ip").args(arguments).status().expect("the command ip").success()
    });
    if !made {
        println!("LACKS VLAN devices in this kernel");
        return;
    }
    lan.client.net.ip("link add link eth0 name eth0.5 type vlan id 5");
    for (net, last) in [(&lan.node1.host.net, 1), (&lan.client.net, 2)] {
        // More specific than the network of eth0.
        net.ip(&format!(
            "link set eth0.5 up\naddress add 172.30.0.{}/28 dev eth0.5\naddress add fd30::7{last}/124 dev eth0.5 nodad",
            64 + last
        ));
    }
    let mut setup = lan.client.net.setup();
    setup = setup.route(&format!("{V4}/32 dev eth0.5")).route(&format!("{V6}/128 dev eth0.5"));
    setup.apply();
    answers_at(node, &lan, "eth0.5");
}

fn kept_until_the_deadline(node: &mut StoryNode) {
    let lan = Lan::make(LanOptions::default());
    serve_at_addresses(node, &lan);
    let mut first = agent(node, &lan, &[]);
    let open = || AnnouncedAddresses::open(&Pins::at(node.pins.clone())).expect("the maps");
    let mut announced = open();
    announced.set(&self::announced()).expect("the maps");
    let deadline = boot_time_ns() + 600_000_000_000;
    announced.renew(deadline).expect("the map");
    drop(announced);
    // The programs answer without an agent.
    first.kill();
    [V4, V6].into_iter().zip(addresses(pod(&lan.node1))).for_each(|(to, backend)| reaches(&lan.client, to, backend));
    let mut announced = open();
    assert_eq!((announced.held(), announced.deadline()), (&self::announced(), deadline));
    announced.renew(1).expect("the map");
    assert!(open().held().is_empty(), "another node may hold them");
    assert!(announced_addresses::read(&node.maps()).expect("the maps").addresses.is_empty());
}

fn second_answerer(node: &mut StoryNode) {
    let lan = Lan::make(LanOptions::default());
    let (node1, node2) = (&lan.node1.host, &lan.node2.host);
    serve_at_addresses(node, &lan);
    let _agent = agent(node, &lan, &[]);
    let doctor = || node1.net.enter(|| DoctorRun::new(node, &[]));
    let mut announced = announce_at_node1(node, &lan);
    assert_eq!(doctor().find("announcing", ""), None, "nothing was announced");
    announced.set(&self::announced()).expect("the maps");
    announced.renew(u64::MAX).expect("the map");
    doctor().assert_finding("ok", "announcing", "one host", "");
    let other = link_of(node2, "eth0");
    for (to, bits) in [(V4, 24), (V6, 64)] {
        node2.net.run(&["ip", "address", "add", &format!("{to}/{bits}"), "dev", "eth0"]);
    }
    let found = doctor();
    for to in [V4, V6] {
        let words = format!("another host answers for {to}, which this node announces: {other} at eth0");
        found.assert_finding("error", "announcing", &words, "find the host by its link address");
    }
    // The answers to the probes are claims.
    let state = announced_addresses::read(&node.maps()).expect("the maps");
    let found = state.claims.iter().map(|(key, _)| (key.addr.to_ip(), key.link.to_string()));
    assert_eq!(found.collect::<BTreeSet<_>>(), self::announced().into_iter().map(|ip| (ip, other.clone())).collect());
    // Each claim came in by a device that answers: eth0.
    assert!(state.claims.iter().all(|(_, entry)| state.links.contains_key(&entry.ifindex) && entry.count > 0));
    // Only node2 answers.
    announced.set(&BTreeSet::new()).expect("the map");
    doctor().assert_finding("ok", "announcing", "one host", "");
    for (to, bits) in [(V4, 24), (V6, 64)] {
        node2.net.run(&["ip", "address", "del", &format!("{to}/{bits}"), "dev", "eth0"]);
    }
    let words = format!("no host on the links of this node answers for {V4}, {V6}");
    doctor().assert_finding("warning", "announcing", &words, "port security");
    node1.net.run(&["ip", "link", "set", "eth0", "down"]);
    doctor().assert_finding("error", "announcing", "has a carrier: eth0", "connect one");
}
