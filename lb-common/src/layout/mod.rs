//! Keys and values of the BPF maps, byte for byte. A change is a new [`LAYOUT_VERSION`]; a field whose meaning changes
//! gets another name, since two versions compare their maps by names and offsets of fields.
//!
//! Ports and numbers are in host order, so that `bpftool map dump` shows `"port": 80` and not 20480; the programs swap
//! a port once, where they read it. Padding is named and zero: the kernel compares hash keys as bytes.

use crate::Addr;

mod announce;
mod cluster_ranges;
mod counters;
mod ejection;
mod frontends;
mod packets;
mod pod_modes;
mod port_ranges;
mod watch;

pub use announce::{Announced, ConflictEntry, ConflictKey, LinkAddr};
pub use cluster_ranges::{ClusterRange, ClusterRanges, MAX_CLUSTER_RANGES};
pub use counters::Counter;
pub use ejection::{EjectPolicy, EjectStats, EjectStatsKey, EjectionKey};
pub use frontends::{Frontend, FrontendKey, Kind};
pub use packets::{
    Device, DeviceFlags, EarlyFragment, EarlyKey, Flow, FlowEnds, FlowFlags, FlowKey, FragmentKey, FragmentPorts,
    GETS_NO_PROGRAMS, Hook, Hop, MAGLEV_LEN, MASQUERADE_MARK, Maglev, MaglevKey, Opening, Range, RangeKey, SlowPath,
    Tuple,
};
pub use pod_modes::{NetnsAddrs, PodMode, PodModeEntry};
pub use port_ranges::{PortBlock, PortBlockKey};
pub use watch::{COMM_LEN, WatchCell, WatchKind, WatchRecord, WatchResult};

/// Version of the map layouts; part of the name of the pin directory, so that two layouts never share a map.
pub const LAYOUT_VERSION: u32 = if cfg!(feature = "next-layout") { RELEASED + 1 } else { RELEASED };

const RELEASED: u32 = 9;

/// Initial capacities of the maps; the agent enlarges the maps that it writes when they are full. All but `TCP_SOCKS`
/// (4 MiB), `UDP_SOCKS` (1 MiB), `BOUND_PORTS` (64 KiB), `FRONTEND_BITS` (16 KiB) and `UDP_COUNTS` (4 KiB) allocate
/// memory per entry (`BPF_F_NO_PREALLOC`), besides 16 bytes per possible entry for the hash buckets.
pub mod capacity {
    /// Frontends.
    pub const FRONTENDS: usize = 131_072;
    /// Words of 64 bits: half of them for ports, half for addresses.
    pub const FRONTEND_BITS: usize = 2 * 65_536 / 64;
    /// Blocks of port ranges.
    pub const PORT_RANGES: usize = 65_536;
    /// Service ports.
    pub const SERVICES: usize = 65_536;
    /// Slots of all lists.
    pub const SLOTS: usize = 131_072;
    /// Backends of all service ports.
    pub const BACKENDS: usize = 131_072;
    /// Addresses of the node.
    pub const NODE_ADDRS: usize = 16_384;
    /// Service ports dialled on this node.
    pub const PORT_STATS: usize = 65_536;
    /// Service ports with ended sockets.
    pub const PORT_KILLED: usize = 65_536;
    /// Backends chosen on this node, those included that are gone while a socket has them. The map never grows, since
    /// programs add to its counts at all times.
    pub const BACKEND_STATS: usize = 524_288;
    /// Pairs of a client (network namespace or address) and a service port with affinity.
    pub const AFFINITY: usize = 262_144;
    /// Places for TCP sockets with a translation; a power of two.
    pub const TCP_SOCKS: usize = 65_536;
    /// Places for UDP sockets with a translation; a power of two. Most of them live for one question and its answer.
    pub const UDP_SOCKS: usize = 16_384;
    /// Words of 64 bits: four counts each of UDP sockets with a translation; a power of two.
    pub const UDP_COUNTS: usize = 512;
    /// Marks of ports that were bound at a single address; several ports share one.
    pub const BOUND_PORTS: usize = 8_192;
    /// TCP sockets whose place was taken; when full, `getpeername` shows the backend.
    pub const TCP_MORE: usize = 65_536;
    /// Fewest entries of flows by default, two for each. The map never grows: when full, new flows are dropped (see
    /// `FLOWS`).
    pub const FLOWS: usize = 524_288;
    /// Flows that begin, on all CPUs: those of two thirds of a second of 100,000 a second, and a quarter of `FLOWS`.
    pub const OPENING: usize = 65_536;
    /// Places of marks of the node's ends of flows, and a last place that says if the marks are complete.
    pub const FLOW_ENDS: usize = 16_384 + 1;
    /// Fragmented datagrams whose first fragment was seen.
    pub const FRAGMENTS: usize = 8_192;
    /// Fragments that came before the first one of their datagram, 2 KiB each.
    pub const EARLY_FRAGMENTS: usize = 256;
    /// Devices of the node.
    pub const DEVICES: usize = 16_384;
    /// Addresses that the node announces.
    pub const ANNOUNCED: usize = 16_384;
    /// Link addresses that claimed an address that the node announces.
    pub const CONFLICTS: usize = 256;
    /// Links by which pods send packets without sockets. Few, since the agent looks through all buckets often.
    pub const PACKET_LINKS: usize = 1_024;
    /// Sockets that drop what they receive, by protocol number; the last is UDP's.
    pub const SINKS: usize = 18;
    /// Source ranges of all Services.
    pub const SOURCE_RANGES: usize = 65_536;
    /// Backend lists of service ports with the scheduler `mh`.
    pub const MAGLEV: usize = 1_024;
    /// Network namespaces of pods with another mode than `socket`.
    pub const POD_MODES: usize = 16_384;
    /// Network namespaces, while a Service has source ranges.
    pub const NETNS_ADDRS: usize = 16_384;
    /// Octets of the buffer of `beeline watch`: of 32,000 calls, more than one second has at 20,000 calls and as many
    /// results of handshakes a second.
    pub const WATCH_RING: usize = 4 << 20;
    /// Pairs of a client and a service port with failed handshakes, 2 KiB each.
    pub const EJECTIONS: usize = 8_192;
    /// Backends with failed handshakes, and their service ports.
    pub const EJECT_STATS: usize = 65_536;

