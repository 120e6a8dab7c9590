//! The Internet checksum by differences (RFC 1624): words as they lie in memory, in ones' complement.

use crate::Addr;

/// Adds two sums.
#[inline(always)]
#[must_use]
pub(super) const fn add(a: u32, b: u32) -> u32 {
    let sum = a as u64 + b as u64;
    // The carry goes round; a second one cannot come.
    ((sum & 0xffff_ffff) + (sum >> 32)) as u32
}

/// What is to be added to a sum when one word takes another's place.
#[inline(always)]
#[must_use]
pub(super) const fn of_word(old: u32, new: u32) -> u32 {
    add(!old, new)
}

/// The same for an address.
#[inline(always)]
#[must_use]
pub(super) const fn of_addr(old: &Addr, new: &Addr) -> u32 {
    let (old, new) = (old.words(), new.words());
    // An IPv4 address begins with the same words, which cancel out.
    add(add(of_word(old[0], new[0]), of_word(old[1], new[1])), add(of_word(old[2], new[2]), of_word(old[3], new[3])))
}

/// Folds a sum into 16 bits.
#[inline(always)]
#[must_use]
pub(super) const fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

/// A checksum after a difference, both as they lie in memory.
#[inline(always)]
#[must_use]
pub(super) const fn patched(field: [u8; 2], diff: u32) -> [u8; 2] {
    let old = !u16::from_ne_bytes(field) as u32;
    (!fold(add(old, diff))).to_ne_bytes()
}

/// What is to be added to a sum when 16 bits take others' place, at an even offset.
#[inline(always)]
#[must_use]
pub(super) const fn of_half(old: [u8; 2], new: [u8; 2]) -> u32 {
    of_word(u16::from_ne_bytes(old) as u32, u16::from_ne_bytes(new) as u32)
}
