//! What an agent takes over from the pins of another version of the layout, older or newer, map by map. Neither version knows
//! the other's layout: each marks its directory with the [`likeness`](super::likeness) of its maps, as the names of empty
//! directories (a bpffs keeps nothing else), and a map goes over where both have the same.
//!
//! What only programs write is shared: both versions have one map while the links change over, so that nothing is lost of what
//! happens meanwhile. What the agent writes is copied: the version in service keeps its own as it is until its last link has
//! gone. A map that is not the same begins empty, which means:
//!
//! - of those that the agent writes nothing, but for `NAMES` and `BACKENDS`: without the first, service ports get new ids, and
//!   without the second backends do, beyond all that were seen. Counts and affinity begin anew then, and connected UDP sockets
//!   are ended, so that they open new ones.
//! - `SOCKS`: unconnected UDP sockets are given a backend anew, and see the answers to what they had asked come from the backend.
//! - `TCP_SOCKS` or `TCP_MORE`: getpeername shows the backend for connections that were open, and they count as open for as long
//!   as their backend is there.
//! - `FLOWS`: connections from outside are given a backend anew, which breaks those of TCP.
//! - `DEVICES`: flows from outside that begin before the devices have been looked at are dropped.
//! - `AFFINITY`, counts, `FRAGMENTS`: they begin anew.

use std::{
    collections::BTreeMap,
    fs,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use aya::maps::{MapData, MapInfo};
use aya_obj::generated::bpf_map_type::{BPF_MAP_TYPE_ARRAY, BPF_MAP_TYPE_PERCPU_ARRAY};

use super::pins::{Found, Layout, Pins, Size, compare};
use lb_core::op::Table;
use lb_kernel::bpf;

/// How the entries of a map go over to another version.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// The map is that of both.
    Share,
    /// A new one gets them.
    Copy,
}

/// What goes over by way of sharing. `DEVICES` is the agent's, but its programs need it before the agent has looked at devices.
const SHARED: [&str; 11] = [
    "SOCKS",
    "TCP_SOCKS",
    "TCP_MORE",
    "AFFINITY",
    "PORT_STATS",
    "PORT_KILLED",
    "BACKEND_STATS",
    "COUNTERS",
    "FLOWS",
    "FRAGMENTS",
    "DEVICES",
];

/// Each is of no use without the other.
const TOGETHER: [&str; 2] = ["TCP_SOCKS", "TCP_MORE"];

/// Maps whose keys are ids of service ports, and of backends.
const IDS: [&[&str]; 2] = [&["SERVICES", "NAMES", "PORT_STATS", "PORT_KILLED"], &["BACKENDS", "BACKEND_STATS"]];

/// Where the marks are, below the directory of a version.
const MARKS: &str = "like";

/// How the entries of a map go over; none: they do not.
#[must_use]
pub fn way(map: &str) -> Option<Way> {
    if Table::ALL.into_iter().any(|table| table.map_name() == map) {
        return Some(Way::Copy);
    }
    SHARED.contains(&map).then_some(Way::Share)
}

/// Whether entries of such a map are places from 0 on.
#[must_use]
pub const fn is_array(map_type: u32) -> bool {
    map_type == BPF_MAP_TYPE_ARRAY as u32 || map_type == BPF_MAP_TYPE_PERCPU_ARRAY as u32
}

fn mark(directory: &Path, map: &str, fingerprint: u64) -> PathBuf {
    directory.join(MARKS).join(format!("{map}_{fingerprint:016x}"))
}

/// Says in the directory of a version what its maps are like.
///
/// # Errors
/// When the bpffs refuses a directory.
pub fn mark_all(directory: &Path, layouts: &BTreeMap<String, Layout>) -> Result<()> {
    let marked = layouts.iter().filter_map(|(name, layout)| Some(mark(directory, name, layout.fingerprint?)));
    for path in marked {
        fs::create_dir_all(&path).with_context(|| format!("making {}", path.display()))?;
    }
    Ok(())
}

