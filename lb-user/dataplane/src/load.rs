//! The kernel side as the agent holds it: environment, pins, programs, log. No Kubernetes here.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    path::Path,
    sync::Arc,
};

use anyhow::{Context as _, Result};
use aya::{Ebpf, maps::MapData};
use lb_core::op::Table;
use tracing::{info, warn};

use crate::{
    attach::tc::Tc,
    log,
    store::{self, BpfStore},
    upgrade::{
        adopt,
        pins::{self, Found, Layout, Pins},
        programs::{self, Features, Sizes},
    },
};

/// No map grows beyond this.
#[must_use]
pub const fn largest(table: Table) -> u32 {
    match table {
        // 256 MiB.
        Table::Maglev => 1 << 14,
        // The kernel frees a trie node by node, each from its root, on one CPU: 65,536 take it some 30 ms, so many some
        // 150 ms (Linux 6.18).
        Table::SourceRanges => 1 << 18,
        // The buckets alone take 64 MiB.
        _ => 1 << 22,
    }
}

/// A map that has no room becomes so many times as large.
const GROWTH: u32 = 4;

/// Programs and maps. What [`Loader::attach`] has put into service outlives it.
pub struct Loader {
    pins: Pins,
    features: Features,
    adopted: usize,
    highest_ids: (u32, u32),
    fixed: Sizes,
    grown: Sizes,
    /// Loaded, over maps of which some may stand in the staging directory, and not in service yet.
    loaded: Option<Ebpf>,
    tc: Arc<Tc>,
    /// Held as long as this agent lives.
    _lock: File,
}

