//! The eBPF object: loaded with the maps that are there, and put in place of what ran before.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    os::{
        fd::{AsFd as _, BorrowedFd},
        unix::fs::MetadataExt as _,
    },
    panic::resume_unwind,
    path::Path,
    thread,
};

use anyhow::{Context as _, Result, anyhow, bail};
use aya::{
    Ebpf, EbpfLoader,
    programs::{CgroupAttachMode, Program, links::FdLink},
};
use tracing::{info, warn};

use super::{
    adopt,
    adopt::Way,
    btf_fingerprint,
    pins::{Found, Layout, Pins, Size, link_name},
};
use crate::attach::tc::{self, Classifier};
use lb_core::op::Table;
use lb_kernel::{bpf, netns};

/// The eBPF object that the agent embeds, an ELF file.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/beeline.bpf.o"));

/// The hooks of cgroups, in the order of attaching: who shows a VIP stands ready before the first socket is given a backend.
pub const HOOKS: [&str; 11] = [
    "sock_release",
    "getpeername4",
    "getpeername6",
    "recvmsg4",
    "recvmsg6",
    "connect4",
    "connect6",
    "sendmsg4",
    "sendmsg6",
    "bind4",
    "bind6",
];

/// Sizes of maps, in entries.
pub type Sizes = BTreeMap<Table, u32>;

/// The maps that are pinned, as the object declares them, with the sizes that the user `fixed`, or at least those to
/// which they have `grown`.
///
/// # Errors
/// When the object cannot be read, which is a defect of the build.
pub fn layouts(fixed: &Sizes, grown: &Sizes) -> Result<BTreeMap<String, Layout>> {
    let object = aya_obj::Object::parse(OBJECT).context("reading the embedded eBPF object")?;
    let texts = texts(&object)?;
    let mut layouts = BTreeMap::new();
    for (name, map) in &object.maps {
        // The constants of one load.
        if name.starts_with('.') {
            continue;
        }
        let table = Table::ALL.into_iter().find(|table| table.map_name() == name);
        let fixed = table.and_then(|table| fixed.get(&table));
        let grown = table.and_then(|table| grown.get(&table));
        layouts.insert(
            name.clone(),
            Layout {
                map_type: map.map_type(),
                key_size: map.key_size(),
                value_size: map.value_size(),
                max_entries: *fixed.or(grown).unwrap_or(&map.max_entries()),
                size: match (fixed, adopt::way(name)) {
                    (Some(_), _) => Size::Exact,
                    (None, Some(Way::Share)) if !adopt::is_array(map.map_type()) => Size::Any,
                    _ => Size::AtLeast,
                },
                fingerprint: texts.get(name).map(|text| btf_fingerprint::fingerprint(text)),
            },
        );
    }
    Ok(layouts)
}

/// What stands in the maps that go over to another version of the layout.
fn texts(object: &aya_obj::Object) -> Result<BTreeMap<String, String>> {
    let btf = object.btf.as_ref().context("the embedded eBPF object has no BTF")?.to_bytes();
    btf_fingerprint::texts(&btf, |name| adopt::way(name).is_some()).context("reading the object's BTF")
}

/// What the kernel can do for the programs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Features {
    /// `bpf_set_retval` (5.18): a refused call fails with the error that fits; otherwise with EPERM.
    pub set_retval: bool,
}

/// Loads all programs over pinned and new maps. The new ones stand in the staging directory until [`publish`].
///
/// # Errors
/// When the kernel refuses the object; its verifier's words are in the message.
pub fn load(
    pins: &Pins,
    layouts: &BTreeMap<String, Layout>,
    found: &BTreeMap<String, Found>,
) -> Result<(Ebpf, Features)> {
    let attempt = |features| try_load(pins, layouts, found, features);
    match attempt(Features { set_retval: true }) {
        Ok(ebpf) => Ok((ebpf, Features { set_retval: true })),
        // Only the attempt tells: distributions carry features back to older versions.
        Err(first) => match attempt(Features { set_retval: false }) {
            Ok(ebpf) => Ok((ebpf, Features { set_retval: false })),
            Err(_) => Err(first),
        },
    }
}

