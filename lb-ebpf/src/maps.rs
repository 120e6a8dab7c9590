//! The maps, but for the programs' own scratch space (`packet::scratch`) and the log (`log`).

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    btf_maps::{Array, ArrayOfMaps, HashMap, LruHashMap, PerCpuArray, RingBuf, SkStorage, SockMap, lpm_trie::LpmTrie},
    macros::btf_map,
};
use lb_common::{
    Addr, Affinity, AffinityKey, Announced, Attempt, Backend, BackendStats, ClusterRanges, ConflictEntry, ConflictKey,
    Counter, Device, EarlyFragment, EarlyKey, EjectStats, EjectStatsKey, EjectionKey, Ejections, Flow, FlowKey,
    FragmentKey, FragmentPorts, Frontend, FrontendKey, LinkAddr, LogGate, Maglev, MaglevKey, Names, NetnsAddrs,
    NodeAddr, Opening, PodModeEntry, PortBlock, PortStats, Range, ServiceEntry, Slot, SlotKey, TcpSock, Translation,
    Translations, UdpSock, WatchCell, capacity,
};

const NO_PREALLOC: usize = BPF_F_NO_PREALLOC as usize;

/// Frontends by address, port and protocol.
#[btf_map]
pub static FRONTENDS: HashMap<FrontendKey, Frontend, { capacity::FRONTENDS }, NO_PREALLOC> = HashMap::new();

/// Frontends by blocks of ports, the smallest block first.
#[btf_map]
pub static PORT_RANGES: LpmTrie<PortBlock, Frontend, { capacity::PORT_RANGES }> = LpmTrie::new();

/// Bits of the ports and addresses in `FRONTENDS`, and of the addresses in `PORT_RANGES`: see [`FrontendKey::bit`].
#[btf_map]
pub static FRONTEND_BITS: Array<u64, { capacity::FRONTEND_BITS }> = Array::new();

/// Ranges of cluster IPs.
#[btf_map]
pub static CLUSTER_RANGES: Array<ClusterRanges, 1> = Array::new();

/// Service ports by id.
#[btf_map]
pub static SERVICES: HashMap<u32, ServiceEntry, { capacity::SERVICES }, NO_PREALLOC> = HashMap::new();

/// Slots of the backend lists.
#[btf_map]
pub static SLOTS: HashMap<SlotKey, Slot, { capacity::SLOTS }, NO_PREALLOC> = HashMap::new();

/// Backends by id.
#[btf_map]
pub static BACKENDS: HashMap<u32, Backend, { capacity::BACKENDS }, NO_PREALLOC> = HashMap::new();

/// Names of service ports by id, for people and the command line.
#[btf_map]
pub static NAMES: HashMap<u32, Names, { capacity::SERVICES }, NO_PREALLOC> = HashMap::new();

/// Addresses of the node that serve NodePorts.
#[btf_map]
pub static NODE_ADDRS: HashMap<Addr, NodeAddr, { capacity::NODE_ADDRS }, NO_PREALLOC> = HashMap::new();

/// Marks of ports to which sockets were bound at a single address: see `own`.
#[btf_map]
pub static BOUND_PORTS: Array<u32, { capacity::BOUND_PORTS }> = Array::new();

/// Rev-nat entries of UDP sockets with one of them: see `udp_socks`.
#[btf_map]
pub static UDP_SOCKS: Array<UdpSock, { capacity::UDP_SOCKS }> = Array::new();

/// Numbers of UDP sockets with rev-nat entries, in `UDP_SOCKS` or `SOCKS`: see [`UdpSock::count`].
#[btf_map]
pub static UDP_COUNTS: Array<u64, { capacity::UDP_COUNTS }> = Array::new();

/// Rev-nat entries of other UDP sockets.
#[btf_map]
pub static SOCKS: SkStorage<Translations> = SkStorage::new();

/// Rev-nat entries of TCP sockets: see `tcp_socks`.
#[btf_map]
pub static TCP_SOCKS: Array<TcpSock, { capacity::TCP_SOCKS }> = Array::new();

/// Rev-nat entries of TCP sockets whose place in `TCP_SOCKS` was taken, by socket cookie.
#[btf_map]
pub static TCP_MORE: HashMap<u64, Translation, { capacity::TCP_MORE }, NO_PREALLOC> = HashMap::new();

/// Counts and turns of service ports by id.
#[btf_map]
pub static PORT_STATS: HashMap<u32, PortStats, { capacity::PORT_STATS }, NO_PREALLOC> = HashMap::new();

/// Counts of backends by id.
#[btf_map]
pub static BACKEND_STATS: HashMap<u32, BackendStats, { capacity::BACKEND_STATS }, NO_PREALLOC> = HashMap::new();

/// `loadBalancerSourceRanges` of service ports.
#[btf_map]
pub static SOURCE_RANGES: LpmTrie<Range, u32, { capacity::SOURCE_RANGES }> = LpmTrie::new();

/// Maglev tables of backend lists, for the scheduler `mh`.
#[btf_map]
pub static MAGLEV: HashMap<MaglevKey, Maglev, { capacity::MAGLEV }, NO_PREALLOC> = HashMap::new();

/// Flows, two entries each. No LRU: a known flow never makes room for a new one.
#[btf_map]
pub static FLOWS: HashMap<FlowKey, Flow, { capacity::FLOWS }, NO_PREALLOC> = HashMap::new();

