//! The command line: what can be said to `beeline`, and which module answers.

mod cleanup;
mod config;
mod doctor;
mod explain;
mod get;
mod handover;
mod log;
mod objects;
mod plan;
mod run;
pub mod service_flags;
mod table;
mod top;
mod trace;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, Result, ensure};
use clap::{ArgMatches, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use lb_common::LAYOUT_VERSION;

use self::objects::Flags;
use lb_core::store::{Dump, Store as _};
use lb_dataplane::{environment, pins::Pins, store::BpfStore};

/// A load balancer for Kubernetes Services that works where an application opens a socket.
///
/// `run` is the agent. All other commands read the pinned maps of this node and need no agent; `explain` and `plan` need
/// objects too.
///
/// Exit codes: 0 done; 1 failed, or (trace) the connect would be refused, or (explain) there is no such Service, or (doctor)
/// there are warnings, or (handover) it was not done; 2 wrong usage, or (doctor) there are errors.
#[derive(Parser)]
#[command(name = "beeline", version, after_help = EXAMPLES)]
struct Cli {
    /// Directory of the pins, on a bpffs [default: beeline/ below the mounted bpffs]
    #[arg(long, global = true, value_name = "DIR")]
    pins: Option<PathBuf>,

    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "Examples:
  beeline run --directory ./services      serve the Services of a directory of YAML
  beeline run                             serve those of the cluster that this node is in
  beeline get services                    what this node serves
  beeline top                             what sockets do with it, live
  beeline trace tcp 10.96.0.1:443         what a connect would do, and why
  beeline explain default/web             why each of its endpoints is used, or is not
  beeline plan -f ./services              the map writes that a directory would cause
  beeline doctor                          what stands in the way of Services on this node, and its cure
  beeline handover --dry-run              what Beeline would answer otherwise than kube-proxy does";

#[derive(Subcommand)]
enum Command {
    /// Run the agent: keep the maps equal to what the Services say.
    Run(Box<run::Arguments>),
    /// Show what stands in the maps.
    Get(get::Arguments),
    /// Watch what sockets do with the Services: connections and refusals a second, open sockets, by service port.
    Top(top::Arguments),
    /// Tell what a connect or a datagram to an address would do, and why.
    Trace(trace::Arguments),
    /// Tell why each endpoint of a Service is used on this node, or is not.
    Explain(Box<explain::Arguments>),
    /// Show the map writes that a directory of YAML would cause, and do nothing.
    Plan(plan::Arguments),
    /// Find what stands in the way of Services on this node, with the cure of each.
    Doctor(Box<doctor::Arguments>),
    /// Take this node over from kube-proxy: compare what both answer, then remove its rules. Connections that are open stay open.
    Handover(handover::Arguments),
    /// Remove every trace: programs, maps, pins. Connections of sockets stay open; so do those of clients outside where
    /// kube-proxy has its rules.
    Cleanup(cleanup::Arguments),
    /// Show the versions of the program and of the map layout.
    Version,
    /// Print completions for a shell, to be sourced by it.
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
}

/// Parses the arguments and does what they say.
#[must_use]
pub fn main() -> ExitCode {
    let line: Vec<_> = std::env::args_os().collect();
    let matches = Cli::command().get_matches_from(&line);
    let matches = match config::complete(line, matches, Path::to_owned) {
        Ok((_, matches)) => matches,
        Err(error) => {
            eprintln!("beeline: {error:#}");
            return ExitCode::from(2);
        }
    };
    let parsed = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    match dispatch(parsed, &matches) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("beeline: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(cli: Cli, matches: &ArgMatches) -> Result<ExitCode> {
    let named = cli.pins.map(Pins::at);
    // Only the agent mounts what is not there; who looks leaves the node as it is.
    let pins =
        || match named.clone() {
            Some(pins) => Ok::<_, anyhow::Error>(pins),
            None => Ok(Pins::below(&environment::find_bpffs()?.context(
                "no bpffs is mounted: Beeline was never started on this node, or not in this mount namespace",
            )?)),
        };
    match cli.command {
        Command::Run(arguments) => {
            return run::run(*arguments, || named.map_or_else(|| Ok(Pins::below(&environment::bpffs()?)), Ok));
        }
        Command::Get(arguments) => {
            say(&get::render(&existing(&pins()?)?, &arguments)?)?;
        }
        Command::Top(arguments) => {
            let pins = pins()?;
            existing(&pins)?;
            top::run(pins, &arguments)?;
        }
        Command::Trace(arguments) => return trace::run(&existing(&pins()?)?, &arguments),
        Command::Explain(arguments) => {
            let flags = matches.subcommand_matches("explain").map_or(Flags::Given, Flags::of);
            print!("{}", explain::render(&pins()?, flags, *arguments)?);
        }
        Command::Plan(arguments) => print!("{}", plan::render(&pins()?, &arguments)?),
        Command::Doctor(arguments) => {
            let flags = matches.subcommand_matches("doctor").map_or(Flags::Given, Flags::of);
            // Without a bpffs nothing is pinned, which is a finding and no failure.
            let pins = pins().unwrap_or_else(|_| Pins::below(Path::new(environment::BPFFS)));
            return doctor::run(pins, flags, *arguments);
        }
        Command::Handover(arguments) => return handover::run(&pins()?, &arguments),
        Command::Cleanup(arguments) => cleanup::run(&pins()?, &arguments)?,
        Command::Version => println!("beeline {}, map layout v{LAYOUT_VERSION}", env!("CARGO_PKG_VERSION")),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "beeline", &mut std::io::stdout());
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints. False when nobody reads any more, as behind `| head`, which is no failure.
fn say(text: &str) -> Result<bool> {
    use std::io::{ErrorKind, Write as _};
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error).context("writing to stdout"),
    }
}

/// The directory of the pinned maps, if there are any.
fn existing(pins: &Pins) -> Result<PathBuf> {
    let directory = pins.current();
    ensure!(
        directory.exists(),
        "no pins at {}: Beeline was never started on this node, or was cleaned up (--pins names another directory)",
        directory.display()
    );
    Ok(directory)
}

fn dump(directory: &Path) -> Result<Dump> {
    BpfStore::open(directory)?.dump()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