fn try_load(
    pins: &Pins,
    layouts: &BTreeMap<String, Layout>,
    found: &BTreeMap<String, Found>,
    features: Features,
) -> Result<Ebpf> {
    let (current, staging) = (pins.current(), pins.staging());
    fs::create_dir_all(&staging).with_context(|| format!("making {}", staging.display()))?;
    let (set_retval, generation) = (u8::from(features.set_retval), generation());
    // Before 5.14 the programs take the first namespace for the node's.
    let host_netns = netns::cookie().unwrap_or(0);
    let mut loader = EbpfLoader::new();
    loader
        .override_global("SET_RETVAL", &set_retval, true)
        .override_global("GENERATION", &generation, true)
        .override_global("HOST_NETNS", &host_netns, true)
        .override_global(aya_log::LEVEL, &(aya_log::Level::Warn as u8), true);
    for (name, layout) in layouts {
        let directory = if found.get(name) == Some(&Found::Adopt) { &current } else { &staging };
        loader.map_pin_path(name, directory.join(name));
        if layout.max_entries > 0 {
            loader.map_max_entries(name, layout.max_entries);
        }
    }
    let mut ebpf = loader.load(OBJECT).context("loading the eBPF object")?;
    let names: Vec<&str> = HOOKS.into_iter().chain(tc::PROGRAMS.map(|(_, name)| name)).collect();
    if let Some(name) = names.iter().find(|name| ebpf.program(name).is_none()) {
        bail!("the object lacks the program {name}");
    }
    // The verifier's walk is most of a start, and takes one CPU for each program.
    thread::scope(|scope| {
        let programs = ebpf.programs_mut().filter(|(name, _)| names.contains(name));
        let loads: Vec<_> = programs.map(|(name, program)| scope.spawn(move || load_one(name, program))).collect();
        loads.into_iter().try_for_each(|load| load.join().unwrap_or_else(|panic| resume_unwind(panic)))
    })?;
    Ok(ebpf)
}

fn load_one(name: &str, program: &mut Program) -> Result<()> {
    let loaded = match program {
        Program::CgroupSockAddr(program) => program.load(),
        Program::CgroupSock(program) => program.load(),
        Program::SchedClassifier(program) => {
            // Sockets are served without them.
            if let Err(error) = program.load() {
                let error = anyhow::Error::from(error);
                warn!(
                    program = name,
                    "the kernel refuses it, so clients outside of the node are not served: {error:#}"
                );
            }
            Ok(())
        }
        other => bail!("program {name} has the unexpected type {:?}", other.prog_type()),
    };
    loaded.with_context(|| format!("loading the program {name}"))
}

/// Tells one load of the programs from the next.
fn generation() -> u32 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    // Any two loads differ, which is all that counts.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the low bits are what differs")]
    let mixed = (now.tv_sec as u32).wrapping_mul(1_000_003) ^ now.tv_nsec as u32;
    mixed.max(1)
}

/// Puts the programs into service at `cgroup`: in the place of the pinned links' programs, without a moment between, or
/// by new links where there are none or they are attached elsewhere. Returns how many links were taken over.
///
/// # Errors
/// When a hook cannot be attached.
pub fn attach(ebpf: &mut Ebpf, cgroup_path: &Path, pins: &Pins) -> Result<usize> {
    let cgroup = File::open(cgroup_path).with_context(|| format!("opening the cgroup {}", cgroup_path.display()))?;
    let id = cgroup.metadata()?.ino();
    let others = pins.others()?;
    let mut taken_over = 0;
    for name in HOOKS {
        let program = ebpf.program_mut(name).with_context(|| format!("the object lacks the program {name}"))?;
        let pin = pins.current().join(link_name(name));
        let context = || format!("attaching {name} to {}", cgroup_path.display());
        // A link of another version is first found where this version's are; until its program is another it serves on.
        if let Some(theirs) = others.iter().map(|other| other.join(link_name(name))).find(|theirs| theirs.exists())
            && !pin.exists()
        {
            fs::rename(&theirs, &pin).with_context(context)?;
        }
        match bpf::open_pin(&pin) {
            Ok(link) if bpf::cgroup_link(&link).with_context(context)?.cgroup == id => {
                bpf::update_link(&link, program_fd(program)?).with_context(context)?;
                taken_over += 1;
            }
            Ok(elsewhere) => {
                let staged = pins.staging().join(link_name(name));
                new_link(program, &cgroup).with_context(context)?.pin(&staged).with_context(context)?;
                fs::rename(&staged, &pin).with_context(context)?;
                info!(program = name, "moved from another cgroup");
                drop(elsewhere);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                new_link(program, &cgroup).with_context(context)?.pin(&pin).with_context(context)?;
            }
            Err(error) => return Err(error).with_context(context),
        }
    }
    Ok(taken_over)
}

