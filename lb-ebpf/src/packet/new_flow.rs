//! Packets of no known flow: a new flow of a Service, a rejection, or nothing.

use lb_common::{
    BackendFlags, Cause, Choice, Counter, Device, DeviceFlags, Flow, FlowFlags, FrontendKey, Hook, Origin, Proto,
    SlowPath, Tables, Verdict, first_look,
    flow::{Seen, Serial, partner_key},
    is_local_outside,
    packet::Packet,
    second_look,
};

use super::{
    opening,
    own::{self, MidConnection},
    ports::{self, SourcePort},
    route::Fib,
    scratch::Scratch,
    sender::Sender,
    skb::{ETHERNET, Frame},
    verdict::PacketVerdict,
    vip::{self, FirstLook},
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
    match own::mid_connection(frame, &scratch.packet, &mut scratch.route) {
        MidConnection::OfService => {}
        MidConnection::AtVip => return vip::unknown_port(frame, scratch, FirstLook::Set),
        MidConnection::Elsewhere => return vip::unknown_port(frame, scratch, FirstLook::Clear),
    }
    let origin = if device.flags & DeviceFlags::POD != 0 { Origin::Node } else { Origin::Outside };
    let chosen = choose(&scratch.packet, origin, &mut scratch.choice);
    if matches!(chosen, Chosen::NoService | Chosen::NoPort) {
        let look = if matches!(chosen, Chosen::NoPort) { FirstLook::Set } else { FirstLook::Clear };
        return vip::unknown_port(frame, scratch, look);
    }
    // Not in `choose`: the frames of callers and callees share 512 bytes of stack.
    if own::is_for_listener(frame, &scratch.packet) {
        return PacketVerdict::PASS;
    }
    let service = scratch.choice.service;
    match chosen {
        Chosen::NoService | Chosen::NoPort | Chosen::Backend => open(frame, scratch, device),
        Chosen::NoEndpoints => refuse(service, Cause::NoEndpoints),
        Chosen::NoLocalEndpoints => refuse(service, Cause::NoLocalEndpoints),
        Chosen::SourceRange => refuse(service, Cause::SourceRange),
    }
}

/// A packet of no flow leaves. A cluster IP as destination means that no Service has the port, or that the packet came
/// from a pod without a socket: it does not leave for an address without an owner.
#[inline(always)]
pub fn egress_unknown(frame: Frame, scratch: &mut Scratch, device: &Device) -> PacketVerdict {
    let packet = &scratch.packet;
    if !packet.begins && packet.proto != Proto::Udp as u8 {
        return PacketVerdict::PASS;
    }
    if device.flags & DeviceFlags::LEAVING == 0 {
        let verdict = vip::leaves(frame, scratch);
        if verdict.code() != PacketVerdict::PASS.code() {
            return verdict;
        }
    }
    let packet = &scratch.packet;
    if own::may_be_answered_at_a_frontend(packet) && own::keep_replies(scratch, device) {
        return PacketVerdict::PASS;
    }
    ports::reserve_snat_port(frame, scratch, device)
}

/// A [`Verdict`] in one register: its data is in `Scratch`.
#[derive(Clone, Copy)]
#[repr(u32)]
enum Chosen {
    NoService,
    NoPort,
    Backend,
    NoEndpoints,
    NoLocalEndpoints,
    SourceRange,
}

impl Chosen {
    /// Takes over a verdict; `to` gets its data.
    #[inline(always)]
    fn take(verdict: Verdict, to: &mut Choice) -> Self {
        match verdict {
            Verdict::NotService => Self::NoService,
            Verdict::NoPort => Self::NoPort,
            Verdict::Backend(choice) => {
                *to = choice;
                Self::Backend
            }
            Verdict::Refused(service, cause) => {
                (to.service, to.backend) = (service, 0);
                match cause {
                    Cause::NoLocalEndpoints => Self::NoLocalEndpoints,
                    Cause::SourceRange => Self::SourceRange,
                    // The others are never of a service port.
                    Cause::NoEndpoints | Cause::UnknownPort | Cause::UnknownClusterIp => Self::NoEndpoints,
                }
            }
        }
    }
}

/// Selects a backend. In two steps, as `sock::decide`.
#[inline(always)]
fn choose(packet: &Packet, origin: Origin, to: &mut Choice) -> Chosen {
    match look(packet, origin, to) {
        Chosen::NoEndpoints | Chosen::NoLocalEndpoints | Chosen::SourceRange => look_again(packet, origin, to),
        chosen => chosen,
    }
}

