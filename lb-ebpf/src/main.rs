//! The eBPF object: an entry point for each hook, which wraps its context and calls the common code.
#![no_std]
#![no_main]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]
#![expect(unsafe_code, reason = "contexts, map values and helpers are raw pointers here")]

mod bind_guard;
mod closed_sockets;
mod context;
mod counters;
mod ejection;
mod globals;
mod handshakes;
mod log;
mod maps;
mod mptcp;
mod own;
mod packet;
mod paths;
mod sock;
mod stats;
mod tables;
mod tcp_socks;
mod udp_socks;
mod watch;

// The macros of aya-log refer to their support by this path.
extern crate self as aya_log_ebpf;
pub use log::macro_support;

use aya_ebpf::{
    macros::{btf_tracepoint, cgroup_sock, cgroup_sock_addr, classifier, sk_lookup, sock_ops},
    programs::{BtfTracePointContext, SkLookupContext, SockAddrContext, SockContext, SockOpsContext, TcContext},
};

use context::{SockAddr, V4, V6};

/// connect() to an IPv4 destination.
#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    sock::connect(&SockAddr::<V4>::new(ctx))
}

/// connect() to an IPv6 or mapped destination.
#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    sock::connect(&SockAddr::<V6>::new(ctx))
}

/// sendto() and sendmsg() of UDP with an IPv4 destination, also a mapped one on an IPv6 socket.
#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(ctx: SockAddrContext) -> i32 {
    sock::sendmsg(&SockAddr::<V4>::new(ctx))
}

/// sendto() and sendmsg() of UDP with an IPv6 destination.
#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(ctx: SockAddrContext) -> i32 {
    sock::sendmsg(&SockAddr::<V6>::new(ctx))
}

/// recvfrom() and recvmsg() of a UDP IPv4 socket.
#[cgroup_sock_addr(recvmsg4)]
pub fn recvmsg4(ctx: SockAddrContext) -> i32 {
    sock::recvmsg(&SockAddr::<V4>::new(ctx))
}

/// recvfrom() and recvmsg() of a UDP IPv6 socket.
#[cgroup_sock_addr(recvmsg6)]
pub fn recvmsg6(ctx: SockAddrContext) -> i32 {
    sock::recvmsg(&SockAddr::<V6>::new(ctx))
}

/// getpeername() of an IPv4 socket.
#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(ctx: SockAddrContext) -> i32 {
    sock::getpeername(&SockAddr::<V4>::new(ctx))
}

/// getpeername() of an IPv6 socket.
#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(ctx: SockAddrContext) -> i32 {
    sock::getpeername(&SockAddr::<V6>::new(ctx))
}

/// bind() to an IPv4 address.
#[cgroup_sock_addr(bind4)]
pub fn bind4(ctx: SockAddrContext) -> i32 {
    bind_guard::bind(&SockAddr::<V4>::new(ctx))
}

/// bind() to an IPv6 address.
#[cgroup_sock_addr(bind6)]
pub fn bind6(ctx: SockAddrContext) -> i32 {
    bind_guard::bind(&SockAddr::<V6>::new(ctx))
}

/// close() of a socket of either family.
#[cgroup_sock(sock_release)]
pub fn sock_release(ctx: SockContext) -> i32 {
    sock::release(&ctx)
}

/// The agent runs the program for a TCP socket of the kernel itself that has closed: see [`closed_sockets`].
#[classifier]
pub fn free_socket(ctx: TcContext) -> i32 {
    closed_sockets::free(&ctx)
}

/// A TCP socket changes its state. Attached while `beeline watch` runs.
#[sock_ops]
pub fn watch_handshakes(ctx: SockOpsContext) -> u32 {
    watch::sock_ops(&ctx);
    1
}

/// A TCP socket changes its state. Attached while a Service has ejection.
#[sock_ops]
pub fn follow_handshakes(ctx: SockOpsContext) -> u32 {
    ejection::sock_ops(&ctx);
    1
}

/// A socket hears an error. Attached while a Service of UDP has ejection.
#[btf_tracepoint(function = "inet_sk_error_report")]
pub fn follow_errors(ctx: BtfTracePointContext) -> i32 {
    ejection::socket_error(&ctx);
    0
}

/// A packet enters by a device.
#[classifier]
pub fn tc_ingress(ctx: TcContext) -> i32 {
    packet::ingress(ctx)
}

/// A packet leaves by a device.
#[classifier]
pub fn tc_egress(ctx: TcContext) -> i32 {
    packet::egress(ctx)
}

/// The kernel looks for a socket of the node for a packet. Attached while an agent runs and a link of a pod lacks
/// programs.
#[sk_lookup]
pub fn socket_lookup(ctx: SkLookupContext) -> u32 {
    packet::look_up(&ctx)
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // Unreachable: the verifier refuses a program that can panic.
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
