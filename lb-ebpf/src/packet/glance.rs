//! A glance at a packet, before all stages: most packets of most nodes are of no flow and no Service, and a few reads
//! of small maps tell so.

use lb_common::{Family, FrontendKey, Hook, Proto, Tables as _, may_be_vip, packet::Glance};

use super::{flow_ends::may_be_of_a_flow, ports, skb::Frame};
use crate::tables::Kernel;

/// True if a glance tells that the packet passes, as the stages would find. Not inlined, so that its registers are
/// not taken from the stages.
#[inline(never)]
pub fn passes(frame: Frame, family: Family, hook: Hook) -> bool {
    let Some(packet) = Glance::at(&frame, family) else {
        return false;
    };
    if may_be_of_a_flow(&packet.tuple, hook) {
        return false;
    }
    match hook {
        Hook::Ingress => passes_in(&packet),
        Hook::Egress => passes_out(&packet),
    }
}

/// See `new_flow::new_flow`: without a frontend of the address, a packet in the middle of a connection is of no
/// Service, and so is a packet that may begin a flow if no frontend has its port.
#[inline(always)]
fn passes_in(packet: &Glance) -> bool {
    let dest = FrontendKey::new(packet.tuple.dst, packet.tuple.dst_port, Proto::Tcp);
    !(may_be_vip(&Kernel, &dest.address()) || packet.may_begin && Kernel.may_have(&dest))
}

/// See `new_flow::egress_unknown`: only a packet that may be a request to a VIP, or whose replies may be taken for
/// those of another flow, is looked at.
#[inline(always)]
fn passes_out(packet: &Glance) -> bool {
    if !packet.may_begin {
        return true;
    }
    let from = FrontendKey::new(packet.tuple.src, packet.tuple.src_port, Proto::Udp);
    let dest = FrontendKey::new(packet.tuple.dst, packet.tuple.dst_port, Proto::Udp);
    let is_looked_at = Kernel.may_have(&from)
        || ports::is_for_masquerade(packet.tuple.src_port)
        || may_be_vip(&Kernel, &dest.address());
    !is_looked_at
}