    /// Index of the mark of a port in `BOUND_PORTS`.
    #[inline(always)]
    #[must_use]
    pub const fn bound_port(port: u16) -> u32 {
        port as u32 % BOUND_PORTS as u32
    }
}

/// Value of `SERVICES`: a service port, shared by all of its frontends. Key: the id.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ServiceEntry {
    /// Number of slots of the cluster list.
    pub cluster_len: u32,
    /// Number of slots of the local list.
    pub local_len: u32,
    /// Slots from one turn to the next in the cluster list: coprime to its length.
    pub cluster_stride: u32,
    /// Slots from one turn to the next in the local list: coprime to its length.
    pub local_stride: u32,
    /// See [`ServiceFlags`].
    pub flags: u32,
    /// A [`crate::Scheduler`].
    pub scheduler: u32,
    /// Time-out of affinity after the last connect, in seconds; 0 without affinity.
    pub affinity_seconds: u32,
    /// Seconds from the removal of a backend to the end of its TCP sockets; [`NEVER`] keeps them open.
    pub drain_seconds: u32,
    /// `beeline.io/eject`, of a service port of TCP.
    pub eject: EjectPolicy,
}

/// Number of ids in a block: of the service ports that share affinity, or of their backends at one address. A power of
/// 2; a block begins at a multiple of it.
pub const SCOPE_SIZE: u32 = 64;

/// First id in a block. Ids below are of service ports with an affinity of their own, and of their backends.
pub const FIRST_SCOPE: u32 = 1 << 31;

/// The bits of an id that tell apart the service ports that share affinity, and their backends at one address: the
/// other bits are equal, so that a backend of one of them leads to that of another without a search. 0 for a service
/// port with an affinity of its own. Without a branch, for the verifier.
#[inline(always)]
#[must_use]
pub const fn scope_mask(service: u32) -> u32 {
    service / FIRST_SCOPE * (SCOPE_SIZE - 1)
}

/// Value of [`ServiceEntry::drain_seconds`]: TCP sockets outlive their backend.
pub const NEVER: u32 = u32::MAX;

