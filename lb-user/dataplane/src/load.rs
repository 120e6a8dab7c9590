//! The loader: takes the steps of a start ([`upgrade`]), and loads larger maps when one is full. No Kubernetes here.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    path::Path,
    sync::Arc,
};

use anyhow::{Context as _, Result};
use aya::{Ebpf, maps::MapData};
use lb_core::ids::HighestIds;
use lb_core::op::Table;
use tracing::{info, warn};

use crate::{
    attach::{cgroup::CgroupLinks, ejection::EjectionProgram, socket_lookup::SocketLookup, tc::Tc},
    damage::Damage,
    flows::{ends::FlowEnds, moving::FlowMove},
    integrity::Integrity,
    log,
    pins::Pins,
    sockets::SocketFreer,
    store::{self, BpfStore},
    upgrade::{
        self, StartMaps,
        pinned_maps::MapOrigin,
        programs::{self, Features, MapSizes, ProgramOptions},
    },
};

/// Returns the size beyond which a map does not grow.
#[must_use]
pub const fn largest(table: Table) -> u32 {
    match table {
        // 256 MiB.
        Table::Maglev => 1 << 14,
        // The kernel frees a trie node by node, each from its root, on one CPU: 65,536 entries take some 30 ms, 262,144
        // some 150 ms (Linux 6.18).
        Table::SourceRanges | Table::PortRanges => 1 << 18,
        // The buckets alone take 64 MiB.
        _ => 1 << 22,
    }
}

/// Factor by which a full map grows.
const GROWTH: u32 = 4;

/// Loaded programs and their maps. After [`Loader::attach`] they serve on without the agent.
pub struct Loader {
    pins: Pins,
    features: Features,
    adopted: usize,
    highest_ids: HighestIds,
    options: ProgramOptions,
    grown: MapSizes,
    /// Programs that are not in service yet. Some of their maps may be in the staging directory.
    loaded: Option<Ebpf>,
    /// True if `loaded` has the programs for devices, unless the kernel refused them: there are devices to serve with
    /// them at once.
    has_classifiers: bool,
    tc: Arc<Tc>,
    freer: SocketFreer,
    socket_lookup: SocketLookup,
    /// The datapath in service; none before [`Loader::attach`].
    integrity: Option<Integrity>,
    /// Programs of ejection that run over the maps in service, or that the kernel has refused. None after
    /// [`Loader::attach`], since attached programs run over earlier maps then.
    ejection_programs: Option<BTreeSet<EjectionProgram>>,
    /// Lock of the pin directory, held as long as the agent lives.
    lock: File,
}

impl Loader {
    /// Takes steps 1 to 7 of a start (see [`upgrade`]): nothing new serves yet.
    ///
    /// # Errors
    /// With the cure: another agent runs, a pin is foreign, or the kernel refuses the object.
    pub fn load(pins: Pins, options: impl Into<ProgramOptions>) -> Result<Self> {
        let options = options.into();
        let lock = pins.lock()?;
        let mut maps = StartMaps::inspect(&pins, &options, &MapSizes::new())?;
        // After the inspection, which refuses a foreign pin with its cure.
        for directory in pins.layouts()? {
            FlowEnds::declare_incomplete(&directory)?;
        }
        for name in maps.of(MapOrigin::Resized) {
            info!(map = name, "another size is wanted: a new map takes the place of the pinned one");
        }
        maps.adopt_predecessor(&pins)?;
        let highest_ids = upgrade::highest_ids(&pins)?;
        maps.keep_flows(&pins)?;
        let tc = Arc::new(Tc::new(pins.clone()));
        let has_classifiers = tc.has_attachments()?;
        let (ebpf, features) = programs::load(&pins, &maps.layouts, &maps.origins, &options, has_classifiers)?;
        maps.copy_entries(&pins)?;
        let adopted = maps.of(MapOrigin::Adopted).count();
        let grown = MapSizes::new();
        Ok(Self {
            pins,
            features,
            adopted,
            highest_ids,
            options,
            grown,
            loaded: Some(ebpf),
            has_classifiers,
            tc,
            freer: SocketFreer::default(),
            socket_lookup: SocketLookup::default(),
            integrity: None,
            ejection_programs: None,
            lock,
        })
    }

    /// Returns the features of the kernel.
    #[must_use]
    pub const fn features(&self) -> Features {
        self.features
    }

    /// Returns the number of pinned maps adopted.
    #[must_use]
    pub const fn adopted(&self) -> usize {
        self.adopted
    }

