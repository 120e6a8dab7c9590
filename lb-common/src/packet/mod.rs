//! Packets as bytes: what they are, what they become, and what is answered to them. Pure: the bytes are behind [`Skb`], which
//! is a packet of the kernel in the programs, and a vector in the tests.

mod crc32c;
mod parse;
mod reply;
mod rewrite;
mod sum;

use crate::{Tuple, mix};
pub use parse::{Fragment, Packet, icmp_error, parse_network, parse_quoted, parse_transport};
pub use reply::{
    Answer, ICMP_V4, ICMP_V6, RESET_V4, RESET_V6, Trouble, icmp_v4, icmp_v6, is_silent, reset_v4, reset_v6,
};

pub use rewrite::{rewrite, rewrite_icmp_error};

/// The bytes of a packet. Offsets count from the start of the packet as the program sees it, link header included.
pub trait Skb {
    /// Reads `N` words of four octets, as they lie in memory; none where the packet has not so many octets. The way to read
    /// what every packet is asked for.
    fn words<const N: usize>(&self, at: u32) -> Option<[u32; N]>;

    /// Reads `N` bytes; none where the packet has not so many.
    #[inline(always)]
    fn load<const N: usize>(&self, at: u32) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        self.load_into(at, &mut bytes)?;
        Some(bytes)
    }

    /// Reads `N` bytes to a place that is there already: the programs' stack is short.
    fn load_into<const N: usize>(&self, at: u32, to: &mut [u8; N]) -> Option<()>;

    /// Writes `N` bytes. `in_sum` says whether the kernel's own sum over the packet, where it keeps one, must follow: it
    /// need not where a checksum in the packet makes up for the change.
    ///
    /// # Errors
    /// When the packet has not so many.
    fn store<const N: usize>(&mut self, at: u32, bytes: &[u8; N], in_sum: bool) -> Result<(), Broken>;

    /// The same for words.
    ///
    /// # Errors
    /// As for [`Skb::store`].
    fn put_words<const N: usize>(&mut self, at: u32, words: &[u32; N], in_sum: bool) -> Result<(), Broken>;

    /// Adds `diff` to the checksum of TCP, UDP or ICMP. It may be one that a device will complete: then only a difference
    /// of the pseudo header counts.
    ///
    /// # Errors
    /// When the packet is shorter.
    fn patch_sum(&mut self, at: u32, diff: u32, what: Patch) -> Result<(), Broken>;
}

/// What a difference of a checksum is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Patch {
    /// Addresses, which stand in the pseudo header too.
    pub pseudo_header: bool,
    /// 0 means that there is no checksum, and stays so (UDP).
    pub may_be_none: bool,
}

/// A packet could not be written: it is dropped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Broken;

/// 32 bits that are the same for each packet of a flow, wherever they are asked for.
#[inline(always)]
#[must_use]
pub fn spread(tuple: &Tuple, proto: u8) -> u32 {
    let ports = u32::from(tuple.src_port) << 16 | u32::from(tuple.dst_port);
    let one = mix::hash(mix::folded(&tuple.src), ports);
    mix::hash(mix::folded(&tuple.dst) ^ u64::from(one), u32::from(proto))
}

/// IP protocol numbers beside those of [`crate::Proto`].
pub mod number {
    /// ICMP for IPv4.
    pub const ICMP: u8 = 1;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;
}

#[cfg(test)]
mod tests;
