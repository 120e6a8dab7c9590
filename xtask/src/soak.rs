//! Verb `soak`: runs the agent under churn, kills and floods, and counts what is left. The work is lb-user's test
//! `soak`.

use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

use crate::build::{self, Link, Profile};
use crate::run;
use crate::setup::{self, Need};

/// Arguments of `soak`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Time of the churn; counting takes some five minutes more.
    #[arg(long, value_name = "N", default_value_t = 60.0)]
    minutes: f64,
}

/// Runs the verb. Its last lines are the figures and the verdict.
pub(crate) fn main(args: &Args) -> Result<ExitCode> {
    let tools = setup::ensure(Need::Bench, None)?;
    let built = build::build(&tools, Profile::Dev, Link::Dynamic, Some("soak"))?;
    let mut command = Command::new(built.test.context("lb-user has no test `soak`")?);
    command.env("BEELINE_BIN", built.agent).args(["--minutes", &args.minutes.to_string()]);
    let status = run::stream(&mut command, run::print)?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
