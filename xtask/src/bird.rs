//! BIRD for the story of routing daemons: found, or taken out of Debian's packages with the library that it needs.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use crate::{apt, go, run, workspace};

const PROGRAM: &str = "bird";

/// The directory with BIRD, which is fetched first if missing. Nothing is installed or started.
pub(crate) fn ensure() -> Result<PathBuf> {
    if let Some(given) = std::env::var_os("BEELINE_BIRD").map(PathBuf::from) {
        if given.join(PROGRAM).is_file() {
            return Ok(given);
        }
        bail!("BEELINE_BIRD={} lacks {PROGRAM}", given.display());
    }
    if let Some(directory) =
        run::find(PROGRAM, &["/usr/sbin".into()]).and_then(|program| Some(program.parent()?.to_path_buf()))
    {
        return Ok(directory);
    }
    let dir = workspace::cache().join("bird");
    if dir.join(PROGRAM).is_file() {
        return Ok(dir);
    }
    if !apt::exists() {
        bail!("there is no bird and no apt-get: put it in a directory, and name that in BEELINE_BIRD");
    }
    let scratch = dir.join(".unpacked");
    run::step("BIRD", || {
        apt::unpack("libssh-gcrypt-4", &scratch).context("unpacking the library of Debian's bird2")?;
        apt::unpack("bird2", &scratch).context("unpacking Debian's bird2")?;
        let libraries = scratch.join("usr/lib").join(format!("{}-linux-gnu", std::env::consts::ARCH));
        go::place(&libraries.join("libssh-gcrypt.so.4"), &dir.join("libssh-gcrypt.so.4"))?;
        // The program comes last: with it the directory is complete.
        go::place(&scratch.join("usr/sbin").join(PROGRAM), &dir.join(PROGRAM))
    })?;
    std::fs::remove_dir_all(&scratch).with_context(|| format!("removing {}", scratch.display()))?;
    Ok(dir)
}
