//! Ports of fragmented datagrams, which only the first fragment carries.

use aya_ebpf::bindings::BPF_ANY;
use lb_common::{FragmentKey, FragmentPorts, Hook, packet::Packet};

use crate::maps::FRAGMENTS;

/// Sets the ports of a later fragment to those of the first; false if that is unknown.
#[inline(never)]
pub fn find_ports(hook: Hook, packet: &mut Packet) -> bool {
    // SAFETY: read at once; an element that is replaced meanwhile stays until the RCU grace period ends.
    let Some(ports) = (unsafe { FRAGMENTS.get(key(packet, hook)) }) else {
        return false;
    };
    packet.tuple.src_port = ports.src_port;
    packet.tuple.dst_port = ports.dst_port;
    true
}

/// Stores the ports of a first fragment for the later ones.
#[inline(never)]
pub fn store_ports(hook: Hook, packet: &Packet) {
    let ports = FragmentPorts { src_port: packet.tuple.src_port, dst_port: packet.tuple.dst_port };
    // If this fails, later fragments pass untranslated, and the datagram is sent again.
    let _stored = FRAGMENTS.insert(key(packet, hook), ports, u64::from(BPF_ANY));
}

/// The key of a fragment's datagram.
#[inline(always)]
pub fn key(packet: &Packet, hook: Hook) -> FragmentKey {
    let (src, dst) = (packet.tuple.src, packet.tuple.dst);
    FragmentKey { src, dst, id: packet.id, proto: packet.proto, hook: hook as u8, _pad: 0 }
}
