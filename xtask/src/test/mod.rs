//! Verb `test`: every check that must pass, with a count as the last line. The checks themselves are in other files.
//!
//! First comes what all else is built on, with both cores for the compiler: the programs, the agents, the tests. Then
//! tests run beside each other, the long ones first. Each has namespaces, cgroups, pins and ports of its own. Jobs that
//! only compute, such as the lints, run beside them with a lower priority.

mod executables;
mod lanes;
mod report;

use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context, Result};

use crate::build::{Link, Profile};
use crate::build_ebpf::Layout;
use crate::setup::{self, Need};
use crate::tally::Tally;
use crate::toolchain::Kind;
use crate::{
    apt, build, build_ebpf, cluster_programs, deny, helm, kubernetes, prometheus, routing_daemons, run, systemd_unit,
    tidy, workspace,
};
use executables::Executable;
use lanes::Job;
use report::{Report, Row};

/// Arguments of `test`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Run only the tests whose names contain this; the other checks are not affected.
    filter: Option<String>,
    /// The compiler of the eBPF programs, rather than the best that there is.
    #[arg(long, value_enum)]
    toolchain: Option<Kind>,
}

/// Runs the verb. The last line is the count in any case.
pub(crate) fn main(args: &Args) -> ExitCode {
    let mut report = Report::default();
    if let Err(error) = run_all(args, &mut report) {
        eprintln!("error: {error:#}");
    }
    report.close()
}

/// An error means that later checks make no sense; a check that fails is only counted.
fn run_all(args: &Args, report: &mut Report) -> Result<()> {
    let tools = report.needed("setup", setup::ensure(Need::Test, args.toolchain))?;
    report.add(Row::of("tidy", tidy::check));
    report.add(Row::of("format of the workspace", || run::run(run::cargo().args(["fmt", "--all", "--check"]))));
    report.add(Row::of("format of lb-ebpf", || run::run(ebpf_cargo("fmt").arg("--check"))));
    report.must("build-ebpf", || build_ebpf::build(&tools, Layout::Own).map(drop))?;
    let mut next = None;
    report.add(Row::of("agent of the next layout", || {
        next = Some(build::build_next(&tools, Profile::Dev, Link::Dynamic)?);
        Ok(())
    }));
    // After the agent of the next layout: cargo puts either in the same place, and tests run this version's.
    let executables = report.must("compile the tests", executables::compile)?;
    let environment = environment(next)?;
    let filter = args.filter.as_deref();
    let mut jobs: Vec<Job<Row>> = vec![];
    let environment = &environment;
    let test = |executable| Job::new(move || tests_of(executable, filter, environment));
    let (computing, waiting): (Vec<_>, Vec<_>) = executables.iter().partition(|executable| executable.computes());
    jobs.extend(waiting.into_iter().map(test));
    jobs.extend([
        Job::new(|| Row::of("licences and sources of crates", deny::check)),
        Job::new(|| Row::where_possible("advisories about crates", deny::check_advisories)),
        Job::new(|| Row::of("systemd unit", systemd_unit::check)),
        Job::new(|| Row::of("alert rules", prometheus::check_alerts)),
        Job::new(|| Row::of("bpftool loads the object", load_with_bpftool)),
        Job::new(|| Row::of("documentation", documentation)),
        Job::new(|| {
            Row::of("clippy of lb-ebpf", || {
                run::run(&mut run::gently(ebpf_cargo("clippy").args(["--", "-D", "warnings"])))
            })
        }),
        Job::new(|| Row::of("clippy of the workspace", clippy)),
    ]);
    jobs.extend(computing.into_iter().map(test));
    lanes::run_all(jobs, lanes()).into_iter().for_each(|row| report.add(row));
    Ok(())
}

/// Jobs at once: as many as there are cores, within bounds. Long tests wait for half of their time, and some of them
/// measure how long connections take: more of them at once would only disturb each other.
fn lanes() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 4)
}

/// Runs one test program.
fn tests_of(executable: &Executable, filter: Option<&str>, environment: &[(&str, PathBuf)]) -> Row {
    counted(&executable.name, executable.command().args(filter).envs(environment.iter().cloned()))
}

/// Runs tests and counts them.
fn counted(name: &str, command: &mut Command) -> Row {
    let start = Instant::now();
    let mut tally = Tally::default();
    if let Err(error) = run::step(name, || executables::count(command, &mut tally)) {
        run::note(&format!("    {error:#}"));
    }
    Row { name: name.to_owned(), tally, took: start.elapsed() }
}

fn clippy() -> Result<()> {
    // The stories of the cluster are no part of `--all-targets`: no other check would compile them.
    [["--workspace", "--all-targets"].as_slice(), &["-p", "lb-user", "--test", "e2e"]].into_iter().try_for_each(
        |what| run::run(&mut run::gently(build::cargo().arg("clippy").args(what).args(["--", "-D", "warnings"]))),
    )
}

fn documentation() -> Result<()> {
    let mut cargo = build::cargo();
    cargo.args(["doc", "--no-deps", "--workspace"]).env("RUSTDOCFLAGS", "-Dwarnings");
    run::run(&mut run::gently(&cargo))
}

/// The object is for other loaders too: bpftool (libbpf) takes all programs and maps. Its pins are on a bpffs of their
/// own, which ends with the mount namespace.
fn load_with_bpftool() -> Result<()> {
    let bpftool = setup::bpftool().context("bpftool is not installed")?;
    let script = "mount -t bpf bpf /mnt && \"$0\" prog loadall \"$1\" /mnt/beeline";
    let mut unshare = Command::new("unshare");
    unshare.args(["--mount", "sh", "-ec", script]).arg(bpftool).arg(workspace::ebpf_object());
    run::run(&mut unshare)
}

/// Variables that tell the tests where the programs are that they need.
fn environment(next: Option<PathBuf>) -> Result<Vec<(&'static str, PathBuf)>> {
    let mut environment = vec![
        ("KUBEBUILDER_ASSETS", kubernetes::ensure_with(&[kubernetes::KUBE_PROXY])?),
        ("BEELINE_HELM", helm::ensure()?),
        ("BEELINE_PROMETHEUS", prometheus::ensure()?),
        ("BEELINE_BIRD", routing_daemons::ensure_bird()?),
        ("BEELINE_FRR", routing_daemons::ensure_frr()?),
        ("BEELINE_COREDNS", cluster_programs::ensure_coredns()?),
        ("BEELINE_EBPF_OBJECT", workspace::ebpf_object()),
    ];
    environment.extend(next.map(|next| ("BEELINE_NEXT_BIN", next)));
    if std::env::var_os("CI").is_some_and(|ci| ci == "true") || apt::is_root() {
        // A test that cannot use the kernel is a failure then, not a skip.
        environment.push(("BEELINE_REQUIRE_KERNEL", "1".into()));
    }
    Ok(environment)
}

/// Cargo on lb-ebpf with the toolchain that runs xtask, which has rustfmt and clippy but no `core` for BPF: the crate
/// is looked at as if it were for the host, which its dependencies allow.
fn ebpf_cargo(verb: &str) -> Command {
    let mut cargo = run::cargo();
    cargo.current_dir(workspace::root().join("lb-ebpf")).arg(verb);
    cargo.env("CARGO_TARGET_DIR", workspace::target_dir().join("ebpf-clippy"));
    cargo
}