/// Says of the maps that were found absent whether they are taken over from `other`, the directory of another version; of those
/// that are copied the size may be another then.
///
/// # Errors
/// When what stands there is not what its mark says.
pub fn find(other: &Path, layouts: &mut BTreeMap<String, Layout>, found: &mut BTreeMap<String, Found>) -> Result<()> {
    for (name, layout) in layouts {
        let (Some(found), Some(way), Some(fingerprint)) = (found.get_mut(name), way(name), layout.fingerprint) else {
            continue;
        };
        let path = other.join(name);
        if *found != Found::Absent || !mark(other, name, fingerprint).exists() || !path.exists() {
            continue;
        }
        compare(&path, layout)?;
        let size = MapInfo::from_pin(&path)?.max_entries();
        *found = match way {
            Way::Share if is_array(layout.map_type) && size != layout.max_entries => Found::Absent,
            Way::Share => Found::Shared,
            Way::Copy => Found::Copied,
        };
        if *found == Found::Copied && layout.size == Size::AtLeast {
            // It may have grown.
            layout.max_entries = layout.max_entries.max(size);
        }
    }
    keep_together(found);
    Ok(())
}

/// Takes nothing over of what is of no use without its other half.
fn keep_together(found: &mut BTreeMap<String, Found>) {
    if TOGETHER.iter().any(|name| found.get(*name) == Some(&Found::Absent)) {
        for name in TOGETHER {
            if let Some(found) = found.get_mut(name).filter(|found| **found == Found::Shared) {
                *found = Found::Absent;
            }
        }
    }
}

/// Pins the maps that are shared with `other` where the programs are about to be loaded over them.
///
/// # Errors
/// When one cannot be opened or pinned.
pub fn share(other: &Path, staging: &Path, found: &BTreeMap<String, Found>) -> Result<()> {
    fs::create_dir_all(staging).with_context(|| format!("making {}", staging.display()))?;
    for (name, _) in found.iter().filter(|(_, found)| **found == Found::Shared) {
        let map = bpf::open_pin(&other.join(name));
        let pinned = map.and_then(|map| bpf::pin(map, &staging.join(name)));
        pinned.with_context(|| format!("sharing the map {name} of {}", other.display()))?;
    }
    Ok(())
}

/// The highest ids of a service port and of a backend that any map of other versions has, whatever else stands in it: what goes
/// over may name them.
///
/// # Errors
/// When a map cannot be read.
pub fn highest_ids(pins: &Pins) -> Result<(u32, u32)> {
    let mut highest = [0, 0];
    for directory in pins.others()? {
        for (highest, maps) in highest.iter_mut().zip(IDS) {
            for path in maps.iter().map(|map| directory.join(map)).filter(|path| path.exists()) {
                *highest = (*highest).max(highest_key(&path).with_context(|| format!("reading {}", path.display()))?);
            }
        }
    }
    let [port, backend] = highest;
    Ok((port, backend))
}

/// The highest key of a map of numbers; 0 of any other map.
fn highest_key(path: &Path) -> Result<u32> {
    let (map, info) = (MapData::from_pin(path)?, MapInfo::from_pin(path)?);
    let mut highest = 0;
    if info.key_size() == 4 {
        let read = |key: &[u8]| highest = highest.max(bpf::from_bytes(key).unwrap_or(0));
        bpf::each_key(map.fd().as_fd(), 4, info.max_entries() as usize, read)?;
    }
    Ok(highest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tcp_sockets_go_over_as_a_whole_or_not_at_all() {
        let check = |maps: [Found; 2], expected: [Found; 2]| {
            let name =
                |found: [Found; 2]| TOGETHER.into_iter().map(str::to_owned).zip(found).collect::<BTreeMap<_, _>>();
            let mut found = name(maps);
            keep_together(&mut found);
            assert_eq!(found, name(expected), "{maps:?}");
        };
        check([Found::Shared, Found::Absent], [Found::Absent, Found::Absent]);
        check([Found::Absent, Found::Shared], [Found::Absent, Found::Absent]);
        check([Found::Shared, Found::Shared], [Found::Shared, Found::Shared]);
        // A start that ended halfway had them both.
        check([Found::Adopt, Found::Shared], [Found::Adopt, Found::Shared]);
    }
}
