//! Addresses that are the caller's own in its network namespace, such as those of Docker in a pod, and cluster IPs that
//! an interface of the node owns, such as that of a DNS cache: a socket that listens there at exactly this address and
//! port is reached, although the address is a frontend's too.
//!
//! The kernel looks for such a socket only if some socket of the node was bound to a port like this one at a single
//! address: most nodes have few, and the look-up costs as much as the rest of a connect.

use core::mem::size_of;

use aya_ebpf::{
    EbpfContext as _,
    bindings::bpf_sock,
    helpers::generated::{bpf_sk_lookup_tcp, bpf_sk_lookup_udp, bpf_sk_release},
};
use lb_common::{Addr, Caller as _, FrontendKey, Kind, Proto, Tables as _, capacity};

use crate::{context::SockAddr, maps::BOUND_PORTS, tables::Kernel};

/// The network namespace of the caller, or of the packet's device (BPF_F_CURRENT_NETNS).
pub const CURRENT_NETNS: u64 = -1_i64 as u64;
/// The namespace with the id 0 in the caller's: the first that got one there. In a pod that is the node's, where the
/// other end of the pod's link is: the kernel gives ids for its messages about links (`peernet2id_alloc`,
/// net/core/net_namespace.c). Another namespace with that id, or none, harms the pod alone: the Service is called, or
/// the pod's packets meet an address of the node without a listener.
const NETNS_OF_LINK: u64 = 0;

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
        && let Some(mark) = BOUND_PORTS.get_ptr_mut(capacity::bound_port(port))
    {
        // SAFETY: an element of an array map; every writer writes the same.
        unsafe { mark.write_volatile(1) };
    }
}

/// True if a socket may listen at a port of a single address.
#[inline(always)]
pub fn is_marked(port: u16) -> bool {
    // SAFETY: as above.
    BOUND_PORTS.get_ptr(capacity::bound_port(port)).is_some_and(|mark| unsafe { mark.read_volatile() } != 0)
}

/// True if `dest` is at a cluster IP that an interface of the node owns.
#[inline(always)]
pub fn is_at_node(dest: &FrontendKey) -> bool {
    Kernel.frontend(&dest.address()).is_some_and(|frontend| frontend.kind == Kind::OwnAddress as u8)
}

/// True if a socket listens at `dest`, and not at all addresses: in the caller's network namespace, or in that of the
/// node if the address is the node's.
#[inline(always)]
pub fn is_own<const V6: bool>(ctx: &SockAddr<V6>, dest: &FrontendKey) -> bool {
    is_marked(dest.port)
        && (find(ctx, dest, CURRENT_NETNS) == Found::Exact
            || (is_at_node(dest) && !ctx.is_host() && find(ctx, dest, NETNS_OF_LINK) == Found::Exact))
}

/// True if a socket of the caller's network namespace would receive what is sent to `dest`, if that address is its own.
#[inline(always)]
pub fn may_be_own<const V6: bool>(ctx: &SockAddr<V6>, dest: &FrontendKey) -> bool {
    find(ctx, dest, CURRENT_NETNS) != Found::Nothing
}

/// A socket that receives at an address and port.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Found {
    Nothing,
    /// At all addresses.
    Any,
    /// At this address.
    Exact,
}

impl Found {
    /// Classifies a found socket, which receives what is sent to `dest`.
    ///
    /// # Safety
    /// `sock` is a socket that a look-up has returned.
    #[inline(always)]
    pub unsafe fn of(sock: *mut bpf_sock, dest: &Addr, is_tcp: bool) -> Self {
        const LISTEN: u32 = 10;
        let addr = dest.words();
        // SAFETY: the verifier checks each access; single words of the addresses only.
        let (is_exact, is_listening) = unsafe {
            // A socket bound to all addresses is found too.
            let is_exact = if dest.is_v4() {
                (*sock).src_ip4 == addr[3]
            } else {
                let own = &raw const (*sock).src_ip6;
                let word = |at: usize| own.cast::<u32>().add(at).read_volatile();
                ((word(0) ^ addr[0]) | (word(1) ^ addr[1]) | (word(2) ^ addr[2]) | (word(3) ^ addr[3])) == 0
            };
            (is_exact, !is_tcp || (*sock).state == LISTEN)
        };
        match (is_listening, is_exact) {
            (false, _) => Self::Nothing,
            (true, false) => Self::Any,
            (true, true) => Self::Exact,
        }
    }
}

/// Looks for a socket in a network namespace, by its id in the caller's.
#[inline(never)]
fn find<const V6: bool>(ctx: &SockAddr<V6>, dest: &FrontendKey, netns: u64) -> Found {
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
    // SAFETY: the tuple has this length; socket address programs have these helpers since 4.20. The reference is
    // released.
    unsafe {
        let found: *mut bpf_sock = if is_tcp {
            bpf_sk_lookup_tcp(ctx.raw().as_ptr(), tuple, len, netns, 0)
        } else {
            bpf_sk_lookup_udp(ctx.raw().as_ptr(), tuple, len, netns, 0)
        };
        if found.is_null() {
            return Found::Nothing;
        }
        let kind = Found::of(found, &dest.addr, is_tcp);
        bpf_sk_release(found.cast());
        kind
    }
}
