//! Event counters.

use lb_common::Counter;

use crate::maps::COUNTERS;

/// Counts an event on this CPU.
#[inline(always)]
pub fn count(counter: Counter) {
    count_number(counter as u32);
}

/// Counts an event by the number of its counter.
#[inline(always)]
pub fn count_number(counter: u32) {
    if let Some(value) = COUNTERS.get_ptr_mut(counter) {
        // SAFETY: the value of a per-CPU array, aligned to 8; only this CPU's programs write it.
        unsafe { *value += 1 };
    }
}
