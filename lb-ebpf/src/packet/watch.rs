//! Records of first packets of flows, for `beeline watch --packets`.

use core::ffi::c_void;

use aya_ebpf::helpers::bpf_ktime_get_ns;
use lb_common::{Addr, Choice, WatchCell, WatchKind, WatchRecord, packet::Packet};

use super::{scratch::Scratch, skb::Frame, verdict::PacketVerdict};
use crate::watch::{is_open, write};

/// Records a packet of no flow that met a Service.
#[inline(always)]
pub fn first_packet(frame: Frame, scratch: &Scratch, verdict: PacketVerdict) {
    if !is_open(WatchCell::Packets) {
        return;
    }
    match verdict.refusal() {
        None if verdict.is_flow() => record(frame.raw(), &scratch.packet, &scratch.choice, 0),
        None => {}
        Some(counter) => record(frame.raw(), &scratch.packet, &scratch.choice, counter + 1),
    }
}

#[inline(never)]
fn record(context: *mut c_void, packet: &Packet, choice: &Choice, refusal: u32) {
    let mut record = WatchRecord {
        dialled: packet.tuple.dst,
        dialled_port: packet.tuple.dst_port,
        client: packet.tuple.src,
        client_port: packet.tuple.src_port,
        proto: packet.proto,
        kind: WatchKind::Packet as u8,
        refusal: refusal as u8,
        ..WatchRecord::EMPTY
    };
    if !WatchRecord::is_of_no_service(refusal as u8) {
        record.service = choice.service;
        record.backend = choice.backend;
        record.backend_addr = if choice.backend == 0 { Addr::from_words([0; 4]) } else { choice.addr };
        record.backend_port = choice.port;
        record.reason = if choice.backend == 0 { 0 } else { choice.reason as u8 };
    }
    // SAFETY: no precondition.
    record.time = unsafe { bpf_ktime_get_ns() };
    write(context, WatchCell::Packets, WatchCell::LostCalls, &record);
}
