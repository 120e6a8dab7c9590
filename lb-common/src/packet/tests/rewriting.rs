//! Tests that a rewritten packet equals a packet built anew.

use proptest::prelude::*;

use super::{
    built::{Built, packets, pseudo_header},
    bytes::{Bytes, IpSummed},
    parse,
};
use crate::{
    Proto, Tuple,
    packet::{Fragment, Packet, WriteError, rewrite},
};

fn read(skb: &Bytes, built: &Built) -> Packet {
    parse(skb, 0, built.v6()).expect("a packet of a Service")
}

/// True for a first fragment of SCTP with other ports, whose CRC covers octets of other fragments.
fn is_unrepairable(built: &Built, to: &Tuple) -> bool {
    let moved = (built.tuple.src_port, built.tuple.dst_port) != (to.src_port, to.dst_port);
    built.proto == Proto::Sctp && built.part == Fragment::First && moved
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn i11_a_rewritten_packet_equals_a_packet_built_anew((built, to) in packets(), zero in any::<bool>()) {
        let mut built = built;
        if zero && built.part != Fragment::Later && built.proto != Proto::Sctp {
            // The checksum becomes 0, which UDP sends as 0xffff.
            built.payload = built.to(to).with_sum_zero().payload;
        }
        let mut skb = Bytes::new(0, &built.bytes()).complete();
        let packet = read(&skb, &built);
        if is_unrepairable(&built, &to) {
            prop_assert_eq!(rewrite(&mut skb, &packet, &to, 0), Err(WriteError));
            return Ok(());
        }
        rewrite(&mut skb, &packet, &to, 0).expect("written");
        prop_assert_eq!(skb.packet(), &built.to(to).bytes()[..]);
        // The kernel ignores the sum of a device for a datagram without a checksum.
        if built.sum || built.proto != Proto::Udp {
            prop_assert!(skb.sum_holds(), "sum of the device: {:?}", skb.summed);
        }
    }

    #[test]
    fn i11_a_partial_checksum_gets_the_new_pseudo_header((built, to) in packets()) {
        prop_assume!(built.part == Fragment::Whole);
        let mut built = built;
        built.sum = true;
        let (l4, _) = built.l4();
        let at = l4 + match built.proto { Proto::Tcp => 16, Proto::Udp => 6, Proto::Sctp => 8 };
        let partial = |built: &Built| {
            let mut bytes = built.bytes();
            let partial_sum = pseudo_header(&bytes, built.proto as u8, l4).to_ne_bytes();
            match built.proto {
                // SCTP has no pseudo header (net/sctp/output.c).
                Proto::Sctp => bytes[at..at + 4].fill(0),
                _ => bytes[at..at + 2].copy_from_slice(&partial_sum),
            }
            bytes
        };
        let mut skb = Bytes { summed: IpSummed::Partial, ..Bytes::new(0, &partial(&built)) };
        let packet = read(&skb, &built);
        rewrite(&mut skb, &packet, &to, 0).expect("written");
        prop_assert_eq!(skb.packet(), &partial(&built.to(to))[..]);
    }

    #[test]
    fn i11_a_packet_of_one_more_hop_equals_a_packet_built_anew((built, to) in packets()) {
        prop_assume!(!is_unrepairable(&built, &to));
        let built = Built { sum: true, ..built };
        let mut skb = Bytes::new(0, &built.bytes()).complete();
        let packet = read(&skb, &built);
        rewrite(&mut skb, &packet, &to, 1).expect("written");
        let later = Built { ttl: built.ttl - 1, ..built.to(to) };
        prop_assert_eq!(skb.packet(), &later.bytes()[..]);
        prop_assert!(skb.sum_holds());
    }

    #[test]
    fn translation_and_reverse_translation_restore_the_packet((built, to) in packets()) {
        prop_assume!(!is_unrepairable(&built, &to));
        let mut skb = Bytes::new(0, &built.bytes()).complete();
        let before = skb.bytes.clone();
        let packet = read(&skb, &built);
        rewrite(&mut skb, &packet, &to, 0).expect("written");
        let packet = read(&skb, &built.to(to));
        rewrite(&mut skb, &packet, &built.tuple, 0).expect("written");
        prop_assert_eq!(&skb.bytes, &before);
    }
}
