//! A packet in a vector, with what the kernel keeps about its checksum beside it.

use std::{vec, vec::Vec};

use crate::packet::{Broken, Patch, Skb};

/// What is known of a packet's checksum (include/linux/skbuff.h, "Checksumming of received packets by device").
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Summed {
    /// Nothing: it stands in the packet.
    No,
    /// A device has added all of the packet up, from the IP header on.
    Complete(u16),
    /// A device will: so far the field has the sum of the pseudo header.
    Later,
}

/// A packet and its sum.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Bytes {
    pub bytes: Vec<u8>,
    pub l3: usize,
    pub summed: Summed,
}

impl Bytes {
    /// A packet behind a link header of `l3` octets.
    pub fn new(l3: u32, packet: &[u8]) -> Self {
        let l3 = l3 as usize;
        let mut bytes = vec![0xee; l3];
        bytes.extend_from_slice(packet);
        Self { bytes, l3, summed: Summed::No }
    }

    /// From the IP header on.
    pub fn packet(&self) -> &[u8] {
        &self.bytes[self.l3..]
    }

    /// As it comes from a device that adds up.
    pub fn complete(mut self) -> Self {
        self.summed = Summed::Complete(sum(self.packet()));
        self
    }

    /// Whether what the device said is still true.
    pub fn sum_holds(&self) -> bool {
        match self.summed {
            Summed::Complete(said) => plus(said, !sum(self.packet())) == 0xffff,
            _ => true,
        }
    }

    /// Lets what the device said follow a change, if it must.
    fn follow(&mut self, before: u16, in_sum: bool) {
        if let Summed::Complete(said) = self.summed
            && in_sum
        {
            self.summed = Summed::Complete(plus(plus(said, !before), sum(self.packet())));
        }
    }

    fn range(&self, at: u32, len: usize) -> Option<core::ops::Range<usize>> {
        let range = at as usize..at as usize + len;
        if range.end <= self.bytes.len() { Some(range) } else { None }
    }
}

/// The sum of words in ones' complement, as they lie in memory.
pub fn sum(bytes: &[u8]) -> u16 {
    let word = |pair: &[u8]| u16::from_ne_bytes([pair[0], *pair.get(1).unwrap_or(&0)]);
    bytes.chunks(2).fold(0, |total, pair| plus(total, word(pair)))
}

/// Adds two sums; the carry goes round.
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

    fn put_words<const N: usize>(&mut self, at: u32, words: &[u32; N], in_sum: bool) -> Result<(), Broken> {
        let range = self.range(at, 4 * N).ok_or(Broken)?;
        let before = sum(self.packet());
        self.bytes[range].copy_from_slice(&words.map(u32::to_ne_bytes).concat());
        self.follow(before, in_sum);
        Ok(())
    }

    fn load_into<const N: usize>(&self, at: u32, to: &mut [u8; N]) -> Option<()> {
        to.copy_from_slice(&self.bytes[self.range(at, N)?]);
        Some(())
    }

    fn store<const N: usize>(&mut self, at: u32, bytes: &[u8; N], in_sum: bool) -> Result<(), Broken> {
        let range = self.range(at, N).ok_or(Broken)?;
        let before = sum(self.packet());
        self.bytes[range].copy_from_slice(bytes);
        self.follow(before, in_sum);
        Ok(())
    }

    // bpf_l4_csum_replace, net/core/filter.c, and inet_proto_csum_replace_by_diff, net/core/utils.c
    fn patch_sum(&mut self, at: u32, diff: u32, what: Patch) -> Result<(), Broken> {
        let field = u16::from_ne_bytes(self.load(at).ok_or(Broken)?);
        if what.may_be_none && field == 0 {
            return Ok(());
        }
        let mut new = field;
        if self.summed == Summed::Later {
            if what.pseudo_header {
                new = plus(field, folded(diff));
            }
        } else {
            new = !plus(!field, folded(diff));
            if let Summed::Complete(said) = self.summed
                && what.pseudo_header
            {
                self.summed = Summed::Complete(plus(said, !folded(diff)));
            }
        }
        if what.may_be_none && new == 0 {
            new = 0xffff;
        }
        self.store(at, &new.to_ne_bytes(), false)
    }
}
