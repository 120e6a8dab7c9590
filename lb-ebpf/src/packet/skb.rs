//! The kernel's sk_buff as an [`Skb`].

use core::{
    arch::asm,
    mem::{MaybeUninit, offset_of},
};

use aya_ebpf::{
    bindings::{
        __sk_buff, BPF_F_INGRESS, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM, bpf_adj_room_mode,
    },
    helpers::generated::{
        bpf_l4_csum_replace, bpf_redirect, bpf_skb_adjust_room, bpf_skb_change_tail, bpf_skb_load_bytes,
        bpf_skb_load_bytes_relative, bpf_skb_pull_data, bpf_skb_store_bytes, bpf_skb_vlan_pop,
    },
    programs::TcContext,
};
use lb_common::{
    Family, Hook, MASQUERADE_MARK,
    packet::{Patch, Skb, SkbSum, WriteError},
};

/// Mark in `tc_index` of a packet that was redirected at ingress: egress lets it pass.
const REDIRECTED: u16 = 0xbee1;

/// Mark in `tc_index` of a packet that is received anew: its second ingress lets it pass.
const RECEIVED_ANEW: u16 = 0xbee2;

/// `BPF_HDR_START_NET` (include/uapi/linux/bpf.h).
const NETWORK: u32 = 1;

/// Octets of an Ethernet header.
pub const ETHERNET: u32 = 14;

/// A packet at a device.
#[derive(Clone, Copy)]
pub struct Frame {
    skb: *mut __sk_buff,
}

impl Frame {
    #[inline(always)]
    pub fn new(ctx: TcContext) -> Self {
        Self { skb: ctx.skb.skb }
    }

    /// The context, for helpers.
    #[inline(always)]
    pub fn raw(&self) -> *mut core::ffi::c_void {
        self.skb.cast()
    }

    /// Index of the device.
    #[inline(always)]
    pub fn ifindex(&self) -> u32 {
        // SAFETY: the context is valid for the program's run; the verifier checks each access.
        unsafe { (*self.skb).ifindex }
    }

