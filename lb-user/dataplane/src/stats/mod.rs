//! What the programs count for each service port and backend, and who sticks to what: read from the pins, and swept of
//! what has gone.

mod counters;
pub mod counts;

pub use counters::counters;

use std::{collections::BTreeMap, path::Path};

use anyhow::Result;
use lb_common::{Affinity, AffinityKey, Backend, BackendStats, PortStats, Service};

use lb_kernel::bpf::typed::TypedMap;

/// The counts of a moment, by id.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Stats {
    /// Of service ports.
    pub ports: BTreeMap<u32, PortStats>,
    /// Of backends.
    pub backends: BTreeMap<u32, BackendStats>,
    /// Sockets that the agent ended, by service port.
    pub killed: BTreeMap<u32, u64>,
}

impl Stats {
    /// How many sockets of this node have a backend of a service port, one that is gone included.
    #[must_use]
    pub fn open(&self, service: u32) -> u64 {
        self.backends.values().filter(|stats| stats.service == service).map(|stats| stats.open).sum()
    }
}

/// The counts of a moment in no order, as the kernel hands them over: for who reads many of them often.
pub struct Unsorted {
    /// Of service ports.
    pub ports: Vec<(u32, PortStats)>,
    /// Of backends.
    pub backends: Vec<(u32, BackendStats)>,
    /// Sockets that the agent ended, by service port.
    pub killed: Vec<(u32, u64)>,
}

/// The pinned maps of counts and affinity.
pub struct StatMaps {
    ports: TypedMap<u32, PortStats>,
    backends: TypedMap<u32, BackendStats>,
    killed: TypedMap<u32, u64>,
    affinity: TypedMap<AffinityKey, Affinity>,
}

impl StatMaps {
    /// Opens the pins of `directory`.
    ///
    /// # Errors
    /// When one is missing or cannot be opened.
    pub fn open(directory: &Path) -> Result<Self> {
        Ok(Self {
            ports: TypedMap::open(directory, "PORT_STATS")?,
            backends: TypedMap::open(directory, "BACKEND_STATS")?,
            killed: TypedMap::open(directory, "PORT_KILLED")?,
            affinity: TypedMap::open(directory, "AFFINITY")?,
        })
    }

    /// The counts as they are now.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub fn read(&self) -> Result<Stats> {
        let Unsorted { ports, backends, killed } = self.read_unsorted()?;
        Ok(Stats {
            ports: ports.into_iter().collect(),
            backends: backends.into_iter().collect(),
            killed: killed.into_iter().collect(),
        })
    }

    /// The same, without an order.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub fn read_unsorted(&self) -> Result<Unsorted> {
        Ok(Unsorted { ports: self.ports.read()?, backends: self.backends.read()?, killed: self.killed.read()? })
    }

    /// The highest ids of a service port and of a backend that sockets of this node may still name.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub fn highest_ids(&self) -> Result<(u32, u32)> {
        let Unsorted { ports, backends, .. } = self.read_unsorted()?;
        let of_backends = backends.iter().map(|(_, stats)| stats.service);
        let port = ports.iter().map(|(id, _)| *id).chain(of_backends).max();
        Ok((port.unwrap_or(0), backends.iter().map(|(id, _)| *id).max().unwrap_or(0)))
    }

    /// Who sticks to what, over or not.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn affinity(&self) -> Result<BTreeMap<AffinityKey, Affinity>> {
        Ok(self.affinity.read()?.into_iter().collect())
    }

    /// Adds to the sockets that were ended for a service port. The agent alone writes these.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn add_killed(&self, service: u32, count: u64) -> Result<()> {
        let before = self.killed.get(&service)?.unwrap_or(0);
        Ok(self.killed.put(&[service], &[before + count])?)
    }

    /// The counts of one backend.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn backend(&self, id: u32) -> Result<Option<BackendStats>> {
        self.backends.get(&id)
    }

    /// Removes what belongs to service ports and backends that are not there any more, and affinity that is over at `now`
    /// (CLOCK_MONOTONIC, ns). A backend that sockets still have keeps its count. Costs as much as this node's sockets have
    /// used, and not what the cluster has.
    ///
    /// # Errors
    /// When a map cannot be read or written.
    pub fn sweep(&self, living: &Living, now: u64) -> Result<()> {
        let counts = self.read()?;
        let idle = counts.backends.iter().filter(|(_, stats)| stats.open == 0).map(|(id, _)| *id);
        let backends: Vec<u32> = idle.filter(|id| !living.has_backend(*id)).collect();
        let gone =
            |ids: &mut dyn Iterator<Item = u32>| ids.filter(|id| living.affinity_seconds(*id).is_none()).collect();
        let ports: Vec<u32> = gone(&mut counts.ports.keys().copied());
        let killed: Vec<u32> = gone(&mut counts.killed.keys().copied());
        let over = self.affinity()?.into_iter().filter(|(key, value)| {
            !value.lasts(living.affinity_seconds(key.service).unwrap_or(0), now) || !living.has_backend(value.backend)
        });
        let over: Vec<AffinityKey> = over.map(|(key, _)| key).collect();
        self.backends.delete(&backends)?;
        self.ports.delete(&ports)?;
        self.killed.delete(&killed)?;
        Ok(self.affinity.delete(&over)?)
    }
}

/// Whether something is in the maps that the agent writes. What cannot be read counts as there.
pub struct Living {
    services: TypedMap<u32, Service>,
    backends: TypedMap<u32, Backend>,
}

impl Living {
    /// Opens the pins of `directory`.
    ///
    /// # Errors
    /// When one is missing or cannot be opened.
    pub fn open(directory: &Path) -> Result<Self> {
        Ok(Self { services: TypedMap::open(directory, "SERVICES")?, backends: TypedMap::open(directory, "BACKENDS")? })
    }

    /// Whether there is a backend of this id.
    #[must_use]
    pub fn has_backend(&self, id: u32) -> bool {
        !matches!(self.backends.get(&id), Ok(None))
    }

    /// The seconds of affinity of a service port, if it is there.
    fn affinity_seconds(&self, id: u32) -> Option<u32> {
        self.services
            .get(&id)
            .unwrap_or(Some(Service { affinity_seconds: u32::MAX, ..Service::default() }))
            .map(|service| service.affinity_seconds)
    }
}
