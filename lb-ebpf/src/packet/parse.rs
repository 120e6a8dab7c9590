//! Parses a packet into memory, where the verifier does not follow the values: it would walk all later code once for
//! each path through the parser.

use core::arch::asm;

use lb_common::{
    Family,
    packet::{Packet, parse_network, parse_transport},
};

use super::skb::Frame;

/// Parses the IP header at `l3`; false for packets of no Service.
#[inline(always)]
pub fn parse_ip(frame: Frame, l3: u32, family: Family, packet: &mut Packet) -> bool {
    let known = parse_network(&frame, l3, family, packet).is_some();
    barrier();
    known
}

/// Parses the transport header; false for packets of no Service.
#[inline(always)]
pub fn parse_ports(frame: Frame, packet: &mut Packet) -> bool {
    let known = parse_transport(&frame, packet).is_some();
    barrier();
    known
}

/// Compiler barrier: later code reads the parsed values from memory.
#[inline(always)]
fn barrier() {
    // SAFETY: no instruction.
    unsafe { asm!("", options(nostack, preserves_flags)) };
}
