//! The number of instructions that the kernel's verifier processes for each program, compared with a table in the tree:
//! a change that raises it much must update the table, long before a kernel refuses the program.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fmt::Write as _,
    fs,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use aya::{EbpfLoader, maps::MapData};
use aya_obj::{
    Function, Object, ProgramSection,
    btf::{Btf, BtfKind},
    generated::{bpf_attach_type, bpf_attr, bpf_cmd, bpf_insn, bpf_prog_type},
};
use lb_dataplane::upgrade::programs::{Features, OBJECT};
use lb_kernel::bpf::{has_mptcp_sock, has_probe_read};
use rustix::process::{Resource, Rlimit, setrlimit};

use crate::{Story, node::StoryNode, sockets::has_ingress_ifindex};

pub const STORIES: &[Story] = &[("verifier_instruction_counts_match_the_table", counts_match_the_table)];

/// Rows of kernel series, program, and instructions. `UPDATE_EXPECT=1` rewrites the rows of the running series.
const TABLE: &str = include_str!("../verifier.txt");

/// Prefix of output lines that the runner prints: rows of the table for this kernel.
pub const ROW: &str = "VERIFIED ";

/// Largest count allowed: a quarter of the kernel's limit (BPF_COMPLEXITY_LIMIT_INSNS, Linux 5.2). The walk is most
/// of the time of a start.
const MAX_COUNT: u32 = 250_000;

/// Octets of stack that functions share if they call each other (MAX_BPF_STACK).
const MAX_STACK: u32 = 512;

/// Major and minor number of a kernel.
type Series = (u32, u32);

fn parse_series(text: &str) -> Option<Series> {
    let mut numbers = text.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Parses the table, by series and program.
fn parse_table(text: &str) -> BTreeMap<Series, BTreeMap<&str, u32>> {
    let mut table = BTreeMap::<_, BTreeMap<_, _>>::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let words: Vec<_> = line.split_whitespace().collect();
        let [series, program, count] = words.as_slice() else { panic!("no row: {line}") };
        let series = parse_series(series).unwrap_or_else(|| panic!("no series: {line}"));
        table.entry(series).or_default().insert(*program, count.parse().expect("a number"));
    }
    table
}

/// Returns the series nearest to `to`.
fn nearest(series: impl Iterator<Item = Series>, to: Series) -> Option<Series> {
    let distance = |(major, minor): Series| (major.abs_diff(to.0), minor.abs_diff(to.1));
    series.min_by_key(|series| distance(*series))
}

/// Returns a message for each count that breaks the limits.
fn breaches(processed: &BTreeMap<String, u32>, table: &BTreeMap<&str, u32>) -> Vec<String> {
    let mut wrong = Vec::new();
    for (program, count) in processed {
        match table.get(program.as_str()) {
            None => wrong.push(format!("{program} is not in the table: {count}")),
            Some(known) if *count > known + known / 4 => {
                wrong.push(format!(
                    "{program}: {count} instructions, over a quarter more than the {known} of the table"
                ));
            }
            Some(_) => {}
        }
        if *count > MAX_COUNT {
            wrong.push(format!("{program}: {count} instructions, over a quarter of what kernels allow"));
        }
    }
    wrong
}

