//! Source ports: no two flows to one backend may look alike to it, whoever began them.

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_NOEXIST, bpf_sock_tuple},
    helpers::generated::{bpf_sk_lookup_udp, bpf_sk_release, bpf_skc_lookup_tcp},
};
use lb_common::{
    Counter, Device, Flow, FlowFlags, FlowKey, Hook, Hop, Proto, Tuple,
    flow::{FlowState, partner_key},
    mix::{self, scale},
    packet::{Packet, spread},
};

use super::{Scratch, fate::Fate, skb::Frame};
use crate::maps::{FLOWS, SNAT_COUNT, SNAT_FIRST, count};

/// How many ports are tried for a flow.
const TRIES: u32 = 32;

/// Which source port a flow would like.
#[derive(Clone, Copy)]
pub enum Wish {
    /// The client's own, and another one only where that is taken.
    Same,
    /// Any one of this node.
    Any,
}

/// The hash of a packet's flow.
#[inline(never)]
pub fn spread_of(packet: &Packet) -> u32 {
    spread(&packet.tuple, packet.proto)
}

/// Writes both entries of the flow in `scratch`, which is complete but for its source port.
#[inline(never)]
pub fn claim(frame: Frame, scratch: &mut Scratch, hook: Hook, wish: Wish) -> Fate {
    let (first, number) = (u32::from(SNAT_FIRST.load()), SNAT_COUNT.load());
    let hash = spread_of(&scratch.packet);
    // Each flow goes on by a step of its own: taken ports lie side by side more often than by chance, and a flow that went
    // from one to the next would find none long before there is none.
    // In memory, where the verifier does not follow it: else it walks each try once for every outcome of those before.
    scratch.port = scale(hash, number);
    scratch.step = 2 * scale(mix::hash(hash.into(), number), number / 2) + 1;
    scratch.back = scratch.flow;
    scratch.back.to = scratch.packet.tuple.reversed();
    scratch.back.flags = FlowFlags::REVERSE | (scratch.flow.flags & FlowFlags::REDIRECT);
    scratch.back.hop.forget();
    if hook as u8 == Hook::Egress as u8 {
        scratch.back.flags |= FlowFlags::PARTNER_EGRESS;
    }
    for nth in 0..TRIES {
        if nth != 0 || !matches!(wish, Wish::Same) {
            scratch.flow.to.src_port = (first + scratch.port) as u16;
            let next = scratch.port + scratch.step;
            scratch.port = if next >= number { next - number } else { next };
            if !matches!(wish, Wish::Same) && is_used_by_a_socket(frame, &scratch.packet, &scratch.flow.to) {
                continue;
            }
        }
        scratch.back_key = partner_key(&scratch.key, &scratch.flow);
        match put(&scratch.back_key, &scratch.back) {
            Claimed::Mine => {
                if FLOWS.insert(&scratch.key, &scratch.flow, u64::from(BPF_ANY)).is_ok() {
                    return Fate::FLOW;
                }
                let _was_there = FLOWS.remove(&scratch.back_key);
            }
            Claimed::Taken => continue,
            Claimed::Full => {}
        }
        count(Counter::FlowsFull);
        return Fate::DROP;
    }
    count(Counter::SnatExhausted);
    Fate::DROP
}

enum Claimed {
    Mine,
    Taken,
    Full,
}

const EEXIST: i32 = -17;

