//! Verb `kernels`: runs the stories under each older kernel that Beeline supports, and ends with a table of how they did.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::build::{self, Built, Link, Profile};
use crate::kernel_cache::{self, Series};
use crate::setup::{self, Need};
use crate::tally::Tally;
use crate::vm::Outcome;
use crate::{initramfs, run, vm, workspace};

/// Arguments of `kernels`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Boot these kernels only.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Series>,
    /// Take the static programs `beeline` and `stories` from this directory rather than building them.
    #[arg(long, value_name = "DIR")]
    programs: Option<PathBuf>,
    /// Run only the stories whose names contain this.
    filter: Option<String>,
}

/// Runs the verb.
pub(crate) fn main(args: &Args) -> Result<ExitCode> {
    let tools = setup::ensure(Need::Kernels, None)?;
    let (agent, stories) = match &args.programs {
        Some(dir) => (dir.join("beeline"), dir.join("stories")),
        None => {
            let Built { agent, test } = build::build(&tools, Profile::Release, Link::Static, Some("stories"))?;
            (agent, test.context("lb-user has no test `stories`")?)
        }
    };
    let all = kernel_cache::all();
    let chosen = all.iter().filter(|series| args.only.is_empty() || args.only.contains(series));
    let rows: Vec<Row> = chosen.map(|series| row(*series, &agent, &stories, args.filter.as_deref())).collect();
    Ok(close(&rows))
}

struct Row {
    series: Series,
    release: String,
    tally: Tally,
    lacks: Vec<String>,
}

/// What one kernel made of it. That it did not get there counts as a failure like any other.
fn row(series: Series, agent: &Path, stories: &Path, filter: Option<&str>) -> Row {
    let booted = run::step(&format!("kernel {series}"), || boot(series, agent, stories, filter));
    match booted {
        Ok(Outcome { release, tally, lacks, exit: Some(0) }) => Row { series, release, tally, lacks },
        Ok(Outcome { release, mut tally, lacks, exit }) => {
            if tally.failed == 0 {
                tally += Tally::FAIL;
            }
            if exit.is_none() {
                eprintln!("    it died, or did not end within {} s", vm::TIMEOUT.as_secs());
            }
            Row { series, release, tally, lacks }
        }
        Err(error) => {
            eprintln!("    {error:#}");
            Row { series, release: "did not boot".to_owned(), tally: Tally::FAIL, lacks: Vec::new() }
        }
    }
}

fn boot(series: Series, agent: &Path, stories: &Path, filter: Option<&str>) -> Result<Outcome> {
    let kernel = kernel_cache::ensure(series)?;
    let image = initramfs::build(&kernel, agent, stories, filter)?;
    let dir = workspace::target_dir().join("kernels");
    std::fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
    let initrd = dir.join(format!("{series}.cpio"));
    std::fs::write(&initrd, image).with_context(|| format!("writing {}", initrd.display()))?;
    vm::boot(&kernel.vmlinuz, &initrd)
}

fn close(rows: &[Row]) -> ExitCode {
    let mut sum = Tally::default();
    run::print("");
    run::print(&format!("{:<8} {:<32} {:>6} {:>6}   lacks", "kernel", "release", "passed", "failed"));
    for Row { series, release, tally, lacks } in rows {
        sum += *tally;
        let (name, Tally { passed, failed, .. }) = (series.to_string(), tally);
        run::print(&format!("{name:<8} {release:<32} {passed:>6} {failed:>6}   {}", lacks.join(", ")));
    }
    run::print("");
    run::print(&sum.closing_line());
    if sum.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
