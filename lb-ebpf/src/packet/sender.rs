//! The sender of a packet as the caller of `select`.

use aya_ebpf::helpers::{bpf_ktime_get_ns, generated::bpf_get_prandom_u32};
use lb_common::{Caller, Client, Origin, packet::Packet};

use super::ports::hash_of;

/// The sender of the first packet of a flow.
pub struct Sender<'a> {
    pub packet: &'a Packet,
    pub origin: Origin,
}

impl Caller for Sender<'_> {
    #[inline(always)]
    fn random(&self) -> u32 {
        // SAFETY: no precondition.
        unsafe { bpf_get_prandom_u32() }
    }

    #[inline(always)]
    fn flow_hash(&self) -> u32 {
        hash_of(self.packet)
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
    fn origin(&self) -> Origin {
        self.origin
    }

    #[inline(always)]
    fn now(&self) -> u64 {
        // SAFETY: no precondition.
        unsafe { bpf_ktime_get_ns() }
    }
}
