//! The packet path: what becomes of a packet at a device. Flows are looked up before Services, so that what has begun goes
//! on as it began, whatever Services and endpoints have become.
//!
//! The stages stand side by side and hand on what they found in [`Scratch`]: the frames of functions that call each other
//! share 512 bytes of stack.
#![expect(clippy::needless_borrows_for_generic_args, reason = "by value, keys and flows would be copied to the stack")]

mod answer;
mod begin;
mod clock;
mod fate;
mod icmp;
mod ports;
mod route;
mod send;
mod sender;
mod skb;

use core::{arch::asm, ptr};

use aya_ebpf::{bindings::BPF_ANY, programs::TcContext};
use lb_common::{
    BackendFlags, Choice, Counter, Device, DeviceFlags, Flow, FlowFlags, FlowKey, FragmentKey, FragmentPorts,
    FrontendKey, Hook, Proto, Tables as _,
    flow::{FlowState, Seen, UDP_OF_NETFILTER, partner_key},
    packet::{Answer, Fragment, Packet, number, parse_network, parse_transport},
};

use crate::maps::{BACKENDS, DEVICES, FLOWS, FRAGMENTS, Kernel, SCRATCH, count};
use clock::Clock;
use fate::Fate;
use skb::Frame;

const ETHERNET: u32 = 14;

/// The packet at hand.
#[repr(C)]
pub struct Scratch {
    /// The source port that is tried next, from the first one on. It stands first so that what follows is aligned to four
    /// octets and no more: addresses are written by words of 32 bits, and read more slowly by longer ones.
    port: u32,
    packet: Packet,
    /// Its key in `FLOWS`.
    key: FlowKey,
    /// Its flow: the packet's direction.
    flow: Flow,
    /// The other direction, and its key.
    back: Flow,
    back_key: FlowKey,
    /// How far it is from one source port that is tried to the one after it.
    step: u32,
    /// The backend of a new flow.
    choice: Choice,
    /// What the routes say about it.
    route: route::Route,
    clock: Clock,
    icmp: icmp::Back,
    answer: Answer,
}

/// A packet comes in.
#[inline(always)]
pub fn ingress(ctx: TcContext) -> i32 {
    at(Frame::new(ctx), Hook::Ingress)
}

/// A packet goes out.
#[inline(always)]
pub fn egress(ctx: TcContext) -> i32 {
    at(Frame::new(ctx), Hook::Egress)
}

#[inline(always)]
fn at(mut frame: Frame, hook: Hook) -> i32 {
    if frame.is_sent_on() {
        if hook as u8 == Hook::Egress as u8 {
            // It has been through all of this when it came in.
            return Fate::PASS.code();
        }
        // By another node, which is a container of this machine: that says nothing here.
        frame.unmark();
    }
    // Nothing is looked up for what no Service is about.
    let Some(v6) = frame.is_v6() else {
        return Fate::PASS.code();
    };
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else {
        return Fate::PASS.code();
    };
    // SAFETY: the one value of a per-CPU array: a packet's programs run to their end before the next packet's begin there.
    let scratch = unsafe { &mut *scratch };
    let fate = decide(frame, hook, v6, scratch);
    if fate.is_answer() { answer::answer(frame, scratch, hook, fate) } else { fate.code() }
}

#[inline(always)]
fn decide(frame: Frame, hook: Hook, v6: bool, scratch: &mut Scratch) -> Fate {
    // SAFETY: read at once; an element that is replaced meanwhile stays until the RCU grace period ends.
    let Some(device) = (unsafe { DEVICES.get(frame.ifindex()) }) else {
        return Fate::PASS;
    };
    let l3 = if device.flags & DeviceFlags::NO_ETHERNET == 0 { ETHERNET } else { 0 };
    if !read_network(frame, l3, v6, &mut scratch.packet) || !read_transport(frame, &mut scratch.packet) {
        return Fate::PASS;
    }
    if scratch.packet.proto == number::ICMP || scratch.packet.proto == number::ICMPV6 {
        return icmp::back(frame, hook, scratch);
    }
    if scratch.packet.fragment as u8 == Fragment::Later as u8 && !find_ports(hook, &mut scratch.packet) {
        // Of no Service, or ahead of its first fragment: then its datagram is lost, and asked for again.
        return Fate::PASS;
    }
    scratch.key = FlowKey::new(scratch.packet.tuple, scratch.packet.proto, hook);
    if !goes_on(scratch) {
        let begun = if hook as u8 == Hook::Egress as u8 {
            leave(frame, scratch, device)
        } else {
            begin::begin(frame, scratch, device)
        };
        if !begun.is_flow() {
            return begun;
        }
    } else if scratch.flow.flags & FlowFlags::NETFILTER != 0 {
        return Fate::PASS;
    }
    if scratch.packet.fragment as u8 == Fragment::First as u8 {
        keep_ports(hook, &scratch.packet);
    }
    send::send(frame, hook, scratch)
}