impl ServiceEntry {
    /// Number of slots of `list`.
    #[inline(always)]
    #[must_use]
    pub const fn len(&self, list: List) -> u32 {
        match list {
            List::Cluster => self.cluster_len,
            List::Local => self.local_len,
        }
    }

    /// Slots from one turn to the next in `list`.
    #[inline(always)]
    #[must_use]
    pub const fn stride(&self, list: List) -> u32 {
        match list {
            List::Cluster => self.cluster_stride,
            List::Local => self.local_stride,
        }
    }
}

/// Bits of [`ServiceEntry::flags`].
pub struct ServiceFlags;

impl ServiceFlags {
    /// `internalTrafficPolicy: Local`: the cluster IPs use the local list.
    pub const INTERNAL_LOCAL: u32 = 1;
    /// `externalTrafficPolicy: Local`: external frontends use the local list for clients outside of the node.
    pub const EXTERNAL_LOCAL: u32 = 2;
    /// `spec.loadBalancerSourceRanges`: the load balancer's addresses serve these sources only.
    pub const SOURCE_RANGES: u32 = 4;
    /// `beeline.io/prefer-local`, while an endpoint on this node is ready: the cluster list has endpoints on this node
    /// only. For `get` and `trace`: no program reads it.
    pub const PREFERS_LOCAL: u32 = 8;

    /// `beeline.io/redirect-from` of another Service, while that one has a ready endpoint on this node: the local list
    /// has its endpoints, and [`Self::INTERNAL_LOCAL`] leads the cluster IPs there. For `get` and `trace`: no program
    /// reads it.
    pub const REDIRECTED: u32 = 16;

    /// Mask of the tier of endpoints in use (`beeline.io/priority`), shifted by [`Self::TIER_SHIFT`]. The agent reads
    /// it after a start, to go on with that tier.
    pub const TIER: u32 = 0xff << Self::TIER_SHIFT;
    /// Position of the lowest bit of [`Self::TIER`].
    pub const TIER_SHIFT: u32 = 8;

    /// `beeline.io/priority`, while one tier serves: the cluster list has endpoints of [`Self::TIER`] only. For `get`
    /// and `handover`: no program reads it.
    pub const TIERED: u32 = 32;

    /// `beeline.io/probe`, while it keeps a ready endpoint out of the lists. For `handover`: no program reads it.
    pub const PROBED_OUT: u32 = 64;

    /// `beeline.io/affinity-scope: service`: affinity holds for all service ports of a family together. For the
    /// planner, which gives them ids in a block: see [`scope_mask`]. No program reads it.
    pub const SHARED_AFFINITY: u32 = 128;

    /// `beeline.io/udp-connect: allow`, of a service port of UDP: without endpoints, connect() of a pod's socket
    /// succeeds, and its datagrams go to the frontend as packets.
    pub const UDP_CONNECT: u32 = 1 << 16;

    /// Bits that no program reads.
    pub const NOTES: u32 =
        Self::PREFERS_LOCAL | Self::REDIRECTED | Self::TIERED | Self::PROBED_OUT | Self::SHARED_AFFINITY | Self::TIER;
}

/// One of the two backend lists of a service port.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u32)]
pub enum List {
    /// Endpoints of the whole cluster, as far as topology allows.
    Cluster = 0,
    /// Endpoints on this node. Empty without a traffic policy Local.
    Local = 1,
}

impl List {
    /// Both lists, ordered by number.
    pub const ALL: [Self; 2] = [Self::Cluster, Self::Local];
}

/// Key of `SLOTS`: a position in a backend list.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SlotKey {
    /// Id of the service port.
    pub service: u32,
    /// A [`List`].
    pub list: u32,
    /// From 0 to the length of the list less one.
    pub index: u32,
}

impl SlotKey {
    /// Slot `index` of `list`.
    #[inline(always)]
    #[must_use]
    pub const fn new(service: u32, list: List, index: u32) -> Self {
        Self { service, list: list as u32, index }
    }
}

/// Value of `SLOTS`: the backend of this slot. Repeats its address and port, which never change for an id, so that a
/// connect needs no look-up of the backend.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Slot {
    /// Address of the backend.
    pub addr: Addr,
    /// Port of the backend, host order; of a service port of port ranges, an offset: see [`BackendFlags::OFFSET`].
    pub port: u16,
    /// Weight of the backend: the number of its slots in this list; at least 1.
    pub weight: u16,
    /// Id of the backend; never 0.
    pub backend: u32,
}

