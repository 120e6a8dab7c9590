//! The packet at hand: results that one stage passes to the next. One for each CPU, since the stack is too short.

use aya_ebpf::{btf_maps::PerCpuArray, macros::btf_map};
use lb_common::{
    Choice, Flow, FlowKey, Tuple,
    packet::{Packet, Reply},
};

use super::{clock::Clock, limit::Limit, route::Route};

/// The packet at hand, on each CPU.
#[btf_map]
pub static SCRATCH: PerCpuArray<Scratch, 1> = PerCpuArray::new();

/// The packet at hand.
#[repr(C)]
pub struct Scratch {
    /// The source port to try next, counted from the first. Placed first so that later fields are aligned to four
    /// octets, not eight: addresses are written by 32-bit words, and wider reads of them are slower.
    pub port: u32,
    pub packet: Packet,
    /// Key of the packet in `FLOWS`.
    pub key: FlowKey,
    /// Flow of the packet, in the packet's direction.
    pub flow: Flow,
    /// The entry of the other direction.
    pub partner: Flow,
    /// Key of the entry of the other direction.
    pub partner_key: FlowKey,
    /// Key of an entry of another flow.
    pub other_key: FlowKey,
    /// Step from one source port to the next to try.
    pub step: u32,
    /// Flows of this CPU that begin.
    pub opening: Queue,
    /// The backend of a new flow.
    pub choice: Choice,
    pub route: Route,
    pub clock: Clock,
    /// Limit of resets and ICMP errors.
    pub limit: Limit,
    /// Limit of echo replies: pings do not use up the errors.
    pub echo_limit: Limit,
    pub icmp: QuotedPacket,
    /// Buffer for a reset or an ICMP error.
    pub reply: Reply,
}

/// Indexes of this CPU's queue in `OPENING`.
#[repr(C)]
pub struct Queue {
    /// The oldest flow.
    pub first: u32,
    /// Behind the newest flow; equal to `first` if the queue is empty.
    pub end: u32,
}

/// A packet quoted in an ICMP error.
#[repr(C)]
pub struct QuotedPacket {
    pub packet: Packet,
    /// The quoted tuple after translation.
    pub inner: Tuple,
    /// Addresses of the error itself after translation.
    pub outer: Tuple,
}
