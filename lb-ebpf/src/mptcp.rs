//! Rev-nat entries of MPTCP sockets: in the storage of the application's socket, of protocol 262.
//!
//! The kernel connects a socket of its own, of TCP, in place of the application's. It calls sock_release for the
//! application's socket only (net/ipv4/af_inet.c, `inet_release`: not for `sk_kern_sock`), so an entry of the kernel's
//! socket would stay for ever. The connect hook finds the application's socket by `bpf_skc_to_mptcp_sock` (6.0).

use core::ffi::c_void;

use aya_ebpf::{
    EbpfContext as _,
    bindings::BPF_SK_STORAGE_GET_F_CREATE,
    helpers::generated::{bpf_sk_storage_get, bpf_skc_to_mptcp_sock},
    programs::SockContext,
};
use lb_common::{Choice, FrontendKey, Translation, Translations};

use crate::{
    context::SockAddr,
    globals::{GENERATION, MPTCP_SOCK},
    maps::SOCKS,
    stats,
};

/// Protocol of the application's sockets (IPPROTO_MPTCP, include/uapi/linux/in.h).
pub const PROTO: u32 = 262;

/// The socket of an application in which the kernel connects a TCP socket of its own.
pub struct MptcpSocket(*mut c_void);

impl MptcpSocket {
    /// The application's socket, if that of a TCP connect is the kernel's.
    #[inline(always)]
    pub fn of<const V6: bool>(ctx: &SockAddr<V6>) -> Option<Self> {
        if MPTCP_SOCK.load() == 0 {
            return None;
        }
        // SAFETY: the helper takes the socket of the context; on older kernels the verifier prunes this branch, since
        // MPTCP_SOCK is a constant.
        let socket: *mut c_void = unsafe { bpf_skc_to_mptcp_sock(ctx.sock()) }.cast();
        if socket.is_null() { None } else { Some(Self(socket)) }
    }

    /// Stores the entry of a connect, and counts it.
    #[inline(always)]
    pub fn put(&self, dest: &FrontendKey, choice: &Choice) {
        let Some(list) = storage(self.0, BPF_SK_STORAGE_GET_F_CREATE) else {
            return stats::connected(choice);
        };
        let translation = Translation::new(dest.addr, dest.port, choice, GENERATION.load());
        // A retry, or another path of the same connection.
        stats::reopened(list.put(&translation).replaced, choice);
    }
}

/// The entry of an application's socket for its peer.
#[inline(always)]
pub fn of_peer<const V6: bool>(ctx: &SockAddr<V6>) -> Option<Translation> {
    storage(ctx.sock(), 0)?.of_backend(&ctx.addr(), ctx.port())
}

/// Counts an application's socket as closed. Its entries end with its storage.
#[inline(always)]
pub fn release(ctx: &SockContext) {
    if let Some(list) = storage(ctx.as_ptr(), 0) {
        list.each(stats::closed);
    }
}

/// The list in the storage of a socket.
#[inline(always)]
fn storage(socket: *mut c_void, flags: u32) -> Option<&'static mut Translations> {
    // SAFETY: the storage lives as long as the socket, which outlives this run. The kernel holds the lock of the
    // application's socket during each of these calls, so that access to the list is exclusive.
    unsafe {
        let map = (&raw const SOCKS).cast_mut().cast();
        bpf_sk_storage_get(map, socket, core::ptr::null_mut(), flags.into()).cast::<Translations>().as_mut()
    }
}
