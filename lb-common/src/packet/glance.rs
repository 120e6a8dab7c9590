//! The few fields by which most packets show that no flow and no Service has them, read from fixed places.

use super::{Skb, parse::is_first_of_tcp};
use crate::{Addr, Family, Proto, Tuple};

/// The result of a glance at a packet of TCP or UDP.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Glance {
    /// Addresses and ports.
    pub tuple: Tuple,
    /// True if the packet may begin a flow: a SYN without ACK, or a datagram.
    pub may_begin: bool,
}

impl Glance {
    /// Words that are read: the IP header, and that of TCP up to its flags.
    const V4: usize = 5 + 4;
    const V6: usize = 10 + 4;

    /// Glances at a packet. `None` for packets that take more: of other protocols, fragments, with options or extension
    /// headers, and datagrams too short for a header of TCP.
    #[inline(always)]
    #[must_use]
    pub fn at(skb: &impl Skb, family: Family) -> Option<Self> {
        match family {
            Family::V4 => Self::at_v4(skb),
            Family::V6 => Self::at_v6(skb),
        }
    }

    #[inline(always)]
    fn at_v4(skb: &impl Skb) -> Option<Self> {
        let [first, second, third, src, dst, ports, _, _, flags]: [u32; Self::V4] = skb.network_words()?;
        let [version, ..] = first.to_ne_bytes();
        let [_, _, part_high, part_low] = second.to_ne_bytes();
        let [_, proto, ..] = third.to_ne_bytes();
        // More fragments, or an offset.
        let is_fragment = (part_high & 0x3f) | part_low != 0;
        if version != 0x45 || is_fragment {
            return None;
        }
        Self::of(proto, Addr::from_v4_word(src), Addr::from_v4_word(dst), ports, flags)
    }

    #[inline(always)]
    fn at_v6(skb: &impl Skb) -> Option<Self> {
        let [first, second, s0, s1, s2, s3, d0, d1, d2, d3, ports, _, _, flags]: [u32; Self::V6] =
            skb.network_words()?;
        let [_, _, next, _] = second.to_ne_bytes();
        if first.to_ne_bytes()[0] >> 4 != 6 {
            return None;
        }
        Self::of(next, Addr::from_words([s0, s1, s2, s3]), Addr::from_words([d0, d1, d2, d3]), ports, flags)
    }

    #[inline(always)]
    const fn of(proto: u8, src: Addr, dst: Addr, ports: u32, flags: u32) -> Option<Self> {
        const TCP: u8 = Proto::Tcp as u8;
        const UDP: u8 = Proto::Udp as u8;
        let may_begin = match proto {
            TCP => is_first_of_tcp(flags.to_ne_bytes()[1]),
            UDP => true,
            _ => return None,
        };
        let [src_high, src_low, dst_high, dst_low] = ports.to_ne_bytes();
        let (src_port, dst_port) = (u16::from_be_bytes([src_high, src_low]), u16::from_be_bytes([dst_high, dst_low]));
        Some(Self { tuple: Tuple { src, dst, src_port, dst_port }, may_begin })
    }
}
