//! The socket path: what each hook does, over common code for both families.

use aya_ebpf::{EbpfContext as _, helpers::generated::bpf_sk_storage_get, programs::SockContext};
use lb_common::{Caller as _, Cause, Choice, Counter, FrontendKey, Proto, Translation, Translations, Verdict, select};

use crate::{
    context::{PROCEED, SockAddr},
    log,
    maps::{BACKENDS, GENERATION, Kernel, NAMES, SOCKS, count},
    stats,
    tcp_socks::TcpSocket,
};

/// A connect: a VIP is replaced by a backend, and anything else is left alone.
#[inline(always)]
pub fn connect<const V6: bool>(ctx: &SockAddr<V6>) -> i32 {
    match ctx.proto() {
        Some(Proto::Tcp) => connect_tcp(ctx),
        Some(Proto::Udp) => connect_udp(ctx),
        _ => PROCEED,
    }
}

#[inline(always)]
fn connect_tcp<const V6: bool>(ctx: &SockAddr<V6>) -> i32 {
    let dest = ctx.key(Proto::Tcp);
    let mut place = TcpSocket::of(ctx.raw().as_ptr());
    let before = place.given();
    // An entry left by an earlier attempt of this socket: that connect failed, so its backend is avoided.
    let avoid = before.map_or(0, |given| given.backend);
    match choose(ctx, &dest, avoid) {
        Verdict::NotService => {
            if let Some(given) = before
                && given.is_forgotten_by(GENERATION.load(), &dest.addr, dest.port)
            {
                let backend = given.backend;
                place.clear();
                stats::closed(backend);
            }
            PROCEED
        }
        Verdict::Backend(choice) => {
            if avoid != 0 {
                stats::closed(avoid);
            }
            if place.put(&dest, &choice) {
                stats::opened(&choice);
            } else {
                stats::connected(&choice);
                full(&choice);
            }
            ctx.set(&choice.addr, choice.port);
            PROCEED
        }
        Verdict::Refused(service, cause) => refuse(ctx, &dest, service, cause),
    }
}

#[inline(always)]
fn connect_udp<const V6: bool>(ctx: &SockAddr<V6>) -> i32 {
    let dest = ctx.key(Proto::Udp);
    match choose(ctx, &dest, 0) {
        Verdict::NotService => {
            forget(stored(ctx), &dest);
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
pub fn sendmsg<const V6: bool>(ctx: &SockAddr<V6>) -> i32 {
    if ctx.proto() != Some(Proto::Udp) {
        return PROCEED;
    }
    let dest = ctx.key(Proto::Udp);
    let mut list = stored(ctx);
    let mut moved = false;
    if let Some(kept) = list.as_mut().and_then(|list| list.of_vip(&dest.addr, dest.port)) {
        // A pod may choose another path while its sockets are open.
        if is_alive(&kept) && !ctx.is_left_alone() {
            ctx.set(&kept.backend_addr, kept.backend_port);
            return PROCEED;
        }
        moved = true;
    }
    match choose(ctx, &dest, 0) {
        Verdict::NotService => {
            if list.is_some() && !ctx.is_peer() {
                forget(list, &dest);
            }
            PROCEED
        }
        Verdict::Backend(choice) => {
            if moved {
                count(Counter::UdpMoved);
                stats::moved(choice.service);
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
pub fn recvmsg<const V6: bool>(ctx: &SockAddr<V6>) -> i32 {
    if ctx.proto() == Some(Proto::Udp) {
        show_vip(ctx);
    }
    PROCEED
}

/// The peer is asked for: if it is the backend that this socket was given, the VIP is shown.
#[inline(always)]
pub fn getpeername<const V6: bool>(ctx: &SockAddr<V6>) -> i32 {
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

/// A socket is closed, and holds nothing more.
#[inline(always)]
pub fn release(ctx: &SockContext) -> i32 {
    // SAFETY: the context is valid for the program's run; the verifier checks the access.
    let proto = unsafe { (*ctx.sock).protocol };
    if proto == Proto::Tcp as u32 {
        let mut place = TcpSocket::of(ctx.as_ptr());
        if let Some(given) = place.given() {
            let backend = given.backend;
            place.clear();
            stats::closed(backend);
        }
    } else if proto == Proto::Udp as u32 {
        // SAFETY: the helper takes this context for the socket (5.9); the storage outlives this run. aya's own call takes
        // socket address contexts only.
        let list = unsafe {
            bpf_sk_storage_get((&raw const SOCKS).cast_mut().cast(), ctx.as_ptr(), core::ptr::null_mut(), 0)
                .cast::<Translations>()
                .as_ref()
        };
        if let Some(list) = list {
            list.each(stats::closed);
        }
    }
    PROCEED
}

/// The choice, as a function of its own in the kernel too: its frame and a hook's share 512 bytes of stack.
#[inline(never)]
fn choose<const V6: bool>(ctx: &SockAddr<V6>, dest: &FrontendKey, avoid: u32) -> Verdict {
    select(&Kernel, ctx, dest, avoid)
}

/// The list of this UDP socket, if it has one.
#[inline(always)]
fn stored<'a, const V6: bool>(ctx: &SockAddr<V6>) -> Option<&'a mut Translations> {
    // SAFETY: the storage lives as long as the socket, which outlives this run. The kernel holds the socket's lock over
    // each of these hooks (include/linux/bpf-cgroup.h), so that nobody else has the list at the same time.
    unsafe { SOCKS.get_ptr_mut(ctx.raw()).as_mut() }
}

/// The socket keeps its choice.
#[inline(never)]
fn remember<const V6: bool>(ctx: &SockAddr<V6>, dest: &FrontendKey, choice: &Choice) {
    // New storage is all zeros, which is an empty list.
    // SAFETY: as in `stored`.
    let Some(list) = (unsafe { SOCKS.get_or_insert_ptr_mut(ctx.raw(), None).as_mut() }) else {
        return stats::connected(choice);
    };
    let put = list.put(&Translation::new(dest.addr, dest.port, choice, GENERATION.load()));
    if put.replaced != 0 {
        stats::closed(put.replaced);
    }
    stats::opened(choice);
    if put.overflow {
        count(Counter::UdpOverflow);
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
        list.forget(GENERATION.load(), &dest.addr, dest.port, stats::closed);
    }
}

#[inline(always)]
fn show_vip<const V6: bool>(ctx: &SockAddr<V6>) {
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
fn refuse<const V6: bool>(ctx: &SockAddr<V6>, dest: &FrontendKey, service: u32, cause: Cause) -> i32 {
    count(cause.counter());
    stats::refused(service, cause);
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
            // A socket has no source yet.
            Cause::SourceRange => {}
        }
    }
    ctx.refuse(cause.errno())
}
