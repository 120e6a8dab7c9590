//! Samples of the pinned maps. Each sample opens the maps again: a map that has grown is a new map under the same name.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Result;
use foldhash::HashMap;
use lb_common::{Backend, BackendFlags, BackendStats, Slot, SlotKey};

use crate::inspect;
use lb_core::{op::Table, store::Dump};
use lb_dataplane::{
    pins::Pins,
    stats::{self, StatMaps, UnsortedStats, counts::PortCounts},
    store::BpfStore,
};

/// Counts of the maps at one time.
pub(super) struct Sample {
    /// Time of reading the counts.
    pub(super) at: Instant,
    /// Pid of the running agent.
    pub(super) agent: Option<u32>,
    /// Service ports and backends at this time or shortly before.
    pub(super) served: Arc<Served>,
    /// Counts by service port.
    pub(super) counts: HashMap<u32, PortCounts>,
    /// Counts by backend id, in no order.
    pub(super) backend_stats: Vec<(u32, BackendStats)>,
}

/// Service ports and backends, which change seldom.
pub(super) struct Served {
    /// Names, service ports and backends.
    pub(super) dump: Dump,
    /// Service ports, by name.
    pub(super) ports: Vec<ServicePort>,
    /// Number of Services.
    pub(super) services: usize,
    /// Number of backends that new sockets may get.
    pub(super) backends: u32,
}

/// A service port.
pub(super) struct ServicePort {
    pub(super) id: u32,
    /// Namespace and name of the Service.
    pub(super) service: String,
    /// Name, if any, and protocol of the port.
    pub(super) port: String,
    /// Backends in the cluster list.
    pub(super) backends: u32,
}

impl Sample {
    pub(super) fn new(at: Instant, agent: Option<u32>, served: Arc<Served>, counts: UnsortedStats) -> Self {
        let UnsortedStats { ports, backends: backend_stats, killed } = counts;
        let ports = ports.iter().map(|(id, port)| (*id, port));
        let counts = stats::counts::sum(ports, backend_stats.iter().map(|(_, stats)| stats), killed.into_iter());
        Self { at, agent, served, counts, backend_stats }
    }
}

impl Served {
    pub(super) fn new(dump: Dump) -> Self {
        let sizes = inspect::list_sizes(&dump);
        let port = |id: &u32| {
            let key = dump.names.get(id);
            let service = key.map_or_else(|| inspect::name_of(&dump, *id), |key| key.service.to_string());
            // `default/web:http/TCP` without `default/web:`.
            let port = key.map(|key| key.to_string().split_off(service.len() + 1)).unwrap_or_default();
            ServicePort { id: *id, service, port, backends: sizes.get(id).map_or(0, |[cluster, _]| *cluster) }
        };
        let mut ports: Vec<ServicePort> = dump.services.keys().map(port).collect();
        ports.sort_by(|a, b| (&a.service, &a.port, a.id).cmp(&(&b.service, &b.port, b.id)));
        let is_listed = |backend: &&Backend| backend.flags & (BackendFlags::CLUSTER | BackendFlags::LOCAL) != 0;
        let backends = u32::try_from(dump.backends.values().filter(is_listed).count()).unwrap_or(u32::MAX);
        Self { services: ports.chunk_by(|a, b| a.service == b.service).count(), ports, backends, dump }
    }
}

/// The maps of [`Served`].
const SERVED_TABLES: [Table; 3] = [Table::Names, Table::Services, Table::Backends];

/// [`Served`] is read again after this multiple of the time that reading took, so that reading costs at most 2 % of a
/// CPU: it may have 100,000 backends. With a few hundred, each sample reads it.
const CACHE_FACTOR: u32 = 50;

/// Reads samples.
pub(super) struct Reader {
    pins: Pins,
    directory: PathBuf,
    cache: Option<CachedServed>,
}

/// [`Served`], with the time and the duration of reading.
struct CachedServed {
    served: Arc<Served>,
    read_at: Instant,
    took: Duration,
}

impl Reader {
    pub(super) fn new(pins: Pins) -> Self {
        Self { directory: pins.current(), pins, cache: None }
    }

    /// Reads a sample.
    pub(super) fn read(&mut self) -> Result<Sample> {
        let served = self.served()?;
        let maps = StatMaps::open(&self.directory)?;
        let (at, counts) = (Instant::now(), maps.read_unsorted()?);
        Ok(Sample::new(at, self.pins.agent(), served, counts))
    }

    /// Reads the slots of a service port.
    pub(super) fn slots(&self, service: u32) -> Result<BTreeMap<SlotKey, Slot>> {
        BpfStore::open(&self.directory)?.slots_of(service)
    }

    fn served(&mut self) -> Result<Arc<Served>> {
        if let Some(cache) = &self.cache
            && cache.read_at.elapsed() < cache.took * CACHE_FACTOR
        {
            return Ok(Arc::clone(&cache.served));
        }
        let read_at = Instant::now();
        let served = Arc::new(Served::new(BpfStore::open(&self.directory)?.dump_of(&SERVED_TABLES)?));
        self.cache = Some(CachedServed { served: Arc::clone(&served), read_at, took: read_at.elapsed() });
        Ok(served)
    }
}
