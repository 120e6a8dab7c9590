//! The reader of the programs' records: a ring buffer and a program for handshakes. The program ends with the process;
//! the buffer with the reader, or when the agent finds that its process was killed.

use std::{
    fs::File,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Map, MapData, RingBuf},
    programs::{Program, SockOps},
};
use aya_obj::{
    EbpfSectionKind,
    generated::{bpf_attach_type, bpf_map_type},
    maps::{LegacyMap, bpf_map_def},
};
use lb_common::{WatchCell, WatchRecord, WatchResult, capacity};
use lb_kernel::{bpf, clock};

use crate::{
    cgroups, environment,
    pins::{Pins, link_name, lock_watch},
    upgrade::programs::{self, MapSizes, OBJECT, ProgramOptions},
};

/// Time for which the programs write to a reader from which they do not hear.
pub const LEASE: Duration = Duration::from_secs(60);

/// Time from the clock that a program reads to its record in the buffer, at most: longer for a program that an
/// interrupt stops between both.
const SETTLED: Duration = Duration::from_millis(5);

/// Name of the program for handshakes.
const HANDSHAKES: &str = "watch_handshakes";

/// Records to read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WatchScope {
    /// Calls of sockets.
    Sockets,
    /// Calls of sockets, and first packets of flows.
    SocketsAndPackets,
}

impl WatchScope {
    const fn cells(self) -> &'static [WatchCell] {
        match self {
            Self::Sockets => &[WatchCell::Sockets],
            Self::SocketsAndPackets => &[WatchCell::Sockets, WatchCell::Packets],
        }
    }
}

/// A reader of records. The programs write them until it is dropped.
pub struct WatchReader {
    directory: PathBuf,
    scope: WatchScope,
    /// The map `WATCH`.
    cells: OwnedFd,
    ring: RingBuf<MapData>,
    /// The map `WATCH_RING`, which names the buffer.
    rings: OwnedFd,
    /// Records read that may still be out of order.
    unsettled: Vec<WatchRecord>,
    /// Lost records before this reader.
    lost_before: Lost,
    handshakes: Result<Handshakes>,
    _lock: File,
}

impl WatchReader {
    /// Makes a buffer and begins.
    ///
    /// # Errors
    /// If no agent of this version has served on the node, if another reader runs, or without CAP_BPF.
    pub fn open(pins: &Pins, scope: WatchScope) -> Result<Self> {
        let directory = pins.current();
        let lock = lock_watch(&directory)?;
        let map = |name: &str| {
            bpf::open_pin(&directory.join(name)).with_context(|| {
                format!(
                    "opening the pinned map {}: the agent of this node is of another version; start it again",
                    directory.join(name).display()
                )
            })
        };
        let (cells, rings) = (map("WATCH")?, map("WATCH_RING")?);
        // Records for a killed reader, which may have read more.
        close(&cells)?;
        let ring = ring().context("making a ring buffer, which needs root or CAP_BPF")?;
        let descriptor = ring.as_raw_fd().cast_unsigned();
        bpf::update(rings.as_fd(), &RING, &descriptor).context("writing the map WATCH_RING")?;
        let handshakes = Handshakes::attach(&directory);
        let lost_before = Lost::read(&cells)?;
        let unsettled = Vec::new();
        let reader = Self { directory, scope, cells, ring, rings, unsettled, lost_before, handshakes, _lock: lock };
        reader.begin()?;
        Ok(reader)
    }

    /// Returns why the results of handshakes are unknown, if they are.
    #[must_use]
    pub fn without_handshakes(&self) -> Option<&anyhow::Error> {
        self.handshakes.as_ref().err()
    }

    /// Reads new records, ordered by time. Records of the last milliseconds wait for the next call.
    pub fn read(&mut self) -> Vec<WatchRecord> {
        let settled = clock::monotonic_ns().saturating_sub(SETTLED.as_nanos() as u64);
        self.read_until(settled)
    }

    /// Ends the records and reads all that are left.
    ///
    /// # Errors
    /// If the map cannot be written.
    pub fn finish(&mut self) -> Result<Vec<WatchRecord>> {
        close(&self.cells)?;
        std::thread::sleep(SETTLED);
        Ok(self.read_until(u64::MAX))
    }

    fn read_until(&mut self, settled: u64) -> Vec<WatchRecord> {
        while let Some(octets) = self.ring.next() {
            let result = || bpf::from_bytes::<WatchResult>(&octets).map(WatchRecord::from);
            self.unsettled.extend(bpf::from_bytes::<WatchRecord>(&octets).or_else(result));
        }
        self.unsettled.sort_by_key(|record| record.time);
        let count = self.unsettled.partition_point(|record| record.time <= settled);
        self.unsettled.drain(..count).collect()
    }

    /// Returns the numbers of records that found no room since [`WatchReader::open`].
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn lost(&self) -> Result<Lost> {
        let now = Lost::read(&self.cells)?;
        Ok(Lost {
            calls: now.calls.saturating_sub(self.lost_before.calls),
            results: now.results.saturating_sub(self.lost_before.results),
        })
    }

    /// Puts off the time until which the programs write to this reader; to be called each second. Returns true if an
    /// unknown number of records is missing since the last call: a program found the time over.
    ///
    /// # Errors
    /// If the maps in service are no longer these.
    pub fn check(&mut self) -> Result<bool> {
        ensure!(
            self.directory.join(link_name("connect4")).exists(),
            "the agent was replaced by another version, or removed: start `beeline watch` again"
        );
        let mut is_missing = false;
        for cell_of in self.scope.cells() {
            is_missing |= cell(&self.cells, *cell_of)? == 0;
        }
        self.begin()?;
        Ok(is_missing)
    }

