//! Records of first packets of flows, for `beeline watch --packets`.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use lb_common::{Addr, Choice, WatchCell, WatchKind, WatchRecord, packet::Packet};

use super::{scratch::Scratch, verdict::PacketVerdict};
use crate::watch::{NO_WAKEUP, is_open, reserve};

/// Records a packet of no flow that met a Service.
#[inline(always)]
pub fn first_packet(scratch: &Scratch, verdict: PacketVerdict) {
    if !is_open(WatchCell::Packets) {
        return;
    }
    match verdict.refusal() {
        None if verdict.is_flow() => record(&scratch.packet, &scratch.choice, 0),
        None => {}
        Some(counter) => record(&scratch.packet, &scratch.choice, counter + 1),
    }
}

#[inline(never)]
fn record(packet: &Packet, choice: &Choice, refusal: u32) {
    // SAFETY: no precondition.
    let time = unsafe { bpf_ktime_get_ns() };
    let Some(mut entry) = reserve::<WatchRecord>(WatchCell::Packets, WatchCell::LostCalls, time) else { return };
    let record = entry.write(WatchRecord {
        time,
        dialled: packet.tuple.dst,
        dialled_port: packet.tuple.dst_port,
        client: packet.tuple.src,
        client_port: packet.tuple.src_port,
        proto: packet.proto,
        kind: WatchKind::Packet as u8,
        refusal: refusal as u8,
        ..WatchRecord::EMPTY
    });
    if !WatchRecord::is_of_no_service(refusal as u8) {
        record.service = choice.service;
        record.backend = choice.backend;
        record.backend_addr = if choice.backend == 0 { Addr::from_words([0; 4]) } else { choice.addr };
        record.backend_port = choice.port;
        record.reason = if choice.backend == 0 { 0 } else { choice.reason as u8 };
    }
    entry.submit(NO_WAKEUP);
}
