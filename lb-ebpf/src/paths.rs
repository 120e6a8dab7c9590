//! Paths of the verifier. It walks the code after a place once for each different state that reaches the place, and a
//! register with a constant is another state than the same register with any value.

use core::arch::asm;

/// Returns `value`, of which the verifier then knows nothing, so that the paths that meet here go on as one. `any` is a
/// value that it does not know, such as a port that a program has read from its context.
#[inline(always)]
pub fn join(value: u64, any: u16) -> u64 {
    // Without bounds, so that the sum has none.
    let any = u64::from(any).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut joined = value;
    // SAFETY: arithmetic on registers. In assembly, since the compiler sees that nothing changes.
    unsafe {
        asm!("{0} += {1}", "{0} -= {1}", inout(reg) joined, in(reg) any, options(pure, nomem, nostack));
    }
    joined
}
