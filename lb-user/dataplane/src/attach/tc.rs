//! The programs of the packet path at network devices: attach, replace atomically, detach. Uses pinned TCX links, and
//! `clsact` filters on kernels before 6.6. The choice of devices is in [`crate::devices`].

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
use crate::pins::{self, Pins, link_name};
use lb_kernel::bpf;

/// The programs of a device and their hooks.
pub const PROGRAMS: [(Hook, &str); 2] = [(Hook::Ingress, "tc_ingress"), (Hook::Egress, "tc_egress")];

/// Pairs programs with their entries of [`PROGRAMS`], in the order of attachment: egress (reverse NAT) before ingress,
/// which begins flows. Detaching is in reverse.
fn attach_order<T>(programs: &[T; 2]) -> impl Iterator<Item = ((Hook, &'static str), &T)> {
    PROGRAMS.into_iter().zip(programs).rev()
}

/// A loaded program.
pub(crate) struct Classifier {
    /// Keeps the program loaded while open.
    pub(crate) fd: OwnedFd,
    /// Program id of the kernel.
    pub(crate) id: u32,
}

/// Method by which programs are attached to a device.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum AttachMethod {
    /// TCX links.
    Tcx,
    /// Filters of a clsact qdisc.
    Clsact,
}

impl AttachMethod {
    /// Returns the name in output and logs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        }
    }
}

/// The programs attached to a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Attachment {
    /// Method of both programs.
    pub method: AttachMethod,
    /// Program ids, in the order of [`PROGRAMS`]; none where a program is missing.
    pub programs: [Option<u32>; 2],
}

/// Attaches the loaded programs to devices. Attachments outlive the agent.
pub struct Tc {
    pins: Pins,
    /// Programs in service, in the order of [`PROGRAMS`]; none before the first load and after [`Tc::close`].
    programs: Mutex<Option<[Classifier; 2]>>,
    /// Number of loads that came into service.
    generation: watch::Sender<u64>,
}

impl Tc {
    /// Begins without programs: [`Tc::replace`] brings the first.
    #[must_use]
    pub(crate) fn new(pins: Pins) -> Self {
        Self { pins, programs: Mutex::new(None), generation: watch::Sender::new(0) }
    }

