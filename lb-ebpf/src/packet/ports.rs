//! Source ports: no two flows to a backend may have the same tuple, neither ours nor the node's own.

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_NOEXIST},
    helpers::generated::{bpf_sk_lookup_tcp, bpf_sk_lookup_udp, bpf_sk_release, bpf_skc_lookup_tcp},
};
use lb_common::{
    Counter, Device, DeviceFlags, Flow, FlowFlags, FlowKey, Hook, Hop, Proto, Tuple,
    flow::{FlowState, Serial, partner_key},
    hash::{scale, splitmix},
    packet::{Packet, flow_hash},
};

use super::{flow, opening, scratch::Scratch, skb::Frame, verdict::PacketVerdict};
use crate::{
    counters::count,
    globals::{SNAT_COUNT, SNAT_FIRST},
    maps::FLOWS,
    own::{CURRENT_NETNS, Found},
    paths,
};

/// Ports to try for a flow.
const TRIES: u32 = 32;

/// Source port of a new flow. A number, which the verifier need not know: see [`paths::join`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SourcePort(u32);

impl SourcePort {
    /// The client's own; another one only if that is taken.
    pub const KEEP: Self = Self(0);
    /// Any masquerade port of this node.
    pub const ANY: Self = Self(1);

    /// The same value, of which the verifier knows nothing.
    #[inline(always)]
    pub fn joined(self, any: u16) -> Self {
        Self(paths::join(self.0.into(), any) as u32)
    }
}

/// The hash of a packet's flow.
#[inline(never)]
pub fn hash_of(packet: &Packet) -> u32 {
    flow_hash(&packet.tuple, packet.proto)
}

/// Inserts both entries of the flow in `scratch`, which is complete but for its source port.
#[inline(never)]
pub fn insert_flow(frame: Frame, scratch: &mut Scratch, hook: Hook, wanted: SourcePort) -> PacketVerdict {
    let (first, number) = (u32::from(SNAT_FIRST.load()), SNAT_COUNT.load());
    let hash = hash_of(&scratch.packet);
    // Each flow has its own step: taken ports are adjacent more often than at random, and a flow that tried one port
    // after the other would fail long before all are taken. In memory, where the verifier does not follow the values:
    // else it walks each try once for every outcome of the tries before.
    scratch.port = scale(hash, number);
    scratch.step = 2 * scale(splitmix(hash.into(), number), number / 2) + 1;
    scratch.partner = scratch.flow;
    scratch.partner.to = scratch.packet.tuple.reversed();
    scratch.partner.flags = FlowFlags::REVERSE | (scratch.flow.flags & (FlowFlags::REDIRECT | FlowFlags::SLOW_PATH));
    scratch.partner.hop.forget();
    scratch.partner.used = Serial::note(scratch.packet.proto, 0, scratch.flow.used, 0);
    if hook as u8 == Hook::Egress as u8 {
        scratch.partner.flags |= FlowFlags::PARTNER_EGRESS;
    }
    for nth in 0..TRIES {
        if nth != 0 || wanted != SourcePort::KEEP {
            scratch.flow.to.src_port = (first + scratch.port) as u16;
            // A remainder rather than a comparison, which is one more branch to walk in each try.
            scratch.port = (scratch.port + scratch.step).checked_rem(number).unwrap_or(0);
            if !may_have_port(frame, scratch, wanted) {
                continue;
            }
        }
        scratch.partner_key = partner_key(&scratch.key, &scratch.flow);
        match insert_entries(scratch) {
            Inserted::Done => return PacketVerdict::FLOW,
            Inserted::Taken => {}
            Inserted::Full => return insert_with_room(scratch),
        }
    }
    // The last of these ports may be that of a flow that gives way.
    if opening::take_over(scratch) {
        return PacketVerdict::FLOW;
    }
    count(Counter::SnatExhausted);
    PacketVerdict::dropped(Counter::SnatExhausted)
}

/// True if the source port of the flow in `scratch` is free at this node. That of a client's own address always is. Not
/// inlined: the compiler would make a loop over ports for either case.
#[inline(never)]
fn may_have_port(frame: Frame, scratch: &Scratch, wanted: SourcePort) -> bool {
    wanted == SourcePort::KEEP || !has_local_socket(frame, &scratch.packet, &scratch.flow.to)
}

/// Inserts both entries of the flow in `scratch` in the place of a flow that gives way. Not in the loop over ports: the
/// verifier would walk it once for each of them.
#[inline(never)]
fn insert_with_room(scratch: &mut Scratch) -> PacketVerdict {
    for _ in 0..opening::TRIES {
        // Another CPU may take the room, or the port.
        if opening::remove_oldest(scratch) && matches!(insert_entries(scratch), Inserted::Done) {
            return PacketVerdict::FLOW;
        }
    }
    count(Counter::FlowsFull);
    PacketVerdict::dropped(Counter::FlowsFull)
}

/// Result of an insertion.
enum Inserted {
    Done,
    /// Another flow has the tuple.
    Taken,
    Full,
}

const EEXIST: i32 = -17;

/// Inserts both entries of the flow in `scratch`, or neither.
#[inline(never)]
fn insert_entries(scratch: &mut Scratch) -> Inserted {
    let inserted = insert_partner(&scratch.partner_key, &scratch.partner);
    if !matches!(inserted, Inserted::Done) {
        return inserted;
    }
    if flow::insert(&scratch.key, &scratch.flow, u64::from(BPF_ANY)).is_ok() {
        return Inserted::Done;
    }
    let _existed = FLOWS.remove(&scratch.partner_key);
    Inserted::Full
}