/// Writes the entry of the backend's direction, unless another flow has it.
#[inline(always)]
fn put(key: &FlowKey, back: &Flow) -> Claimed {
    match FLOWS.insert(key, back, u64::from(BPF_NOEXIST)) {
        Ok(()) => return Claimed::Mine,
        Err(code) if code != EEXIST => return Claimed::Full,
        Err(_) => {}
    }
    let Some(there) = FLOWS.get_ptr_mut(key) else {
        return Claimed::Taken;
    };
    // SAFETY: a value of ours; it stays until the RCU grace period ends.
    let there = unsafe { &*there };
    // Netfilter would give this flow another port, and we would not know which.
    if there.flags & FlowFlags::NETFILTER != 0 {
        return Claimed::Taken;
    }
    // The same client dials the same address again, from a port that it used before; or the other flow is over, and its
    // backend does not wait in TIME-WAIT.
    let over = matches!(FlowState::of(there.forward, there.reverse), FlowState::Closed);
    if over || there.to == back.to {
        return match FLOWS.insert(key, back, u64::from(BPF_ANY)) {
            Ok(()) => Claimed::Mine,
            Err(_) => Claimed::Full,
        };
    }
    Claimed::Taken
}

/// Whether a socket of this node would get the answers to such a packet.
#[inline(never)]
fn is_used_by_a_socket(frame: Frame, packet: &Packet, to: &Tuple) -> bool {
    // SAFETY: integers, for which zero is a value.
    let mut tuple: bpf_sock_tuple = unsafe { core::mem::zeroed() };
    let (src, dst) = (to.dst.words(), to.src.words());
    let size = if packet.v6 {
        tuple.__bindgen_anon_1.ipv6.saddr = src;
        tuple.__bindgen_anon_1.ipv6.daddr = dst;
        tuple.__bindgen_anon_1.ipv6.sport = to.dst_port.to_be();
        tuple.__bindgen_anon_1.ipv6.dport = to.src_port.to_be();
        36
    } else {
        tuple.__bindgen_anon_1.ipv4.saddr = src[3];
        tuple.__bindgen_anon_1.ipv4.daddr = dst[3];
        tuple.__bindgen_anon_1.ipv4.sport = to.dst_port.to_be();
        tuple.__bindgen_anon_1.ipv4.dport = to.src_port.to_be();
        12
    };
    /// The namespace of the device.
    const HERE: u64 = u64::MAX;
    // SAFETY: the context and a tuple of that size; a socket that is found is given back.
    unsafe {
        let sock = if packet.proto == Proto::Tcp as u8 {
            bpf_skc_lookup_tcp(frame.raw(), &raw mut tuple, size, HERE, 0)
        } else if packet.proto == Proto::Udp as u8 {
            bpf_sk_lookup_udp(frame.raw(), &raw mut tuple, size, HERE, 0)
        } else {
            return false;
        };
        if sock.is_null() {
            return false;
        }
        bpf_sk_release(sock.cast());
    }
    true
}

/// A packet of this node, or one that netfilter has given an address of this node, goes out. Should it look like one of
/// ours to its receiver, it gets another source port.
#[inline(always)]
pub fn keep_apart(frame: Frame, scratch: &mut Scratch, device: &Device) -> Fate {
    let packet = &scratch.packet;
    let at = u32::from(packet.tuple.src_port).wrapping_sub(u32::from(SNAT_FIRST.load()));
    if at >= SNAT_COUNT.load() {
        return Fate::PASS;
    }
    let own = if packet.v6 { &device.snat_v6 } else { &device.snat_v4 };
    if packet.tuple.src != *own {
        return Fate::PASS;
    }
    scratch.back_key = FlowKey::new(packet.tuple.reversed(), packet.proto, Hook::Ingress);
    match FLOWS.get_ptr(&scratch.back_key) {
        // SAFETY: a value of ours; it stays until the RCU grace period ends.
        Some(flow) if unsafe { (*flow).flags } & FlowFlags::NETFILTER == 0 => {}
        // Of netfilter's own flow the answers are netfilter's too.
        _ => return Fate::PASS,
    }
    let used = scratch.clock.now();
    let (to, hop) = (packet.tuple, Hop::UNKNOWN);
    scratch.flow = Flow { to, service: 0, backend: 0, flags: 0, forward: packet.seen, reverse: 0, used, hop };
    claim(frame, scratch, Hook::Egress, Wish::Any)
}
