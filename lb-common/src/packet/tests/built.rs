//! Generators of packets, built by etherparse.

use core::net::IpAddr;
use std::{vec, vec::Vec};

use etherparse::{
    IpAuthHeader, IpFragOffset, IpHeaders, IpNumber, Ipv4Extensions, Ipv4Header, Ipv6Extensions, Ipv6FragmentHeader,
    Ipv6Header, Ipv6RawExtHeader, Ipv6RoutingExtensions, PacketBuilder, TcpHeader,
};
use proptest::{collection::vec, prelude::*};

use super::bytes::{plus, sum};
use crate::{
    Addr, Proto, Tuple,
    packet::{Fragment, crc32c::tests::crc32c},
};

/// The contents of a packet.
#[derive(Clone, Debug)]
pub struct Built {
    pub tuple: Tuple,
    pub proto: Proto,
    pub ttl: u8,
    pub part: Fragment,
    pub id: u32,
    /// Words of IPv4 options; or IPv6 extension headers, by bit.
    pub extras: u8,
    /// Flags of TCP; type of the first chunk of SCTP.
    pub kind: u8,
    /// Words of TCP options.
    pub options: u8,
    /// True for a UDP datagram with a checksum.
    pub sum: bool,
    pub payload: Vec<u8>,
}

impl Built {
    pub fn v6(&self) -> bool {
        !self.tuple.src.is_v4()
    }

    /// The same packet with other addresses and ports.
    pub fn to(&self, tuple: Tuple) -> Self {
        Self { tuple, ..self.clone() }
    }

    /// The octets from the IP header on.
    pub fn bytes(&self) -> Vec<u8> {
        let ip = headers(&self.tuple, self.ttl, self.part, self.id, self.extras);
        let (src, dst) = (self.tuple.src_port, self.tuple.dst_port);
        let mut bytes = Vec::new();
        if self.part == Fragment::Later {
            PacketBuilder::ip(ip).write(&mut bytes, IpNumber(self.proto as u8), &self.payload).expect("a packet");
            return bytes;
        }
        match self.proto {
            Proto::Tcp => {
                PacketBuilder::ip(ip).tcp_header(self.tcp()).write(&mut bytes, &self.payload).expect("a packet");
            }
            Proto::Udp => {
                PacketBuilder::ip(ip).udp(src, dst).write(&mut bytes, &self.payload).expect("a packet");
                if !self.sum {
                    let at = bytes.len() - self.payload.len() - 2;
                    bytes[at..at + 2].fill(0);
                }
            }
            Proto::Sctp => {
                PacketBuilder::ip(ip).write(&mut bytes, IpNumber(132), &self.sctp()).expect("a packet");
            }
        }
        bytes
    }

    /// Offset and length of the transport header.
    pub fn l4(&self) -> (usize, usize) {
        let len = match (self.part, self.proto) {
            (Fragment::Later, _) => 0,
            (_, Proto::Tcp) => 20 + 4 * usize::from(self.options),
            (_, Proto::Udp) => 8,
            (_, Proto::Sctp) => 12,
        };
        let payload = self.payload.len() + if self.proto == Proto::Sctp && len != 0 { 4 } else { 0 };
        (self.bytes().len() - payload - len, len)
    }

    /// The same packet with a payload that makes the checksum 0.
    pub fn with_sum_zero(mut self) -> Self {
        assert!(self.payload.len() >= 2 && self.proto != Proto::Sctp, "room for it");
        self.payload[..2].fill(0);
        let (at, _) = self.l4();
        let at = at + if self.proto == Proto::Tcp { 16 } else { 6 };
        let (low, high) = (self.bytes()[at], self.bytes()[at + 1]);
        self.payload[..2].copy_from_slice(&[low, high]);
        self
    }

    fn tcp(&self) -> TcpHeader {
        let mut tcp = TcpHeader::new(self.tuple.src_port, self.tuple.dst_port, 0x0102_0304, 4096);
        tcp.acknowledgment_number = 0xfffe_fdfc;
        let bit = |n: u8| self.kind & (1 << n) != 0;
        (tcp.fin, tcp.syn, tcp.rst, tcp.psh, tcp.ack) = (bit(0), bit(1), bit(2), bit(3), bit(4));
        tcp.set_options_raw(&vec![1; 4 * usize::from(self.options)]).expect("40 octets at most");
        tcp
    }

    fn sctp(&self) -> Vec<u8> {
        let (src, dst) = (self.tuple.src_port.to_be_bytes(), self.tuple.dst_port.to_be_bytes());
        let mut bytes = vec![src[0], src[1], dst[0], dst[1], 1, 2, 3, 4, 0, 0, 0, 0, self.kind, 0, 0, 4];
        bytes.extend_from_slice(&self.payload);
        let sum = crc32c(&bytes).to_le_bytes();
        bytes[8..12].copy_from_slice(&sum);
        bytes
    }
}

