//! The first packet of a flow.

use lb_common::{
    BackendFlags, Cause, Choice, Counter, Device, DeviceFlags, FlowFlags, FrontendKey, Hook, Proto, Verdict,
    flow::partner_key, packet::Packet, select,
};

use super::{
    Scratch,
    fate::Fate,
    is_cluster_ip,
    ports::{self, Wish},
    route::Way,
    sender::Sender,
    skb::Frame,
};
use crate::{
    maps::{BACKENDS, DEVICES, FLOWS, Kernel, count},
    stats,
};

/// A packet of no flow comes in: a Service answers it, or it goes on as it is.
#[inline(always)]
pub fn begin(frame: Frame, scratch: &mut Scratch, device: &Device) -> Fate {
    if device.flags & (DeviceFlags::LEAVING | DeviceFlags::OFF) != 0
        || (device.flags & DeviceFlags::SETTLING != 0 && !scratch.packet.begins)
    {
        return Fate::PASS;
    }
    let pod = device.flags & DeviceFlags::POD != 0;
    let chosen = choose(&scratch.packet, !pod, &mut scratch.choice);
    if chosen.is_flow() {
        return open(frame, scratch, device);
    }
    let packet = &scratch.packet;
    let asks = packet.begins || packet.proto == Proto::Udp as u8;
    if chosen.code() == Fate::PASS.code() && asks && is_cluster_ip(packet) {
        return Fate::reject(Counter::UnknownPort);
    }
    chosen
}

/// Asks `select` for a backend.
#[inline(never)]
fn choose(packet: &Packet, outside: bool, to: &mut Choice) -> Fate {
    let Some(proto) = Proto::from_number(packet.proto.into()) else {
        return Fate::PASS;
    };
    let dest = FrontendKey::new(packet.tuple.dst, packet.tuple.dst_port, proto);
    match select(&Kernel, &Sender { packet, outside }, &dest, 0) {
        Verdict::NotService => Fate::PASS,
        Verdict::Backend(choice) => {
            *to = choice;
            Fate::FLOW
        }
        Verdict::Refused(service, cause) => {
            stats::refused(service, cause);
            if matches!(cause, Cause::NoEndpoints) {
                return Fate::reject(cause.counter());
            }
            // Whoever balances between nodes shall not take this for the Service's answer.
            count(cause.counter());
            Fate::DROP
        }
    }
}

/// Makes the entries of a flow to the backend that was chosen.
///
/// Its source is kept where the answer comes by here in any case: the backend or the client is on this node. Otherwise an
/// address of this node takes its place, and the same where a client is its own backend, and would answer itself.
#[inline(always)]
fn open(frame: Frame, scratch: &mut Scratch, device: &Device) -> Fate {
    let keep = fill(scratch, device.flags & DeviceFlags::POD != 0);
    if keep {
        if device.flags & DeviceFlags::HOST_ROUTING != 0 && is_to_enter(frame, scratch) {
            scratch.flow.flags = FlowFlags::REDIRECT;
        }
    } else if !find_source(frame, scratch) {
        count(Counter::NoRoute);
        return Fate::DROP;
    }
    let wish = if keep { Wish::Same } else { Wish::Any };
    let fate = ports::claim(frame, scratch, Hook::Ingress, wish);
    if fate.is_flow() {
        stats::connected(&scratch.choice);
    }
    fate
}

/// Whether the source is kept; and all of the flow but for its source.
#[inline(never)]
fn fill(scratch: &mut Scratch, pod: bool) -> bool {
    let Scratch { packet, flow, choice, clock, route, .. } = scratch;
    route.forget();
    // SAFETY: read at once; an element that is replaced meanwhile stays until the RCU grace period ends.
    let on_node =
        unsafe { BACKENDS.get(choice.backend) }.is_some_and(|backend| backend.flags & BackendFlags::ON_NODE != 0);
    let hairpin = choice.addr == packet.tuple.src;
    let keep = (on_node || pod) && !hairpin;
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
    keep
}

/// The address of this node from which a backend elsewhere is reached becomes the source, and the way there is known. As
/// netfilter does it, the routes are asked about the client, and its source is replaced on the way that they name.
#[inline(never)]
fn find_source(frame: Frame, scratch: &mut Scratch) -> bool {
    let Scratch { packet, flow, clock, route, .. } = scratch;
    if !matches!(route.find(frame, packet, &packet.tuple.src, &flow.to), Way::Device) {
        return false;
    }
    // SAFETY: as above.
    let Some(device) = (unsafe { DEVICES.get(route.ifindex()) }) else {
        return false;
    };
    route.keep(&mut flow.hop, packet.l3, clock.now());
    flow.to.src = if packet.v6 { device.snat_v6 } else { device.snat_v4 };
    !flow.to.src.is_unspecified()
}

/// Whether the backend is a pod that packets are put into at once, and answers by its own link; then the way there is known.
/// Not where answers that look the same are awaited from the kernel's routing.
#[inline(never)]
fn is_to_enter(frame: Frame, scratch: &mut Scratch) -> bool {
    let Scratch { packet, flow, key, back_key, clock, route, .. } = scratch;
    *back_key = partner_key(key, flow);
    if FLOWS.get_ptr(&*back_key).is_some() {
        return false;
    }
    if !matches!(route.find(frame, packet, &packet.tuple.src, &flow.to), Way::Device) {
        return false;
    }
    route.keep(&mut flow.hop, packet.l3, clock.now());
    // SAFETY: as above.
    unsafe { DEVICES.get(route.ifindex()) }.is_some_and(|device| DeviceFlags::lead_into_a_pod(device.flags))
}
