//! Writes the map `CLUSTER_RANGES`.

use std::path::Path;

use anyhow::{Context as _, Result};
use lb_common::ClusterRanges;
use lb_kernel::bpf::typed::TypedMap;

/// Name of the map.
const MAP: &str = "CLUSTER_RANGES";

/// Reads the ranges from the map pinned in `directory`.
///
/// # Errors
/// If the map cannot be read.
pub fn read(directory: &Path) -> Result<ClusterRanges> {
    Ok(TypedMap::<u32, ClusterRanges>::open(directory, MAP)?.get(&0)?.unwrap_or_default())
}

/// Writes the ranges to the map pinned in `directory`, unless they are there.
///
/// # Errors
/// If the map cannot be read or written.
pub fn write(directory: &Path, ranges: &ClusterRanges) -> Result<()> {
    let map = TypedMap::<u32, ClusterRanges>::open(directory, MAP)?;
    let before = map.get(&0)?.unwrap_or_default();
    if before == *ranges {
        return Ok(());
    }
    // A program may read in the middle of a write: it meets ranges only while they are complete.
    let steps = [ClusterRanges { len: 0, ..before }, ClusterRanges { len: 0, ..*ranges }, *ranges];
    steps.iter().try_for_each(|step| map.put(&[0], &[*step])).context("writing CLUSTER_RANGES")
}
