//! ARP and neighbour discovery: answers, claims, and what is left alone.

use core::net::Ipv6Addr;
use std::vec::Vec;

use etherparse::{ArpEthIpv4Packet, ArpOperation, ArpPacket, PacketBuilder, SlicedPacket, TransportSlice};
use proptest::prelude::*;

use super::{EMPTY, bytes::Bytes, bytes::sum};
use crate::{
    Addr, Family, LinkAddr,
    packet::{
        ADVERTISEMENT_FRAME, Arp, Gratuitous, NeighbourMessage, Packet, advertised_link, answer_arp,
        answer_solicitation, arp_probe, gratuitous_arp, is_same_link, is_valid, neighbour_probe, neighbour_question,
        parse_arp, parse_neighbour_message, parse_network, parse_transport, sender_link, unsolicited_advertisement,
    },
};

const ASKER: [u8; 6] = [2, 0, 0, 0, 0, 0xfe];
const OWN: LinkAddr = LinkAddr::new([2, 0, 0, 0, 0, 1]);
const BROADCAST: [u8; 6] = [0xff; 6];

/// A frame in a vector.
fn skb(frame: &[u8]) -> Bytes {
    let (header, packet) = frame.split_at(14);
    let mut skb = Bytes::new(14, packet);
    skb.bytes[..14].copy_from_slice(header);
    skb
}

fn arp(operation: ArpOperation, sender: ([u8; 6], [u8; 4]), target: ([u8; 6], [u8; 4])) -> Vec<u8> {
    let mut frame = Vec::new();
    let packet = ArpPacket::from(ArpEthIpv4Packet {
        operation,
        sender_mac: sender.0,
        sender_ipv4: sender.1,
        target_mac: target.0,
        target_ipv4: target.1,
    });
    PacketBuilder::ethernet2(sender.0, BROADCAST).arp(packet).write(&mut frame).expect("a packet");
    frame
}

#[test]
fn an_arp_request_becomes_its_reply() {
    for asker in [[192, 0, 2, 9], [0; 4]] {
        let mut request = arp(ArpOperation::REQUEST, (ASKER, asker), ([0; 6], [192, 0, 2, 7]));
        // Padding of the shortest frame stays.
        request.resize(60, 0xaa);
        let mut skb = skb(&request);
        let parsed = parse_arp(&skb).expect("ARP");
        assert!(parsed.is_request && parsed.link == LinkAddr::new(ASKER));
        assert_eq!(parsed.target, u32::from_ne_bytes([192, 0, 2, 7]));
        assert_eq!(parsed.sender, u32::from_ne_bytes(asker));
        answer_arp(&mut skb, &parsed, &OWN).expect("written");
        let mut reply = arp(ArpOperation::REPLY, (OWN.octets, [192, 0, 2, 7]), (ASKER, asker));
        reply[..6].copy_from_slice(&ASKER);
        reply.resize(60, 0xaa);
        assert_eq!(skb.bytes, reply);
    }
}

#[test]
fn other_arp_packets_are_none() {
    let good = arp(ArpOperation::REQUEST, (ASKER, [192, 0, 2, 9]), ([0; 6], [192, 0, 2, 7]));
    assert!(parse_arp(&skb(&good)).is_some());
    for len in 14..good.len() {
        assert_eq!(parse_arp(&skb(&good[..len])), None, "{len} octets");
    }
    // Another link layer, network layer, length, operation, and a group as the sender.
    for (at, value) in [(15, 6), (16, 9), (17, 1), (18, 8), (19, 6), (20, 1), (21, 3), (21, 0), (22, 1), (22, 0xff)] {
        let mut other = good.clone();
        other[at] = value;
        assert_eq!(parse_arp(&skb(&other)), None, "octet {at} is {value}");
    }
}

/// A message from the IPv6 header on, with its checksum. `body` follows the checksum.
fn message(kind: u8, from: Ipv6Addr, to: Ipv6Addr, hops: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    let head = body[..4].try_into().expect("four octets");
    PacketBuilder::ipv6(from.octets(), to.octets(), hops)
        .icmpv6_raw(kind, 0, head)
        .write(&mut packet, &body[4..])
        .expect("a packet");
    packet
}

fn frame(from: [u8; 6], packet: &[u8]) -> Bytes {
    skb(&[&[0x33, 0x33, 0xff, 0, 0, 7], &from[..], &[0x86, 0xdd], packet].concat())
}

fn body(flags: u8, target: Ipv6Addr, options: &[u8]) -> Vec<u8> {
    [&[flags, 0, 0, 0], &target.octets()[..], options].concat()
}

fn ip(text: &str) -> Ipv6Addr {
    text.parse().expect("an address")
}