impl Loader {
    /// Takes the lock, checks what is pinned, and loads the programs over it. Maps of `fixed` sizes never grow.
    ///
    /// # Errors
    /// With the cure: another agent, foreign pins, an object that the kernel refuses.
    pub fn load(pins: Pins, fixed: Sizes) -> Result<Self> {
        let lock = pins.lock()?;
        let (mut layouts, mut found) = compare(&pins, &fixed, &Sizes::new())?;
        for (name, _) in found.iter().filter(|(_, found)| **found == Found::Resize) {
            info!(map = name, "another size is wanted: a new map takes the place of the pinned one");
        }
        adopt::mark_all(&pins.current(), &layouts)?;
        let other = pins.predecessor()?;
        if let Some(other) = &other {
            adopt::find(other, &mut layouts, &mut found)?;
            adopt::share(other, &pins.staging(), &found)?;
            let [shared, copied] = [Found::Shared, Found::Copied].map(|way| names(&found, way).count());
            let anew: Vec<_> = names(&found, Found::Absent).filter(|name| adopt::way(name).is_some()).collect();
            info!(from = %other.display(), shared, copied, ?anew, "the maps of another version are taken over");
        }
        let highest_ids = adopt::highest_ids(&pins)?;
        let (ebpf, features) = programs::load(&pins, &layouts, &found)?;
        let adopted = names(&found, Found::Adopt).count();
        let current = pins.current();
        for table in Table::ALL {
            let name = table.map_name();
            let from = match (found.get(name), &other) {
                (Some(Found::Resize), _) => &current,
                (Some(Found::Copied), Some(other)) => other,
                _ => continue,
            };
            let maps = (MapData::from_pin(from.join(name))?, MapData::from_pin(pins.staging().join(name))?);
            if let Err(error) = store::copy(table, maps.0, maps.1) {
                warn!(map = name, "the new map does not hold what the pinned one does: {error:#}");
            }
        }
        let tc = Arc::new(Tc::new(pins.clone()));
        let grown = Sizes::new();
        Ok(Self { pins, features, adopted, highest_ids, fixed, grown, loaded: Some(ebpf), tc, _lock: lock })
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

    /// The highest ids of a service port and a backend that maps of other versions of the layout have.
    #[must_use]
    pub const fn highest_ids(&self) -> (u32, u32) {
        self.highest_ids
    }

    /// The programs at network devices: [`Loader::attach`] replaces those that are there.
    #[must_use]
    pub fn tc(&self) -> Arc<Tc> {
        Arc::clone(&self.tc)
    }

    /// The maps that the agent writes: those to come where there are such.
    ///
    /// # Errors
    /// When a pin cannot be opened.
    pub fn store(&self) -> Result<BpfStore> {
        BpfStore::from_maps(|name| self.map(name))
    }

    fn map(&self, name: &str) -> Result<MapData> {
        let directories = [self.pins.staging(), self.pins.current()];
        let path = directories.iter().map(|directory| directory.join(name)).find(|path| path.exists());
        let path = path.with_context(|| format!("map {name} is not pinned"))?;
        MapData::from_pin(&path).with_context(|| format!("opening {}", path.display()))
    }

    /// Loads the programs anew over larger copies of the maps that are full. What is in service stays so until
    /// [`Loader::attach`]. None when their sizes are fixed, or none may grow any further.
    ///
    /// # Errors
    /// When the kernel has no memory for them.
    pub fn grow(&mut self, full: &BTreeSet<Table>) -> Result<Option<BpfStore>> {
        let mut growing = Vec::new();
        for table in full.iter().flat_map(together).filter(|table| !self.fixed.contains_key(table)) {
            let map = self.map(table.map_name())?;
            let size = map.info()?.max_entries();
            let largest = largest(*table);
            if size < largest {
                growing.push((*table, map, size, size.saturating_mul(GROWTH).min(largest)));
            }
        }
        if growing.is_empty() {
            return Ok(None);
        }
        for (table, _, from, to) in &growing {
            info!(map = table.map_name(), from, to, "the map has no room: a larger one takes its place");
            self.grown.insert(*table, *to);
            // One that never was in service.
            let staged = self.pins.staging().join(table.map_name());
            if staged.exists() {
                fs::remove_file(&staged).with_context(|| format!("removing {}", staged.display()))?;
            }
        }
        let (layouts, found) = compare(&self.pins, &self.fixed, &self.grown)?;
        let (ebpf, _) = programs::load(&self.pins, &layouts, &found)?;
        self.loaded = Some(ebpf);
        // What is served keeps its ids, so that the other maps, which are in service already, stay right.
        for (table, map, ..) in growing {
            store::copy(table, map, self.map(table.map_name())?)?;
        }
        self.store().map(Some)
    }

    /// The log of the programs. Once.
    ///
    /// # Errors
    /// When its maps are missing, which is a defect of the build.
    pub fn take_log(&mut self) -> Result<log::DatapathLog> {
        log::DatapathLog::new(self.loaded.as_mut().context("the programs are in service already")?)
    }

    /// Puts what is loaded into service at a cgroup, and the new maps at their places. Returns how many links were taken
    /// over; none when nothing new is loaded.
    ///
    /// # Errors
    /// When a hook cannot be attached.
    pub fn attach(&mut self, cgroup: &Path) -> Result<Option<usize>> {
        let Some(ebpf) = &mut self.loaded else {
            return Ok(None);
        };
        let taken_over = programs::attach(ebpf, cgroup, &self.pins)?;
        if let Some(classifiers) = programs::classifiers(ebpf)? {
            self.tc.replace(classifiers)?;
        }
        programs::publish(&self.pins)?;
        self.tc.publish();
        self.loaded = None;
        let retired = self.pins.retire_others()?;
        if retired > 0 {
            info!(pins = retired, "another version's programs and maps are out of service");
        }
        Ok(Some(taken_over))
    }
}

impl Drop for Loader {
    /// Maps that never went into service leave no pins behind.
    fn drop(&mut self) {
        let staging = self.pins.staging();
        if staging.exists() {
            let _best_effort = fs::remove_dir_all(staging);
        }
    }
}

/// Tables that have an entry for each of the other's.
fn together(table: &Table) -> &'static [Table] {
    match table {
        Table::Services | Table::Names => &[Table::Services, Table::Names],
        Table::Slots => &[Table::Slots],
        Table::Backends => &[Table::Backends],
        Table::Frontends => &[Table::Frontends],
        Table::FrontendBits => &[Table::FrontendBits],
        Table::NodeAddrs => &[Table::NodeAddrs],
        Table::SourceRanges => &[Table::SourceRanges],
        Table::Maglev => &[Table::Maglev],
    }
}

/// The maps that were found so.
fn names(found: &BTreeMap<String, Found>, wanted: Found) -> impl Iterator<Item = &str> {
    found.iter().filter(move |(_, found)| **found == wanted).map(|(name, _)| name.as_str())
}

type Comparison = (BTreeMap<String, Layout>, BTreeMap<String, Found>);

fn compare(pins: &Pins, fixed: &Sizes, grown: &Sizes) -> Result<Comparison> {
    let layouts = programs::layouts(fixed, grown)?;
    let found = pins::inspect(&pins.current(), &layouts)?;
    Ok((layouts, found))
}
