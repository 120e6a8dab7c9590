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
use crate::{
    damage::{Damage, Part},
    pinned::Pinned,
    pins::{self, Pins, link_name},
};
use lb_kernel::{
    bpf::{self, TcxLink},
    netlink,
};

/// The programs of a device and their hooks.
pub const PROGRAMS: [(Hook, &str); 2] = [(Hook::Ingress, "tc_ingress"), (Hook::Egress, "tc_egress")];

/// Pairs programs with their positions and entries of [`PROGRAMS`], in the order of attachment: egress (reverse NAT)
/// before ingress, which begins flows. Detaching is in reverse.
fn attach_order<T>(programs: &[T; 2]) -> impl Iterator<Item = (usize, (Hook, &'static str), &T)> {
    PROGRAMS.into_iter().zip(programs).enumerate().map(|(at, (entry, program))| (at, entry, program)).rev()
}

/// State of a lost program, until a pass over devices attaches it again.
const ATTACHED_LATER: &str = "the next pass over devices attaches it again";

/// Loads the programs over the maps in service. None if the kernel refuses one.
pub(crate) type LoadClassifiers = Box<dyn Fn() -> Result<Option<[Classifier; 2]>> + Send>;

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
    state: Mutex<State>,
    /// Number of loads that came into service, and of losses that a pass over devices must mend.
    generation: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    /// Programs in service, in the order of [`PROGRAMS`]; none before the first load and after [`Tc::close`].
    programs: Option<[Classifier; 2]>,
    /// The load of the programs, until a device needs them.
    load: Option<LoadClassifiers>,
    /// Links of devices, by device and position in [`PROGRAMS`]: held open, so that a removed pin detaches nothing.
    links: BTreeMap<(u32, usize), Pinned>,
    /// Directories that mark qdiscs as ours.
    marks: Vec<PathBuf>,
    /// Names of devices that lost a program, and did not get it back yet, by index.
    lost: BTreeMap<u32, String>,
}

impl State {
    /// Loads the programs, if that is left to do. An error other than a refusal is tried again by the next call.
    fn load(&mut self) -> Result<()> {
        if let Some(load) = &self.load {
            self.programs = load()?;
            self.load = None;
        }
        Ok(())
    }
}

impl Tc {
    /// Begins without programs: [`Tc::replace`] brings the first.
    #[must_use]
    pub(crate) fn new(pins: Pins) -> Self {
        Self { pins, state: Mutex::default(), generation: watch::Sender::new(0) }
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
        let mut state = self.lock();
        for directory in self.pins.layouts()? {
            for Pin { path, at, device } in pins_of(&directory)? {
                if !state.links.contains_key(&(device, at))
                    && let Some(link) = self.adopt_link(&path, at, device)?
                {
                    state.links.insert((device, at), link);
                }
            }
        }
        let mut replaced = 0;
        let mut note = |device: u32, result: Result<()>| match result {
            Ok(()) => replaced += 1,
            Err(error) => warn!(device, "the programs of the device are not replaced yet: {error:#}"),
        };
        let mut clsact = Clsact::open(self.pins.root())?;
        let with_filters: Vec<u32> = clsact.attached()?.into_keys().collect();
        // One hook of all devices after the other: the new programs may begin flows in a map that the old ones lack.
        for (at, (hook, name), program) in attach_order(&programs) {
            for ((device, _), link) in state.links.iter().filter(|((_, of), _)| *of == at) {
                let context = || format!("replacing the program of {}", link.path().display());
                note(*device, bpf::update_link(link, &program.fd).with_context(context));
            }
            for device in &with_filters {
                note(*device, clsact.attach(*device, hook, name, &program.fd));
            }
        }
        state.marks = clsact.marks()?;
        (state.programs, state.load) = (Some(programs), None);
        Ok(replaced)
    }

    /// Has the programs loaded when a device first needs them, in the place of those in service.
    pub(crate) fn load_later(&self, load: LoadClassifiers) {
        let mut state = self.lock();
        (state.programs, state.load) = (None, Some(load));
    }

    /// True if a device of this network namespace may have programs of any version of the layout.
    pub(crate) fn has_attachments(&self) -> Result<bool> {
        for directory in self.pins.layouts()? {
            if !pins_of(&directory)?.is_empty() {
                return Ok(true);
            }
        }
        Clsact::open(self.pins.root())?.attached().map(|attached| !attached.is_empty())
    }