fn counts_match_the_table(node: &mut StoryNode) {
    check_limits();
    // Before Linux 5.11 programs count as locked memory; later a failure does not matter.
    let _refused = setrlimit(Resource::Memlock, Rlimit { current: None, maximum: None });
    let processed = instruction_counts(&node.pins);
    let uname = rustix::system::uname();
    let series = parse_series(&uname.release().to_string_lossy()).expect("a release begins with two numbers");
    let mut rows = String::new();
    for (program, count) in &processed {
        writeln!(rows, "{}.{} {program} {count}", series.0, series.1).expect("a String takes everything");
    }
    rows.lines().for_each(|row| println!("{ROW}{row}"));
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/verifier.txt");
        // A machine of another kernel does not have the tree: `cargo xtask kernels` reads the printed rows.
        if path.exists() {
            let own = format!("{}.{} ", series.0, series.1);
            let mut lines: Vec<&str> =
                TABLE.lines().filter(|line| !line.starts_with(&own)).chain(rows.lines()).collect();
            lines.sort_unstable();
            fs::write(path, lines.join("\n") + "\n").expect("the tree");
        }
        return;
    }
    let table = parse_table(TABLE);
    let nearest = nearest(table.keys().copied(), series).expect("a table with rows");
    let wrong = breaches(&processed, &table[&nearest]);
    assert!(
        wrong.is_empty(),
        "{}\nIf the rise is needed, set UPDATE_EXPECT=1 to rewrite lb-user/tests/verifier.txt, with \
         `cargo xtask kernels verifier` for other kernels",
        wrong.join("\n")
    );
}

/// Tests the limits themselves.
fn check_limits() {
    let wrong = |count: u32, known: u32| {
        let wrong = breaches(&BTreeMap::from([("a".to_owned(), count)]), &BTreeMap::from([("a", known)]));
        wrong.len()
    };
    assert_eq!(
        [wrong(125, 100), wrong(126, 100), wrong(MAX_COUNT, MAX_COUNT), wrong(MAX_COUNT + 1, MAX_COUNT)],
        [0, 1, 0, 1]
    );
    assert_eq!(breaches(&BTreeMap::from([("a".to_owned(), 1)]), &BTreeMap::new()).len(), 1);
    let series = [(5, 10), (6, 1), (6, 12), (6, 18)];
    for (of, is_like) in [((5, 15), (5, 10)), ((6, 2), (6, 1)), ((6, 17), (6, 18)), ((7, 1), (6, 1))] {
        assert_eq!(nearest(series.into_iter(), of), Some(is_like), "{of:?}");
    }
}

/// Loads each program as the agent does, and returns the number of instructions that the verifier processed.
fn instruction_counts(directory: &Path) -> BTreeMap<String, u32> {
    fs::create_dir_all(directory).expect("a directory in bpffs");
    let refused = match try_count(&directory.join("with"), Features { set_retval: true }) {
        Ok(processed) => return processed,
        Err(refused) => refused,
    };
    // Without bpf_set_retval, as the agent on a kernel that lacks it.
    let without = Features { set_retval: false };
    try_count(&directory.join("without"), without).unwrap_or_else(|error| panic!("{refused}\n{error}"))
}

