//! The reader of the programs' records: buffers and a program for handshakes, all of which end with the process.

use std::{
    collections::BTreeMap,
    fs::File,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use aya::{
    Ebpf, EbpfLoader,
    programs::{Program, SockOps},
    util::online_cpus,
};
use aya_obj::generated::bpf_attach_type;
use lb_common::{WatchCell, WatchRecord};
use lb_kernel::{bpf, clock, perf::PerfBuffer};

use crate::{
    cgroups, environment,
    pins::{Pins, link_name},
    upgrade::programs::{self, MapSizes, OBJECT, ProgramOptions},
};

/// Octets of a CPU's buffer: the kernel lets every process lock as much (perf_event_mlock_kb). Some 3,700 records.
const BUFFER: usize = 512 << 10;

/// Time from the clock that a program reads to its record in the buffer, at most: longer for a program that an
/// interrupt stops between both.
const SETTLED: Duration = Duration::from_millis(5);

/// Name of the program for handshakes.
const HANDSHAKES: &str = "watch_handshakes";

/// Records to read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WatchScope {
    /// Of sockets.
    Sockets,
    /// Of sockets, and of the first packets of flows.
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
    buffers: Buffers,
    /// Records read that may still be out of order.
    unsettled: Vec<WatchRecord>,
    /// Lost records before this reader.
    lost_before: Lost,
    handshakes: Result<Handshakes>,
    _lock: File,
}

impl WatchReader {
    /// Opens buffers and begins.
    ///
    /// # Errors
    /// If no agent of this version has served on the node, if another reader runs, or without CAP_PERFMON.
    pub fn open(pins: &Pins, scope: WatchScope) -> Result<Self> {
        let directory = pins.current();
        let lock = pins.lock_watch()?;
        let map = |name: &str| {
            bpf::open_pin(&directory.join(name)).with_context(|| {
                format!(
                    "opening the pinned map {}: the agent of this node is of another version; start it again",
                    directory.join(name).display()
                )
            })
        };
        let (cells, events) = (map("WATCH")?, map("WATCH_EVENTS")?);
        // Of a killed reader, which may have read more.
        close(&cells)?;
        let mut buffers = Buffers { events, by_cpu: BTreeMap::new() };
        buffers.open().context("opening buffers, which needs root or CAP_PERFMON")?;
        // A program that finds no buffer counts a lost record: buffers come before programs, and both before the count.
        let handshakes = Handshakes::attach(&directory);
        let lost_before = Lost::read(&cells)?;
        let reader =
            Self { directory, scope, cells, buffers, unsettled: Vec::new(), lost_before, handshakes, _lock: lock };
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
        for buffer in self.buffers.by_cpu.values_mut() {
            buffer.read(|octets| {
                // Padding follows.
                let record = octets.get(..size_of::<WatchRecord>()).and_then(bpf::from_bytes::<WatchRecord>);
                self.unsettled.extend(record);
            });
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

    /// Checks that the programs still write to this reader, and opens buffers of CPUs that came online. Returns true if
    /// an unknown number of records is missing since the last call: a program found no buffer.
    ///
    /// # Errors
    /// If the maps in service are no longer these.
    pub fn check(&mut self) -> Result<bool> {
        ensure!(
            self.directory.join(link_name("connect4")).exists(),
            "the agent was replaced by another version, or removed: start `beeline watch` again"
        );
        self.buffers.open()?;
        let mut is_missing = false;
        for cell_of in self.scope.cells() {
            is_missing |= cell(&self.cells, *cell_of)? == 0;
        }
        if is_missing {
            self.begin()?;
        }
        Ok(is_missing)
    }

    /// Lets the programs write records.
    fn begin(&self) -> Result<()> {
        self.scope.cells().iter().try_for_each(|cell| set_cell(&self.cells, *cell, 1))
    }
}

/// Lets the programs write no records of any kind.
fn close(cells: &OwnedFd) -> Result<()> {
    WatchScope::SocketsAndPackets.cells().iter().try_for_each(|cell| set_cell(cells, *cell, 0))
}

/// Buffers of records, by CPU.
struct Buffers {
    /// The map `WATCH_EVENTS`. The kernel removes this reader's buffers with the descriptor.
    events: OwnedFd,
    by_cpu: BTreeMap<u32, PerfBuffer>,
}

impl Buffers {
    /// Opens the buffers of online CPUs that have none.
    fn open(&mut self) -> Result<()> {
        for cpu in online_cpus().map_err(|(path, error)| anyhow!("{path}: {error}"))? {
            if self.by_cpu.contains_key(&cpu) {
                continue;
            }
            let buffer = PerfBuffer::open(cpu, BUFFER).with_context(|| format!("opening the buffer of CPU {cpu}"))?;
            let descriptor = buffer.as_fd().as_raw_fd().cast_unsigned();
            bpf::update(self.events.as_fd(), &cpu, &descriptor).context("writing the map WATCH_EVENTS")?;
            self.by_cpu.insert(cpu, buffer);
        }
        Ok(())
    }
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
        // Without it, the next program that finds no buffer does so.
        let _best_effort = close(&self.cells);
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
