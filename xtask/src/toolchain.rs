//! A Rust compiler for bpfel-unknown-none, and the linker that goes with it: find one, or install one.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::{apt, run, workspace};

/// The target that the eBPF programs are compiled for.
pub(crate) const TARGET: &str = "bpfel-unknown-none";

const BPF_LINKER: &str = "0.13.0";
/// The LLVM majors that this bpf-linker can be built with.
const LLVMS: std::ops::RangeInclusive<u32> = 21..=23;
const DEBIAN: [&str; 3] = ["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf"];

/// Where a compiler comes from, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// Debian's rustc-web, which has `core` for BPF prebuilt.
    Debian,
    /// A rustup nightly with rust-src, which builds `core` itself.
    Nightly,
    /// The toolchain that runs xtask, with rust-src: builds `core` itself, with nightly features let in.
    Stable,
}

/// A compiler that can build the eBPF programs.
pub(crate) struct Compiler {
    /// Origin of the compiler.
    pub(crate) kind: Kind,
    cargo: PathBuf,
    rustc: PathBuf,
    release: String,
    llvm: u32,
}

impl Compiler {
    /// cargo of the toolchain, in a clean environment.
    pub(crate) fn cargo(&self) -> Command {
        let mut command = run::foreign_cargo(&self.cargo);
        command.env("RUSTC", &self.rustc);
        if self.kind != Kind::Nightly {
            // Says yes to `-Z build-std`, and to the features that the BPF crates switch on.
            command.env("RUSTC_BOOTSTRAP", "1");
        }
        command
    }

    /// Arguments of its cargo beside `build --target`.
    pub(crate) fn flags(&self) -> &'static [&'static str] {
        match self.kind {
            Kind::Debian => &[],
            Kind::Nightly | Kind::Stable => &["-Z", "build-std=core"],
        }
    }

    /// One line about it.
    pub(crate) fn describe(&self) -> String {
        let how = match self.kind {
            Kind::Debian => "Debian's rustc-web, core for BPF prebuilt",
            Kind::Nightly => "rustup's nightly, -Z build-std=core",
            Kind::Stable => "xtask's own toolchain, RUSTC_BOOTSTRAP=1 -Z build-std=core",
        };
        format!("rustc {} with LLVM {} ({how})", self.release, self.llvm)
    }
}

/// The best compiler that is there with its linker, or else the first kind that can be installed.
pub(crate) fn ensure(forced: Option<Kind>) -> Result<(Compiler, PathBuf)> {
    let there = |kind: &Kind| {
        let compiler = probe(*kind)?;
        let linker = find_linker(&compiler)?;
        Some((compiler, linker))
    };
    if let Some(pair) = kinds(forced).iter().find_map(there) {
        return Ok(pair);
    }
    let mut reasons = Vec::new();
    for kind in kinds(forced) {
        match get(*kind) {
            Ok(pair) => return Ok(pair),
            Err(error) => reasons.push(format!("{kind:?}: {error:#}")),
        }
    }
    bail!(
        "no Rust compiler and linker for {TARGET}, and none could be installed. Any of these compilers will do: the \
         Debian packages {}; or `rustup toolchain install nightly --component rust-src`; or \
         `rustup component add rust-src`.\n  {}",
        DEBIAN.join(" "),
        reasons.join("\n  ")
    )
}

/// One kind of compiler with its linker; missing ones are installed.
fn get(kind: Kind) -> Result<(Compiler, PathBuf)> {
    let compiler = match probe(kind) {
        Some(compiler) => compiler,
        None => {
            install(kind)?;
            probe(kind)
                .with_context(|| format!("installed, and not usable: not found, or LLVM above {}", LLVMS.end()))?
        }
    };
    let linker = ensure_linker(&compiler)?;
    Ok((compiler, linker))
}

