//! Tests of the translation of ICMP errors.

use std::vec::Vec;

use etherparse::PacketBuilder;
use proptest::prelude::*;

use super::{
    built::{Built, headers, packets, tuples},
    bytes::Bytes,
    parse, parse_icmp_error,
};
use crate::{
    Proto, Tuple,
    packet::{Fragment, rewrite_icmp_error},
};

/// An ICMP error with this quote.
fn error(outer: &Tuple, kind: (u8, u8), quote: &[u8]) -> Vec<u8> {
    let ip = headers(outer, 60, Fragment::Whole, 0, 0);
    let mut bytes = Vec::new();
    let rest = [0, 0, 5, 0xdc];
    if outer.src.is_v4() {
        PacketBuilder::ip(ip).icmpv4_raw(kind.0, kind.1, rest).write(&mut bytes, quote).expect("a packet");
    } else {
        PacketBuilder::ip(ip).icmpv6_raw(kind.0, kind.1, rest).write(&mut bytes, quote).expect("a packet");
    }
    bytes
}

/// Types and codes of ICMP errors.
fn kinds(v6: bool) -> &'static [(u8, u8)] {
    if v6 { &[(1, 4), (2, 0), (3, 0), (4, 1)] } else { &[(3, 3), (3, 4), (4, 0), (11, 0), (12, 0)] }
}

/// The quote of a packet, with `keep` octets of its transport. A checksum that cannot be updated is that of `before`.
fn quoted(built: &Built, before: &Built, keep: usize) -> Vec<u8> {
    let (l4, _) = built.l4();
    let (mut bytes, before) = (built.bytes(), before.bytes());
    bytes.truncate(l4 + keep);
    let (at, len) = match built.proto {
        Proto::Tcp => (16, 2),
        Proto::Udp => (6, 2),
        Proto::Sctp => (8, 4),
    };
    let cut = keep < at + len;
    if cut || built.proto == Proto::Sctp {
        let [start, end] = [l4 + at, l4 + at + len].map(|at| at.min(bytes.len()));
        bytes[start..end].copy_from_slice(&before[start..end]);
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn i11_a_translated_error_equals_an_error_built_anew(
        ((built, inner), outer, new_outer) in packets().prop_flat_map(|drawn| {
            let v6 = drawn.0.v6();
            (Just(drawn), tuples(v6), tuples(v6))
        }),
        kind in any::<prop::sample::Index>(),
        keep in prop_oneof![Just(8_usize), 8_usize..40, Just(1000)],
    ) {
        prop_assume!(built.part != Fragment::Later);
        let v6 = built.v6();
        let kind = *kind.get(kinds(v6));
        let keep = keep.min(built.bytes().len() - built.l4().0);
        let mut skb = Bytes::new(0, &error(&outer, kind, &quoted(&built, &built, keep))).complete();
        let packet = parse(&skb, 0, v6).expect("ICMP");
        let quoted_packet = parse_icmp_error(&skb, &packet).expect("an error");
        prop_assert_eq!((quoted_packet.tuple, quoted_packet.proto), (built.tuple, built.proto as u8));
        rewrite_icmp_error(&mut skb, &packet, &quoted_packet, &inner, &new_outer, 0).expect("written");
        let want = error(&new_outer, kind, &quoted(&built.to(inner), &built, keep));
        prop_assert_eq!(skb.packet(), &want[..]);
        prop_assert!(skb.sum_holds());
    }

    #[test]
    fn only_icmp_errors_quote_a_packet(
        ((built, _), outer) in packets().prop_flat_map(|drawn| {
            let v6 = drawn.0.v6();
            (Just(drawn), tuples(v6))
        }),
        kind in any::<u8>(),
    ) {
        let v6 = built.v6();
        let is_error = kinds(v6).iter().any(|&(known, _)| known == kind);
        let skb = Bytes::new(0, &error(&outer, (kind, 0), &built.bytes()));
        let packet = parse(&skb, 0, v6).expect("ICMP");
        let quoted_packet = parse_icmp_error(&skb, &packet);
        // A later fragment has no ports to find its flow by.
        prop_assert_eq!(quoted_packet.is_some(), is_error && built.part != Fragment::Later);
    }

    #[test]
    fn a_later_fragment_of_an_icmp_packet_is_no_error(
        ((built, _), outer) in packets().prop_flat_map(|drawn| {
            let v6 = drawn.0.v6();
            (Just(drawn), tuples(v6))
        }),
    ) {
        let v6 = built.v6();
        // Data that look like an error.
        let whole = error(&outer, kinds(v6)[0], &built.bytes());
        let data = &whole[if v6 { 40 } else { 20 }..];
        let ip = headers(&outer, 60, Fragment::Later, 7, 0);
        let mut bytes = Vec::new();
        let icmp = etherparse::IpNumber(if v6 { 58 } else { 1 });
        PacketBuilder::ip(ip).write(&mut bytes, icmp, data).expect("a packet");
        let skb = Bytes::new(0, &bytes);
        let packet = parse(&skb, 0, v6).expect("ICMP");
        prop_assert_eq!(parse_icmp_error(&skb, &packet), None);
    }
}
