//! The systemd unit of `deploy/systemd`, as systemd reads it.

use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::{run, workspace};

const UNIT: &str = "deploy/systemd/beeline.service";
/// Where the unit expects the program.
const PROGRAM: &str = "/usr/local/bin/beeline";

/// Fails with every complaint of systemd about the unit.
pub(crate) fn check() -> Result<()> {
    let analyze = run::find("systemd-analyze", &[]).context("there is no systemd-analyze")?;
    let unit = std::fs::read_to_string(workspace::root().join(UNIT)).with_context(|| format!("reading {UNIT}"))?;
    ensure!(unit.contains(PROGRAM), "{UNIT} does not start {PROGRAM}");
    // The program may not be installed: another one stands for it.
    let unit = unit.replace(PROGRAM, "/bin/true");
    let dir = workspace::target_dir().join("tmp");
    std::fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
    let copy = dir.join("beeline.service");
    std::fs::write(&copy, unit).with_context(|| format!("writing {}", copy.display()))?;
    let output = Command::new(analyze).arg("verify").arg(&copy).output().context("starting systemd-analyze")?;
    // systemd-analyze ends with 0 when it has only ignored a line.
    let stderr = String::from_utf8_lossy(&output.stderr);
    let complaints: Vec<_> = stderr.lines().filter(|line| line.contains("beeline.service")).collect();
    if !output.status.success() || !complaints.is_empty() {
        bail!("systemd-analyze verify {UNIT}: {}: {}", output.status, complaints.join("\n"));
    }
    Ok(())
}
