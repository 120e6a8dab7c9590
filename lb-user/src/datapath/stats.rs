//! What the programs count for each service port and backend, and who sticks to what: read from the pins, and swept of
//! what has gone.

use std::{collections::BTreeMap, marker::PhantomData, os::fd::AsFd as _, path::Path};

use anyhow::{Context as _, Result};
use aya::{Pod, maps::MapData};
use lb_common::{Affinity, AffinityKey, Backend, BackendStats, PortStats, Service};

use super::sys::{self, Stopped};

/// A pinned hash map with its types.
struct Pinned<K, V> {
    name: &'static str,
    map: MapData,
    types: PhantomData<(K, V)>,
}

impl<K: Pod, V: Pod> Pinned<K, V> {
    fn open(directory: &Path, name: &'static str) -> Result<Self> {
        let path = directory.join(name);
        let map = MapData::from_pin(&path).with_context(|| format!("opening the pinned map {}", path.display()))?;
        Ok(Self { name, map, types: PhantomData })
    }

    fn read(&self) -> Result<Vec<(K, V)>> {
        sys::read_all(self.map.fd().as_fd()).with_context(|| format!("reading the map {}", self.name))
    }

    fn get(&self, key: &K) -> Result<Option<V>> {
        sys::lookup(self.map.fd().as_fd(), key).with_context(|| format!("reading the map {}", self.name))
    }

    fn put(&self, key: K, value: V) -> Result<()> {
        let stopped = |Stopped { error, .. }| error;
        sys::update_batch(self.map.fd().as_fd(), &[key], &[value])
            .map_err(stopped)
            .with_context(|| format!("writing the map {}", self.name))
    }

    /// Deletes the entries; what is not there is deleted.
    fn delete(&self, keys: &[K]) -> Result<()> {
        for key in keys {
            match sys::delete_batch(self.map.fd().as_fd(), &[*key]) {
                Err(Stopped { error, .. }) if error.raw_os_error() != Some(libc::ENOENT) => {
                    return Err(error).with_context(|| format!("writing the map {}", self.name));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

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
    ports: Pinned<u32, PortStats>,
    backends: Pinned<u32, BackendStats>,
    killed: Pinned<u32, u64>,
    affinity: Pinned<AffinityKey, Affinity>,
}

impl StatMaps {
    /// Opens the pins of `directory`.
    ///
    /// # Errors
    /// When one is missing or cannot be opened.
    pub fn open(directory: &Path) -> Result<Self> {
        Ok(Self {
            ports: Pinned::open(directory, "PORT_STATS")?,
            backends: Pinned::open(directory, "BACKEND_STATS")?,
            killed: Pinned::open(directory, "PORT_KILLED")?,
            affinity: Pinned::open(directory, "AFFINITY")?,
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
        self.killed.put(service, before + count)
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
            is_over(value, living.affinity_seconds(key.service), now) || !living.has_backend(value.backend)
        });
        let over: Vec<AffinityKey> = over.map(|(key, _)| key).collect();
        self.backends.delete(&backends)?;
        self.ports.delete(&ports)?;
        self.killed.delete(&killed)?;
        self.affinity.delete(&over)
    }
}

/// Whether affinity is over, of a service port with affinity of so many seconds, or that is gone.
fn is_over(value: &Affinity, seconds: Option<u32>, now: u64) -> bool {
    now.saturating_sub(value.used) >= u64::from(seconds.unwrap_or(0)) * 1_000_000_000
}

/// Whether something is in the maps that the agent writes. What cannot be read counts as there.
pub struct Living {
    services: Pinned<u32, Service>,
    backends: Pinned<u32, Backend>,
}

impl Living {
    /// Opens the pins of `directory`.
    ///
    /// # Errors
    /// When one is missing or cannot be opened.
    pub fn open(directory: &Path) -> Result<Self> {
        Ok(Self { services: Pinned::open(directory, "SERVICES")?, backends: Pinned::open(directory, "BACKENDS")? })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rule_7_affinity_is_over_when_its_time_is() {
        let over = |seconds, idle: u64| is_over(&Affinity { used: 5, backend: 1, _pad: 0 }, seconds, 5 + idle);
        assert!(!over(Some(10), 9_999_999_999));
        assert!(over(Some(10), 10_000_000_000));
        assert!(over(Some(0), 0), "the Service has no affinity any more");
        assert!(over(None, 0), "the Service has gone");
    }
}
