//! TCP sockets of the kernel itself (NFS, SMB, Ceph, NVMe, MPTCP before Linux 6.0) that have closed. The kernel calls
//! connect hooks for them, and no sock_release (net/ipv4/af_inet.c, `inet_release`). The agent finds their entries,
//! whose sockets do not exist any more, and runs this program for each: only a program changes counts without losing
//! one.

use aya_ebpf::{EbpfContext as _, helpers::generated::bpf_skb_load_bytes, programs::TcContext};

use crate::tcp_socks::TcpSocket;

/// Offset of the cookie in the packet with which the agent runs the program: behind an Ethernet header.
const COOKIE: u32 = 14;

/// Removes the entry of the socket whose cookie is in the packet, and counts its close.
#[inline(always)]
pub fn free(ctx: &TcContext) -> i32 {
    let mut cookie = 0_u64;
    // SAFETY: the helper writes eight octets, or fails.
    let code = unsafe { bpf_skb_load_bytes(ctx.as_ptr(), COOKIE, (&raw mut cookie).cast(), size_of::<u64>() as u32) };
    if code == 0
        && let Some(socket) = TcpSocket::with_cookie(cookie)
    {
        socket.release();
    }
    0
}
