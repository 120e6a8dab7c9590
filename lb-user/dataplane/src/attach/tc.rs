//! The programs of the packet path at network devices: put there, replaced without a moment between, taken away. By pinned
//! TCX links where the kernel has them, by `clsact` otherwise. Which devices is not decided here.

use std::{
    collections::BTreeMap,
    fs, io,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context as _, Result};
use lb_common::Hook;
use tokio::sync::watch;
use tracing::warn;

use super::clsact::Clsact;
use crate::upgrade::pins::{self, Pins, link_name};
use lb_kernel::bpf;

/// The programs, and where they are attached.
pub const PROGRAMS: [(Hook, &str); 2] = [(Hook::Ingress, "tc_ingress"), (Hook::Egress, "tc_egress")];

/// Programs, each with its entry of [`PROGRAMS`], in the order in which they come to a device: what translates answers is there
/// before what begins flows. They leave in the other order.
fn as_they_come<T>(programs: &[T; 2]) -> impl Iterator<Item = ((Hook, &'static str), &T)> {
    PROGRAMS.into_iter().zip(programs).rev()
}

/// A loaded program.
pub struct Classifier {
    /// It stays loaded as long as this is open.
    pub fd: OwnedFd,
    /// By which the kernel knows it.
    pub id: u32,
}

/// How a device has the programs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum How {
    /// By TCX links.
    Tcx,
    /// By filters of a clsact qdisc.
    Clsact,
}

impl How {
    /// A name for output.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        }
    }
}

/// What a device has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Attached {
    /// How.
    pub how: How,
    /// Ids of its programs, in the order of [`PROGRAMS`].
    pub programs: [Option<u32>; 2],
}

/// Keeps the programs at the devices. What it has put there outlives it.
pub struct Tc {
    pins: Pins,
    /// Those in service, in the order of [`PROGRAMS`]; none before the first, and after the last.
    programs: Mutex<Option<[Classifier; 2]>>,
    /// How often others came into service.
    generation: watch::Sender<u64>,
}

impl Tc {
    /// One that has no programs yet.
    #[must_use]
    pub fn new(pins: Pins) -> Self {
        Self { pins, programs: Mutex::new(None), generation: watch::Sender::new(0) }
    }

    /// How often other programs, and perhaps other maps, came into service.
    #[must_use]
    pub fn generation(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    /// Puts programs in the place of those that run, an earlier agent's included, and those of another version of the maps.
    /// A device that refuses is told of, and left to who looks after devices. Returns how many were replaced.
    ///
    /// # Errors
    /// When it cannot be found out what runs.
    pub fn replace(&self, programs: [Classifier; 2]) -> Result<usize> {
        let mut held = self.lock();
        let mut replaced = 0;
        let mut note = |device: u32, result: Result<()>| match result {
            Ok(()) => replaced += 1,
            Err(error) => warn!(device, "the programs of a device are not replaced yet: {error:#}"),
        };
        for directory in self.pins.layouts()? {
            for Pin { path, at, device } in pins_of(&directory)? {
                note(device, self.take_over(&path, at, device, &programs));
            }
        }
        let mut clsact = Clsact::open(self.pins.root())?;
        for device in clsact.attached()?.into_keys() {
            for ((hook, name), program) in PROGRAMS.into_iter().zip(&programs) {
                note(device, clsact.attach(device, hook, name, &program.fd));
            }
        }
        *held = Some(programs);
        Ok(replaced)
    }

    /// A link of any version of the layout runs this version's program, and is found where this version's are.
    fn take_over(&self, path: &Path, at: usize, device: u32, programs: &[Classifier; 2]) -> Result<()> {
        let link = bpf::open_pin(path).with_context(|| format!("opening {}", path.display()))?;
        let (program, (_, name)) = programs.get(at).zip(PROGRAMS.get(at)).context("one of the two programs")?;
        if bpf::tcx_link(&link)?.interface == 0 {
            // Its device has gone.
            return Ok(fs::remove_file(path)?);
        }
        bpf::update_link(&link, &program.fd).with_context(|| format!("replacing the program of {}", path.display()))?;
        let own = self.pin(name, device);
        if own == path {
            return Ok(());
        }
        fs::rename(path, &own).with_context(|| format!("moving {} to {}", path.display(), own.display()))
    }

    /// The maps of the programs are in place: whoever looks after devices may go on.
    pub fn publish(&self) {
        self.generation.send_modify(|generation| *generation += 1);
    }

    /// Nothing is attached any more from here on. Waits for what is being attached.
    pub fn close(&self) {
        *self.lock() = None;
    }

    /// What the devices of this network namespace have.
    ///
    /// # Errors
    /// When it cannot be found out.
    pub fn attached(&self) -> Result<BTreeMap<u32, Attached>> {
        attached(&self.pins.current(), self.pins.root())
    }

    /// Whether a device has what it shall have.
    #[must_use]
    pub fn is_whole(&self, attached: &Attached) -> bool {
        self.lock().as_ref().is_some_and(|programs| programs.each_ref().map(|own| Some(own.id)) == attached.programs)
    }

    /// Attaches the programs to a device, or what is missing of them.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn attach(&self, device: u32) -> Result<How> {
        let held = self.lock();
        let programs = held.as_ref().context("the programs for devices are not in service")?;
        for ((hook, name), program) in as_they_come(programs) {
            match self.attach_link(device, hook, name, program) {
                Ok(()) => {}
                // Only the attempt tells: distributions carry features back to older versions.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                    return Self::attach_filters(&mut Clsact::open(self.pins.root())?, device, programs);
                }
                Err(error) => return Err(error).with_context(|| format!("attaching {name}")),
            }
        }
        Ok(How::Tcx)
    }

    fn attach_link(&self, device: u32, hook: Hook, name: &str, program: &Classifier) -> io::Result<()> {
        let pin = self.pin(name, device);
        match bpf::open_pin(&pin) {
            Ok(link) if bpf::tcx_link(&link)?.interface == device => return bpf::update_link(&link, &program.fd),
            // The number of a device that has gone.
            Ok(_) => fs::remove_file(&pin)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        bpf::pin(bpf::attach_tcx(&program.fd, device, hook)?, &pin)
    }

    fn attach_filters(clsact: &mut Clsact, device: u32, programs: &[Classifier; 2]) -> Result<How> {
        for ((hook, name), program) in as_they_come(programs) {
            clsact.attach(device, hook, name, program.fd.as_fd()).with_context(|| format!("attaching {name}"))?;
        }
        Ok(How::Clsact)
    }

    /// Takes the programs from a device.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn detach(&self, device: u32, how: How) -> Result<()> {
        let _held = self.lock();
        match how {
            How::Tcx => {
                let mut pins = PROGRAMS.iter().map(|(_, name)| self.pin(name, device)).filter(|pin| pin.exists());
                pins.try_for_each(|pin| pins::remove_pin(&pin))
            }
            How::Clsact => Clsact::open(self.pins.root())?.detach(device),
        }
    }

    /// Removes what is left of devices that have gone.
    ///
    /// # Errors
    /// When a pin cannot be removed.
    pub fn forget(&self, is_there: impl Fn(u32) -> bool) -> Result<()> {
        let _held = self.lock();
        for Pin { path, device, .. } in pins_of(&self.pins.current())? {
            if !is_there(device) {
                pins::remove_pin(&path)?;
            }
        }
        Clsact::open(self.pins.root())?.forget_others(is_there)
    }

    fn pin(&self, program: &str, device: u32) -> PathBuf {
        self.pins.current().join(device_link_name(program, device))
    }

    fn lock(&self) -> MutexGuard<'_, Option<[Classifier; 2]>> {
        self.programs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the devices of this network namespace have, by the pins of `directory` and the marks below `root`.
