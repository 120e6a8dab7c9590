//! The maps of a moment as `select` reads them, state included, and a client to ask for: what `trace` decides by.
//! Nothing is changed by asking.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use lb_common::{
    Addr, Affinity, AffinityKey, Backend, Caller, Frontend, FrontendKey, List, MaglevKey, NodeAddr, Origin,
    PodModeEntry, Service, Slot, SlotKey, State, Tables, take_turn,
};

use lb_core::store::Dump;
use lb_dataplane::stats::Stats;
use lb_kernel::{bpf, netns::Namespace};

/// Maps and state.
pub struct Live {
    /// What the agent wrote.
    pub dump: Dump,
    /// What the programs count.
    pub stats: Stats,
    /// Who sticks to what.
    pub affinity: BTreeMap<AffinityKey, Affinity>,
    /// Which pods have chosen another path than `socket`, by the cookie of their network namespace.
    pub paths: BTreeMap<u64, PodModeEntry>,
}

impl Live {
    /// The choice of the pod that a client is, if it is one's.
    #[must_use]
    pub fn path_of(&self, client: &Client) -> Option<&PodModeEntry> {
        match (client.netns, client.who.addr()) {
            (Some(netns), _) => self.paths.get(&netns),
            (None, Some(addr)) if !addr.is_unspecified() => {
                self.paths.values().find(|path| path.v4 == addr || path.v6 == addr)
            }
            (None, _) => None,
        }
    }
}

impl Tables for Live {
    fn frontend(&self, key: &FrontendKey) -> Option<Frontend> {
        self.dump.frontend(key)
    }
    fn service(&self, id: u32) -> Option<Service> {
        self.dump.service(id)
    }
    fn slot(&self, key: &SlotKey) -> Option<Slot> {
        self.dump.slot(key)
    }
    fn backend(&self, id: u32) -> Option<Backend> {
        self.dump.backend(id)
    }
    fn node_addr(&self, addr: &Addr) -> Option<NodeAddr> {
        self.dump.node_addr(addr)
    }
    fn in_source_ranges(&self, service: u32, addr: &Addr) -> bool {
        self.dump.in_source_ranges(service, addr)
    }
    fn maglev(&self, key: &MaglevKey, place: u32) -> Option<u32> {
        self.dump.maglev(key, place)
    }
}

impl State for Live {
    fn open_sockets(&self, backend: u32) -> u64 {
        self.stats.backends.get(&backend).map_or(0, |stats| stats.open)
    }
    /// Whose turn it is, without taking it.
    fn turn(&self, service: u32, list: List, len: u32, stride: u32) -> Option<u32> {
        let stats = self.stats.ports.get(&service).copied().unwrap_or_default();
        let turn = match list {
            List::Cluster => stats.cluster_turn,
            List::Local => stats.local_turn,
        };
        Some(take_turn(turn, len, stride).0)
    }
    fn affinity(&self, key: &AffinityKey) -> Option<Affinity> {
        self.affinity.get(key).copied()
    }
    fn set_affinity(&self, _: &AffinityKey, _: u32, _: u64) {}
}

/// A client: a socket, by its network namespace, or who sends packets. Its random number is always 0.
pub struct Client {
    who: lb_common::Client,
    /// Of a socket.
    netns: Option<u64>,
    is_host: bool,
    origin: Origin,
    now: u64,
}

impl Client {
    /// The process `pid`, or one of this network namespace, which is taken for the node's own.
    ///
    /// # Errors
    /// When there is no such process, or the kernel tells no cookies (before 5.14).
    pub fn of(pid: Option<u32>) -> Result<Self> {
        let host = bpf::netns_cookie();
        let netns = match pid {
            // Without cookies a client of the node has no affinity yet, and no other can be told from it.
            None => host.as_ref().map_or(0, |cookie| *cookie),
            Some(pid) => cookie_of(pid)?,
        };
        let who = lb_common::Client::of_netns(netns);
        Ok(Self { who, netns: Some(netns), is_host: netns == host.unwrap_or(0), origin: Origin::Node, now: now()? })
    }

    /// Who sends packets from outside of this node, by its address.
    ///
    /// # Errors
    /// When the clock cannot be read.
    pub fn outside(addr: Addr) -> Result<Self> {
        Ok(Self {
            who: lb_common::Client::of_addr(addr),
            netns: None,
            is_host: false,
            origin: Origin::Outside,
            now: now()?,
        })
    }

    /// The same client as one whose packets are translated at the link of its pod.
    #[must_use]
    pub fn by_packets(self, pod: &PodModeEntry, to: &Addr) -> Self {
        let own = if to.is_v4() { pod.v4 } else { pod.v6 };
        Self { who: lb_common::Client::of_addr(own), netns: None, is_host: false, origin: Origin::Node, ..self }
    }

    /// Whether it is who sends packets, and no socket.
    #[must_use]
    pub const fn sends_packets(&self) -> bool {
        self.netns.is_none()
    }
}

/// The time that the programs know (CLOCK_MONOTONIC, ns).
fn now() -> Result<u64> {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    Ok(u64::try_from(now.tv_sec)? * 1_000_000_000 + u64::try_from(now.tv_nsec)?)
}

fn cookie_of(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/ns/net");
    let namespace =
        Namespace::open(path.as_ref()).with_context(|| format!("opening {path}: is there a process {pid}?"))?;
    namespace.cookie()
}

impl Caller for Client {
    fn random(&self) -> u32 {
        0
    }
    fn client(&self) -> lb_common::Client {
        self.who
    }
    fn is_host(&self) -> bool {
        self.is_host
    }
    fn origin(&self) -> Origin {
        self.origin
    }
    fn now(&self) -> u64 {
        self.now
    }
}
