//! What stands in the BPF maps, byte for byte. A change here is a new [`LAYOUT_VERSION`]; a field whose meaning changes gets
//! another name, since by names and places two versions know which maps they have in common.
//!
//! Ports and numbers are in host order, so that `bpftool map dump` shows `"port": 80` and not 20480; the programs turn
//! a port around once, where they read it. Padding is named and zero: a hash key is compared as bytes.

use crate::Addr;

mod frontends;
mod packets;
mod paths;

pub use frontends::{Frontend, FrontendKey, Kind};
pub use packets::{
    Device, DeviceFlags, Flow, FlowFlags, FlowKey, FragmentKey, FragmentPorts, Hook, Hop, MAGLEV_LEN, Maglev,
    MaglevKey, Range, RangeKey, Tuple,
};
pub use paths::{PathChoice, PodPath};

/// Version of the map layouts; part of the pin directory's name, so that two layouts never meet in one map.
pub const LAYOUT_VERSION: u32 = if cfg!(feature = "next-layout") { RELEASED + 1 } else { RELEASED };

const RELEASED: u32 = 5;

/// Sizes with which the maps begin; those that the agent writes grow by themselves when they are full. All but
/// `TCP_SOCKS` (4 MiB) and `FRONTEND_BITS` (16 KiB) take memory per entry, not up front (`BPF_F_NO_PREALLOC`), besides 16
/// bytes per possible entry for the hash buckets.
pub mod capacity {
    /// Frontends.
    pub const FRONTENDS: usize = 131_072;
    /// Words of 64 bits: those of the ports, and as many for addresses.
    pub const FRONTEND_BITS: usize = 2 * 65_536 / 64;
    /// Service ports.
    pub const SERVICES: usize = 65_536;
    /// Slots of all lists.
    pub const SLOTS: usize = 131_072;
    /// Backends of all service ports.
    pub const BACKENDS: usize = 131_072;
    /// Addresses of the node.
    pub const NODE_ADDRS: usize = 16_384;
    /// Service ports that this node's sockets have dialled.
    pub const PORT_STATS: usize = 65_536;
    /// Service ports of which sockets were ended.
    pub const PORT_KILLED: usize = 16_384;
    /// Backends that this node's sockets were given.
    pub const BACKEND_STATS: usize = 131_072;
    /// Clients (network namespaces, or addresses) that stick to a backend, for each service port.
    pub const AFFINITY: usize = 65_536;
    /// Places for TCP sockets that were given a backend; a power of two.
    pub const TCP_SOCKS: usize = 65_536;
    /// TCP sockets whose place was taken; beyond it `getpeername` shows the backend.
    pub const TCP_MORE: usize = 65_536;
    /// Flows of packets, two entries each. It never grows: what does not fit is dropped (see `FLOWS`).
    pub const FLOWS: usize = 524_288;
    /// Datagrams in fragments of which the first has been seen.
    pub const FRAGMENTS: usize = 8_192;
    /// Devices of the node.
    pub const DEVICES: usize = 16_384;
    /// Source ranges of all Services.
    pub const SOURCE_RANGES: usize = 65_536;
    /// Lists of service ports with the scheduler `mh`.
    pub const MAGLEV: usize = 1_024;
    /// Network namespaces of pods that have chosen another path than that of sockets.
    pub const PATHS: usize = 16_384;
}

/// Value of `SERVICES`: what all frontends of a service port share. Key: the id.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Service {
    /// Number of slots of the cluster list.
    pub cluster_len: u32,
    /// Number of slots of the local list.
    pub local_len: u32,
    /// How far a turn goes on in the cluster list: prime to its length.
    pub cluster_stride: u32,
    /// How far a turn goes on in the local list: prime to its length.
    pub local_stride: u32,
    /// See [`ServiceFlags`].
    pub flags: u32,
    /// A [`crate::Scheduler`].
    pub scheduler: u32,
    /// For how long a client keeps its backend after its last connect, in seconds; 0 without affinity.
    pub affinity_seconds: u32,
    /// When TCP sockets of a backend that has gone are ended, in seconds from then; [`NEVER`] leaves them alone.
    pub drain_seconds: u32,
}

