//! The programs' counts by service port and backend, and affinity: read from the pinned maps, and removed for service
//! ports and backends that are gone.

mod counters;
pub mod counts;
mod ejections;
mod fair_share;

pub use counters::{CounterWatch, counters};
pub use ejections::EjectedBackend;

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Mutex, PoisonError},
};

use anyhow::Result;
use aya::Pod;
use foldhash::HashMap;
use lb_common::{
    Affinity, AffinityKey, Backend, BackendStats, EjectPolicy, EjectStats, EjectStatsKey, EjectionKey, Ejections,
    PortStats, ServiceEntry, scope_mask,
};

use lb_core::ids::HighestIds;
use lb_kernel::bpf::typed::TypedMap;

/// All counts, by id.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Stats {
    /// Counts of service ports, by id.
    pub ports: BTreeMap<u32, PortStats>,
    /// Counts of backends, by id.
    pub backends: BTreeMap<u32, BackendStats>,
    /// Sockets that the agent ended, by service port.
    pub killed: BTreeMap<u32, u64>,
    /// Failed handshakes and ejections, by service port and backend.
    pub ejected: BTreeMap<EjectStatsKey, EjectStats>,
    /// Backends that clients of this node have ejected, by id; empty unless [`StatMaps::ejected_backends`] was asked
    /// for them.
    pub ejected_backends: BTreeMap<u32, EjectedBackend>,
}

impl Stats {
    /// Returns the number of sockets with a backend of a service port, backends that are gone included.
    #[must_use]
    pub fn open(&self, service: u32) -> u64 {
        self.backends.values().filter(|stats| stats.service == service).map(|stats| stats.open).sum()
    }
}

/// All counts, in the kernel's order: cheaper for frequent reads.
pub struct UnsortedStats {
    /// Counts of service ports.
    pub ports: Vec<(u32, PortStats)>,
    /// Counts of backends.
    pub backends: Vec<(u32, BackendStats)>,
    /// Sockets that the agent ended, by service port.
    pub killed: Vec<(u32, u64)>,
}

/// Returns the number of connections of service ports on this node, by their ids. The map is pinned in `directory`.
///
/// # Errors
/// If the map cannot be read.
pub fn connections(directory: &Path, ids: &[u32]) -> Result<u64> {
    let ports = TypedMap::<u32, PortStats>::open(directory, "PORT_STATS")?;
    let counts = ids.iter().map(|id| Ok(ports.get(id)?.map_or(0, |stats| stats.connections)));
    counts.sum()
}

/// Returns the highest ids with counts or verdicts, which sockets of this node may still name. The maps are pinned in
/// `directory`; a start makes the maps that are not, and they have no entries yet.
///
/// # Errors
/// If a map cannot be read.
pub fn highest_ids(directory: &Path) -> Result<HighestIds> {
    let ports: Vec<(u32, PortStats)> = entries(directory, "PORT_STATS")?;
    let backends: Vec<(u32, BackendStats)> = entries(directory, "BACKEND_STATS")?;
    let of_backends = backends.iter().map(|(_, stats)| stats.service);
    let service = ports.iter().map(|(id, _)| *id).chain(of_backends).collect();
    let seen: Vec<(EjectionKey, Ejections)> = entries(directory, "EJECTIONS")?;
    let judged = seen.iter().flat_map(|(_, seen)| &seen.places).map(|place| place.backend);
    let backend = backends.iter().map(|(id, _)| *id).chain(judged).collect();
    Ok(HighestIds { service, backend })
}

/// Reads a map, if it is pinned.
fn entries<K: Pod, V: Pod>(directory: &Path, map: &'static str) -> Result<Vec<(K, V)>> {
    if directory.join(map).exists() { TypedMap::open(directory, map)?.read() } else { Ok(Vec::new()) }
}

/// The pinned maps of counts and affinity.
pub struct StatMaps {
    ports: TypedMap<u32, PortStats>,
    backends: TypedMap<u32, BackendStats>,
    killed: TypedMap<u32, u64>,
    affinity: TypedMap<AffinityKey, Affinity>,
    ejected: TypedMap<EjectStatsKey, EjectStats>,
    ejections: TypedMap<EjectionKey, Ejections>,
}

