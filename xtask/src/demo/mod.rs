//! Verb `demo`: builds Beeline and shows it at work in namespaces of its own. The output is real and checked: the verb
//! fails if a check does. The sections are in the files of `demo/`.

mod changes;
mod cleanup;
mod clients;
mod dns;
mod environment;
mod options;
pub(crate) mod process;
mod render;
mod sections;
mod servers;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, ensure};

use crate::build::{self, Link, Profile};
use crate::setup::{self, Need};
use crate::toolchain::Kind;
use crate::{apt, run};

use environment::Environment;
use render::Renderer;
use sections::Demo;

/// Arguments of `demo`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The compiler of the eBPF programs [default: the best that is installed]
    #[arg(long, value_enum)]
    toolchain: Option<Kind>,
}

/// Runs the verb.
pub(crate) fn main(args: &Args) -> Result<ExitCode> {
    ensure!(apt::is_root(), "the demo makes namespaces and loads eBPF programs: run it as root");
    let start = Instant::now();
    let tools = setup::ensure(Need::Demo, args.toolchain)?;
    let built = build::build(&tools, Profile::Dev, Link::Dynamic, None)?;
    let ready = start.elapsed();
    let mut demo = Demo { environment: Environment::make(built.agent)?, out: Renderer::new() };
    let sections = [
        Demo::environment,
        Demo::objects,
        Demo::diagrams,
        Demo::responses,
        Demo::distribution,
        Demo::inspection,
        Demo::edits,
        Demo::options,
        Demo::dry_run,
        Demo::agent_killed,
        Demo::maps,
        Demo::removal,
    ];
    for section in sections {
        section(&mut demo)?;
    }
    let Demo { environment, out } = demo;
    environment.close()?;
    out.text("The demo's namespaces, cgroup, processes and files are removed.");
    let (built, shown) = (ready.as_secs_f64(), (start.elapsed() - ready).as_secs_f64());
    run::print("");
    out.text(&format!("{} checks passed. Build {built:.1} s, demo {shown:.1} s.", out.checks()));
    Ok(ExitCode::SUCCESS)
}
