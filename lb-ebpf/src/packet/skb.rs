//! A packet of the kernel as [`Skb`] sees it.

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
        bpf_skb_pull_data, bpf_skb_store_bytes,
    },
    programs::TcContext,
};
use lb_common::packet::{Broken, Patch, Skb};

/// In `tc_index` of a packet that was sent on at ingress, so that egress leaves it alone.
const SENT_ON: u16 = 0xbee1;

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

    /// The context as helpers take it.
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

    /// Whether the packet is IPv6, or IPv4. None for anything else; what carries a VLAN tag belongs to the VLAN's device.
    #[inline(always)]
    pub fn is_v6(&self) -> Option<bool> {
        const IPV4: u32 = 0x0800u16.to_be() as u32;
        const IPV6: u32 = 0x86ddu16.to_be() as u32;
        // SAFETY: as above.
        let (protocol, tagged) = unsafe { ((*self.skb).protocol, (*self.skb).vlan_present != 0) };
        match protocol {
            _ if tagged => None,
            IPV4 => Some(false),
            IPV6 => Some(true),
            _ => None,
        }
    }

    /// Octets of each segment that this packet will be cut into, without headers; 0 for one that goes as it is.
    #[inline(always)]
    pub fn segment(&self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.skb).gso_size }
    }

    /// Whether [`Frame::mark_sent_on`] was called.
    #[inline(always)]
    pub fn is_sent_on(&self) -> bool {
        // SAFETY: as above.
        unsafe { (*self.skb).tc_index == u32::from(SENT_ON) }
    }

    /// Lets egress know that nothing is left to do.
    #[inline(always)]
    pub fn mark_sent_on(&mut self) {
        // SAFETY: as above.
        unsafe { (*self.skb).tc_index = u32::from(SENT_ON) };
    }

    /// Takes the mark off.
    #[inline(always)]
    pub fn unmark(&mut self) {
        // SAFETY: as above.
        unsafe { (*self.skb).tc_index = 0 };
    }

    /// Gives the packet another length, and forgets what a device was to do with the checksum of what begins at `l4`. All
    /// octets behind the link header are without meaning then, and the first that are written must be in the sum.
    #[inline(always)]
    pub fn resize(&mut self, len: u32, l4: u32) -> Result<(), Broken> {
        // An unfinished checksum is given up where the place that it begins at has gone, by the next call that looks after
        // sums (__skb_postpull_rcsum, include/linux/skbuff.h). So what is cut off is taken from the front.
        let cut = l4 + 1;
        // SAFETY: the context; the helpers check the lengths.
        unsafe {
            done(bpf_skb_change_tail(self.skb, len + cut, 0))?;
            done(bpf_skb_adjust_room(self.skb, -cut.cast_signed(), bpf_adj_room_mode::BPF_ADJ_ROOM_MAC, 0))
        }
    }

    /// Where `len` octets from `at` on are in memory, if they lie in one piece there. Good until a helper is called.
    #[inline(always)]
    fn in_one_piece(&self, at: u32, len: u32) -> Option<*const u8> {
        let mut at = at as usize;
        // In one register, of which the compiler knows nothing: it would compare a copy of it.
        // SAFETY: a move of a register to itself.
        unsafe { asm!("{0} = {0}", inlateout(reg) at, options(pure, nomem, nostack)) };
        // The verifier wants to know that it is small (MAX_PACKET_OFF, kernel/bpf/verifier.c).
        if at > 0x3fff {
            return None;
        }
        let (data, end): (usize, usize);
        // SAFETY: two reads of the context. The verifier knows what these 32 bits are, and the compiler would widen them by
        // arithmetic that has no meaning for addresses.
        unsafe {
            asm!("{0} = *(u32 *)({1} + {2})", out(reg) data, in(reg) self.skb, const offset_of!(__sk_buff, data));
            asm!("{0} = *(u32 *)({1} + {2})", out(reg) end, in(reg) self.skb, const offset_of!(__sk_buff, data_end));
        }
        let from = data + at;
        if from + len as usize > end { None } else { Some(from as *const u8) }
    }

    /// Sends the packet out of its device (or, where it was about to go out, into it).
    #[inline(always)]
    pub fn turn_around(&mut self, outbound: bool) -> i32 {
        self.mark_sent_on();
        let flags = if outbound { u64::from(BPF_F_INGRESS) } else { 0 };
        // SAFETY: no precondition.
        unsafe { bpf_redirect(self.ifindex(), flags) as i32 }
    }
}

#[inline(always)]
fn done(code: i64) -> Result<(), Broken> {
    if code == 0 { Ok(()) } else { Err(Broken) }
}

impl Skb for Frame {
    #[inline(always)]
    fn words<const N: usize>(&self, at: u32) -> Option<[u32; N]> {
        let len = size_of::<[u32; N]>() as u32;
        let from = match self.in_one_piece(at, len) {
            Some(from) => from,
            None => {
                // SAFETY: the context; the helper checks the length, and puts the octets together.
                done(unsafe { bpf_skb_pull_data(self.skb, at + len) }).ok()?;
                self.in_one_piece(at, len)?
            }
        };
        // SAFETY: so many octets are there. Each word is one load, for which the verifier asks on machines that want it
        // aligned (the kernel lays out packets so that it is: NET_IP_ALIGN).
        Some(unsafe { from.cast::<[u32; N]>().read() })
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
    fn store<const N: usize>(&mut self, at: u32, bytes: &[u8; N], in_sum: bool) -> Result<(), Broken> {
        let flags = if in_sum { u64::from(BPF_F_RECOMPUTE_CSUM) } else { 0 };
        // SAFETY: the helper reads N octets.
        done(unsafe { bpf_skb_store_bytes(self.skb, at, bytes.as_ptr().cast(), N as u32, flags) })
    }

    #[inline(always)]
    fn put_words<const N: usize>(&mut self, at: u32, words: &[u32; N], in_sum: bool) -> Result<(), Broken> {
        let flags = if in_sum { u64::from(BPF_F_RECOMPUTE_CSUM) } else { 0 };
        // SAFETY: as above.
        done(unsafe { bpf_skb_store_bytes(self.skb, at, words.as_ptr().cast(), size_of_val(words) as u32, flags) })
    }

    #[inline(always)]
    fn patch_sum(&mut self, at: u32, diff: u32, what: Patch) -> Result<(), Broken> {
        let pseudo = if what.pseudo_header { u64::from(BPF_F_PSEUDO_HDR) } else { 0 };
        let none = if what.may_be_none { u64::from(BPF_F_MARK_MANGLED_0) } else { 0 };
        // SAFETY: as above.
        done(unsafe { bpf_l4_csum_replace(self.skb, at, 0, diff.into(), pseudo | none) })
    }
}
