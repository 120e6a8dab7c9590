//! Paths of the checkout, its target directory and the cache outside of it. Nothing is made here.

use std::path::{Path, PathBuf};

/// The checkout that xtask runs in.
pub(crate) fn root() -> PathBuf {
    // The run-time variable comes first: worktrees may share one target directory, and so one binary of xtask.
    let xtask = std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    xtask.parent().map_or_else(|| xtask.clone(), Path::to_path_buf)
}

/// Cargo's target directory for the workspace, absolute.
pub(crate) fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR")
        .and_then(|dir| std::path::absolute(dir).ok())
        .unwrap_or_else(|| root().join("target"))
}

/// The eBPF object, where lb-user's build script looks when BEELINE_EBPF_OBJECT is not set: in the checkout even if
/// CARGO_TARGET_DIR points elsewhere, so that a plain `cargo build` finds it too.
pub(crate) fn ebpf_object() -> PathBuf {
    root().join("target/ebpf/beeline.bpf.o")
}

/// The cache of things that take minutes to make and that all checkouts share.
pub(crate) fn cache() -> PathBuf {
    std::env::var_os("BEELINE_CACHE").map_or_else(|| "/var/cache/beeline".into(), PathBuf::from)
}

/// Where `cargo install` puts programs.
pub(crate) fn cargo_bin_dirs() -> Vec<PathBuf> {
    cargo_homes().map(|dir| dir.join("bin")).collect()
}

/// Flags of rustc that give the places of this machine neutral names, so that what is built does not depend on them.
pub(crate) fn remap_flags() -> Vec<String> {
    // The last match counts: the target directory is often inside of the checkout.
    let homes = cargo_homes().map(|dir| (dir, "/cargo"));
    let places = homes.chain([(root(), "/beeline"), (target_dir(), "/target")]);
    places.map(|(from, to)| format!("--remap-path-prefix={}={to}", from.display())).collect()
}

fn cargo_homes() -> impl Iterator<Item = PathBuf> {
    let cargo_home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo"));
    cargo_home.into_iter().chain(home)
}
