//! The pin directory in bpffs: its paths, its lock, and the removal of pins. Pinned maps are compared in
//! [`upgrade`](crate::upgrade).

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};
use lb_common::LAYOUT_VERSION;
use rustix::fs::{FlockOperation, flock, statfs};

use lb_kernel::bpf;

/// Name of the directory in bpffs that holds everything of Beeline.
const DIRECTORY: &str = "beeline";

/// Prefix of directories whose maps are out of service and that are about to be removed.
const RETIRED: &str = "retired_";

/// File system type of a bpffs (include/uapi/linux/magic.h).
pub(crate) const BPF_FS_MAGIC: i64 = 0xcafe_4a11;

/// The pin directory of one Beeline.
#[derive(Clone, Debug)]
pub struct Pins {
    root: PathBuf,
}

impl Pins {
    /// Returns the default pin directory of a bpffs.
    #[must_use]
    pub fn below(bpffs: &Path) -> Self {
        Self { root: bpffs.join(DIRECTORY) }
    }

    /// Uses `root` itself as the pin directory.
    #[must_use]
    pub const fn at(root: PathBuf) -> Self {
        Self { root }
    }

    /// Returns the directory with the maps and links of this version of the layout.
    #[must_use]
    pub fn current(&self) -> PathBuf {
        self.root.join(format!("v{LAYOUT_VERSION}"))
    }

    /// Returns the pin directory.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Lists the directories of all versions of the layout.
    pub(crate) fn layouts(&self) -> Result<Vec<PathBuf>> {
        let entries = fs::read_dir(&self.root).with_context(|| format!("reading {}", self.root.display()))?;
        Ok(entries.flatten().map(|entry| entry.path()).filter(|path| is_layout(path)).collect())
    }

    /// Returns the directory of maps that are not in service yet.
    #[must_use]
    pub fn staging(&self) -> PathBuf {
        self.current().join("staging")
    }

    /// Creates the directories and takes the lock against a second agent, then removes the remains of an unfinished
    /// start. The kernel releases the lock when the process ends.
    ///
    /// # Errors
    /// If another agent holds the lock (named by its pid), or if the directory is not on a bpffs.
    pub(crate) fn lock(&self) -> Result<File> {
        let root = self.root.display();
        let above = self.root.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
        ensure!(
            is_on_bpffs(above),
            "the pin directory {root} is not on a bpffs: mount one with `mount -t bpf bpf {}`, or name another with \
             --pins",
            above.display()
        );
        fs::create_dir_all(self.current()).with_context(|| format!("making the pin directory {root}"))?;
        let directory = self.take_lock()?;
        self.remove_retired()?;
        match fs::remove_dir_all(self.staging()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).context("removing maps that an earlier start left unfinished")
            }
            _ => Ok(directory),
        }
    }

    /// Takes the lock of the pin directory, and nothing more.
    pub(crate) fn take_lock(&self) -> Result<File> {
        let root = self.root.display();
        let directory = File::open(&self.root).with_context(|| format!("opening the pin directory {root}"))?;
        if flock(&directory, FlockOperation::NonBlockingLockExclusive).is_err() {
            let holder = holder(&directory).map_or_else(|| "another process".to_owned(), |pid| format!("pid {pid}"));
            bail!(
                "another agent ({holder}) holds the pins {root}: stop it first, or use another directory with --pins"
            );
        }
        Ok(directory)
    }

    /// Returns the pid of the agent that holds the lock, if this process can see it. Does not take the lock.
    #[must_use]
    pub fn agent(&self) -> Option<u32> {
        holder(&File::open(&self.root).ok()?)
    }

    /// Lists the directories of other versions of the layout, sorted.
    ///
    /// # Errors
    /// If the pin directory cannot be read.
    pub fn others(&self) -> Result<Vec<PathBuf>> {
        let current = self.current();
        let mut others: Vec<_> = self.layouts()?.into_iter().filter(|path| *path != current).collect();
        others.sort();
        Ok(others)
    }

    /// Returns the directory of the other version whose programs serve, or served last: the one with the most links.
    pub(crate) fn predecessor(&self) -> Result<Option<PathBuf>> {
        let mut best = None;
        for path in self.others()? {
            let links = files_below(&path)?.iter().filter(|path| is_link(path)).count();
            best = best.max(Some((links, version(&path), path)));
        }
        Ok(best.map(|(.., path)| path))
    }

    /// Removes the directories of other versions, once this version's programs run at their links: detaches the links
    /// that remain and unpins the maps. A shared map stays pinned in this version's directory. Returns the number of
    /// pins.
    pub(crate) fn retire_others(&self) -> Result<usize> {
        let mut retired = 0;
        for path in self.others()? {
            let paths = links_first(&path)?;
            retired += paths.len();
            paths.iter().filter(|path| is_link(path)).try_for_each(|path| remove_pin(path))?;
            // One rename: a half-removed directory must never look like that of a serving version.
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let aside = self.root.join(format!("{RETIRED}{name}"));
            fs::rename(&path, &aside).with_context(|| format!("moving {} aside", path.display()))?;
        }
        self.remove_retired().map(|()| retired)
    }

    fn remove_retired(&self) -> Result<()> {
        for entry in fs::read_dir(&self.root).with_context(|| format!("reading {}", self.root.display()))? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(RETIRED) {
                let path = entry.path();
                fs::remove_dir_all(&path).with_context(|| format!("removing {}", path.display()))?;
            }
        }
        Ok(())
    }

    /// Removes the whole pin directory, links first, so that no program runs on maps that are going. Returns the paths
    /// of the pins.
    pub(crate) fn remove(&self, _lock: &File) -> Result<Vec<String>> {
        let mut removed = Vec::new();
        for path in links_first(&self.root)? {
            remove_pin(&path)?;
            removed.push(path.display().to_string());
        }
        fs::remove_dir_all(&self.root).with_context(|| format!("removing {}", self.root.display()))?;
        Ok(removed)
    }

    /// Detaches these programs from the cgroup and removes their links. Missing links are not an error.
    pub(crate) fn remove_links(&self, programs: &[&str], _lock: &File) -> Result<()> {
        let paths = programs.iter().map(|program| self.current().join(link_name(program)));
        paths.filter(|path| path.exists()).try_for_each(|path| remove_pin(&path))
    }
}

