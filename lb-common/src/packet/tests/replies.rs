//! Tests of TCP resets and ICMP errors.

use etherparse::{Icmpv4Type, Icmpv6Type, NetSlice, SlicedPacket, TransportSlice};
use proptest::prelude::*;

use super::{
    built::{Built, packets},
    bytes::Bytes,
    parse,
};
use crate::{
    Addr, Proto,
    flow::Seen,
    packet::{
        Fragment, ICMP_V4, ICMP_V6, IcmpError, Packet, RESET_V4, RESET_V6, Reply, icmp_v4, icmp_v6, is_silent,
        reset_v4, reset_v6,
    },
};

fn read(skb: &Bytes, built: &Built) -> Packet {
    parse(skb, skb.l3 as u32, built.v6()).expect("a packet of a Service")
}

/// Checks the IP header of a reply by etherparse; returns its transport.
fn transport<'a>(reply: &'a [u8], built: &Built) -> TransportSlice<'a> {
    let sliced = SlicedPacket::from_ip(reply).expect("a good packet");
    let (src, dst): (Addr, Addr) = match sliced.net {
        Some(NetSlice::Ipv4(ip)) => {
            let header = ip.header().to_header();
            assert_eq!(header.header_checksum, header.calc_header_checksum());
            assert_eq!((usize::from(header.total_len), header.time_to_live), (reply.len(), 64));
            (header.source.into_addr(), header.destination.into_addr())
        }
        Some(NetSlice::Ipv6(ip)) => {
            let header = ip.header().to_header();
            assert_eq!((usize::from(header.payload_length) + 40, header.hop_limit), (reply.len(), 64));
            (header.source_addr().into(), header.destination_addr().into())
        }
        other => panic!("{other:?}"),
    };
    assert_eq!((src, dst), (built.tuple.dst, built.tuple.src));
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
    fn a_reset_is_valid_for_its_receiver((built, _) in packets(), l3 in prop_oneof![Just(0_u32), Just(14)]) {
        prop_assume!(built.part != Fragment::Later);
        let built = Built { proto: Proto::Tcp, ..built };
        let skb = Bytes::new(l3, &built.bytes());
        let packet = read(&skb, &built);
        let mut room: Reply = [0xee; ICMP_V6];
        let len = if built.v6() { RESET_V6 } else { RESET_V4 };
        let written = if built.v6() { reset_v6(&skb, &packet, &mut room) } else { reset_v4(&skb, &packet, &mut room) };
        written.expect("written");
        let TransportSlice::Tcp(tcp) = transport(&room[..len], &built) else {
            panic!("TCP");
        };
        let header = tcp.to_header();
        prop_assert_eq!((header.source_port, header.destination_port), (built.tuple.dst_port, built.tuple.src_port));
        let sliced = SlicedPacket::from_ip(&room[..len]).expect("a good packet");
        let sum = match sliced.net {
            Some(NetSlice::Ipv4(ip)) => header.calc_checksum_ipv4(&ip.header().to_header(), &[]),
            Some(NetSlice::Ipv6(ip)) => header.calc_checksum_ipv6(&ip.header().to_header(), &[]),
            other => panic!("{other:?}"),
        };
        prop_assert_eq!(Ok(header.checksum), sum);
        // RFC 9293, 3.10.7.1: the acknowledgment of the segment, or an acknowledgment of the whole segment.
        prop_assert!(header.rst && !header.syn && !header.fin && !header.psh);
        if built.kind & 16 != 0 {
            prop_assert!(!header.ack);
            prop_assert_eq!(header.sequence_number, 0xfffe_fdfc);
        } else {
            let taken = built.payload.len() + usize::from(built.kind & 1) + usize::from(built.kind >> 1 & 1);
            prop_assert!(header.ack);
            prop_assert_eq!(header.sequence_number, 0);
            prop_assert_eq!(header.acknowledgment_number as usize, 0x0102_0304 + taken);
        }
    }

    #[test]
    fn an_icmp_error_quotes_its_packet((built, _) in packets(), kind in 0_usize..5, mtu in 1280_u16..) {
        prop_assume!(built.part != Fragment::Later);
        let built = if built.v6() { built } else { Built { extras: 0, ..built } };
        let skb = Bytes::new(14, &built.bytes());
        let packet = read(&skb, &built);
        let mut room: Reply = [0xee; ICMP_V6];
        use IcmpError::{HostUnreachable, NoRoute, PortUnreachable, TimeExceeded, TooBig};
        let reason = [PortUnreachable, NoRoute, TimeExceeded, TooBig(mtu), HostUnreachable][kind];
        if built.v6() {
            icmp_v6(&skb, &packet, reason, &mut room).expect("written");
            let TransportSlice::Icmpv6(icmp) = transport(&room, &built) else {
                panic!("ICMPv6");
            };
            let (src, dst) = (built.tuple.dst.octets, built.tuple.src.octets);
            prop_assert!(icmp.is_checksum_valid(src, dst));
            prop_assert_eq!(icmp.payload(), &built.bytes()[..48]);
            use etherparse::icmpv6::{DestUnreachableCode, TimeExceededCode};
            let want = match reason {
                IcmpError::PortUnreachable => Icmpv6Type::DestinationUnreachable(DestUnreachableCode::Port),
                IcmpError::NoRoute => Icmpv6Type::DestinationUnreachable(DestUnreachableCode::NoRoute),
                IcmpError::HostUnreachable => Icmpv6Type::DestinationUnreachable(DestUnreachableCode::Address),
                IcmpError::TimeExceeded => Icmpv6Type::TimeExceeded(TimeExceededCode::HopLimitExceeded),
                IcmpError::TooBig(mtu) => Icmpv6Type::PacketTooBig { mtu: mtu.into() },
            };
            prop_assert_eq!(icmp.icmp_type(), want);
        } else {
            icmp_v4(&skb, &packet, reason, &mut room).expect("written");
            let TransportSlice::Icmpv4(icmp) = transport(&room[..ICMP_V4], &built) else {
                panic!("ICMP");
            };
            let header = icmp.header();
            prop_assert_eq!(header.checksum, header.icmp_type.calc_checksum(icmp.payload()));
            prop_assert_eq!(icmp.payload(), &built.bytes()[..28]);
            use etherparse::icmpv4::{DestUnreachableHeader, TimeExceededCode};
            let want = match reason {
                IcmpError::PortUnreachable => Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::Port),
                IcmpError::NoRoute => Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::Network),
                IcmpError::HostUnreachable => Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::Host),
                IcmpError::TimeExceeded => Icmpv4Type::TimeExceeded(TimeExceededCode::TtlExceededInTransit),
                IcmpError::TooBig(next_hop_mtu) => {
                    Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::FragmentationNeeded { next_hop_mtu })
                }
            };
            prop_assert_eq!(header.icmp_type, want);
        }
    }

    #[test]
    fn later_fragments_and_resets_get_no_reply((built, _) in packets()) {
        let skb = Bytes::new(0, &built.bytes());
        let packet = read(&skb, &built);
        let ends = packet.seen & Seen::RST != 0;
        prop_assert_eq!(is_silent(&packet), built.part == Fragment::Later || ends);
    }
}