/// Reads the IP header. What it finds goes through memory, where the verifier does not follow it: else it would walk what
/// comes next for each way through this.
#[inline(always)]
fn read_network(frame: Frame, l3: u32, v6: bool, packet: &mut Packet) -> bool {
    let known = parse_network(&frame, l3, v6, packet).is_some();
    settle();
    known
}

/// Reads what it carries.
#[inline(always)]
fn read_transport(frame: Frame, packet: &mut Packet) -> bool {
    let known = parse_transport(&frame, packet).is_some();
    settle();
    known
}

/// What was written stands in memory from here on, and is read from there again.
#[inline(always)]
fn settle() {
    // SAFETY: nothing happens, but the compiler does not know that.
    unsafe { asm!("", options(nostack, preserves_flags)) };
}

/// Whether the packet is one of a known flow, which then stands in `flow`.
#[inline(always)]
fn goes_on(scratch: &mut Scratch) -> bool {
    let Some(flow) = FLOWS.get_ptr_mut(&scratch.key) else {
        return false;
    };
    // SAFETY: a value of ours; it stays until the RCU grace period ends, and each direction writes its own entry.
    let flow = unsafe { &mut *flow };
    let now = scratch.clock.now();
    if begins_anew(&scratch.packet, flow, now) {
        // Whatever comes of this packet, the next ones must not follow the old flow.
        let _was_there = FLOWS.remove(&scratch.key);
        return false;
    }
    if flow.used != now {
        flow.used = now;
    }
    track(&scratch.packet, &scratch.key, &mut scratch.back_key, flow);
    // SAFETY: places of two maps. (As an assignment it would be a call, and a loop.)
    unsafe {
        ptr::copy_nonoverlapping(&raw const flow.to, &raw mut scratch.flow.to, 1);
        ptr::copy_nonoverlapping(&raw const flow.hop, &raw mut scratch.flow.hop, 1);
    }
    scratch.flow.flags = flow.flags;
    scratch.route.forget();
    true
}

/// Whether a packet of a known flow must find a backend as a new one does: a client uses its port again after the end; the
/// first packet is sent again, or another question asked, and its backend takes no new flows any more; or it is a datagram, and
/// its backend has gone.
#[inline(always)]
fn begins_anew(packet: &Packet, flow: &Flow, now: u64) -> bool {
    if flow.flags & FlowFlags::REVERSE != 0 || !(packet.begins || packet.proto == Proto::Udp as u8) {
        return false;
    }
    if packet.begins && FlowState::of(flow.forward, flow.reverse).is_over() {
        return true;
    }
    if flow.flags & FlowFlags::NETFILTER != 0 {
        return is_left_by_netfilter(packet, flow, now);
    }
    // A flow that belongs to no Service: see `ports`.
    if flow.backend == 0 {
        return false;
    }
    // SAFETY: read at once; an element that is replaced meanwhile stays until the RCU grace period ends.
    let backend = unsafe { BACKENDS.get(flow.backend) };
    let lists = BackendFlags::CLUSTER | BackendFlags::LOCAL;
    // A question that was answered is over: the next one, by a port that is used again, goes to who takes new ones.
    let is_asked_anew = packet.begins || (is_answered(flow) && flow.forward & Seen::AGAIN == 0);
    let stands = backend.is_some_and(|backend| {
        backend.service == flow.service
            && backend.port == flow.to.dst_port
            && backend.addr == flow.to.dst
            && (!is_asked_anew || backend.flags & lists != 0)
    });
    if !stands && packet.proto == Proto::Udp as u8 {
        count(Counter::FlowMoved);
    }
    !stands
}

#[inline(always)]
fn is_answered(flow: &Flow) -> bool {
    flow.reverse & Seen::ANY != 0
}

