//! The socket path: what each hook does, over common code for both families.

use aya_ebpf::{
    EbpfContext as _,
    bindings::BPF_ANY,
    helpers::generated::{bpf_get_prandom_u32, bpf_get_socket_cookie, bpf_set_retval},
    programs::SockContext,
};
use lb_common::{Cause, Choice, Counter, FrontendKey, Proto, Translation, Translations, Verdict, select};

use crate::{
    context::SockAddr,
    log,
    maps::{BACKENDS, GENERATION, Kernel, NAMES, SET_RETVAL, SOCKS, TCP_SOCKS, count},
};

/// The call goes on, to whatever address now stands in the context.
const PROCEED: i32 = 1;
/// The call fails with the error that bpf_set_retval named, or EPERM.
const REFUSE: i32 = 0;

/// A connect: a VIP is replaced by a backend, and anything else is left alone.
#[inline(always)]
pub fn connect(ctx: &SockAddr) -> i32 {
    match ctx.proto() {
        Some(Proto::Tcp) => connect_tcp(ctx),
        Some(Proto::Udp) => connect_udp(ctx),
        _ => PROCEED,
    }
}

#[inline(always)]
fn connect_tcp(ctx: &SockAddr) -> i32 {
    let dest = ctx.key(Proto::Tcp);
    let cookie = cookie(ctx.raw().as_ptr());
    // SAFETY: copied at once; only this socket's own calls write it.
    let before = unsafe { TCP_SOCKS.get(cookie) }.copied();
    // An entry left by an earlier attempt of this socket: that connect failed, so its backend is avoided.
    let avoid = before.map_or(0, |t| t.backend);
    match pick(&dest, avoid) {
        Verdict::NotService => {
            if before.is_some_and(|t| t.is_forgotten_by(GENERATION.load(), &dest.addr, dest.port)) {
                let _gone = TCP_SOCKS.remove(cookie);
            }
            PROCEED
        }
        Verdict::Backend(choice) => {
            let translation = Translation::new(dest.addr, dest.port, &choice, GENERATION.load());
            if TCP_SOCKS.insert(cookie, &translation, u64::from(BPF_ANY)).is_err() {
                full(&choice);
            }
            ctx.set(&choice.addr, choice.port);
            PROCEED
        }
        Verdict::Refused(service, cause) => refuse(ctx, &dest, service, cause),
    }
}

#[inline(always)]
fn connect_udp(ctx: &SockAddr) -> i32 {
    let dest = ctx.key(Proto::Udp);
    match pick(&dest, 0) {
        Verdict::NotService => {
            forget(ctx, &dest);
            PROCEED
        }
        Verdict::Backend(choice) => {
            remember(ctx, &dest, &choice);
            ctx.set(&choice.addr, choice.port);
            PROCEED
        }
        Verdict::Refused(service, cause) => refuse(ctx, &dest, service, cause),
    }
}

/// A datagram with a destination: the socket keeps the backend that it was given for a VIP, for as long as that backend
/// is there.
#[inline(always)]
pub fn sendmsg(ctx: &SockAddr) -> i32 {
    if ctx.proto() != Some(Proto::Udp) {
        return PROCEED;
    }
    let dest = ctx.key(Proto::Udp);
    let mut moved = false;
    if let Some(kept) = stored(ctx).and_then(|list| list.of_vip(&dest.addr, dest.port)) {
        if is_alive(&kept) {
            ctx.set(&kept.backend_addr, kept.backend_port);
            return PROCEED;
        }
        moved = true;
    }
    match pick(&dest, 0) {
        Verdict::NotService => {
            forget(ctx, &dest);
            PROCEED
        }
        Verdict::Backend(choice) => {
            if moved {
                count(Counter::UdpMoved);
            }
            remember(ctx, &dest, &choice);
            ctx.set(&choice.addr, choice.port);
            PROCEED
        }
        Verdict::Refused(service, cause) => refuse(ctx, &dest, service, cause),
    }
}

/// A datagram came: if it is from a backend that this socket was given, it is shown as coming from the VIP.
#[inline(always)]
pub fn recvmsg(ctx: &SockAddr) -> i32 {
    if ctx.proto() == Some(Proto::Udp) {
        show_vip(ctx);
    }
    PROCEED
}

/// The peer is asked for: if it is the backend that this socket was given, the VIP is shown.
#[inline(always)]
pub fn getpeername(ctx: &SockAddr) -> i32 {
    match ctx.proto() {
        Some(Proto::Tcp) => {
            // SAFETY: copied at once; only this socket's own calls write it.
            if let Some(given) = unsafe { TCP_SOCKS.get(cookie(ctx.raw().as_ptr())) }.copied() {
                if given.leads_to(&ctx.addr(), ctx.port()) {
                    ctx.set(&given.vip, given.vip_port);
                }
            }
        }
        Some(Proto::Udp) => show_vip(ctx),
        _ => {}
    }
    PROCEED
}

