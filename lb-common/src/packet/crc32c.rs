//! Incremental update of SCTP's checksum (CRC32c, RFC 9260, appendix A) for a change of the first four octets.
//!
//! A CRC is linear: the CRC of the changed packet is the old CRC plus the CRC of the difference, which is the ports
//! followed by zeros. A zero octet multiplies by x^8, so that n zero octets multiply by x^(8n) modulo the polynomial.

/// The polynomial, bit-reversed.
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// x^0: bit 31.
const ONE: u32 = 1 << 31;

/// Factors of `n` and of 256 · `n` zero octets: one table for each octet of a length.
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

/// Product of two polynomials. Without branches, each of which the verifier would walk.
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

/// The checksum `sum` of `len` octets (below 2^16) after the first four changed from `old` to `new`; in memory order.
#[inline(always)]
#[must_use]
pub(super) fn patched(sum: [u8; 4], old: [u8; 4], new: [u8; 4], len: u32) -> [u8; 4] {
    // Four octets are a polynomial of 32 bits; appending them multiplies by x^32.
    let diff = u32::from_le_bytes(old) ^ u32::from_le_bytes(new);
    let [low, high, ..] = len.to_le_bytes();
    let diff = multiply(multiply(diff, ZEROS[0][low as usize]), ZEROS[1][high as usize]);
    (u32::from_le_bytes(sum) ^ diff).to_le_bytes()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The CRC bit by bit, as in the RFC.
    pub(in crate::packet) fn crc32c(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!0u32, |crc, &byte| {
            (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ if crc & 1 == 0 { 0 } else { POLYNOMIAL })
        })
    }

    #[test]
    fn the_crc_of_a_published_example_is_right() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    proptest! {
        #[test]
        fn an_updated_crc_equals_a_computed_one(
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
