//! Packets of no known flow: a new flow of a Service, a rejection, or nothing.

use lb_common::{
    BackendFlags, Cause, Choice, Counter, Device, DeviceFlags, FlowFlags, FrontendKey, Hook, Origin, Proto, Verdict,
    flow::partner_key, packet::Packet, select,
};

use super::{
    own,
    ports::{self, SourcePort},
    reject::is_cluster_ip,
    route::Fib,
    scratch::Scratch,
    sender::Sender,
    skb::Frame,
    verdict::PacketVerdict,
};
use crate::{
    counters::count,
    maps::{BACKENDS, DEVICES, FLOWS},
    stats,
    tables::Kernel,
};

/// A packet of no flow enters: begins a flow to a backend, is rejected, or passes.
#[inline(always)]
pub fn new_flow(frame: Frame, scratch: &mut Scratch, device: &Device) -> PacketVerdict {
    if device.flags & (DeviceFlags::LEAVING | DeviceFlags::OFF) != 0
        || (device.flags & DeviceFlags::SETTLING != 0 && !scratch.packet.begins)
    {
        return PacketVerdict::PASS;
    }
    if own::is_mid_connection(frame, &scratch.packet, &mut scratch.route) {
        return PacketVerdict::PASS;
    }
    let origin = if device.flags & DeviceFlags::POD != 0 { Origin::Node } else { Origin::Outside };
    let verdict = choose(&scratch.packet, origin, &mut scratch.choice);
    if verdict.is_flow() {
        return open(frame, scratch, device);
    }
    let packet = &scratch.packet;
    let is_request = packet.begins || packet.proto == Proto::Udp as u8;
    if verdict.code() == PacketVerdict::PASS.code() && is_request && is_cluster_ip(packet) {
        return PacketVerdict::reject(Counter::UnknownPort);
    }
    verdict
}

/// A packet of no flow leaves. A cluster IP as destination means that no Service has the port: a reject tells the
/// client at once, and the packet does not leave for an address without an owner.
#[inline(always)]
pub fn egress_unknown(frame: Frame, scratch: &mut Scratch, device: &Device) -> PacketVerdict {
    let packet = &scratch.packet;
    if !packet.begins && packet.proto != Proto::Udp as u8 {
        return PacketVerdict::PASS;
    }
    if device.flags & DeviceFlags::LEAVING == 0 && is_cluster_ip(packet) {
        return PacketVerdict::reject(Counter::UnknownPort);
    }
    if own::may_be_answered_at_a_frontend(packet) && own::keep_replies(scratch, device) {
        return PacketVerdict::PASS;
    }
    ports::reserve_snat_port(frame, scratch, device)
}

/// Selects a backend.
#[inline(never)]
fn choose(packet: &Packet, origin: Origin, to: &mut Choice) -> PacketVerdict {
    let Some(proto) = Proto::from_number(packet.proto.into()) else {
        return PacketVerdict::PASS;
    };
    let dest = FrontendKey::new(packet.tuple.dst, packet.tuple.dst_port, proto);
    match select(&Kernel, &Sender { packet, origin }, &dest, 0) {
        Verdict::NotService => PacketVerdict::PASS,
        Verdict::Backend(choice) => {
            *to = choice;
            PacketVerdict::FLOW
        }
        Verdict::Refused(service, cause) => {
            stats::refused(service, cause);
            if matches!(cause, Cause::NoEndpoints) {
                return PacketVerdict::reject(cause.counter());
            }
            // Drop silently: an external load balancer must not take a reject for the answer of the Service.
            count(cause.counter());
            PacketVerdict::DROP
        }
    }
}

/// The source address of a new flow.
#[derive(Clone, Copy)]
enum Source {
    /// The client's.
    Keep,
    /// An address of this node.
    Masquerade,
}

