//! Verb `setup`: the tools of a kind of work, found or installed. Each tool has a file of its own.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context, Result};
use clap::ValueEnum;

use crate::toolchain::{self, Compiler, Kind};
use crate::{apt, deny, helm, kernel_cache, kubernetes, prometheus, run};

/// Arguments of `setup`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The kind of work.
    #[arg(long = "for", value_enum, default_value = "test")]
    need: Need,
    /// The compiler of the eBPF programs, rather than the best that there is.
    #[arg(long, value_enum)]
    toolchain: Option<Kind>,
}

/// The kinds of work, each with tools of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Need {
    /// Compile the eBPF programs and the agent.
    Build,
    /// Build, and look at it at work in network namespaces.
    Demo,
    /// Run everything that must pass.
    Test,
    /// Build, and measure.
    Bench,
    /// Build, and boot other kernels.
    Kernels,
    /// Build, and bring up a cluster.
    E2e,
}

/// The tools of a machine that is set up.
pub(crate) struct Tools {
    /// Compiles the eBPF programs.
    pub(crate) compiler: Compiler,
    /// Links them.
    pub(crate) linker: PathBuf,
}

/// Runs the verb.
pub(crate) fn main(args: &Args) -> Result<ExitCode> {
    ensure(args.need, args.toolchain)?;
    if args.need == Need::Kernels {
        // The verb itself gets only the kernels that it boots.
        kernel_cache::all().iter().try_for_each(|series| kernel_cache::ensure(*series).map(drop))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Installs the missing tools; quick if all are there.
pub(crate) fn ensure(need: Need, forced: Option<Kind>) -> Result<Tools> {
    run::note("==> setup");
    let start = Instant::now();
    ensure_programs(need)?;
    let (compiler, linker) = toolchain::ensure(forced).context("finding a toolchain for the eBPF programs")?;
    run::note(&format!("    compiler of the eBPF programs: {}", compiler.describe()));
    match need {
        Need::Build | Need::Demo | Need::Bench | Need::Kernels | Need::E2e => {}
        Need::Test => {
            ensure_component("fmt", "rustfmt")?;
            ensure_component("clippy", "clippy")?;
            let assets =
                kubernetes::ensure_with(&[kubernetes::KUBE_PROXY]).context("getting a Kubernetes to test against")?;
            run::note(&format!("    Kubernetes to test against: {}", assets.display()));
            helm::ensure().context("getting Helm to test the chart with")?;
            deny::ensure().context("getting cargo-deny")?;
            prometheus::ensure().context("getting Prometheus to test the dashboard and the alerts with")?;
        }
    }
    run::note(&format!("    setup: done in {:.1} s", start.elapsed().as_secs_f64()));
    Ok(Tools { compiler, linker })
}

/// bpftool, in the place of the distribution: Ubuntu's is beside the kernel's other tools, in a folder of their
/// version.
pub(crate) fn bpftool() -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/linux-tools").into_iter().flatten().flatten().map(|entry| entry.path());
    run::find("bpftool", &[system_dirs().to_vec(), versions.collect()].concat())
}

fn ensure_programs(need: Need) -> Result<()> {
    let mut missing = Vec::new();
    let mut want = |program: &str, package: &'static str| {
        if run::find(program, &system_dirs()).is_none() {
            missing.push(package);
        }
    };
    match need {
        Need::Build => {}
        Need::Demo => {
            want("ip", "iproute2");
            want("curl", "curl");
        }
        Need::Test => {
            want("ip", "iproute2");
            want("curl", "curl");
            // A key of the API server.
            want("openssl", "openssl");
            // Runs the unit of deploy/systemd.
            want("systemctl", "systemd");
            // For a story with foreign rules, and for kube-proxy, from which a node is taken over.
            want("nft", "nftables");
            want("iptables", "iptables");
        }
        Need::Bench => {
            want("ip", "iproute2");
            want("openssl", "openssl");
            // For kube-proxy, with which Beeline is compared.
            want("nft", "nftables");
            want("iptables", "iptables");
        }
        Need::E2e => {
            for (program, package) in [("ip", "iproute2"), ("curl", "curl"), ("openssl", "openssl"), ("runc", "runc")] {
                want(program, package);
            }
            // For kube-proxy, from which Beeline takes over.
            want("nft", "nftables");
            want("iptables", "iptables");
            // For kube-router.
            want("ipset", "ipset");
            if !Path::new("/usr/lib/cni/ptp").is_file() {
                missing.push("containernetworking-plugins");
            }
        }
        Need::Kernels => {
            let (program, package) = kernel_cache::emulator();
            want(program, package);
            want("busybox", "busybox-static");
            want("depmod", "kmod");
            want("xz", "xz-utils");
            want("ip", "iproute2");
            want("wg", "wireguard-tools");
            want("nft", "nftables");
            want("teamnl", "libteam-utils");
            if !Path::new(kernel_cache::KEYRING).is_file() {
                missing.push("debian-archive-keyring");
            }
        }
    }
    if matches!(need, Need::Demo | Need::Test) && bpftool().is_none() {
        missing.push(bpftool_package()?);
    }
    if missing.is_empty() { Ok(()) } else { apt::install(&missing) }
}

/// Debian and new Ubuntus have a package of that name; on older ones it is among the tools of the generic kernel.
fn bpftool_package() -> Result<&'static str> {
    let offered = apt::offered(&["bpftool", "linux-tools-generic"])?;
    let is_offered = |name: &str| offered.iter().any(|package| package.name == name);
    Ok(if !is_offered("bpftool") && is_offered("linux-tools-generic") { "linux-tools-generic" } else { "bpftool" })
}

/// Ensures that `cargo NAME` works, with rustup if needed.
fn ensure_component(name: &str, component: &str) -> Result<()> {
    if run::capture(run::cargo().args([name, "--version"])).is_ok() {
        return Ok(());
    }
    run::step(&format!("rustup: {component}"), || {
        run::run(Command::new("rustup").args(["component", "add", component]))
    })
    .with_context(|| format!("`cargo {name}` does not work: install {component} for the toolchain in use"))
}

fn system_dirs() -> [PathBuf; 2] {
    ["/usr/sbin".into(), "/sbin".into()]
}
