//! The memory of this process, as far as the allocator decides about it.
#![expect(unsafe_code, reason = "a call of the C library")]

/// Gives back to the system what a burst needed and nobody uses any more. glibc keeps it otherwise; other C libraries
/// need no telling.
pub fn release() {
    #[cfg(target_env = "gnu")]
    // SAFETY: may be called at any time, from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}
