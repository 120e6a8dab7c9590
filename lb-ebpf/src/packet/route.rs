//! Where a packet goes next, by the kernel's own routes and neighbours.

use core::mem;

use aya_ebpf::{
    bindings::{
        BPF_FIB_LKUP_RET_BLACKHOLE, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_NOT_FWDED, BPF_FIB_LKUP_RET_PROHIBIT,
        BPF_FIB_LKUP_RET_SUCCESS, BPF_FIB_LKUP_RET_UNREACHABLE, bpf_fib_lookup, bpf_redir_neigh,
    },
    helpers::generated,
};
use lb_common::{Tuple, packet::Skb as _};

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

    /// Puts the packet into the other end of the device, as if it had come by there; for a packet with an Ethernet header at
    /// ingress. Where the neighbour is not known yet, it goes as [`Route::take`] has it.
    #[inline(always)]
    pub fn enter(&self, frame: &mut Frame) -> Fate {
        if !self.has_neighbour {
            return self.take(frame);
        }
        let mut ends = [0; 12];
        let (to, from) = ends.split_at_mut(6);
        to.copy_from_slice(&self.params.dmac);
        from.copy_from_slice(&self.params.smac);
        if frame.store(0, &ends, false).is_err() {
            return Fate::DROP;
        }
        // SAFETY: no precondition.
        Fate::of_helper(unsafe { generated::bpf_redirect_peer(self.params.ifindex, 0) })
    }

    /// Sends the packet there, past the programs at egress; the kernel finds the neighbour's link address.
    #[inline(always)]
    pub fn take(&self, frame: &mut Frame) -> Fate {
        frame.mark_sent_on();
        // SAFETY: integers, for which zero is a value; a gateway may be of the other family.
        unsafe {
            let mut next: bpf_redir_neigh = mem::zeroed();
            next.nh_family = self.params.family.into();
            if self.params.family == AF_INET6 {
                next.__bindgen_anon_1.ipv6_nh = self.params.__bindgen_anon_4.ipv6_dst;
            } else {
                next.__bindgen_anon_1.ipv4_nh = self.params.__bindgen_anon_4.ipv4_dst;
            }
            let size = mem::size_of::<bpf_redir_neigh>() as i32;
            Fate::of_helper(generated::bpf_redirect_neigh(self.params.ifindex, &raw mut next, size, 0))
        }
    }
}
