//! The next hop of a packet, by the kernel's own routes and neighbours.

use core::mem;

use aya_ebpf::{
    bindings::{
        BPF_FIB_LKUP_RET_BLACKHOLE, BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_NO_NEIGH,
        BPF_FIB_LKUP_RET_NOT_FWDED, BPF_FIB_LKUP_RET_PROHIBIT, BPF_FIB_LKUP_RET_SUCCESS, BPF_FIB_LKUP_RET_UNREACHABLE,
        BPF_FIB_LKUP_RET_UNSUPP_LWT, BPF_FIB_LOOKUP_SRC, bpf_fib_lookup, bpf_redir_neigh,
    },
    helpers::generated,
};
use lb_common::{
    Addr, Hop, Tuple,
    packet::{Packet, Skb as _, SkbSum},
};

use super::{
    skb::{ETHERNET, Frame},
    verdict::PacketVerdict,
};
use crate::maps::DEVICES;

/// A length that fits each route: it has the kernel write the route's MTU in its place (5.12).
const ANY_LENGTH: u16 = 1;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// Result of a FIB lookup.
pub enum Fib {
    /// A device and a neighbour.
    Device,
    /// This node itself, or no route known to bpf_fib_lookup.
    Local,
    /// No route: the sender gets an ICMP error.
    Unreachable,
    /// A route that encapsulates: the kernel's own forwarding alone takes it.
    Encap,
    /// No result: the device does not forward.
    Unsupported,
}

/// A FIB lookup with its result. In `Scratch`, where the verifier requires no initialisation.
#[repr(C)]
pub struct Route {
    params: bpf_fib_lookup,
    /// The neighbour to redirect to; of no family before a lookup for the packet.
    neighbour: bpf_redir_neigh,
    /// True if the link address of the neighbour is known.
    has_neighbour: bool,
}

impl Route {
    /// Begins a packet: no lookup yet.
    #[inline(always)]
    pub fn reset(&mut self) {
        self.neighbour.nh_family = 0;
    }

    /// True after a lookup for the packet.
    #[inline(always)]
    pub fn is_known(&self) -> bool {
        self.neighbour.nh_family != 0
    }

    /// Looks up the next hop of an incoming packet from `src` to the destination of `to`. Without a check of the
    /// length, since the packet may be segmented or fragmented later.
    #[inline(always)]
    pub fn lookup(&mut self, frame: Frame, packet: &Packet, src: &Addr, to: &Tuple) -> Fib {
        self.lookup_from(frame, packet, (src, to.src_port), to)
    }

    /// As [`Route::lookup`], with another source port.
    #[inline(always)]
    pub fn lookup_from(&mut self, frame: Frame, packet: &Packet, from: (&Addr, u16), to: &Tuple) -> Fib {
        self.lookup_with(0, frame, packet, from, to)
    }

    /// Looks up as [`Route::lookup`] the source address that packets of this node have by that route, which becomes
    /// that of `to`. It stays on kernels before 6.7, and without such an address.
    #[inline(never)]
    pub fn find_source(&mut self, frame: Frame, packet: &Packet, to: &mut Tuple) {
        let from = (&packet.tuple.src, to.src_port);
        if !matches!(self.lookup_with(BPF_FIB_LOOKUP_SRC, frame, packet, from, to), Fib::Device) {
            self.lookup_with(0, frame, packet, from, to);
            return;
        }
        // SAFETY: integers, written by the lookup.
        to.src = unsafe {
            if packet.v6 {
                Addr::from_words(self.params.__bindgen_anon_3.ipv6_src)
            } else {
                Addr::from_v4_word(self.params.__bindgen_anon_3.ipv4_src)
            }
        };
    }