/// Of [`Service::drain_seconds`]: TCP sockets outlive their backend.
pub const NEVER: u32 = u32::MAX;

impl Service {
    /// Number of slots of `list`.
    #[inline(always)]
    #[must_use]
    pub const fn len(&self, list: List) -> u32 {
        match list {
            List::Cluster => self.cluster_len,
            List::Local => self.local_len,
        }
    }

    /// How far a turn goes on in `list`.
    #[inline(always)]
    #[must_use]
    pub const fn stride(&self, list: List) -> u32 {
        match list {
            List::Cluster => self.cluster_stride,
            List::Local => self.local_stride,
        }
    }
}

/// Bits of [`Service::flags`].
pub struct ServiceFlags;

impl ServiceFlags {
    /// `internalTrafficPolicy: Local`: the cluster IPs use the local list.
    pub const INTERNAL_LOCAL: u32 = 1;
    /// `externalTrafficPolicy: Local`: what comes from outside the node for an external frontend uses the local list.
    pub const EXTERNAL_LOCAL: u32 = 2;
    /// `spec.loadBalancerSourceRanges`: at the load balancer's addresses only these sources are served.
    pub const SOURCE_RANGES: u32 = 4;
}

/// One of the two backend lists of a service port.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u32)]
pub enum List {
    /// Endpoints of the whole cluster, as far as topology allows.
    Cluster = 0,
    /// Endpoints on this node. Filled only for a Service with a Local policy.
    Local = 1,
}

impl List {
    /// Both, in the order of their numbers.
    pub const ALL: [Self; 2] = [Self::Cluster, Self::Local];
}

/// Key of `SLOTS`: a place in a list.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SlotKey {
    /// Id of the service port.
    pub service: u32,
    /// A [`List`].
    pub list: u32,
    /// From 0 to the list's length less one.
    pub index: u32,
}

impl SlotKey {
    /// Place `index` of `list`.
    #[inline(always)]
    #[must_use]
    pub const fn new(service: u32, list: List, index: u32) -> Self {
        Self { service, list: list as u32, index }
    }
}

/// Value of `SLOTS`: the backend that stands here. It repeats address and port, which never change for an id, so that
/// a connect needs no look-up of the backend.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Slot {
    /// Where to connect.
    pub addr: Addr,
    /// Host order.
    pub port: u16,
    /// Weight of the backend, which stands in so many slots; at least 1.
    pub weight: u16,
    /// Id of the backend; never 0.
    pub backend: u32,
}

/// Value of `BACKENDS`: an endpoint of one service port. Key: the id, never shared by two service ports.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Backend {
    /// Where it listens.
    pub addr: Addr,
    /// Host order.
    pub port: u16,
    /// See [`BackendFlags`].
    pub flags: u16,
    /// Id of the service port that it serves.
    pub service: u32,
}

/// Bits of [`Backend::flags`].
pub struct BackendFlags;

impl BackendFlags {
    /// It stands in the cluster list.
    pub const CLUSTER: u16 = 1;
    /// It stands in the local list.
    pub const LOCAL: u16 = 2;
    /// It runs on this node.
    pub const ON_NODE: u16 = 4;

    /// The bit of a list. A backend in no list is given to no socket; those that have it keep it.
    #[inline(always)]
    #[must_use]
    pub const fn of(list: List) -> u16 {
        match list {
            List::Cluster => Self::CLUSTER,
            List::Local => Self::LOCAL,
        }
    }
}

/// Value of `NODE_ADDRS`: an address at which NodePorts answer. Key: the address.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct NodeAddr {
    /// See [`NodeAddrFlags`].
    pub flags: u32,
}

