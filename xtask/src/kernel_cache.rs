//! Debian's signed cloud kernels with their modules, downloaded once and kept outside the checkout. `vm` boots them.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::apt::{self, Package, Sources};
use crate::{run, workspace};

/// The keys of Debian's suites.
pub(crate) const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Suites that have had these kernels. Each is tried; a mirror may lack any of them.
const SUITES: [&str; 4] = ["bullseye", "bookworm", "bookworm-updates", "bookworm-backports"];
const SECURITY_SUITES: [&str; 2] = ["bullseye-security", "bookworm-security"];

/// The series of kernels that the stories run under.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Series {
    /// The floor: Debian 11; RHEL 9 and Ubuntu 22.04 are near it.
    #[value(name = "5.10")]
    V5_10,
    /// Debian 12.
    #[value(name = "6.1")]
    V6_1,
    /// Debian 13.
    #[value(name = "6.12")]
    V6_12,
}

impl fmt::Display for Series {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V5_10 => "5.10",
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
        })
    }
}

/// A kernel on disk.
pub(crate) struct Kernel {
    /// The kernel's image.
    pub(crate) vmlinuz: PathBuf,
    /// Modules of the kernel, with modules.dep.
    pub(crate) modules: PathBuf,
}

/// All series, oldest first.
pub(crate) fn all() -> &'static [Series] {
    Series::value_variants()
}

/// The emulator of the host's architecture, and the package that has it.
pub(crate) fn emulator() -> (&'static str, &'static str) {
    match std::env::consts::ARCH {
        "aarch64" => ("qemu-system-aarch64", "qemu-system-arm"),
        _ => ("qemu-system-x86_64", "qemu-system-x86"),
    }
}

/// A kernel of the series; the newest that Debian has is downloaded if the cache has none.
pub(crate) fn ensure(series: Series) -> Result<Kernel> {
    let home = workspace::cache().join("kernels");
    let dir = home.join(series.to_string());
    if !dir.is_dir() {
        run::step(&format!("kernel {series}: download"), || download(series, &home, &dir))?;
    }
    Ok(Kernel { vmlinuz: dir.join("vmlinuz"), modules: dir.join("modules") })
}

fn download(series: Series, home: &Path, dir: &Path) -> Result<()> {
    let sources = sources(home)?;
    let arch = match std::env::consts::ARCH {
        "aarch64" => "arm64",
        _ => "amd64",
    };
    let number = series.to_string().replace('.', r"\.");
    let offered = sources.search(&format!(r"^linux-image-{number}\.[0-9].*-cloud-{arch}$"))?;
    let newest = newest(&offered)?.with_context(|| format!("no suite has a cloud kernel {series} for {arch}"))?;
    run::note(&format!("    {} {}", newest.name, newest.version));
    let scratch = home.join(format!(".{series}"));
    if scratch.exists() {
        std::fs::remove_dir_all(&scratch).with_context(|| format!("removing {}", scratch.display()))?;
    }
    sources.unpack(&newest.name, &scratch)?;
    let release = only_entry(&scratch.join("lib/modules"))?;
    run::run(Command::new(depmod()).arg("-b").arg(&scratch).arg(&release))?;
    let placed = scratch.join("placed");
    std::fs::create_dir(&placed).with_context(|| format!("making {}", placed.display()))?;
    let place = |from: PathBuf, name: &str| {
        std::fs::rename(&from, placed.join(name)).with_context(|| format!("placing {}", from.display()))
    };
    place(scratch.join(format!("boot/vmlinuz-{release}")), "vmlinuz")?;
    place(scratch.join("lib/modules").join(&release), "modules")?;
    std::fs::rename(&placed, dir).with_context(|| format!("placing {}", dir.display()))?;
    std::fs::remove_dir_all(&scratch).with_context(|| format!("removing {}", scratch.display()))
}

/// The suites that have the kernels, their lists fetched once per run of xtask.
fn sources(home: &Path) -> Result<&'static Sources> {
    static SOURCES: OnceLock<Sources> = OnceLock::new();
    if let Some(sources) = SOURCES.get() {
        return Ok(sources);
    }
    let sources = Sources::fetch(&home.join("apt"), &source_lines(&apt::system_sources())?)?;
    Ok(SOURCES.get_or_init(|| sources))
}

/// Lines of sources.list for the suites that have the kernels, at the mirror that the system itself uses.
fn source_lines(system: &[(String, String)]) -> Result<Vec<String>> {
    let given = std::env::var("BEELINE_DEBIAN_MIRROR").ok();
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let codename = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME=")).unwrap_or_default();
    let is_debian = release.lines().any(|line| line == "ID=debian");
    let mirror_of = |suite: &str| system.iter().find(|(_, s)| s == suite).map(|(address, _)| address.clone());
    let Some(mirror) = given.clone().or_else(|| mirror_of(codename).filter(|_| is_debian)) else {
        bail!("the kernels are Debian's, and apt here has no mirror of it: name one in BEELINE_DEBIAN_MIRROR");
    };
    let security = mirror_of(&format!("{codename}-security")).filter(|_| given.is_none());
    let security = security.unwrap_or_else(|| format!("{}-security", mirror.trim_end_matches('/')));
    let line = |address: &str, suite: &str| format!("deb [signed-by={KEYRING}] {address} {suite} main");
    let plain = SUITES.iter().map(|suite| line(&mirror, suite));
    Ok(plain.chain(SECURITY_SUITES.iter().map(|suite| line(&security, suite))).collect())
}

/// The package with the highest version, by Debian's own comparison.
fn newest(packages: &[Package]) -> Result<Option<&Package>> {
    let mut best: Option<&Package> = None;
    for package in packages {
        let is_newer = match best {
            None => true,
            Some(best) => {
                let args = ["--compare-versions", &package.version, "gt", &best.version];
                Command::new("dpkg").args(args).status().context("comparing versions with dpkg")?.success()
            }
        };
        if is_newer {
            best = Some(package);
        }
    }
    Ok(best)
}

fn only_entry(dir: &Path) -> Result<String> {
    let mut entries = std::fs::read_dir(dir).with_context(|| format!("listing {}", dir.display()))?;
    let entry = entries.next().with_context(|| format!("{} is empty", dir.display()))?;
    Ok(entry.with_context(|| format!("listing {}", dir.display()))?.file_name().to_string_lossy().into_owned())
}

fn depmod() -> PathBuf {
    run::find("depmod", &["/usr/sbin".into(), "/sbin".into()]).unwrap_or_else(|| "depmod".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_is_found_by_debians_rules() {
        let package = |version: &str| Package { name: format!("linux-{version}"), version: version.to_owned() };
        let packages = ["6.12.9-1", "6.12.117-1~deb12u1", "6.12.95-1~bpo12+1"].map(package);
        assert_eq!(newest(&packages).unwrap(), Some(&packages[1]));
        assert_eq!(newest(&[]).unwrap(), None);
    }
}
