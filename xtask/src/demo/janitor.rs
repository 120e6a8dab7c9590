//! Removes what the demo made, once the demo has ended in whatever way. A process of its own, since a signal may end the
//! demo at any moment: it waits for the end of a pipe that the demo holds.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// What is to be removed; none of it need exist.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Things {
    /// Network namespaces, by name.
    #[arg(long = "namespace")]
    pub(crate) namespaces: Vec<String>,
    /// The cgroup: whatever runs in it or below ends.
    #[arg(long)]
    pub(crate) cgroup: PathBuf,
    /// The directory of files.
    #[arg(long)]
    pub(crate) directory: PathBuf,
}

/// Waits for the end of stdin, then removes. A word before the end tells that the demo has ended as it should.
pub(super) fn main(things: &Things) -> Result<ExitCode> {
    let mut word = Vec::new();
    std::io::stdin().read_to_end(&mut word).context("waiting for the demo's end")?;
    things.remove()?;
    if word.is_empty() {
        eprintln!("the demo ended early; its namespaces, cgroup, processes and files are removed");
    }
    Ok(ExitCode::SUCCESS)
}

impl Things {
    /// The flags that name these things.
    pub(super) fn to_args(&self) -> Vec<String> {
        let mut args: Vec<String> = self.namespaces.iter().map(|name| format!("--namespace={name}")).collect();
        args.push(format!("--cgroup={}", self.cgroup.display()));
        args.push(format!("--directory={}", self.directory.display()));
        args
    }

    /// What of it exists.
    pub(super) fn left(&self) -> Vec<PathBuf> {
        let namespaces = self.namespaces.iter().map(|name| Path::new("/run/netns").join(name));
        let all = namespaces.chain([self.cgroup.clone(), self.directory.clone()]);
        all.filter(|path| path.exists()).collect()
    }

    /// Processes first, since they hold the rest. The bpffs and its pins go with the last process of its mount namespace.
    fn remove(&self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(10);
        while self.cgroup.exists() && remove_cgroup(&self.cgroup).is_err() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        for name in &self.namespaces {
            if Path::new("/run/netns").join(name).exists() {
                // Whether it worked shows below.
                drop(Command::new("ip").args(["netns", "delete", name]).stderr(Stdio::null()).status());
            }
        }
        if self.directory.exists() {
            fs::remove_dir_all(&self.directory).with_context(|| format!("removing {}", self.directory.display()))?;
        }
        let left = self.left();
        if !left.is_empty() {
            bail!(
                "the demo could not remove {}",
                left.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", ")
            );
        }
        Ok(())
    }
}

/// Kills what is in it and below, and removes it; fails while something is still dying.
fn remove_cgroup(cgroup: &Path) -> Result<()> {
    for child in fs::read_dir(cgroup)?.flatten().filter(|entry| entry.path().is_dir()) {
        // The attempt to remove the parent tells.
        drop(remove_cgroup(&child.path()));
    }
    let pids = fs::read_to_string(cgroup.join("cgroup.procs"))?;
    if !pids.trim().is_empty() {
        // The shell's own `kill`: there may be no other.
        let mut kill = Command::new("sh");
        kill.args(["-c", "kill -9 \"$@\"", "kill"]).args(pids.split_whitespace()).stderr(Stdio::null()).status()?;
    }
    fs::remove_dir(cgroup).context("removing a cgroup")
}
