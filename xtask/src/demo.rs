//! Verb `demo`: builds Beeline and shows it at work in namespaces that it makes and removes. Everything shown is real, and
//! checked: the verb fails if something is not as it says. The parts of the show are in the files of `demo/`.

mod acts;
mod changes;
mod clients;
mod dns;
mod janitor;
mod paper;
pub(crate) mod part;
mod says;
mod servers;
mod stage;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, ensure};

use crate::build::{self, Link, Profile};
use crate::setup::{self, Need};
use crate::toolchain::Kind;
use crate::{apt, run};

use acts::Demo;
use paper::Paper;
use stage::Stage;

/// Arguments of `demo`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The compiler of the eBPF programs, rather than the best that there is.
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
    let mut demo = Demo { stage: Stage::make(built.agent)?, paper: Paper::new() };
    let acts = [
        Demo::place,
        Demo::objects,
        Demo::pictures,
        Demo::answers,
        Demo::spread,
        Demo::looking,
        Demo::edits,
        Demo::says,
        Demo::dry_run,
        Demo::sudden_end,
        Demo::maps,
        Demo::end,
    ];
    for act in acts {
        act(&mut demo)?;
    }
    let Demo { stage, paper } = demo;
    stage.close()?;
    paper.say("The demo's namespaces, cgroup, processes and files are removed.");
    let (built, shown) = (ready.as_secs_f64(), (start.elapsed() - ready).as_secs_f64());
    run::print("");
    paper.say(&format!("{} claims checked. Build {built:.1} s, demo {shown:.1} s.", paper.claims()));
    Ok(ExitCode::SUCCESS)
}
