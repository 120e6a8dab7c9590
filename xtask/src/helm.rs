//! Helm for the tests of the chart: the system's, or else built once from the Go module proxy.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::{go, run, workspace};

const VERSION: &str = "v3.22.0";

/// The program; built first if the system has none.
pub(crate) fn ensure() -> Result<PathBuf> {
    let given = std::env::var_os("BEELINE_HELM").map(PathBuf::from);
    if let Some(helm) = given.or_else(|| run::find("helm", &[])) {
        return Ok(helm);
    }
    let dir = workspace::cache().join(format!("helm-{VERSION}"));
    let helm = dir.join("helm");
    if !helm.is_file() {
        let scratch = dir.join(".build");
        std::fs::create_dir_all(&scratch).with_context(|| format!("making {}", scratch.display()))?;
        run::step(&format!("Helm {VERSION} (minutes, once)"), || {
            let mut go = go::command(&scratch)?;
            let package = format!("helm.sh/helm/v3/cmd/helm@{VERSION}");
            run::run(go.env("GOBIN", &scratch).args(["install", "-ldflags=-s -w", &package]))?;
            go::place(&scratch.join("helm"), &helm)
        })?;
        std::fs::remove_dir_all(&scratch).with_context(|| format!("removing {}", scratch.display()))?;
    }
    Ok(helm)
}
