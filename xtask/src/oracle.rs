//! Verb `oracle`: compares the answers of Beeline and of the real kube-proxy to random Services, for as many seeds as
//! asked. The comparison is lb-user's test `oracle`, of which `test` runs few seeds.

use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

use crate::build::{self, Link, Profile};
use crate::setup::{self, Need};
use crate::{kubernetes, run};

/// Arguments of `oracle`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Number of seeds; each is some 500 Services.
    #[arg(long, default_value_t = 20)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    first: u64,
}

/// Runs the verb. The last line is the count of seeds.
pub(crate) fn main(args: &Args) -> Result<ExitCode> {
    let tools = setup::ensure(Need::Bench, None)?;
    let assets = kubernetes::ensure_with(&[kubernetes::KUBE_PROXY])?;
    let built = build::build(&tools, Profile::Dev, Link::Dynamic, Some("oracle"))?;
    let mut command = Command::new(built.test.context("lb-user has no test `oracle`")?);
    let seeds = format!("{}..{}", args.first, args.first + args.seeds);
    command.env("KUBEBUILDER_ASSETS", assets).env("BEELINE_ORACLE_SEEDS", seeds).env("BEELINE_REQUIRE_KERNEL", "1");
    let status = run::stream(&mut command, run::print)?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