impl StatMaps {
    /// Opens the maps pinned in `directory`.
    ///
    /// # Errors
    /// If a pin is missing or cannot be opened.
    pub fn open(directory: &Path) -> Result<Self> {
        Ok(Self {
            ports: TypedMap::open(directory, "PORT_STATS")?,
            backends: TypedMap::open(directory, "BACKEND_STATS")?,
            killed: TypedMap::open(directory, "PORT_KILLED")?,
            affinity: TypedMap::open(directory, "AFFINITY")?,
            ejected: TypedMap::open(directory, "EJECT_STATS")?,
            ejections: TypedMap::open(directory, "EJECTIONS")?,
        })
    }

    /// Reads all counts.
    ///
    /// # Errors
    /// If a map cannot be read.
    pub fn read(&self) -> Result<Stats> {
        let UnsortedStats { ports, backends, killed } = self.read_unsorted()?;
        Ok(Stats {
            ports: ports.into_iter().collect(),
            backends: backends.into_iter().collect(),
            killed: killed.into_iter().collect(),
            ejected: self.ejected.read()?.into_iter().collect(),
            ejected_backends: BTreeMap::new(),
        })
    }

    /// Reads all counts, in the kernel's order.
    ///
    /// # Errors
    /// If a map cannot be read.
    pub fn read_unsorted(&self) -> Result<UnsortedStats> {
        Ok(UnsortedStats { ports: self.ports.read()?, backends: self.backends.read()?, killed: self.killed.read()? })
    }

    /// Reads all affinity entries, expired ones included.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn affinity(&self) -> Result<BTreeMap<AffinityKey, Affinity>> {
        Ok(self.affinity.read()?.into_iter().collect())
    }

    /// Reads what clients saw of backends.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn ejections(&self) -> Result<BTreeMap<EjectionKey, Ejections>> {
        Ok(self.ejections.read()?.into_iter().collect())
    }

    /// Reads the backends that clients of this node have ejected at `now` (CLOCK_MONOTONIC, ns), by id.
    ///
    /// # Errors
    /// If a map cannot be read.
    pub fn ejected_backends(&self, live: &LiveIds, now: u64) -> Result<BTreeMap<u32, EjectedBackend>> {
        Ok(ejections::ejected_backends(
            &self.ejections.read()?,
            |service| live.ejection(service).unwrap_or_default(),
            now,
        ))
    }

    /// Reads the numbers of failed handshakes and ejections, by service port and backend.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn ejected(&self) -> Result<BTreeMap<EjectStatsKey, EjectStats>> {
        Ok(self.ejected.read()?.into_iter().collect())
    }

    /// Adds to the number of sockets ended for a service port. Only the agent writes this map, on several threads.
    ///
    /// # Errors
    /// If the map cannot be written.
    pub fn add_killed(&self, service: u32, count: u64) -> Result<()> {
        static ADDING: Mutex<()> = Mutex::new(());
        let _adding = ADDING.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.killed.get(&service)?.unwrap_or(0);
        Ok(self.killed.put(&[service], &[before + count])?)
    }

    /// Reads the counts of one backend.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn backend(&self, id: u32) -> Result<Option<BackendStats>> {
        self.backends.get(&id)
    }

    /// Removes entries of service ports and backends that are gone, affinity that is expired at `now`
    /// (CLOCK_MONOTONIC, ns), and the surplus of affinity beyond three quarters of the map. A backend with open sockets
    /// keeps its counts. The cost grows with the service ports that this node's sockets have used, not with the
    /// cluster.
    ///
    /// # Errors
    /// If a map cannot be read or written.
    pub fn sweep(&self, live: &LiveIds, now: u64) -> Result<()> {
        let counts = self.read()?;
        let idle = counts.backends.iter().filter(|(_, stats)| stats.open == 0).map(|(id, _)| *id);
        let backends: Vec<u32> = idle.filter(|id| !live.has_backend(*id)).collect();
        let gone = |ids: &mut dyn Iterator<Item = u32>| ids.filter(|id| live.service(*id).is_none()).collect();
        let ports: Vec<u32> = gone(&mut counts.ports.keys().copied());
        let killed: Vec<u32> = gone(&mut counts.killed.keys().copied());
        self.backends.delete(&backends)?;
        self.ports.delete(&ports)?;
        self.killed.delete(&killed)?;
        self.sweep_ejections(live, counts.ejected.keys(), now)?;
        self.sweep_affinity(live, now)
    }

    /// Removes what clients remember no more, and the counts of failed handshakes of service ports and backends that
    /// are gone.
    fn sweep_ejections<'a>(
        &self,
        live: &LiveIds,
        counted: impl Iterator<Item = &'a EjectStatsKey>,
        now: u64,
    ) -> Result<()> {
        let is_over = |key: &EjectionKey, seen: &Ejections| {
            live.ejection(key.service).is_none_or(|policy| seen.is_over(&policy, now))
        };
        let over = self.ejections.read()?.into_iter().filter(|(key, seen)| is_over(key, seen));
        self.ejections.delete(&over.map(|(key, _)| key).collect::<Vec<_>>())?;
        let is_gone = |key: &&EjectStatsKey| {
            live.ejection(key.service).is_none() || (key.backend != 0 && !live.has_backend(key.backend))
        };
        Ok(self.ejected.delete(&counted.filter(is_gone).copied().collect::<Vec<_>>())?)
    }

    /// Removes expired affinity and its surplus.
    ///
    /// # Errors
    /// If the map cannot be read or written.
    pub fn sweep_affinity(&self, live: &LiveIds, now: u64) -> Result<()> {
        // Many entries share few service ports and backends.
        let (mut seconds, mut backends) = (HashMap::default(), HashMap::default());
        let mut is_over = |key: &AffinityKey, value: &Affinity| {
            let seconds = seconds.entry(key.service).or_insert_with(|| live.affinity_seconds(key.service));
            let has_backend = || ids_in_affinity(value.backend).any(|id| live.has_backend(id));
            !value.lasts(*seconds, now) || !*backends.entry(value.backend).or_insert_with(has_backend)
        };
        let (over, kept): (Vec<_>, Vec<_>) = self.affinity.read()?.into_iter().partition(|(key, of)| is_over(key, of));
        let mut over: Vec<AffinityKey> = over.into_iter().map(|(key, _)| key).collect();
        over.extend(fair_share::surplus(&kept, self.affinity.size()? / 4 * 3));
        Ok(self.affinity.delete(&over)?)
    }
}

