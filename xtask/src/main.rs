//! `cargo xtask VERB`: parses the verb and calls its file; no work is done here.

mod apt;
mod bench;
mod btf;
mod build;
mod build_ebpf;
mod cluster_programs;
mod cni;
mod demo;
mod deny;
mod e2e;
mod go;
mod helm;
mod image;
mod initramfs;
mod kernel_cache;
mod kernels;
mod kubernetes;
mod oracle;
mod prometheus;
mod routing_daemons;
mod run;
mod setup;
mod soak;
mod systemd_unit;
mod tally;
mod test;
mod tidy;
mod toolchain;
mod vm;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Everything that Beeline's developers and CI run.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
pub(crate) struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Find the tools that building and testing need, and install missing ones.
    Setup(setup::Args),
    /// Compile the eBPF programs into the object that the agent embeds.
    BuildEbpf(build_ebpf::Args),
    /// Compile the eBPF programs and the agent, and print the agent's path.
    Build(build::Args),
    /// Make a container image of the agent, and print the archive's path, its size and the image's digest.
    Image(image::Args),
    /// Run everything that must pass before a change lands; the last line is the count.
    Test(test::Args),
    /// Measure, and print a table for each bench.
    Bench(bench::Args),
    /// Compare Beeline's answers with those of the real kube-proxy, for random Services.
    Oracle(oracle::Args),
    /// Run the agent under churn, kills and floods for an hour, and count what is left.
    Soak(soak::Args),
    /// Run the stories of a real cluster: two nodes with kubelet and containerd, and no kube-proxy.
    E2e(e2e::Args),
    /// Run the stories under older kernels, each booted in a small emulated machine.
    Kernels(kernels::Args),
    /// Show Beeline at work on this machine, in network namespaces that are made and removed again.
    Demo(demo::Args),
    /// A process of the demo.
    #[command(hide = true)]
    DemoProcess(demo::process::Args),
    /// Check the rules of the tree that no compiler checks.
    Tidy(tidy::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse().verb {
        Verb::Setup(args) => setup::main(&args),
        Verb::BuildEbpf(args) => build_ebpf::main(&args),
        Verb::Build(args) => build::main(&args),
        Verb::Image(args) => image::main(&args),
        Verb::Test(args) => Ok(test::main(&args)),
        Verb::Bench(args) => bench::main(&args),
        Verb::Oracle(args) => oracle::main(&args),
        Verb::Soak(args) => soak::main(&args),
        Verb::E2e(args) => e2e::main(&args),
        Verb::Kernels(args) => kernels::main(&args),
        Verb::Demo(args) => demo::main(&args),
        Verb::DemoProcess(args) => demo::process::main(&args),
        Verb::Tidy(args) => tidy::main(&args),
    };
    result.unwrap_or_else(|error| {
        // On one line: a backtrace of xtask does not help to install a package.
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