/// The programs for network devices, which stay loaded without the object.
///
/// None where the kernel has refused them.
///
/// # Errors
/// When one is missing, which is a defect of the build.
pub fn classifiers(ebpf: &Ebpf) -> Result<Option<[Classifier; 2]>> {
    let [ingress, egress] = tc::PROGRAMS.map(|(_, name)| {
        let program = ebpf.program(name).with_context(|| format!("the object lacks the program {name}"))?;
        let Program::SchedClassifier(program) = program else {
            return Err(anyhow!("program {name} has the unexpected type {:?}", program.prog_type()));
        };
        let Ok(fd) = program.fd() else {
            return Ok(None);
        };
        Ok(Some(Classifier { fd: fd.as_fd().try_clone_to_owned()?, id: program.info()?.id() }))
    });
    Ok(ingress?.zip(egress?).map(|(ingress, egress)| [ingress, egress]))
}

fn program_fd(program: &Program) -> Result<BorrowedFd<'_>> {
    Ok(match program {
        Program::CgroupSockAddr(program) => program.fd()?.as_fd(),
        Program::CgroupSock(program) => program.fd()?.as_fd(),
        other => return Err(anyhow!("unexpected program type {:?}", other.prog_type())),
    })
}

fn new_link(program: &mut Program, cgroup: &File) -> Result<FdLink> {
    // No flag: a link always runs beside others (BPF_F_ALLOW_MULTI), and the kernel refuses to be told so.
    let mode = CgroupAttachMode::Single;
    Ok(match program {
        Program::CgroupSockAddr(program) => {
            let id = program.attach(cgroup, mode)?;
            program.take_link(id)?.try_into()?
        }
        Program::CgroupSock(program) => {
            let id = program.attach(cgroup, mode)?;
            program.take_link(id)?.try_into()?
        }
        other => return Err(anyhow!("unexpected program type {:?}", other.prog_type())),
    })
}

/// Moves the pins of new maps to where the next start finds them.
///
/// # Errors
/// When bpffs refuses a rename.
pub fn publish(pins: &Pins) -> Result<()> {
    let (current, staging) = (pins.current(), pins.staging());
    for entry in fs::read_dir(&staging).with_context(|| format!("reading {}", staging.display()))? {
        let name = entry?.file_name();
        fs::rename(staging.join(&name), current.join(&name))
            .with_context(|| format!("moving the pin {} into service", name.to_string_lossy()))?;
    }
    fs::remove_dir(&staging).with_context(|| format!("removing {}", staging.display()))
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;

    /// Who sees this change with the version as it is raises `LAYOUT_VERSION`, and renews it with `UPDATE_EXPECT=1`.
    #[test]
    fn a_change_of_a_map_is_a_new_layout_version() {
        let object = aya_obj::Object::parse(OBJECT).expect("the object");
        let mut all = format!("layout version {}\n", lb_common::LAYOUT_VERSION);
        for (name, text) in texts(&object).expect("its BTF") {
            writeln!(all, "{name}\n  {text}").expect("memory");
        }
        expect_test::expect_file!["../../../tests/layout.txt"].assert_eq(&all);
    }
}