///
/// # Errors
/// When it cannot be found out.
pub fn attached(directory: &Path, root: &Path) -> Result<BTreeMap<u32, Attached>> {
    let mut attached = BTreeMap::new();
    for Pin { path, at, device } in pins_of(directory)? {
        let link = bpf::open_pin(&path).and_then(bpf::tcx_link);
        let link = link.with_context(|| format!("asking about the link {}", path.display()))?;
        let own = attached.entry(device).or_insert(Attached { how: How::Tcx, programs: [None; 2] });
        if let Some(program) = own.programs.get_mut(at) {
            *program = (link.interface == device).then_some(link.program);
        }
    }
    for (device, programs) in Clsact::open(root)?.attached()? {
        attached.entry(device).or_insert(Attached { how: How::Clsact, programs });
    }
    Ok(attached)
}

/// Name of the pin of a device's link. A bpffs takes no dots, which names of devices may well have.
fn device_link_name(program: &str, device: u32) -> String {
    format!("{}_{device}", link_name(program))
}

/// The place in [`PROGRAMS`] and the device of a pin, if it is a device's link.
fn parse_link_name(name: &str) -> Option<(usize, u32)> {
    PROGRAMS.iter().enumerate().find_map(|(at, (_, program))| {
        Some((at, name.strip_prefix(&link_name(program))?.strip_prefix('_')?.parse().ok()?))
    })
}

/// The pin of a device's link.
struct Pin {
    path: PathBuf,
    /// The place of its program in [`PROGRAMS`].
    at: usize,
    device: u32,
}

/// The links of devices in a directory.
fn pins_of(directory: &Path) -> Result<Vec<Pin>> {
    let entries = fs::read_dir(directory).with_context(|| format!("reading {}", directory.display()))?;
    let pin = |entry: fs::DirEntry| {
        let (at, device) = parse_link_name(entry.file_name().to_str()?)?;
        Some(Pin { path: entry.path(), at, device })
    };
    Ok(entries.flatten().filter_map(pin).collect())
}

/// The program of a link's name without its device.
#[must_use]
pub fn program_of(link: &str) -> Option<&'static str> {
    let (at, _) = parse_link_name(link)?;
    PROGRAMS.get(at).map(|(_, program)| *program)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_of_devices_are_told_by_their_names() {
        assert_eq!(parse_link_name(&device_link_name("tc_egress", 12)), Some((1, 12)));
        for other in ["link_connect4", "link_tc_ingress", "link_tc_ingress_", "link_tc_ingress_x", "tc_ingress_1"] {
            assert_eq!(parse_link_name(other), None, "{other}");
        }
        assert_eq!(program_of("link_tc_ingress_2"), Some("tc_ingress"));
    }
}