/// The first step. Not inlined: the frames of callers and callees share 512 bytes of stack.
#[inline(never)]
fn look(packet: &Packet, origin: Origin, to: &mut Choice) -> Chosen {
    let Some(dest) = dest(packet) else { return Chosen::NoService };
    Chosen::take(first_look(&Kernel, &Sender { packet, origin }, &dest, 0), to)
}

/// The second step, after a refusal. Not inlined: see [`look`].
#[inline(never)]
fn look_again(packet: &Packet, origin: Origin, to: &mut Choice) -> Chosen {
    let Some(dest) = dest(packet) else { return Chosen::NoService };
    Chosen::take(second_look(&Kernel, &Sender { packet, origin }, &dest), to)
}

#[inline(always)]
fn dest(packet: &Packet) -> Option<FrontendKey> {
    let proto = Proto::from_number(packet.proto.into())?;
    Some(FrontendKey::new(packet.tuple.dst, packet.tuple.dst_port, proto))
}

/// Refuses a packet to a service port.
#[inline(never)]
fn refuse(service: u32, cause: Cause) -> PacketVerdict {
    stats::refused(service, cause);
    if matches!(cause, Cause::NoEndpoints) {
        return PacketVerdict::reject(cause.counter());
    }
    // Drop silently: an external load balancer must not take a reject for the answer of the Service.
    count(cause.counter());
    PacketVerdict::dropped(cause.counter())
}

/// The source address of a new flow.
#[derive(Clone, Copy)]
enum Source {
    /// The client's.
    Keep,
    /// An address of this node.
    Masquerade,
    /// An address of this node, which netfilter chooses: the kernel forwards the packets.
    ByNetfilter(SlowPath),
    /// None: there is no route to the backend, or no address to masquerade with.
    Unknown,
}

/// Creates the entries of a flow to the chosen backend.
#[inline(always)]
fn open(frame: Frame, scratch: &mut Scratch, device: &Device) -> PacketVerdict {
    let origin = if device.flags & DeviceFlags::POD != 0 { Origin::Node } else { Origin::Outside };
    fill(scratch);
    let port = match find_source(frame, scratch, origin, device.flags) {
        Source::Keep => {
            scratch.flow.flags = FlowFlags::PARTNER_EGRESS;
            if device.flags & DeviceFlags::HOST_ROUTING != 0 && enters_pod(frame, scratch) {
                scratch.flow.flags = FlowFlags::REDIRECT;
            }
            SourcePort::KEEP
        }
        Source::Masquerade => SourcePort::ANY,
        Source::ByNetfilter(reason) => {
            scratch.flow.flags = FlowFlags::PARTNER_EGRESS | reason.flags();
            SourcePort::KEEP
        }
        Source::Unknown => {
            count(Counter::NoRoute);
            return PacketVerdict::dropped(Counter::NoRoute);
        }
    };
    let verdict = ports::insert_flow(frame, scratch, Hook::Ingress, port.joined(scratch.packet.tuple.src_port));
    if verdict.is_flow() {
        opening::push(scratch);
        stats::connected(&scratch.choice);
    }
    verdict
}

/// Fills in the flow, but for a masquerade address.
#[inline(never)]
fn fill(scratch: &mut Scratch) {
    let Scratch { packet, flow, choice, clock, route, .. } = scratch;
    route.reset();
    flow.to = packet.tuple;
    flow.to.dst = choice.addr;
    flow.to.dst_port = choice.port;
    flow.service = choice.service;
    flow.backend = choice.backend;
    flow.flags = FlowFlags::REDIRECT;
    // A datagram begins no connection.
    let handshake = if packet.proto == Proto::Udp as u8 { 0 } else { Seen::HANDSHAKE };
    flow.forward = packet.seen | handshake;
    flow.reverse = 0;
    flow.used = Serial::note(packet.proto, 0, clock.now(), packet.serial);
    flow.hop.forget();
}

