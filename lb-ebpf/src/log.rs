//! Log records for the agent, through aya-log: on cold paths only, if the agent listens, and limited in rate.

use aya_ebpf::helpers::bpf_ktime_get_ns;

use crate::maps::LOG_GATE;

/// Support of aya-log's macros, with the ring buffer declared by BTF.
pub mod macro_support {
    use aya_ebpf::{Global, btf_maps::RingBuf, macros::btf_map};
    pub use aya_log_common::{
        Argument, DefaultFormatter, DisplayHint, Field, Header, IpFormatter, Level, LogValueLength,
    };

    const SIZE: usize = 1 << 17;

    /// Records for the agent.
    #[btf_map]
    pub static AYA_LOGS: RingBuf<(), SIZE> = RingBuf::new();

    /// Highest level to record; set at load time.
    #[unsafe(no_mangle)]
    pub static AYA_LOG_LEVEL: Global<u8> = Global::new(0xff);

    /// True if `level` is recorded.
    #[inline(always)]
    pub fn level_enabled(level: Level) -> bool {
        level as u8 <= AYA_LOG_LEVEL.load()
    }
}

const SECOND: u64 = 1_000_000_000;

/// Most records per second and CPU.
const BUDGET: u64 = 10;

/// True if a record may be written now: the agent listens, and this CPU is within its budget.
#[inline(always)]
pub fn open() -> bool {
    let Some(gate) = LOG_GATE.get_ptr_mut(0) else {
        return false;
    };
    // SAFETY: the value of a per-CPU array, written by this CPU's programs and, rarely, by the agent; a lost count
    // allows one more record.
    let gate = unsafe { &mut *gate };
    // SAFETY: no precondition.
    let now = unsafe { bpf_ktime_get_ns() };
    if gate.listening_until < now {
        return false;
    }
    if now - gate.window_start >= SECOND {
        gate.window_start = now;
        gate.said = 0;
    }
    gate.said += 1;
    gate.said <= BUDGET
}