    #[inline(always)]
    fn lookup_with(
        &mut self,
        flags: u32,
        frame: Frame,
        packet: &Packet,
        (src, src_port): (&Addr, u16),
        to: &Tuple,
    ) -> Fib {
        let params = &mut self.params;
        params.family = if packet.v6 { AF_INET6 } else { AF_INET };
        params.l4_protocol = packet.proto;
        params.sport = src_port.to_be();
        params.dport = to.dst_port.to_be();
        params.__bindgen_anon_1.tot_len = ANY_LENGTH;
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
        let code = unsafe { generated::bpf_fib_lookup(frame.raw(), &raw mut self.params, size, flags) } as u32;
        self.has_neighbour = code == BPF_FIB_LKUP_RET_SUCCESS;
        // May differ from the family of the packet.
        self.neighbour.nh_family = self.params.family.into();
        // SAFETY: integers, written here or by the kernel.
        unsafe { self.neighbour.__bindgen_anon_1.ipv6_nh = self.params.__bindgen_anon_4.ipv6_dst };
        match code {
            // Before 5.12 the kernel compares with the device's MTU, after all else.
            BPF_FIB_LKUP_RET_SUCCESS | BPF_FIB_LKUP_RET_NO_NEIGH | BPF_FIB_LKUP_RET_FRAG_NEEDED => Fib::Device,
            BPF_FIB_LKUP_RET_NOT_FWDED => Fib::Local,
            BPF_FIB_LKUP_RET_BLACKHOLE | BPF_FIB_LKUP_RET_UNREACHABLE | BPF_FIB_LKUP_RET_PROHIBIT => Fib::Unreachable,
            BPF_FIB_LKUP_RET_UNSUPP_LWT => Fib::Encap,
            _ => Fib::Unsupported,
        }
    }

    /// Index of the output device.
    #[inline(always)]
    pub fn ifindex(&self) -> u32 {
        self.params.ifindex
    }

    /// The MTU of the next hop on a device with an MTU of `device`: the route may have a smaller one.
    #[inline(always)]
    pub fn mtu(&self, device: u32) -> u32 {
        // SAFETY: an integer, written by the lookup.
        let route = u32::from(unsafe { self.params.__bindgen_anon_1.mtu_result });
        if self.is_known() && route > u32::from(ANY_LENGTH) && (device == 0 || route < device) { route } else { device }
    }

    /// Stores the next hop for later packets of the flow, valid for [`Hop::LASTS`] from `now`. Packets without an
    /// Ethernet header have no link addresses, and need a lookup each; so do packets by a route with an MTU
    /// of its own, which a next hop does not have.
    #[inline(always)]
    pub fn store(&self, hop: &mut Hop, l3: u32, now: u64) {
        hop.ifindex = self.params.ifindex;
        if !self.has_neighbour || l3 != ETHERNET || self.has_own_mtu() {
            return hop.forget();
        }
        hop.until = now + Hop::LASTS;
        let (to, from) = hop.ends.split_at_mut(6);
        to.copy_from_slice(&self.params.dmac);
        from.copy_from_slice(&self.params.smac);
    }

    #[inline(always)]
    fn has_own_mtu(&self) -> bool {
        // SAFETY: read at once; an element that is replaced meanwhile stays until the RCU grace period ends.
        unsafe { DEVICES.get(self.ifindex()) }.is_some_and(|device| self.mtu(device.mtu) != device.mtu)
    }

    /// Redirects the packet to the neighbour; the kernel resolves and confirms the link address. Egress programs let
    /// the packet pass.
    #[inline(always)]
    pub fn redirect_to_neighbour(&mut self, frame: &mut Frame) -> PacketVerdict {
        frame.mark_redirected();
        let size = mem::size_of::<bpf_redir_neigh>() as i32;
        // SAFETY: a struct of that size.
        PacketVerdict::of_helper(unsafe {
            generated::bpf_redirect_neigh(self.ifindex(), &raw mut self.neighbour, size, 0)
        })
    }
}

/// Redirects the packet to a device, with known link addresses.
#[inline(always)]
pub fn redirect_to_link(frame: &mut Frame, hop: &Hop) -> PacketVerdict {
    if frame.store(0, &hop.ends, SkbSum::Keep).is_err() {
        return PacketVerdict::DROP;
    }
    frame.mark_redirected();
    // SAFETY: no precondition.
    PacketVerdict::of_helper(unsafe { generated::bpf_redirect(hop.ifindex, 0) })
}

/// Redirects the packet to the peer of a device, in the network namespace of a pod.
#[inline(always)]
pub fn redirect_into_pod(frame: &mut Frame, hop: &Hop) -> PacketVerdict {
    if frame.store(0, &hop.ends, SkbSum::Keep).is_err() {
        return PacketVerdict::DROP;
    }
    // SAFETY: no precondition.
    PacketVerdict::of_helper(unsafe { generated::bpf_redirect_peer(hop.ifindex, 0) })
}