/// Value of `BACKENDS`: an endpoint of a service port. Key: the id, never shared by two service ports.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Backend {
    /// The address.
    pub addr: Addr,
    /// The port, host order, or an offset: see [`BackendFlags::OFFSET`].
    pub port: u16,
    /// See [`BackendFlags`].
    pub flags: u16,
    /// Id of the service port.
    pub service: u32,
}

impl Backend {
    /// The port of the backend for a client that dialled this one.
    #[inline(always)]
    #[must_use]
    pub const fn port_for(&self, dialled: u16) -> u16 {
        if self.flags & BackendFlags::OFFSET != 0 { self.port.wrapping_add(dialled) } else { self.port }
    }
}

/// Bits of [`Backend::flags`].
pub struct BackendFlags;

impl BackendFlags {
    /// In the cluster list.
    pub const CLUSTER: u16 = 1;
    /// In the local list.
    pub const LOCAL: u16 = 2;
    /// On this node.
    pub const ON_NODE: u16 = 4;
    /// A service port of port ranges: the port is an offset, which is added to the port dialled.
    pub const OFFSET: u16 = 8;

    /// The bit of a list. A backend in no list serves its existing sockets and flows only.
    #[inline(always)]
    #[must_use]
    pub const fn of(list: List) -> u16 {
        match list {
            List::Cluster => Self::CLUSTER,
            List::Local => Self::LOCAL,
        }
    }
}

/// Value of `NODE_ADDRS`: an address of the node that serves NodePorts or hostPorts. Key: the address.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct NodeAddr {
    /// See [`NodeAddrFlags`].
    pub flags: u32,
}

impl NodeAddr {
    /// True if the address serves ports of this [`Kind`], which is a kind of ports, not of addresses. One look for all
    /// kinds: a branch for each would multiply what the kernel's verifier has to walk.
    #[inline(always)]
    #[must_use]
    pub const fn serves(&self, kind: u8) -> bool {
        self.flags & kind as u32 == 0
    }
}

/// Bits of [`NodeAddr::flags`].
pub struct NodeAddrFlags;

impl NodeAddrFlags {
    /// A loopback address: serves sockets of the node's own network namespace only.
    pub const HOST_ONLY: u32 = 1;
    /// Left out by `--nodeport-addresses`: serves hostPorts only. The number of the kind: see [`NodeAddr::serves`].
    pub const NO_NODE_PORTS: u32 = Kind::NodePort as u32;
}

/// Key of `AFFINITY`: a client of a service port.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct AffinityKey {
    /// Address of the client; or, for a socket of this node, the cookie of its network namespace in the first half. All
    /// containers of a pod share the namespace.
    pub client: Addr,
    /// Id of the service port.
    pub service: u32,
    /// 1 if `client` is a cookie.
    pub is_netns: u32,
}

/// Value of `AFFINITY`: the backend of a client.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Affinity {
    /// Time of the last connect (CLOCK_MONOTONIC, ns).
    pub used: u64,
    /// Id of the backend.
    pub backend: u32,
    /// Zero.
    pub _pad: u32,
}

impl Affinity {
    /// True until `seconds` after the last connect; always false for 0, a service port without affinity. `now` is
    /// CLOCK_MONOTONIC, ns.
    #[inline(always)]
    #[must_use]
    pub const fn lasts(&self, seconds: u32, now: u64) -> bool {
        const SECOND: u64 = 1_000_000_000;
        now.saturating_sub(self.used) < seconds as u64 * SECOND
    }
}

/// A lock in a map value. The kernel finds it by the name of the type (Linux 5.1).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct bpf_spin_lock {
    /// Owned by the kernel.
    pub val: u32,
}

/// Value of `PORT_STATS`: counts and turns of a service port on this node. Key: the id. Created by the first socket or
/// packet.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PortStats {
    /// Guards the turns.
    pub lock: bpf_spin_lock,
    /// The next turn in the cluster list: index of a slot.
    pub cluster_turn: u32,
    /// The next turn in the local list: index of a slot.
    pub local_turn: u32,
    /// Zero.
    pub _pad: u32,
    /// Connections to a backend.
    pub connections: u64,
    /// Refusals: no endpoint anywhere.
    pub no_endpoints: u64,
    /// Refusals: policy Local, and no endpoint on this node.
    pub no_local_endpoints: u64,
    /// Drops: the source is in none of the source ranges.
    pub source_range: u64,
    /// UDP sockets moved to another backend, since their own was removed.
    pub moved: u64,
}

