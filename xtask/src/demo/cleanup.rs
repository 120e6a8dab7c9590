//! Cleanup after the demo, however it ends. It is a process of its own, since a signal may end the demo at any moment:
//! it waits for the end of a pipe that the demo holds.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lb_lab::sandbox::end_cgroup;

/// The resources to remove; none of them need exist. Namespaces, the bpffs and its pins end with the processes.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Resources {
    /// The cgroup: processes in it and below are killed.
    #[arg(long)]
    pub(crate) cgroup: PathBuf,
    /// The directory of files.
    #[arg(long)]
    pub(crate) directory: PathBuf,
}

/// Waits for the end of stdin, then removes the resources. Input before the end means that the demo ran to its end.
pub(super) fn main(resources: &Resources) -> Result<ExitCode> {
    let mut input = Vec::new();
    std::io::stdin().read_to_end(&mut input).context("waiting for the demo's end")?;
    resources.remove()?;
    if input.is_empty() {
        eprintln!("the demo ended early; its processes, namespaces, cgroup and files are removed");
    }
    Ok(ExitCode::SUCCESS)
}

impl Resources {
    /// The flags that name these resources.
    pub(super) fn to_args(&self) -> Vec<String> {
        vec![format!("--cgroup={}", self.cgroup.display()), format!("--directory={}", self.directory.display())]
    }

    /// Returns the resources that exist.
    pub(super) fn left(&self) -> Vec<&Path> {
        [&self.cgroup, &self.directory].into_iter().map(PathBuf::as_path).filter(|path| path.exists()).collect()
    }

    /// Removes processes first, since they hold the rest.
    fn remove(&self) -> Result<()> {
        end_cgroup(&self.cgroup, Duration::from_secs(10));
        if self.directory.exists() {
            fs::remove_dir_all(&self.directory).with_context(|| format!("removing {}", self.directory.display()))?;
        }
        let left = self.left();
        ensure!(left.is_empty(), "the demo could not remove {left:?}");
        Ok(())
    }
}
