//! Adoption of maps from another version of the layout, older or newer, map by map. Neither version knows the other's
//! layout: each marks its directory with the [fingerprints](super::btf_fingerprint) of its maps, as names of empty
//! directories (a bpffs holds no plain files). A map goes over if both versions have the same fingerprint.
//!
//! Maps that only programs write are shared: both versions use one map while the links change over, so no event is
//! lost. Maps that the agent writes are copied: the serving version keeps its own unchanged until its last link is
//! gone. A map with another fingerprint begins empty, with these effects:
//!
//! - Maps that the agent writes: none, except for `NAMES` and `BACKENDS`. Without `NAMES` service ports get new ids,
//!   without `BACKENDS` backends do, beyond all earlier ids. Counts and affinity begin anew, and connected UDP sockets
//!   are ended, so that their applications open new ones.
//! - `SOCKS` or `UDP_SOCKS`: UDP sockets get a backend anew, see answers to earlier requests come from the backend, and
//!   count as open for as long as their backend exists.
//! - `UDP_COUNTS`: none, since the new map says of every socket that it may have entries ([`count_all`]).
//! - `TCP_SOCKS` or `TCP_MORE`: getpeername shows the backend for open connections, which count as open for as long as
//!   their backend exists.
//! - `FLOWS`: connections from outside get a backend anew, which breaks TCP connections.
//! - `DEVICES`: new flows from outside are dropped until the first pass over devices.
//! - `EJECTIONS`: failing endpoints are ejected anew. `ATTEMPTS`: results of handshakes that run then do not count.
//! - `ANNOUNCED`, `ANNOUNCED_UNTIL`, `LINK_ADDRS`: the node does not answer for announced addresses until the agent
//!   holds them anew.
//! - `AFFINITY`, counts, `FRAGMENTS`: begin anew.

use std::{
    collections::BTreeMap,
    fs,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use aya::maps::{MapData, MapInfo};
use aya_obj::generated::bpf_map_type::{BPF_MAP_TYPE_ARRAY, BPF_MAP_TYPE_PERCPU_ARRAY};

use super::pinned_maps::{MapLayout, MapOrigin, SizeRule, compare};
use crate::pins::Pins;
use lb_common::capacity;
use lb_core::ids::{Highest, HighestIds};
use lb_core::op::Table;
use lb_kernel::bpf;

/// Transfer of a map's entries to another version.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Transfer {
    /// Both versions use one map.
    Share,
    /// A new map gets a copy.
    Copy,
}

/// Maps that are shared. The agent writes `DEVICES` and `LINK_ADDRS`, but the programs need them before the first pass
/// over devices; and `ANNOUNCED`, which the programs of both versions need while the links change over.
const SHARED: [&str; 21] = [
    "BOUND_PORTS",
    "SOCKS",
    "UDP_SOCKS",
    "UDP_COUNTS",
    "TCP_SOCKS",
    "TCP_MORE",
    "AFFINITY",
    "EJECTIONS",
    "EJECT_STATS",
    "ATTEMPTS",
    "PORT_STATS",
    "PORT_KILLED",
    "BACKEND_STATS",
    "COUNTERS",
    "FLOWS",
    "FRAGMENTS",
    "DEVICES",
    "LINK_ADDRS",
    "ANNOUNCED",
    "ANNOUNCED_UNTIL",
    "CONFLICTS",
];

/// Maps that are adopted both or not at all.
const TOGETHER: [&str; 2] = ["TCP_SOCKS", "TCP_MORE"];

/// Maps whose keys are ids: of service ports, and of backends.
const IDS: [&[&str]; 2] = [&["SERVICES", "NAMES", "PORT_STATS", "PORT_KILLED"], &["BACKENDS", "BACKEND_STATS"]];

/// Directory of the marks, below the directory of a version.
const MARKS: &str = "like";

/// Returns how the entries of a map go over; none if the map always begins empty.
pub(super) fn transfer(map: &str) -> Option<Transfer> {
    if Table::ALL.into_iter().any(|table| table.map_name() == map) {
        return Some(Transfer::Copy);
    }
    SHARED.contains(&map).then_some(Transfer::Share)
}

/// True if the map's keys are indexes from 0 on.
pub(super) const fn is_array(map_type: u32) -> bool {
    map_type == BPF_MAP_TYPE_ARRAY as u32 || map_type == BPF_MAP_TYPE_PERCPU_ARRAY as u32
}

fn mark(directory: &Path, map: &str, fingerprint: u64) -> PathBuf {
    directory.join(MARKS).join(format!("{map}_{fingerprint:016x}"))
}

/// Marks the directory of a version with the fingerprints of its maps.
pub(super) fn mark_all(directory: &Path, layouts: &BTreeMap<String, MapLayout>) -> Result<()> {
    let marked = layouts.iter().filter_map(|(name, layout)| Some(mark(directory, name, layout.fingerprint?)));
    for path in marked {
        fs::create_dir_all(&path).with_context(|| format!("making {}", path.display()))?;
    }
    Ok(())
}

