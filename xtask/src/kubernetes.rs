//! A Kubernetes API server for the tests: kube-apiserver, kubectl and etcd in a directory, built once by Go.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::{apt, go, run, workspace};

const VERSION: &str = "v1.37.2";
/// The version under which the parts of Kubernetes in its staging directory are published.
const STAGING_VERSION: &str = "v0.37.2";
const BUILT: [&str; 2] = ["kube-apiserver", "kubectl"];
/// Built for benches that compare with it and for tests that take a node over from it.
pub(crate) const KUBE_PROXY: &str = "kube-proxy";

/// The directory with the three programs; missing programs are made first.
pub(crate) fn ensure() -> Result<PathBuf> {
    if let Some(given) = std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from) {
        if lacking(&given).is_empty() {
            return Ok(given);
        }
        let lacks = lacking(&given).join(", ");
        run::note(&format!("    KUBEBUILDER_ASSETS={} lacks {lacks}: not used", given.display()));
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

/// The same with further programs of Kubernetes, except in a directory that was given and has none of them.
pub(crate) fn ensure_with(names: &[&str]) -> Result<PathBuf> {
    let dir = ensure()?;
    let missing = || -> Vec<&str> { names.iter().copied().filter(|name| !dir.join(name).is_file()).collect() };
    if dir.starts_with(workspace::cache()) && !missing().is_empty() {
        let _lock = lock(&dir)?;
        // The holder of the lock may have made them.
        let missing = missing();
        if !missing.is_empty() {
            build(&missing, &dir)?;
        }
    }
    Ok(dir)
}

/// Makes the directory, and keeps others from building in it.
fn lock(dir: &Path) -> Result<File> {
    std::fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    let lock = File::create(dir.join(".lock")).context("making a lock file")?;
    if lock.try_lock().is_err() {
        run::note(&format!("    waiting for another xtask that is building in {}", dir.display()));
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
        return go::place(installed, &dir.join("etcd"));
    }
    if !apt::exists() {
        bail!(
            "there is no etcd and no apt-get: put kube-apiserver, kubectl and etcd in a directory, and name it in \
             KUBEBUILDER_ASSETS"
        );
    }
    let scratch = dir.join(".etcd");
    apt::unpack("etcd-server", &scratch).context("unpacking Debian's etcd-server")?;
    go::place(&scratch.join("usr/bin/etcd"), &dir.join("etcd"))?;
    std::fs::remove_dir_all(&scratch).with_context(|| format!("removing {}", scratch.display()))
}

fn build(names: &[&str], dir: &Path) -> Result<()> {
    let scratch = dir.join(".build");
    std::fs::create_dir_all(&scratch).with_context(|| format!("making {}", scratch.display()))?;
    run::step(&format!("Kubernetes {VERSION}: sources"), || {
        let module = run::capture(go::command(&scratch)?.args([
            "mod",
            "download",
            "-json",
            &format!("k8s.io/kubernetes@{VERSION}"),
        ]))?;
        let module: serde_json::Value =
            serde_json::from_str(&module).context("reading the output of `go mod download`")?;
        let upstream = module["GoMod"].as_str().context("`go mod download` names no go.mod")?;
        let upstream = std::fs::read_to_string(upstream).with_context(|| format!("reading {upstream}"))?;
        std::fs::write(scratch.join("go.mod"), go_mod(&upstream)).context("writing go.mod")
    })?;
    for name in names {
        run::step(&format!("Kubernetes {VERSION}: {name} (minutes, once)"), || {
            let package = format!("k8s.io/kubernetes/cmd/{name}");
            let args = ["build", "-mod=mod", "-ldflags", &ldflags(), "-o", name, &package];
            run::run(go::command(&scratch)?.args(args))?;
            go::place(&scratch.join(name), &dir.join(name))
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
}