/// Returns the ids for which an id in `AFFINITY` stands.
fn ids_in_affinity(id: u32) -> impl Iterator<Item = u32> {
    id..=id | scope_mask(id)
}

/// Lookup of ids in the maps that the agent writes. An id that cannot be looked up counts as present.
pub struct LiveIds {
    services: TypedMap<u32, ServiceEntry>,
    backends: TypedMap<u32, Backend>,
}

impl LiveIds {
    /// Opens the maps pinned in `directory`.
    ///
    /// # Errors
    /// If a pin is missing or cannot be opened.
    pub fn open(directory: &Path) -> Result<Self> {
        Ok(Self { services: TypedMap::open(directory, "SERVICES")?, backends: TypedMap::open(directory, "BACKENDS")? })
    }

    /// True if a backend has this id.
    #[must_use]
    pub fn has_backend(&self, id: u32) -> bool {
        !matches!(self.backends.get(&id), Ok(None))
    }

    /// Returns the timeout (s) of affinity entries of this service port, or of the block of service ports that share
    /// affinity; 0 if there is none.
    fn affinity_seconds(&self, id: u32) -> u32 {
        ids_in_affinity(id).find_map(|id| self.service(id)).map_or(0, |service| service.affinity_seconds)
    }

    /// Returns the ejection of a service port, if it exists.
    fn ejection(&self, id: u32) -> Option<EjectPolicy> {
        self.service(id).map(|service| service.eject)
    }

    fn service(&self, id: u32) -> Option<ServiceEntry> {
        let eject = EjectPolicy { failures: 1, window: u16::MAX, seconds: u16::MAX, ..EjectPolicy::default() };
        let unknown = ServiceEntry { affinity_seconds: u32::MAX, eject, ..ServiceEntry::default() };
        self.services.get(&id).unwrap_or(Some(unknown))
    }
}
