//! Where a packet goes next, by the kernel's own routes and neighbours.

use core::mem;

use aya_ebpf::{
    bindings::{
        BPF_FIB_LKUP_RET_BLACKHOLE, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_NOT_FWDED, BPF_FIB_LKUP_RET_PROHIBIT,
        BPF_FIB_LKUP_RET_SUCCESS, BPF_FIB_LKUP_RET_UNREACHABLE, bpf_fib_lookup, bpf_redir_neigh,
    },
    helpers::generated,
};
use lb_common::{Hop, Tuple, packet::Skb as _};

use super::{fate::Fate, skb::Frame};

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// What the routes say about a destination.
pub enum Way {
    /// Out of a device, to a neighbour.
    Device,
    /// To this node itself, or nowhere that is known.
    Here,
    /// There is none, and the sender is to know.
    Unreachable,
    /// There is one of a kind that cannot be taken from here.
    Other,
}

/// The answer of the kernel.
pub struct Route {
    params: bpf_fib_lookup,
    pub way: Way,
    /// Whether the neighbour's link address is known.
    has_neighbour: bool,
}

impl Route {
    /// Looks up the way of a packet that comes in and shall be `to`. The length is not asked about: a large packet may
    /// still be cut into segments.
    #[inline(always)]
    pub fn find(frame: Frame, to: &Tuple, proto: u8, v6: bool) -> Self {
        // SAFETY: integers, for which zero is a value.
        let mut params: bpf_fib_lookup = unsafe { mem::zeroed() };
        params.family = if v6 { AF_INET6 } else { AF_INET };
        params.l4_protocol = proto;
        params.sport = to.src_port.to_be();
        params.dport = to.dst_port.to_be();
        params.ifindex = frame.ifindex();
        let (src, dst) = (to.src.words(), to.dst.words());
        if v6 {
            params.__bindgen_anon_3.ipv6_src = src;
            params.__bindgen_anon_4.ipv6_dst = dst;
        } else {
            params.__bindgen_anon_3.ipv4_src = src[3];
            params.__bindgen_anon_4.ipv4_dst = dst[3];
        }
        let size = mem::size_of::<bpf_fib_lookup>() as i32;
        // SAFETY: the context, and a struct of that size.
        let code = unsafe { generated::bpf_fib_lookup(frame.raw(), &raw mut params, size, 0) } as u32;
        let way = match code {
            BPF_FIB_LKUP_RET_SUCCESS | BPF_FIB_LKUP_RET_NO_NEIGH => Way::Device,
            BPF_FIB_LKUP_RET_NOT_FWDED => Way::Here,
            BPF_FIB_LKUP_RET_BLACKHOLE | BPF_FIB_LKUP_RET_UNREACHABLE | BPF_FIB_LKUP_RET_PROHIBIT => Way::Unreachable,
            _ => Way::Other,
        };
        Self { params, way, has_neighbour: code == BPF_FIB_LKUP_RET_SUCCESS }
    }

    /// The device.
    #[inline(always)]
    pub fn ifindex(&self) -> u32 {
        self.params.ifindex
    }

    /// What the packets behind one whose network header is at `l3` need not ask, until a while after `now`. Those without an
    /// Ethernet header have no place for link addresses.
    #[inline(always)]
    pub fn keep(&self, hop: &mut Hop, l3: u32, now: u64) {
        hop.until = if self.has_neighbour && l3 != 0 { now + Hop::LASTS } else { 0 };
        hop.ifindex = self.params.ifindex;
        let (to, from) = hop.ends.split_at_mut(6);
        to.copy_from_slice(&self.params.dmac);
        from.copy_from_slice(&self.params.smac);
    }

    /// The neighbour; it may be of the other family.
    #[inline(always)]
    pub fn neighbour(&self) -> bpf_redir_neigh {
        // SAFETY: integers, for which zero is a value, and of which all are written.
        unsafe {
            let mut neighbour: bpf_redir_neigh = mem::zeroed();
            neighbour.nh_family = self.params.family.into();
            if self.params.family == AF_INET6 {
                neighbour.__bindgen_anon_1.ipv6_nh = self.params.__bindgen_anon_4.ipv6_dst;
            } else {
                neighbour.__bindgen_anon_1.ipv4_nh = self.params.__bindgen_anon_4.ipv4_dst;
            }
            neighbour
        }
    }
}

/// Sends the packet out of a device to a neighbour, past the programs at egress; the kernel finds the link address, and looks
/// after it.
#[inline(always)]
pub fn to_neighbour(frame: &mut Frame, ifindex: u32, neighbour: &mut bpf_redir_neigh) -> Fate {
    frame.mark_sent_on();
    let size = mem::size_of::<bpf_redir_neigh>() as i32;
    // SAFETY: a struct of that size.
    Fate::of_helper(unsafe { generated::bpf_redirect_neigh(ifindex, neighbour, size, 0) })
}

/// The same with the link addresses that are known.
#[inline(always)]
pub fn to_link(frame: &mut Frame, hop: &Hop) -> Fate {
    if frame.store(0, &hop.ends, false).is_err() {
        return Fate::DROP;
    }
    frame.mark_sent_on();
    // SAFETY: no precondition.
    Fate::of_helper(unsafe { generated::bpf_redirect(hop.ifindex, 0) })
}

/// Puts the packet into the other end of a device, as if it had come by there.
#[inline(always)]
pub fn into_pod(frame: &mut Frame, hop: &Hop) -> Fate {
    if frame.store(0, &hop.ends, false).is_err() {
        return Fate::DROP;
    }
    // SAFETY: no precondition.
    Fate::of_helper(unsafe { generated::bpf_redirect_peer(hop.ifindex, 0) })
}
