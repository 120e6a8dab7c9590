//! Verb `image`: the static agent as a container image, from scratch. The same commit gives the same image on any
//! machine.

mod archive;
mod sbom;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

use crate::build::{self, Link, Profile};
use crate::setup::{self, Need};
use crate::toolchain::Kind;
use crate::{run, workspace};
use archive::{Archive, Image};

/// Name of the image and of its one file.
pub(crate) const NAME: &str = "beeline";

/// Arguments of `image`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The image's name, with a registry if it goes to one; the tag is the version.
    #[arg(long, default_value = NAME)]
    name: String,
    /// The compiler of the eBPF programs, rather than the best that there is.
    #[arg(long, value_enum)]
    toolchain: Option<Kind>,
}

/// Licence of the agent and of the eBPF programs in it.
const LICENCE: &str = concat!("(", env!("CARGO_PKG_LICENSE"), ") AND GPL-2.0-only");

/// Runs the verb: prints the archive's path and sizes, the image's digest, and the path of its bill of materials.
pub(crate) fn main(args: &Args) -> Result<ExitCode> {
    let architecture = architecture()?;
    let built = build::build(&setup::ensure(Need::Build, args.toolchain)?, Profile::Release, Link::Static, None)?;
    let (binary, archive, path, bill) = run::step("image", || {
        std::fs::create_dir_all(dir()).with_context(|| format!("making {}", dir().display()))?;
        // Beside the archive: the Containerfile takes it from there.
        let binary = strip(&built.agent, &dir().join(NAME))?;
        let archive = write(&args.name, architecture, (NAME, &binary), &[])?;
        let path = dir().join(format!("{NAME}-{}-{architecture}.tar", env!("CARGO_PKG_VERSION")));
        std::fs::write(&path, &archive.bytes).with_context(|| format!("writing {}", path.display()))?;
        let bill = dir().join(format!("{NAME}-{}-{architecture}.cdx.json", env!("CARGO_PKG_VERSION")));
        std::fs::write(&bill, materials(&binary)?).with_context(|| format!("writing {}", bill.display()))?;
        Ok((binary.len(), archive, path, bill))
    })?;
    run::print(&path.display().to_string());
    run::print(&format!("program {}, layer {}, archive {}", mb(binary), mb(archive.layer), mb(archive.bytes.len())));
    run::print(&archive.digest);
    run::print(&bill.display().to_string());
    Ok(ExitCode::SUCCESS)
}

/// An image of one program, which is run with these arguments unless a container gives its own.
pub(crate) fn write(name: &str, architecture: &str, program: (&str, &[u8]), arguments: &[&str]) -> Result<Archive> {
    let created = rfc3339(created()?);
    let revision = revision();
    let mut labels = vec![
        ("title", "Beeline"),
        ("description", "Load balancer for Kubernetes Services at the socket"),
        ("version", env!("CARGO_PKG_VERSION")),
        ("created", &created),
        ("licenses", LICENCE),
    ];
    labels.extend(revision.iter().map(|revision| ("revision", revision.as_str())));
    let image = Image {
        name,
        version: env!("CARGO_PKG_VERSION"),
        architecture,
        created: &created,
        labels: &labels,
        program,
        arguments,
    };
    archive::write(&image).context("writing the archive")
}

/// The bill of materials: the crates that cargo links on this machine, and the libraries that the compiler adds.
fn materials(binary: &[u8]) -> Result<String> {
    let host = build::host()?;
    let tree = ["tree", "--locked", "--edges=normal,no-proc-macro", "--prefix=none", "--format={p}|{l}", "--target"];
    let agent = run::capture(run::cargo().args(tree).args([&host, "--package=lb-user"]))?;
    let programs = run::capture(run::cargo().args(tree).arg("all").current_dir(workspace::root().join("lb-ebpf")))?;
    let mut parts = sbom::crates(&agent)?;
    parts.extend(sbom::crates(&programs)?);
    let release = run::capture(Command::new("rustc").arg("-vV"))?;
    let release = release.lines().find_map(|line| line.strip_prefix("release: ")).context("rustc tells no release")?;
    let mut add = |name: &str, version: &str, licence: &str| {
        let (name, version, licence) = (name.to_owned(), version.to_owned(), licence.to_owned());
        parts.insert(sbom::Part { name, version, licence, kind: "generic" });
    };
    add("rust-std", release, "MIT OR Apache-2.0");
    if host.ends_with("-gnu") {
        // A static program has the machine's own C library in it.
        let glibc = run::capture(Command::new("getconf").arg("GNU_LIBC_VERSION"))?;
        add("glibc", glibc.trim().trim_start_matches("glibc "), "LGPL-2.1-or-later");
    }
    let mut sums = std::collections::BTreeMap::new();
    for lock in ["Cargo.lock", "lb-ebpf/Cargo.lock"] {
        let text = std::fs::read_to_string(workspace::root().join(lock)).with_context(|| format!("reading {lock}"))?;
        sums.extend(sbom::checksums(&text));
    }
    let created = rfc3339(created()?);
    let version = env!("CARGO_PKG_VERSION");
    sbom::render(&sbom::Program { name: NAME, version, licence: LICENCE, binary, created: &created }, &parts, &sums)
}