/// Creates the entries of a flow to the chosen backend.
///
/// Keeps the source if replies return through this node in any case: the backend or the client is on it. Otherwise
/// masquerades, as for a client that is its own backend, and would reply to itself (hairpin).
#[inline(always)]
fn open(frame: Frame, scratch: &mut Scratch, device: &Device) -> PacketVerdict {
    let origin = if device.flags & DeviceFlags::POD != 0 { Origin::Node } else { Origin::Outside };
    let source = fill(scratch, origin);
    if matches!(source, Source::Keep) {
        if device.flags & DeviceFlags::HOST_ROUTING != 0 && enters_pod(frame, scratch) {
            scratch.flow.flags = FlowFlags::REDIRECT;
        }
    } else if !find_source(frame, scratch) {
        count(Counter::NoRoute);
        return PacketVerdict::DROP;
    }
    let port = match source {
        Source::Keep => SourcePort::Keep,
        Source::Masquerade => SourcePort::Any,
    };
    let verdict = ports::insert_flow(frame, scratch, Hook::Ingress, port);
    if verdict.is_flow() {
        stats::connected(&scratch.choice);
    }
    verdict
}

/// Fills in the flow, but for its source.
#[inline(never)]
fn fill(scratch: &mut Scratch, origin: Origin) -> Source {
    let Scratch { packet, flow, choice, clock, route, .. } = scratch;
    route.reset();
    // SAFETY: read at once; an element that is replaced meanwhile stays until the RCU grace period ends.
    let on_node =
        unsafe { BACKENDS.get(choice.backend) }.is_some_and(|backend| backend.flags & BackendFlags::ON_NODE != 0);
    let hairpin = choice.addr == packet.tuple.src;
    let keep = (on_node || matches!(origin, Origin::Node)) && !hairpin;
    flow.to = packet.tuple;
    flow.to.dst = choice.addr;
    flow.to.dst_port = choice.port;
    flow.service = choice.service;
    flow.backend = choice.backend;
    flow.flags = if keep { FlowFlags::PARTNER_EGRESS } else { FlowFlags::REDIRECT };
    flow.forward = packet.seen;
    flow.reverse = 0;
    flow.used = clock.now();
    flow.hop.forget();
    if keep { Source::Keep } else { Source::Masquerade }
}

/// Sets the source to the masquerade address of the device to the backend, and the next hop; false without a route. As
/// in netfilter, the FIB lookup is for the client's address, and the source is replaced afterwards.
#[inline(never)]
fn find_source(frame: Frame, scratch: &mut Scratch) -> bool {
    let Scratch { packet, flow, clock, route, .. } = scratch;
    if !matches!(route.lookup(frame, packet, &packet.tuple.src, &flow.to), Fib::Device) {
        return false;
    }
    // SAFETY: as above.
    let Some(device) = (unsafe { DEVICES.get(route.ifindex()) }) else {
        return false;
    };
    route.store(&mut flow.hop, packet.l3, clock.now());
    flow.to.src = if packet.v6 { device.snat_v6 } else { device.snat_v4 };
    !flow.to.src.is_unspecified()
}

/// True if packets are redirected into the pod of the backend, which replies by its own link; sets the next hop then.
/// False if the kernel's own routing is to deliver replies with the same tuple to another flow.
#[inline(never)]
fn enters_pod(frame: Frame, scratch: &mut Scratch) -> bool {
    let Scratch { packet, flow, key, partner_key: partner, clock, route, .. } = scratch;
    *partner = partner_key(key, flow);
    if FLOWS.get_ptr(&*partner).is_some() {
        return false;
    }
    if !matches!(route.lookup(frame, packet, &packet.tuple.src, &flow.to), Fib::Device) {
        return false;
    }
    route.store(&mut flow.hop, packet.l3, clock.now());
    // SAFETY: as above.
    unsafe { DEVICES.get(route.ifindex()) }.is_some_and(|device| DeviceFlags::lead_into_a_pod(device.flags))
}
