//! The memory that the C library's allocator holds for this process.
#![expect(unsafe_code, reason = "a call of the C library")]

/// Returns freed memory to the system, for example after a burst of changes. glibc keeps it otherwise; other C
/// libraries return it by themselves, so there this does nothing.
pub fn release() {
    #[cfg(target_env = "gnu")]
    // SAFETY: may be called at any time, from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}