/// Whether netfilter's flow is ours from here on: a client that was answered dials anew, or netfilter may have forgotten the
/// datagrams before this one. A first packet that is sent again belongs where the first one went.
#[inline(always)]
fn is_left_by_netfilter(packet: &Packet, flow: &Flow, now: u64) -> bool {
    if packet.begins {
        return !matches!(FlowState::of(flow.forward, flow.reverse), FlowState::Opening);
    }
    // Another CPU, or user space, may have written a time that this CPU's clock has not come to.
    now.saturating_sub(flow.used) > UDP_OF_NETFILTER
}

/// A flow remembers its packet. The other direction's entry hears only of what is new, which is rare.
#[inline(always)]
fn track(packet: &Packet, key: &FlowKey, partner: &mut FlowKey, flow: &mut Flow) {
    let reverse = flow.flags & FlowFlags::REVERSE != 0;
    let (own, other) = if reverse { (flow.reverse, flow.forward) } else { (flow.forward, flow.reverse) };
    if !reverse && !packet.begins && flow.flags & FlowFlags::NETFILTER != 0 {
        // Its answers may come by no device of ours; who goes on was answered.
        flow.reverse |= Seen::ANY;
    }
    let mut seen = own | packet.seen;
    if packet.proto == Proto::Udp as u8 && !reverse && is_answered(flow) {
        seen |= Seen::AGAIN;
    }
    if packet.seen & Seen::FIN != 0 && (own | other) & Seen::FIN == 0 {
        seen |= Seen::FIN_FIRST;
    }
    if seen == own {
        return;
    }
    if reverse {
        flow.reverse = seen;
    } else {
        flow.forward = seen;
    }
    *partner = partner_key(key, flow);
    if let Some(partner) = FLOWS.get_ptr_mut(&*partner) {
        // SAFETY: as in `goes_on`; one direction writes one byte, and the other one the other.
        unsafe {
            if reverse {
                (*partner).reverse = seen;
            } else {
                (*partner).forward = seen;
            }
        }
    }
}

/// The ports of a fragment that has none, as the first one of its datagram told them.
#[inline(never)]
fn find_ports(hook: Hook, packet: &mut Packet) -> bool {
    // SAFETY: read at once; an element that is replaced meanwhile stays until the RCU grace period ends.
    let Some(ports) = (unsafe { FRAGMENTS.get(fragment_key(packet, hook)) }) else {
        return false;
    };
    packet.tuple.src_port = ports.src_port;
    packet.tuple.dst_port = ports.dst_port;
    true
}

/// Keeps the ports of a first fragment for the others.
#[inline(never)]
fn keep_ports(hook: Hook, packet: &Packet) {
    let ports = FragmentPorts { src_port: packet.tuple.src_port, dst_port: packet.tuple.dst_port };
    // Without it the later ones find no way, and the datagram is asked for again.
    let _room = FRAGMENTS.insert(fragment_key(packet, hook), ports, u64::from(BPF_ANY));
}

#[inline(always)]
fn fragment_key(packet: &Packet, hook: Hook) -> FragmentKey {
    let (src, dst) = (packet.tuple.src, packet.tuple.dst);
    FragmentKey { src, dst, id: packet.id, proto: packet.proto, hook: hook as u8, _pad: 0 }
}

/// A packet of no flow goes out. One to a cluster IP got here because no socket of a Service was dialled: it is answered,
/// and not sent to where nobody is.
#[inline(always)]
fn leave(frame: Frame, scratch: &mut Scratch, device: &Device) -> Fate {
    let packet = &scratch.packet;
    if !packet.begins && packet.proto != Proto::Udp as u8 {
        return Fate::PASS;
    }
    if device.flags & DeviceFlags::LEAVING == 0 && is_cluster_ip(packet) {
        return Fate::reject(Counter::UnknownPort);
    }
    ports::keep_apart(frame, scratch, device)
}

/// Whether a packet goes to an address that is a cluster IP, on whatever port.
#[inline(never)]
fn is_cluster_ip(packet: &Packet) -> bool {
    let Some(proto) = Proto::from_number(packet.proto.into()) else {
        return false;
    };
    let address = FrontendKey::new(packet.tuple.dst, packet.tuple.dst_port, proto).address();
    Kernel.may_have(&address) && Kernel.frontend(&address).is_some()
}
