//! The command line of `beeline`: commands, and dispatch to the module of each.

mod announced;
mod arguments;
mod cleanup;
mod config;
mod doctor;
mod explain;
mod get;
mod handover;
mod import_pools;
mod lb;
mod log;
mod objects;
mod plan;
mod run;
mod service_flags;
mod table;
mod top;
mod trace;
mod watch;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, Result, ensure};
use clap::{ArgMatches, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use lb_common::LAYOUT_VERSION;

use self::objects::FlagSource;
use lb_core::store::{Dump, Store as _};
use lb_dataplane::{environment, pins::Pins, store::BpfStore};

/// A load balancer for Kubernetes Services that translates addresses when an application opens a socket.
///
/// `run` is the agent, and `lb` a controller of the cluster. All other commands read the pinned maps of this node and
/// need no agent; `explain` and `plan` also read objects, and `import-pools` only these.
///
/// Exit codes: 0 done; 1 failed, or (trace) the call would be refused, or (explain) there is no such Service, or
/// (doctor) there are warnings, or (handover) not done; 2 wrong usage, or (doctor) there are errors.
#[derive(Parser)]
#[command(name = "beeline", version, after_help = EXAMPLES)]
struct Cli {
    /// Directory of the pins, on a bpffs [default: beeline below the mounted bpffs]
    #[arg(long, global = true, value_name = "DIR")]
    pins: Option<PathBuf>,

    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "Examples:
  beeline run --directory ./services      serve the Services of a directory of YAML files
  beeline run                             serve the Services of this node's cluster
  beeline get services                    list the Services that this node serves
  beeline top                             watch connections and refusals, live
  beeline trace tcp 10.96.0.1:443         show the backend that a connect would get, and why
  beeline watch --failed                  show calls that fail, live: who, to which Service, and why
  beeline explain default/web             show why each of its endpoints is used or not
  beeline plan -f ./services              show the map writes that a directory would cause
  beeline doctor                          find obstacles to Services on this node, and their cures
  beeline handover --dry-run              compare Beeline's endpoints with kube-proxy's";

#[derive(Subcommand)]
enum Command {
    /// Run the agent: keep the maps equal to the Services.
    Run(Box<run::RunArgs>),
    /// Run the controller that allots addresses of pools to Services of type LoadBalancer, once in a cluster.
    Lb(lb::LbArgs),
    /// Write the pools of MetalLB or Cilium as Beeline's, and try them on the cluster's Services; change nothing.
    ImportPools(import_pools::ImportPoolsArgs),
    /// Show the entries of the maps.
    Get(get::GetArgs),
    /// Watch connections and refusals per second, and open sockets, by service port.
    Top(top::TopArgs),
    /// Show the backend of a connect or a datagram to an address, and why.
    Trace(trace::TraceArgs),
    /// Watch calls to Services, live: who reached which backend, and why not.
    Watch(Box<watch::WatchArgs>),
    /// Show why each frontend and endpoint of a Service is used on this node or not.
    Explain(Box<explain::ExplainArgs>),
    /// Show the map writes that a directory of YAML files would cause; write nothing.
    Plan(plan::PlanArgs),
    /// Find obstacles to Services on this node, each with its cure.
    Doctor(Box<doctor::DoctorArgs>),
    /// Take this node over from kube-proxy: compare its rules with the maps, then remove them. Open connections stay
    /// open.
    Handover(handover::HandoverArgs),
    /// Remove programs, maps and pins. Connections of sockets stay open; connections of clients outside only if
    /// kube-proxy has its rules.
    Cleanup(cleanup::CleanupArgs),
    /// Print the versions of the program and of the map layout.
    Version,
    /// Print shell completions, to be sourced.
    Completions {
        /// Shell.
        shell: clap_complete::Shell,
    },
}

/// Parses the command line and runs the command.
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
    // Only the agent mounts a bpffs: other commands leave the node as it is.
    let pins = || match named.clone() {
        Some(pins) => Ok::<_, anyhow::Error>(pins),
        None => Ok(Pins::below(&environment::find_bpffs()?.context(
            "no bpffs is mounted: Beeline was never started on this node, or runs in another mount namespace",
        )?)),
    };
    match cli.command {
        Command::Run(arguments) => {
            return run::run(*arguments, || named.map_or_else(|| Ok(Pins::below(&environment::bpffs()?)), Ok));
        }
        Command::Lb(arguments) => return lb::run(arguments),
        Command::ImportPools(arguments) => return import_pools::run(&arguments),
        Command::Get(arguments) => {
            print_text(&get::render(&pinned_maps(&pins()?)?, &arguments)?)?;
        }
        Command::Top(arguments) => {
            let pins = pins()?;
            pinned_maps(&pins)?;
            top::run(pins, &arguments)?;
        }
        Command::Trace(arguments) => return trace::run(&pinned_maps(&pins()?)?, &arguments),
        Command::Watch(arguments) => {
            let pins = pins()?;
            pinned_maps(&pins)?;
            return watch::run(&pins, *arguments);
        }
        Command::Explain(arguments) => {
            let flags = matches.subcommand_matches("explain").map_or(FlagSource::CommandLine, FlagSource::of);
            print!("{}", explain::render(&pins()?, flags, *arguments)?);
        }
        Command::Plan(arguments) => print!("{}", plan::render(&pins()?, &arguments)?),
        Command::Doctor(arguments) => {
            let flags = matches.subcommand_matches("doctor").map_or(FlagSource::CommandLine, FlagSource::of);
            // Without a bpffs nothing is pinned: a finding, not a failure.
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

/// Prints to stdout. Returns false if the reader has closed the pipe, as `head` does, which is not an error.
fn print_text(text: &str) -> Result<bool> {
    use std::io::{ErrorKind, Write as _};
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error).context("writing to stdout"),
    }
}

/// Returns the directory of the pinned maps.
///
/// # Errors
/// If there are no pins.
fn pinned_maps(pins: &Pins) -> Result<PathBuf> {
    let directory = pins.current();
    ensure!(
        directory.exists(),
        "no pins at {}: Beeline was never started on this node, or was removed by `beeline cleanup`; set --pins if \
         they are in another directory",
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
    fn the_command_line_passes_claps_own_checks() {
        Cli::command().debug_assert();
    }
}
