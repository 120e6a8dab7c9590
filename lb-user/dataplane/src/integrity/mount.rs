//! The mount of the bpffs that holds the pins, and its return after another program unmounted it.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::{
    bpffs::{BpffsOwner, owner},
    pins::is_on_bpffs,
};

/// The mount of a bpffs.
pub(super) struct BpffsMount {
    /// Mount point.
    pub(super) at: PathBuf,
    owner: BpffsOwner,
}

impl BpffsMount {
    /// Finds the mount of a directory.
    pub(super) fn of(directory: &Path) -> Result<Self> {
        let device = |path: &Path| fs::metadata(path).map(|found| found.dev());
        let own = device(directory).with_context(|| format!("looking at {}", directory.display()))?;
        let within = directory.ancestors().take_while(|path| device(path).is_ok_and(|device| device == own));
        let at = within.last().unwrap_or(directory).to_owned();
        let owner = owner(&at);
        Ok(Self { at, owner })
    }

    /// True if a bpffs is mounted there.
    pub(super) fn is_mounted(&self) -> bool {
        is_on_bpffs(&self.at)
    }

    /// Mounts a new bpffs, where the first was the host's one for the host.
    pub(super) fn mount_again(&self) -> Result<()> {
        let shown = self.at.display();
        mount("bpf", &self.at, "bpf", MountFlags::empty(), None)
            .with_context(|| format!("mounting a bpffs: try `mount -t bpf bpf {shown}` on the host"))?;
        let is_lost = self.owner == BpffsOwner::Host && owner(&self.at) == BpffsOwner::Container;
        if is_lost {
            unmount(&self.at, UnmountFlags::DETACH).with_context(|| format!("unmounting {shown}"))?;
        }
        ensure!(!is_lost, "a mount of this container does not reach the host: try `mount -t bpf bpf {shown}` there");
        Ok(())
    }
}
