//! Verb `build`: the eBPF programs, then the agent that embeds them. Other verbs call it for the agent and its tests.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail};

use crate::build_ebpf::Layout;
use crate::setup::{self, Need, Tools};
use crate::toolchain::Kind;
use crate::{build_ebpf, run, workspace};

/// Arguments of `build`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Optimise.
    #[arg(long)]
    release: bool,
    /// Link everything in, for an image without a system in it.
    #[arg(long = "static")]
    is_static: bool,
    /// With the map layout of a next version, which is made up for the stories of upgrade and rollback. Not for use.
    #[arg(long, hide = true)]
    next_layout: bool,
    /// The compiler of the eBPF programs, rather than the best that there is.
    #[arg(long, value_enum)]
    toolchain: Option<Kind>,
}

/// Degree of optimisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Profile {
    /// Quick to build.
    Dev,
    /// Quick to run.
    Release,
}

/// Libraries of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Link {
    /// The system's libraries.
    Dynamic,
    /// Nothing: the program runs in an empty root.
    Static,
}

/// Programs that a build made.
pub(crate) struct Built {
    /// The agent.
    pub(crate) agent: PathBuf,
    /// The test that was asked for.
    pub(crate) test: Option<PathBuf>,
}

/// Runs the verb: prints the agent's path.
pub(crate) fn main(args: &Args) -> Result<ExitCode> {
    let profile = if args.release { Profile::Release } else { Profile::Dev };
    let link = if args.is_static { Link::Static } else { Link::Dynamic };
    let tools = setup::ensure(Need::Build, args.toolchain)?;
    let agent =
        if args.next_layout { build_next(&tools, profile, link)? } else { build(&tools, profile, link, None)?.agent };
    run::print(&agent.display().to_string());
    Ok(ExitCode::SUCCESS)
}

/// Builds the programs, the agent and, if named, one of lb-user's test programs.
pub(crate) fn build(tools: &Tools, profile: Profile, link: Link, test: Option<&str>) -> Result<Built> {
    run::step("build-ebpf", || build_ebpf::build(tools, Layout::Own))?;
    let step =
        format!("build the agent{} ({profile:?}, {link:?})", test.map_or_else(String::new, |t| format!(" and {t}")));
    run::step(&step, || {
        let mut cargo = cargo();
        match test {
            None => cargo.args(["build", "--package", "lb-user"]),
            // Building an integration test builds the package's programs too.
            Some(test) => cargo.args(["test", "--no-run", "--package", "lb-user", "--test", test]),
        };
        let messages = compile(&mut cargo, profile, link)?;
        let agent = executable(&messages, "bin", "beeline").context("lb-user has no program `beeline`")?;
        Ok(Built { agent, test: test.and_then(|test| executable(&messages, "test", test)) })
    })
}

/// Builds the agent of the made-up next layout, for the stories of upgrade and rollback. Cargo puts it in the place of
/// this version's agent, which has to be built after it.
pub(crate) fn build_next(tools: &Tools, profile: Profile, link: Link) -> Result<PathBuf> {
    let object = run::step("build-ebpf (next layout)", || build_ebpf::build(tools, Layout::Next))?;
    run::step(&format!("build the agent of the next layout ({profile:?}, {link:?})"), || {
        let mut cargo = cargo();
        cargo.env("BEELINE_EBPF_OBJECT", object);
        cargo.args(["build", "--package", "lb-user", "--bin", "beeline", "--features", "next-layout"]);
        let messages = compile(&mut cargo, profile, link)?;
        let agent = executable(&messages, "bin", "beeline").context("lb-user has no program `beeline`")?;
        let next = agent.with_file_name("beeline-next");
        // Cargo puts the agent of either layout in the same place; a second name keeps this one.
        if next.exists() {
            fs::remove_file(&next).with_context(|| format!("removing {}", next.display()))?;
        }
        fs::hard_link(&agent, &next).with_context(|| format!("naming {}", next.display()))?;
        Ok(next)
    })
}

/// Completes a command of cargo and runs it.
fn compile(cargo: &mut Command, profile: Profile, link: Link) -> Result<Vec<serde_json::Value>> {
    if profile == Profile::Release {
        cargo.arg("--release");
    }
    if link == Link::Static {
        // With a target named, the flags are for the agent alone: macros and build scripts stay as they are.
        let flags = [vec!["-Ctarget-feature=+crt-static".to_owned()], workspace::remap_flags()].concat();
        cargo.args(["--target", &host()?]).env_remove("RUSTFLAGS").env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
        // Other flags would otherwise rebuild everything at each change of mind.
        cargo.env("CARGO_TARGET_DIR", workspace::target_dir().join("static"));
    }
    messages(cargo.arg("--message-format=json-render-diagnostics"))
}

/// Crates that tests run for minutes, over random worlds and millions of states, and their degree of optimisation in
/// development builds. Not in Cargo.toml, so that an edit of them is compiled quickly by a plain cargo.
const OPTIMISED: [&str; 2] = ["profile.dev.package.lb-core.opt-level=1", "profile.dev.package.lb-common.opt-level=1"];

/// Cargo on the workspace, told where the eBPF object is.
pub(crate) fn cargo() -> Command {
    let mut cargo = run::cargo();
    cargo.env("BEELINE_EBPF_OBJECT", workspace::ebpf_object());
    cargo.args(OPTIMISED.into_iter().flat_map(|setting| ["--config", setting]));
    cargo
}

/// Runs a cargo and returns its messages; those for people go to stderr.
pub(crate) fn messages(cargo: &mut Command) -> Result<Vec<serde_json::Value>> {
    let mut messages = Vec::new();
    let status = run::stream(cargo.stderr(Stdio::inherit()), |line| {
        messages.extend(serde_json::from_str(line));
    })?;
    if !status.success() {
        bail!("cargo ended with {status}");
    }
    Ok(messages)
}

fn executable(messages: &[serde_json::Value], kind: &str, name: &str) -> Option<PathBuf> {
    let is_it =
        |message: &&serde_json::Value| message["target"]["kind"][0] == kind && message["target"]["name"] == name;
    messages.iter().filter(is_it).find_map(|message| message["executable"].as_str()).map(PathBuf::from)
}

/// The triple that the toolchain in use compiles for.
pub(crate) fn host() -> Result<String> {
    let version = run::capture(Command::new("rustc").arg("-vV"))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).context("rustc does not tell its host")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_found_by_kind_and_name() {
        let message = |text: &str| serde_json::from_str(text).unwrap();
        let messages = [
            message(r#"{"reason":"compiler-artifact","target":{"kind":["lib"],"name":"beeline"},"executable":null}"#),
            message(
                r#"{"reason":"compiler-artifact","target":{"kind":["bin"],"name":"beeline"},"executable":"/t/beeline"}"#,
            ),
            message(r#"{"reason":"build-finished","success":true}"#),
        ];
        assert_eq!(executable(&messages, "bin", "beeline"), Some("/t/beeline".into()));
        assert_eq!(executable(&messages, "test", "beeline"), None);
    }
}
