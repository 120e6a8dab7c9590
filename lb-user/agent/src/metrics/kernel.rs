//! Metrics that a scrape reads from the kernel: pinned maps, and the statistics of programs.

use std::{cmp::Reverse, collections::BTreeMap, fs, net::SocketAddr, os::fd::AsFd as _, path::Path, time::Duration};

use anyhow::{Context as _, Result};
use aya::{
    maps::{MapData, MapType},
    programs::loaded_programs,
};
use lb_common::{BackendStats, Counter, EjectStats, EjectStatsKey, ServiceFlags};

use lb_core::{op::Table, spec::PortKey};
use lb_dataplane::{
    attach::tc,
    stats::{
        self, LiveIds, StatMaps, UnsortedStats,
        counts::{GONE, PortCounts},
    },
    store::BpfStore,
};
use lb_kernel::{bpf, clock};

/// Metrics of maps and programs at one moment.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct KernelMetrics {
    /// Maps by name.
    pub maps: Vec<MapUsage>,
    /// Programs by name.
    pub programs: Vec<ProgramUsage>,
    /// Counts of each service port that a socket has dialled, by name.
    pub ports: Vec<(PortKey, PortCounts)>,
    /// Backends that clients of this node miss now, by service port with such backends.
    pub ejected: Vec<(PortKey, u64)>,
    /// Counts of single backends; none unless requested.
    pub backends: Option<TopBackends>,
    /// Events that the programs count.
    pub counters: Vec<(Counter, u64)>,
    /// Number of service ports with endpoints, none of them on this node, for the internal and the external policy
    /// `Local`.
    pub without_local: [u64; 2],
}

/// Usage of a map.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MapUsage {
    /// Name of the map.
    pub name: String,
    /// Number of entries; none for arrays, which are always full, and where the kernel does not tell.
    pub entries: Option<u64>,
    /// Maximum number of entries; 0 for a map without entries, such as a ring buffer.
    pub size: u32,
}

/// Usage of a program in service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ProgramUsage {
    /// Name of the program.
    pub name: String,
    /// Id of the program in the kernel.
    pub id: u32,
    /// Number and total duration of its runs, while `kernel.bpf_stats_enabled` is 1.
    pub runs: Option<(u64, Duration)>,
}

/// The backends with the most connections.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TopBackends {
    /// Backends with series of their own, sorted by service port and address.
    pub shown: Vec<BackendUsage>,
    /// Number of other backends.
    pub left_out: usize,
}

/// Usage of a backend.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BackendUsage {
    /// Service port of the backend.
    pub port: PortKey,
    /// Address and port, or [`GONE`] with the id for a removed backend.
    pub address: String,
    /// Counts of the backend.
    pub stats: BackendStats,
}

/// Reads the pins in `directory`, with at most `backends` single backends. A known number of entries of `FLOWS` is
/// passed as `flows`: the map is too large to count in each scrape.
///
/// # Errors
/// If a map cannot be read. Before the first pass there are none.
pub fn read(directory: &Path, backends: Option<usize>, flows: Option<u64>) -> Result<KernelMetrics> {
    let store = BpfStore::open(directory)?;
    let stat_maps = StatMaps::open(directory)?;
    let counts = stat_maps.read_unsorted()?;
    let ejected_backends = stat_maps.ejected_backends(&LiveIds::open(directory)?, clock::monotonic_ns())?;
    let (maps, programs) = read_pins(directory, flows)?;
    let dump = store.dump_of(&[Table::Services])?;
    let without_local = [ServiceFlags::INTERNAL_LOCAL, ServiceFlags::EXTERNAL_LOCAL].map(|flag| {
        let lacks_local = |service: &&lb_common::ServiceEntry| {
            service.flags & flag != 0 && service.local_len == 0 && service.cluster_len > 0
        };
        dump.services.values().filter(lacks_local).count() as u64
    });
    Ok(KernelMetrics {
        maps,
        programs,
        ports: port_counts(&store, &counts, &stat_maps.ejected()?),
        ejected: ejected(&store, ejected_backends.keys()),
        backends: backends.map(|max| top_backends(&store, counts.backends, max)),
        counters: stats::counters(directory)?,
        without_local,
    })
}