/// bpf-linker, if installed in the right version with an LLVM that reads the output of `compiler`.
fn find_linker(compiler: &Compiler) -> Option<PathBuf> {
    let linker = run::find("bpf-linker", &workspace::cargo_bin_dirs())?;
    let version = run::capture(Command::new(&linker).arg("--version")).ok()?;
    let libraries = run::capture(Command::new("ldd").arg(&linker)).unwrap_or_default();
    let old = linked_llvm(&libraries).is_some_and(|major| major < compiler.llvm);
    (version.trim() == format!("bpf-linker {BPF_LINKER}") && !old).then_some(linker)
}

/// bpf-linker; built first if missing, with LLVM of the compiler's major or the next that is offered.
fn ensure_linker(compiler: &Compiler) -> Result<PathBuf> {
    if let Some(linker) = find_linker(compiler) {
        return Ok(linker);
    }
    let llvm = ensure_llvm(compiler)?;
    let name = format!("bpf-linker {BPF_LINKER} with LLVM {llvm}");
    run::step(&format!("building {name}"), || {
        let feature = format!("llvm-{llvm}");
        let flags = ["--version", BPF_LINKER, "--no-default-features", "--features", &feature];
        let mut cargo = run::foreign_cargo(&std::env::var_os("CARGO").map_or_else(|| "cargo".into(), PathBuf::from));
        // The toolchain that runs xtask is right here; only its flags are not.
        cargo.env("LLVM_PREFIX", llvm_prefix(llvm));
        if let Some(toolchain) = std::env::var_os("RUSTUP_TOOLCHAIN") {
            cargo.env("RUSTUP_TOOLCHAIN", toolchain);
        }
        run::run(cargo.args(["install", "bpf-linker"]).args(flags))
    })?;
    find_linker(compiler)
        .with_context(|| format!("{name} was built, and is neither in PATH nor in Cargo's bin directory"))
}

fn kinds(forced: Option<Kind>) -> &'static [Kind] {
    match forced {
        None => Kind::value_variants(),
        Some(Kind::Debian) => &[Kind::Debian],
        Some(Kind::Nightly) => &[Kind::Nightly],
        Some(Kind::Stable) => &[Kind::Stable],
    }
}

fn probe(kind: Kind) -> Option<Compiler> {
    let sysroot = match kind {
        Kind::Debian => PathBuf::from("/usr"),
        Kind::Nightly => sysroot(Command::new("rustup").args(["run", "nightly", "rustc"]))?,
        Kind::Stable => sysroot(&mut Command::new("rustc"))?,
    };
    let has_core = match kind {
        Kind::Debian => has_prebuilt_core(&sysroot),
        Kind::Nightly | Kind::Stable => sysroot.join("lib/rustlib/src/rust/library/core/src/lib.rs").is_file(),
    };
    let (cargo, rustc) = (sysroot.join("bin/cargo"), sysroot.join("bin/rustc"));
    if !has_core || !cargo.is_file() {
        return None;
    }
    let (release, llvm) = parse_version(&run::capture(run::foreign_cargo(&rustc).arg("-vV")).ok()?)?;
    (llvm <= *LLVMS.end()).then_some(Compiler { kind, cargo, rustc, release, llvm })
}

fn sysroot(rustc: &mut Command) -> Option<PathBuf> {
    let path = run::capture(rustc.args(["--print", "sysroot"])).ok()?;
    Some(PathBuf::from(path.trim()))
}

fn has_prebuilt_core(sysroot: &Path) -> bool {
    let files = std::fs::read_dir(sysroot.join("lib/rustlib").join(TARGET).join("lib")).into_iter().flatten().flatten();
    files.map(|file| file.file_name()).any(|name| {
        let name = name.to_string_lossy();
        name.starts_with("libcore-") && name.ends_with(".rlib")
    })
}

