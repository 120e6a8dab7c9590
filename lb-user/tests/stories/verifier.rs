//! How many instructions the kernel's verifier walks for each program, against a table that is kept in the tree: a change that
//! makes it walk much further must say so there, long before some kernel refuses the program.

use lb_dataplane::upgrade::programs::OBJECT;
use std::{
    collections::{BTreeMap, HashSet},
    fmt::Write as _,
    fs,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use aya::{EbpfLoader, maps::MapData};
use aya_obj::{
    Function, Object, ProgramSection,
    generated::{bpf_attach_type, bpf_attr, bpf_cmd, bpf_prog_type},
};
use rustix::process::{Resource, Rlimit, setrlimit};

use crate::{Story, node::Node};

pub const STORIES: &[Story] = &[("verifier_walks_as_far_as_the_table_says", as_far_as_the_table_says)];

/// Rows of series of kernels, program, and instructions; `UPDATE_EXPECT=1` renews those of the series that runs.
const TABLE: &str = include_str!("../verifier.txt");

/// What the runner passes on of a story's output: a row of the table, as this kernel has it.
pub const ROW: &str = "VERIFIED ";

/// No program may come nearer to the kernel's limit, which is twice as much (BPF_COMPLEXITY_LIMIT_INSNS, Linux 5.2).
const MOST: u32 = 500_000;

/// Major and minor number of a kernel.
type Series = (u32, u32);

fn parse_series(text: &str) -> Option<Series> {
    let mut numbers = text.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// By series and program.
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

/// Of the series in the table that which is nearest.
fn nearest(series: impl Iterator<Item = Series>, to: Series) -> Option<Series> {
    let far = |(major, minor): Series| (major.abs_diff(to.0), minor.abs_diff(to.1));
    series.min_by_key(|series| far(*series))
}

/// What is wrong with these counts.
fn judge(walked: &BTreeMap<String, u32>, table: &BTreeMap<&str, u32>) -> Vec<String> {
    let mut wrong = Vec::new();
    for (program, count) in walked {
        match table.get(program.as_str()) {
            None => wrong.push(format!("{program} is not in the table: {count}")),
            Some(known) if *count > known + known / 4 => {
                wrong.push(format!(
                    "{program}: {count} instructions, over a quarter more than the {known} of the table"
                ));
            }
            Some(_) => {}
        }
        if *count > MOST {
            wrong.push(format!("{program}: {count} instructions, over half of what kernels allow"));
        }
    }
    wrong
}

fn as_far_as_the_table_says(node: &mut Node) {
    judges();
    // Before 5.11 programs count as locked memory; later it does not matter whether this process may.
    let _refused = setrlimit(Resource::Memlock, Rlimit { current: None, maximum: None });
    let walked = walk(&node.pins);
    let uname = rustix::system::uname();
    let series = parse_series(&uname.release().to_string_lossy()).expect("a release begins with two numbers");
    let mut rows = String::new();
    for (program, count) in &walked {
        writeln!(rows, "{}.{} {program} {count}", series.0, series.1).expect("memory");
    }
    rows.lines().for_each(|row| println!("{ROW}{row}"));
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/verifier.txt");
        // On another kernel's machine the tree is not there: whoever booted it reads the rows.
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
    let wrong = judge(&walked, &table[&nearest]);
    assert!(
        wrong.is_empty(),
        "{}\nIf it must be: UPDATE_EXPECT=1 renews lb-user/tests/verifier.txt, with `cargo xtask kernels verifier` for other kernels",
        wrong.join("\n")
    );
}

/// The rules themselves, where nothing is near a limit.
fn judges() {
    let wrong = |count: u32, known: u32| {
        let wrong = judge(&BTreeMap::from([("a".to_owned(), count)]), &BTreeMap::from([("a", known)]));
        wrong.len()
    };
    assert_eq!([wrong(125, 100), wrong(126, 100), wrong(MOST, MOST), wrong(MOST + 1, MOST)], [0, 1, 0, 1]);
    assert_eq!(judge(&BTreeMap::from([("a".to_owned(), 1)]), &BTreeMap::new()).len(), 1);
    let series = [(5, 10), (6, 1), (6, 12), (6, 18)];
    for (of, is_like) in [((5, 15), (5, 10)), ((6, 2), (6, 1)), ((6, 17), (6, 18)), ((7, 1), (6, 1))] {
        assert_eq!(nearest(series.into_iter(), of), Some(is_like), "{of:?}");
    }
}

/// Loads each program as the agent does; how many instructions the verifier walked.
fn walk(directory: &Path) -> BTreeMap<String, u32> {
    fs::create_dir_all(directory).expect("a directory in bpffs");
    let refused = match try_walk(&directory.join("with"), 1) {
        Ok(walked) => return walked,
        Err(refused) => refused,
    };
    // As the agent where the kernel has no bpf_set_retval.
    try_walk(&directory.join("without"), 0).unwrap_or_else(|error| panic!("{refused}\n{error}"))
}

fn try_walk(directory: &Path, set_retval: u8) -> Result<BTreeMap<String, u32>, String> {
    let mut object = Object::parse(OBJECT).expect("the object");
    let maps = std::mem::take(&mut object.maps);
    // The maps as the agent's loader makes them; a pin says which is which.
    let pin = |name: &str| -> PathBuf { directory.join(name.replace('.', "")) };
    fs::create_dir_all(directory).expect("a directory in bpffs");
    let mut loader = EbpfLoader::new();
    loader.override_global("SET_RETVAL", &set_retval, true);
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
    let mut walked = BTreeMap::new();
    for (name, program) in &object.programs {
        let function = object.functions.get(&program.function_key()).expect("a program has code");
        let (kind, hook) = match program.section {
            ProgramSection::CgroupSockAddr { attach_type } => {
                (bpf_prog_type::BPF_PROG_TYPE_CGROUP_SOCK_ADDR, bpf_attach_type::from(attach_type) as u32)
            }
            ProgramSection::CgroupSock { attach_type } => {
                (bpf_prog_type::BPF_PROG_TYPE_CGROUP_SOCK, bpf_attach_type::from(attach_type) as u32)
            }
            ProgramSection::SchedClassifier => (bpf_prog_type::BPF_PROG_TYPE_SCHED_CLS, 0),
            ref other => panic!("{name} is of a kind that is not known here: {other:?}"),
        };
        walked.insert(name.clone(), verify(kind, hook, function).map_err(|error| format!("{name}: {error}"))?);
    }
    Ok(walked)
}

/// Has a program verified; how many instructions that took, as the verifier's log says it. (bpf_prog_info says so too, but
/// since Linux 5.16 only.)
fn verify(kind: bpf_prog_type, hook: u32, function: &Function) -> Result<u32, String> {
    const STATISTICS: u32 = 4;
    let mut log = vec![0_u8; 1 << 16];
    #[expect(unsafe_code, reason = "a raw system call, as aya keeps the log of a program that is loaded to itself")]
    // SAFETY: bpf_attr is a union of integers, of which this command reads the part that is written here; what it points to
    // lives as long as the call, and the descriptor is a new one of ours.
    let loaded = unsafe {
        let mut attr = std::mem::zeroed::<bpf_attr>();
        let load = &mut attr.__bindgen_anon_3;
        load.prog_type = kind as u32;
        load.expected_attach_type = hook;
        load.insns = function.instructions.as_ptr() as u64;
        load.insn_cnt = u32::try_from(function.instructions.len()).expect("a program fits");
        load.license = c"GPL".as_ptr() as u64;
        load.log_level = STATISTICS;
        load.log_buf = log.as_mut_ptr() as u64;
        load.log_size = u32::try_from(log.len()).expect("small");
        let size = std::mem::size_of::<bpf_attr>();
        let fd = libc::syscall(libc::SYS_bpf, bpf_cmd::BPF_PROG_LOAD as libc::c_ulong, &raw mut attr, size);
        i32::try_from(fd).ok().filter(|fd| *fd >= 0).map(|fd| OwnedFd::from_raw_fd(fd))
    };
    let error = std::io::Error::last_os_error();
    let log = String::from_utf8_lossy(&log);
    let log = log.trim_end_matches('\0');
    if loaded.is_none() {
        return Err(format!("{error}\n{log}"));
    }
    let count = log.split_once("processed ").and_then(|(_, rest)| rest.split(' ').next()?.parse().ok());
    count.ok_or_else(|| format!("its log does not say it: {log}"))
}
