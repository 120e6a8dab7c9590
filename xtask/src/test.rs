//! Verb `test`: every check that must pass, one after the other, with a count as the last line. The checks are elsewhere.

use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::build::{Link, Profile};
use crate::build_ebpf::Layout;
use crate::setup::{self, Need};
use crate::tally::Tally;
use crate::toolchain::Kind;
use crate::{apt, build, build_ebpf, deny, helm, kubernetes, prometheus, run, systemd_unit, tidy, workspace};

/// Arguments of `test`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Run only the tests whose names contain this; the other checks are not affected.
    filter: Option<String>,
    /// The compiler of the eBPF programs, rather than the best that there is.
    #[arg(long, value_enum)]
    toolchain: Option<Kind>,
}

/// Runs the verb. Whatever happens, the last line is the count.
pub(crate) fn main(args: &Args) -> ExitCode {
    let mut report = Report::default();
    if let Err(error) = run_all(args, &mut report) {
        eprintln!("error: {error:#}");
    }
    report.close()
}

/// An error means that what follows makes no sense any more; a check that fails is only counted.
fn run_all(args: &Args, report: &mut Report) -> Result<()> {
    let tools = report.must("setup", setup::ensure(Need::Test, args.toolchain))?;
    report.check("tidy", tidy::check);
    report.check("licences and sources of crates", deny::check);
    report.check_where_possible("advisories about crates", deny::check_advisories);
    report.check("systemd unit", systemd_unit::check);
    report.check("alert rules", prometheus::check_alerts);
    report.check("format of the workspace", || run::run(run::cargo().args(["fmt", "--all", "--check"])));
    report.check("format of lb-ebpf", || run::run(ebpf_cargo("fmt").arg("--check")));
    report.must_check("build-ebpf", || build_ebpf::build(&tools, Layout::Own).map(drop))?;
    report.check("bpftool loads the object", load_with_bpftool);
    report.check("clippy of lb-ebpf", || run::run(ebpf_cargo("clippy").args(["--", "-D", "warnings"])));
    report.check("clippy of the workspace", || {
        let args = ["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"];
        run::run(build::cargo().args(args))
    });
    let mut next = None;
    report.check("agent of the next layout", || {
        next = Some(build::build_next(&tools, Profile::Dev, Link::Dynamic)?);
        Ok(())
    });
    report.tests("cargo test", cargo_test(args.filter.as_deref())?.envs(next.map(|next| ("BEELINE_NEXT_BIN", next))));
    report.check("documentation", || {
        let args = ["doc", "--no-deps", "--workspace"];
        run::run(build::cargo().args(args).env("RUSTDOCFLAGS", "-Dwarnings"))
    });
    Ok(())
}

/// The object is for other loaders too: bpftool (libbpf) takes all programs and maps. Its pins are on a bpffs of their own,
/// which ends with the mount namespace.
fn load_with_bpftool() -> Result<()> {
    let bpftool = setup::bpftool().context("bpftool is not installed")?;
    let script = "mount -t bpf bpf /mnt && \"$0\" prog loadall \"$1\" /mnt/beeline";
    let mut unshare = Command::new("unshare");
    unshare.args(["--mount", "sh", "-ec", script]).arg(bpftool).arg(workspace::ebpf_object());
    run::run(&mut unshare)
}

/// All tests of the workspace, examples in the documentation included.
fn cargo_test(filter: Option<&str>) -> Result<Command> {
    let mut cargo = build::cargo();
    cargo.args(["test", "--workspace", "--no-fail-fast"]).args(filter);
    cargo.env("KUBEBUILDER_ASSETS", kubernetes::ensure_with(&[kubernetes::KUBE_PROXY])?);
    cargo.env("BEELINE_HELM", helm::ensure()?).env("BEELINE_PROMETHEUS", prometheus::ensure()?);
    if std::env::var_os("CI").is_some_and(|ci| ci == "true") || apt::is_root() {
        // A test that cannot use the kernel is a failure then, not a skip.
        cargo.env("BEELINE_REQUIRE_KERNEL", "1");
    }
    Ok(cargo)
}

/// Cargo on lb-ebpf with the toolchain that runs xtask, which has rustfmt and clippy but no `core` for BPF: the crate is
/// looked at as if it were for the host, which its dependencies allow.
fn ebpf_cargo(verb: &str) -> Command {
    let mut cargo = run::cargo();
    cargo.current_dir(workspace::root().join("lb-ebpf")).arg(verb);
    cargo.env("CARGO_TARGET_DIR", workspace::target_dir().join("ebpf-clippy"));
    cargo
}

#[derive(Default)]
struct Report {
    rows: Vec<Row>,
}

struct Row {
    name: String,
    tally: Tally,
    took: Duration,
}

impl Report {
    /// Does a check and counts it.
    fn check(&mut self, name: &str, work: impl FnOnce() -> Result<()>) {
        drop(self.must_check(name, work));
    }

    /// Does a check that needs what not every machine reaches: the reason why it could not be done is told, and it counts as not
    /// run.
    fn check_where_possible(&mut self, name: &str, work: impl FnOnce() -> Result<Option<String>>) {
        let start = Instant::now();
        let tally = match run::step(name, work) {
            Ok(None) => Tally::PASS,
            Ok(Some(reason)) => {
                eprintln!("    {name}: NOT CHECKED: {reason}");
                Tally { ignored: 1, ..Tally::default() }
            }
            Err(error) => {
                eprintln!("    {error:#}");
                Tally::FAIL
            }
        };
        self.rows.push(Row { name: name.to_owned(), tally, took: start.elapsed() });
    }

    /// Does a check, counts it, and fails if it does: for what the rest is built on.
    fn must_check(&mut self, name: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
        let start = Instant::now();
        let result = run::step(name, work);
        let tally = if result.is_ok() { Tally::PASS } else { Tally::FAIL };
        self.rows.push(Row { name: name.to_owned(), tally, took: start.elapsed() });
        if let Err(error) = &result {
            eprintln!("    {error:#}");
        }
        result.with_context(|| format!("{name} failed"))
    }

    /// Counts something only if it failed.
    fn must<T>(&mut self, name: &str, result: Result<T>) -> Result<T> {
        if result.is_err() {
            self.rows.push(Row { name: name.to_owned(), tally: Tally::FAIL, took: Duration::ZERO });
        }
        result
    }

    /// Runs tests, shows what they print as it comes, and counts what they say.
    fn tests(&mut self, name: &str, command: &mut Command) {
        let start = Instant::now();
        let mut tally = Tally::default();
        let result = run::step(name, || {
            let status = run::stream(command, |line| {
                run::print(line);
                tally += Tally::parse(line).unwrap_or_default();
            })?;
            if !status.success() {
                bail!("ended with {status}");
            }
            Ok(())
        });
        if result.is_err() && tally.failed == 0 {
            // It did not compile, or a test program died without a count.
            tally += Tally::FAIL;
        }
        self.rows.push(Row { name: name.to_owned(), tally, took: start.elapsed() });
    }

    fn close(&self) -> ExitCode {
        let mut sum = Tally::default();
        eprintln!();
        for row in &self.rows {
            sum += row.tally;
            let Tally { passed, failed, ignored } = row.tally;
            let mark = if failed == 0 { "ok    " } else { "FAILED" };
            let ignored = if ignored == 0 { String::new() } else { format!(", {ignored} not run") };
            let took = row.took.as_secs_f64();
            eprintln!("  {mark} {:<28} {took:>7.1} s   {passed} passed, {failed} failed{ignored}", row.name);
        }
        run::print(&sum.closing_line());
        if sum.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}
