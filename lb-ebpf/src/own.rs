//! Addresses that are the caller's own in its network namespace, such as those of Docker in a pod: a socket that
//! listens there at exactly this address and port is reached, although the address is a frontend's too.
//!
//! The kernel looks for such a socket only if some socket of the node was bound to a port like this one at a single
//! address: most nodes have few, and the look-up costs as much as the rest of a connect.

use core::mem::size_of;

use aya_ebpf::{
    EbpfContext as _,
    bindings::bpf_sock,
    helpers::generated::{bpf_sk_lookup_tcp, bpf_sk_lookup_udp, bpf_sk_release},
};
use lb_common::{Addr, FrontendKey, Proto, capacity};

use crate::{context::SockAddr, maps::BOUND_PORTS};

/// `struct bpf_sock_tuple` of an IPv4 packet: source and destination.
#[repr(C)]
struct TupleV4 {
    addrs: [u32; 2],
    ports: [u16; 2],
}

/// `struct bpf_sock_tuple` of an IPv6 packet: source and destination.
#[repr(C)]
struct TupleV6 {
    addrs: [[u32; 4]; 2],
    ports: [u16; 2],
}

/// Marks the port of a socket that binds to a single address.
#[inline(always)]
pub fn mark(addr: &Addr, port: u16) {
    if !addr.is_unspecified()
        // The loopback address of a pod is its own anyway.
        && !addr.is_loopback()
        && let Some(mark) = BOUND_PORTS.get_ptr_mut(capacity::bound_port(port))
    {
        // SAFETY: an element of an array map; every writer writes the same.
        unsafe { mark.write_volatile(1) };
    }
}

/// True if a socket of the caller's network namespace listens at `dest`, and not at all addresses.
#[inline(always)]
pub fn is_own<const V6: bool>(ctx: &SockAddr<V6>, dest: &FrontendKey) -> bool {
    // SAFETY: as above.
    let is_marked =
        BOUND_PORTS.get_ptr(capacity::bound_port(dest.port)).is_some_and(|mark| unsafe { mark.read_volatile() } != 0);
    is_marked && find(ctx, dest) == Found::Exact
}

/// True if a socket of the caller's network namespace would receive what is sent to `dest`, if that address is its own.
#[inline(always)]
pub fn may_be_own<const V6: bool>(ctx: &SockAddr<V6>, dest: &FrontendKey) -> bool {
    find(ctx, dest) != Found::Nothing
}

/// A socket that receives at an address and port.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
enum Found {
    Nothing,
    /// At all addresses.
    Any,
    /// At this address.
    Exact,
}

/// Looks for a socket in the caller's network namespace.
#[inline(never)]
fn find<const V6: bool>(ctx: &SockAddr<V6>, dest: &FrontendKey) -> Found {
    const LISTEN: u32 = 10;
    let (addr, port) = (dest.addr.words(), dest.port.to_be());
    let is_tcp = dest.proto == Proto::Tcp as u8;
    let sock: *mut bpf_sock = ctx.sock().cast();
    // SAFETY: a socket address hook always has a socket (5.3), whose fields are readable (5.1).
    let (own_v4, own_port) = unsafe { ((*sock).src_ip4, ((*sock).src_port as u16).to_be()) };
    let (v4, v6);
    let (tuple, len) = if dest.addr.is_v4() {
        // From the address to which the caller is bound, so that a connected UDP socket is found as well.
        v4 = TupleV4 { addrs: [own_v4, addr[3]], ports: [own_port, port] };
        ((&raw const v4).cast_mut().cast(), size_of::<TupleV4>() as u32)
    } else {
        // SAFETY: as above; single words.
        let own = |at: usize| unsafe { (&raw const (*sock).src_ip6).cast::<u32>().add(at).read_volatile() };
        v6 = TupleV6 { addrs: [[own(0), own(1), own(2), own(3)], addr], ports: [own_port, port] };
        ((&raw const v6).cast_mut().cast(), size_of::<TupleV6>() as u32)
    };
    const CURRENT_NETNS: u64 = -1_i64 as u64;
    // SAFETY: the tuple has this length; socket address programs have these helpers since 4.20. The reference is
    // released below.
    unsafe {
        let found: *mut bpf_sock = if is_tcp {
            bpf_sk_lookup_tcp(ctx.raw().as_ptr(), tuple, len, CURRENT_NETNS, 0)
        } else {
            bpf_sk_lookup_udp(ctx.raw().as_ptr(), tuple, len, CURRENT_NETNS, 0)
        };
        if found.is_null() {
            return Found::Nothing;
        }
        // A socket bound to all addresses is found too.
        let is_exact = if dest.addr.is_v4() {
            (*found).src_ip4 == addr[3]
        } else {
            let own = &raw const (*found).src_ip6;
            let word = |at: usize| own.cast::<u32>().add(at).read_volatile();
            ((word(0) ^ addr[0]) | (word(1) ^ addr[1]) | (word(2) ^ addr[2]) | (word(3) ^ addr[3])) == 0
        };
        let is_listening = !is_tcp || (*found).state == LISTEN;
        bpf_sk_release(found.cast());
        match (is_listening, is_exact) {
            (false, _) => Found::Nothing,
            (true, false) => Found::Any,
            (true, true) => Found::Exact,
        }
    }
}
