//! Verb `handover`: a node goes from a real kube-proxy to Beeline and back, under load, in each of kube-proxy's modes.

use std::process::ExitCode;

use anyhow::Result;

use crate::setup::{self, Need};
use crate::tally::Tally;
use crate::{build, build_ebpf, kubernetes, run};

/// Arguments of `handover`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Run only the modes whose names contain this.
    filter: Option<String>,
}

/// Runs the verb. The last line is the count.
pub(crate) fn main(args: &Args) -> Result<ExitCode> {
    let tools = setup::ensure(Need::Handover, None)?;
    run::step("build-ebpf", || build_ebpf::build(&tools, build_ebpf::Layout::Own).map(drop))?;
    let mut cargo = build::cargo();
    cargo.args(["test", "--package", "lb-user", "--test", "handover"]);
    if let Some(filter) = &args.filter {
        cargo.arg("--").arg(filter);
    }
    cargo.env("KUBEBUILDER_ASSETS", kubernetes::ensure_with(&[kubernetes::KUBE_PROXY])?);
    cargo.env("BEELINE_REQUIRE_KERNEL", "1");
    let mut tally = Tally::default();
    let status = run::stream(&mut cargo, |line| {
        run::print(line);
        tally += Tally::parse(line).unwrap_or_default();
    })?;
    if !status.success() && tally.failed == 0 {
        tally += Tally::FAIL;
    }
    run::print(&tally.closing_line());
    Ok(if tally.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