    /// Returns the highest ids that maps of other versions of the layout name.
    #[must_use]
    pub const fn highest_ids(&self) -> HighestIds {
        self.highest_ids
    }

    /// Returns the programs at network devices, which [`Loader::attach`] brings into service.
    #[must_use]
    pub fn tc(&self) -> Arc<Tc> {
        Arc::clone(&self.tc)
    }

    /// Returns the program that frees entries of closed sockets, which [`Loader::attach`] brings into service.
    #[must_use]
    pub fn freer(&self) -> SocketFreer {
        self.freer.clone()
    }

    /// Returns the program at the look-up of sockets, which [`Loader::attach`] brings into service where it is wanted.
    #[must_use]
    pub fn socket_lookup(&self) -> SocketLookup {
        self.socket_lookup.clone()
    }

    /// Opens the maps that the agent writes: new maps from the staging directory, the others from their places.
    ///
    /// # Errors
    /// If a pin cannot be opened.
    pub fn store(&self) -> Result<BpfStore> {
        BpfStore::from_maps(|name| self.map(name))
    }

    fn map(&self, name: &str) -> Result<MapData> {
        let directories = [self.pins.staging(), self.pins.current()];
        let path = directories.iter().map(|directory| directory.join(name)).find(|path| path.exists());
        let path = path.with_context(|| format!("map {name} is not pinned"))?;
        MapData::from_pin(&path).with_context(|| format!("opening {}", path.display()))
    }

    /// Loads the programs again over larger copies of full maps. The serving programs and maps stay until
    /// [`Loader::attach`]. Returns none if no map may grow: its size is fixed, or is the [`largest`].
    ///
    /// # Errors
    /// If the kernel has no memory for the maps.
    pub fn grow(&mut self, full: &BTreeSet<Table>) -> Result<Option<BpfStore>> {
        let mut growing = Vec::new();
        for table in full.iter().flat_map(grow_together).filter(|table| !self.options.sizes.contains_key(table)) {
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
            // A larger map of an earlier attempt, which never served.
            let staged = self.pins.staging().join(table.map_name());
            if staged.exists() {
                fs::remove_file(&staged).with_context(|| format!("removing {}", staged.display()))?;
            }
        }
        let maps = StartMaps::inspect(&self.pins, &self.options, &self.grown)?;
        maps.keep_flows(&self.pins)?;
        self.has_classifiers = self.tc.has_attachments()?;
        let (ebpf, _) = programs::load(&self.pins, &maps.layouts, &maps.origins, &self.options, self.has_classifiers)?;
        self.loaded = Some(ebpf);
        // Entries keep their ids, so that the other maps, which serve already, stay valid.
        for (table, map, ..) in growing {
            store::copy(table, map, self.map(table.map_name())?)?;
        }
        self.store().map(Some)
    }

    /// Takes the programs' log. Works once per load, before [`Loader::attach`].
    ///
    /// # Errors
    /// If the object lacks the log's maps, which is a defect of the build.
    pub fn take_log(&mut self) -> Result<log::DatapathLog> {
        log::DatapathLog::new(self.loaded.as_mut().context("the programs are in service already")?)
    }

    /// Takes steps 8 to 10 of a start (see [`upgrade`]): puts the loaded programs and maps into service at a cgroup and
    /// at devices. Returns the number of cgroup links adopted; none if nothing new is loaded.
    ///
    /// # Errors
    /// If a program cannot be attached, or a pin cannot be moved.
    pub fn attach(&mut self, cgroup: &Path) -> Result<Option<usize>> {
        let Some(ebpf) = &self.loaded else {
            return Ok(None);
        };
        let (links, adopted) = CgroupLinks::attach(ebpf, cgroup, &self.pins)?;
        let classifiers = programs::classifiers(ebpf)?;
        if classifiers.is_some() && FlowMove::is_due(&self.pins) {
            self.bridge();
        }
        let moving = FlowMove::begin(&self.pins);
        if let Some(classifiers) = classifiers {
            self.tc.replace(classifiers)?;
        }
        self.freer.replace(programs::socket_freer(ebpf)?);
        programs::publish(&self.pins)?;
        moving.end();
        let layouts = programs::layouts(&self.options, &self.grown)?;
        let maps = layouts.keys().map(String::as_str);
        // The link of programs over other maps stays until then.
        self.socket_lookup.replace(programs::socket_lookup(ebpf)?, self.pins.current());
        self.integrity = Some(Integrity::new(self.pins.clone(), maps, links, self.tc(), self.socket_lookup())?);
        if !self.has_classifiers {
            let (pins, options) = (self.pins.clone(), self.options.clone());
            self.tc.load_later(Box::new(move || programs::load_classifiers(&pins, &layouts, &options)));
        }
        self.tc.publish();
        self.ejection_programs = None;
        self.loaded = None;
        let retired = self.pins.retire_others()?;
        if retired > 0 {
            info!(pins = retired, "another version's programs and maps are out of service");
        }
        Ok(Some(adopted))
    }

