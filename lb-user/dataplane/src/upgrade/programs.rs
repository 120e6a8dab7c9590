//! The embedded eBPF object: its maps, and the load of its programs over adopted and new maps.

use std::{
    collections::BTreeMap,
    fs, io,
    os::fd::{AsFd as _, OwnedFd},
    panic::resume_unwind,
    path::PathBuf,
    str::FromStr,
    thread,
};

use anyhow::{Context as _, Result, anyhow, bail};
use aya::{
    Ebpf, EbpfLoader,
    maps::MapInfo,
    programs::{Program, ProgramError},
    util::nr_cpus,
};
use lb_common::capacity;
use tracing::{info, warn};

use super::{
    adopt,
    adopt::Transfer,
    btf_fingerprint,
    pinned_maps::{MapLayout, MapOrigin, SizeRule},
};
use crate::{
    attach::{
        cgroup,
        ejection::{self, ERRORS_TRACEPOINT, EjectionProgram},
        socket_lookup,
        tc::{self, Classifier},
    },
    pins::Pins,
    sockets::FREE_SOCKET,
};
use lb_core::op::Table;
use lb_kernel::{
    bpf::{
        errors::{self, FailedCall},
        has_mptcp_sock, has_probe_read,
    },
    netns,
};

/// The embedded eBPF object, an ELF file.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/beeline.bpf.o"));

/// Sizes of maps, in entries.
pub type MapSizes = BTreeMap<Table, u32>;

/// The map of flows.
pub(crate) const FLOWS: &str = "FLOWS";
/// The map of flows that a map of another size replaces.
pub(crate) const FLOWS_BEFORE: &str = "FLOWS_BEFORE";

/// Lists the maps to pin, as the object declares them, with the sizes that `options` fixes, or the sizes to which they
/// have `grown`.
///
/// # Errors
/// If the object cannot be read, which is a defect of the build.
pub fn layouts(options: &ProgramOptions, grown: &MapSizes) -> Result<BTreeMap<String, MapLayout>> {
    let object = aya_obj::Object::parse(OBJECT).context("reading the embedded eBPF object")?;
    let texts = texts(&object)?;
    let mut layouts = BTreeMap::new();
    for (name, map) in &object.maps {
        // Sections of constants, which each load has for itself.
        if name.starts_with('.') {
            continue;
        }
        let table = Table::ALL.into_iter().find(|table| table.map_name() == name);
        let fixed =
            table.and_then(|table| options.sizes.get(&table)).or(options.flows.as_ref().filter(|_| name == FLOWS));
        let grown = table.and_then(|table| grown.get(&table));
        let usual = if name == FLOWS { usual_flows(cpus()?) } else { map.max_entries() };
        layouts.insert(
            name.clone(),
            MapLayout {
                map_type: map.map_type(),
                key_size: map.key_size(),
                value_size: map.value_size(),
                max_entries: *fixed.or(grown).unwrap_or(&usual),
                size: match (fixed, adopt::transfer(name)) {
                    (Some(_), _) => SizeRule::Exact,
                    (None, Some(Transfer::Share)) if !adopt::is_array(map.map_type()) => SizeRule::Any,
                    _ => SizeRule::AtLeast,
                },
                fingerprint: texts.get(name).map(|text| btf_fingerprint::fingerprint(text)),
            },
        );
    }
    Ok(layouts)
}

/// Describes keys and values of the maps whose entries go over to another version of the layout.
fn texts(object: &aya_obj::Object) -> Result<BTreeMap<String, String>> {
    let btf = object.btf.as_ref().context("the embedded eBPF object has no BTF")?.to_bytes();
    btf_fingerprint::texts(&btf, |name| adopt::transfer(name).is_some()).context("reading the object's BTF")
}

/// Features of the kernel that the programs use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Features {
    /// `bpf_set_retval` (5.18): a refused call fails with the fitting errno instead of EPERM.
    pub set_retval: bool,
}

/// Options of the programs.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ProgramOptions {
    /// Fixed sizes of maps, which never grow.
    pub sizes: MapSizes,
    /// Fixed size of `FLOWS`.
    pub flows: Option<u32>,
    /// Treatment of pings to VIPs.
    pub vip_pings: VipPings,
}

impl From<MapSizes> for ProgramOptions {
    fn from(sizes: MapSizes) -> Self {
        Self { sizes, ..Self::default() }
    }
}

/// The flag `--vip-pings`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum VipPings {
    /// The programs answer.
    #[default]
    Answer,
    /// No answer.
    Ignore,
}

