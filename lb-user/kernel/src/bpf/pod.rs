//! Keys and values of maps as bytes.
#![expect(unsafe_code, reason = "Pod values from bytes")]

use std::mem;

use aya::Pod;

/// Returns a value of zeros, as a buffer to write over.
#[must_use]
pub fn any<T: Pod>() -> T {
    // SAFETY: Pod: any bytes are a value.
    unsafe { mem::zeroed() }
}

/// Reads a value from its bytes; None if their number differs from the value's size.
#[must_use]
pub fn from_bytes<T: Pod>(bytes: &[u8]) -> Option<T> {
    // SAFETY: as many bytes as a value has, and Pod: any bytes are one.
    (bytes.len() == mem::size_of::<T>()).then(|| unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}
