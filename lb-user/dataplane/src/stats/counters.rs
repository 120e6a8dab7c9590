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
