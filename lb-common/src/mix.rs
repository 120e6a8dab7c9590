//! Bits that spread evenly.

use crate::Addr;

/// Maps 32 random bits to 0..len without a division (Lemire); the bias is below len / 2^32.
#[inline(always)]
#[must_use]
pub const fn scale(random: u32, len: u32) -> u32 {
    ((random as u64 * len as u64) >> 32) as u32
}

/// An address in half as many bits.
#[inline(always)]
#[must_use]
pub const fn folded(addr: &Addr) -> u64 {
    let [a, b, c, d] = addr.words();
    ((a ^ c) as u64) << 32 | (b ^ d) as u64
}

/// 32 bits that depend on all of those given (the last step of splitmix64).
#[inline(always)]
#[must_use]
pub const fn hash(what: u64, salt: u32) -> u32 {
    let mut z = what ^ ((salt as u64) << 32 | salt as u64);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 32) as u32
}
