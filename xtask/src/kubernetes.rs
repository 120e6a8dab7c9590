//! A Kubernetes API server for the tests: kube-apiserver, kubectl and etcd in a directory, built once from the Go module proxy.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{apt, run, workspace};

const VERSION: &str = "v1.37.2";
/// The version under which the parts of Kubernetes in its staging directory are published.
const STAGING_VERSION: &str = "v0.37.2";
const BUILT: [&str; 2] = ["kube-apiserver", "kubectl"];
/// Built for who compares with it, or takes a node over from it.
const KUBE_PROXY: &str = "kube-proxy";
/// From this version on, a Go fetches the newer one that a module asks for by itself.
const GO_AT_LEAST: u32 = 21;

/// The directory with the three programs; what lacks is made first.
pub(crate) fn ensure() -> Result<PathBuf> {
    if let Some(given) = std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from) {
        if lacking(&given).is_empty() {
            return Ok(given);
        }
        eprintln!("    KUBEBUILDER_ASSETS={} lacks {}: not used", given.display(), lacking(&given).join(", "));
    }
    let dir = workspace::cache().join(format!("kubernetes-{VERSION}"));
    if lacking(&dir).is_empty() {
        return Ok(dir);
    }
    let _lock = lock(&dir)?;
    if !dir.join("etcd").is_file() {
        run::step("etcd", || get_etcd(&dir))?;
    }
    let missing: Vec<&str> = BUILT.into_iter().filter(|name| !dir.join(name).is_file()).collect();
    if !missing.is_empty() {
        build(&missing, &dir)?;
    }
    Ok(dir)
}

/// The same with kube-proxy, except in a directory that was given.
pub(crate) fn ensure_with_kube_proxy() -> Result<PathBuf> {
    let dir = ensure()?;
    if dir.starts_with(workspace::cache()) && !dir.join(KUBE_PROXY).is_file() {
        let _lock = lock(&dir)?;
        // Whoever was waited for may have made it.
        if !dir.join(KUBE_PROXY).is_file() {
            build(&[KUBE_PROXY], &dir)?;
        }
    }
    Ok(dir)
}

/// Makes the directory, and keeps others from building in it.
fn lock(dir: &Path) -> Result<File> {
    std::fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    let lock = File::create(dir.join(".lock")).context("making a lock file")?;
    if lock.try_lock().is_err() {
        eprintln!("    waiting for another xtask that is building in {}", dir.display());
        lock.lock().context("waiting for another xtask")?;
    }
    Ok(lock)
}

fn lacking(dir: &Path) -> Vec<&'static str> {
    BUILT.into_iter().chain(["etcd"]).filter(|name| !dir.join(name).is_file()).collect()
}

/// Takes etcd out of Debian's package without installing it: nothing is started, and nothing is left.
fn get_etcd(dir: &Path) -> Result<()> {
    let installed = Path::new("/usr/bin/etcd");
    if installed.is_file() {
        return place(installed, &dir.join("etcd"));
    }
    if !apt::exists() {
        bail!(
            "there is no etcd and no apt-get: put kube-apiserver, kubectl and etcd in a directory, and name it in KUBEBUILDER_ASSETS"
        );
    }
    let scratch = dir.join(".etcd");
    apt::unpack("etcd-server", &scratch).context("unpacking Debian's etcd-server")?;
    place(&scratch.join("usr/bin/etcd"), &dir.join("etcd"))?;
    std::fs::remove_dir_all(&scratch).with_context(|| format!("removing {}", scratch.display()))
}

