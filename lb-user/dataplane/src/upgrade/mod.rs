//! One start of the agent over pinned maps, of this version of the layout or of another.
//! [`Loader`](crate::load::Loader) takes these steps in order:
//!
//! 1. Take the lock and remove what an unfinished start left: `Pins::lock`.
//! 2. Read the maps that the object declares ([`programs::layouts`]) and compare them with the pins of this version's
//!    directory: [`pinned_maps`]. A foreign pin ends the start.
//! 3. Mark the directory with the fingerprints of its maps (`btf_fingerprint`), for a later start of another version.
//! 4. Find the other version that serves, and share or copy its maps with equal fingerprints: `adopt`.
//! 5. Read the highest ids that maps of other versions name, so that new ids begin beyond them.
//! 6. Load the programs over adopted, shared and new maps, and have them verified: `programs::load`. New maps are
//!    pinned in the staging directory. Programs for devices wait until there is a device to attach them to.
//! 7. Copy the entries of resized and copied maps: `StartMaps::copy_entries`.
//!
//! The agent then writes the maps. Its first pass puts all of it into service:
//!
//! 8. Attach to the cgroup ([`crate::attach::cgroup`]) and to the devices that have programs ([`crate::attach::tc`]).
//! 9. Move the new maps from the staging directory to their places: `programs::publish`.
//! 10. Remove the directories of other versions: `Pins::retire_others`.
//!
//! `FLOWS`, which the programs write, moves to a map of another size beside these steps: its flows are copied before
//! step 8, when programs between the two know both maps, and the new programs look for others in the old map, until
//! these are copied after step 9 (`flows::moving`).
//!
//! A start that ends before step 8 changes nothing that serves.

mod adopt;
mod btf_fingerprint;
pub mod pinned_maps;
pub mod programs;

use std::{collections::BTreeMap, fs, path::PathBuf};

use anyhow::{Context as _, Result};
use aya::maps::MapData;
use tracing::{info, warn};

pub(crate) use adopt::highest_ids;

use crate::{
    pins::Pins,
    store,
    upgrade::{
        pinned_maps::{MapLayout, MapOrigin},
        programs::{FLOWS, FLOWS_BEFORE, MapSizes, ProgramOptions},
    },
};
use lb_core::op::Table;
use lb_kernel::bpf;

/// The maps of one start, and their origins.
pub(crate) struct StartMaps {
    pub(crate) layouts: BTreeMap<String, MapLayout>,
    pub(crate) origins: BTreeMap<String, MapOrigin>,
    /// The directory of the other version whose programs serve.
    predecessor: Option<PathBuf>,
}

impl StartMaps {
    /// Reads the maps that the object declares, and compares them with the pins of this version (step 2).
    pub(crate) fn inspect(pins: &Pins, options: &ProgramOptions, grown: &MapSizes) -> Result<Self> {
        let layouts = programs::layouts(options, grown)?;
        let mut origins = pinned_maps::inspect(&pins.current(), &layouts)?;
        let before = if origins.get(FLOWS) == Some(&MapOrigin::Resized) { MapOrigin::Shared } else { MapOrigin::New };
        origins.insert(FLOWS_BEFORE.to_owned(), before);
        Ok(Self { layouts, origins, predecessor: None })
    }

    /// Pins the map `FLOWS` in the staging directory as [`FLOWS_BEFORE`], if another size replaces it.
    pub(crate) fn keep_flows(&self, pins: &Pins) -> Result<()> {
        let place = pins.staging().join(FLOWS_BEFORE);
        if self.origins.get(FLOWS) != Some(&MapOrigin::Resized) || place.exists() {
            return Ok(());
        }
        fs::create_dir_all(pins.staging()).with_context(|| format!("making {}", pins.staging().display()))?;
        let map = bpf::open_pin(&pins.current().join(FLOWS));
        map.and_then(|map| bpf::pin(map, &place)).context("keeping the map FLOWS until its flows have moved")
    }

    /// Marks the directory, then shares or copies maps of the other version that serves, if there is one (steps 3 and
    /// 4).
    pub(crate) fn adopt_predecessor(&mut self, pins: &Pins) -> Result<()> {
        adopt::mark_all(&pins.current(), &self.layouts)?;
        self.predecessor = pins.predecessor()?;
        let Some(other) = &self.predecessor else { return Ok(()) };
        adopt::find(other, &mut self.layouts, &mut self.origins)?;
        adopt::share(other, &pins.staging(), &self.origins)?;
        let [shared, copied] = [MapOrigin::Shared, MapOrigin::Copied].map(|origin| self.of(origin).count());
        let anew: Vec<_> = self.of(MapOrigin::New).filter(|name| adopt::transfer(name).is_some()).collect();
        info!(from = %other.display(), shared, copied, ?anew, "the maps of another version are taken over");
        Ok(())
    }

    /// Copies the entries of resized and copied maps into the new maps (step 7). A map that fails begins with fewer
    /// entries, and the first pass writes the rest.
    pub(crate) fn copy_entries(&self, pins: &Pins) -> Result<()> {
        adopt::count_all(&pins.staging(), &self.origins)?;
        let current = pins.current();
        for table in Table::ALL {
            let name = table.map_name();
            let from = match (self.origins.get(name), &self.predecessor) {
                (Some(MapOrigin::Resized), _) => &current,
                (Some(MapOrigin::Copied), Some(other)) => other,
                _ => continue,
            };
            let maps = (MapData::from_pin(from.join(name))?, MapData::from_pin(pins.staging().join(name))?);
            if let Err(error) = store::copy(table, maps.0, maps.1) {
                warn!(map = name, "the new map lacks entries of the pinned one: {error:#}");
            }
        }
        Ok(())
    }

    /// Lists the maps of one origin.
    pub(crate) fn of(&self, wanted: MapOrigin) -> impl Iterator<Item = &str> {
        self.origins.iter().filter(move |(_, origin)| **origin == wanted).map(|(name, _)| name.as_str())
    }
}