impl FromStr for VipPings {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "answer" => Ok(Self::Answer),
            "ignore" => Ok(Self::Ignore),
            _ => Err("want answer or ignore".to_owned()),
        }
    }
}

/// Loads programs over adopted and new maps: the programs of the cgroup, and with `with_classifiers` those of network
/// devices. The others wait until they are needed ([`load_classifiers`], [`load_ejection_program`]). New maps are
/// pinned in the staging directory until [`publish`]. An error has the verifier's log.
pub(crate) fn load(
    pins: &Pins,
    layouts: &BTreeMap<String, MapLayout>,
    origins: &BTreeMap<String, MapOrigin>,
    options: &ProgramOptions,
    with_classifiers: bool,
) -> Result<(Ebpf, Features)> {
    let classifiers = tc::PROGRAMS.iter().map(|(_, name)| *name).filter(|_| with_classifiers);
    let names: Vec<&str> =
        cgroup::HOOKS.into_iter().chain(classifiers).chain([FREE_SOCKET, socket_lookup::PROGRAM]).collect();
    let attempt = |features| try_load(pins, layouts, origins, options, features, &names);
    match attempt(Features { set_retval: true }) {
        Ok(ebpf) => Ok((ebpf, Features { set_retval: true })),
        // Try instead of comparing kernel versions: distributions backport features.
        Err(first) => match attempt(Features { set_retval: false }) {
            Ok(ebpf) => Ok((ebpf, Features { set_retval: false })),
            Err(_) => Err(first),
        },
    }
}

/// Loads programs for network devices that know the flows of both maps while `FLOWS` moves to a map of another size,
/// and begin flows in the old one, which all running programs know. After [`load`], over its maps. None if the
/// kernel refuses one.
pub(crate) fn load_bridge(
    pins: &Pins,
    layouts: &BTreeMap<String, MapLayout>,
    options: &ProgramOptions,
) -> Result<Option<[Classifier; 2]>> {
    let (current, staging) = (pins.current(), pins.staging());
    let path_of = |name: &str| match name {
        FLOWS => current.join(FLOWS),
        FLOWS_BEFORE => staging.join(FLOWS),
        _ => Some(staging.join(name)).filter(|path| path.exists()).unwrap_or_else(|| current.join(name)),
    };
    let names = tc::PROGRAMS.map(|(_, name)| name);
    // The feature is one of the cgroup's programs.
    let load = Load { path_of: &path_of, moves_flows: true, features: Features { set_retval: false }, sk_err: 0 };
    classifiers(&load_over(layouts, &load, options, &names)?)
}

/// Loads a program of ejection over the maps in service. None if the kernel refuses it.
pub(crate) fn load_ejection_program(
    program: EjectionProgram,
    pins: &Pins,
    layouts: &BTreeMap<String, MapLayout>,
    options: &ProgramOptions,
) -> Result<Option<Ebpf>> {
    let name = program.name();
    let sk_err = match program {
        EjectionProgram::Handshakes => Ok(0),
        EjectionProgram::Errors => ejection::sk_err(),
    };
    let Ok(sk_err) = sk_err else { return unless_refused(name, sk_err.map(drop)).map(|()| None) };
    let ebpf = load_in_service(pins, layouts, options, sk_err, &[name])?;
    let is_loaded = ebpf.program(name).is_some_and(|program| program.fd().is_ok());
    Ok(Some(ebpf).filter(|_| is_loaded))
}

/// Loads the programs for network devices over the maps in service. None if the kernel refuses one.
pub(crate) fn load_classifiers(
    pins: &Pins,
    layouts: &BTreeMap<String, MapLayout>,
    options: &ProgramOptions,
) -> Result<Option<[Classifier; 2]>> {
    classifiers(&load_in_service(pins, layouts, options, 0, &tc::PROGRAMS.map(|(_, name)| name))?)
}

/// Loads the programs `names` over the maps in service.
fn load_in_service(
    pins: &Pins,
    layouts: &BTreeMap<String, MapLayout>,
    options: &ProgramOptions,
    sk_err: u32,
    names: &[&str],
) -> Result<Ebpf> {
    let current = pins.current();
    let path_of = |name: &str| current.join(name);
    // The feature is one of programs that are not among these.
    let features = Features { set_retval: false };
    load_over(layouts, &Load { path_of: &path_of, moves_flows: false, features, sk_err }, options, names)
}