fn install(kind: Kind) -> Result<()> {
    match kind {
        Kind::Debian if !apt::exists() => bail!("there is no apt-get"),
        Kind::Debian if apt::offered(&DEBIAN)?.len() < DEBIAN.len() => {
            bail!("apt offers no {}", DEBIAN.join(" "))
        }
        Kind::Debian => apt::install(&DEBIAN),
        // An installed nightly stays as old as it is: the user may have chosen it.
        Kind::Nightly if sysroot(Command::new("rustup").args(["run", "nightly", "rustc"])).is_some() => {
            let args = ["component", "add", "rust-src", "--toolchain", "nightly"];
            run::step("rustup: rust-src for nightly", || run::run(Command::new("rustup").args(args)))
        }
        Kind::Nightly => {
            let args = ["toolchain", "install", "nightly", "--profile", "minimal", "--component", "rust-src"];
            run::step("rustup: a nightly with rust-src", || run::run(Command::new("rustup").args(args)))
        }
        Kind::Stable => {
            let args = ["component", "add", "rust-src"];
            run::step("rustup: rust-src", || run::run(Command::new("rustup").args(args)))
        }
    }
}

/// The LLVM to build bpf-linker with: the lowest major that reads the compiler's output and is there or offered.
fn ensure_llvm(compiler: &Compiler) -> Result<u32> {
    let majors: Vec<u32> = LLVMS.filter(|major| *major >= compiler.llvm).collect();
    let is_there = |major: &u32| llvm_prefix(*major).join("include/llvm-c/Core.h").is_file();
    if let Some(major) = majors.iter().copied().find(is_there) {
        return Ok(major);
    }
    let names: Vec<String> = majors.iter().map(|major| format!("llvm-{major}-dev")).collect();
    let cure = format!("bpf-linker needs one of {} (for {})", names.join(", "), compiler.describe());
    if !apt::exists() {
        bail!("{cure}, and there is no apt-get to install it with");
    }
    let offered = apt::offered(&names.iter().map(String::as_str).collect::<Vec<_>>())?;
    let is_offered = |major: &u32| offered.iter().any(|package| package.name == format!("llvm-{major}-dev"));
    let Some(major) = majors.iter().copied().find(is_offered) else {
        bail!(
            "{cure}, and apt offers none of them: add a source of LLVM packages, or install bpf-linker {BPF_LINKER} \
             yourself"
        );
    };
    apt::install(&[&format!("llvm-{major}-dev"), "libzstd-dev", "zlib1g-dev"])?;
    Ok(major)
}

fn llvm_prefix(major: u32) -> PathBuf {
    PathBuf::from(format!("/usr/lib/llvm-{major}"))
}

/// The release and the LLVM major that `rustc -vV` tells.
fn parse_version(text: &str) -> Option<(String, u32)> {
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let llvm = field("LLVM version:")?.split('.').next()?.parse().ok()?;
    Some((field("release:")?.to_owned(), llvm))
}

/// The major of the libLLVM among the libraries that `ldd` tells.
fn linked_llvm(libraries: &str) -> Option<u32> {
    let rest = libraries.lines().find_map(|line| line.trim().strip_prefix("libLLVM"))?;
    let digits = rest.trim_start_matches(|c: char| !c.is_ascii_digit());
    digits.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_compiler_tells_its_release_and_llvm() {
        let text = "rustc 1.96.0 (x)\nbinary: rustc\nrelease: 1.96.0\nLLVM version: 22.1.8\n";
        assert_eq!(parse_version(text), Some(("1.96.0".into(), 22)));
        assert_eq!(parse_version("rustc 1.96.0\nrelease: 1.96.0\n"), None);
    }

    #[test]
    fn the_linkers_llvm_is_read_from_either_name_of_the_library() {
        assert_eq!(linked_llvm("\tlinux-vdso.so.1 (0x0)\n\tlibLLVM.so.22.1 => /x/libLLVM.so.22.1 (0x0)\n"), Some(22));
        assert_eq!(linked_llvm("\tlibLLVM-21.so.1 => /x (0x0)\n"), Some(21));
        assert_eq!(linked_llvm("\tlibc.so.6 => /x (0x0)\n"), None);
    }
}