/// Sums the counts of each service port. Counts of removed service ports are left out: they have no name.
fn port_counts(
    store: &BpfStore,
    counts: &UnsortedStats,
    ejected: &BTreeMap<EjectStatsKey, EjectStats>,
) -> Vec<(PortKey, PortCounts)> {
    let ports = counts.ports.iter().map(|(id, stats)| (*id, stats));
    let backends = counts.backends.iter().map(|(_, stats)| stats);
    let mut sums = stats::counts::sum(ports, backends, counts.killed.iter().copied());
    stats::counts::add_ejections(&mut sums, ejected);
    let mut named: Vec<_> = sums.into_iter().filter_map(|(id, counts)| Some((store.name(id)?, counts))).collect();
    named.sort_by(|(a, _), (b, _)| a.cmp(b));
    // Two ids share a name for a moment while one replaces the other, and a scrape must not repeat a series.
    named.dedup_by(|(a, _), (b, _)| a == b);
    named
}

/// Counts these backends by service port.
fn ejected<'a>(store: &BpfStore, backends: impl Iterator<Item = &'a u32>) -> Vec<(PortKey, u64)> {
    let mut counts = BTreeMap::new();
    for backend in backends.filter_map(|id| store.backend(*id)) {
        *counts.entry(backend.service).or_insert(0) += 1;
    }
    counts.into_iter().filter_map(|(service, count)| Some((store.name(service)?, count))).collect()
}

fn top_backends(store: &BpfStore, mut all: Vec<(u32, BackendStats)>, max: usize) -> TopBackends {
    // Connections only grow, so few backends enter and leave the list.
    all.sort_unstable_by_key(|(id, stats)| (Reverse(stats.connections), *id));
    let left_out = all.len().saturating_sub(max);
    all.truncate(max);
    let usage = |(id, stats): (u32, BackendStats)| {
        let address = store.backend(id).map_or_else(
            // The id tells the removed backends of one service port apart.
            || format!("{GONE}#{id}"),
            |backend| SocketAddr::new(backend.addr.to_ip(), backend.port).to_string(),
        );
        Some(BackendUsage { port: store.name(stats.service)?, address, stats })
    };
    let mut shown: Vec<BackendUsage> = all.into_iter().filter_map(usage).collect();
    shown.sort_by(|a, b| (&a.port, &a.address).cmp(&(&b.port, &b.address)));
    shown.dedup_by(|a, b| (&a.port, &a.address) == (&b.port, &b.address));
    TopBackends { shown, left_out }
}

fn read_pins(directory: &Path, flows: Option<u64>) -> Result<(Vec<MapUsage>, Vec<ProgramUsage>)> {
    let (mut maps, mut links) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(directory).with_context(|| format!("reading {}", directory.display()))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        match name.strip_prefix("link_") {
            Some(program) => {
                let id = bpf::open_pin(&entry.path()).and_then(bpf::link_program);
                let program = tc::program_of(&name).unwrap_or(program).to_owned();
                links.push((program, id.with_context(|| format!("reading the link {name}"))?));
            }
            // A staging directory of maps that are not in service yet.
            None if entry.file_type()?.is_dir() => {}
            None => {
                let usage = map_usage(&entry.path(), name.clone(), flows);
                maps.push(usage.with_context(|| format!("reading the map {name}"))?);
            }
        }
    }
    maps.sort_by(|a, b| a.name.cmp(&b.name));
    links.sort();
    // A program of the packet path has a link for each device.
    links.dedup();
    let is_counting = fs::read_to_string("/proc/sys/kernel/bpf_stats_enabled").is_ok_and(|text| text.trim() == "1");
    let loaded: Vec<_> = if is_counting { loaded_programs().filter_map(Result::ok).collect() } else { Vec::new() };
    let usage = |(name, id)| {
        let info = loaded.iter().find(|info| info.id() == id);
        ProgramUsage { name, id, runs: info.map(|info| (info.run_count(), info.run_time())) }
    };
    Ok((maps.into_iter().filter(|map| map.size > 0).collect(), links.into_iter().map(usage).collect()))
}

fn map_usage(path: &Path, name: String, flows: Option<u64>) -> Result<MapUsage> {
    let map = MapData::from_pin(path)?;
    let info = map.info()?;
    let (entries, size) = match info.map_type() {
        Ok(MapType::Hash) if name == "FLOWS" && flows.is_some() => (flows, info.max_entries()),
        Ok(MapType::Hash) => {
            (Some(bpf::count(map.fd().as_fd(), info.key_size(), info.value_size())?), info.max_entries())
        }
        Ok(MapType::LpmTrie) => {
            let (mut entries, max_steps) = (0, 4 * info.max_entries() as usize);
            bpf::each_key(map.fd().as_fd(), info.key_size(), max_steps, |_| entries += 1)?;
            (Some(entries), info.max_entries())
        }
        // The size of a ring buffer is in bytes.
        Ok(MapType::RingBuf) => (None, 0),
        _ => (None, info.max_entries()),
    };
    Ok(MapUsage { name, entries, size })
}
