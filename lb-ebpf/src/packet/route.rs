//! Where a packet goes next, by the kernel's own routes and neighbours.

use core::mem;

use aya_ebpf::{
    bindings::{
        BPF_FIB_LKUP_RET_BLACKHOLE, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_NOT_FWDED, BPF_FIB_LKUP_RET_PROHIBIT,
        BPF_FIB_LKUP_RET_SUCCESS, BPF_FIB_LKUP_RET_UNREACHABLE, bpf_fib_lookup, bpf_redir_neigh,
    },
    helpers::generated,
};
use lb_common::{
    Addr, Hop, Tuple,
    packet::{Packet, Skb as _},
};

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

/// A question to the kernel, and its answer. It stands in [`super::Scratch`], where nothing has to be cleared for the verifier.
#[repr(C)]
pub struct Route {
    params: bpf_fib_lookup,
    /// To whom the packet is sent on; of no family where the routes were not asked about it.
    neighbour: bpf_redir_neigh,
    /// Whether the neighbour's link address is known.
    has_neighbour: bool,
}

impl Route {
    /// The routes have not been asked about the packet at hand.
    #[inline(always)]
    pub fn forget(&mut self) {
        self.neighbour.nh_family = 0;
    }

    /// Whether they have.
    #[inline(always)]
    pub fn is_asked(&self) -> bool {
        self.neighbour.nh_family != 0
    }

    /// Looks up the way of a packet that comes in, as one from `src` to where `to` leads. The length is not asked about: a
    /// large packet may still be cut into segments.
    #[inline(always)]
    pub fn find(&mut self, frame: Frame, packet: &Packet, src: &Addr, to: &Tuple) -> Way {
        let params = &mut self.params;
        params.family = if packet.v6 { AF_INET6 } else { AF_INET };
        params.l4_protocol = packet.proto;
        params.sport = to.src_port.to_be();
        params.dport = to.dst_port.to_be();
        params.__bindgen_anon_1.tot_len = 0;
        params.ifindex = frame.ifindex();
        params.__bindgen_anon_2.flowinfo = 0;
        let (src, dst) = (src.words(), to.dst.words());
        if packet.v6 {
            params.__bindgen_anon_3.ipv6_src = src;
            params.__bindgen_anon_4.ipv6_dst = dst;
        } else {
            params.__bindgen_anon_3.ipv4_src = src[3];
            params.__bindgen_anon_4.ipv4_dst = dst[3];
        }
        let size = mem::size_of::<bpf_fib_lookup>() as i32;
        // SAFETY: the context, and a struct of that size.
        let code = unsafe { generated::bpf_fib_lookup(frame.raw(), &raw mut self.params, size, 0) } as u32;
        self.has_neighbour = code == BPF_FIB_LKUP_RET_SUCCESS;
        // It may be of the other family.
        self.neighbour.nh_family = self.params.family.into();
        // SAFETY: integers, all of which are written here or by the kernel.
        unsafe { self.neighbour.__bindgen_anon_1.ipv6_nh = self.params.__bindgen_anon_4.ipv6_dst };
        match code {
            BPF_FIB_LKUP_RET_SUCCESS | BPF_FIB_LKUP_RET_NO_NEIGH => Way::Device,
            BPF_FIB_LKUP_RET_NOT_FWDED => Way::Here,
            BPF_FIB_LKUP_RET_BLACKHOLE | BPF_FIB_LKUP_RET_UNREACHABLE | BPF_FIB_LKUP_RET_PROHIBIT => Way::Unreachable,
            _ => Way::Other,
        }
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
        hop.ifindex = self.params.ifindex;
        if !self.has_neighbour || l3 == 0 {
            return hop.forget();
        }
        hop.until = now + Hop::LASTS;
        let (to, from) = hop.ends.split_at_mut(6);
        to.copy_from_slice(&self.params.dmac);
        from.copy_from_slice(&self.params.smac);
    }

    /// Sends the packet out of a device to the neighbour, past the programs at egress; the kernel finds the link address, and
    /// looks after it.
    #[inline(always)]
    pub fn send(&mut self, frame: &mut Frame) -> Fate {
        frame.mark_sent_on();
        let size = mem::size_of::<bpf_redir_neigh>() as i32;
        // SAFETY: a struct of that size.
        Fate::of_helper(unsafe { generated::bpf_redirect_neigh(self.ifindex(), &raw mut self.neighbour, size, 0) })
    }
}

/// Sends the packet out of a device with the link addresses that are known.
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
