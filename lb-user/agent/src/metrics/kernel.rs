//! What a scrape reads from the kernel: the pinned maps, which programs and agent share, and the programs' own statistics.

use std::{fs, os::fd::AsFd as _, path::Path, time::Duration};

use anyhow::{Context as _, Result};
use aya::{
    maps::{MapData, MapType},
    programs::loaded_programs,
};
use lb_common::{BackendStats, Counter, ServiceFlags};

use lb_core::{op::Table, spec::PortKey};
use lb_dataplane::{
    attach::tc,
    stats::{
        self, StatMaps, UnsortedStats,
        counts::{GONE, PortCounts},
    },
    store::BpfStore,
};
use lb_kernel::bpf;

/// What the kernel says at a moment.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Kernel {
    /// The maps, by name.
    pub maps: Vec<Map>,
    /// The programs, by name.
    pub programs: Vec<Program>,
    /// What sockets did with each service port that one has dialled, by name.
    pub ports: Vec<(PortKey, PortCounts)>,
    /// The same of backends, where it was asked for.
    pub backends: Option<Backends>,
    /// Events that the programs count.
    pub counters: Vec<(Counter, u64)>,
    /// Service ports with an internal, and with an external policy Local and endpoints, none of which is on this node.
    pub without_local: [u64; 2],
}

/// A map.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Map {
    /// Its name.
    pub name: String,
    /// How many entries it has; none for one that always has all, or of which the kernel does not tell.
    pub entries: Option<u64>,
    /// How many it may have; 0 where it does not have entries of its own.
    pub size: u32,
}

/// A program in service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Program {
    /// Its name.
    pub name: String,
    /// By which the kernel knows it.
    pub id: u32,
    /// How often it ran and for how long, where the kernel counts that (`kernel.bpf_stats_enabled`).
    pub runs: Option<(u64, Duration)>,
}

/// Backends, those with the most connections.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Backends {
    /// Those that are shown.
    pub shown: Vec<Backend>,
    /// How many are not.
    pub left_out: usize,
}

/// A backend.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Backend {
    /// Its service port.
    pub port: PortKey,
    /// Its address and port, or [`GONE`].
    pub address: String,
    /// What sockets did with it.
    pub stats: BackendStats,
}

/// Reads the pins of `directory`, and of backends so many at most. Where it is known how many entries `FLOWS` had of late they
/// are not counted: it is too large for each scrape.
///
/// # Errors
/// When a map cannot be read; before the first pass there are none.
pub fn read(directory: &Path, backends: Option<usize>, flows: Option<u64>) -> Result<Kernel> {
    let store = BpfStore::open(directory)?;
    let counts = StatMaps::open(directory)?.read_unsorted()?;
    let (maps, programs) = pins(directory, flows)?;
    let dump = store.dump_of(&[Table::Services])?;
    let without_local = [ServiceFlags::INTERNAL_LOCAL, ServiceFlags::EXTERNAL_LOCAL].map(|flag| {
        let lacks = |service: &&lb_common::Service| {
            service.flags & flag != 0 && service.local_len == 0 && service.cluster_len > 0
        };
        dump.services.values().filter(lacks).count() as u64
    });
    Ok(Kernel {
        maps,
        programs,
        ports: ports(&store, &counts),
        backends: backends.map(|most| choose(&store, counts.backends, most)),
        counters: stats::counters(directory)?,
        without_local,
    })
}

/// The counts of a service port that has gone are swept soon; nobody can say whose they are.
fn ports(store: &BpfStore, counts: &UnsortedStats) -> Vec<(PortKey, PortCounts)> {
    let ports = counts.ports.iter().map(|(id, stats)| (*id, stats));
    let backends = counts.backends.iter().map(|(_, stats)| stats);
    let sums = stats::counts::sum(ports, backends, counts.killed.iter().copied());
    let mut named: Vec<_> = sums.into_iter().filter_map(|(id, counts)| Some((store.name(id)?, counts))).collect();
    named.sort_by(|(a, _), (b, _)| a.cmp(b));
    // Two ids have one name for a moment, while one takes the place of the other: a series may stand there once only.
    named.dedup_by(|(a, _), (b, _)| a == b);
    named
}

fn choose(store: &BpfStore, mut all: Vec<(u32, BackendStats)>, most: usize) -> Backends {
    // By what only grows, so that the edge seldom moves.
    all.sort_unstable_by_key(|(id, stats)| (std::cmp::Reverse(stats.connections), *id));
    let left_out = all.len().saturating_sub(most);
    all.truncate(most);
    let row = |(id, stats): (u32, BackendStats)| {
        let address = store.backend(id).map_or_else(
            // Of several that are gone from one service port each has a series.
            || format!("{GONE}#{id}"),
            |backend| std::net::SocketAddr::new(backend.addr.to_ip(), backend.port).to_string(),
        );
        Some(Backend { port: store.name(stats.service)?, address, stats })
    };
    let mut shown: Vec<Backend> = all.into_iter().filter_map(row).collect();
    shown.sort_by(|a, b| (&a.port, &a.address).cmp(&(&b.port, &b.address)));
    shown.dedup_by(|a, b| (&a.port, &a.address) == (&b.port, &b.address));
    Backends { shown, left_out }
}

fn pins(directory: &Path, flows: Option<u64>) -> Result<(Vec<Map>, Vec<Program>)> {
    let (mut maps, mut links) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(directory).with_context(|| format!("reading {}", directory.display()))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        match name.strip_prefix("link_") {
            Some(program) => {
                let id = bpf::open_pin(&entry.path()).and_then(bpf::link_program);
                let program = tc::program_of(&name).unwrap_or(program).to_owned();
                links.push((program, id.with_context(|| format!("asking about the link {name}"))?));
            }
            // Of maps that are to come.
            None if entry.file_type()?.is_dir() => {}
            None => {
                maps.push(map(&entry.path(), name.clone(), flows).with_context(|| format!("reading the map {name}"))?);
            }
        }
    }
    maps.sort_by(|a, b| a.name.cmp(&b.name));
    links.sort();
    // A program of the packet path has a link for each device.
    links.dedup();
    let is_counting = fs::read_to_string("/proc/sys/kernel/bpf_stats_enabled").is_ok_and(|text| text.trim() == "1");
    let running: Vec<_> = if is_counting { loaded_programs().filter_map(Result::ok).collect() } else { Vec::new() };
    let program = |(name, id)| {
        let info = running.iter().find(|info| info.id() == id);
        Program { name, id, runs: info.map(|info| (info.run_count(), info.run_time())) }
    };
    Ok((maps.into_iter().filter(|map| map.size > 0).collect(), links.into_iter().map(program).collect()))
}

fn map(path: &Path, name: String, flows: Option<u64>) -> Result<Map> {
    let map = MapData::from_pin(path)?;
    let info = map.info()?;
    let (entries, size) = match info.map_type() {
        Ok(MapType::Hash) if name == "FLOWS" && flows.is_some() => (flows, info.max_entries()),
        Ok(MapType::Hash) => {
            (Some(bpf::count(map.fd().as_fd(), info.key_size(), info.value_size())?), info.max_entries())
        }
        Ok(MapType::LpmTrie) => {
            let (mut entries, most) = (0, 4 * info.max_entries() as usize);
            bpf::each_key(map.fd().as_fd(), info.key_size(), most, |_| entries += 1)?;
            (Some(entries), info.max_entries())
        }
        // The size of a ring is in bytes.
        Ok(MapType::RingBuf) => (None, 0),
        _ => (None, info.max_entries()),
    };
    Ok(Map { name, entries, size })
}