/// A socket is closed: what TCP was given ends here. (UDP keeps it in the socket itself.)
#[inline(always)]
pub fn release(ctx: &SockContext) -> i32 {
    // SAFETY: the context is valid for the program's run; the verifier checks the access.
    if unsafe { (*ctx.sock).protocol } == Proto::Tcp as u32 {
        let _absent = TCP_SOCKS.remove(cookie(ctx.as_ptr()));
    }
    PROCEED
}

#[inline(always)]
fn pick(dest: &FrontendKey, avoid: u32) -> Verdict {
    // SAFETY: no precondition.
    select(&Kernel, dest, avoid, || unsafe { bpf_get_prandom_u32() })
}

#[inline(always)]
fn cookie(ctx: *mut core::ffi::c_void) -> u64 {
    // SAFETY: the context of a hook whose program type has this helper (sock_addr 4.12, sock 5.6).
    unsafe { bpf_get_socket_cookie(ctx) }
}

/// The list of this UDP socket, if it has one.
#[inline(always)]
fn stored(ctx: &SockAddr) -> Option<&mut Translations> {
    // SAFETY: the storage lives as long as the socket, which outlives this run; it is written by calls on this socket
    // only. Two threads that use one socket at once can mix two entries up; each entry is checked against its backend
    // before use.
    unsafe { SOCKS.get_ptr_mut(ctx.raw()).as_mut() }
}

#[inline(always)]
fn remember(ctx: &SockAddr, dest: &FrontendKey, choice: &Choice) {
    let list = match stored(ctx) {
        Some(list) => list,
        // The new storage is all zeros, which is an empty list.
        // SAFETY: as in `stored`.
        None => match unsafe { SOCKS.get_or_insert_ptr_mut(ctx.raw(), None).as_mut() } {
            Some(list) => list,
            None => return,
        },
    };
    if let Some(event) = list.put(&Translation::new(dest.addr, dest.port, choice, GENERATION.load())) {
        count(event);
        if log::open() {
            aya_log_ebpf_macros::warn!(
                ctx.raw(),
                "a UDP socket speaks to more VIPs than it can remember; latest: service#{}",
                choice.service
            );
        }
    }
}

#[inline(always)]
fn forget(ctx: &SockAddr, dest: &FrontendKey) {
    if let Some(list) = stored(ctx) {
        list.forget(GENERATION.load(), &dest.addr, dest.port);
    }
}

#[inline(always)]
fn show_vip(ctx: &SockAddr) {
    if let Some(given) = stored(ctx).and_then(|list| list.of_backend(&ctx.addr(), ctx.port())) {
        ctx.set(&given.vip, given.vip_port);
    }
}

/// Whether the backend of a translation is still one of its service port. An id is checked with its address, so that
/// even one that was used again could not mislead.
#[inline(always)]
fn is_alive(given: &Translation) -> bool {
    // SAFETY: read at once; a replaced element stays until the RCU grace period ends.
    unsafe { BACKENDS.get(given.backend) }.is_some_and(|backend| {
        backend.service == given.service && backend.port == given.backend_port && backend.addr == given.backend_addr
    })
}

/// The table of hosts is full: the connection works, its name is lost.
#[inline(always)]
fn full(choice: &Choice) {
    count(Counter::TcpSocksFull);
    if log::open() {
        aya_log_ebpf_macros::warn!(
            (),
            "TCP_SOCKS is full: getpeername shows the backend of service#{}",
            choice.service
        );
    }
}

#[inline(always)]
fn refuse(ctx: &SockAddr, dest: &FrontendKey, service: u32, cause: Cause) -> i32 {
    count(match cause {
        Cause::NoEndpoints => Counter::NoEndpoints,
        Cause::NoLocalEndpoints => Counter::NoLocalEndpoints,
    });
    // An id without a name is on its way out: nothing to tell.
    if NAMES.get_ptr(service).is_some() && log::open() {
        match cause {
            Cause::NoEndpoints => {
                aya_log_ebpf_macros::warn!(ctx.raw(), "refused: service#{} port {} has no endpoints", service, dest.port);
            }
            Cause::NoLocalEndpoints => {
                aya_log_ebpf_macros::warn!(
                    ctx.raw(),
                    "refused: service#{} port {} has policy Local and no endpoint on this node",
                    service,
                    dest.port
                );
            }
        }
    }
    if SET_RETVAL.load() != 0 {
        // SAFETY: allowed at connect and sendmsg since 5.18; on older kernels the verifier prunes this branch, since
        // SET_RETVAL is a constant to it.
        unsafe { bpf_set_retval(-cause.errno()) };
    }
    REFUSE
}
