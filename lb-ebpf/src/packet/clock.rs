//! A clock that is read once a tick.

use aya_ebpf::helpers::{bpf_ktime_get_ns, generated::bpf_jiffies64};

/// The time at the last tick with a packet on this CPU. Time-outs of flows are seconds and a tick is some milliseconds,
/// so that most packets need not read a clock; the kernel's coarse clock (`bpf_ktime_get_coarse_ns`) is of 5.11.
#[repr(C)]
pub struct Clock {
    tick: u64,
    now: u64,
}

impl Clock {
    /// CLOCK_MONOTONIC, ns.
    #[inline(always)]
    pub fn now(&mut self) -> u64 {
        // SAFETY: no precondition. On 64-bit machines the verifier turns the call into a load.
        let tick = unsafe { bpf_jiffies64() };
        if self.tick != tick {
            self.tick = tick;
            // SAFETY: as above.
            self.now = unsafe { bpf_ktime_get_ns() };
        }
        self.now
    }
}