/// Decides about the source, and sets the masquerade address and the next hop.
///
/// Keeps the client's address if replies return through this node in any case:
/// - the client is a pod of this node;
/// - the backend is this node itself, or a pod behind a link of its own: the routes say so, with or without `nodeName`;
/// - the endpoint's `nodeName` names this node: a pod behind a bridge, whose gateway is the node. Replies to a client
///   on the same bridge would not pass the node. Nor would those of a pod's interface on another network (SR-IOV):
///   there the client's address is kept only if the traffic policy is Local.
///
/// Otherwise masquerades with the address of the device to the backend, where replies enter by the device's programs.
/// This includes containers behind a bridge such as docker0, without `nodeName`: no route tells them from hosts on a
/// directly connected network, whose gateway is another router. Also masquerades for a client that is its own backend,
/// and would reply to itself (hairpin).
///
/// Netfilter itself masquerades flows on the slow path (see [`SlowPath`]): the kernel forwards their packets with the
/// client's address, and everything that applies to such packets applies.
///
/// With [`DeviceFlags::MASQUERADE`], netfilter masquerades flows that would keep the client's address too, as it does
/// for kube-proxy, unless the traffic policy is Local, or the backend is this node itself.
///
/// As in netfilter, the FIB lookup is for the client's address, and the source is replaced afterwards.
#[inline(never)]
fn find_source(frame: Frame, scratch: &mut Scratch, origin: Origin, entered_by: u32) -> Source {
    let Scratch { packet, flow, choice, clock, route, .. } = scratch;
    let is_hairpin = choice.addr == packet.tuple.src;
    let kept = |packet: &Packet| {
        if entered_by & DeviceFlags::MASQUERADE != 0 && !preserves_client(packet) {
            Source::ByNetfilter(SlowPath::Policy)
        } else {
            Source::Keep
        }
    };
    if matches!(origin, Origin::Node) && !is_hairpin {
        return Source::Keep;
    }
    // SAFETY: read at once; an element that is replaced meanwhile stays until the RCU grace period ends.
    let on_node = !is_hairpin
        && unsafe { BACKENDS.get(choice.backend) }.is_some_and(|backend| backend.flags & BackendFlags::ON_NODE != 0);
    // The kernel's own routing may know more than the FIB lookup.
    let otherwise = if on_node { kept(packet) } else { Source::Unknown };
    match route.lookup(frame, packet, &packet.tuple.src, &flow.to) {
        Fib::Device => {}
        Fib::Local | Fib::Unsupported if is_own(frame, packet, flow) => return Source::Keep,
        Fib::Encap if !on_node => return Source::ByNetfilter(SlowPath::Encap),
        // There may be a route for packets with a mark.
        _ if !on_node && entered_by & DeviceFlags::MARKS != 0 => return Source::ByNetfilter(SlowPath::Marks),
        _ => return otherwise,
    }
    // SAFETY: as above.
    let Some(device) = (unsafe { DEVICES.get(route.ifindex()) }) else {
        return otherwise;
    };
    const PASSES_REPLIES: u32 = DeviceFlags::POD | DeviceFlags::NO_PROGRAMS;
    let is_behind_node = on_node
        && route.ifindex() != frame.ifindex()
        && (device.flags & DeviceFlags::BRIDGE != 0 || preserves_client(packet));
    if !is_hairpin && (device.flags & PASSES_REPLIES != 0 || is_behind_node) {
        return kept(packet);
    }
    if let Some(reason) = SlowPath::of_device(device.flags) {
        return Source::ByNetfilter(reason);
    }
    if packet.l3 != ETHERNET {
        return Source::ByNetfilter(SlowPath::NoEthernet);
    }
    flow.to.src = if packet.v6 { device.snat_v6 } else { device.snat_v4 };
    if device.flags & DeviceFlags::SEVERAL_SOURCES != 0 {
        route.find_source(frame, packet, &mut flow.to);
    }
    route.store(&mut flow.hop, packet.l3, clock.now());
    if flow.to.src.is_unspecified() { Source::Unknown } else { Source::Masquerade }
}

/// As [`is_local_outside`], for the frontend of a packet.
#[inline(never)]
fn preserves_client(packet: &Packet) -> bool {
    let Some(proto) = Proto::from_number(packet.proto.into()) else {
        return false;
    };
    is_local_outside(&Kernel, &FrontendKey::new(packet.tuple.dst, packet.tuple.dst_port, proto))
}

/// True if the backend's address belongs to this node. The FIB lookup has the same result for an own address and for
/// one without a route, and no result where the device does not forward: an own address serves NodePorts, or a socket
/// listens there.
#[inline(never)]
fn is_own(frame: Frame, packet: &Packet, flow: &Flow) -> bool {
    Kernel.node_addr(&flow.to.dst).is_some() || ports::has_local_socket(frame, packet, &flow.to.reversed())
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
    if !route.is_known() && !matches!(route.lookup(frame, packet, &packet.tuple.src, &flow.to), Fib::Device) {
        return false;
    }
    route.store(&mut flow.hop, packet.l3, clock.now());
    // SAFETY: as above.
    unsafe { DEVICES.get(route.ifindex()) }.is_some_and(|device| DeviceFlags::lead_into_a_pod(device.flags))
}