    /// Opens a link of any version of the layout, and moves its pin to this version's directory. None if the device is
    /// gone.
    fn adopt_link(&self, path: &Path, at: usize, device: u32) -> Result<Option<Pinned>> {
        let (_, name) = PROGRAMS.get(at).context("one of the two programs")?;
        let context = || format!("opening {}", path.display());
        let link = Pinned::open(path.to_owned()).with_context(context)?;
        if bpf::tcx_link(&link).with_context(context)?.interface == 0 {
            fs::remove_file(path)?;
            return Ok(None);
        }
        let own = self.pin(name, device);
        if own == path {
            return Ok(Some(link));
        }
        let context = || format!("moving {} to {}", path.display(), own.display());
        link.move_to(own.clone()).map(Some).with_context(context)
    }

    /// Starts the next pass over devices: programs and maps are in service.
    pub(crate) fn publish(&self) {
        self.generation.send_modify(|generation| *generation += 1);
    }

    /// Ends attaching, and leaves the links to their pins. Waits for an attachment in progress.
    pub fn close(&self) {
        *self.lock() = State::default();
    }

    /// Lists the attachments of this network namespace, by device index.
    pub(crate) fn attached(&self) -> Result<BTreeMap<u32, Attachment>> {
        let state = self.lock();
        let mut attached = BTreeMap::new();
        for ((device, at), link) in &state.links {
            let link = bpf::tcx_link(link).with_context(|| format!("asking about a link of device {device}"))?;
            note_link(&mut attached, *device, *at, link);
        }
        add_filters(&mut attached, self.pins.root())?;
        Ok(attached)
    }

    /// True if the attached programs are the loaded ones, at both hooks.
    #[must_use]
    pub(crate) fn is_complete(&self, attached: &Attachment) -> bool {
        let state = self.lock();
        state.programs.as_ref().is_some_and(|programs| programs.each_ref().map(|own| Some(own.id)) == attached.programs)
    }

    /// True once a load has come into service.
    #[must_use]
    pub(crate) fn is_in_service(&self) -> bool {
        *self.generation.borrow() > 0
    }

    /// True if all attached programs are the loaded ones.
    ///
    /// # Errors
    /// If the kernel does not tell what is attached.
    pub(crate) fn is_everywhere(&self) -> Result<bool> {
        Ok(self.attached()?.values().all(|attached| self.is_complete(attached)))
    }

