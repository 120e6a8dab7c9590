//! Limit of the resets and ICMP errors that the programs send (RFC 4443, 2.4f), as the kernel limits its own
//! (`net.ipv4.icmp_msgs_per_sec` and `icmp_msgs_burst`, net/ipv4/icmp.c).

/// The time that pays for one message, in ns: 1,000 messages a second.
const COST: u64 = 1_000_000;
/// The most messages at once.
const BURST: u64 = 50;

/// A token bucket of this CPU.
#[repr(C)]
pub struct Limit {
    /// Time of the last message (CLOCK_MONOTONIC, ns).
    last: u64,
    /// Time that is left to pay with, in ns.
    credit: u64,
}

impl Limit {
    /// Takes a token; false if there is none.
    #[inline(always)]
    pub fn allows(&mut self, now: u64) -> bool {
        let credit = self.credit.saturating_add(now.saturating_sub(self.last));
        let credit = if credit > BURST * COST { BURST * COST } else { credit };
        self.last = now;
        let is_paid = credit >= COST;
        self.credit = if is_paid { credit - COST } else { credit };
        is_paid
    }
}
