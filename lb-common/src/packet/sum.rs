//! Incremental updates of the Internet checksum (RFC 1624): words in memory order, in ones' complement.

use crate::Addr;

/// Adds two sums.
#[inline(always)]
#[must_use]
pub(super) const fn add(a: u32, b: u32) -> u32 {
    let sum = a as u64 + b as u64;
    // End-around carry; no second carry is possible.
    ((sum & 0xffff_ffff) + (sum >> 32)) as u32
}

/// Difference of a sum when `new` replaces `old`.
#[inline(always)]
#[must_use]
pub(super) const fn of_word(old: u32, new: u32) -> u32 {
    add(!old, new)
}

/// Difference of a sum when one address replaces another.
#[inline(always)]
#[must_use]
pub(super) const fn of_addr(old: &Addr, new: &Addr) -> u32 {
    let (old, new) = (old.words(), new.words());
    // The first words of two IPv4 addresses are equal, and cancel out.
    add(add(of_word(old[0], new[0]), of_word(old[1], new[1])), add(of_word(old[2], new[2]), of_word(old[3], new[3])))
}

/// Folds a sum into 16 bits.
#[inline(always)]
#[must_use]
pub(super) const fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

/// A checksum after a difference, in memory order.
#[inline(always)]
#[must_use]
pub(super) const fn patched(field: [u8; 2], diff: u32) -> [u8; 2] {
    let old = !u16::from_ne_bytes(field) as u32;
    (!fold(add(old, diff))).to_ne_bytes()
}

/// Difference of a sum when 16 bits at an even offset are replaced.
#[inline(always)]
#[must_use]
pub(super) const fn of_half(old: [u8; 2], new: [u8; 2]) -> u32 {
    of_word(u16::from_ne_bytes(old) as u32, u16::from_ne_bytes(new) as u32)
}