/// Finds the maps to adopt from `other`, the directory of another version, for maps that are not pinned here. The size
/// of a copied map may grow to that of the other. Fails if a map is not like its mark.
pub(super) fn find(
    other: &Path,
    layouts: &mut BTreeMap<String, MapLayout>,
    origins: &mut BTreeMap<String, MapOrigin>,
) -> Result<()> {
    for (name, layout) in layouts {
        let (Some(origin), Some(transfer), Some(fingerprint)) =
            (origins.get_mut(name), transfer(name), layout.fingerprint)
        else {
            continue;
        };
        let path = other.join(name);
        if *origin != MapOrigin::New || !mark(other, name, fingerprint).exists() || !path.exists() {
            continue;
        }
        compare(&path, layout)?;
        let size = MapInfo::from_pin(&path)?.max_entries();
        *origin = match transfer {
            Transfer::Share if is_array(layout.map_type) && size != layout.max_entries => MapOrigin::New,
            Transfer::Share => MapOrigin::Shared,
            Transfer::Copy => MapOrigin::Copied,
        };
        if *origin == MapOrigin::Copied && layout.size == SizeRule::AtLeast {
            // The other version's map may have grown.
            layout.max_entries = layout.max_entries.max(size);
        }
    }
    keep_together(origins);
    Ok(())
}

/// Adopts neither map of [`TOGETHER`] if one is new.
fn keep_together(origins: &mut BTreeMap<String, MapOrigin>) {
    if TOGETHER.iter().any(|name| origins.get(*name) == Some(&MapOrigin::New)) {
        for name in TOGETHER {
            if let Some(origin) = origins.get_mut(name).filter(|origin| **origin == MapOrigin::Shared) {
                *origin = MapOrigin::New;
            }
        }
    }
}

/// Pins the maps shared with `other` in the staging directory, where the load finds them.
pub(super) fn share(other: &Path, staging: &Path, origins: &BTreeMap<String, MapOrigin>) -> Result<()> {
    fs::create_dir_all(staging).with_context(|| format!("making {}", staging.display()))?;
    for (name, _) in origins.iter().filter(|(_, origin)| **origin == MapOrigin::Shared) {
        let map = bpf::open_pin(&other.join(name));
        let pinned = map.and_then(|map| bpf::pin(map, &staging.join(name)));
        pinned.with_context(|| format!("sharing the map {name} of {}", other.display()))?;
    }
    Ok(())
}

/// Prepares a new map `UDP_COUNTS` for sockets that already have entries in an adopted `SOCKS` or `UDP_SOCKS`, and were
/// not counted in it: every count is so high that they may all be closed, and the programs still look for entries.
pub(super) fn count_all(staging: &Path, origins: &BTreeMap<String, MapOrigin>) -> Result<()> {
    const HALF: u64 = 0x8000;
    let origin = |map: &str| origins.get(map).copied().unwrap_or(MapOrigin::New);
    if origin("UDP_COUNTS") != MapOrigin::New || ["SOCKS", "UDP_SOCKS"].map(origin) == [MapOrigin::New; 2] {
        return Ok(());
    }
    let map = bpf::open_pin(&staging.join("UDP_COUNTS")).context("opening the new map UDP_COUNTS")?;
    let word = HALF | HALF << 16 | HALF << 32 | HALF << 48;
    for index in 0..u32::try_from(capacity::UDP_COUNTS)? {
        bpf::update(map.as_fd(), &index, &word).context("writing the map UDP_COUNTS")?;
    }
    Ok(())
}

/// Returns the highest ids among the keys of other versions' maps, adopted or not: adopted entries may name them.
pub(crate) fn highest_ids(pins: &Pins) -> Result<HighestIds> {
    let mut highest = [Highest::default(); 2];
    for directory in pins.others()? {
        for (highest, maps) in highest.iter_mut().zip(IDS) {
            for path in maps.iter().map(|map| directory.join(map)).filter(|path| path.exists()) {
                see_keys(&path, highest).with_context(|| format!("reading {}", path.display()))?;
            }
        }
    }
    let [service, backend] = highest;
    Ok(HighestIds { service, backend })
}

/// Takes over the keys of a map with 4-byte keys; other maps have no ids.
fn see_keys(path: &Path, highest: &mut Highest) -> Result<()> {
    let (map, info) = (MapData::from_pin(path)?, MapInfo::from_pin(path)?);
    if info.key_size() == 4 {
        let read = |key: &[u8]| highest.see(bpf::from_bytes(key).unwrap_or(0));
        bpf::each_key(map.fd().as_fd(), 4, info.max_entries() as usize, read)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_maps_of_tcp_sockets_are_adopted_or_neither() {
        let check = |maps: [MapOrigin; 2], expected: [MapOrigin; 2]| {
            let name = |origins: [MapOrigin; 2]| {
                TOGETHER.into_iter().map(str::to_owned).zip(origins).collect::<BTreeMap<_, _>>()
            };
            let mut origins = name(maps);
            keep_together(&mut origins);
            assert_eq!(origins, name(expected), "{maps:?}");
        };
        check([MapOrigin::Shared, MapOrigin::New], [MapOrigin::New, MapOrigin::New]);
        check([MapOrigin::New, MapOrigin::Shared], [MapOrigin::New, MapOrigin::New]);
        check([MapOrigin::Shared, MapOrigin::Shared], [MapOrigin::Shared, MapOrigin::Shared]);
        // After a start that ended halfway.
        check([MapOrigin::Adopted, MapOrigin::Shared], [MapOrigin::Adopted, MapOrigin::Shared]);
    }
}