    /// Index of the device by which the packet entered the node; 0 for a packet of the node itself.
    #[inline(always)]
    pub fn entered_by(&self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.skb).ingress_ifindex }
    }

    /// Length of the packet, with its link header.
    #[inline(always)]
    pub fn len(&self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.skb).len }
    }

    /// The family of the packet. `None` for other protocols, and for packets of a VLAN.
    #[inline(always)]
    pub fn family(&self, hook: Hook) -> Option<Family> {
        const IPV4: u32 = 0x0800u16.to_be() as u32;
        const IPV6: u32 = 0x86ddu16.to_be() as u32;
        // SAFETY: as above.
        match unsafe { (*self.skb).protocol } {
            _ if self.is_of_a_vlan(hook) => None,
            IPV4 => Some(Family::V4),
            IPV6 => Some(Family::V6),
            _ => None,
        }
    }

    /// True for ARP that came in, unless it is of a VLAN.
    #[inline(always)]
    pub fn is_arp(&self) -> bool {
        const ARP: u32 = 0x0806u16.to_be() as u32;
        // SAFETY: as above.
        unsafe { (*self.skb).protocol == ARP && !self.is_of_a_vlan(Hook::Ingress) }
    }

    /// True if the frame belongs to the device of a VLAN. A frame that comes in with a tag that names none, which has a
    /// priority alone, belongs to its own device (`__netif_receive_skb_core`, net/core/dev.c).
    #[inline(always)]
    fn is_of_a_vlan(&self, hook: Hook) -> bool {
        /// `VLAN_VID_MASK` (include/linux/if_vlan.h).
        const NUMBER: u32 = 0xfff;
        // SAFETY: as above.
        let (is_tagged, tag) = unsafe { ((*self.skb).vlan_present != 0, (*self.skb).vlan_tci) };
        is_tagged && (hook as u8 == Hook::Egress as u8 || tag & NUMBER != 0)
    }

    /// Removes a tag that names no VLAN, as the kernel does when it receives the frame.
    #[inline(always)]
    pub fn remove_priority_tag(&mut self) {
        // SAFETY: the context.
        unsafe {
            if (*self.skb).vlan_present != 0 {
                bpf_skb_vlan_pop(self.skb);
            }
        }
    }

    /// True if the frame has the link address of another host: the device is promiscuous, or a port of a bridge.
    #[inline(always)]
    pub fn is_for_another_host(&self) -> bool {
        /// `PACKET_OTHERHOST` (include/uapi/linux/if_packet.h).
        const OTHER_HOST: u32 = 3;
        // SAFETY: as above.
        unsafe { (*self.skb).pkt_type == OTHER_HOST }
    }

    /// Asks netfilter to masquerade the packet: see [`MASQUERADE_MARK`].
    #[inline(always)]
    pub fn mark_for_masquerade(&mut self) {
        // SAFETY: as above.
        unsafe { (*self.skb).mark |= MASQUERADE_MARK };
    }

    /// Length of the outer headers with which a packet of a tunnel may begin: nothing tells it but the lengths of the
    /// packet with and without them.
    #[inline(always)]
    pub fn outer_headers(&self, family: Family) -> u32 {
        /// Outer headers: IPv4 alone, and IPv6 with a key and an option of gre.
        const LIKELY: core::ops::RangeInclusive<u32> = 20..=64;
        let mut start = MaybeUninit::<[u8; 6]>::uninit();
        // SAFETY: the helper writes six octets, or fails.
        let [_, _, v4, v4_low, v6, v6_low] = unsafe {
            if bpf_skb_load_bytes_relative(self.skb.cast(), 0, start.as_mut_ptr().cast(), 6, NETWORK) != 0 {
                return 0;
            }
            start.assume_init()
        };
        let length = match family {
            Family::V4 => u16::from_be_bytes([v4, v4_low]).into(),
            Family::V6 => u32::from(u16::from_be_bytes([v6, v6_low])) + 40,
        };
        // SAFETY: as above.
        let before = self.len().wrapping_sub(length);
        if LIKELY.contains(&before) { before } else { 0 }
    }

    /// Segment size (GSO), without headers; 0 for a packet that is not segmented.
    #[inline(always)]
    pub fn segment(&self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.skb).gso_size }
    }

    /// True after [`Frame::mark_redirected`].
    #[inline(always)]
    pub fn is_redirected(&self) -> bool {
        // SAFETY: as above.
        unsafe { (*self.skb).tc_index == u32::from(REDIRECTED) }
    }

    /// Marks the packet for egress programs, which let it pass.
    #[inline(always)]
    pub fn mark_redirected(&mut self) {
        // SAFETY: as above.
        unsafe { (*self.skb).tc_index = u32::from(REDIRECTED) };
    }

    /// True after [`Frame::receive_anew`].
    #[inline(always)]
    pub fn is_received_anew(&self) -> bool {
        // SAFETY: as above.
        unsafe { (*self.skb).tc_index == u32::from(RECEIVED_ANEW) }
    }

    /// Has the kernel receive the packet anew by its device: netfilter forgets what it has seen of it.
    #[inline(always)]
    pub fn receive_anew(&mut self) -> i32 {
        // SAFETY: as above.
        unsafe {
            (*self.skb).tc_index = u32::from(RECEIVED_ANEW);
            bpf_redirect(self.ifindex(), u64::from(BPF_F_INGRESS)) as i32
        }
    }

    /// Removes either mark.
    #[inline(always)]
    pub fn clear_redirected(&mut self) {
        // SAFETY: as above.
        unsafe { (*self.skb).tc_index = 0 };
    }

    /// Sets the length of the packet, and cancels a partial checksum of the header at `l4`. All octets after the link
    /// header are undefined then, and the next write must update the kernel's sum.
    #[inline(always)]
    pub fn resize(&mut self, len: u32, l4: u32) -> Result<(), WriteError> {
        // The kernel cancels a partial checksum whose start was removed, with the next update of a sum
        // (__skb_postpull_rcsum, include/linux/skbuff.h). So the octets are removed from the front.
        let cut = l4 + 1;
        // SAFETY: the context; the helpers check the lengths.
        unsafe {
            done(bpf_skb_change_tail(self.skb, len + cut, 0))?;
            done(bpf_skb_adjust_room(self.skb, -cut.cast_signed(), bpf_adj_room_mode::BPF_ADJ_ROOM_MAC, 0))
        }
    }

    /// Address of `len` octets from `at` on, if they are in the linear part. Valid until a helper is called.
    #[inline(always)]
    fn linear(&self, at: u32, len: u32) -> Option<*const u8> {
        let mut at = at as usize;
        // In one register, opaque to the compiler, which would compare a copy of it.
        // SAFETY: a move of a register to itself.
        unsafe { asm!("{0} = {0}", inlateout(reg) at, options(pure, nomem, nostack)) };
        // The verifier requires a bound (MAX_PACKET_OFF, kernel/bpf/verifier.c).
        if at > 0x3fff {
            return None;
        }
        let (data, end): (usize, usize);
        // SAFETY: two reads of the context. The verifier takes these 32 bits for pointers, and the compiler would widen
        // them by arithmetic that it forbids on pointers.
        unsafe {
            asm!("{0} = *(u32 *)({1} + {2})", out(reg) data, in(reg) self.skb, const offset_of!(__sk_buff, data));
            asm!("{0} = *(u32 *)({1} + {2})", out(reg) end, in(reg) self.skb, const offset_of!(__sk_buff, data_end));
        }
        let from = data + at;
        if from + len as usize > end { None } else { Some(from as *const u8) }
    }

    /// Swaps the link addresses of a packet with its IP header at `l3`, if it has an Ethernet header. False if a write
    /// fails.
    #[inline(always)]
    pub fn swap_link_addresses(&mut self, l3: u32) -> bool {
        if l3 != ETHERNET {
            return true;
        }
        let Some([a, b, c, d, e, f, g, h, i, j, k, l]) = self.load::<12>(0) else {
            return false;
        };
        self.store(0, &[g, h, i, j, k, l, a, b, c, d, e, f], SkbSum::Keep).is_ok()
    }

    /// Sends the packet back: out of its device at ingress, into it at egress.
    #[inline(always)]
    pub fn turn_around(&mut self, hook: Hook) -> i32 {
        self.mark_redirected();
        let flags = if hook as u8 == Hook::Egress as u8 { u64::from(BPF_F_INGRESS) } else { 0 };
        // SAFETY: no precondition.
        unsafe { bpf_redirect(self.ifindex(), flags) as i32 }
    }
}

