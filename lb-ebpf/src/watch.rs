//! Records for `beeline watch`: calls that met a Service, and handshakes of TCP sockets.
//!
//! A reader puts a ring buffer into `WATCH_RING`, and in a cell of `WATCH` the time until which it reads, which it puts
//! off as long as it runs. After a reader that was killed the first program that finds the time over resets the cell.

use core::ffi::c_void;

use aya_ebpf::{
    EbpfContext as _,
    bindings::BPF_RB_NO_WAKEUP,
    helpers::{
        bpf_ktime_get_ns,
        generated::{bpf_get_current_cgroup_id, bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_get_socket_cookie},
    },
    maps::ring_buf::RingBufEntry,
    programs::{SockContext, SockOpsContext},
};
use lb_common::{
    Addr, COMM_LEN, Cause, Choice, FrontendKey, Proto, Reason, WatchCell, WatchKind, WatchRecord, WatchResult,
};

use crate::{
    context::SockAddr,
    globals::SET_RETVAL,
    handshakes::{self, Step, Steps},
    maps::{WATCH, WATCH_RING},
    stats::add,
    tcp_socks::TcpSocket,
};

const EPERM: u32 = 1;

/// The reader looks at the buffer at its own pace: a wake-up costs more than a record.
pub const NO_WAKEUP: u64 = BPF_RB_NO_WAKEUP as u64;

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
    // SAFETY: no precondition.
    let time = unsafe { bpf_ktime_get_ns() };
    let Some(mut entry) = reserve::<WatchRecord>(WatchCell::Sockets, WatchCell::LostCalls, time) else { return };
    let record = entry.as_mut_ptr();
    // SAFETY: the record is room of this type. The helpers are of socket address programs since 5.7, the cookie's since
    // 4.12; the name has this length.
    unsafe {
        *record = WatchRecord {
            time,
            cgroup: bpf_get_current_cgroup_id(),
            pid: (bpf_get_current_pid_tgid() >> 32) as u32,
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
            ..WatchRecord::EMPTY
        };
        if dest.proto == Proto::Tcp as u8 {
            (*record).socket = bpf_get_socket_cookie(ctx.raw().as_ptr());
        }
        bpf_get_current_comm((&raw mut (*record).comm).cast(), COMM_LEN as u32);
    }
    entry.submit(NO_WAKEUP);
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
    // SAFETY: no precondition.
    let time = unsafe { bpf_ktime_get_ns() };
    let Some(mut entry) = reserve::<WatchResult>(WatchCell::Sockets, WatchCell::LostResults, time) else { return };
    entry.write(WatchResult {
        time,
        // SAFETY: a helper of these program types since 4.14 (sock_ops) and 5.6 (sock).
        socket: unsafe { bpf_get_socket_cookie(ctx) },
        kind: kind as u8,
        syns: if syns > 255 { 255 } else { syns as u8 },
        answers: if answers > 255 { 255 } else { answers as u8 },
        _pad: [0; 5],
    });
    entry.submit(NO_WAKEUP);
}

/// Room for a record in the reader's buffer. Without room counts it in `lost`, and without a reader resets `cell`.
#[inline(always)]
pub fn reserve<T: 'static>(cell: WatchCell, lost: WatchCell, now: u64) -> Option<RingBufEntry<T>> {
    let until = WATCH.get_ptr_mut(cell as u32)?;
    // SAFETY: as in `is_open`. A reader that begins at this moment looks at its cell again.
    unsafe {
        if until.read_volatile() < now {
            until.write_volatile(0);
            return None;
        }
    }
    let entry = WATCH_RING.get(0)?.reserve_untyped::<T>(0);
    if entry.is_none()
        && let Some(lost) = WATCH.get_ptr_mut(lost as u32)
    {
        add(lost, 1);
    }
    entry
}