fn try_load(
    pins: &Pins,
    layouts: &BTreeMap<String, MapLayout>,
    origins: &BTreeMap<String, MapOrigin>,
    options: &ProgramOptions,
    features: Features,
    names: &[&str],
) -> Result<Ebpf> {
    let (current, staging) = (pins.current(), pins.staging());
    fs::create_dir_all(&staging).with_context(|| format!("making {}", staging.display()))?;
    let path_of = |name: &str| {
        let directory = if origins.get(name) == Some(&MapOrigin::Adopted) { &current } else { &staging };
        directory.join(name)
    };
    let moves_flows = origins.get(FLOWS) == Some(&MapOrigin::Resized);
    load_over(layouts, &Load { path_of: &path_of, moves_flows, features, sk_err: 0 }, options, names)
}

/// Maps and constants of a load.
struct Load<'a> {
    /// The pin of a map, which the load makes if it does not exist.
    path_of: &'a dyn Fn(&str) -> PathBuf,
    /// True if `FLOWS` may lack flows that `FLOWS_BEFORE` has.
    moves_flows: bool,
    features: Features,
    /// Offset of `sk_err` in the kernel's `struct sock`, for [`EjectionProgram::Errors`].
    sk_err: u32,
}

/// Loads the programs `names`.
fn load_over(
    layouts: &BTreeMap<String, MapLayout>,
    load: &Load<'_>,
    options: &ProgramOptions,
    names: &[&str],
) -> Result<Ebpf> {
    let (set_retval, generation) = (u8::from(load.features.set_retval), generation());
    // 0, before 5.14: the programs take the first network namespace for the node's.
    let host_netns = netns::cookie().unwrap_or(0);
    let flows = match MapInfo::from_pin((load.path_of)(FLOWS)) {
        Ok(pinned) => pinned.max_entries(),
        Err(_) => layouts.get(FLOWS).map_or(0, |layout| layout.max_entries),
    };
    let opening_slots = opening_slots(flows, cpus()?);
    let flows_move = u8::from(load.moves_flows);
    let mptcp_sock = u8::from(has_mptcp_sock());
    let probe_read = u8::from(has_probe_read());
    let answer_pings = u8::from(options.vip_pings == VipPings::Answer);
    let mut loader = EbpfLoader::new();
    loader
        .override_global("ANSWER_PINGS", &answer_pings, true)
        .override_global("FLOWS_MOVE", &flows_move, true)
        .override_global("OPENING_SLOTS", &opening_slots, true)
        .override_global("SET_RETVAL", &set_retval, true)
        .override_global("MPTCP_SOCK", &mptcp_sock, true)
        .override_global("PROBE_READ", &probe_read, true)
        .override_global("GENERATION", &generation, true)
        .override_global("HOST_NETNS", &host_netns, true)
        .override_global("SK_ERR", &load.sk_err, true)
        .override_global(aya_log::LEVEL, &(aya_log::Level::Warn as u8), true);
    for (name, layout) in layouts {
        loader.map_pin_path(name, (load.path_of)(name));
        if layout.max_entries > 0 {
            loader.map_max_entries(name, layout.max_entries);
        }
    }
    let mut ebpf = loader.load(OBJECT).context("loading the eBPF object")?;
    if let Some(name) = names.iter().find(|name| ebpf.program(name).is_none()) {
        bail!("the object lacks the program {name}");
    }
    // Verification is most of a start's time, and runs on one CPU per program.
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
        Program::SockOps(program) => return unless_refused(name, program.load().map_err(with_cause)),
        Program::SchedClassifier(program) => return unless_refused(name, program.load().map_err(with_cause)),
        Program::BtfTracePoint(program) => {
            let types = aya::Btf::from_sys_fs().context("reading the kernel's types");
            let loaded = types.and_then(|types| program.load(ERRORS_TRACEPOINT, &types).map_err(with_cause));
            return unless_refused(name, loaded);
        }
        Program::SkLookup(program) => {
            // A packet to a cluster IP tells of such a pod too.
            if program.load().is_err() {
                info!(
                    program = name,
                    "the kernel refuses the program, as those before 5.17 do: NodePorts of this node serve a pod \
                     without sockets after its first packet to a cluster IP"
                );
            }
            return Ok(());
        }
        other => bail!("program {name} has the unexpected type {:?}", other.prog_type()),
    };
    loaded.map_err(with_cause).with_context(|| format!("loading the program {name}"))
}

/// Reports the refusal of a program without which Services are served.
fn unless_refused(name: &str, loaded: Result<()>) -> Result<()> {
    if let Err(error) = loaded {
        warn!(program = name, "the kernel refuses the program, so {}: {error:#}", without(name));
    }
    Ok(())
}

