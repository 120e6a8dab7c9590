//! Handshakes of TCP sockets at the hook `sock_ops`, for ejection and `beeline watch`.

use aya_ebpf::programs::SockOpsContext;

/// TCP states (include/net/tcp_states.h).
pub const ESTABLISHED: u32 = 1;
pub const SYN_SENT: u32 = 2;
const CLOSE: u32 = 7;

/// A step of the handshake of a socket that connects.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The SYN is about to be sent. Later steps are told to sockets for which [`follow`] asks for them.
    Begins,
    /// No answer for a second: the SYN is sent again.
    Unanswered,
    /// The other side has answered.
    Established,
    /// The handshake has failed, or the application has closed the socket.
    Failed,
}

/// Steps besides the first that a program wants to see (`BPF_SOCK_OPS_*_CB_FLAG`).
#[derive(Clone, Copy)]
#[repr(u32)]
pub enum Steps {
    /// The result.
    Result = 4,
    /// The result, and each second without an answer.
    All = 4 | 1,
}

/// The step of which the kernel tells; none for the rest of a socket's life, and for sockets of servers.
#[inline(always)]
pub fn step(ctx: &SockOpsContext) -> Option<Step> {
    const TCP_CONNECT_CB: u32 = 3;
    const RTO_CB: u32 = 8;
    const STATE_CB: u32 = 10;
    let ops = ctx.ops;
    // SAFETY: the context is valid for the program's run; the verifier checks each access.
    unsafe {
        match (*ops).op {
            TCP_CONNECT_CB => Some(Step::Begins),
            RTO_CB if (*ops).state == SYN_SENT => Some(Step::Unanswered),
            STATE_CB if (*ops).__bindgen_anon_1.args[0] == SYN_SENT => match (*ops).__bindgen_anon_1.args[1] {
                ESTABLISHED => Some(Step::Established),
                CLOSE => Some(Step::Failed),
                _ => None,
            },
            _ => None,
        }
    }
}

/// Asks for the steps after the first. Other programs may ask for steps as well.
#[inline(always)]
pub fn follow(ctx: &SockOpsContext, steps: Steps) {
    // Unsupported for sockets that are none yet.
    let _unsupported = ctx.set_cb_flags((ctx.cb_flags() | steps as u32) as i32);
}

/// Numbers of SYN segments that the socket has sent, and of segments that it has received.
#[inline(always)]
pub fn segments(ctx: &SockOpsContext) -> (u32, u32) {
    // SAFETY: as in `step`.
    unsafe { ((*ctx.ops).total_retrans + 1, (*ctx.ops).segs_in) }
}

/// True if the socket has sent a segment. Otherwise the client's own routes refused.
#[inline(always)]
pub fn has_sent(ctx: &SockOpsContext) -> bool {
    // SAFETY: as in `step`.
    unsafe { (*ctx.ops).segs_out != 0 }
}
