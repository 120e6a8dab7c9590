//! Hashes of addresses, and an even spread of hashes over a range.

use crate::Addr;

/// Maps 32 random bits to 0..len without a division (Lemire); the bias is below len / 2^32.
#[inline(always)]
#[must_use]
pub const fn scale(random: u32, len: u32) -> u32 {
    ((random as u64 * len as u64) >> 32) as u32
}

/// Folds an address to 64 bits.
#[inline(always)]
#[must_use]
pub const fn fold(addr: &Addr) -> u64 {
    let [a, b, c, d] = addr.words();
    ((a ^ c) as u64) << 32 | (b ^ d) as u64
}

/// Hashes 64 bits and a salt to 32 bits (the finalizer of splitmix64).
#[inline(always)]
#[must_use]
pub const fn splitmix(value: u64, salt: u32) -> u32 {
    let mut z = value ^ ((salt as u64) << 32 | salt as u64);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 32) as u32
}
