//! The sender of a packet, as `select` knows it.

use aya_ebpf::helpers::{bpf_ktime_get_ns, generated::bpf_get_prandom_u32};
use lb_common::{Caller, Client, packet::Packet};

use super::ports::spread_of;

/// Who sent the first packet of a flow.
pub struct Sender<'a> {
    pub packet: &'a Packet,
    pub outside: bool,
}

impl Caller for Sender<'_> {
    #[inline(always)]
    fn random(&self) -> u32 {
        // SAFETY: no precondition.
        unsafe { bpf_get_prandom_u32() }
    }

    #[inline(always)]
    fn spread(&self) -> u32 {
        spread_of(self.packet)
    }

    #[inline(always)]
    fn client(&self) -> Client {
        Client::of_addr(self.packet.tuple.src)
    }

    #[inline(always)]
    fn is_host(&self) -> bool {
        false
    }

    #[inline(always)]
    fn is_outside(&self) -> bool {
        self.outside
    }

    #[inline(always)]
    fn now(&self) -> u64 {
        // SAFETY: no precondition.
        unsafe { bpf_ktime_get_ns() }
    }
}
