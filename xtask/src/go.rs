//! Programs in Go, built once from the module proxy: finds a Go, or installs one.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{apt, run};

/// From this version on, a Go fetches by itself the newer version that a module asks for.
const GO_AT_LEAST: u32 = 21;

/// Programs of one module.
pub(crate) struct Programs {
    /// The module's path.
    pub(crate) module: &'static str,
    /// Version of the module.
    pub(crate) version: &'static str,
    /// Packages below the module, each a program of the same name as its last part.
    pub(crate) packages: &'static [&'static str],
    /// Files of the module, and directories of files, each copied under its last part.
    pub(crate) files: &'static [&'static str],
    /// Build tags.
    pub(crate) tags: &'static str,
    /// The parts in C.
    pub(crate) cgo: Cgo,
}

/// Code in C among the packages of a program.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cgo {
    /// None is needed.
    Without,
    /// The program does not build without it.
    With,
}

impl Programs {
    /// Builds the programs that `dir` lacks.
    pub(crate) fn ensure(&self, dir: &Path) -> Result<()> {
        let Self { module, version, packages, files, tags, cgo } = self;
        let name = |package: &str| package.rsplit('/').next().unwrap_or(package).to_owned();
        let name = |package: &&str| if package.is_empty() { name(module) } else { name(package) };
        let missing: Vec<_> = packages.iter().filter(|package| !dir.join(name(package)).is_file()).collect();
        if missing.is_empty() && files.iter().all(|file| dir.join(name(file)).exists()) {
            return Ok(());
        }
        let scratch = dir.join(".build-module");
        std::fs::create_dir_all(&scratch).with_context(|| format!("making {}", scratch.display()))?;
        std::fs::write(scratch.join("go.mod"), "module beeline-test-assets\n\ngo 1.26.0\n")
            .context("writing go.mod")?;
        run::step(&format!("{module} {version}: sources"), || {
            run::run(command(&scratch)?.args(["get", &format!("{module}@{version}")]))
        })?;
        for package in missing {
            let program = name(package);
            run::step(&format!("{module} {version}: {program} (minutes, once)"), || {
                let path = [*module, package].join("/");
                let args = ["build", "-mod=mod", "-ldflags=-s -w", "-tags", tags, "-o", &program];
                let mut go = command(&scratch)?;
                if *cgo == Cgo::With {
                    go.env("CGO_ENABLED", "1");
                }
                run::run(go.args(args).arg(path.trim_end_matches('/')))?;
                place(&scratch.join(&program), &dir.join(&program))
            })?;
        }
        let sources = run::capture(command(&scratch)?.args(["list", "-m", "-f", "{{.Dir}}", module]))?;
        for file in *files {
            place_files(&Path::new(sources.trim()).join(file), &dir.join(name(file)))?;
        }
        std::fs::remove_dir_all(&scratch).with_context(|| format!("removing {}", scratch.display()))
    }
}

/// Copies a file, or the files of a directory.
fn place_files(from: &Path, to: &Path) -> Result<()> {
    if !from.is_dir() {
        return place(from, to);
    }
    std::fs::create_dir_all(to).with_context(|| format!("making {}", to.display()))?;
    for entry in std::fs::read_dir(from).with_context(|| format!("listing {}", from.display()))?.flatten() {
        place(&entry.path(), &to.join(entry.file_name()))?;
    }
    Ok(())
}

/// Go in a directory, independent of the user's settings and modules.
pub(crate) fn command(dir: &Path) -> Result<Command> {
    let mut command = Command::new(find_go()?);
    command.current_dir(dir).env("GOTOOLCHAIN", "auto").env("GOFLAGS", "").env("GOWORK", "off").env("CGO_ENABLED", "0");
    Ok(command)
}

/// A Go that is new enough, or that can fetch a newer version by itself; installed if the system has none.
fn find_go() -> Result<PathBuf> {
    const CURE: &str = "or put kube-apiserver, kubectl and etcd in a directory, and name it in KUBEBUILDER_ASSETS";
    let is_new = |go: &PathBuf| {
        let version = run::capture(Command::new(go).arg("version")).unwrap_or_default();
        parse_go(&version).is_some_and(|minor| minor >= GO_AT_LEAST)
    };
    let places = [Some("/usr/local/go/bin/go".into()), run::find("go", &[])].into_iter().rev().flatten();
    if let Some(go) = places.chain(debian_gos()).find(is_new) {
        return Ok(go);
    }
    if !apt::exists() {
        bail!("no Go of 1.{GO_AT_LEAST} or newer: install one, {CURE}");
    }
    let offered = apt::search(r"^golang-1\.[0-9]+-go$")?;
    let minor = |name: &str| name.strip_prefix("golang-1.")?.strip_suffix("-go")?.parse::<u32>().ok();
    let newest = offered.iter().filter_map(|name| minor(name)).max().filter(|minor| *minor >= GO_AT_LEAST);
    let Some(newest) = newest else {
        bail!("apt offers no Go of 1.{GO_AT_LEAST} or newer: install one, {CURE}");
    };
    apt::install(&[&format!("golang-1.{newest}-go")])?;
    debian_gos().find(is_new).with_context(|| format!("golang-1.{newest}-go is installed, and no Go is found"))
}

/// Debian's packages of particular versions are not in PATH.
fn debian_gos() -> impl Iterator<Item = PathBuf> {
    let libs = std::fs::read_dir("/usr/lib").into_iter().flatten().flatten();
    libs.filter(|entry| entry.file_name().to_string_lossy().starts_with("go-1."))
        .map(|entry| entry.path().join("bin/go"))
}

/// The minor version in `go version go1.N.M …`.
fn parse_go(text: &str) -> Option<u32> {
    text.strip_prefix("go version go1.")?.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// Copies a program in one step: no process sees half of it.
pub(crate) fn place(from: &Path, to: &Path) -> Result<()> {
    let half = to.with_extension("new");
    std::fs::copy(from, &half).with_context(|| format!("copying {}", from.display()))?;
    std::fs::rename(&half, to).with_context(|| format!("placing {}", to.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_go_tells_its_minor_version() {
        assert_eq!(parse_go("go version go1.26.8 linux/amd64"), Some(26));
        assert_eq!(parse_go("go version go1.19rc1 linux/amd64"), Some(19));
        assert_eq!(parse_go(""), None);
    }
}