/// Describes the effect of the lack of a program.
fn without(name: &str) -> &'static str {
    if name == FREE_SOCKET {
        "closed sockets of NFS and the like count as open"
    } else if name == EjectionProgram::Handshakes.name() {
        "no endpoint of TCP is ejected"
    } else if name == EjectionProgram::Errors.name() {
        "no endpoint of UDP is ejected, which needs Linux 5.14 and the kernel's types"
    } else {
        "clients outside of the node are not served"
    }
}

/// Puts cause and cure, if known, before an error of a program's load.
fn with_cause(error: ProgramError) -> anyhow::Error {
    let cause = match &error {
        ProgramError::LoadError { io_error, .. } => errors::explain(FailedCall::LoadProgram, io_error),
        _ => None,
    };
    let error = anyhow::Error::from(error);
    if let Some(cause) = cause { error.context(cause) } else { error }
}

/// Returns the number of CPUs that the machine may have.
fn cpus() -> Result<usize> {
    nr_cpus().map_err(|(_, error)| error).context("counting CPUs")
}

/// Returns the size of `FLOWS` for a number of CPUs: 32,768 flows for each, as kube-proxy sizes conntrack, and two
/// entries for a flow.
fn usual_flows(cpus: usize) -> u32 {
    const FOR_EACH_CPU: usize = 65_536;
    // The buckets alone take 64 MiB.
    const MAX: usize = 1 << 22;
    u32::try_from(cpus.saturating_mul(FOR_EACH_CPU).clamp(capacity::FLOWS, MAX)).unwrap_or(u32::MAX)
}

/// Returns the number of flows in `OPENING` for each of some CPUs: all of them are at most a quarter of `FLOWS`, where
/// each has two entries.
#[must_use]
pub(crate) fn opening_slots(flows: u32, cpus: usize) -> u32 {
    let all = (flows as usize / 8).min(capacity::OPENING);
    u32::try_from(all / cpus.max(1)).unwrap_or(0)
}

/// Returns a number that differs from load to load, and is not 0.
fn generation() -> u32 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the low bits are what differs")]
    let mixed = (now.tv_sec as u32).wrapping_mul(1_000_003) ^ now.tv_nsec as u32;
    mixed.max(1)
}

/// Returns the programs for network devices, which stay loaded without the object. None if one is not loaded.
pub(crate) fn classifiers(ebpf: &Ebpf) -> Result<Option<[Classifier; 2]>> {
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

/// Returns the program that frees the entry of a closed socket. None if the kernel refused it.
pub(crate) fn socket_freer(ebpf: &Ebpf) -> Result<Option<OwnedFd>> {
    let program = ebpf.program(FREE_SOCKET).with_context(|| format!("the object lacks the program {FREE_SOCKET}"))?;
    program.fd().ok().map(|fd| fd.as_fd().try_clone_to_owned()).transpose().context("keeping a program")
}

/// Returns the program at the look-up of sockets, and its id. None if the kernel refused it.
pub(crate) fn socket_lookup(ebpf: &Ebpf) -> Result<Option<(OwnedFd, u32)>> {
    let name = socket_lookup::PROGRAM;
    let program = ebpf.program(name).with_context(|| format!("the object lacks the program {name}"))?;
    let Program::SkLookup(program) = program else {
        return Err(anyhow!("program {name} has the unexpected type {:?}", program.prog_type()));
    };
    let Ok(fd) = program.fd() else {
        return Ok(None);
    };
    Ok(Some((fd.as_fd().try_clone_to_owned()?, program.info()?.id())))
}

/// Moves the pins of new maps from the staging directory to this version's directory. Does nothing a second time.
pub(crate) fn publish(pins: &Pins) -> Result<()> {
    let (current, staging) = (pins.current(), pins.staging());
    let entries = match fs::read_dir(&staging) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.with_context(|| format!("reading {}", staging.display()))?,
    };
    for entry in entries {
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

    #[test]
    fn the_map_of_flows_has_the_size_of_kube_proxys_conntrack_within_limits() {
        let flows = [1, 8, 16, 64, 1024].map(|cpus| usual_flows(cpus) / 2);
        assert_eq!(flows, [262_144, 262_144, 524_288, 2_097_152, 2_097_152]);
    }

    /// After a failure, raise `LAYOUT_VERSION` if it is still the released one, then run with `UPDATE_EXPECT=1`.
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
