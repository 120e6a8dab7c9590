//! Ejection by results (`beeline.io/eject`): what clients see of backends, from the handshakes of their TCP sockets and
//! the errors of their UDP sockets.
//!
//! A connect to a service port with ejection leaves an [`Attempt`] in the socket's storage. The result of TCP comes
//! from the hook `sock_ops`, to which the agent attaches [`sock_ops`] while a Service asks for ejection, or from the
//! close of a socket that gave up. The result of UDP is an ICMP error, which [`socket_error`] sees at a tracepoint, or
//! a close without an error.

use core::ffi::c_void;

use aya_ebpf::{
    EbpfContext as _,
    bindings::{BPF_NOEXIST, BPF_SK_STORAGE_GET_F_CREATE},
    helpers::{
        bpf_ktime_get_ns,
        generated::{bpf_sk_storage_delete, bpf_sk_storage_get, bpf_spin_lock, bpf_spin_unlock},
    },
    programs::{BtfTracePointContext, SockContext, SockOpsContext},
};
use lb_common::{
    Attempt, BackendFlags, CLOSE_GRACE, Caller as _, Counter, EJECTION_PLACES, EjectStats, EjectStatsKey,
    EjectionPlace, Ejections, Followed, State as _,
    errno::{ECONNREFUSED, EHOSTUNREACH},
};

use crate::{
    context::SockAddr,
    counters::count,
    globals::SK_ERR,
    handshakes::{self, Step, Steps},
    maps::{ATTEMPTS, BACKENDS, EJECT_STATS, EJECTIONS, SERVICES},
    stats::add,
    tables::Kernel,
    udp_socks::UdpSocket,
};

/// Remembers that the socket of a connect tries a backend, which may be a trial.
#[inline(never)]
pub fn follow<const V6: bool>(ctx: &SockAddr<V6>, service: u32, backend: u32, followed: Followed) -> u32 {
    let Some(client) = ctx.ejection_key(service) else { return 0 };
    let now = ctx.now();
    if followed == Followed::Trial {
        Kernel.begin_trial(&client, backend, now);
    }
    if let Some(attempt) = attempt(ctx.sock(), BPF_SK_STORAGE_GET_F_CREATE) {
        *attempt = Attempt { client, began: now, backend, counted: 0 };
    }
    0
}

/// A socket that closes in the middle of a handshake: a failure, unless the client was hasty.
#[inline(never)]
pub fn given_up(ctx: &SockContext) -> u32 {
    // The context of this hook is the socket.
    if let Some(attempt) = attempt(ctx.as_ptr(), 0) {
        // SAFETY: no precondition.
        let now = unsafe { bpf_ktime_get_ns() };
        if now.saturating_sub(attempt.began) >= CLOSE_GRACE {
            failed(attempt, now);
        }
        // The close changes the state of the socket, which tells nothing more.
        attempt.counted = 1;
    }
    0
}

/// An error of any socket of the machine, about to be told to its application (tracepoint `inet_sk_error_report`): a
/// failure if it is an ICMP error of the backend to which a UDP socket is connected.
///
/// A port without a server and an address without a host count. Other errors are the client's own: its routes, its
/// packet filter, its datagram's size, and reports without an error, as of time stamps.
#[inline(always)]
pub fn socket_error(ctx: &BtfTracePointContext) {
    let socket: *mut c_void = ctx.arg(0);
    // SAFETY: the argument is a `struct sock`, in which the agent has found the offset; a read of a bad address by a
    // program of this type yields 0.
    let error = unsafe { socket.byte_add(SK_ERR.load() as usize).cast::<i32>().read_volatile() };
    if error != ECONNREFUSED && error != EHOSTUNREACH {
        return;
    }
    // TCP sockets have attempts as well, and no entry of UDP.
    if let Some(entries) = UdpSocket::at(socket)
        && entries.may_have_entries()
        && let Some(attempt) = attempt(socket, 0)
        && entries.has_backend(attempt.backend)
    {
        // SAFETY: no precondition.
        let now = unsafe { bpf_ktime_get_ns() };
        failed(attempt, now);
    }
}

/// A connected UDP socket that closes, and has rev-nat entries: a success unless it heard an error.
#[inline(never)]
pub fn closed(ctx: &SockContext, entries: &UdpSocket) -> u32 {
    // The context of this hook is the socket.
    if let Some(attempt) = attempt(ctx.as_ptr(), 0)
        && attempt.counted == 0
        && entries.has_backend(attempt.backend)
    {
        // SAFETY: no precondition.
        let now = unsafe { bpf_ktime_get_ns() };
        succeeded(attempt, now);
    }
    0
}

/// A TCP socket of the cgroup: follows its handshake if it has an attempt.
#[inline(always)]
pub fn sock_ops(ctx: &SockOpsContext) {
    let Some(step) = handshakes::step(ctx) else { return };
    let socket = socket(ctx);
    if socket.is_null() {
        return;
    }
    let Some(attempt) = attempt(socket, 0) else { return };
    // SAFETY: no precondition.
    let now = unsafe { bpf_ktime_get_ns() };
    match step {
        Step::Begins => return handshakes::follow(ctx, Steps::All),
        Step::Unanswered => {
            failed(attempt, now);
            return;
        }
        Step::Established => succeeded(attempt, now),
        Step::Failed if handshakes::has_sent(ctx) => {
            failed(attempt, now);
        }
        Step::Failed => {}
    }
    // SAFETY: as in `attempt`.
    unsafe { bpf_sk_storage_delete((&raw const ATTEMPTS).cast_mut().cast(), socket) };
}

