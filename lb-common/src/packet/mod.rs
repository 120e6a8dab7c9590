//! Packets as bytes: parsing, translation, resets and ICMP errors. Pure: the bytes are behind [`Skb`], an sk_buff in
//! the programs and a vector in the tests.

mod crc32c;
mod echo;
mod glance;
mod neighbour;
mod parse;
mod reply;
mod rewrite;
mod sum;

use crate::{Tuple, hash};
pub use echo::{answer_echo, is_echo_request};
pub use glance::Glance;
pub use neighbour::{
    ADVERTISEMENT_FRAME, ARP_FRAME, Arp, Gratuitous, NeighbourMessage, PROBE_FRAME, advertised_link, answer_arp,
    answer_solicitation, arp_probe, gratuitous_arp, is_same_link, is_valid, neighbour_probe, neighbour_question,
    parse_arp, parse_neighbour_message, sender_link, unsolicited_advertisement,
};
pub use parse::{Fragment, Packet, icmp_error, parse_network, parse_quoted, parse_transport};
pub use reply::{
    ICMP_V4, ICMP_V6, IcmpError, RESET_V4, RESET_V6, Reply, icmp_v4, icmp_v6, is_silent, reset_v4, reset_v6,
};

pub use rewrite::{rewrite, rewrite_icmp_error};

/// The bytes of a packet. Offsets count from the start of the packet, with its link header.
pub trait Skb {
    /// Reads `N` words of four octets, in memory order; `None` past the end. The fastest read, for the headers of every
    /// packet.
    fn words<const N: usize>(&self, at: u32) -> Option<[u32; N]>;

    /// Reads `N` words from the IP header on, wherever that begins; `None` past the end.
    fn network_words<const N: usize>(&self) -> Option<[u32; N]>;

    /// Reads `N` bytes; `None` past the end.
    #[inline(always)]
    fn load<const N: usize>(&self, at: u32) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        self.load_into(at, &mut bytes)?;
        Some(bytes)
    }

    /// Reads `N` bytes into `to`, since the stack of the programs is short; `None` past the end.
    fn load_into<const N: usize>(&self, at: u32, to: &mut [u8; N]) -> Option<()>;

    /// Writes `N` bytes.
    ///
    /// # Errors
    /// Past the end of the packet.
    fn store<const N: usize>(&mut self, at: u32, bytes: &[u8; N], skb_sum: SkbSum) -> Result<(), WriteError>;

    /// Writes `N` words.
    ///
    /// # Errors
    /// Past the end of the packet.
    fn put_words<const N: usize>(&mut self, at: u32, words: &[u32; N], skb_sum: SkbSum) -> Result<(), WriteError>;

    /// Adds `diff` to the checksum of TCP, UDP or ICMP. If a device will complete the checksum, only a difference of
    /// the pseudo header counts.
    ///
    /// # Errors
    /// Past the end of the packet.
    fn patch_sum(&mut self, at: u32, diff: u32, patch: Patch) -> Result<(), WriteError>;
}

/// The kernel's own sum over a packet (CHECKSUM_COMPLETE), which a write may change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SkbSum {
    /// Follows the write.
    Update,
    /// Stays: the difference to a checksum in the packet compensates the write.
    Keep,
}

/// The kind of difference that is added to a checksum.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Patch {
    /// A difference of addresses, which are in the pseudo header too.
    pub pseudo_header: bool,
    /// 0 means no checksum, and stays 0 (UDP).
    pub may_be_none: bool,
}

/// Failure to write a packet, which must be dropped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WriteError;

/// Hash of a flow: 32 bits, equal for each packet of the flow on all nodes.
#[inline(always)]
#[must_use]
pub fn flow_hash(tuple: &Tuple, proto: u8) -> u32 {
    let ports = u32::from(tuple.src_port) << 16 | u32::from(tuple.dst_port);
    let one = hash::splitmix(hash::fold(&tuple.src), ports);
    hash::splitmix(hash::fold(&tuple.dst) ^ u64::from(one), u32::from(proto))
}

/// IP protocol numbers besides those of [`crate::Proto`].
pub mod number {
    /// ICMP for IPv4.
    pub const ICMP: u8 = 1;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;
}

#[cfg(test)]
mod tests;
