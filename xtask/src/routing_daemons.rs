//! BIRD and FRR for the stories of routing daemons: found, or taken out of Debian's packages with the libraries that
//! they need.

use std::path::{Path, PathBuf};

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
    /// Packages of Debian with programs and libraries.
    packages: &'static [&'static str],
    /// Libraries, by their paths behind that of the machine's libraries.
    libraries: &'static [&'static str],
}

const BIRD: Daemon = Daemon {
    name: "bird",
    variable: "BEELINE_BIRD",
    programs: &["bird"],
    directory: "usr/sbin",
    packages: &["libssh-gcrypt-4", "bird2"],
    libraries: &["libssh-gcrypt.so.4"],
};

const FRR: Daemon = Daemon {
    name: "frr",
    variable: "BEELINE_FRR",
    programs: &["bgpd", "zebra"],
    directory: "usr/lib/frr",
    packages: &["libjson-c5", "libpcre2-8-0", "libyang2", "frr"],
    libraries: &["libjson-c.so.5", "libpcre2-8.so.0", "libyang.so.2", "frr/libfrr.so.0"],
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
        for package in daemon.packages {
            apt::unpack(package, &scratch).with_context(|| format!("unpacking Debian's {package}"))?;
        }
        let libraries = scratch.join("usr/lib").join(format!("{}-linux-gnu", std::env::consts::ARCH));
        // The programs come last: with them the directory is complete.
        let libraries = daemon.libraries.iter().map(|library| libraries.join(library));
        let programs = programs.iter().map(|program| scratch.join(daemon.directory).join(program));
        for file in libraries.chain(programs) {
            go::place(&file, &dir.join(file.file_name().unwrap_or_default()))?;
        }
        Ok(())
    })?;
    std::fs::remove_dir_all(&scratch).with_context(|| format!("removing {}", scratch.display()))?;
    Ok(dir)
}
