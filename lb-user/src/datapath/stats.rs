//! What the programs count for each service port and backend, and who sticks to what: read from the pins, and swept of
//! what has gone.

use std::{
    collections::{BTreeMap, HashSet},
    marker::PhantomData,
    os::fd::AsFd as _,
    path::Path,
};

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
        Ok(Stats {
            ports: self.ports.read()?.into_iter().collect(),
            backends: self.backends.read()?.into_iter().collect(),
            killed: self.killed.read()?.into_iter().collect(),
        })
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

    /// Removes what belongs to service ports and backends that are not there any more, and affinity that is over at `now`
    /// (CLOCK_MONOTONIC, ns). A backend that sockets still have keeps its count.
    ///
    /// # Errors
    /// When a map cannot be read or written.
    pub fn sweep(&self, living: &Living, now: u64) -> Result<usize> {
        let counts = self.read()?;
        let gone_backends: Vec<u32> =
            counts.backends.iter().filter(|(id, stats)| living.lacks_backend(**id, stats)).map(|(id, _)| *id).collect();
        let gone_port = |id: &&u32| !living.services.contains_key(*id);
        let gone_ports: Vec<u32> = counts.ports.keys().filter(gone_port).copied().collect();
        let gone_killed: Vec<u32> = counts.killed.keys().filter(gone_port).copied().collect();
        let over = self.affinity()?.into_iter().filter(|(key, value)| living.is_over(key, value, now));
        let over: Vec<AffinityKey> = over.map(|(key, _)| key).collect();
        self.backends.delete(&gone_backends)?;
        self.ports.delete(&gone_ports)?;
        self.killed.delete(&gone_killed)?;
        self.affinity.delete(&over)?;
        Ok(gone_backends.len() + gone_ports.len() + gone_killed.len() + over.len())
    }
}

/// What is in the maps that the agent writes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Living {
    services: BTreeMap<u32, u64>,
    backends: HashSet<u32>,
}

impl Living {
    /// Reads the pins of `directory`.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub fn read(directory: &Path) -> Result<Self> {
        let services = Pinned::<u32, Service>::open(directory, "SERVICES")?.read()?;
        let backends = Pinned::<u32, Backend>::open(directory, "BACKENDS")?.read()?;
        let seconds = |service: Service| u64::from(service.affinity_seconds);
        Ok(Self {
            services: services.into_iter().map(|(id, service)| (id, seconds(service))).collect(),
            backends: backends.into_iter().map(|(id, _)| id).collect(),
        })
    }

    /// Whether there is a backend of this id.
    #[must_use]
    pub fn has_backend(&self, id: u32) -> bool {
        self.backends.contains(&id)
    }

    fn lacks_backend(&self, id: u32, stats: &BackendStats) -> bool {
        stats.open == 0 && !self.backends.contains(&id)
    }

    fn is_over(&self, key: &AffinityKey, value: &Affinity, now: u64) -> bool {
        let seconds = self.services.get(&key.service).copied().unwrap_or(0);
        now.saturating_sub(value.used) >= seconds.saturating_mul(1_000_000_000) || !self.has_backend(value.backend)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lives_or_is_held_stays_and_the_rest_goes() {
        let living = Living { services: [(1, 10), (2, 0)].into(), backends: [5].into() };
        let stats = |open| BackendStats { open, ..BackendStats::default() };
        assert!(!living.lacks_backend(5, &stats(0)));
        assert!(!living.lacks_backend(6, &stats(1)), "a socket still has it");
        assert!(living.lacks_backend(6, &stats(0)));
        let over = |service, backend, seconds: u64| {
            let value = Affinity { used: 0, backend, _pad: 0 };
            living.is_over(&AffinityKey { netns: 1, service, _pad: 0 }, &value, seconds * 1_000_000_000)
        };
        assert!(!over(1, 5, 9));
        assert!(over(1, 5, 10));
        assert!(over(1, 6, 1), "its backend has gone");
        assert!(over(2, 5, 1), "the Service has no affinity any more");
        assert!(over(3, 5, 1), "the Service has gone");
    }
}
