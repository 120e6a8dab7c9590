//! Connections that the node began, or netfilter's masquerade for a pod: their packets are never a Service's, whatever
//! port they have.

use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use lb_common::{
    Device, Flow, FlowFlags, FrontendKey, Hop, Kind, Proto, Tables as _, flow::partner_key, is_at_address,
    packet::Packet,
};

use super::{
    flow, ports,
    route::{Fib, Route},
    scratch::Scratch,
    skb::Frame,
};
use crate::{maps::FLOWS, tables::Kernel};

/// The owner of an incoming packet of no known flow, by its place in a connection.
#[derive(Clone, Copy)]
#[repr(u32)]
pub enum MidConnection {
    /// The packet may be a Service's: it begins a connection, or its destination is a frontend.
    OfService,
    /// In the middle of a connection of no Service. Its destination may be a VIP.
    AtVip,
    /// In the middle of a connection of no Service, to no VIP of one.
    Elsewhere,
}

/// Tells if an incoming packet of no known flow, in the middle of a connection, is of no Service: its destination is no
/// frontend, or an address of this node. There it belongs to a connection that the node began, as a SYN-ACK to a
/// masqueraded port does; only a packet that can begin a connection begins a flow.
#[inline(never)]
pub fn mid_connection(frame: Frame, packet: &Packet, route: &mut Route) -> MidConnection {
    let Some(proto) = Proto::from_number(packet.proto.into()) else {
        return MidConnection::AtVip;
    };
    if packet.begins || packet.proto == Proto::Udp as u8 {
        return MidConnection::OfService;
    }
    let (src, dst) = (&packet.tuple.src, packet.tuple.dst);
    let dest = FrontendKey::new(dst, packet.tuple.dst_port, proto);
    let may_be_vip = Kernel.may_have(&dest.address());
    // Without a frontend of the address only a NodePort remains, which is served at addresses of the node.
    if is_at_address(&Kernel, &dest, may_be_vip)
        && Kernel.node_addr(&dst).is_none()
        && !matches!(route.lookup(frame, packet, src, &packet.tuple), Fib::Local)
    {
        MidConnection::OfService
    } else if may_be_vip {
        MidConnection::AtVip
    } else {
        MidConnection::Elsewhere
    }
}

/// True if a packet is for a process of the node: see [`crate::own`]. The kernel delivers it. The device
/// does not matter: pods may be behind a bridge.
#[inline(never)]
pub fn is_for_listener(frame: Frame, packet: &Packet) -> bool {
    if !crate::own::is_marked(packet.tuple.dst_port) {
        return false;
    }
    // The key of an address is the same for each protocol.
    let dest = FrontendKey::new(packet.tuple.dst, packet.tuple.dst_port, Proto::Udp);
    crate::own::is_at_node(&dest) && ports::has_listener(frame, packet)
}

/// True if a datagram with this source would get replies that are requests to a frontend, by the first look: see
/// [`FrontendKey::bit`].
#[inline(always)]
pub fn may_be_answered_at_a_frontend(packet: &Packet) -> bool {
    packet.proto == Proto::Udp as u8 && Kernel.may_have(&source(packet))
}

#[inline(always)]
fn source(packet: &Packet) -> FrontendKey {
    FrontendKey::new(packet.tuple.src, packet.tuple.src_port, Proto::Udp)
}

/// Creates the entries of a datagram's flow that let replies pass to the node; false if its source is no frontend at an
/// address of the node, or if there is a flow for the replies. Without room the datagram passes all the same.
#[inline(never)]
pub fn keep_replies(scratch: &mut Scratch, device: &Device) -> bool {
    let Scratch { packet, key, flow, partner, partner_key: replies, clock, .. } = scratch;
    let source = source(packet);
    let masquerade = if packet.v6 { &device.snat_v6 } else { &device.snat_v4 };
    if source.addr != *masquerade && Kernel.node_addr(&source.addr).is_none() {
        return false;
    }
    match Kernel.frontend(&source) {
        // The answer of a process that listens at a cluster IP: the client's next datagram may be the Service's.
        Some(frontend) if frontend.kind == Kind::ClusterIp as u8 => return false,
        None if Kernel.frontend(&source.node_port()).is_none() => return false,
        _ => {}
    }
    let (to, used, hop) = (packet.tuple, clock.now(), Hop::UNKNOWN);
    *flow = Flow { to, service: 0, backend: 0, flags: FlowFlags::OWN, forward: packet.seen, reverse: 0, used, hop };
    *partner = *flow;
    partner.to = packet.tuple.reversed();
    partner.flags = FlowFlags::OWN | FlowFlags::REVERSE | FlowFlags::PARTNER_EGRESS;
    *replies = partner_key(key, flow);
    if flow::insert(&*replies, &*partner, u64::from(BPF_NOEXIST)).is_err() {
        return false;
    }
    if flow::insert(&*key, &*flow, u64::from(BPF_ANY)).is_err() {
        let _existed = FLOWS.remove(&*replies);
    }
    true
}
