//! Addresses that the node announces: ARP requests and neighbour solicitations are answered, and claims of others are
//! counted.

use std::net::{Ipv4Addr, Ipv6Addr};

use etherparse::{ArpEthIpv4Packet, ArpOperation, ArpPacket, PacketBuilder};
use lb_common::Counter;
use lb_kernel::clock::boot_time_ns;
use lb_lab::packets::{FarEnd, Fixture, node};

use crate::enter;

type Link = [u8; 6];

const OWN: Link = link(1);
const CLIENT: Link = link(0x99);
const BROADCAST: Link = [0xff; 6];
const ALL_NODES: Link = [0x33, 0x33, 0, 0, 0, 1];

/// Announced addresses, another address of their networks, and a client.
const V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 77);
const OTHER_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 78);
const CLIENT_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 99);
const V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x77);
const OTHER_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x78);
const CLIENT_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x99);
const SECOND: u64 = 1_000_000_000;

const fn link(last: u8) -> Link {
    [2, 0, 0, 0, 0, last]
}

/// A node that announces two addresses for a minute at its uplink.
fn announcing() -> Fixture {
    let mut fixture = enter();
    fixture.announce(&[&V4.to_string(), &V6.to_string()], boot_time_ns() + 60 * SECOND);
    fixture.answer_at("uplink", OWN);
    fixture
}

/// An ARP packet from one link address to another. The ends are those of the packet's sender and target.
fn arp(operation: ArpOperation, to: Link, sender: (Link, Ipv4Addr), target: (Link, Ipv4Addr)) -> Vec<u8> {
    let packet = ArpPacket::from(ArpEthIpv4Packet {
        operation,
        sender_mac: sender.0,
        sender_ipv4: sender.1.octets(),
        target_mac: target.0,
        target_ipv4: target.1.octets(),
    });
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(sender.0, to).arp(packet).write(&mut frame).expect("a frame");
    frame
}

/// A frame with a tag of this VLAN, and the priority 3.
fn tagged(vlan: u8, frame: &[u8]) -> Vec<u8> {
    let (links, rest) = frame.split_at(12);
    [links, &[0x81, 0, 0x60, vlan], rest].concat()
}

/// A client asks for an address, at all hosts or at one.
fn request(to: Link, sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    arp(ArpOperation::REQUEST, to, (CLIENT, sender), ([0; 6], target))
}

/// The reply of the node with a link address.
fn reply(own: Link, sender: Ipv4Addr) -> Vec<u8> {
    arp(ArpOperation::REPLY, CLIENT, (own, V4), (CLIENT, sender))
}

/// A message of neighbour discovery: 135 is a solicitation, 136 an advertisement.
fn message(
    kind: u8,
    links: (Link, Link),
    ends: (Ipv6Addr, Ipv6Addr),
    flags: u8,
    target: Ipv6Addr,
    option: &[u8],
) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(links.0, links.1)
        .ipv6(ends.0.octets(), ends.1.octets(), 255)
        .icmpv6_raw(kind, 0, [flags, 0, 0, 0])
        .write(&mut frame, &[&target.octets()[..], option].concat())
        .expect("a frame");
    frame
}

/// The solicited-node group of an address, and its link address.
fn group(target: Ipv6Addr) -> (Link, Ipv6Addr) {
    let [.., a, b, c] = target.octets();
    let ip = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c];
    ([0x33, 0x33, 0xff, a, b, c], ip.into())
}

fn link_option(kind: u8, link: Link) -> Vec<u8> {
    [&[kind, 1], &link[..]].concat()
}

/// A client asks all hosts of the target's group.
fn solicitation(target: Ipv6Addr) -> Vec<u8> {
    let (link, ip) = group(target);
    message(135, (CLIENT, link), (CLIENT_V6, ip), 0, target, &link_option(1, CLIENT))
}

/// The node's advertisement to the client.
fn advertisement(own: Link) -> Vec<u8> {
    message(136, (own, CLIENT), (V6, CLIENT_V6), 0x60, V6, &link_option(2, own))
}

#[test]
fn arp_requests_for_announced_addresses_are_answered() {
    let mut fixture = announcing();
    for to in [BROADCAST, OWN] {
        fixture.ingress("uplink", &request(to, CLIENT_V4, V4)).is_redirected_as(&reply(OWN, CLIENT_V4));
    }
    // A probe of a host that is about to take the address.
    let probe = request(BROADCAST, Ipv4Addr::UNSPECIFIED, V4);
    fixture.ingress("uplink", &probe).is_redirected_as(&reply(OWN, Ipv4Addr::UNSPECIFIED));
    assert_eq!((fixture.count(Counter::NeighboursAnswered), fixture.conflicts()), (3, vec![]));
}