    /// Attaches the programs to a device, or the program that is missing.
    pub(crate) fn attach(&self, device: u32) -> Result<AttachMethod> {
        let mut state = self.lock();
        state.load()?;
        let State { programs, links, marks, .. } = &mut *state;
        let programs = programs.as_ref().context("the programs for devices are not in service")?;
        for (at, (hook, name), program) in attach_order(programs) {
            match self.attach_link(device, (at, hook, name), program, links) {
                Ok(()) => {}
                // Try instead of comparing kernel versions: distributions backport TCX.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                    let mut clsact = Clsact::open(self.pins.root())?;
                    for (_, (hook, name), program) in attach_order(programs) {
                        let attached = clsact.attach(device, hook, name, program.fd.as_fd());
                        attached.with_context(|| format!("attaching {name}"))?;
                    }
                    *marks = clsact.marks()?;
                    return Ok(AttachMethod::Clsact);
                }
                Err(error) => return Err(error).with_context(|| format!("attaching {name}")),
            }
        }
        Ok(AttachMethod::Tcx)
    }

    fn attach_link(
        &self,
        device: u32,
        (at, hook, name): (usize, Hook, &str),
        program: &Classifier,
        links: &mut BTreeMap<(u32, usize), Pinned>,
    ) -> io::Result<()> {
        let pin = self.pin(name, device);
        // The pin of a link that this agent does not hold: a device without the agent's programs had the same index.
        let known = match links.remove(&(device, at)) {
            None => Pinned::open(pin.clone()).map(Some).or_else(|error| match error.kind() {
                io::ErrorKind::NotFound => Ok(None),
                _ => Err(error),
            })?,
            known => known,
        };
        let link = match known {
            Some(link) if bpf::tcx_link(&link)?.interface == device => {
                bpf::update_link(&link, &program.fd)?;
                link
            }
            // A link of a deleted device that had the same index, or a link that another program detached.
            _ => {
                let mut link = Pinned::unpinned(bpf::attach_tcx(&program.fd, device, hook)?, pin);
                link.put_back()?;
                link
            }
        };
        links.insert((device, at), link);
        Ok(())
    }

    /// Detaches the programs from a device.
    pub(crate) fn detach(&self, device: u32, method: AttachMethod) -> Result<()> {
        let mut state = self.lock();
        state.lost.remove(&device);
        match method {
            AttachMethod::Tcx => {
                for (at, (_, name)) in PROGRAMS.iter().enumerate() {
                    let pin = self.pin(name, device);
                    if let Some(link) = state.links.remove(&(device, at))
                        && !link.is_in_place()
                    {
                        bpf::detach_link(link)?;
                    }
                    if pin.exists() {
                        pins::remove_pin(&pin)?;
                    }
                }
                Ok(())
            }
            AttachMethod::Clsact => {
                let mut clsact = Clsact::open(self.pins.root())?;
                clsact.detach(device)?;
                state.marks = clsact.marks()?;
                Ok(())
            }
        }
    }

    /// Removes the pins and marks of deleted devices.
    pub(crate) fn forget_deleted(&self, exists: impl Fn(u32) -> bool) -> Result<()> {
        let mut state = self.lock();
        state.links.retain(|(device, _), _| exists(*device));
        state.lost.retain(|device, _| exists(*device));
        for Pin { path, device, .. } in pins_of(&self.pins.current())? {
            if !exists(device) {
                pins::remove_pin(&path)?;
            }
        }
        let clsact = Clsact::open(self.pins.root())?;
        clsact.forget_deleted(exists)?;
        state.marks = clsact.marks()?;
        Ok(())
    }

    /// Notes the devices, with their names, that lost a program and did not get it back.
    pub(crate) fn note_lost(&self, lost: BTreeMap<u32, String>) {
        self.lock().lost = lost;
    }

    /// Finds programs that another program detached or replaced at a device, and starts a pass over devices to attach
    /// them again. Returns the devices that lack a program.
    pub(crate) fn mend(&self) -> Vec<Damage> {
        let mut state = self.lock();
        let Some(programs) = &state.programs else { return Vec::new() };
        let is_intact = |device: u32, at: usize, link: &Pinned| {
            let own = programs.get(at).map(|program| program.id);
            bpf::tcx_link(link).is_ok_and(|link| link.interface == device && Some(link.program) == own)
        };
        let broken = state.links.iter().filter(|((device, at), link)| !is_intact(*device, *at, link));
        // A deleted device is no damage.
        let broken: BTreeMap<u32, String> =
            broken.filter_map(|((device, _), _)| Some((*device, netlink::name_of(*device)?))).collect();
        if !broken.is_empty() {
            state.lost.extend(broken);
            self.publish();
        }
        let lacks = |name: &String| Damage { part: Part::Device(name.clone()), error: Some(ATTACHED_LATER.to_owned()) };
        state.lost.values().map(lacks).collect()
    }

    /// Has the pins of links checked, and makes missing marks again.
    pub(crate) fn each_pinned(&self, check: impl FnMut(&mut Pinned)) {
        let mut state = self.lock();
        state.links.values_mut().for_each(check);
        for mark in state.marks.iter().filter(|mark| !mark.exists()) {
            if let Err(error) = fs::create_dir_all(mark) {
                warn!(mark = %mark.display(), %error, "the mark of a qdisc is lost, which stays after the agent");
            }
        }
    }

    fn pin(&self, program: &str, device: u32) -> PathBuf {
        self.pins.current().join(device_link_name(program, device))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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
        note_link(&mut attached, device, at, link);
    }
    add_filters(&mut attached, root)?;
    Ok(attached)
}

fn note_link(attached: &mut BTreeMap<u32, Attachment>, device: u32, at: usize, link: TcxLink) {
    let own = attached.entry(device).or_insert(Attachment { method: AttachMethod::Tcx, programs: [None; 2] });
    if let Some(program) = own.programs.get_mut(at) {
        *program = (link.interface == device).then_some(link.program);
    }
}

fn add_filters(attached: &mut BTreeMap<u32, Attachment>, root: &Path) -> Result<()> {
    for (device, programs) in Clsact::open(root)?.attached()? {
        attached.entry(device).or_insert(Attachment { method: AttachMethod::Clsact, programs });
    }
    Ok(())
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