fn try_count(directory: &Path, features: Features) -> Result<BTreeMap<String, u32>, String> {
    let mut object = Object::parse(OBJECT).expect("the object");
    let maps = std::mem::take(&mut object.maps);
    // Make the maps as the agent's loader does; pins find them again by name.
    let pin = |name: &str| -> PathBuf { directory.join(name.replace('.', "")) };
    fs::create_dir_all(directory).expect("a directory in bpffs");
    // The verifier does not walk what a constant shuts off: set them as the agent does.
    let (set_retval, mptcp_sock, opening_slots) = (u8::from(features.set_retval), u8::from(has_mptcp_sock()), 1024_u32);
    let probe_read = u8::from(has_probe_read());
    let mut loader = EbpfLoader::new();
    loader
        .override_global("SET_RETVAL", &set_retval, true)
        .override_global("MPTCP_SOCK", &mptcp_sock, true)
        .override_global("PROBE_READ", &probe_read, true)
        .override_global("OPENING_SLOTS", &opening_slots, true);
    for name in maps.keys() {
        loader.map_pin_path(name.as_str(), pin(name));
    }
    let _loaded = loader.load(OBJECT).map_err(|error| error.to_string())?;
    let pinned: Vec<_> =
        maps.iter().map(|(name, map)| (name, MapData::from_pin(pin(name)).expect("pinned"), map)).collect();
    let sections: HashSet<usize> = object.functions.keys().map(|(section, _)| *section).collect();
    let fds = pinned.iter().map(|(name, pinned, map)| {
        use std::os::fd::AsFd as _;
        (name.as_str(), pinned.fd().as_fd().as_raw_fd(), *map)
    });
    object.relocate_maps(fds, &sections).expect("maps of this object");
    object.relocate_calls(&sections).expect("calls within this object");
    let mut processed = BTreeMap::new();
    for (name, program) in &object.programs {
        let function = object.functions.get(&program.function_key()).expect("a program has code");
        let target = |kind, hook: bpf_attach_type| Target { kind, hook: hook as u32, kernel_type: 0 };
        let target = match program.section {
            ProgramSection::CgroupSockAddr { attach_type } => {
                target(bpf_prog_type::BPF_PROG_TYPE_CGROUP_SOCK_ADDR, attach_type.into())
            }
            ProgramSection::CgroupSock { attach_type } => {
                target(bpf_prog_type::BPF_PROG_TYPE_CGROUP_SOCK, attach_type.into())
            }
            ProgramSection::SockOps => {
                target(bpf_prog_type::BPF_PROG_TYPE_SOCK_OPS, bpf_attach_type::BPF_CGROUP_SOCK_OPS)
            }
            ProgramSection::SchedClassifier => {
                Target { kind: bpf_prog_type::BPF_PROG_TYPE_SCHED_CLS, hook: 0, kernel_type: 0 }
            }
            ProgramSection::BtfTracePoint => match errors_tracepoint() {
                Some(kernel_type) => Target {
                    kernel_type,
                    ..target(bpf_prog_type::BPF_PROG_TYPE_TRACING, bpf_attach_type::BPF_TRACE_RAW_TP)
                },
                None => {
                    println!("LACKS the tracepoint of {name}");
                    continue;
                }
            },
            // The agent does without it on older kernels.
            ProgramSection::SkLookup if !has_ingress_ifindex() => continue,
            ProgramSection::SkLookup => target(bpf_prog_type::BPF_PROG_TYPE_SK_LOOKUP, bpf_attach_type::BPF_SK_LOOKUP),
            ref other => panic!("{name} has an unknown section: {other:?}"),
        };
        processed.insert(name.clone(), verify(target, function).map_err(|error| format!("{name}: {error}"))?);
    }
    Ok(processed)
}

/// Type and hook of a program.
#[derive(Clone, Copy)]
struct Target {
    kind: bpf_prog_type,
    hook: u32,
    /// Id of the type of a tracepoint; else 0.
    kernel_type: u32,
}

/// Returns the id of the type of the tracepoint of sockets' errors, if the kernel has it (Linux 5.14).
pub fn errors_tracepoint() -> Option<u32> {
    Btf::from_sys_fs().ok()?.id_by_type_name_kind("btf_trace_inet_sk_error_report", BtfKind::Typedef).ok()
}

/// Loads a program and returns the number of processed instructions from the verifier's log (bpf_prog_info has it only
/// since Linux 5.16).
fn verify(target: Target, function: &Function) -> Result<u32, String> {
    const STATISTICS: u32 = 4;
    const INSTRUCTIONS: u32 = 1;
    let with_statistics = load(target, function, STATISTICS, 1 << 16);
    let (error, log) = match with_statistics {
        Ok(log) => {
            let stack = combined_stack(&function.instructions, &stack_depths(&log));
            if stack > MAX_STACK {
                return Err(format!("functions that call each other have {stack} octets of stack, over {MAX_STACK}"));
            }
            let count = log.split_once("processed ").and_then(|(_, rest)| rest.split(' ').next()?.parse().ok());
            return count.ok_or_else(|| format!("no count in the log: {log}"));
        }
        Err(refused) => refused,
    };
    // Again, for the way to the refused instruction.
    let way = match load(target, function, INSTRUCTIONS, 1 << 24) {
        Ok(_) => String::new(),
        Err((_, way)) => way,
    };
    let lines: Vec<&str> = way.lines().collect();
    let last = lines.get(lines.len().saturating_sub(60)..).unwrap_or_default().join("\n");
    Err(format!("{error}\n{log}\n{last}"))
}

