//! Prometheus for the checks of `deploy/monitoring`: found, or taken out of Debian's package. promtool checks the
//! alerts.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{apt, go, run, workspace};

const PROGRAMS: [&str; 2] = ["prometheus", "promtool"];

/// The directory with the two programs, which are fetched first if missing. Nothing is installed or started.
pub(crate) fn ensure() -> Result<PathBuf> {
    let has_all = |dir: &Path| PROGRAMS.iter().all(|name| dir.join(name).is_file());
    if let Some(given) = std::env::var_os("BEELINE_PROMETHEUS").map(PathBuf::from) {
        return if has_all(&given) {
            Ok(given)
        } else {
            bail!("BEELINE_PROMETHEUS={} lacks {}", given.display(), PROGRAMS.join(" or "))
        };
    }
    let installed = run::find(PROGRAMS[0], &[]).and_then(|program| program.parent().map(Path::to_path_buf));
    if let Some(dir) = installed.filter(|dir| has_all(dir)) {
        return Ok(dir);
    }
    let dir = workspace::cache().join("prometheus");
    if has_all(&dir) {
        return Ok(dir);
    }
    if !apt::exists() {
        bail!(
            "there is no prometheus and no apt-get: put it and promtool in a directory, and name it in \
             BEELINE_PROMETHEUS"
        );
    }
    let scratch = dir.join(".unpacked");
    run::step("Prometheus", || {
        apt::unpack("prometheus", &scratch).context("unpacking Debian's prometheus")?;
        PROGRAMS.iter().try_for_each(|name| go::place(&scratch.join("usr/bin").join(name), &dir.join(name)))
    })?;
    std::fs::remove_dir_all(&scratch).with_context(|| format!("removing {}", scratch.display()))?;
    Ok(dir)
}

/// The alerts are well-formed, and each fires when it shall and not otherwise.
pub(crate) fn check_alerts() -> Result<()> {
    let promtool = ensure()?.join("promtool");
    for args in [["check", "rules", "alerts.yaml"], ["test", "rules", "alerts-test.yaml"]] {
        run::run(Command::new(&promtool).args(args).current_dir(workspace::root().join("deploy/monitoring")))?;
    }
    Ok(())
}
