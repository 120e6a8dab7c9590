//! BIRD and FRR for the stories of routing daemons: found, or taken out of Debian's packages with the libraries that
//! they need.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{apt, go, run, workspace};

/// A routing daemon.
struct Daemon {
    name: &'static str,
    /// Environment variable with the directory of the programs and libraries.
    variable: &'static str,
    /// Programs, and the directory where Debian has them.
    programs: &'static [&'static str],
    directory: &'static str,
    /// Package of Debian and Ubuntu with the programs.
    package: &'static str,
}

const BIRD: Daemon =
    Daemon { name: "bird", variable: "BEELINE_BIRD", programs: &["bird"], directory: "usr/sbin", package: "bird2" };

const FRR: Daemon = Daemon {
    name: "frr",
    variable: "BEELINE_FRR",
    programs: &["bgpd", "zebra"],
    directory: "usr/lib/frr",
    package: "frr",
};

/// The directory with BIRD, which is fetched first if missing. Nothing is installed or started.
pub(crate) fn ensure_bird() -> Result<PathBuf> {
    ensure(&BIRD)
}

/// The directory with zebra and bgpd of FRR, as [`ensure_bird`].
pub(crate) fn ensure_frr() -> Result<PathBuf> {
    ensure(&FRR)
}

fn ensure(daemon: &Daemon) -> Result<PathBuf> {
    let Daemon { name, variable, programs, .. } = daemon;
    let is_complete = |dir: &Path| programs.iter().all(|program| dir.join(program).is_file());
    if let Some(given) = std::env::var_os(variable).map(PathBuf::from) {
        if is_complete(&given) {
            return Ok(given);
        }
        bail!("{variable}={} lacks one of {programs:?}", given.display());
    }
    let installed = run::find(programs[0], &[Path::new("/").join(daemon.directory)]);
    if let Some(dir) = installed.as_deref().and_then(Path::parent).filter(|dir| is_complete(dir)) {
        return Ok(dir.to_path_buf());
    }
    let dir = workspace::cache().join(name);
    if is_complete(&dir) {
        return Ok(dir);
    }
    if !apt::exists() {
        bail!("there is no {name} and no apt-get: put {programs:?} in a directory, and name that in {variable}");
    }
    let scratch = dir.join(".unpacked");
    run::step(name, || {
        apt::unpack(daemon.package, &scratch)?;
        let unpacked: Vec<PathBuf> =
            programs.iter().map(|program| scratch.join(daemon.directory).join(program)).collect();
        place_libraries(&unpacked, &scratch, &dir)?;
        // The programs come last: with them the directory is complete.
        unpacked.iter().try_for_each(|file| go::place(file, &dir.join(file.file_name().unwrap_or_default())))
    })?;
    std::fs::remove_dir_all(&scratch).with_context(|| format!("removing {}", scratch.display()))?;
    Ok(dir)
}

/// Places the libraries that programs need and the machine lacks into `dir`: those in `scratch`, else those of other
/// packages, which are unpacked there. Releases of Debian and Ubuntu have other versions of them.
fn place_libraries(programs: &[PathBuf], scratch: &Path, dir: &Path) -> Result<()> {
    loop {
        let mut missing = Vec::new();
        for program in programs {
            // ldd fails for a file without a dynamic section only.
            missing.extend(not_found(&run::capture(Command::new("ldd").arg(program).env("LD_LIBRARY_PATH", dir))?));
        }
        missing.sort_unstable();
        missing.dedup();
        if missing.is_empty() {
            return Ok(());
        }
        for name in missing {
            if find_below(&scratch.join("usr/lib"), &name).is_none() {
                let names = packages_of(&name);
                let names: Vec<&str> = names.iter().map(String::as_str).collect();
                let offered = apt::offered(&names)?;
                let package = offered.first().with_context(|| format!("no package of {names:?} is offered"))?;
                apt::unpack(&package.name, scratch).with_context(|| format!("unpacking {}", package.name))?;
            }
            let file = find_below(&scratch.join("usr/lib"), &name);
            go::place(&file.with_context(|| format!("no package has {name}"))?, &dir.join(&name))?;
        }
    }
}

/// Names of the libraries that ldd(1) does not find.
fn not_found(ldd: &str) -> Vec<String> {
    let name = |line: &str| Some(line.trim().strip_suffix("=> not found")?.trim().to_owned());
    ldd.lines().filter_map(name).collect()
}

/// Names that the package of a library may have (Debian Policy, 8.1; the suffix for times of 64 bits since 2024).
fn packages_of(library: &str) -> Vec<String> {
    let (name, version) = library.split_once(".so.").unwrap_or((library, ""));
    let hyphens = if name.ends_with(|last: char| last.is_ascii_digit()) { vec!["-"] } else { vec!["", "-"] };
    let package = |hyphen: &str| format!("{name}{hyphen}{version}").to_lowercase().replace('_', "-");
    hyphens.into_iter().map(package).flat_map(|package| [format!("{package}t64"), package]).collect()
}

fn find_below(dir: &Path, name: &str) -> Option<PathBuf> {
    let entries = std::fs::read_dir(dir).ok()?.flatten().map(|entry| entry.path());
    let (dirs, files): (Vec<_>, Vec<_>) = entries.partition(|path| path.is_dir());
    let found = files.into_iter().find(|path| path.file_name().is_some_and(|of| of == name));
    found.or_else(|| dirs.iter().find_map(|dir| find_below(dir, name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_libraries_lead_to_packages() {
        let ldd = "\tlinux-vdso.so.1 (0x7)\n\tlibyang.so.2 => not found\n\tlibc.so.6 => /lib/libc.so.6 (0x7)\n";
        assert_eq!(not_found(ldd), ["libyang.so.2"]);
        assert_eq!(packages_of("libyang.so.2"), ["libyang2t64", "libyang2", "libyang-2t64", "libyang-2"]);
        assert_eq!(packages_of("libpcre2-8.so.0"), ["libpcre2-8-0t64", "libpcre2-8-0"]);
        assert!(packages_of("libssh-gcrypt.so.4").contains(&"libssh-gcrypt-4".to_owned()));
    }
}