/// Bits of [`NodeAddr::flags`].
pub struct NodeAddrFlags;

impl NodeAddrFlags {
    /// A loopback address: it means the node to processes of its own network namespace only.
    pub const HOST_ONLY: u32 = 1;
}

/// Key of `AFFINITY`: a client of a service port.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct AffinityKey {
    /// The client's address; or, for a socket of this node, the cookie of its network namespace in the first half: all
    /// containers of a pod share it.
    pub client: Addr,
    /// Id of the service port.
    pub service: u32,
    /// 1 where `client` is a cookie.
    pub is_netns: u32,
}

/// Value of `AFFINITY`: the backend that a client sticks to.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Affinity {
    /// When the client was last given it (CLOCK_MONOTONIC, ns).
    pub used: u64,
    /// Id of the backend.
    pub backend: u32,
    /// Zero.
    pub _pad: u32,
}

impl Affinity {
    /// Whether it still counts at `now`, for a service port with affinity of so many seconds; 0 is none.
    #[inline(always)]
    #[must_use]
    pub const fn lasts(&self, seconds: u32, now: u64) -> bool {
        const SECOND: u64 = 1_000_000_000;
        now.saturating_sub(self.used) < seconds as u64 * SECOND
    }
}

/// A lock in a map value, by the name under which the kernel knows it (Linux 5.1).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct bpf_spin_lock {
    /// The kernel's.
    pub val: u32,
}

/// Value of `PORT_STATS`: what this node's sockets did with a service port. Key: its id. Made by the first of them.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PortStats {
    /// Held while a turn is taken.
    pub lock: bpf_spin_lock,
    /// Whose turn is next in the cluster list: a slot's index.
    pub cluster_turn: u32,
    /// Whose turn is next in the local list.
    pub local_turn: u32,
    /// Zero.
    pub _pad: u32,
    /// Times that a backend was given to a socket.
    pub connections: u64,
    /// Times that a socket was refused, since there was no endpoint anywhere.
    pub no_endpoints: u64,
    /// Times that a socket was refused, since there was no endpoint on this node and the policy is Local.
    pub no_local_endpoints: u64,
    /// Times that a packet was dropped, since its sender is in none of the source ranges.
    pub source_range: u64,
    /// UDP sockets and flows that moved to another backend, because their own went away.
    pub moved: u64,
}

/// Value of `BACKEND_STATS`: what this node's sockets do with a backend. Key: its id. Made by the first of them.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct BackendStats {
    /// Sockets that have it now.
    pub open: u64,
    /// Times that it was given to a socket.
    pub connections: u64,
    /// Id of its service port.
    pub service: u32,
    /// Zero.
    pub _pad: u32,
}

/// Longest name in the maps, and a closing zero: DNS labels have at most 63 octets (RFC 1035).
pub const NAME_LEN: usize = 64;

/// A name as C knows it: closed by a zero. `bpftool map dump` prints it as a string.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Name {
    /// UTF-8, filled up with zeros.
    pub text: [i8; NAME_LEN],
}

impl Name {
    /// Stores `text`, or nothing when it is longer than 63 octets, which no name of the API is.
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

    /// The octets before the closing zero.
    pub fn bytes(&self) -> impl Iterator<Item = u8> + '_ {
        self.text.iter().map(|&c| c.cast_unsigned()).take_while(|&c| c != 0)
    }
}

impl core::fmt::Display for Name {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        use core::fmt::Write;
        // Names of the API are ASCII; anything else came from a foreign hand and is shown as it can be.
        self.bytes().try_for_each(|c| f.write_char(char::from(c)))
    }
}

impl core::fmt::Debug for Name {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        core::fmt::Display::fmt(self, f)
    }
}

/// Value of `NAMES`: whose service port it is. Key: the id.
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
    /// 4 or 6: the family of its frontends and backends.
    pub family: u8,
    /// Zero.
    pub _pad: [u8; 2],
}