fn parse(skb: &Bytes) -> Option<(Packet, NeighbourMessage)> {
    let mut packet = EMPTY;
    parse_network(skb, 14, Family::V6, &mut packet)?;
    parse_transport(skb, &mut packet)?;
    let message = parse_neighbour_message(skb, &packet)?;
    is_valid(skb, &packet, &message).then_some((packet, message))
}

/// The option with a link address: 1 the sender's, 2 the target's.
fn link_option(kind: u8, link: [u8; 6]) -> Vec<u8> {
    [&[kind, 1], &link[..]].concat()
}

const NONCE: [u8; 8] = [14, 1, 1, 2, 3, 4, 5, 6];

#[test]
fn a_solicitation_becomes_its_advertisement() {
    let (client, target) = (ip("2001:db8::9"), ip("2001:db8::7"));
    let (group, own, all) = (ip("ff02::1:ff00:7"), OWN.octets, ip("ff02::1"));
    let by_link = link_option(1, ASKER);
    let everyone = [0x33, 0x33, 0, 0, 0, 1];
    for (from, to, options, link, receiver, flags) in [
        (client, group, &by_link[..], ASKER, client, 0x60),
        // A known neighbour is asked again.
        (client, target, &[], ASKER, client, 0x60),
        (client, group, &[&by_link[..], &NONCE].concat(), ASKER, client, 0x60),
        // Probes for duplicates.
        (ip("::"), group, &[], everyone, all, 0x20),
        (ip("::"), group, &NONCE, everyone, all, 0x20),
    ] {
        let mut skb = frame(ASKER, &message(135, from, to, 255, &body(0, target, options)));
        let (packet, parsed) = parse(&skb).expect("a solicitation");
        assert!(parsed.is_solicitation && parsed.target == Addr::from(target));
        let sender = sender_link(&skb).expect("a link address");
        skb.bytes.resize(ADVERTISEMENT_FRAME, 0xee);
        answer_solicitation(&mut skb, &packet.tuple.src, &sender, &parsed.target, &OWN).expect("written");
        let answer = message(136, target, receiver, 255, &body(flags, target, &link_option(2, own)));
        assert_eq!(skb.bytes, [&link[..], &own, &[0x86, 0xdd], &answer].concat());
        let told = parse(&skb).expect("an advertisement");
        assert!(!told.1.is_solicitation && advertised_link(&skb, &told.0) == Some(OWN));
    }
}

#[test]
fn an_advertisement_without_a_link_address_is_of_its_sender() {
    let target = ip("2001:db8::7");
    for options in [&[][..], &NONCE] {
        let skb = frame(ASKER, &message(136, target, ip("ff02::1"), 255, &body(0x20, target, options)));
        let (packet, _) = parse(&skb).expect("an advertisement");
        assert_eq!(advertised_link(&skb, &packet), Some(LinkAddr::new(ASKER)));
    }
}

#[test]
fn malformed_messages_are_left_alone() {
    let (client, target, group) = (ip("2001:db8::9"), ip("2001:db8::7"), ip("ff02::1:ff00:7"));
    let link = link_option(1, ASKER);
    let good = message(135, client, group, 255, &body(0, target, &link));
    assert!(parse(&frame(ASKER, &good)).is_some());
    for len in 0..good.len() {
        assert_eq!(parse(&frame(ASKER, &good[..len])), None, "{len} octets");
    }
    // Any octet of the message that differs breaks its checksum.
    for at in 40..good.len() {
        let mut other = good.clone();
        other[at] ^= 0x10;
        assert_eq!(parse(&frame(ASKER, &other)), None, "octet {at}");
    }
    let refused = |packet: &[u8], what: &str| assert_eq!(parse(&frame(ASKER, packet)), None, "{what}");
    refused(&message(135, client, group, 254, &body(0, target, &link)), "forwarded");
    refused(&message(133, client, group, 255, &body(0, target, &link)), "a router solicitation");
    refused(&message(135, client, group, 255, &body(0, target, &[1, 1, 2, 0])), "half an option");
    refused(&message(135, client, group, 255, &body(0, target, &[0; 64])), "too long");
    refused(&message(135, ip("::"), group, 255, &body(0, target, &link)), "a probe with a link address");
    refused(&message(135, ip("::"), target, 255, &body(0, target, &[])), "a probe to one host");
    refused(&message(135, ip("::"), ip("ff02::1:ff00:8"), 255, &body(0, target, &[])), "to another group");
    let mut code = good.clone();
    // With a checksum that fits.
    (code[41], code[43]) = (1, code[43].wrapping_sub(1));
    refused(&code, "another code");
    let mut fragment = good;
    fragment.splice(40..40, [58, 0, 0, 1, 0, 0, 0, 9]);
    (fragment[6], fragment[5]) = (44, fragment[5] + 8);
    refused(&fragment, "a fragment");
}