/// Value of `BACKEND_STATS`: counts of a backend on this node. Key: the id. Created by the first socket or packet.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct BackendStats {
    /// Open sockets.
    pub open: u64,
    /// Connections since the entry was created.
    pub connections: u64,
    /// Id of the service port.
    pub service: u32,
    /// Zero.
    pub _pad: u32,
}

/// Longest name in the maps, with its terminating zero: DNS labels have at most 63 octets (RFC 1035).
pub const NAME_LEN: usize = 64;

/// A C string, so that `bpftool map dump` prints it as text.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Name {
    /// UTF-8, padded with zeros.
    pub text: [i8; NAME_LEN],
}

impl Name {
    /// Stores `text`; `None` if it is longer than 63 octets, as no name of the API is.
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        let mut name = Self { text: [0; NAME_LEN] };
        if text.len() >= NAME_LEN {
            return None;
        }
        for (to, from) in name.text.iter_mut().zip(text.bytes()) {
            *to = from.cast_signed();
        }
        Some(name)
    }

    /// The octets before the terminating zero.
    pub fn bytes(&self) -> impl Iterator<Item = u8> + '_ {
        self.text.iter().map(|&c| c.cast_unsigned()).take_while(|&c| c != 0)
    }
}

impl core::fmt::Display for Name {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        use core::fmt::Write;
        // Names of the API are ASCII; other octets, of another writer, print as Latin-1.
        self.bytes().try_for_each(|c| f.write_char(char::from(c)))
    }
}

impl core::fmt::Debug for Name {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        core::fmt::Display::fmt(self, f)
    }
}

/// Value of `NAMES`: the name of a service port. Key: the id.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Names {
    /// Namespace of the Service.
    pub namespace: Name,
    /// Name of the Service.
    pub name: Name,
    /// Name of the port, empty for a single unnamed port.
    pub port: Name,
    /// IP protocol number of the port.
    pub proto: u8,
    /// 4 or 6: the family of the frontends and backends.
    pub family: u8,
    /// Zero.
    pub _pad: [u8; 2],
}

/// The value of `LOG_GATE`, one per CPU: the state of the log of the programs.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LogGate {
    /// The programs log until this time (CLOCK_MONOTONIC, ns); a running agent extends it.
    pub listening_until: u64,
    /// Start of the second counted in `said` (CLOCK_MONOTONIC, ns).
    pub window_start: u64,
    /// Records in this second.
    pub said: u64,
}

macro_rules! layouts {
    ($($name:ident: $size:expr),+ $(,)?) => {
        $(const _: () = assert!(size_of::<$name>() == $size);)+
        #[cfg(feature = "user")]
        mod pod {
            #![expect(unsafe_code, reason = "the promise to aya that a layout is plain bytes")]
            $(
                // SAFETY: repr(C), integers and arrays of them only, every byte of padding is a named field.
                unsafe impl aya::Pod for super::$name {}
            )+
        }
    };
}

layouts! {
    Addr: 16, FrontendKey: 20, PortBlock: 20, PortBlockKey: 24, Frontend: 5 + frontends::FRONTEND_PAD,
    ServiceEntry: 44, SlotKey: 12, Slot: 24, Backend: 24, Names: 196, LogGate: 24, NodeAddr: 4, AffinityKey: 24,
    Affinity: 16, PortStats: 56, BackendStats: 24, Tuple: 36, FlowKey: 40, Hop: 24, Flow: 80, FragmentKey: 40,
    FragmentPorts: 4, Device: 40, Range: 20, RangeKey: 24, MaglevKey: 8, Maglev: 16292, PodModeEntry: 168,
    NetnsAddrs: 32, ClusterRange: 32, ClusterRanges: 264, WatchRecord: 120, WatchResult: 24,
    EjectPolicy: 12, EjectionKey: 24, EjectStatsKey: 8, EjectStats: 16, Announced: 8, LinkAddr: 8, ConflictKey: 24,
    ConflictEntry: 24,
}