/// Index into `COUNTERS`, a per-CPU array of event counts (64 bits each). All of them count on cold paths.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Counter {
    /// Refused: the service port has no endpoint anywhere.
    NoEndpoints = 0,
    /// Refused: policy Local, and no endpoint on this node.
    NoLocalEndpoints = 1,
    /// `TCP_MORE` was full: the connection works, but `getpeername` shows its backend.
    TcpSocksFull = 2,
    /// A UDP socket spoke to more VIPs at once than it can remember: the oldest was forgotten.
    UdpOverflow = 3,
    /// An unconnected UDP socket moved to another backend, because its own went away.
    UdpMoved = 4,
    /// A process of the host asked for a port that is a NodePort, and was refused.
    BindRefused = 5,
    /// `PORT_STATS` or `BACKEND_STATS` was full: the socket was given a backend, and is not counted.
    StatsFull = 6,
    /// `AFFINITY` was full: the client may get another backend next time.
    AffinityFull = 7,
    /// A packet was dropped: its source is in none of the Service's source ranges.
    SourceRange = 8,
    /// A packet was rejected: it came to a cluster IP, for a port that no Service has there.
    UnknownPort = 9,
    /// The first packet of a flow was dropped: `FLOWS` was full. Flows that stand in it go on.
    FlowsFull = 10,
    /// The first packet of a flow was dropped: no port is left on this node for its backend.
    SnatExhausted = 11,
    /// A packet was dropped: there is no route to its backend, or no address of this node to send it from.
    NoRoute = 12,
    /// A flow moved to another backend, because its own went away.
    FlowMoved = 13,
}

impl Counter {
    /// All, in the order of their numbers.
    pub const ALL: [Self; 14] = [
        Self::NoEndpoints,
        Self::NoLocalEndpoints,
        Self::TcpSocksFull,
        Self::UdpOverflow,
        Self::UdpMoved,
        Self::BindRefused,
        Self::StatsFull,
        Self::AffinityFull,
        Self::SourceRange,
        Self::UnknownPort,
        Self::FlowsFull,
        Self::SnatExhausted,
        Self::NoRoute,
        Self::FlowMoved,
    ];

    /// A name for output.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoEndpoints => "refused_no_endpoints",
            Self::NoLocalEndpoints => "refused_no_local_endpoints",
            Self::TcpSocksFull => "tcp_socks_full",
            Self::UdpOverflow => "udp_overflow",
            Self::UdpMoved => "udp_moved",
            Self::BindRefused => "bind_refused",
            Self::StatsFull => "stats_full",
            Self::AffinityFull => "affinity_full",
            Self::SourceRange => "dropped_source_range",
            Self::UnknownPort => "rejected_unknown_port",
            Self::FlowsFull => "flows_full",
            Self::SnatExhausted => "snat_exhausted",
            Self::NoRoute => "no_route",
            Self::FlowMoved => "flow_moved",
        }
    }
}

/// The one value of `LOG_GATE`, per CPU: whether anybody reads the programs' log, and how much was said of late.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LogGate {
    /// The agent listens until this time (CLOCK_MONOTONIC, ns); it moves the time on while it lives.
    pub listening_until: u64,
    /// Start of the second that `said` counts (ns).
    pub window_start: u64,
    /// Records of this second.
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
    Addr: 16, FrontendKey: 20, Frontend: 5 + frontends::FRONTEND_PAD, Service: 32, SlotKey: 12, Slot: 24, Backend: 24, Names: 196, LogGate: 24,
    NodeAddr: 4, AffinityKey: 24, Affinity: 16, PortStats: 56, BackendStats: 24, Tuple: 36, FlowKey: 40, Hop: 24, Flow: 80,
    FragmentKey: 40, FragmentPorts: 4, Device: 40, Range: 20, RangeKey: 24, MaglevKey: 8, Maglev: 16292, PodPath: 168,
}