/// Inserts the entry of the backend's direction, unless another flow has the tuple.
#[inline(always)]
fn insert_partner(key: &FlowKey, partner: &Flow) -> Inserted {
    match flow::insert(key, partner, u64::from(BPF_NOEXIST)) {
        Ok(()) => return Inserted::Done,
        Err(code) if code != EEXIST => return Inserted::Full,
        Err(_) => {}
    }
    let Some(there) = FLOWS.get_ptr_mut(key) else {
        return Inserted::Taken;
    };
    // SAFETY: our map value; it stays until the RCU grace period ends.
    let there = unsafe { &*there };
    // Netfilter would translate this flow to another port, unknown to us; replies to the node's own are the node's.
    if there.flags & FlowFlags::PASSED != 0 {
        return Inserted::Taken;
    }
    // The same client dials the same address again from a reused port; or the other flow is over, and its backend is
    // not in TIME-WAIT.
    let over = matches!(FlowState::of(there.forward, there.reverse), FlowState::Closed);
    if over || there.to == partner.to {
        return match flow::insert(key, partner, u64::from(BPF_ANY)) {
            Ok(()) => Inserted::Done,
            Err(_) => Inserted::Full,
        };
    }
    Inserted::Taken
}

/// True if a socket of this node would receive the replies to such a packet.
#[inline(never)]
pub fn has_local_socket(frame: Frame, packet: &Packet, to: &Tuple) -> bool {
    let (mut tuple, size) = socket_tuple(&to.reversed(), packet.v6);
    // SAFETY: the context and a tuple of that size; a found socket is released.
    unsafe {
        let sock = if packet.proto == Proto::Tcp as u8 {
            bpf_skc_lookup_tcp(frame.raw(), (&raw mut tuple).cast(), size, CURRENT_NETNS, 0)
        } else if packet.proto == Proto::Udp as u8 {
            bpf_sk_lookup_udp(frame.raw(), (&raw mut tuple).cast(), size, CURRENT_NETNS, 0)
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

/// True if a socket of this node listens at exactly the address and port of a packet.
#[inline(never)]
pub fn has_listener(frame: Frame, packet: &Packet) -> bool {
    let is_tcp = packet.proto == Proto::Tcp as u8;
    let (mut tuple, size) = socket_tuple(&packet.tuple, packet.v6);
    // SAFETY: as above.
    unsafe {
        let sock = if is_tcp {
            bpf_sk_lookup_tcp(frame.raw(), (&raw mut tuple).cast(), size, CURRENT_NETNS, 0)
        } else if packet.proto == Proto::Udp as u8 {
            bpf_sk_lookup_udp(frame.raw(), (&raw mut tuple).cast(), size, CURRENT_NETNS, 0)
        } else {
            return false;
        };
        if sock.is_null() {
            return false;
        }
        let found = Found::of(sock, &packet.tuple.dst, is_tcp);
        bpf_sk_release(sock.cast());
        found == Found::Exact
    }
}

/// The kernel's `struct bpf_sock_tuple` of a packet of either family, and its size. By words: the compiler would call a
/// loop over octets to clear the union.
#[inline(always)]
fn socket_tuple(of: &Tuple, v6: bool) -> ([u32; 9], u32) {
    let (src, dst) = (of.src.words(), of.dst.words());
    let ports = of.src_port.to_be() as u32 | (of.dst_port.to_be() as u32) << 16;
    if v6 {
        ([src[0], src[1], src[2], src[3], dst[0], dst[1], dst[2], dst[3], ports], 36)
    } else {
        ([src[3], dst[3], ports, 0, 0, 0, 0, 0, 0], 12)
    }
}

/// True for the source ports of masqueraded packets.
#[inline(always)]
pub fn is_for_masquerade(port: u16) -> bool {
    u32::from(port).wrapping_sub(u32::from(SNAT_FIRST.load())) < SNAT_COUNT.load()
}

/// A packet of this node, or masqueraded by netfilter, leaves. If one of our flows has its tuple, the packet gets
/// another source port, for as long as the programs stay. So a flow that is over leaves the tuple to the packet.
#[inline(always)]
pub fn reserve_snat_port(frame: Frame, scratch: &mut Scratch, device: &Device) -> PacketVerdict {
    let packet = &scratch.packet;
    if !is_for_masquerade(packet.tuple.src_port) {
        return PacketVerdict::PASS;
    }
    let own = if packet.v6 { &device.snat_v6 } else { &device.snat_v4 };
    if packet.tuple.src != *own && device.flags & DeviceFlags::SEVERAL_SOURCES == 0 {
        return PacketVerdict::PASS;
    }
    scratch.partner_key = FlowKey::new(packet.tuple.reversed(), packet.proto, Hook::Ingress);
    let Some(there) = FLOWS.get_ptr(&scratch.partner_key) else {
        return PacketVerdict::PASS;
    };
    // SAFETY: our map value; it stays until the RCU grace period ends.
    let there = unsafe { &*there };
    // Replies of netfilter's own flow belong to netfilter, those of the node's own to the node.
    if there.flags & FlowFlags::PASSED != 0 {
        return PacketVerdict::PASS;
    }
    if matches!(FlowState::of(there.forward, there.reverse), FlowState::Closed) {
        let _existed = FLOWS.remove(&scratch.partner_key);
        return PacketVerdict::PASS;
    }
    let used = Serial::note(packet.proto, 0, scratch.clock.now(), packet.serial);
    let (to, hop) = (packet.tuple, Hop::UNKNOWN);
    scratch.flow = Flow { to, service: 0, backend: 0, flags: 0, forward: packet.seen, reverse: 0, used, hop };
    insert_flow(frame, scratch, Hook::Egress, SourcePort::ANY)
}