    /// Replaces the programs at devices by programs that know the flows of both maps `FLOWS`. A failure is logged: then
    /// flows that begin during the move may miss replies by other devices.
    fn bridge(&self) {
        let layouts = programs::layouts(&self.options, &self.grown);
        let bridge = layouts.and_then(|layouts| programs::load_bridge(&self.pins, &layouts, &self.options));
        let replaced = bridge.and_then(|bridge| bridge.map_or(Ok(0), |programs| self.tc.replace(programs)));
        if let Err(error) = replaced {
            warn!("flows that begin while the map FLOWS gets another size may break: {error:#}");
        }
    }

    /// Loads and attaches the wanted programs of ejection, and detaches the others. Does nothing before
    /// [`Loader::attach`]. A program that the kernel refuses is not tried again before the next [`Loader::attach`].
    ///
    /// # Errors
    /// If a program cannot be attached or detached, which the next call tries again.
    pub fn set_ejection_programs(&mut self, wanted: &BTreeSet<EjectionProgram>) -> Result<()> {
        if self.integrity.is_none() || self.ejection_programs.as_ref() == Some(wanted) {
            return Ok(());
        }
        let mut tried = self.ejection_programs.take().unwrap_or_default();
        let changed = EjectionProgram::ALL.into_iter().try_for_each(|program| {
            if !wanted.contains(&program) {
                tried.remove(&program);
                self.detach_ejection_program(program).with_context(|| format!("detaching {}", program.name()))
            } else if tried.insert(program) {
                self.attach_ejection_program(program).with_context(|| format!("attaching {}", program.name()))
            } else {
                Ok(())
            }
        });
        // After an error the next call tries all of them.
        self.ejection_programs = changed.is_ok().then_some(tried);
        changed
    }

    fn attach_ejection_program(&mut self, program: EjectionProgram) -> Result<()> {
        let layouts = programs::layouts(&self.options, &self.grown)?;
        let loaded = programs::load_ejection_program(program, &self.pins, &layouts, &self.options)?;
        let (Some(loaded), Some(integrity)) = (loaded, &mut self.integrity) else { return Ok(()) };
        integrity.attach_ejection_program(program, &loaded)?;
        info!(program = program.name(), "attached: a Service has ejection");
        Ok(())
    }

    fn detach_ejection_program(&mut self, program: EjectionProgram) -> Result<()> {
        self.integrity.as_mut().map_or(Ok(()), |integrity| integrity.detach_ejection_program(program))
    }

    /// Compares the datapath in service with what was attached and pinned, and mends it: see `integrity`.
    /// Returns what was missing. Does nothing before [`Loader::attach`], and while new programs wait for it.
    pub fn mend(&mut self) -> Vec<Damage> {
        match &mut self.integrity {
            Some(integrity) if self.loaded.is_none() => integrity.mend(&mut self.lock),
            _ => Vec::new(),
        }
    }
}

impl Drop for Loader {
    /// Removes pins of maps that never served.
    fn drop(&mut self) {
        let staging = self.pins.staging();
        if staging.exists() {
            let _best_effort = fs::remove_dir_all(staging);
        }
    }
}

/// Returns the tables that grow together, since each entry of one has an entry in the other.
fn grow_together(table: &Table) -> &'static [Table] {
    match table {
        Table::Services | Table::Names => &[Table::Services, Table::Names],
        Table::Slots => &[Table::Slots],
        Table::Backends => &[Table::Backends],
        Table::Frontends => &[Table::Frontends],
        Table::PortRanges => &[Table::PortRanges],
        Table::FrontendBits => &[Table::FrontendBits],
        Table::NodeAddrs => &[Table::NodeAddrs],
        Table::SourceRanges => &[Table::SourceRanges],
        Table::Maglev => &[Table::Maglev],
    }
}
