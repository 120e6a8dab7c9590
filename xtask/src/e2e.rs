//! Verb `e2e`: makes the image, gathers the programs of a cluster of two real nodes, and runs lb-user's test `e2e`
//! there.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

use crate::build::{self, Built, Link, Profile};
use crate::cni::Cni;
use crate::setup::{self, Need};
use crate::tally::Tally;
use crate::{cluster_programs, image, run, workspace};

/// Image of the pods of the stories.
const PODS: &str = "beeline-e2e";

/// Programs of MetalLB, each with an image of its own.
const METALLB: [&str; 2] = ["speaker", "controller"];

/// Arguments of `e2e`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Run only the stories whose names contain this.
    filter: Option<String>,
    /// The network of the pods.
    #[arg(long, value_enum, default_value = "ptp")]
    cni: Cni,
}

/// Runs the verb. The last line is the count.
pub(crate) fn main(args: &Args) -> Result<ExitCode> {
    let mut command = command(args.cni)?;
    command.args(&args.filter);
    let mut tally = Tally::default();
    let status = run::stream(&mut command, |line| {
        run::print(line);
        if let Some(counted) = Tally::parse(line) {
            tally += counted;
        }
    })?;
    // A filter that fits no story has shown nothing.
    if (!status.success() || tally.passed == 0) && tally.failed == 0 {
        tally += Tally::FAIL;
    }
    run::print(&tally.closing_line());
    Ok(if tally.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The program of the stories; its environment names the programs that it needs, which are built first.
pub(crate) fn command(cni: Cni) -> Result<Command> {
    let tools = setup::ensure(Need::E2e, None)?;
    let programs = cluster_programs::ensure(cni)?;
    let Built { agent, test } = build::build(&tools, Profile::Release, Link::Static, Some("e2e"))?;
    let stories = test.context("lb-user has no test `e2e`")?;
    let assets = workspace::target_dir().join("e2e");
    run::step("images", || gather(&assets, &programs, &agent, &stories))?;
    let mut command = Command::new(assets.join("e2e"));
    command.env("BEELINE_CLUSTER_ASSETS", &assets).env("BEELINE_BIN", assets.join("beeline"));
    let (variable, name) = cni.variable();
    command.env(variable, name).env("BEELINE_DEPLOY", workspace::root().join("deploy"));
    Ok(command)
}

/// One directory with all that the cluster needs: links to its programs, and the images.
fn gather(assets: &Path, programs: &[PathBuf], agent: &Path, stories: &Path) -> Result<()> {
    if assets.exists() {
        std::fs::remove_dir_all(assets).with_context(|| format!("removing {}", assets.display()))?;
    }
    std::fs::create_dir_all(assets).with_context(|| format!("making {}", assets.display()))?;
    for dir in programs {
        for entry in std::fs::read_dir(dir).with_context(|| format!("listing {}", dir.display()))?.flatten() {
            let link = assets.join(entry.file_name());
            std::os::unix::fs::symlink(entry.path(), &link).with_context(|| format!("linking {}", link.display()))?;
        }
    }
    let write = |file: &str, name: &str, program: &str, path: &Path| {
        let bytes = image::strip(path, &assets.join(program))?;
        let archive = image::write(name, image::architecture()?, (program, &bytes), &["pause"])?;
        std::fs::write(assets.join(file), archive.bytes).with_context(|| format!("writing {file}"))
    };
    for program in METALLB {
        // The link to the program gives way to a copy.
        let path = std::fs::canonicalize(assets.join(program)).with_context(|| format!("finding {program}"))?;
        std::fs::remove_file(assets.join(program)).with_context(|| format!("removing a link to {program}"))?;
        write(&format!("metallb-{program}.tar"), &format!("metallb-{program}"), program, &path)?;
    }
    write("e2e.tar", PODS, "e2e", stories)?;
    let bytes = image::strip(agent, &assets.join(image::NAME))?;
    let archive = image::write(image::NAME, image::architecture()?, (image::NAME, &bytes), &[])?;
    std::fs::write(assets.join("beeline.tar"), archive.bytes).context("writing beeline.tar")
}
