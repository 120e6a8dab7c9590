//! The checksum of SCTP (CRC32c, RFC 9260, appendix A) after its first four octets have changed, without reading the rest.
//!
//! A CRC is linear: that of the changed packet is that of the old one, combined with that of the difference, which is the
//! ports followed by zeros. A zero octet multiplies by x^8, so that n of them multiply by x^(8n) modulo the polynomial.

/// The polynomial, its bits reversed.
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// x^0: bit 31.
const ONE: u32 = 1 << 31;

/// What `n` zero octets multiply by, and what 256 times as many do, for each octet of a length.
static ZEROS: [[u32; 256]; 2] = {
    // x^8 and x^2048.
    let mut tables = [[ONE; 256]; 2];
    let mut step = ONE >> 8;
    let mut table = 0;
    while table < 2 {
        let mut n = 1;
        while n < 256 {
            tables[table][n] = multiply(tables[table][n - 1], step);
            n += 1;
        }
        step = multiply(tables[table][255], step);
        table += 1;
    }
    tables
};

/// The product of two polynomials. Without branches, which the verifier would have to walk one by one.
#[inline(always)]
const fn multiply(a: u32, b: u32) -> u32 {
    let (mut a, mut product, mut bit) = (a, 0, 0);
    while bit < 32 {
        product ^= a & 0u32.wrapping_sub((b >> (31 - bit)) & 1);
        a = (a >> 1) ^ (POLYNOMIAL & 0u32.wrapping_sub(a & 1));
        bit += 1;
    }
    product
}

/// The checksum `sum` of `len` octets (below 2^16), as it lies in memory, after the first four changed from `old` to `new`.
#[inline(always)]
#[must_use]
pub(super) fn patched(sum: [u8; 4], old: [u8; 4], new: [u8; 4], len: u32) -> [u8; 4] {
    // Four octets are a polynomial of 32 bits already; to read them in is to multiply by x^32.
    let diff = u32::from_le_bytes(old) ^ u32::from_le_bytes(new);
    let [low, high, ..] = len.to_le_bytes();
    let diff = multiply(multiply(diff, ZEROS[0][low as usize]), ZEROS[1][high as usize]);
    (u32::from_le_bytes(sum) ^ diff).to_le_bytes()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Bit by bit, as the RFC has it.
    pub(in crate::packet) fn crc32c(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!0u32, |crc, &byte| {
            (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ if crc & 1 == 0 { 0 } else { POLYNOMIAL })
        })
    }

    #[test]
    fn the_known_answer() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    proptest! {
        #[test]
        fn equals_a_full_recomputation(
            mut bytes in proptest::collection::vec(any::<u8>(), 12..3000),
            new in any::<[u8; 4]>(),
        ) {
            bytes[8..12].fill(0);
            let old: [u8; 4] = bytes[..4].try_into().expect("four");
            let sum = crc32c(&bytes).to_le_bytes();
            bytes[..4].copy_from_slice(&new);
            let len = u32::try_from(bytes.len()).expect("short");
            prop_assert_eq!(patched(sum, old, new, len), crc32c(&bytes).to_le_bytes());
        }
    }
}