#[test]
fn solicitations_for_announced_addresses_are_answered() {
    let mut fixture = announcing();
    fixture.ingress("uplink", &solicitation(V6)).is_redirected_as(&advertisement(OWN));
    // A client asks a neighbour that it knows, without and with its link address.
    for option in [vec![], link_option(1, CLIENT)] {
        let again = message(135, (CLIENT, OWN), (CLIENT_V6, V6), 0, V6, &option);
        fixture.ingress("uplink", &again).is_redirected_as(&advertisement(OWN));
    }
    // Probes for duplicates, without and with a nonce.
    let (link, ip) = group(V6);
    for option in [&[][..], &[14, 1, 1, 2, 3, 4, 5, 6]] {
        let probe = message(135, (CLIENT, link), (Ipv6Addr::UNSPECIFIED, ip), 0, V6, option);
        let all = "ff02::1".parse().expect("an address");
        let answer = message(136, (OWN, ALL_NODES), (V6, all), 0x20, V6, &link_option(2, OWN));
        fixture.ingress("uplink", &probe).is_redirected_as(&answer);
    }
    assert_eq!((fixture.count(Counter::NeighboursAnswered), fixture.conflicts()), (5, vec![]));
}

#[test]
fn nothing_is_answered_after_the_deadline() {
    let mut fixture = announcing();
    for until in [0, 1, boot_time_ns()] {
        fixture.announce(&[], until);
        fixture.ingress("uplink", &request(BROADCAST, CLIENT_V4, V4)).passes_unchanged();
        fixture.ingress("uplink", &solicitation(V6)).passes_unchanged();
    }
    // Time passes.
    fixture.announce(&[], boot_time_ns() + SECOND / 2);
    assert!(fixture.ingress("uplink", &request(BROADCAST, CLIENT_V4, V4)).is_redirected());
    while !fixture.ingress("uplink", &solicitation(V6)).passes() {}
    fixture.ingress("uplink", &request(BROADCAST, CLIENT_V4, V4)).passes_unchanged();
    fixture.announce(&[], u64::MAX);
    assert!(fixture.ingress("uplink", &solicitation(V6)).is_redirected());
}

#[test]
fn questions_for_other_addresses_or_at_other_devices_pass_unchanged() {
    let mut fixture = announcing();
    let (arp, ndp) = (request(BROADCAST, CLIENT_V4, V4), solicitation(V6));
    fixture.ingress("uplink", &request(BROADCAST, CLIENT_V4, OTHER_V4)).passes_unchanged();
    fixture.ingress("uplink", &solicitation(OTHER_V6)).passes_unchanged();
    for device in ["pod1", "thin"] {
        fixture.ingress(device, &arp).passes_unchanged();
        fixture.ingress(device, &ndp).passes_unchanged();
    }
    for packet in [&arp, &ndp] {
        fixture.egress("uplink", packet).passes_unchanged();
    }
    // For another host, which a promiscuous device hears too.
    fixture.ingress("uplink", &request(link(7), CLIENT_V4, V4)).passes_unchanged();
    let other = message(135, (CLIENT, link(7)), (CLIENT_V6, V6), 0, V6, &[]);
    fixture.ingress("uplink", &other).passes_unchanged();
    assert_eq!((fixture.count(Counter::NeighboursAnswered), fixture.conflicts()), (0, vec![]));
}

#[test]
fn malformed_questions_pass_unchanged() {
    let mut fixture = announcing();
    let (arp, ndp) = (request(BROADCAST, CLIENT_V4, V4), solicitation(V6));
    for len in 15..arp.len() {
        fixture.ingress("uplink", &arp[..len].to_vec()).passes_unchanged();
    }
    for len in 54..ndp.len() {
        fixture.ingress("uplink", &ndp[..len].to_vec()).passes_unchanged();
    }
    for at in [15, 17, 18, 19, 21, 22] {
        let mut other = arp.clone();
        other[at] ^= 1;
        fixture.ingress("uplink", &other).passes_unchanged();
    }
    // Hops, code, checksum, and a target whose octets the checksum does not fit.
    for at in [21, 55, 56, 60, 78] {
        let mut other = ndp.clone();
        other[at] ^= 1;
        fixture.ingress("uplink", &other).passes_unchanged();
    }
    assert_eq!((fixture.count(Counter::NeighboursAnswered), fixture.conflicts()), (0, vec![]));
}

