//! Resets and errors that are answered.

use etherparse::{Icmpv4Type, Icmpv6Type, NetSlice, SlicedPacket, TransportSlice};
use proptest::prelude::*;

use super::{
    bytes::Bytes,
    made::{Made, packets},
    parse,
};
use crate::{
    Addr, Proto,
    flow::Seen,
    packet::{
        Answer, Fragment, ICMP_V4, ICMP_V6, Packet, RESET_V4, RESET_V6, Trouble, icmp_v4, icmp_v6, is_silent, reset_v4,
        reset_v6,
    },
};

fn read(skb: &Bytes, made: &Made) -> Packet {
    parse(skb, skb.l3 as u32, made.v6()).expect("a packet of a Service")
}

/// Checks the IP header of an answer by etherparse; what it carries.
fn carried<'a>(answer: &'a [u8], made: &Made) -> TransportSlice<'a> {
    let sliced = SlicedPacket::from_ip(answer).expect("a good packet");
    let (src, dst): (Addr, Addr) = match sliced.net {
        Some(NetSlice::Ipv4(ip)) => {
            let header = ip.header().to_header();
            assert_eq!(header.header_checksum, header.calc_header_checksum());
            assert_eq!((usize::from(header.total_len), header.time_to_live), (answer.len(), 64));
            (header.source.into_addr(), header.destination.into_addr())
        }
        Some(NetSlice::Ipv6(ip)) => {
            let header = ip.header().to_header();
            assert_eq!((usize::from(header.payload_length) + 40, header.hop_limit), (answer.len(), 64));
            (header.source_addr().into(), header.destination_addr().into())
        }
        other => panic!("{other:?}"),
    };
    assert_eq!((src, dst), (made.tuple.dst, made.tuple.src));
    sliced.transport.expect("a transport")
}

trait IntoAddr {
    fn into_addr(self) -> Addr;
}

impl IntoAddr for [u8; 4] {
    fn into_addr(self) -> Addr {
        core::net::Ipv4Addr::from(self).into()
    }
}

proptest! {
    #[test]
    fn a_reset_is_what_the_sender_waits_for((made, _) in packets(), l3 in prop_oneof![Just(0_u32), Just(14)]) {
        prop_assume!(made.part != Fragment::Later);
        let made = Made { proto: Proto::Tcp, ..made };
        let skb = Bytes::new(l3, &made.bytes());
        let packet = read(&skb, &made);
        let mut room: Answer = [0xee; ICMP_V6];
        let len = if made.v6() { RESET_V6 } else { RESET_V4 };
        let written = if made.v6() { reset_v6(&skb, &packet, &mut room) } else { reset_v4(&skb, &packet, &mut room) };
        written.expect("written");
        let TransportSlice::Tcp(tcp) = carried(&room[..len], &made) else {
            panic!("TCP");
        };
        let header = tcp.to_header();
        prop_assert_eq!((header.source_port, header.destination_port), (made.tuple.dst_port, made.tuple.src_port));
        let sliced = SlicedPacket::from_ip(&room[..len]).expect("a good packet");
        let sum = match sliced.net {
            Some(NetSlice::Ipv4(ip)) => header.calc_checksum_ipv4(&ip.header().to_header(), &[]),
            Some(NetSlice::Ipv6(ip)) => header.calc_checksum_ipv6(&ip.header().to_header(), &[]),
            other => panic!("{other:?}"),
        };
        prop_assert_eq!(Ok(header.checksum), sum);
        // RFC 9293, 3.10.7.1: the segment's own acknowledgment, or one of all that it has.
        prop_assert!(header.rst && !header.syn && !header.fin && !header.psh);
        if made.kind & 16 != 0 {
            prop_assert!(!header.ack);
            prop_assert_eq!(header.sequence_number, 0xfffe_fdfc);
        } else {
            let taken = made.payload.len() + usize::from(made.kind & 1) + usize::from(made.kind >> 1 & 1);
            prop_assert!(header.ack);
            prop_assert_eq!(header.sequence_number, 0);
            prop_assert_eq!(header.acknowledgment_number as usize, 0x0102_0304 + taken);
        }
    }

    #[test]
    fn an_error_quotes_what_it_is_about((made, _) in packets(), trouble in 0_usize..4, mtu in 1280_u16..) {
        prop_assume!(made.part != Fragment::Later);
        let made = if made.v6() { made } else { Made { extras: 0, ..made } };
        let skb = Bytes::new(14, &made.bytes());
        let packet = read(&skb, &made);
        let mut room: Answer = [0xee; ICMP_V6];
        let trouble = [Trouble::PortUnreachable, Trouble::NoRoute, Trouble::TimeExceeded, Trouble::TooBig(mtu)][trouble];
        if made.v6() {
            icmp_v6(&skb, &packet, trouble, &mut room).expect("written");
            let TransportSlice::Icmpv6(icmp) = carried(&room, &made) else {
                panic!("ICMPv6");
            };
            let (src, dst) = (made.tuple.dst.octets, made.tuple.src.octets);
            prop_assert!(icmp.is_checksum_valid(src, dst));
            prop_assert_eq!(icmp.payload(), &made.bytes()[..48]);
            use etherparse::icmpv6::{DestUnreachableCode, TimeExceededCode};
            let want = match trouble {
                Trouble::PortUnreachable => Icmpv6Type::DestinationUnreachable(DestUnreachableCode::Port),
                Trouble::NoRoute => Icmpv6Type::DestinationUnreachable(DestUnreachableCode::NoRoute),
                Trouble::TimeExceeded => Icmpv6Type::TimeExceeded(TimeExceededCode::HopLimitExceeded),
                Trouble::TooBig(mtu) => Icmpv6Type::PacketTooBig { mtu: mtu.into() },
            };
            prop_assert_eq!(icmp.icmp_type(), want);
        } else {
            icmp_v4(&skb, &packet, trouble, &mut room).expect("written");
            let TransportSlice::Icmpv4(icmp) = carried(&room[..ICMP_V4], &made) else {
                panic!("ICMP");
            };
            let header = icmp.header();
            prop_assert_eq!(header.checksum, header.icmp_type.calc_checksum(icmp.payload()));
            prop_assert_eq!(icmp.payload(), &made.bytes()[..28]);
            use etherparse::icmpv4::{DestUnreachableHeader, TimeExceededCode};
            let want = match trouble {
                Trouble::PortUnreachable => Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::Port),
                Trouble::NoRoute => Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::Network),
                Trouble::TimeExceeded => Icmpv4Type::TimeExceeded(TimeExceededCode::TtlExceededInTransit),
                Trouble::TooBig(next_hop_mtu) => {
                    Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::FragmentationNeeded { next_hop_mtu })
                }
            };
            prop_assert_eq!(header.icmp_type, want);
        }
    }

    #[test]
    fn some_packets_are_answered_by_nobody((made, _) in packets()) {
        let skb = Bytes::new(0, &made.bytes());
        let packet = read(&skb, &made);
        let ends = packet.seen & Seen::RST != 0;
        prop_assert_eq!(is_silent(&packet), made.part == Fragment::Later || ends);
    }
}
