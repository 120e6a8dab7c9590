//! The datapath as a whole, compared with what the agent attached and pinned, and mended where another program took
//! something away. Descriptors keep maps and programs alive meanwhile: only a detached or replaced program stops
//! Services.
//!
//! A check of an intact datapath costs two or three system calls for each link and one for each pin.

mod mount;

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, Result};
use aya::Ebpf;

use crate::{
    attach::{
        cgroup::CgroupLinks,
        ejection::{self, EjectionProgram, TracepointLink},
        socket_lookup::SocketLookup,
        tc::Tc,
    },
    damage::{Damage, Part},
    pinned::{Inode, Pinned},
    pins::Pins,
};
use mount::BpffsMount;

/// The datapath in service.
pub(crate) struct Integrity {
    pins: Pins,
    mount: BpffsMount,
    /// The pin directory, as of its creation or of the last repair.
    root: Inode,
    /// Directories below the pin directory, which mark maps and qdiscs.
    directories: Vec<PathBuf>,
    maps: Vec<Pinned>,
    cgroup: CgroupLinks,
    tracepoint: TracepointLink,
    tc: Arc<Tc>,
    /// None where the kernel does not have it.
    socket_lookup: SocketLookup,
}

impl Integrity {
    /// Remembers the datapath, once all of it is in service. `maps` are the names of the pinned maps.
    pub(crate) fn new<'a>(
        pins: Pins,
        maps: impl Iterator<Item = &'a str>,
        cgroup: CgroupLinks,
        tc: Arc<Tc>,
        socket_lookup: SocketLookup,
    ) -> Result<Self> {
        let root = Inode::at(pins.root()).context("looking at the pin directory")?;
        let current = pins.current();
        let open = |name: &str| {
            let path = current.join(name);
            Pinned::open(path.clone()).with_context(|| format!("opening the pinned map {}", path.display()))
        };
        let maps = maps.map(open).collect::<Result<_>>()?;
        let directories = directories_below(pins.root()).context("listing the pin directory")?;
        let (mount, tracepoint) = (BpffsMount::of(pins.root())?, TracepointLink::default());
        Ok(Self { pins, mount, root, directories, maps, cgroup, tracepoint, tc, socket_lookup })
    }

    /// Attaches a loaded program of ejection.
    pub(crate) fn attach_ejection_program(&mut self, program: EjectionProgram, ebpf: &Ebpf) -> Result<()> {
        ejection::attach(program, ebpf, &mut self.cgroup, &mut self.tracepoint, &self.pins)
    }

    /// Detaches a program of ejection, if it is attached.
    pub(crate) fn detach_ejection_program(&mut self, program: EjectionProgram) -> Result<()> {
        ejection::detach(program, &mut self.cgroup, &mut self.tracepoint, &self.pins)
    }

    /// Checks the datapath and mends it. `lock` is the lock of the pin directory, which is taken again if the directory
    /// is another one. Returns what was missing; nothing if all was there.
    pub(crate) fn mend(&mut self, lock: &mut File) -> Vec<Damage> {
        let mut damages = self.cgroup.mend();
        damages.extend(self.tc.mend());
        damages.extend(self.socket_lookup.mend());
        if let Err(damage) = self.mend_root(lock, &mut damages) {
            // Pins of another agent are left alone, and without a directory there are none.
            damages.push(damage);
            return damages;
        }
        for directory in self.directories.iter().filter(|path| !path.exists()) {
            if let Err(error) = fs::create_dir_all(directory) {
                damages.push(Damage::new(Part::Directory(directory.clone()), Err(error.into())));
            }
        }
        let mut mend_pin = |pinned: &mut Pinned| {
            if !pinned.is_in_place() {
                let name = pinned.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
                damages.push(Damage::new(Part::Pin(name), pinned.put_back().map_err(anyhow::Error::from)));
            }
        };
        let links = self.cgroup.pinned().chain(self.tracepoint.pinned());
        self.maps.iter_mut().chain(links).for_each(&mut mend_pin);
        self.tc.each_pinned(mend_pin);
        damages
    }

    /// Mounts the bpffs, makes the pin directory and locks it, where needed. Adds repaired parts to `damages`, and
    /// fails with the part that is still missing.
    fn mend_root(&mut self, lock: &mut File, damages: &mut Vec<Damage>) -> Result<(), Damage> {
        let root = self.pins.root();
        if Inode::at(root).is_ok_and(|inode| inode == self.root) {
            return Ok(());
        }
        let part = if self.mount.is_mounted() {
            Part::Directory(root.to_owned())
        } else {
            let part = Part::Mount(self.mount.at.clone());
            self.mount.mount_again().map_err(|error| Damage::new(part.clone(), Err(error)))?;
            part
        };
        let made = fs::create_dir_all(self.pins.current()).context("making the pin directory");
        let made = made.and_then(|()| Inode::at(root).context("looking at the pin directory"));
        let inode = made.map_err(|error| Damage::new(part.clone(), Err(error)))?;
        *lock = self.pins.take_lock().map_err(|error| Damage::new(Part::Lock, Err(error)))?;
        self.root = inode;
        damages.push(Damage::new(part, Ok(())));
        Ok(())
    }
}

/// Lists the directories below a directory.
fn directories_below(directory: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.extend(directories_below(&entry.path())?);
            found.push(entry.path());
        }
    }
    Ok(found)
}
