//! The eBPF object: one entry point for each hook, each of which translates its context and calls the common code.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "contexts, map values and helpers are raw pointers here")]

mod context;
mod log;
mod maps;
mod sock;
mod tcp_socks;

// The macros of aya-log name their support by this path.
extern crate self as aya_log_ebpf;
pub use log::macro_support;

use aya_ebpf::{
    macros::{cgroup_sock, cgroup_sock_addr},
    programs::{SockAddrContext, SockContext},
};

use context::{Family, SockAddr};

/// connect() of an IPv4 destination.
#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    sock::connect(&SockAddr::new(ctx, Family::V4))
}

/// connect() of an IPv6 or mapped destination.
#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    sock::connect(&SockAddr::new(ctx, Family::V6))
}

/// sendto() and sendmsg() of UDP with an IPv4 destination, also a mapped one on an IPv6 socket.
#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(ctx: SockAddrContext) -> i32 {
    sock::sendmsg(&SockAddr::new(ctx, Family::V4))
}

/// sendto() and sendmsg() of UDP with an IPv6 destination.
#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(ctx: SockAddrContext) -> i32 {
    sock::sendmsg(&SockAddr::new(ctx, Family::V6))
}

/// recvfrom() and recvmsg() of a UDP IPv4 socket.
#[cgroup_sock_addr(recvmsg4)]
pub fn recvmsg4(ctx: SockAddrContext) -> i32 {
    sock::recvmsg(&SockAddr::new(ctx, Family::V4))
}

/// recvfrom() and recvmsg() of a UDP IPv6 socket.
#[cgroup_sock_addr(recvmsg6)]
pub fn recvmsg6(ctx: SockAddrContext) -> i32 {
    sock::recvmsg(&SockAddr::new(ctx, Family::V6))
}

/// getpeername() of an IPv4 socket.
#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(ctx: SockAddrContext) -> i32 {
    sock::getpeername(&SockAddr::new(ctx, Family::V4))
}

/// getpeername() of an IPv6 socket.
#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(ctx: SockAddrContext) -> i32 {
    sock::getpeername(&SockAddr::new(ctx, Family::V6))
}

/// A socket of either family is closed.
#[cgroup_sock(sock_release)]
pub fn sock_release(ctx: SockContext) -> i32 {
    sock::release(&ctx)
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier refuses a program that can come here.
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
