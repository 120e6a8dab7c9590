//! Verb `build-ebpf`: compiles the eBPF programs, and places the object where lb-user's build script embeds it from.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::setup::{self, Need, Tools};
use crate::toolchain::{Kind, TARGET};
use crate::{btf, run, workspace};

/// Arguments of `build-ebpf`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The compiler to use, rather than the best that there is.
    #[arg(long, value_enum)]
    toolchain: Option<Kind>,
}

/// Runs the verb: prints the object's path and size.
pub(crate) fn main(args: &Args) -> Result<ExitCode> {
    let tools = setup::ensure(Need::Build, args.toolchain)?;
    let object = run::step("build-ebpf", || build(&tools, Layout::Own))?;
    let size = std::fs::metadata(&object).context("looking at the object")?.len();
    run::print(&format!("{} {size} bytes", object.display()));
    Ok(ExitCode::SUCCESS)
}

/// The version of the map layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// The layout of this version.
    Own,
    /// The layout of a made-up next version, for stories of upgrade and rollback (feature `next-layout` of lb-common).
    Next,
}

/// Compiles. The object is written only if it changes, so that an equal object rebuilds nothing.
pub(crate) fn build(tools: &Tools, layout: Layout) -> Result<PathBuf> {
    let target_dir = workspace::target_dir().join("ebpf-build");
    let mut cargo = tools.compiler.cargo();
    cargo.current_dir(workspace::root().join("lb-ebpf"));
    cargo.env("CARGO_TARGET_DIR", &target_dir).env("CARGO_ENCODED_RUSTFLAGS", rustflags(&tools.linker));
    cargo.args(["build", "--release", "--target", TARGET]).args(tools.compiler.flags());
    let object = match layout {
        Layout::Own => workspace::ebpf_object(),
        Layout::Next => {
            cargo.args(["--features", "next-layout"]);
            workspace::ebpf_object().with_file_name("beeline-next.bpf.o")
        }
    };
    run::run(&mut cargo)?;
    place_if_changed(&target_dir.join(TARGET).join("release/beeline"), &object)?;
    Ok(object)
}

/// Flags of the compiler, in Cargo's encoding, which lets paths have spaces.
fn rustflags(linker: &Path) -> String {
    let linker = format!("-Clinker={}", linker.display());
    // The architecture decides how a program reads the registers of what it traces; the object is for hosts like ours.
    let arch = format!("--cfg=bpf_target_arch=\"{}\"", std::env::consts::ARCH);
    let flags = [&linker, "-Clink-arg=--btf", "-Cdebuginfo=2", "-Ccodegen-units=1", &arch];
    // The object's BTF names source files.
    [flags.map(str::to_owned).to_vec(), workspace::remap_flags()].concat().join("\x1f")
}

fn place_if_changed(from: &Path, to: &Path) -> Result<()> {
    let mut new = std::fs::read(from).with_context(|| format!("reading {}", from.display()))?;
    btf::repair(&mut new).context("repairing the object's BTF")?;
    if std::fs::read(to).is_ok_and(|old| old == new) {
        return Ok(());
    }
    let dir = to.parent().context("the object has no directory")?;
    std::fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    std::fs::write(to, new).with_context(|| format!("writing {}", to.display()))
}
