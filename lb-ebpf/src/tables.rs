//! The BPF maps as `select` reads them. Their state is in `stats`.

use aya_ebpf::btf_maps::lpm_trie::Key;
use lb_common::{
    Addr, Backend, Frontend, FrontendKey, MAGLEV_LEN, MaglevKey, NodeAddr, PortBlock, PortBlockKey, Range, RangeKey,
    ServiceEntry, Slot, SlotKey, Tables,
};

use crate::maps::{
    BACKENDS, CLUSTER_RANGES, FRONTEND_BITS, FRONTENDS, MAGLEV, NODE_ADDRS, PORT_RANGES, SERVICES, SLOTS, SOURCE_RANGES,
};

/// The maps of the kernel.
pub struct Kernel;

impl Tables for Kernel {
    #[inline(always)]
    fn may_have(&self, key: &FrontendKey) -> bool {
        let (word, bit) = key.bit();
        FRONTEND_BITS.get(word).is_some_and(|bits| bits & bit != 0)
    }

    #[inline(always)]
    fn frontend(&self, key: &FrontendKey) -> Option<Frontend> {
        // SAFETY: copied at once; an element that is replaced meanwhile stays until the RCU grace period ends.
        unsafe { FRONTENDS.get(key) }.copied()
    }

    #[inline(always)]
    fn port_range(&self, dest: &FrontendKey) -> Option<Frontend> {
        let found = port_range(dest);
        if found == 0 {
            return None;
        }
        Some(Frontend { service: found as u32, kind: (found >> 32) as u8, ..Frontend::NONE })
    }

    #[inline(always)]
    fn in_cluster_ranges(&self, addr: &Addr) -> bool {
        // SAFETY: an element of an array map, which is never freed; the agent writes the length last.
        CLUSTER_RANGES.get_ptr(0).is_some_and(|ranges| unsafe { &*ranges }.contain(addr))
    }

    #[inline(always)]
    fn service(&self, id: u32) -> Option<ServiceEntry> {
        // SAFETY: as above.
        unsafe { SERVICES.get(id) }.copied()
    }

    #[inline(always)]
    fn slot(&self, key: &SlotKey) -> Option<Slot> {
        // SAFETY: as above.
        unsafe { SLOTS.get(key) }.copied()
    }

    #[inline(always)]
    fn backend(&self, id: u32) -> Option<Backend> {
        // SAFETY: as above.
        unsafe { BACKENDS.get(id) }.copied()
    }

    #[inline(always)]
    fn node_addr(&self, addr: &Addr) -> Option<NodeAddr> {
        // SAFETY: as above.
        unsafe { NODE_ADDRS.get(addr) }.copied()
    }

    #[inline(always)]
    fn in_source_ranges(&self, service: u32, addr: &Addr) -> bool {
        SOURCE_RANGES.get(&Key::new(RangeKey::EXACT, Range { service, addr: *addr })).is_some()
    }

    #[inline(always)]
    fn maglev(&self, key: &MaglevKey, place: u32) -> Option<u32> {
        let table = MAGLEV.get_ptr(key)?;
        // The compiler knows that the place is in bounds, and would remove the check that the verifier requires.
        let mut place = u64::from(place);
        // SAFETY: a move of a register to itself.
        unsafe { core::arch::asm!("{0} = {0}", inlateout(reg) place, options(nomem, nostack)) };
        if place >= MAGLEV_LEN as u64 {
            return None;
        }
        // SAFETY: within the array; an element that is replaced meanwhile stays until the RCU grace period ends.
        Some(unsafe { (&raw const (*table).backends).cast::<u32>().add(place as usize).read() })
    }
}

/// The entry of `PORT_RANGES` with the port of a destination, in one register: the service port, and the kind in the
/// upper half; 0 for none. Not inlined: the frames of callers and callees share 512 bytes of stack.
#[inline(never)]
fn port_range(dest: &FrontendKey) -> u64 {
    match PORT_RANGES.get(&Key::new(PortBlockKey::EXACT, PortBlock::of(dest))) {
        Some(frontend) => u64::from(frontend.service) | u64::from(frontend.kind) << 32,
        None => 0,
    }
}
