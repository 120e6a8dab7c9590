//! A packet in a vector, with the checksum state of an sk_buff.

use std::{vec, vec::Vec};

use crate::packet::{Patch, Skb, SkbSum, WriteError};

/// The kernel's `ip_summed` (include/linux/skbuff.h, "Checksumming of received packets by device").
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IpSummed {
    /// CHECKSUM_NONE: only the packet has a checksum.
    None,
    /// CHECKSUM_COMPLETE: the sum that a device computed from the IP header on.
    Complete(u16),
    /// CHECKSUM_PARTIAL: a device will complete the checksum, which is the sum of the pseudo header so far.
    Partial,
}

/// A packet and its checksum state.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Bytes {
    pub bytes: Vec<u8>,
    pub l3: usize,
    pub summed: IpSummed,
}

impl Bytes {
    /// A packet after a link header of `l3` octets.
    pub fn new(l3: u32, packet: &[u8]) -> Self {
        let l3 = l3 as usize;
        let mut bytes = vec![0xee; l3];
        bytes.extend_from_slice(packet);
        Self { bytes, l3, summed: IpSummed::None }
    }

    /// The packet from the IP header on.
    pub fn packet(&self) -> &[u8] {
        &self.bytes[self.l3..]
    }

    /// The packet as received from a device that computes sums.
    pub fn complete(mut self) -> Self {
        self.summed = IpSummed::Complete(sum(self.packet()));
        self
    }

    /// True if the sum of the device is still right.
    pub fn sum_holds(&self) -> bool {
        match self.summed {
            IpSummed::Complete(device) => plus(device, !sum(self.packet())) == 0xffff,
            _ => true,
        }
    }

    /// Updates the sum of the device after a write.
    fn follow(&mut self, before: u16, skb_sum: SkbSum) {
        if let IpSummed::Complete(device) = self.summed
            && skb_sum == SkbSum::Update
        {
            self.summed = IpSummed::Complete(plus(plus(device, !before), sum(self.packet())));
        }
    }

    fn range(&self, at: u32, len: usize) -> Option<core::ops::Range<usize>> {
        let range = at as usize..at as usize + len;
        if range.end <= self.bytes.len() { Some(range) } else { None }
    }
}

/// The sum of 16-bit words in ones' complement, in memory order.
pub fn sum(bytes: &[u8]) -> u16 {
    let word = |pair: &[u8]| u16::from_ne_bytes([pair[0], *pair.get(1).unwrap_or(&0)]);
    bytes.chunks(2).fold(0, |total, pair| plus(total, word(pair)))
}

/// Adds two sums with an end-around carry.
pub fn plus(a: u16, b: u16) -> u16 {
    let (sum, carry) = a.overflowing_add(b);
    sum + u16::from(carry)
}

fn folded(diff: u32) -> u16 {
    let [a, b, c, d] = diff.to_ne_bytes();
    sum(&[a, b, c, d])
}

impl Skb for Bytes {
    fn words<const N: usize>(&self, at: u32) -> Option<[u32; N]> {
        let bytes = &self.bytes[self.range(at, 4 * N)?];
        Some(core::array::from_fn(|n| u32::from_ne_bytes(bytes[4 * n..4 * n + 4].try_into().expect("four"))))
    }

    fn network_words<const N: usize>(&self) -> Option<[u32; N]> {
        self.words(self.l3 as u32)
    }

    fn put_words<const N: usize>(&mut self, at: u32, words: &[u32; N], skb_sum: SkbSum) -> Result<(), WriteError> {
        let range = self.range(at, 4 * N).ok_or(WriteError)?;
        let before = sum(self.packet());
        self.bytes[range].copy_from_slice(&words.map(u32::to_ne_bytes).concat());
        self.follow(before, skb_sum);
        Ok(())
    }

    fn load_into<const N: usize>(&self, at: u32, to: &mut [u8; N]) -> Option<()> {
        to.copy_from_slice(&self.bytes[self.range(at, N)?]);
        Some(())
    }

    fn store<const N: usize>(&mut self, at: u32, bytes: &[u8; N], skb_sum: SkbSum) -> Result<(), WriteError> {
        let range = self.range(at, N).ok_or(WriteError)?;
        let before = sum(self.packet());
        self.bytes[range].copy_from_slice(bytes);
        self.follow(before, skb_sum);
        Ok(())
    }

    // bpf_l4_csum_replace, net/core/filter.c, and inet_proto_csum_replace_by_diff, net/core/utils.c
    fn patch_sum(&mut self, at: u32, diff: u32, patch: Patch) -> Result<(), WriteError> {
        let field = u16::from_ne_bytes(self.load(at).ok_or(WriteError)?);
        if patch.may_be_none && field == 0 {
            return Ok(());
        }
        let mut new = field;
        if self.summed == IpSummed::Partial {
            if patch.pseudo_header {
                new = plus(field, folded(diff));
            }
        } else {
            new = !plus(!field, folded(diff));
            if let IpSummed::Complete(device) = self.summed
                && patch.pseudo_header
            {
                self.summed = IpSummed::Complete(plus(device, !folded(diff)));
            }
        }
        if patch.may_be_none && new == 0 {
            new = 0xffff;
        }
        self.store(at, &new.to_ne_bytes(), SkbSum::Keep)
    }
}
