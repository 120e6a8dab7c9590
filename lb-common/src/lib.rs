//! Shared by the kernel side and the user side: map layouts and the pure decisions over them. No I/O, no allocation.
#![no_std]

#[cfg(test)]
extern crate std;

mod addr;
mod addr_port;
mod ejection;
pub mod errno;
mod family;
pub mod flow;
pub mod hash;
mod layout;
pub mod packet;
mod scheduler;
mod select;
mod translation;

pub use addr::{Addr, Proto};
pub use addr_port::AddrPort;
pub use ejection::{Attempt, CLOSE_GRACE, EJECTION_PLACES, EjectionPlace, Ejections, Hold};
pub use family::Family;
pub use layout::{
    Affinity, AffinityKey, Announced, Backend, BackendFlags, BackendStats, COMM_LEN, ClusterRange, ClusterRanges,
    ConflictEntry, ConflictKey, Counter, Device, DeviceFlags, EarlyFragment, EarlyKey, EjectPolicy, EjectStats,
    EjectStatsKey, EjectionKey, FIRST_SCOPE, Flow, FlowEnds, FlowFlags, FlowKey, FragmentKey, FragmentPorts, Frontend,
    FrontendKey, GETS_NO_PROGRAMS, Hook, Hop, Kind, LAYOUT_VERSION, LinkAddr, List, LogGate, MAGLEV_LEN,
    MASQUERADE_MARK, MAX_CLUSTER_RANGES, Maglev, MaglevKey, NAME_LEN, NEVER, Name, Names, NetnsAddrs, NodeAddr,
    NodeAddrFlags, Opening, PodMode, PodModeEntry, PortBlock, PortBlockKey, PortStats, Range, RangeKey, SCOPE_SIZE,
    ServiceEntry, ServiceFlags, Slot, SlotKey, SlowPath, Tuple, WatchCell, WatchKind, WatchRecord, WatchResult,
    bpf_spin_lock, capacity, scope_mask,
};
pub use scheduler::Scheduler;
pub use select::{
    Access, AffinityOutcome, Caller, Cause, Choice, Client, Followed, ListReason, Match, Observer, Origin, Pair,
    Reason, SelectEvent, State, Stateless, Tables, Unobserved, Verdict, Vip, first_look, goes_before_listener,
    is_at_address, is_local_outside, is_served_at, may_be_vip, pass_over_ejected, refusal, second_look, select,
    select_observed, take_turn, vip,
};
pub use translation::{MAX_TRANSLATIONS, Put, TcpSock, Translation, Translations, UdpSock};