#[inline(always)]
fn done(code: i64) -> Result<(), WriteError> {
    if code == 0 { Ok(()) } else { Err(WriteError) }
}

#[inline(always)]
fn recompute(skb_sum: SkbSum) -> u64 {
    match skb_sum {
        SkbSum::Update => BPF_F_RECOMPUTE_CSUM.into(),
        SkbSum::Keep => 0,
    }
}

impl Skb for Frame {
    #[inline(always)]
    fn words<const N: usize>(&self, at: u32) -> Option<[u32; N]> {
        let len = size_of::<[u32; N]>() as u32;
        let from = match self.linear(at, len) {
            Some(from) => from,
            None => {
                // SAFETY: the context; the helper checks the length, and makes the octets linear.
                done(unsafe { bpf_skb_pull_data(self.skb, at + len) }).ok()?;
                self.linear(at, len)?
            }
        };
        // SAFETY: within the packet. Each word is one load, which the verifier checks for alignment on machines that
        // require it (the kernel aligns IP headers: NET_IP_ALIGN).
        Some(unsafe { from.cast::<[u32; N]>().read() })
    }

    #[inline(always)]
    fn network_words<const N: usize>(&self) -> Option<[u32; N]> {
        let mut words = MaybeUninit::<[u32; N]>::uninit();
        let len = size_of::<[u32; N]>() as u32;
        // SAFETY: the helper writes all words, or fails.
        unsafe {
            let code = bpf_skb_load_bytes_relative(self.skb.cast(), 0, words.as_mut_ptr().cast(), len, NETWORK);
            if code == 0 { Some(words.assume_init()) } else { None }
        }
    }

    #[inline(always)]
    fn load<const N: usize>(&self, at: u32) -> Option<[u8; N]> {
        let mut bytes = MaybeUninit::<[u8; N]>::uninit();
        // SAFETY: the helper writes all N octets, or fails.
        unsafe {
            let code = bpf_skb_load_bytes(self.skb.cast(), at, bytes.as_mut_ptr().cast(), N as u32);
            if code == 0 { Some(bytes.assume_init()) } else { None }
        }
    }

    #[inline(always)]
    fn load_into<const N: usize>(&self, at: u32, to: &mut [u8; N]) -> Option<()> {
        // SAFETY: the helper writes N octets, or fails.
        let code = unsafe { bpf_skb_load_bytes(self.skb.cast(), at, to.as_mut_ptr().cast(), N as u32) };
        if code == 0 { Some(()) } else { None }
    }

    #[inline(always)]
    fn store<const N: usize>(&mut self, at: u32, bytes: &[u8; N], skb_sum: SkbSum) -> Result<(), WriteError> {
        let flags = recompute(skb_sum);
        // SAFETY: the helper reads N octets.
        done(unsafe { bpf_skb_store_bytes(self.skb, at, bytes.as_ptr().cast(), N as u32, flags) })
    }

    #[inline(always)]
    fn put_words<const N: usize>(&mut self, at: u32, words: &[u32; N], skb_sum: SkbSum) -> Result<(), WriteError> {
        let flags = recompute(skb_sum);
        // SAFETY: as above.
        done(unsafe { bpf_skb_store_bytes(self.skb, at, words.as_ptr().cast(), size_of_val(words) as u32, flags) })
    }

    #[inline(always)]
    fn patch_sum(&mut self, at: u32, diff: u32, patch: Patch) -> Result<(), WriteError> {
        let pseudo = if patch.pseudo_header { u64::from(BPF_F_PSEUDO_HDR) } else { 0 };
        let none = if patch.may_be_none { u64::from(BPF_F_MARK_MANGLED_0) } else { 0 };
        // SAFETY: as above.
        done(unsafe { bpf_l4_csum_replace(self.skb, at, 0, diff.into(), pseudo | none) })
    }
}
