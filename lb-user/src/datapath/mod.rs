//! The kernel side as the agent holds it: environment, pins, programs, log. No Kubernetes here.

pub mod environment;
pub mod log;
pub mod pins;
pub mod programs;
pub mod sys;

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use aya::{
    Ebpf,
    maps::{MapData, PerCpuArray},
};
use lb_common::Counter;
use tracing::info;

pub use programs::{Features, HOOKS, Sizes};

use crate::{op::Table, store::BpfStore};
use pins::{Found, Pins};

/// Loaded programs and their maps; in service after [`Datapath::attach`]. What is in service outlives it.
pub struct Datapath {
    ebpf: Ebpf,
    pins: Pins,
    features: Features,
    adopted: usize,
    /// Held as long as this agent lives.
    _lock: File,
}

impl Datapath {
    /// Takes the lock, checks what is pinned, and loads the programs over it.
    ///
    /// # Errors
    /// With the cure: another agent, foreign pins, an object that the kernel refuses.
    pub fn load(pins: Pins, sizes: &Sizes) -> Result<Self> {
        let lock = pins.lock()?;
        let layouts = programs::layouts(sizes)?;
        let found = pins::inspect(&pins.current(), &layouts)?;
        let (ebpf, features) = programs::load(&pins, &layouts, &found)?;
        let adopted = found.values().filter(|found| **found == Found::Adopt).count();
        for (name, _) in found.iter().filter(|(_, found)| **found == Found::Resize) {
            info!(map = name, "another size is wanted: a new map takes the place of the pinned one");
        }
        Ok(Self { ebpf, pins, features, adopted, _lock: lock })
    }

    /// What the kernel offers.
    #[must_use]
    pub const fn features(&self) -> Features {
        self.features
    }

    /// How many pinned maps were taken over.
    #[must_use]
    pub const fn adopted(&self) -> usize {
        self.adopted
    }

    /// The maps that the agent writes.
    ///
    /// # Errors
    /// When a pin cannot be opened.
    pub fn store(&self) -> Result<BpfStore> {
        let directories = [self.pins.staging(), self.pins.current()];
        BpfStore::from_maps(|table: Table| {
            let path = directories.iter().map(|directory| directory.join(table.map_name())).find(|path| path.exists());
            let path = path.with_context(|| format!("map {} is not pinned", table.map_name()))?;
            MapData::from_pin(&path).with_context(|| format!("opening {}", path.display()))
        })
    }

    /// The log of the programs. Once.
    ///
    /// # Errors
    /// When its maps are missing, which is a defect of the build.
    pub fn take_log(&mut self) -> Result<log::DatapathLog> {
        log::DatapathLog::new(&mut self.ebpf)
    }

    /// Puts the programs into service at a cgroup, and the new maps at their places. Returns how many links were taken
    /// over from an earlier agent.
    ///
    /// # Errors
    /// When a hook cannot be attached.
    pub fn attach(&mut self, cgroup: &Path) -> Result<usize> {
        let taken_over = programs::attach(&mut self.ebpf, cgroup, &self.pins)?;
        programs::publish(&self.pins)?;
        Ok(taken_over)
    }
}

impl Drop for Datapath {
    /// Maps that never went into service leave no pins behind.
    fn drop(&mut self) {
        let staging = self.pins.staging();
        if staging.exists() {
            let _best_effort = fs::remove_dir_all(staging);
        }
    }
}

/// Counts of the programs' events since the maps were made, summed over the CPUs.
///
/// # Errors
/// When the pinned map cannot be read.
pub fn counters(directory: &Path) -> Result<Vec<(Counter, u64)>> {
    let path: PathBuf = directory.join("COUNTERS");
    let map = MapData::from_pin(&path).with_context(|| format!("opening the pinned map {}", path.display()))?;
    let array: PerCpuArray<_, u64> = aya::maps::Map::PerCpuArray(map).try_into()?;
    Counter::ALL
        .into_iter()
        .map(|counter| {
            let values = array.get(&(counter as u32), 0).with_context(|| format!("reading {}", path.display()))?;
            Ok((counter, values.iter().sum()))
        })
        .collect()
}
