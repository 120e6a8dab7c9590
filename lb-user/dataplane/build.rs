//! Copies the eBPF object to the place from which the crate embeds it.

use std::{env, fs, path::PathBuf};

fn main() {
    println!("cargo::rerun-if-env-changed=BEELINE_EBPF_OBJECT");
    // Read at run time: a target directory may be a copy of another checkout's, with this script compiled there.
    let here = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let default = || here.join("../../target/ebpf/beeline.bpf.o");
    let object = env::var_os("BEELINE_EBPF_OBJECT").map_or_else(default, PathBuf::from);
    println!("cargo::rerun-if-changed={}", object.display());
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it")).join("beeline.bpf.o");
    // The file may be shared, by a hard link, with the target directory that this one is a copy of.
    _ = fs::remove_file(&out);
    if let Err(error) = fs::copy(&object, out) {
        println!("cargo::error=no eBPF object at {} ({error}); run `cargo xtask build-ebpf` first", object.display());
    }
}
