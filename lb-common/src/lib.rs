//! What the kernel side and the user side share: the map layouts and the pure decisions over them. No I/O, no allocation.
#![no_std]

#[cfg(test)]
extern crate std;

mod addr;
mod family;
pub mod flow;
mod layout;
pub mod mix;
pub mod packet;
mod scheduler;
mod select;
mod translation;

pub use addr::{Addr, Proto};
pub use family::{AddrPort, Family};
pub use layout::{
    Affinity, AffinityKey, Backend, BackendFlags, BackendStats, Counter, Device, DeviceFlags, Flow, FlowFlags, FlowKey,
    FragmentKey, FragmentPorts, Frontend, FrontendKey, Hook, Hop, Kind, LAYOUT_VERSION, List, LogGate, MAGLEV_LEN,
    Maglev, MaglevKey, NAME_LEN, NEVER, Name, Names, NodeAddr, NodeAddrFlags, PathChoice, PodPath, PortStats, Range,
    RangeKey, Service, ServiceFlags, Slot, SlotKey, Tuple, bpf_spin_lock, capacity,
};
pub use scheduler::Scheduler;
pub use select::{
    Caller, Cause, Choice, Client, State, Tables, Verdict, frontend_at, is_own, kept, list_for, select, take_turn,
};
pub use translation::{MAX_TRANSLATIONS, Put, TcpSock, Translation, Translations};
