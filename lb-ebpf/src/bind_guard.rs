//! The bind guard: refuses a bind of a process of the host to a NodePort. The error tells at once that clients of the
//! node would never reach the listener.

use core::ffi::c_void;

use aya_ebpf::helpers::{
    bpf_get_current_pid_tgid, bpf_probe_read_kernel,
    generated::{bpf_skc_to_tcp_sock, bpf_skc_to_udp6_sock},
};
use lb_common::{Addr, Caller as _, Counter, FrontendKey, Kind, Proto, Tables as _, is_served_at};

use crate::{
    context::{PROCEED, SockAddr},
    counters::count,
    log, own,
    tables::Kernel,
};

const EADDRINUSE: i32 = 98;

/// A bind to a port.
#[inline(always)]
pub fn bind<const V6: bool>(ctx: &SockAddr<V6>) -> i32 {
    let Some(proto) = ctx.proto() else { return PROCEED };
    let wanted = ctx.key(proto);
    // The kernel chooses the port.
    if wanted.port == 0 {
        return PROCEED;
    }
    let Some(service) = taken_by(ctx, &wanted) else {
        // The loopback address of a pod is its own anyway. That of the node is marked for hostPorts alone: resolvers
        // listen there at the port of DNS, and each mark costs the callers of Services with such a port a look-up.
        if !wanted.addr.is_loopback() || (ctx.is_host() && is_host_port(&wanted)) {
            own::mark(&wanted.addr, wanted.port);
        }
        return PROCEED;
    };
    count(Counter::BindRefused);
    if log::open() {
        let pid = (bpf_get_current_pid_tgid() >> 32) as u32;
        aya_log_ebpf_macros::warn!(
            ctx.raw(),
            "bind refused: process#{} asked for port {}, a NodePort of service#{}",
            pid,
            wanted.port,
            service
        );
    }
    ctx.refuse(EADDRINUSE)
}

/// True if a hostPort has the port, at this address or at all of the node.
#[inline(always)]
fn is_host_port(wanted: &FrontendKey) -> bool {
    let has_kind = |key: &FrontendKey| Kernel.frontend(key).is_some_and(|found| found.kind == Kind::HostPort as u8);
    has_kind(&wanted.node_port()) || has_kind(wanted)
}

/// The service port whose NodePort a listener would shadow.
#[inline(always)]
fn taken_by<const V6: bool>(ctx: &SockAddr<V6>, wanted: &FrontendKey) -> Option<u32> {
    let any = wanted.addr.is_unspecified();
    let mut frontend = Kernel.frontend(&wanted.node_port());
    if frontend.is_none() && any && !wanted.addr.is_v4() && !is_v6_only(ctx) {
        // A socket of both families.
        frontend = Kernel.frontend(&FrontendKey { addr: Addr::from_v4_word(0), ..*wanted });
    }
    let frontend = frontend?;
    let taken = frontend.kind == Kind::NodePort as u8
        && ctx.is_host()
        && (any || is_served_at(&Kernel, ctx, frontend.kind, &wanted.addr));
    if taken { Some(frontend.service) } else { None }
}

/// True if a socket of TCP or UDP has `IPV6_V6ONLY`.
///
/// `bpf_getsockopt` does not know the option. The bit stands at the same place in all kernels since 4.1
/// (include/net/sock.h, `struct sock_common`, `skc_ipv6only`); a story reads it on each kernel.
#[inline(always)]
fn is_v6_only<const V6: bool>(ctx: &SockAddr<V6>) -> bool {
    const OCTET: usize = 19;
    const BIT: u8 = 1 << 5;
    // SAFETY: the helpers (5.9) take the socket of the context, and return null for another protocol's.
    let socket: *const c_void = match ctx.proto() {
        Some(Proto::Tcp) => unsafe { bpf_skc_to_tcp_sock(ctx.sock()) }.cast(),
        Some(Proto::Udp) => unsafe { bpf_skc_to_udp6_sock(ctx.sock()) }.cast(),
        _ => return false,
    };
    if socket.is_null() {
        return false;
    }
    // SAFETY: the helper checks the address itself.
    unsafe { bpf_probe_read_kernel(socket.cast::<u8>().add(OCTET)) }.is_ok_and(|octet| octet & BIT != 0)
}
