//! The socket path: what each hook does, over common code for both families.

use aya_ebpf::{
    EbpfContext as _,
    helpers::generated::{bpf_get_prandom_u32, bpf_set_retval},
    programs::SockContext,
};
use lb_common::{Cause, Choice, Counter, FrontendKey, Proto, Translation, Translations, Verdict, select};

use crate::{
    context::SockAddr,
    log,
    maps::{BACKENDS, GENERATION, Kernel, NAMES, SET_RETVAL, SOCKS, count},
    tcp_socks::TcpSocket,
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
    let mut place = TcpSocket::of(ctx.raw().as_ptr());
    let before = place.given();
    // An entry left by an earlier attempt of this socket: that connect failed, so its backend is avoided.
    let avoid = before.map_or(0, |given| given.backend);
    match pick(&dest, avoid) {
        Verdict::NotService => {
            if before.is_some_and(|given| given.is_forgotten_by(GENERATION.load(), &dest.addr, dest.port)) {
                place.clear();
            }
            PROCEED
        }
        Verdict::Backend(choice) => {
            if !place.put(&Translation::new(dest.addr, dest.port, &choice, GENERATION.load())) {
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
            forget(stored(ctx), &dest);
            PROCEED
        }
        Verdict::Backend(choice) => {
            remember(ctx, stored(ctx), &dest, &choice);
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
    let mut list = stored(ctx);
    let mut moved = false;
    if let Some(kept) = list.as_mut().and_then(|list| list.of_vip(&dest.addr, dest.port)) {
        if is_alive(&kept) {
            ctx.set(&kept.backend_addr, kept.backend_port);
            return PROCEED;
        }
        moved = true;
    }
    match pick(&dest, 0) {
        Verdict::NotService => {
            if list.is_some() && !ctx.is_peer() {
                forget(list, &dest);
            }
            PROCEED
        }
        Verdict::Backend(choice) => {
            if moved {
                count(Counter::UdpMoved);
            }
            remember(ctx, list, &dest, &choice);
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
            if let Some(given) = TcpSocket::of(ctx.raw().as_ptr()).given()
                && given.leads_to(&ctx.addr(), ctx.port())
            {
                ctx.set(&given.vip, given.vip_port);
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
        TcpSocket::of(ctx.as_ptr()).clear();
    }
    PROCEED
}

#[inline(always)]
fn pick(dest: &FrontendKey, avoid: u32) -> Verdict {
    // SAFETY: no precondition.
    select(&Kernel, dest, avoid, || unsafe { bpf_get_prandom_u32() })
}

/// The list of this UDP socket, if it has one.
#[inline(always)]
fn stored<'a>(ctx: &SockAddr) -> Option<&'a mut Translations> {
    // SAFETY: the storage lives as long as the socket, which outlives this run; it is written by calls on this socket
    // only. Two threads that use one socket at once can mix two entries up; each entry is checked against its backend
    // before use.
    unsafe { SOCKS.get_ptr_mut(ctx.raw()).as_mut() }
}

#[inline(always)]
fn remember(ctx: &SockAddr, list: Option<&mut Translations>, dest: &FrontendKey, choice: &Choice) {
    let list = match list {
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
fn forget(list: Option<&mut Translations>, dest: &FrontendKey) {
    if let Some(list) = list {
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

/// No place is left: the connection works, its name is lost.
#[inline(always)]
fn full(choice: &Choice) {
    count(Counter::TcpSocksFull);
    if log::open() {
        aya_log_ebpf_macros::warn!((), "TCP_MORE is full: getpeername shows the backend of service#{}", choice.service);
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
                aya_log_ebpf_macros::warn!(
                    ctx.raw(),
                    "refused: service#{} port {} has no endpoints",
                    service,
                    dest.port
                );
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
