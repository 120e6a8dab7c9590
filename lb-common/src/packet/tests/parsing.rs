//! Tests of the parser.

use std::vec::Vec;

use etherparse::{IpHeaders, IpNumber, NetSlice, PacketBuilder, SlicedPacket};
use proptest::{collection::vec, prelude::*};

use super::{
    built::{addrs, headers, packets},
    bytes::Bytes,
    family, parse, parse_icmp_error,
};
use crate::{
    Addr, Proto, Tuple,
    flow::Seen,
    packet::{
        Fragment, Glance, ICMP_V6, IcmpError, Packet, Reply, icmp_v4, icmp_v6, is_silent, reset_v4, reset_v6, rewrite,
        rewrite_icmp_error,
    },
};

/// Addresses, protocol and offset of the transport, by etherparse.
fn read(bytes: &[u8]) -> (Addr, Addr, u8, usize) {
    let sliced = SlicedPacket::from_ip(bytes).expect("a good packet");
    let payload = sliced.ip_payload().expect("of IP");
    let at = payload.payload.as_ptr() as usize - bytes.as_ptr() as usize;
    let (src, dst) = match &sliced.net {
        Some(NetSlice::Ipv4(ip)) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        Some(NetSlice::Ipv6(ip)) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        other => panic!("{other:?}"),
    };
    (src, dst, payload.ip_number.0, at)
}

proptest! {
    #[test]
    fn a_glance_reads_what_the_parser_reads((built, _) in packets(), l3 in prop_oneof![Just(0_u32), Just(14)]) {
        let bytes = Bytes::new(l3, &built.bytes());
        let Some(glance) = Glance::at(&bytes, family(built.v6())) else {
            // A packet for the parser.
            let is_plain = built.part == Fragment::Whole && built.extras == 0 && built.proto != Proto::Sctp;
            prop_assert!(!is_plain || bytes.packet().len() < built.l4().0 + 16, "{built:?}");
            return Ok(());
        };
        let packet = parse(&bytes, l3, built.v6()).expect("a packet of a Service");
        prop_assert_eq!(glance.tuple, packet.tuple);
        prop_assert_eq!(glance.may_begin, packet.begins || built.proto == Proto::Udp);
        prop_assert!(packet.has_ports());
    }

    #[test]
    fn packets_are_parsed_as_by_etherparse((built, _) in packets(), l3 in prop_oneof![Just(0_u32), Just(14)]) {
        let bytes = built.bytes();
        let packet = parse(&Bytes::new(l3, &bytes), l3, built.v6()).expect("a packet of a Service");
        let (src, dst, proto, l4) = read(&bytes);
        let later = built.part == Fragment::Later;
        let (src_port, dst_port) = if later { (0, 0) } else { (built.tuple.src_port, built.tuple.dst_port) };
        prop_assert_eq!(packet.tuple, Tuple { src, dst, src_port, dst_port });
        prop_assert_eq!((packet.proto, packet.l3, (packet.l4 - l3) as usize), (proto, l3, l4));
        prop_assert_eq!(packet.len as usize, bytes.len());
        prop_assert_eq!((packet.ttl, packet.v6, packet.fragment), (built.ttl, built.v6(), built.part));
        if built.part != Fragment::Whole {
            let id = if built.v6() { built.id.to_be() } else { u32::from((built.id as u16).to_be()) };
            prop_assert_eq!(packet.id, id);
        }
        if later {
            prop_assert_eq!((packet.seen, packet.begins), (Seen::ANY, false));
            return Ok(());
        }
        let (l4, len) = built.l4();
        if built.proto != Proto::Sctp {
            prop_assert_eq!(packet.headers as usize, l4 + len);
        }
        let (seen, begins) = match built.proto {
            Proto::Tcp => (
                (built.kind & 1) * Seen::FIN + ((built.kind >> 2) & 1) * Seen::RST,
                built.kind & 2 != 0 && built.kind & 16 == 0,
            ),
            Proto::Udp => (0, false),
            // INIT; ABORT, SHUTDOWN, SHUTDOWN ACK, SHUTDOWN COMPLETE (RFC 9260, 3.2).
            Proto::Sctp => (match built.kind { 6 | 14 => Seen::RST, 7 | 8 => Seen::FIN, _ => 0 }, built.kind == 1),
        };
        prop_assert_eq!((packet.seen, packet.begins), (seen | Seen::ANY, begins));
        let number = || u32::from_be_bytes(bytes[l4 + 4..l4 + 8].try_into().expect("four octets"));
        let serial = match built.proto {
            Proto::Tcp if built.kind & 4 != 0 => number(),
            Proto::Tcp => {
                let taken = bytes.len() - l4 - len + usize::from(built.kind & 1) + usize::from(built.kind >> 1 & 1);
                number().wrapping_add(u32::try_from(taken).expect("small"))
            }
            Proto::Sctp => number(),
            Proto::Udp => 0,
        };
        prop_assert_eq!(packet.serial, serial);
    }

    #[test]
    fn random_octets_never_panic(
        mut bytes in vec(any::<u8>(), 0..200),
        l3 in 0_u32..20,
        shape in any::<(bool, bool, u8, u8)>(),
        to in any::<[u8; 32]>(),
    ) {
        // Mostly a plausible IP header.
        let (v6, likely, proto, length) = shape;
        if likely && bytes.len() > l3 as usize + 10 {
            let at = l3 as usize;
            bytes[at] = if v6 { 0x60 } else { 0x45 | length & 0xf };
            bytes[at + if v6 { 6 } else { 9 }] = [6, 17, 132, 1, 58, 0, 43, 44, 51, 60][usize::from(proto) % 10];
        }
        everything(bytes, l3, v6, to);
    }

    #[test]
    fn truncated_packets_never_panic(
        (built, to) in packets(),
        cut in any::<prop::sample::Index>(),
        flip in any::<(prop::sample::Index, u8)>(),
    ) {
        let mut bytes = built.bytes();
        let at = flip.0.index(bytes.len());
        bytes[at] ^= flip.1;
        bytes.truncate(cut.index(bytes.len()));
        let mut octets = [0; 32];
        octets[..16].copy_from_slice(&to.src.octets);
        octets[16..].copy_from_slice(&to.dst.octets);
        everything(bytes, 0, built.v6(), octets);
    }

    #[test]
    fn packets_of_other_protocols_are_not_parsed(
        (v6, (src, dst)) in any::<bool>().prop_flat_map(|v6| (Just(v6), addrs(v6))),
        proto in any::<u8>(),
        payload in vec(any::<u8>(), 40..60),
    ) {
        let icmp = if v6 { 58 } else { 1 };
        let extensions = [0, 43, 44, 51, 60];
        let known = [6, 17, 132, icmp].contains(&proto) || (v6 && extensions.contains(&proto));
        prop_assume!(!known && proto != 51);
        let tuple = Tuple { src, dst, src_port: 0, dst_port: 0 };
        let mut bytes = Vec::new();
        let ip = headers(&tuple, 64, Fragment::Whole, 0, 0);
        PacketBuilder::ip(ip).write(&mut bytes, IpNumber(proto), &payload).expect("a packet");
        prop_assert_eq!(parse(&Bytes::new(0, &bytes), 0, v6), None);
    }
}