    /// Lets the programs write records for a while.
    fn begin(&self) -> Result<()> {
        let until = clock::monotonic_ns() + LEASE.as_nanos() as u64;
        self.scope.cells().iter().try_for_each(|cell| set_cell(&self.cells, *cell, until))
    }
}

/// Lets the programs write no records of any kind.
fn close(cells: &OwnedFd) -> Result<()> {
    WatchScope::SocketsAndPackets.cells().iter().try_for_each(|cell| set_cell(cells, *cell, 0))
}

/// The key in `WATCH_RING`.
const RING: u32 = 0;

/// Makes a ring buffer as `WATCH_RING` declares it.
fn ring() -> Result<RingBuf<MapData>> {
    let def = bpf_map_def {
        map_type: bpf_map_type::BPF_MAP_TYPE_RINGBUF as u32,
        max_entries: u32::try_from(capacity::WATCH_RING)?,
        ..bpf_map_def::default()
    };
    let map = LegacyMap {
        def,
        inner_def: None,
        section_index: 0,
        section_kind: EbpfSectionKind::Maps,
        symbol_index: None,
        data: Vec::new(),
    };
    Ok(RingBuf::try_from(Map::RingBuf(MapData::create(aya_obj::Map::Legacy(map), "WATCH_RING", None)?))?)
}

/// Ends the records for a reader that was killed, if there is one, and removes its buffer from the maps pinned in
/// `directory`.
///
/// # Errors
/// If the maps cannot be read or written.
pub fn remove_abandoned(directory: &Path) -> Result<()> {
    let rings = bpf::open_pin(&directory.join("WATCH_RING")).context("opening the map WATCH_RING")?;
    let ring = bpf::lookup::<u32, u32>(rings.as_fd(), &RING).context("reading the map WATCH_RING")?;
    // The reader holds a lock for as long as it lives.
    if ring.is_some()
        && let Ok(_lock) = lock_watch(directory)
    {
        close(&bpf::open_pin(&directory.join("WATCH")).context("opening the map WATCH")?)?;
        bpf::delete(rings.as_fd(), &RING).context("writing the map WATCH_RING")?;
        tracing::info!("removed the buffer of a `beeline watch` that was killed");
    }
    Ok(())
}

/// Numbers of records that found no room.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Lost {
    /// Calls and packets.
    pub calls: u64,
    /// Results of handshakes.
    pub results: u64,
}

impl Lost {
    fn read(cells: &OwnedFd) -> Result<Self> {
        Ok(Self { calls: cell(cells, WatchCell::LostCalls)?, results: cell(cells, WatchCell::LostResults)? })
    }
}

impl Drop for WatchReader {
    fn drop(&mut self) {
        // If this fails, the agent or the next program that finds the time over closes it.
        let _best_effort = close(&self.cells);
        let _best_effort = bpf::delete(self.rings.as_fd(), &RING);
    }
}

fn set_cell(map: &OwnedFd, cell: WatchCell, value: u64) -> Result<()> {
    bpf::update(map.as_fd(), &(cell as u32), &value).context("writing the map WATCH")
}

fn cell(map: &OwnedFd, cell: WatchCell) -> Result<u64> {
    let value = bpf::lookup(map.as_fd(), &(cell as u32)).context("reading the map WATCH")?;
    Ok(value.unwrap_or(0))
}

/// The program for handshakes, attached to the served cgroup by a link without a pin.
struct Handshakes {
    _link: OwnedFd,
    _program: Ebpf,
}

impl Handshakes {
    fn attach(directory: &Path) -> Result<Self> {
        let link = bpf::open_pin(&directory.join(link_name("connect4"))).context("opening the link of connect4")?;
        let served = bpf::cgroup_link(link).context("reading the link of connect4")?.cgroup;
        let mount = environment::find_cgroup2()?.context("no cgroup2 hierarchy is mounted here")?;
        let cgroup = cgroups::find(&mount, served)
            .with_context(|| format!("the served cgroup (id {served}) is not below {}", mount.display()))?;
        let maps = programs::layouts(&ProgramOptions::default(), &MapSizes::new())?;
        let mut loader = EbpfLoader::new();
        for name in maps.keys() {
            let pin = directory.join(name);
            ensure!(pin.exists(), "the map {name} is not pinned: the agent of this node is of another version");
            loader.map_pin_path(name, pin);
        }
        let mut ebpf = loader.load(OBJECT).context("loading the eBPF object")?;
        let program: &mut SockOps = ebpf
            .program_mut(HANDSHAKES)
            .with_context(|| format!("the object lacks the program {HANDSHAKES}"))
            .and_then(|program: &mut Program| Ok(program.try_into()?))?;
        program.load().context("loading the program for handshakes")?;
        let cgroup = File::open(&cgroup).with_context(|| format!("opening the cgroup {}", cgroup.display()))?;
        let link = bpf::attach_cgroup(program.fd()?.as_fd(), cgroup, bpf_attach_type::BPF_CGROUP_SOCK_OPS)
            .context("attaching the program for handshakes")?;
        Ok(Self { _link: link, _program: ebpf })
    }
}
