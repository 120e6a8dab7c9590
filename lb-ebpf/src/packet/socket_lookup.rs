//! The kernel's look-up of a socket of the node for a packet (`sk_lookup`): a packet of a pod without a socket of this
//! node, to a frontend at an address of the node, gets there by no device with programs. Its link is noted, and a sink
//! of the agent receives the packet: a refusal would end the sender's call, and silence has it send again.
//!
//! The look-up is for TCP segments of no connection, and for datagrams to no connected socket.

use aya_ebpf::{
    bindings::{bpf_sk_lookup, sk_action::SK_PASS},
    helpers::bpf_ktime_get_ns,
    programs::SkLookupContext,
};
use lb_common::{Addr, DeviceFlags, FrontendKey, Proto, Tables as _};

use super::packet_link;
use crate::{
    maps::{DEVICES, SINKS},
    own,
    tables::Kernel,
};

/// Looks for a socket; without one of ours the kernel goes on with its own look-up.
#[inline(always)]
pub fn look_up(ctx: &SkLookupContext) -> u32 {
    if let Some(proto) = awaits_programs(ctx.lookup) {
        // Without a sink the packet is refused.
        let _taken = SINKS.redirect_sk_lookup(ctx, proto as u32, 0);
    }
    SK_PASS
}

/// The protocol of a packet that came by the link of a pod that is about to get the programs.
#[inline(always)]
fn awaits_programs(lookup: *const bpf_sk_lookup) -> Option<Proto> {
    // SAFETY: the context is valid for the program's run; the verifier checks each access.
    let (proto, port, link) = unsafe { ((*lookup).protocol, (*lookup).local_port, (*lookup).ingress_ifindex) };
    let proto = Proto::from_number(proto)?;
    let mut dest = FrontendKey::new(Addr::from_words([0; 4]), port as u16, proto);
    // The bit of a port is that of any address.
    if !Kernel.may_have(&dest) {
        return None;
    }
    // SAFETY: read at once; an element that is replaced meanwhile stays until the RCU grace period ends.
    let flags = unsafe { DEVICES.get(link) }?.flags;
    if flags & DeviceFlags::POD == 0 {
        return None;
    }
    dest.addr = local_addr(lookup);
    // A socket of the node may listen at its cluster IP, as a DNS cache does: the kernel looks for it.
    if !is_frontend(&dest) || (own::is_marked(dest.port) && own::is_at_node(&dest)) {
        return None;
    }
    // SAFETY: no precondition.
    packet_link::awaits(link, flags, unsafe { bpf_ktime_get_ns() }).then_some(proto)
}

/// True if a Service has the destination, which is an address of the node. Port ranges are not served there.
#[inline(always)]
fn is_frontend(dest: &FrontendKey) -> bool {
    Kernel.frontend(dest).is_some()
        || Kernel
            .frontend(&dest.node_port())
            .is_some_and(|port| Kernel.node_addr(&dest.addr).is_some_and(|own| own.serves(port.kind)))
}

#[inline(always)]
fn local_addr(lookup: *const bpf_sk_lookup) -> Addr {
    const AF_INET: u32 = 2;
    // SAFETY: as above; single words of the address only.
    unsafe {
        if (*lookup).family == AF_INET {
            return Addr::from_v4_word((*lookup).local_ip4);
        }
        let word = |at: usize| (&raw const (*lookup).local_ip6).cast::<u32>().add(at).read_volatile();
        Addr::from_words([word(0), word(1), word(2), word(3)])
    }
}
