//! Pinned maps of this version's directory, compared with the maps that the object declares (invariant I13: aya opens a
//! pin without looking).

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context as _, Result, ensure};
use aya::maps::MapInfo;

/// Properties that a pinned map needs to be adopted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MapLayout {
    /// `enum bpf_map_type`
    pub map_type: u32,
    /// Octets.
    pub key_size: u32,
    /// Octets.
    pub value_size: u32,
    /// Most entries.
    pub max_entries: u32,
    /// Sizes that fit besides `max_entries`.
    pub size: SizeRule,
    /// Fingerprint of key and value, if the entries go over to another version of the layout: see `btf_fingerprint`.
    pub fingerprint: Option<u64>,
}

/// Sizes of a pinned map that fit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SizeRule {
    /// The size that the user fixed.
    Exact,
    /// The default size or a larger one: the map may have grown.
    AtLeast,
    /// Every size: only programs write the map, and its entries count for more than its size.
    Any,
}

/// Origin of a map in this start.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MapOrigin {
    /// The pinned map is adopted as it is.
    Adopted,
    /// The pinned map has another size: a new map replaces it and takes its entries.
    Resized,
    /// No map is pinned: a new, empty one.
    New,
    /// No map is pinned, and another version's map has the same layout: both versions use that map. See
    /// `adopt`.
    Shared,
    /// No map is pinned, and another version's map has the same layout: a new map begins with its entries.
    Copied,
}

/// Compares the pinned maps of `directory` with the expected ones.
///
/// # Errors
/// If a pin is not a map of this Beeline, with the cure.
pub fn inspect(directory: &Path, expected: &BTreeMap<String, MapLayout>) -> Result<BTreeMap<String, MapOrigin>> {
    let mut origins = BTreeMap::new();
    for (name, want) in expected {
        let path = directory.join(name);
        let origin = if path.exists() { compare(&path, want)? } else { MapOrigin::New };
        origins.insert(name.clone(), origin);
    }
    Ok(origins)
}

/// Compares one pinned map with the expected one.
pub(super) fn compare(path: &Path, want: &MapLayout) -> Result<MapOrigin> {
    let foreign = || {
        format!(
            "the pin {} is not a map of this Beeline: run `beeline cleanup` to remove what another version left (that \
             stops the translation until the next start), or use another directory with --pins",
            path.display()
        )
    };
    let info = MapInfo::from_pin(path).with_context(foreign)?;
    let map_type = info.map_type().map_or(0, |map_type| map_type as u32);
    ensure!(
        (map_type, info.key_size(), info.value_size()) == (want.map_type, want.key_size, want.value_size),
        "{}; it has type {map_type}, key {} and value {} octets, and {}, {} and {} are expected",
        foreign(),
        info.key_size(),
        info.value_size(),
        want.map_type,
        want.key_size,
        want.value_size
    );
    let fits = match want.size {
        SizeRule::Exact => info.max_entries() == want.max_entries,
        SizeRule::AtLeast => info.max_entries() >= want.max_entries,
        SizeRule::Any => true,
    };
    Ok(if fits { MapOrigin::Adopted } else { MapOrigin::Resized })
}
