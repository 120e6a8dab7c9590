//! The bind guard: refuses a bind of a process of the host to a NodePort. The error tells at once that clients of the
//! node would never reach the listener.

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use lb_common::{Addr, Caller as _, Counter, FrontendKey, Kind, Tables as _, serves_node_ports};

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
        own::mark(&wanted.addr, wanted.port);
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

/// The service port whose NodePort a listener would shadow.
#[inline(always)]
fn taken_by<const V6: bool>(ctx: &SockAddr<V6>, wanted: &FrontendKey) -> Option<u32> {
    let any = wanted.addr.is_unspecified();
    let mut frontend = Kernel.frontend(&wanted.node_port());
    if frontend.is_none() && any && !wanted.addr.is_v4() {
        // A socket of both families.
        frontend = Kernel.frontend(&FrontendKey { addr: Addr::from_v4_word(0), ..*wanted });
    }
    let frontend = frontend?;
    let taken = frontend.kind == Kind::NodePort as u8
        && ctx.is_host()
        && (any || serves_node_ports(&Kernel, ctx, &wanted.addr));
    if taken { Some(frontend.service) } else { None }
}