#[test]
fn announcements_are_frames_that_claim_the_address() {
    let octets = [192, 0, 2, 7];
    for (kind, operation, target) in
        [(Gratuitous::Request, ArpOperation::REQUEST, [0; 6]), (Gratuitous::Reply, ArpOperation::REPLY, OWN.octets)]
    {
        let frame = gratuitous_arp(kind, u32::from_ne_bytes(octets), OWN);
        assert_eq!(frame.to_vec(), arp(operation, (OWN.octets, octets), (target, octets)));
        let claim = Arp {
            is_request: kind == Gratuitous::Request,
            link: OWN,
            sender: u32::from_ne_bytes(octets),
            target: u32::from_ne_bytes(octets),
        };
        assert_eq!(parse_arp(&skb(&frame)), Some(claim));
    }
    let target = ip("2001:db8::7");
    let frame = unsolicited_advertisement(&Addr::from(target), OWN);
    let packet = message(136, target, ip("ff02::1"), 255, &body(0x20, target, &link_option(2, OWN.octets)));
    assert_eq!(frame.to_vec(), [&[0x33, 0x33, 0, 0, 0, 1], &OWN.octets[..], &[0x86, 0xdd], &packet].concat());
    let sliced = SlicedPacket::from_ethernet(&frame).expect("a frame");
    let Some(TransportSlice::Icmpv6(icmp)) = sliced.transport else { panic!("{sliced:?}") };
    assert!(icmp.is_checksum_valid(target.octets(), ip("ff02::1").octets()));
}

#[test]
fn probes_ask_for_an_address_and_claim_none() {
    let frame = arp_probe(u32::from_ne_bytes([192, 0, 2, 7]), OWN);
    assert_eq!(frame.to_vec(), arp(ArpOperation::REQUEST, (OWN.octets, [0; 4]), ([0; 6], [192, 0, 2, 7])));
    let (target, group) = (ip("2001:db8::1234:5678"), ip("ff02::1:ff34:5678"));
    let frame = neighbour_probe(&Addr::from(target), OWN);
    let packet = message(135, ip("::"), group, 255, &body(0, target, &[]));
    assert_eq!(
        frame.to_vec(),
        [&[0x33, 0x33, 0xff, 0x34, 0x56, 0x78], &OWN.octets[..], &[0x86, 0xdd], &packet].concat()
    );
    let (_, parsed) = parse(&skb(&frame)).expect("a solicitation");
    assert!(parsed.is_solicitation && parsed.target == Addr::from(target));
}

#[test]
fn a_question_tells_the_link_address_of_the_host_that_asks() {
    let (target, group, source) = (ip("2001:db8::1234:5678"), ip("ff02::1:ff34:5678"), ip("fe80::7"));
    let frame = neighbour_question(&Addr::from(target), &Addr::from(source), OWN);
    let packet = message(135, source, group, 255, &body(0, target, &link_option(1, OWN.octets)));
    assert_eq!(
        frame.to_vec(),
        [&[0x33, 0x33, 0xff, 0x34, 0x56, 0x78], &OWN.octets[..], &[0x86, 0xdd], &packet].concat()
    );
    let (_, parsed) = parse(&skb(&frame)).expect("a solicitation");
    assert!(parsed.is_solicitation && parsed.target == Addr::from(target));
}

proptest! {
    #[test]
    fn link_addresses_are_one_if_all_octets_are(a in any::<[u8; 6]>(), b in any::<[u8; 6]>(), at in 0_usize..6) {
        let mut near = a;
        near[at] ^= 1;
        for other in [a, b, near] {
            prop_assert_eq!(is_same_link(&LinkAddr::new(a), &LinkAddr::new(other)), a == other);
        }
    }

    #[test]
    fn an_answer_has_a_right_checksum(from in any::<[u8; 16]>(), target in any::<[u8; 16]>(), own in any::<[u8; 6]>()) {
        let (from, target) = (Addr { octets: from }, Addr { octets: target });
        let mut skb = frame(ASKER, &[0; ADVERTISEMENT_FRAME - 14]);
        answer_solicitation(&mut skb, &from, &LinkAddr::new(ASKER), &target, &LinkAddr::new(own)).expect("written");
        let packet = skb.packet();
        let total = [&packet[8..40], &[0, 0, 0, 32, 0, 0, 0, 58], &packet[40..]].concat();
        prop_assert_eq!(sum(&total), 0xffff);
    }
}
