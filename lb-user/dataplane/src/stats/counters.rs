//! The programs' event counters.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use aya::maps::{MapData, PerCpuArray};
use lb_common::Counter;

/// Reads the counters since the maps were created, summed over the CPUs.
///
/// # Errors
/// If the pinned map cannot be read.
pub fn counters(directory: &Path) -> Result<Vec<(Counter, u64)>> {
    let array = open(directory)?;
    Counter::ALL.into_iter().map(|counter| Ok((counter, read(&array, counter)?))).collect()
}

type Array = PerCpuArray<MapData, u64>;

fn open(directory: &Path) -> Result<Array> {
    let path: PathBuf = directory.join("COUNTERS");
    let map = MapData::from_pin(&path).with_context(|| format!("opening the pinned map {}", path.display()))?;
    Ok(aya::maps::Map::PerCpuArray(map).try_into()?)
}

fn read(array: &Array, counter: Counter) -> Result<u64> {
    let values = array.get(&(counter as u32), 0).context("reading COUNTERS")?;
    Ok(values.iter().sum())
}

/// Watches one counter.
pub struct CounterWatch {
    array: Array,
    counter: Counter,
    last: u64,
}

impl CounterWatch {
    /// Begins with the present count.
    ///
    /// # Errors
    /// If the pinned map cannot be read.
    pub fn new(directory: &Path, counter: Counter) -> Result<Self> {
        let array = open(directory)?;
        let last = read(&array, counter)?;
        Ok(Self { array, counter, last })
    }

    /// True if the counter has risen since the last call.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn has_risen(&mut self) -> Result<bool> {
        let now = read(&self.array, self.counter)?;
        Ok(std::mem::replace(&mut self.last, now) < now)
    }
}