/// Octets of stack of each function, in the order of the functions, from the verifier's statistics.
fn stack_depths(log: &str) -> Vec<u32> {
    let line = log.lines().find_map(|line| line.strip_prefix("stack depth ")).unwrap_or_default();
    let depths = line.split(['+', ' ']).map_while(|depth| depth.parse().ok());
    depths.collect()
}

/// Returns the largest sum of the stacks of functions that call each other, each rounded up to 32 octets, as kernels
/// without a private stack for programs (before Linux 6.13) compute it (`check_max_stack_depth`). Those of 6.13 and
/// later accept more.
fn combined_stack(instructions: &[bpf_insn], depths: &[u32]) -> u32 {
    const CALL: u8 = 0x85;
    const OF_PROGRAM: u8 = 1;
    let target = |(at, instruction): (usize, &bpf_insn)| {
        let is_call = instruction.code == CALL && instruction.src_reg() == OF_PROGRAM;
        is_call.then(|| at.checked_add_signed(instruction.imm as isize + 1)).flatten().map(|to| (at, to))
    };
    let calls: Vec<(usize, usize)> = instructions.iter().enumerate().filter_map(target).collect();
    let starts: Vec<usize> =
        [0].into_iter().chain(calls.iter().map(|(_, to)| *to)).collect::<BTreeSet<_>>().into_iter().collect();
    assert_eq!(starts.len(), depths.len(), "a stack for each function");
    let function_of = |at: usize| starts.partition_point(|start| *start <= at) - 1;
    let mut callees = vec![BTreeSet::new(); starts.len()];
    for (from, to) in calls {
        callees[function_of(from)].insert(function_of(to));
    }
    fn deepest(function: usize, callees: &[BTreeSet<usize>], depths: &[u32]) -> u32 {
        let below = callees[function].iter().map(|callee| deepest(*callee, callees, depths)).max().unwrap_or(0);
        depths[function].max(1).next_multiple_of(32) + below
    }
    deepest(0, &callees, depths)
}

/// Loads a program; the verifier's log, with the error if it refuses.
fn load(target: Target, function: &Function, level: u32, size: usize) -> Result<String, (std::io::Error, String)> {
    let mut log = vec![0_u8; size];
    #[expect(unsafe_code, reason = "a raw system call: aya does not return the log of a loaded program")]
    // SAFETY: bpf_attr is a union of integers, and this command reads the part that is written here. The buffers
    // outlive the call, and the new descriptor has no other owner.
    let loaded = unsafe {
        let mut attr = std::mem::zeroed::<bpf_attr>();
        let load = &mut attr.__bindgen_anon_3;
        load.prog_type = target.kind as u32;
        load.expected_attach_type = target.hook;
        load.attach_btf_id = target.kernel_type;
        load.insns = function.instructions.as_ptr() as u64;
        load.insn_cnt = u32::try_from(function.instructions.len()).expect("a program fits");
        load.license = c"GPL".as_ptr() as u64;
        load.log_level = level;
        load.log_buf = log.as_mut_ptr() as u64;
        load.log_size = u32::try_from(log.len()).expect("small");
        let size = std::mem::size_of::<bpf_attr>();
        let fd = libc::syscall(libc::SYS_bpf, bpf_cmd::BPF_PROG_LOAD as libc::c_ulong, &raw mut attr, size);
        i32::try_from(fd).ok().filter(|fd| *fd >= 0).map(|fd| OwnedFd::from_raw_fd(fd))
    };
    let error = std::io::Error::last_os_error();
    let log = String::from_utf8_lossy(&log).trim_end_matches('\0').to_owned();
    if loaded.is_none() { Err((error, log)) } else { Ok(log) }
}
