//! The maps, and the values that the loader sets before the programs are verified.

use aya_ebpf::{
    Global,
    bindings::BPF_F_NO_PREALLOC,
    btf_maps::{
        Array, HashMap, LruHashMap, PerCpuArray, SkStorage,
        lpm_trie::{Key, LpmTrie},
    },
    macros::btf_map,
};
use lb_common::{
    Addr, Affinity, AffinityKey, Backend, BackendStats, Counter, Device, Flow, FlowKey, FragmentKey, FragmentPorts,
    Frontend, FrontendKey, LogGate, MAGLEV_LEN, Maglev, MaglevKey, Names, NodeAddr, PodPath, PortStats, Range,
    RangeKey, Service, Slot, SlotKey, Tables, TcpSock, Translation, Translations, capacity,
};

use crate::packet::Scratch;

const NO_PREALLOC: usize = BPF_F_NO_PREALLOC as usize;

/// What clients dial.
#[btf_map]
pub static FRONTENDS: HashMap<FrontendKey, Frontend, { capacity::FRONTENDS }, NO_PREALLOC> = HashMap::new();

/// Which keys `FRONTENDS` can have: see [`FrontendKey::bit`].
#[btf_map]
pub static FRONTEND_BITS: Array<u64, { capacity::FRONTEND_BITS }> = Array::new();

/// What the frontends of a service port share.
#[btf_map]
pub static SERVICES: HashMap<u32, Service, { capacity::SERVICES }, NO_PREALLOC> = HashMap::new();

/// The backend lists.
#[btf_map]
pub static SLOTS: HashMap<SlotKey, Slot, { capacity::SLOTS }, NO_PREALLOC> = HashMap::new();

/// The backends by id.
#[btf_map]
pub static BACKENDS: HashMap<u32, Backend, { capacity::BACKENDS }, NO_PREALLOC> = HashMap::new();

/// Whose service port an id is; read by people and by the command line.
#[btf_map]
pub static NAMES: HashMap<u32, Names, { capacity::SERVICES }, NO_PREALLOC> = HashMap::new();

/// Where NodePorts answer.
#[btf_map]
pub static NODE_ADDRS: HashMap<Addr, NodeAddr, { capacity::NODE_ADDRS }, NO_PREALLOC> = HashMap::new();

/// What UDP sockets were given.
#[btf_map]
pub static SOCKS: SkStorage<Translations> = SkStorage::new();

/// What TCP sockets were given: see `tcp_socks`.
#[btf_map]
pub static TCP_SOCKS: Array<TcpSock, { capacity::TCP_SOCKS }> = Array::new();

/// What TCP sockets were given whose place in `TCP_SOCKS` was taken, by socket cookie.
#[btf_map]
pub static TCP_MORE: HashMap<u64, Translation, { capacity::TCP_MORE }, NO_PREALLOC> = HashMap::new();

/// What this node's sockets did with a service port.
#[btf_map]
pub static PORT_STATS: HashMap<u32, PortStats, { capacity::PORT_STATS }, NO_PREALLOC> = HashMap::new();

/// What this node's sockets do with a backend.
#[btf_map]
pub static BACKEND_STATS: HashMap<u32, BackendStats, { capacity::BACKEND_STATS }, NO_PREALLOC> = HashMap::new();

/// Which sources may come to a service port's load balancer addresses.
#[btf_map]
pub static SOURCE_RANGES: LpmTrie<Range, u32, { capacity::SOURCE_RANGES }> = LpmTrie::new();

/// Backends by the hash of a flow, for the scheduler `mh`.
#[btf_map]
pub static MAGLEV: HashMap<MaglevKey, Maglev, { capacity::MAGLEV }, NO_PREALLOC> = HashMap::new();

/// Flows of packets. No LRU: a flow that is known is never given up for a new one.
#[btf_map]
pub static FLOWS: HashMap<FlowKey, Flow, { capacity::FLOWS }, NO_PREALLOC> = HashMap::new();

/// The ports of datagrams that come in fragments. What is pushed out early costs one datagram.
#[btf_map]
pub static FRAGMENTS: LruHashMap<FragmentKey, FragmentPorts, { capacity::FRAGMENTS }> = LruHashMap::new();

/// The node's network devices.
#[btf_map]
pub static DEVICES: HashMap<u32, Device, { capacity::DEVICES }, NO_PREALLOC> = HashMap::new();

/// The pods that have chosen another path than that of sockets, by the cookie of their network namespace.
#[btf_map]
pub static PATHS: HashMap<u64, PodPath, { capacity::PATHS }, NO_PREALLOC> = HashMap::new();

/// How many entries `PATHS` has: most nodes have none, and then nobody looks for one.
#[btf_map]
pub static PATHS_USED: Array<u32, 1> = Array::new();

/// Which backend a client sticks to.
#[btf_map]
pub static AFFINITY: HashMap<AffinityKey, Affinity, { capacity::AFFINITY }, NO_PREALLOC> = HashMap::new();

/// How many sockets the agent ended for each service port, since their backend had gone. No program uses it: it stands
/// here so that it is made and pinned with the others.
#[btf_map]
pub static PORT_KILLED: HashMap<u32, u64, { capacity::PORT_KILLED }, NO_PREALLOC> = HashMap::new();

/// Events, by [`Counter`].
#[btf_map]
pub static COUNTERS: PerCpuArray<u64, { Counter::ALL.len() }> = PerCpuArray::new();

/// The packet at hand, on each CPU.
#[btf_map]
pub static SCRATCH: PerCpuArray<Scratch, 1> = PerCpuArray::new();

/// Whether anybody reads the log.
#[btf_map]
pub static LOG_GATE: PerCpuArray<LogGate, 1> = PerCpuArray::new();

/// Whether the kernel has bpf_set_retval (5.18). Without it a refused call fails with EPERM.
#[unsafe(no_mangle)]
pub static SET_RETVAL: Global<u8> = Global::new(0);

/// Names this load of the programs: see `Translation::is_forgotten_by`.
#[unsafe(no_mangle)]
pub static GENERATION: Global<u32> = Global::new(1);

/// Cookie of the node's own network namespace; 0 where the kernel does not tell it (before 5.14), and then it is the
/// first one.
#[unsafe(no_mangle)]
pub static HOST_NETNS: Global<u64> = Global::new(0);

/// The first port that packets sent on behalf of others may come from.
#[unsafe(no_mangle)]
pub static SNAT_FIRST: Global<u16> = Global::new(1024);

/// How many there are.
#[unsafe(no_mangle)]
pub static SNAT_COUNT: Global<u32> = Global::new(28_976);

/// Counts an event on this CPU.
#[inline(always)]
pub fn count(counter: Counter) {
    count_at(counter as u32);
}

/// The same by its number.
#[inline(always)]
pub fn count_at(counter: u32) {
    if let Some(value) = COUNTERS.get_ptr_mut(counter) {
        // SAFETY: the value of a per-CPU array, aligned to 8; only this CPU's programs write it.
        unsafe { *value += 1 };
    }
}

/// The BPF maps as `select` reads them.
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
    fn service(&self, id: u32) -> Option<Service> {
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
        // The compiler knows that the place is in bounds, and would leave the check out that the verifier wants to see.
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
