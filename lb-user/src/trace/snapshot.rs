//! The maps at one time as input of `select`. A choice over a snapshot changes nothing.

use std::collections::BTreeMap;

use lb_common::{
    Addr, Affinity, AffinityKey, Backend, ClusterRanges, EjectionKey, Ejections, Frontend, FrontendKey, Hold, List,
    MaglevKey, NodeAddr, PodModeEntry, ServiceEntry, Slot, SlotKey, State, Tables, take_turn,
};
use lb_core::store::Dump;
use lb_dataplane::stats::Stats;

use super::TraceClient;

/// Maps and state of the maps.
pub(crate) struct Snapshot {
    /// Maps written by the agent.
    pub(crate) dump: Dump,
    /// Counts and turns.
    pub(crate) stats: Stats,
    /// Entries of `AFFINITY`.
    pub(crate) affinity: BTreeMap<AffinityKey, Affinity>,
    /// Entries of `EJECTIONS`.
    pub(crate) ejections: BTreeMap<EjectionKey, Ejections>,
    /// The ranges of cluster IPs.
    pub(crate) cluster_ranges: ClusterRanges,
    /// Entries of `POD_MODES`, by the cookie of the network namespace.
    pub(crate) pod_modes: BTreeMap<u64, PodModeEntry>,
}

impl Snapshot {
    /// Finds the entry of the client's pod, if its mode is not `socket`.
    pub(crate) fn pod_of(&self, client: &TraceClient) -> Option<&PodModeEntry> {
        match (client.netns(), client.addr()) {
            (Some(netns), _) => self.pod_modes.get(&netns),
            (None, Some(addr)) if !addr.is_unspecified() => {
                self.pod_modes.values().find(|pod| pod.v4 == addr || pod.v6 == addr)
            }
            (None, _) => None,
        }
    }
}

impl Tables for Snapshot {
    fn may_have(&self, key: &FrontendKey) -> bool {
        self.dump.may_have(key)
    }
    fn frontend(&self, key: &FrontendKey) -> Option<Frontend> {
        self.dump.frontend(key)
    }
    fn port_range(&self, dest: &FrontendKey) -> Option<Frontend> {
        self.dump.port_range(dest)
    }
    fn in_cluster_ranges(&self, addr: &Addr) -> bool {
        self.cluster_ranges.contain(addr)
    }
    fn service(&self, id: u32) -> Option<ServiceEntry> {
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

impl State for Snapshot {
    fn open_sockets(&self, backend: u32) -> u64 {
        self.stats.backends.get(&backend).map_or(0, |stats| stats.open)
    }
    /// Returns the index of the next turn, without taking it.
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
    fn hold(&self, client: &EjectionKey, backend: u32, most: u32, now: u64) -> Hold {
        self.ejections.get(client).map_or(Hold::Free, |seen| seen.hold(backend, most, now))
    }
}