#[test]
fn claims_of_announced_addresses_by_others_are_counted() {
    let mut fixture = announcing();
    let (uplink, other) = (fixture.index("uplink"), link(0x66));
    let all = "ff02::1".parse().expect("an address");
    let claims = [
        arp(ArpOperation::REQUEST, BROADCAST, (other, V4), ([0; 6], V4)),
        arp(ArpOperation::REPLY, BROADCAST, (other, V4), (other, V4)),
        // The other host asks for a neighbour.
        arp(ArpOperation::REQUEST, BROADCAST, (other, V4), ([0; 6], CLIENT_V4)),
        message(136, (other, ALL_NODES), (V6, all), 0x20, V6, &link_option(2, other)),
        message(136, (other, OWN), (V6, CLIENT_V6), 0x60, V6, &[]),
    ];
    claims.iter().for_each(|claim| fixture.ingress("uplink", claim).passes_unchanged());
    let expected = vec![(V4.to_string(), 0x66, uplink, 3), (V6.to_string(), 0x66, uplink, 2)];
    assert_eq!((fixture.count(Counter::AddressConflicts), fixture.conflicts()), (5, expected.clone()));
    // Announcements of the node itself, and of other addresses.
    let own = [
        arp(ArpOperation::REQUEST, BROADCAST, (OWN, V4), ([0; 6], V4)),
        message(136, (OWN, ALL_NODES), (V6, all), 0x20, V6, &link_option(2, OWN)),
        arp(ArpOperation::REQUEST, BROADCAST, (other, OTHER_V4), ([0; 6], OTHER_V4)),
        message(136, (other, ALL_NODES), (OTHER_V6, all), 0x20, OTHER_V6, &link_option(2, other)),
    ];
    own.iter().for_each(|claim| fixture.ingress("uplink", claim).passes_unchanged());
    // Another node is the holder by now.
    fixture.announce(&[], 1);
    claims.iter().for_each(|claim| fixture.ingress("uplink", claim).passes_unchanged());
    assert_eq!((fixture.count(Counter::AddressConflicts), fixture.conflicts()), (5, expected));
}

/// The far end of a device asks for both addresses, and the node answers there with its link address.
fn asks(end: &FarEnd, own: Link) {
    end.send(&request(BROADCAST, CLIENT_V4, V4));
    end.receives(&reply(own, CLIENT_V4));
    end.send(&solicitation(V6));
    end.receives(&advertisement(own));
}

#[test]
fn answers_leave_by_the_device_of_the_question() {
    let mut fixture = announcing();
    fixture.attach();
    asks(&FarEnd::of("uplink"), OWN);
}

#[test]
fn questions_with_a_priority_tag_are_answered() {
    let mut fixture = announcing();
    fixture.attach();
    let end = FarEnd::of("uplink");
    for (question, answer) in
        [(request(BROADCAST, CLIENT_V4, V4), reply(OWN, CLIENT_V4)), (solicitation(V6), advertisement(OWN))]
    {
        end.send(&tagged(5, &question));
        end.send(&tagged(0, &question));
        end.receives(&answer);
    }
    assert_eq!(fixture.count(Counter::NeighboursAnswered), 2, "those of VLAN 5 are not");
}

#[test]
fn a_bridge_answers_by_the_port_of_the_question() {
    let mut fixture = announcing();
    // A bridge takes the least link address of its ports, unless it has one of its own.
    node::ip("link add br9 address 02:00:00:00:00:09 type bridge\nlink set uplink master br9\nlink set br9 up");
    fixture.attach_to("br9");
    fixture.answer_at("br9", link(9));
    asks(&FarEnd::of("uplink"), link(9));
}

/// With `--devices` the programs may be at the port alone.
#[test]
fn a_port_answers_with_the_link_address_of_its_bridge() {
    let mut fixture = announcing();
    node::ip("link add br9 address 02:00:00:00:00:09 type bridge\nlink set uplink master br9\nlink set br9 up");
    fixture.attach_to("uplink");
    fixture.answer_at("uplink", link(9));
    asks(&FarEnd::of("uplink"), link(9));
}

/// True if the kernel has a kind of links; prints why a test is skipped otherwise.
fn has_kind(kind: &str, arguments: &str) -> bool {
    let command = format!("ip link add probe {arguments} type {kind} && ip link del probe");
    let tried = std::process::Command::new("sh").args(["-c", &command]).output();
    let has = tried.is_ok_and(|output| output.status.success());
    if !has {
        eprintln!("skipped: this kernel has no links of kind {kind}");
    }
    has
}

#[test]
fn a_vlan_answers_with_its_tag() {
    let mut fixture = announcing();
    if !has_kind("vlan id 7", "link uplink") {
        return;
    }
    node::ip(
        "link add link uplink name vlan5 address 02:00:00:00:00:05 type vlan id 5\nlink set vlan5 up\n\
         link add link uplink-end name vlan5-end type vlan id 5\nlink set vlan5-end up",
    );
    // The VLAN alone: its frames are none of the device below.
    fixture.attach_to("uplink");
    fixture.attach_to("vlan5");
    fixture.answer_at("vlan5", link(5));
    asks(&FarEnd::of("vlan5"), link(5));
}

#[test]
fn a_bond_answers_by_the_port_of_the_question() {
    let mut fixture = announcing();
    if !has_kind("bond", "") {
        return;
    }
    node::ip(
        "link add bond9 address 02:00:00:00:00:09 type bond mode active-backup miimon 100\nlink set uplink down\n\
         link set uplink master bond9\nlink set uplink up\nlink set bond9 up",
    );
    fixture.attach_to("bond9");
    fixture.answer_at("bond9", link(9));
    asks(&FarEnd::of("uplink"), link(9));
}