/// True if the path is on a bpffs.
#[must_use]
pub(crate) fn is_on_bpffs(path: &Path) -> bool {
    statfs(path).is_ok_and(|found| found.f_type == BPF_FS_MAGIC)
}

/// Returns the file name of a program's link.
#[must_use]
pub fn link_name(program: &str) -> String {
    format!("link_{program}")
}

/// True if the directory's name is that of a version.
fn is_layout(path: &Path) -> bool {
    version(path).is_some()
}

/// Parses the version of the layout from the name of its directory.
fn version(path: &Path) -> Option<u32> {
    path.file_name()?.to_str()?.strip_prefix('v')?.parse().ok()
}

/// Lists the pins below a directory, links first, so that no program runs on maps that are going.
fn links_first(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut paths = files_below(directory)?;
    paths.sort_by_key(|path| (!is_link(path), path.clone()));
    Ok(paths)
}

/// Removes a pin, and detaches the program first if it is a link.
pub(crate) fn remove_pin(path: &Path) -> Result<()> {
    if is_link(path)
        && let Err(error) = bpf::open_pin(path).and_then(bpf::detach_link)
    {
        tracing::debug!(pin = %path.display(), %error, "the removal of the pin detaches the link");
    }
    fs::remove_file(path).with_context(|| format!("removing the pin {}", path.display()))
}

fn is_link(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("link_"))
}

fn files_below(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).with_context(|| format!("reading {}", directory.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            files.extend(files_below(&entry.path())?);
        } else {
            files.push(entry.path());
        }
    }
    Ok(files)
}

/// Returns the pid that holds the lock of a directory, from /proc/locks (proc(5)).
fn holder(directory: &File) -> Option<u32> {
    let inode = directory.metadata().ok()?;
    let device = inode.dev();
    let id = format!("{:02x}:{:02x}:{}", libc::major(device), libc::minor(device), inode.ino());
    find_holder(&fs::read_to_string("/proc/locks").ok()?, &id)
}

fn find_holder(locks: &str, id: &str) -> Option<u32> {
    locks.lines().find_map(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        match words.as_slice() {
            [_, "FLOCK", _, "WRITE", pid, at, ..] if *at == id => pid.parse().ok(),
            _ => None,
        }
    })
}

/// Takes the lock against a second `beeline watch`: that of this version's directory.
pub(crate) fn lock_watch(current: &Path) -> Result<File> {
    let directory = File::open(current).with_context(|| format!("opening the pins {}", current.display()))?;
    if flock(&directory, FlockOperation::NonBlockingLockExclusive).is_err() {
        let holder = holder(&directory).map_or_else(String::new, |pid| format!(" (pid {pid})"));
        bail!("another `beeline watch`{holder} reads the events of this node: end it first");
    }
    Ok(directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_of_a_lock_is_found_by_inode() {
        let locks = "1: POSIX  ADVISORY  WRITE 7 00:1f:12 0 EOF\n2: FLOCK  ADVISORY  WRITE 4711 00:1f:12 0 EOF\n";
        assert_eq!(find_holder(locks, "00:1f:12"), Some(4711));
        assert_eq!(find_holder(locks, "00:1f:13"), None);
    }

    #[test]
    fn a_link_is_known_by_its_name() {
        assert!(is_link(Path::new("/x").join(link_name("connect4")).as_path()));
        assert!(!is_link(Path::new("/x/SERVICES")));
    }
}