/// The socket of the context; null if it is no full one, as that of a server's handshake.
#[inline(always)]
fn socket(ctx: &SockOpsContext) -> *mut c_void {
    // SAFETY: as in `sock_ops`; the field is readable since 5.3.
    unsafe { (*ctx.ops).__bindgen_anon_2.sk.cast() }
}

/// The attempt in a socket's storage.
#[inline(always)]
fn attempt(socket: *mut c_void, flags: u32) -> Option<&'static mut Attempt> {
    // SAFETY: the storage lives as long as the socket, which outlives this run; the kernel holds the lock of the socket
    // during each of these calls, or runs the last one. It does not for an ICMP error, beside which a UDP socket may
    // connect again: the failure then counts for the wrong backend of its client. The helper takes the sockets of all
    // of these contexts (sock_release: 5.9, tracepoints: 5.11).
    unsafe {
        let map = (&raw const ATTEMPTS).cast_mut().cast();
        bpf_sk_storage_get(map, socket, core::ptr::null_mut(), flags.into()).cast::<Attempt>().as_mut()
    }
}

/// In read-only data, since the stack is short.
static NEW: Ejections = Ejections::EMPTY;

/// Counts a failed connect, once.
#[inline(never)]
fn failed(attempt: &mut Attempt, now: u64) -> u32 {
    if attempt.counted != 0 || attempt.backend == 0 {
        return 0;
    }
    attempt.counted = 1;
    let (client, backend) = (attempt.client, attempt.backend);
    // SAFETY: read at once; an element that is replaced meanwhile stays until the RCU grace period ends.
    let Some(policy) = unsafe { SERVICES.get(client.service) }.map(|service| service.eject) else { return 0 };
    if !policy.is_on() {
        return 0;
    }
    let mut seen = EJECTIONS.get_ptr_mut(client);
    if seen.is_none() {
        let new: &Ejections = &NEW;
        // The first of two concurrent insertions succeeds.
        let _inserted = EJECTIONS.insert(client, new, u64::from(BPF_NOEXIST));
        seen = EJECTIONS.get_ptr_mut(client);
    }
    let Some(seen) = seen else {
        count(Counter::EjectionsFull);
        return 0;
    };
    forget_gone(seen);
    // SAFETY: our map value, changed under its lock only.
    let ejects = unsafe {
        bpf_spin_lock((&raw mut (*seen).lock).cast());
        let ejects = (*seen).fail(backend, &policy, now);
        bpf_spin_unlock((&raw mut (*seen).lock).cast());
        ejects
    };
    count_failure(EjectStatsKey { service: client.service, backend }, ejects);
    count_failure(EjectStatsKey { service: client.service, backend: 0 }, ejects);
    0
}

/// Frees the places of backends that are out and have left their lists: they would count to the half of a list that a
/// client may eject.
#[inline(always)]
fn forget_gone(seen: *mut Ejections) {
    const LISTED: u16 = BackendFlags::CLUSTER | BackendFlags::LOCAL;
    for index in 0..EJECTION_PLACES {
        // SAFETY: our map value, changed under its lock only; a place read without it is looked at again under it.
        unsafe {
            let place = (&raw mut (*seen).places).cast::<EjectionPlace>().add(index);
            let backend = (*place).backend;
            if backend == 0
                || (*place).phase == 0
                || BACKENDS.get(backend).is_some_and(|backend| backend.flags & LISTED != 0)
            {
                continue;
            }
            bpf_spin_lock((&raw mut (*seen).lock).cast());
            if (*place).backend == backend {
                (*place).backend = 0;
                (*place).phase = 0;
            }
            bpf_spin_unlock((&raw mut (*seen).lock).cast());
        }
    }
}

/// Takes over a connect that succeeded.
#[inline(always)]
fn succeeded(attempt: &Attempt, now: u64) {
    let client = attempt.client;
    if let Some(seen) = EJECTIONS.get_ptr_mut(client) {
        // SAFETY: as in `failed`.
        unsafe {
            bpf_spin_lock((&raw mut (*seen).lock).cast());
            (*seen).succeed(attempt.backend, now);
            bpf_spin_unlock((&raw mut (*seen).lock).cast());
        }
    }
}

/// Counts a failure in an entry of `EJECT_STATS`.
#[inline(always)]
fn count_failure(key: EjectStatsKey, ejects: bool) {
    let mut counts = EJECT_STATS.get_ptr_mut(key);
    if counts.is_none() {
        let _inserted = EJECT_STATS.insert(key, EjectStats::default(), u64::from(BPF_NOEXIST));
        counts = EJECT_STATS.get_ptr_mut(key);
    }
    if let Some(counts) = counts {
        // SAFETY: our map value; its counts change by atomic additions only.
        unsafe {
            add(&raw mut (*counts).failures, 1);
            add(&raw mut (*counts).ejections, u64::from(ejects));
        }
    }
}