    /// Returns the number of loads in service so far, as a channel: each may have brought other maps.
    #[must_use]
    pub(crate) fn generation(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    /// Replaces the running programs at all devices, those of an earlier agent and of other versions of the layout
    /// included. A device that refuses is logged and left to the next pass of [`crate::devices`]. Returns the number of
    /// programs replaced; fails if the attached programs cannot be listed.
    pub(crate) fn replace(&self, programs: [Classifier; 2]) -> Result<usize> {
        let mut held = self.lock();
        let mut replaced = 0;
        let mut note = |device: u32, result: Result<()>| match result {
            Ok(()) => replaced += 1,
            Err(error) => warn!(device, "the programs of the device are not replaced yet: {error:#}"),
        };
        for directory in self.pins.layouts()? {
            for Pin { path, at, device } in pins_of(&directory)? {
                note(device, self.adopt_link(&path, at, device, &programs));
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

    /// Updates a link of any version of the layout to this version's program, and moves its pin to this version's
    /// directory.
    fn adopt_link(&self, path: &Path, at: usize, device: u32, programs: &[Classifier; 2]) -> Result<()> {
        let link = bpf::open_pin(path).with_context(|| format!("opening {}", path.display()))?;
        let (program, (_, name)) = programs.get(at).zip(PROGRAMS.get(at)).context("one of the two programs")?;
        if bpf::tcx_link(&link)?.interface == 0 {
            // The device is gone.
            return Ok(fs::remove_file(path)?);
        }
        bpf::update_link(&link, &program.fd).with_context(|| format!("replacing the program of {}", path.display()))?;
        let own = self.pin(name, device);
        if own == path {
            return Ok(());
        }
        fs::rename(path, &own).with_context(|| format!("moving {} to {}", path.display(), own.display()))
    }

    /// Starts the next pass over devices: programs and maps are in service.
    pub(crate) fn publish(&self) {
        self.generation.send_modify(|generation| *generation += 1);
    }

    /// Ends attaching. Waits for an attachment in progress.
    pub fn close(&self) {
        *self.lock() = None;
    }

    /// Lists the attachments of this network namespace, by device index.
    pub(crate) fn attached(&self) -> Result<BTreeMap<u32, Attachment>> {
        attached(&self.pins.current(), self.pins.root())
    }

    /// True if the attached programs are the loaded ones, at both hooks.
    #[must_use]
    pub(crate) fn is_complete(&self, attached: &Attachment) -> bool {
        self.lock().as_ref().is_some_and(|programs| programs.each_ref().map(|own| Some(own.id)) == attached.programs)
    }

    /// Attaches the programs to a device, or the program that is missing.
    pub(crate) fn attach(&self, device: u32) -> Result<AttachMethod> {
        let held = self.lock();
        let programs = held.as_ref().context("the programs for devices are not in service")?;
        for ((hook, name), program) in attach_order(programs) {
            match self.attach_link(device, hook, name, program) {
                Ok(()) => {}
                // Try instead of comparing kernel versions: distributions backport TCX.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                    return Self::attach_filters(&mut Clsact::open(self.pins.root())?, device, programs);
                }
                Err(error) => return Err(error).with_context(|| format!("attaching {name}")),
            }
        }
        Ok(AttachMethod::Tcx)
    }

    fn attach_link(&self, device: u32, hook: Hook, name: &str, program: &Classifier) -> io::Result<()> {
        let pin = self.pin(name, device);
        match bpf::open_pin(&pin) {
            Ok(link) if bpf::tcx_link(&link)?.interface == device => return bpf::update_link(&link, &program.fd),
            // The pin of a deleted device that had the same index.
            Ok(_) => fs::remove_file(&pin)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        bpf::pin(bpf::attach_tcx(&program.fd, device, hook)?, &pin)
    }

    fn attach_filters(clsact: &mut Clsact, device: u32, programs: &[Classifier; 2]) -> Result<AttachMethod> {
        for ((hook, name), program) in attach_order(programs) {
            clsact.attach(device, hook, name, program.fd.as_fd()).with_context(|| format!("attaching {name}"))?;
        }
        Ok(AttachMethod::Clsact)
    }

    /// Detaches the programs from a device.
    pub(crate) fn detach(&self, device: u32, method: AttachMethod) -> Result<()> {
        let _held = self.lock();
        match method {
            AttachMethod::Tcx => {
                let mut pins = PROGRAMS.iter().map(|(_, name)| self.pin(name, device)).filter(|pin| pin.exists());
                pins.try_for_each(|pin| pins::remove_pin(&pin))
            }
            AttachMethod::Clsact => Clsact::open(self.pins.root())?.detach(device),
        }
    }

    /// Removes the pins and marks of deleted devices.
    pub(crate) fn forget_deleted(&self, exists: impl Fn(u32) -> bool) -> Result<()> {
        let _held = self.lock();
        for Pin { path, device, .. } in pins_of(&self.pins.current())? {
            if !exists(device) {
                pins::remove_pin(&path)?;
            }
        }
        Clsact::open(self.pins.root())?.forget_deleted(exists)
    }

    fn pin(&self, program: &str, device: u32) -> PathBuf {
        self.pins.current().join(device_link_name(program, device))
    }

    fn lock(&self) -> MutexGuard<'_, Option<[Classifier; 2]>> {
        self.programs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lists the attachments of this network namespace by device index, from the links pinned in `directory` and the marks
/// below `root`, the pin directory.
///
/// # Errors
/// If a link cannot be opened, or qdiscs and filters cannot be listed.
pub fn attached(directory: &Path, root: &Path) -> Result<BTreeMap<u32, Attachment>> {
    let mut attached = BTreeMap::new();
    for Pin { path, at, device } in pins_of(directory)? {
        let link = bpf::open_pin(&path).and_then(bpf::tcx_link);
        let link = link.with_context(|| format!("asking about the link {}", path.display()))?;
        let own = attached.entry(device).or_insert(Attachment { method: AttachMethod::Tcx, programs: [None; 2] });
        if let Some(program) = own.programs.get_mut(at) {
            *program = (link.interface == device).then_some(link.program);
        }
    }
    for (device, programs) in Clsact::open(root)?.attached()? {
        attached.entry(device).or_insert(Attachment { method: AttachMethod::Clsact, programs });
    }
    Ok(attached)
}

/// Returns the file name of a device's link. It has the index of the device, since bpffs rejects dots, which names of
/// devices may have.
fn device_link_name(program: &str, device: u32) -> String {
    format!("{}_{device}", link_name(program))
}

/// Parses the file name of a device's link into the position in [`PROGRAMS`] and the device.
fn parse_link_name(name: &str) -> Option<(usize, u32)> {
    PROGRAMS.iter().enumerate().find_map(|(at, (_, program))| {
        Some((at, name.strip_prefix(&link_name(program))?.strip_prefix('_')?.parse().ok()?))
    })
}

/// The pinned link of a device.
struct Pin {
    path: PathBuf,
    /// Position of the program in [`PROGRAMS`].
    at: usize,
    device: u32,
}

/// Lists the pinned links of devices in a directory.
fn pins_of(directory: &Path) -> Result<Vec<Pin>> {
    let entries = fs::read_dir(directory).with_context(|| format!("reading {}", directory.display()))?;
    let pin = |entry: fs::DirEntry| {
        let (at, device) = parse_link_name(entry.file_name().to_str()?)?;
        Some(Pin { path: entry.path(), at, device })
    };
    Ok(entries.flatten().filter_map(pin).collect())
}

/// Returns the program of a device's link by its file name.
#[must_use]
pub fn program_of(link: &str) -> Option<&'static str> {
    let (at, _) = parse_link_name(link)?;
    PROGRAMS.get(at).map(|(_, program)| *program)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_devices_link_is_known_by_its_name() {
        assert_eq!(parse_link_name(&device_link_name("tc_egress", 12)), Some((1, 12)));
        for other in ["link_connect4", "link_tc_ingress", "link_tc_ingress_", "link_tc_ingress_x", "tc_ingress_1"] {
            assert_eq!(parse_link_name(other), None, "{other}");
        }
        assert_eq!(program_of("link_tc_ingress_2"), Some("tc_ingress"));
    }
}
