//! What the pins say at one moment. The maps are opened anew each time: one that has grown is another map under the same
//! name.

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

/// A moment.
pub(super) struct Sample {
    /// When the counts were read.
    pub(super) at: Instant,
    /// The agent, when one runs.
    pub(super) agent: Option<u32>,
    /// What is served, at this moment or a little before.
    pub(super) served: Arc<Served>,
    /// What was counted, by service port.
    pub(super) counts: HashMap<u32, PortCounts>,
    /// What was counted by backend, in no order.
    pub(super) given: Vec<(u32, BackendStats)>,
}

/// What is served.
pub(super) struct Served {
    /// Names, service ports and backends.
    pub(super) dump: Dump,
    /// The service ports, by name.
    pub(super) ports: Vec<Port>,
    /// How many Services these are of.
    pub(super) services: usize,
    /// Backends that new sockets may be given.
    pub(super) backends: u32,
}

/// A service port.
pub(super) struct Port {
    pub(super) id: u32,
    /// Namespace and name of the Service.
    pub(super) service: String,
    /// Name, if it has one, and protocol of the port.
    pub(super) port: String,
    /// Backends in the cluster list.
    pub(super) backends: u32,
}

impl Sample {
    pub(super) fn new(at: Instant, agent: Option<u32>, served: Arc<Served>, counts: UnsortedStats) -> Self {
        let UnsortedStats { ports, backends: given, killed } = counts;
        let ports = ports.iter().map(|(id, port)| (*id, port));
        let counts = stats::counts::sum(ports, given.iter().map(|(_, stats)| stats), killed.into_iter());
        Self { at, agent, served, counts, given }
    }
}

impl Served {
    pub(super) fn new(dump: Dump) -> Self {
        let sizes = inspect::list_sizes(&dump);
        let port = |id: &u32| {
            let key = dump.names.get(id);
            let service = key.map_or_else(|| inspect::name_of(&dump, *id), |key| key.service.to_string());
            // As in `default/web:http/TCP`.
            let port = key.map(|key| key.to_string().split_off(service.len() + 1)).unwrap_or_default();
            Port { id: *id, service, port, backends: sizes.get(id).map_or(0, |[cluster, _]| *cluster) }
        };
        let mut ports: Vec<Port> = dump.services.keys().map(port).collect();
        ports.sort_by(|a, b| (&a.service, &a.port, a.id).cmp(&(&b.service, &b.port, b.id)));
        let offered = |backend: &&Backend| backend.flags & (BackendFlags::CLUSTER | BackendFlags::LOCAL) != 0;
        let backends = u32::try_from(dump.backends.values().filter(offered).count()).unwrap_or(u32::MAX);
        Self { services: ports.chunk_by(|a, b| a.service == b.service).count(), ports, backends, dump }
    }
}

/// The maps of what is served that all pages need.
const SERVED: [Table; 3] = [Table::Names, Table::Services, Table::Backends];

/// What is served is read again after so many times the time that it took, so that it costs 2 % of a CPU at most: it changes
/// seldom, and may be a hundred thousand backends. With a few hundred it is read at each look.
const REST: u32 = 50;

/// Reads samples.
pub(super) struct Reader {
    pins: Pins,
    directory: PathBuf,
    last: Option<Last>,
}

/// When what is served was read.
struct Last {
    served: Arc<Served>,
    read: Instant,
    took: Duration,
}

impl Reader {
    pub(super) fn new(pins: Pins) -> Self {
        Self { directory: pins.current(), pins, last: None }
    }

    /// The moment that is now.
    pub(super) fn read(&mut self) -> Result<Sample> {
        let served = self.served()?;
        let maps = StatMaps::open(&self.directory)?;
        let (at, counts) = (Instant::now(), maps.read_unsorted()?);
        Ok(Sample::new(at, self.pins.agent(), served, counts))
    }

    /// The slots of a service port.
    pub(super) fn slots(&self, service: u32) -> Result<BTreeMap<SlotKey, Slot>> {
        BpfStore::open(&self.directory)?.slots_of(service)
    }

    fn served(&mut self) -> Result<Arc<Served>> {
        if let Some(last) = &self.last
            && last.read.elapsed() < last.took * REST
        {
            return Ok(Arc::clone(&last.served));
        }
        let read = Instant::now();
        let served = Arc::new(Served::new(BpfStore::open(&self.directory)?.dump_of(&SERVED)?));
        self.last = Some(Last { served: Arc::clone(&served), read, took: read.elapsed() });
        Ok(served)
    }
}
