//! A place for one process that leaves nothing behind: a cgroup, a directory, namespaces, a bpffs of its own.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use rustix::{
    mount::{MountFlags, MountPropagationFlags, mount, mount_change},
    thread::{UnshareFlags, unshare_unsafe},
};

/// What the runner makes for a story, and removes.
pub struct Place {
    cgroup: PathBuf,
    directory: tempfile::TempDir,
}

impl Place {
    pub fn make(name: &str) -> io::Result<Self> {
        let root = lb_dataplane::environment::cgroup2().map_err(io::Error::other)?;
        let cgroup = root.join(format!("beeline-story-{}-{name}", std::process::id()));
        fs::create_dir(&cgroup)?;
        Ok(Self { cgroup, directory: tempfile::tempdir()? })
    }

    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    pub fn directory(&self) -> &Path {
        self.directory.path()
    }
}

impl Drop for Place {
    /// Ends what was started there and left, and removes the cgroup. Namespaces, pins and links end with the processes.
    fn drop(&mut self) {
        for _ in 0..1000 {
            if remove(&self.cgroup).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        eprintln!("cannot remove {}", self.cgroup.display());
    }
}

fn remove(cgroup: &Path) -> io::Result<()> {
    for child in fs::read_dir(cgroup)?.flatten().filter(|entry| entry.path().is_dir()) {
        remove(&child.path())?;
    }
    let left = fs::read_to_string(cgroup.join("cgroup.procs"))?;
    for pid in left.lines().filter_map(|pid| rustix::process::Pid::from_raw(pid.parse().ok()?)) {
        let _gone = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
    fs::remove_dir(cgroup)
}

/// Moves this process into a network and a mount namespace of its own. Only while it has one thread.
pub fn enter_namespaces() {
    #[expect(unsafe_code, reason = "unshare can take the file descriptors from under other threads")]
    // SAFETY: there is one thread, and the descriptor table is not unshared.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET | UnshareFlags::NEWNS) }.expect("new namespaces");
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).expect("private mounts");
}

/// A bpffs that ends with the mount namespace, and its pins with it.
pub fn mount_bpffs(directory: &Path) -> PathBuf {
    let bpffs = directory.join("bpffs");
    fs::create_dir(&bpffs).expect("a directory");
    mount("bpf", &bpffs, "bpf", MountFlags::empty(), None).expect("a bpffs");
    bpffs
}
