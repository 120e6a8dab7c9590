//! The bind guard: a process of the host cannot take a port that is a NodePort, since nobody on the node could reach it
//! there; it is told so at once, as if a listener had the port.

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use lb_common::{Caller as _, Counter, FrontendKey, Kind, Tables as _, is_own};

use crate::{
    context::{PROCEED, SockAddr},
    log,
    maps::{Kernel, count},
};

const EADDRINUSE: i32 = 98;

/// A bind to a port of the caller's choice.
#[inline(always)]
pub fn bind<const V6: bool>(ctx: &SockAddr<V6>) -> i32 {
    let Some(proto) = ctx.proto() else { return PROCEED };
    let asked = ctx.key(proto);
    // Port 0 leaves the choice to the kernel.
    if asked.port == 0 {
        return PROCEED;
    }
    let Some(service) = taken_by(ctx, &asked) else { return PROCEED };
    count(Counter::BindRefused);
    if log::open() {
        let pid = (bpf_get_current_pid_tgid() >> 32) as u32;
        aya_log_ebpf_macros::warn!(
            ctx.raw(),
            "bind refused: port {} is a NodePort of service#{}, and process#{} asked for it",
            asked.port,
            service,
            pid
        );
    }
    ctx.refuse(EADDRINUSE)
}

/// The service port whose NodePort stands in the way of a listener, if there is one.
#[inline(always)]
fn taken_by<const V6: bool>(ctx: &SockAddr<V6>, asked: &FrontendKey) -> Option<u32> {
    let any = asked.addr.is_unspecified();
    let mut frontend = Kernel.frontend(&asked.node_port());
    if frontend.is_none() && any && !asked.addr.is_v4() {
        // A socket of both families.
        frontend = Kernel.frontend(&FrontendKey { addr: lb_common::Addr::from_v4_word(0), ..*asked });
    }
    let frontend = frontend?;
    let ours = frontend.kind == Kind::NodePort as u8 && ctx.is_host() && (any || is_own(&Kernel, ctx, &asked.addr));
    if ours { Some(frontend.service) } else { None }
}