/// Marks of the node's ends of flows: see [`lb_common::FlowEnds`].
#[btf_map]
pub static FLOW_ENDS: Array<u64, { capacity::FLOW_ENDS }> = Array::new();

/// The map that was `FLOWS` before a start with another size, while `FLOWS` may lack flows of it: see `packet::flow`.
/// At other times it is not used.
#[btf_map]
pub static FLOWS_BEFORE: HashMap<FlowKey, Flow, 1, NO_PREALLOC> = HashMap::new();

/// Flows that begin, in order of time on each CPU: see `packet::opening`.
#[btf_map]
pub static OPENING: Array<Opening, { capacity::OPENING }> = Array::new();

/// Ports of fragmented datagrams. An entry evicted too early costs one datagram.
#[btf_map]
pub static FRAGMENTS: LruHashMap<FragmentKey, FragmentPorts, { capacity::FRAGMENTS }> = LruHashMap::new();

/// Fragments that came before the first one of their datagram. An entry evicted too early costs one datagram.
#[btf_map]
pub static EARLY_FRAGMENTS: LruHashMap<EarlyKey, EarlyFragment, { capacity::EARLY_FRAGMENTS }> = LruHashMap::new();

/// Network devices of the node by index.
#[btf_map]
pub static DEVICES: HashMap<u32, Device, { capacity::DEVICES }, NO_PREALLOC> = HashMap::new();

/// Addresses for which the node answers ARP requests and neighbour solicitations.
#[btf_map]
pub static ANNOUNCED: HashMap<Addr, Announced, { capacity::ANNOUNCED }, NO_PREALLOC> = HashMap::new();

/// The time until which it answers (CLOCK_BOOTTIME, ns): a holder without a running agent stops by itself.
#[btf_map]
pub static ANNOUNCED_UNTIL: Array<u64, 1> = Array::new();

/// Link addresses in its answers by device; a device without an entry answers nothing.
#[btf_map]
pub static LINK_ADDRS: HashMap<u32, LinkAddr, { capacity::DEVICES }, NO_PREALLOC> = HashMap::new();

/// Other link addresses that claimed an address in `ANNOUNCED`.
#[btf_map]
pub static CONFLICTS: LruHashMap<ConflictKey, ConflictEntry, { capacity::CONFLICTS }> = LruHashMap::new();

/// Links without programs by which a pod sent packets to frontends, by index; the time of the first such packet
/// (CLOCK_MONOTONIC, ns), or [`lb_common::GETS_NO_PROGRAMS`].
#[btf_map]
pub static PACKET_LINKS: HashMap<u32, u64, { capacity::PACKET_LINKS }, NO_PREALLOC> = HashMap::new();

/// Sockets of the agent that drop what they receive, by protocol number: see `packet::socket_lookup`.
#[btf_map]
pub static SINKS: SockMap<{ capacity::SINKS }> = SockMap::new();

/// Pods with mode `packet` or `off`, by the cookie of their network namespace.
#[btf_map]
pub static POD_MODES: HashMap<u64, PodModeEntry, { capacity::POD_MODES }, NO_PREALLOC> = HashMap::new();

/// Source addresses of the sockets of each network namespace, while a Service has source ranges.
#[btf_map]
pub static NETNS_ADDRS: HashMap<u64, NetnsAddrs, { capacity::NETNS_ADDRS }, NO_PREALLOC> = HashMap::new();

/// Number of entries in `POD_MODES`: 0 on most nodes, which saves the look-up.
#[btf_map]
pub static POD_MODES_USED: Array<u32, 1> = Array::new();

/// Affinity: backends of clients.
#[btf_map]
pub static AFFINITY: HashMap<AffinityKey, Affinity, { capacity::AFFINITY }, NO_PREALLOC> = HashMap::new();

/// Results that clients saw of the backends of service ports with ejection.
#[btf_map]
pub static EJECTIONS: HashMap<EjectionKey, Ejections, { capacity::EJECTIONS }, NO_PREALLOC> = HashMap::new();

/// Failed handshakes and ejections, by service port and backend.
#[btf_map]
pub static EJECT_STATS: HashMap<EjectStatsKey, EjectStats, { capacity::EJECT_STATS }, NO_PREALLOC> = HashMap::new();

/// Handshakes of TCP sockets with backends of service ports with ejection.
#[btf_map]
pub static ATTEMPTS: SkStorage<Attempt> = SkStorage::new();

/// Sockets that the agent ended since their backend was removed, by service port. No program uses the map: declared
/// here so that it is created and pinned with the others.
#[btf_map]
pub static PORT_KILLED: HashMap<u32, u64, { capacity::PORT_KILLED }, NO_PREALLOC> = HashMap::new();

/// Event counts by [`Counter`].
#[btf_map]
pub static COUNTERS: PerCpuArray<u64, { Counter::ALL.len() }> = PerCpuArray::new();

/// Gates of `beeline watch`, and the number of records without room, by [`WatchCell`].
#[btf_map]
pub static WATCH: Array<u64, { WatchCell::COUNT }> = Array::new();

/// A ring buffer.
pub type Ring = RingBuf<(), { capacity::WATCH_RING }>;

/// The buffer of a running `beeline watch`, which makes it, for records of types `WatchRecord` and `WatchResult`.
#[btf_map]
pub static WATCH_RING: ArrayOfMaps<Ring, 1> = ArrayOfMaps::new();

/// State of the log.
#[btf_map]
pub static LOG_GATE: PerCpuArray<LogGate, 1> = PerCpuArray::new();