/// The sum of the pseudo header.
pub fn pseudo_header(packet: &[u8], proto: u8, l4: usize) -> u16 {
    let len = u16::try_from(packet.len() - l4).expect("short").to_be_bytes();
    let addrs = if packet[0] >> 4 == 6 { &packet[8..40] } else { &packet[12..20] };
    plus(sum(addrs), sum(&[0, proto, len[0], len[1]]))
}

/// IP headers; etherparse fills in lengths and checksums.
pub fn headers(tuple: &Tuple, ttl: u8, part: Fragment, id: u32, extras: u8) -> IpHeaders {
    let offset = IpFragOffset::try_new(if part == Fragment::Later { 185 } else { 0 }).expect("small");
    match (tuple.src.to_ip(), tuple.dst.to_ip()) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let mut ip = Ipv4Header::new(0, ttl, IpNumber(0), src.octets(), dst.octets()).expect("short");
            ip.identification = (id & 0xffff) as u16;
            ip.dont_fragment = part == Fragment::Whole;
            ip.more_fragments = part == Fragment::First;
            ip.fragment_offset = offset;
            ip.options = vec![1; 4 * usize::from(extras % 11)].as_slice().try_into().expect("40 octets at most");
            IpHeaders::Ipv4(ip, Ipv4Extensions::default())
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let ip =
                Ipv6Header { hop_limit: ttl, source: src.octets(), destination: dst.octets(), ..Default::default() };
            let bit = |n: u8| extras & (1 << n) != 0;
            let raw = |len: usize| Ipv6RawExtHeader::new_raw(IpNumber(0), &vec![0; len]).expect("by eight");
            // A later fragment has no headers after the fragment header.
            let whole = part != Fragment::Later;
            let routing = bit(2).then(|| Ipv6RoutingExtensions {
                routing: raw(22),
                final_destination_options: (bit(3) && whole).then(|| raw(14)),
            });
            let fragment = Ipv6FragmentHeader::new(IpNumber(0), offset, part == Fragment::First, id);
            let extensions = Ipv6Extensions {
                hop_by_hop_options: bit(0).then(|| raw(6)),
                destination_options: bit(1).then(|| raw(30)),
                routing,
                // A whole datagram may have the header too (RFC 6946).
                fragment: (part != Fragment::Whole || bit(5)).then_some(fragment),
                auth: (bit(4) && whole).then(|| IpAuthHeader::new(IpNumber(0), 7, 8, &[9; 12]).expect("by four")),
            };
            IpHeaders::Ipv6(ip, extensions)
        }
        mixed => panic!("two families: {mixed:?}"),
    }
}

/// Two addresses of one family.
pub fn addrs(v6: bool) -> impl Strategy<Value = (Addr, Addr)> {
    let addr = move |octets: [u8; 16]| match v6 {
        true => Addr { octets: core::array::from_fn(|n| if n == 0 { 0xfd } else { octets[n] }) },
        false => Addr::from(core::net::Ipv4Addr::new(octets[0] | 1, octets[1], octets[2], octets[3])),
    };
    any::<([u8; 16], [u8; 16])>().prop_map(move |(src, dst)| (addr(src), addr(dst)))
}

/// Addresses and ports of one family.
pub fn tuples(v6: bool) -> impl Strategy<Value = Tuple> {
    (addrs(v6), 1_u16.., 1_u16..).prop_map(|((src, dst), src_port, dst_port)| Tuple { src, dst, src_port, dst_port })
}

/// Packets, with a tuple to translate to.
pub fn packets() -> impl Strategy<Value = (Built, Tuple)> {
    any::<bool>().prop_flat_map(|v6| {
        let proto = prop_oneof![Just(Proto::Tcp), Just(Proto::Udp), Just(Proto::Sctp)];
        let part = prop_oneof![4 => Just(Fragment::Whole), 1 => Just(Fragment::First), 1 => Just(Fragment::Later)];
        let kind = any::<u8>().prop_map(|kind| kind & 0x1f);
        let more = (any::<u8>(), kind, 0_u8..11, any::<bool>(), vec(any::<u8>(), 2..300));
        // Often only a part changes, as in flows.
        (tuples(v6), tuples(v6), any::<[bool; 3]>(), proto, 2_u8.., part, any::<u32>(), more).prop_map(
            |(
                tuple,
                mut to,
                [src, src_port, dst_port],
                proto,
                ttl,
                part,
                id,
                (extras, kind, options, sum, payload),
            )| {
                to.src = if src { to.src } else { tuple.src };
                to.src_port = if src_port { to.src_port } else { tuple.src_port };
                to.dst_port = if dst_port { to.dst_port } else { tuple.dst_port };
                (Built { tuple, proto, ttl, part, id, extras, kind, options, sum, payload }, to)
            },
        )
    })
}