/// Calls every function on a packet.
fn everything(bytes: Vec<u8>, l3: u32, v6: bool, to: [u8; 32]) {
    let mut skb = Bytes { bytes, l3: l3 as usize, summed: super::bytes::IpSummed::None };
    let Some(packet) = parse(&skb, l3, v6) else {
        return;
    };
    let half = |at: usize| Addr { octets: to[at..at + 16].try_into().expect("16") };
    let to = Tuple { src: half(0), dst: half(16), src_port: 1, dst_port: 0xffff };
    let mut buffer: Reply = [0; ICMP_V6];
    let _silent = is_silent(&packet);
    let reply = if v6 { reset_v6 } else { reset_v4 };
    let _reset = reply(&skb, &packet, &mut buffer);
    let reply = if v6 { icmp_v6 } else { icmp_v4 };
    let _error = reply(&skb, &packet, IcmpError::TooBig(1280), &mut buffer);
    if let Some(error) = parse_icmp_error(&skb, &packet) {
        let _written = rewrite_icmp_error(&mut skb, &packet, &error, &to, &to, 1);
    }
    let _written = rewrite(&mut skb, &packet, &to, 1);
}

fn parsed(bytes: &[u8]) -> Option<Packet> {
    parse(&Bytes::new(0, bytes), 0, true)
}

/// A UDP datagram over IPv6 with a routing header of type 4.
fn routed(segments_left: u8) -> Vec<u8> {
    let addr = |last: u8| Addr { octets: core::array::from_fn(|n| if n == 15 { last } else { 0xfd }) };
    let tuple = Tuple { src: addr(1), dst: addr(2), src_port: 1, dst_port: 2 };
    let IpHeaders::Ipv6(ip, mut extensions) = headers(&tuple, 64, Fragment::Whole, 0, 1 << 2) else {
        panic!("IPv6");
    };
    let routing = extensions.routing.as_mut().expect("asked for");
    routing.routing.set_payload(&[4, segments_left, 0, 0, 0, 0]).expect("by eight");
    let mut bytes = Vec::new();
    PacketBuilder::ip(IpHeaders::Ipv6(ip, extensions)).udp(1, 2).write(&mut bytes, b"x").expect("a packet");
    bytes
}

#[test]
fn a_packet_with_segments_left_is_not_parsed() {
    assert!(parsed(&routed(0)).is_some());
    assert_eq!(parsed(&routed(1)), None);
}

#[test]
fn a_packet_with_a_mapped_address_is_not_parsed() {
    let mut bytes = routed(0);
    bytes[8..24].copy_from_slice(&Addr::from(core::net::Ipv4Addr::LOCALHOST).octets);
    assert_eq!(parsed(&bytes), None);
}
