//! Records for `beeline watch`: calls that met a Service, and handshakes of TCP sockets.
//!
//! A reader opens buffers in `WATCH_EVENTS` and sets a cell of `WATCH`. The kernel removes the buffers with the
//! reader's descriptor of the map, however the reader ends (`perf_event_fd_array_release`, kernel/bpf/arraymap.c); the
//! next program that finds no buffer resets the cell.

use core::{ffi::c_void, mem::size_of};

use aya_ebpf::{
    EbpfContext as _,
    bindings::BPF_F_CURRENT_CPU,
    helpers::{
        bpf_ktime_get_ns,
        generated::{
            bpf_get_current_cgroup_id, bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_get_socket_cookie,
            bpf_perf_event_output,
        },
    },
    programs::{SockContext, SockOpsContext},
};
use lb_common::{Addr, COMM_LEN, Cause, Choice, FrontendKey, Reason, WatchCell, WatchKind, WatchRecord};

use crate::{
    context::SockAddr,
    globals::SET_RETVAL,
    handshakes::{self, Step, Steps},
    maps::{WATCH, WATCH_EVENTS},
    stats::add,
    tcp_socks::TcpSocket,
};

const EPERM: u32 = 1;

/// True if a reader wants records of this kind.
#[inline(always)]
pub fn is_open(cell: WatchCell) -> bool {
    // SAFETY: an element of an array map, which is never freed.
    WATCH.get_ptr(cell as u32).is_some_and(|cell| unsafe { cell.read_volatile() } != 0)
}

/// Records a call that got a backend.
#[inline(always)]
pub fn chosen<const V6: bool>(ctx: &SockAddr<V6>, dest: &FrontendKey, choice: &Choice, kind: WatchKind) {
    if is_open(WatchCell::Sockets) {
        record_call(ctx, dest, choice, kind as u32, 0);
    }
}

/// Records a refused call.
#[inline(always)]
pub fn refused<const V6: bool>(ctx: &SockAddr<V6>, dest: &FrontendKey, service: u32, cause: Cause, kind: u32) {
    if is_open(WatchCell::Sockets) {
        let addr = Addr::from_words([0; 4]);
        let none = Choice { service, backend: 0, addr, port: 0, followed: None, reason: Reason::Random };
        let errno = if SET_RETVAL.load() == 0 { EPERM } else { cause.errno() as u32 };
        record_call(ctx, dest, &none, kind, (cause.counter() as u32 + 1) | errno << 8);
    }
}

/// `refusal` is 0 if the call is not refused, else as in the record, with the errno above it.
#[inline(never)]
fn record_call<const V6: bool>(ctx: &SockAddr<V6>, dest: &FrontendKey, choice: &Choice, kind: u32, refusal: u32) {
    let context = ctx.raw().as_ptr();
    let mut record = WatchRecord {
        dialled: dest.addr,
        backend_addr: choice.addr,
        service: choice.service,
        backend: choice.backend,
        dialled_port: dest.port,
        backend_port: choice.port,
        proto: dest.proto,
        kind: kind as u8,
        refusal: refusal as u8,
        errno: refusal >> 8,
        reason: if refusal == 0 { choice.reason as u8 } else { 0 },
        netns: ctx.netns(),
        ..WatchRecord::EMPTY
    };
    // SAFETY: helpers of socket address programs since 5.7, the cookie's since 4.12; the name has this length.
    unsafe {
        record.time = bpf_ktime_get_ns();
        record.socket = bpf_get_socket_cookie(context);
        record.cgroup = bpf_get_current_cgroup_id();
        record.pid = (bpf_get_current_pid_tgid() >> 32) as u32;
        bpf_get_current_comm((&raw mut record.comm).cast(), COMM_LEN as u32);
    }
    write(context, WatchCell::Sockets, WatchCell::LostCalls, &record);
}

/// Records that the application closes a TCP socket during its handshake with a backend.
#[inline(always)]
pub fn given_up(ctx: &SockContext, socket: &TcpSocket) {
    if is_open(WatchCell::Sockets) && socket.translation().is_some() {
        record_handshake(ctx.as_ptr(), WatchKind::GivenUp as u32, 0, 0);
    }
}

/// A TCP socket of the cgroup: records the result of the handshake with a backend.
#[inline(always)]
pub fn sock_ops(ctx: &SockOpsContext) {
    let kind = match handshakes::step(ctx) {
        Some(Step::Begins) if TcpSocket::of(ctx.as_ptr()).is_some_and(|socket| socket.translation().is_some()) => {
            return handshakes::follow(ctx, Steps::Result);
        }
        Some(Step::Established) => WatchKind::Established,
        Some(Step::Failed) => WatchKind::Failed,
        _ => return,
    };
    let (syns, answers) = handshakes::segments(ctx);
    record_handshake(ctx.as_ptr(), kind as u32, syns, answers);
}

#[inline(never)]
fn record_handshake(ctx: *mut c_void, kind: u32, syns: u32, answers: u32) {
    let mut record = WatchRecord {
        kind: kind as u8,
        syns: if syns > 255 { 255 } else { syns as u8 },
        answers: if answers > 255 { 255 } else { answers as u8 },
        ..WatchRecord::EMPTY
    };
    // SAFETY: helpers of these program types since 4.14 (sock_ops) and 5.6 (sock).
    unsafe {
        record.time = bpf_ktime_get_ns();
        record.socket = bpf_get_socket_cookie(ctx);
    }
    write(ctx, WatchCell::Sockets, WatchCell::LostResults, &record);
}

/// Writes a record to this CPU's buffer, or counts it in `lost`, and resets `cell` if there is no buffer.
#[inline(always)]
pub fn write(ctx: *mut c_void, cell: WatchCell, lost: WatchCell, record: &WatchRecord) {
    const ENOENT: i64 = -2;
    // SAFETY: the record has this size; all of these program types have the helper since 5.7.
    let result = unsafe {
        bpf_perf_event_output(
            ctx,
            (&raw const WATCH_EVENTS).cast_mut().cast(),
            BPF_F_CURRENT_CPU,
            (&raw const *record).cast_mut().cast(),
            size_of::<WatchRecord>() as u64,
        )
    };
    if result == 0 {
        return;
    }
    if let Some(lost) = WATCH.get_ptr_mut(lost as u32) {
        add(lost, 1);
    }
    if result == ENOENT
        && let Some(cell) = WATCH.get_ptr_mut(cell as u32)
    {
        // SAFETY: as in `is_open`. A reader that begins at this moment sets its cell again.
        unsafe { cell.write_volatile(0) };
    }
}