fn build(names: &[&str], dir: &Path) -> Result<()> {
    let scratch = dir.join(".build");
    std::fs::create_dir_all(&scratch).with_context(|| format!("making {}", scratch.display()))?;
    run::step(&format!("Kubernetes {VERSION}: sources"), || {
        let module =
            run::capture(go(&scratch)?.args(["mod", "download", "-json", &format!("k8s.io/kubernetes@{VERSION}")]))?;
        let module: serde_json::Value = serde_json::from_str(&module).context("reading what `go mod download` says")?;
        let upstream = module["GoMod"].as_str().context("`go mod download` names no go.mod")?;
        let upstream = std::fs::read_to_string(upstream).with_context(|| format!("reading {upstream}"))?;
        std::fs::write(scratch.join("go.mod"), go_mod(&upstream)).context("writing go.mod")
    })?;
    for name in names {
        run::step(&format!("Kubernetes {VERSION}: {name} (minutes, once)"), || {
            let package = format!("k8s.io/kubernetes/cmd/{name}");
            let args = ["build", "-mod=mod", "-ldflags", &ldflags(), "-o", name, &package];
            run::run(go(&scratch)?.args(args))?;
            place(&scratch.join(name), &dir.join(name))
        })?;
    }
    std::fs::remove_dir_all(&scratch).with_context(|| format!("removing {}", scratch.display()))
}

/// A module that depends on Kubernetes alone. It repeats the replacements that Kubernetes makes for its own parts, with
/// their published versions, since replacements of a dependency do not count.
fn go_mod(upstream: &str) -> String {
    let language = upstream.lines().find(|line| line.starts_with("go ")).unwrap_or("go 1.26.0");
    let parts = upstream.lines().filter_map(|line| line.trim().split_once(" => ./staging/"));
    let replace: String = parts.map(|(part, _)| format!("\t{part} => {part} {STAGING_VERSION}\n")).collect();
    format!(
        "module beeline-test-assets\n\n{language}\n\nrequire k8s.io/kubernetes {VERSION}\n\nreplace (\n{replace})\n"
    )
}

fn ldflags() -> String {
    let mut numbers = VERSION.trim_start_matches('v').split('.');
    let (major, minor) = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
    let base = "k8s.io/component-base/version";
    format!(
        "-s -w -X {base}.gitVersion={VERSION} -X {base}.gitMajor={major} -X {base}.gitMinor={minor} \
         -X k8s.io/client-go/pkg/version.gitVersion={VERSION}"
    )
}

/// Go at work in a directory, on modules that have nothing to do with what the user has.
pub(crate) fn go(dir: &Path) -> Result<Command> {
    let mut command = Command::new(find_go()?);
    command.current_dir(dir).env("GOTOOLCHAIN", "auto").env("GOFLAGS", "").env("GOWORK", "off").env("CGO_ENABLED", "0");
    Ok(command)
}

/// A Go that is new enough, or that can fetch one that is; installed when there is none.
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

/// Copies a program in one step: nobody sees half of it.
pub(crate) fn place(from: &Path, to: &Path) -> Result<()> {
    let half = to.with_extension("new");
    std::fs::copy(from, &half).with_context(|| format!("copying {}", from.display()))?;
    std::fs::rename(&half, to).with_context(|| format!("placing {}", to.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_kubernetes_are_replaced_by_their_published_versions() {
        let upstream = "module k8s.io/kubernetes\n\ngo 1.26.0\n\nrequire (\n\tk8s.io/api v0.0.0\n)\n\nreplace (\n\
                        \tk8s.io/api => ./staging/src/k8s.io/api\n)\n";
        let expected = format!(
            "module beeline-test-assets\n\ngo 1.26.0\n\nrequire k8s.io/kubernetes {VERSION}\n\nreplace (\n\
             \tk8s.io/api => k8s.io/api {STAGING_VERSION}\n)\n"
        );
        assert_eq!(go_mod(upstream), expected);
    }

    #[test]
    fn a_go_tells_its_minor_version() {
        assert_eq!(parse_go("go version go1.26.8 linux/amd64"), Some(26));
        assert_eq!(parse_go("go version go1.19rc1 linux/amd64"), Some(19));
        assert_eq!(parse_go(""), None);
    }
}