/// In the checkout even if CARGO_TARGET_DIR points elsewhere: deploy/Containerfile names it.
fn dir() -> PathBuf {
    workspace::root().join("target/image")
}

/// Places a program without symbols, which are three quarters of it. Panics name their line without them.
pub(crate) fn strip(program: &Path, to: &Path) -> Result<Vec<u8>> {
    let args = ["--strip-all".as_ref(), "-o".as_ref(), to.as_os_str(), program.as_os_str()];
    run::run(Command::new("strip").args(args)).context("stripping (strip is of binutils)")?;
    std::fs::read(to).with_context(|| format!("reading {}", to.display()))
}

/// This machine as OCI names it.
pub(crate) fn architecture() -> Result<&'static str> {
    oci_name(std::env::consts::ARCH)
}

fn oci_name(rust: &str) -> Result<&'static str> {
    match rust {
        "x86_64" => Ok("amd64"),
        "aarch64" => Ok("arm64"),
        _ => bail!("images are for x86_64 and aarch64, and this machine is {rust}"),
    }
}

/// Time of the sources, in seconds since 1970: SOURCE_DATE_EPOCH, or else the commit's. The time of a build would
/// differ.
fn created() -> Result<u64> {
    // https://reproducible-builds.org/specs/source-date-epoch/
    if let Ok(epoch) = std::env::var("SOURCE_DATE_EPOCH") {
        return epoch
            .parse()
            .with_context(|| format!("SOURCE_DATE_EPOCH is {epoch}, and should be seconds since 1970"));
    }
    // Sources without a repository, such as those of a release's archive, have no time to tell.
    let commit = git(&["log", "-1", "--format=%ct"]).unwrap_or_else(|_| "0".to_owned());
    commit.parse().with_context(|| format!("git tells {commit} as a commit's time"))
}

/// The commit, with `-dirty` if the checkout has changes; none without a repository.
fn revision() -> Option<String> {
    let commit = git(&["rev-parse", "HEAD"]).ok()?;
    let changes = git(&["status", "--porcelain"]).ok()?;
    Some(if changes.is_empty() { commit } else { format!("{commit}-dirty") })
}

fn git(args: &[&str]) -> Result<String> {
    let output = run::capture(Command::new("git").arg("-C").arg(workspace::root()).args(args))?;
    Ok(output.trim().to_owned())
}

/// Seconds since 1970 as a date and time of UTC.
fn rfc3339(seconds: u64) -> String {
    let (mut days, rest) = (seconds / 86_400, seconds % 86_400);
    let is_leap = |year: u64| year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400);
    let mut year = 1970;
    while days >= 365 + u64::from(is_leap(year)) {
        days -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let mut month = 1;
    for length in [31, 28 + u64::from(is_leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year}-{month:02}-{:02}T{hour:02}:{minute:02}:{second:02}Z", days + 1)
}

fn mb(bytes: usize) -> String {
    let tenths = bytes / 100_000;
    format!("{}.{} MB", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_dates() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(rfc3339(951_868_799), "2000-02-29T23:59:59Z");
        assert_eq!(rfc3339(1_735_689_599), "2024-12-31T23:59:59Z");
        assert_eq!(rfc3339(4_107_542_400), "2100-03-01T00:00:00Z");
    }

    #[test]
    fn machines_have_their_names() {
        assert_eq!(oci_name("aarch64").unwrap(), "arm64");
        assert!(oci_name("riscv64").unwrap_err().to_string().contains("riscv64"));
    }

    #[test]
    fn the_bill_has_the_linked_crates_and_nothing_else() {
        let bill: serde_json::Value = serde_json::from_str(&materials(b"x").unwrap()).unwrap();
        let components = bill["components"].as_array().unwrap();
        let has = |name: &str| components.iter().any(|component| component["name"] == name);
        for name in ["lb-user", "lb-common", "lb-ebpf", "tokio", "aya", "aya-ebpf", "rust-std"] {
            assert!(has(name), "{name} is linked");
        }
        // Tests, macros, and what makes the image.
        for name in ["proptest", "serde_derive", "xtask", "tar"] {
            assert!(!has(name), "{name} is not linked");
        }
        let ours = |name: &str| name.starts_with("lb-") || ["rust-std", "glibc"].contains(&name);
        let named = components.iter().filter(|component| component.get("hashes").is_none());
        assert!(named.clone().all(|component| component["name"].as_str().is_some_and(ours)), "{named:?}");
    }

    #[test]
    fn the_containerfile_makes_the_same_image() {
        let text = std::fs::read_to_string(workspace::root().join("deploy/Containerfile")).unwrap();
        let steps: Vec<&str> = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
        // The config that `archive` writes, its one file, and nothing else.
        let program = format!("COPY --chmod=0755 {NAME} /{NAME}");
        let entry = format!("ENTRYPOINT [\"/{NAME}\"]");
        assert_eq!(steps, ["FROM scratch", &program, "ENV PATH=/", &entry]);
        let tag = format!("-t {NAME}:{}", env!("CARGO_PKG_VERSION"));
        assert_eq!(text.matches(&tag).count(), 2, "the commands name this version");
        assert!(
            text.lines().any(|line| line.ends_with(" target/image")),
            "and where the program is: {}",
            dir().display()
        );
    }

    #[test]
    fn sizes_are_short() {
        assert_eq!(mb(12_345_678), "12.3 MB");
    }
}
