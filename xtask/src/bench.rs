//! Verb `bench`: takes the figures that the documents show, one table for each bench. The benches are lb-user's.

use std::process::{Command, ExitCode};

use anyhow::Result;
use clap::ValueEnum;

use crate::cni::Cni;
use crate::setup::{self, Need};
use crate::{build, build_ebpf, e2e, kubernetes, run};

/// Arguments of `bench`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Benches to run [default: all]
    #[arg(value_enum)]
    benches: Vec<Bench>,
    /// Arguments of the bench itself, as in `bench packets -- --services 10 --rounds 3`
    #[arg(last = true)]
    arguments: Vec<String>,
}

/// The benches of lb-user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Bench {
    /// Cost of the socket path for a connection.
    Sockets,
    /// Compile, plan and map writes: first fill, a change, a restart.
    Control,
    /// From the start of the agent to the first VIP that answers, from a real API server.
    Start,
    /// Time to end the sockets of a dead backend among 100,000.
    Kill,
    /// Cost of a packet on its way through a node, beside kube-proxy and a node without any proxy.
    Packets,
    /// Clients of a Service while first packets from forged addresses flood another one.
    Flood,
    /// Start, memory and CPU of the agent in a real cluster, beside kube-proxy.
    Cluster,
}

impl Bench {
    fn name(self) -> &'static str {
        match self {
            Self::Sockets => "sockets",
            Self::Control => "control",
            Self::Start => "start",
            Self::Kill => "kill",
            Self::Packets => "packets",
            Self::Flood => "flood",
            Self::Cluster => "cluster",
        }
    }

    /// Cargo, running a bench of lb-user.
    fn cargo(self, arguments: &[String]) -> Result<Command> {
        let mut cargo = build::cargo();
        cargo.args(["bench", "--package", "lb-user", "--bench", self.name()]);
        if self.has_kube_proxy() {
            cargo.env("KUBEBUILDER_ASSETS", kubernetes::ensure_with(&[kubernetes::KUBE_PROXY])?);
        }
        if !arguments.is_empty() {
            cargo.arg("--").args(arguments);
        }
        Ok(cargo)
    }

    /// True if it compares with kube-proxy, which takes its Services from an API server.
    fn has_kube_proxy(self) -> bool {
        matches!(self, Self::Start | Self::Packets)
    }
}

/// Runs the verb.
pub(crate) fn main(args: &Args) -> Result<ExitCode> {
    let tools = setup::ensure(Need::Bench, None)?;
    run::step("build-ebpf", || build_ebpf::build(&tools, build_ebpf::Layout::Own))?;
    let chosen = if args.benches.is_empty() { Bench::value_variants() } else { &args.benches };
    run::print(&machine());
    for bench in chosen {
        run::print(&format!("\n`cargo xtask bench {}`\n", bench.name()));
        run::step(bench.name(), || {
            let mut command = if *bench == Bench::Cluster { figures()? } else { bench.cargo(&args.arguments)? };
            let status = run::stream(&mut command, run::print)?;
            anyhow::ensure!(status.success(), "the bench ended with {status}");
            Ok(())
        })?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The cluster of the end-to-end stories, which takes figures instead of telling them.
fn figures() -> Result<Command> {
    let mut command = e2e::command(Cni::default())?;
    command.arg("--figures");
    Ok(command)
}

/// Kernel and CPU, which every figure belongs to.
fn machine() -> String {
    let kernel = run::capture(Command::new("uname").arg("-sr")).unwrap_or_default();
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    format!("{}, {cpus} × {}", kernel.trim(), cpu_model(&info).unwrap_or("an unknown CPU"))
}

fn cpu_model(info: &str) -> Option<&str> {
    let line = info.lines().find(|line| line.starts_with("model name"))?;
    line.split_once(':').map(|(_, model)| model.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_is_named() {
        assert_eq!(cpu_model("processor\t: 0\nmodel name\t: A CPU @ 2 GHz\n"), Some("A CPU @ 2 GHz"));
        assert_eq!(cpu_model("processor\t: 0\n"), None);
    }
}
