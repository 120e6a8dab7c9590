//! What a packet becomes equals the packet made anew.

use proptest::prelude::*;

use super::{
    bytes::{Bytes, Summed},
    made::{Made, packets, pseudo_header},
    parse,
};
use crate::{
    Proto, Tuple,
    packet::{Broken, Fragment, Packet, rewrite},
};

fn read(skb: &Bytes, made: &Made) -> Packet {
    parse(skb, 0, made.v6()).expect("a packet of a Service")
}

/// The checksum of the first fragment of an SCTP packet is about octets that are not there.
fn is_beyond_repair(made: &Made, to: &Tuple) -> bool {
    let moved = (made.tuple.src_port, made.tuple.dst_port) != (to.src_port, to.dst_port);
    made.proto == Proto::Sctp && made.part == Fragment::First && moved
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn i11_a_rewritten_packet_equals_one_made_anew((made, to) in packets(), zero in any::<bool>()) {
        let mut made = made;
        if zero && made.part != Fragment::Later && made.proto != Proto::Sctp {
            // The checksum comes out as 0, for which UDP has another form.
            made.payload = made.to(to).with_sum_zero().payload;
        }
        let mut skb = Bytes::new(0, &made.bytes()).complete();
        let packet = read(&skb, &made);
        if is_beyond_repair(&made, &to) {
            prop_assert_eq!(rewrite(&mut skb, &packet, &to, 0), Err(Broken));
            return Ok(());
        }
        rewrite(&mut skb, &packet, &to, 0).expect("written");
        prop_assert_eq!(skb.packet(), &made.to(to).bytes()[..]);
        // What a device says of a datagram without a checksum is asked by nobody.
        if made.sum || made.proto != Proto::Udp {
            prop_assert!(skb.sum_holds(), "what the device said: {:?}", skb.summed);
        }
    }

    #[test]
    fn i11_a_checksum_that_a_device_completes_has_the_new_pseudo_header((made, to) in packets()) {
        prop_assume!(made.part == Fragment::Whole);
        let mut made = made;
        made.sum = true;
        let (l4, _) = made.l4();
        let at = l4 + match made.proto { Proto::Tcp => 16, Proto::Udp => 6, Proto::Sctp => 8 };
        let partial = |made: &Made| {
            let mut bytes = made.bytes();
            let so_far = pseudo_header(&bytes, made.proto as u8, l4).to_ne_bytes();
            match made.proto {
                // It has no pseudo header (net/sctp/output.c).
                Proto::Sctp => bytes[at..at + 4].fill(0),
                _ => bytes[at..at + 2].copy_from_slice(&so_far),
            }
            bytes
        };
        let mut skb = Bytes { summed: Summed::Later, ..Bytes::new(0, &partial(&made)) };
        let packet = read(&skb, &made);
        rewrite(&mut skb, &packet, &to, 0).expect("written");
        prop_assert_eq!(skb.packet(), &partial(&made.to(to))[..]);
    }

    #[test]
    fn i11_one_hop_more_equals_a_packet_made_anew((made, to) in packets()) {
        prop_assume!(!is_beyond_repair(&made, &to));
        let made = Made { sum: true, ..made };
        let mut skb = Bytes::new(0, &made.bytes()).complete();
        let packet = read(&skb, &made);
        rewrite(&mut skb, &packet, &to, 1).expect("written");
        let later = Made { ttl: made.ttl - 1, ..made.to(to) };
        prop_assert_eq!(skb.packet(), &later.bytes()[..]);
        prop_assert!(skb.sum_holds());
    }

    #[test]
    fn there_and_back_changes_nothing((made, to) in packets()) {
        prop_assume!(!is_beyond_repair(&made, &to));
        let mut skb = Bytes::new(0, &made.bytes()).complete();
        let before = skb.bytes.clone();
        let packet = read(&skb, &made);
        rewrite(&mut skb, &packet, &to, 0).expect("written");
        let packet = read(&skb, &made.to(to));
        rewrite(&mut skb, &packet, &made.tuple, 0).expect("written");
        prop_assert_eq!(&skb.bytes, &before);
    }
}
