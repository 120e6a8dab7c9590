//! Verb `kernels`: runs the stories under each older kernel that Beeline supports, and ends with a table of the
//! results.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::build::{self, Built, Link, Profile};
use crate::initramfs::Inside;
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
    /// Take the programs `beeline`, `beeline-next` and `stories` from this directory rather than building them.
    #[arg(long, value_name = "DIR")]
    programs: Option<PathBuf>,
    /// Boot with net.core.bpf_jit_harden=2: constants of programs are blinded, also those of root.
    #[arg(long)]
    harden: bool,
    /// Run only the stories whose names contain this.
    filter: Option<String>,
}

/// Runs the verb.
pub(crate) fn main(args: &Args) -> Result<ExitCode> {
    let tools = setup::ensure(Need::Kernels, None)?;
    let (agent, next, stories) = match &args.programs {
        Some(dir) => (dir.join("beeline"), dir.join("beeline-next"), dir.join("stories")),
        None => {
            let next = build::build_next(&tools, Profile::Release, Link::Static)?;
            let Built { agent, test } = build::build(&tools, Profile::Release, Link::Static, Some("stories"))?;
            (agent, next, test.context("lb-user has no test `stories`")?)
        }
    };
    let is_update = std::env::var_os("UPDATE_EXPECT").is_some();
    let inside = Inside { agent, next, stories, filter: args.filter.clone(), is_hardened: args.harden, is_update };
    let all = kernel_cache::all();
    let chosen = all.iter().filter(|series| args.only.is_empty() || args.only.contains(series));
    let rows: Vec<Row> = chosen.map(|series| row(*series, &inside)).collect();
    Ok(close(&rows))
}

struct Row {
    series: Series,
    release: String,
    tally: Tally,
    lacks: Vec<String>,
}

/// The result of one kernel. A kernel that does not boot counts as a failure.
fn row(series: Series, inside: &Inside) -> Row {
    let booted = run::step(&format!("kernel {series}"), || boot(series, inside));
    match booted {
        Ok(Outcome { release, tally, lacks, verified, exit: Some(0) }) => {
            if inside.is_update
                && let Err(error) = renew_table(&verified)
            {
                run::note(&format!("    {error:#}"));
            }
            Row { series, release, tally, lacks }
        }
        Ok(Outcome { release, mut tally, lacks, exit, .. }) => {
            if tally.failed == 0 {
                tally += Tally::FAIL;
            }
            if exit.is_none() {
                run::note(&format!("    it died, or did not end within {} s", vm::TIMEOUT.as_secs()));
            }
            Row { series, release, tally, lacks }
        }
        Err(error) => {
            run::note(&format!("    {error:#}"));
            Row { series, release: "did not boot".to_owned(), tally: Tally::FAIL, lacks: Vec::new() }
        }
    }
}

fn boot(series: Series, inside: &Inside) -> Result<Outcome> {
    let kernel = kernel_cache::ensure(series)?;
    let image = initramfs::build(&kernel, inside)?;
    let dir = workspace::target_dir().join("kernels");
    std::fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
    let initrd = dir.join(format!("{series}.cpio"));
    std::fs::write(&initrd, image).with_context(|| format!("writing {}", initrd.display()))?;
    vm::boot(&kernel.vmlinuz, &initrd)
}

/// Puts rows into the table of the verifier's work, each in the place of the row of the same kernel and program.
fn renew_table(rows: &[String]) -> Result<()> {
    let path = workspace::root().join("lb-user/tests/verifier.txt");
    let table = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    std::fs::write(&path, renewed(&table, rows)).with_context(|| format!("writing {}", path.display()))
}

fn renewed(table: &str, rows: &[String]) -> String {
    let key = |row: &str| row.rsplit_once(' ').map(|(key, _)| key.to_owned());
    let new: Vec<_> = rows.iter().map(|row| key(row)).collect();
    let mut lines: Vec<&str> =
        table.lines().filter(|line| line.starts_with('#') || !new.contains(&key(line))).collect();
    lines.extend(rows.iter().map(String::as_str));
    lines.sort_unstable();
    lines.join("\n") + "\n"
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_the_table_are_renewed_and_the_others_stay() {
        let rows = ["6.1 a 7".to_owned(), "6.1 c 8".to_owned()];
        assert_eq!(
            renewed("# Head\n6.1 a 1\n6.1 b 2\n6.12 a 3\n", &rows),
            "# Head\n6.1 a 7\n6.1 b 2\n6.1 c 8\n6.12 a 3\n"
        );
    }
}
