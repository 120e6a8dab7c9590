//! The pins in bpffs: where they are, who holds them, and whether they are ours.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::MapInfo;
use lb_common::LAYOUT_VERSION;
use rustix::fs::{FlockOperation, flock, statfs};

use crate::attach::clsact;
use lb_kernel::bpf;

/// Name of the directory in bpffs that holds everything of Beeline.
const DIRECTORY: &str = "beeline";

/// What the name of a directory begins with whose maps are no longer in service.
const RETIRED: &str = "retired_";

/// Type of a bpffs (include/uapi/linux/magic.h).
pub const BPF_FS_MAGIC: i64 = 0xcafe_4a11;

/// The pins of one Beeline.
#[derive(Clone, Debug)]
pub struct Pins {
    root: PathBuf,
}

impl Pins {
    /// Below the given bpffs.
    #[must_use]
    pub fn below(bpffs: &Path) -> Self {
        Self { root: bpffs.join(DIRECTORY) }
    }

    /// In this directory itself.
    #[must_use]
    pub const fn at(root: PathBuf) -> Self {
        Self { root }
    }

    /// The pins of this layout's maps and links.
    #[must_use]
    pub fn current(&self) -> PathBuf {
        self.root.join(format!("v{LAYOUT_VERSION}"))
    }

    /// The directory that holds everything.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The pins of all layouts that are there.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn layouts(&self) -> Result<Vec<PathBuf>> {
        let entries = fs::read_dir(&self.root).with_context(|| format!("reading {}", self.root.display()))?;
        Ok(entries.flatten().map(|entry| entry.path()).filter(|path| is_layout(path)).collect())
    }

    /// Maps that are not in service yet.
    #[must_use]
    pub fn staging(&self) -> PathBuf {
        self.current().join("staging")
    }

    /// Makes the directories, and takes the lock that keeps a second agent out. The lock ends with the process, however
    /// it ends.
    ///
    /// # Errors
    /// When another agent holds it, by its pid; or when this is no bpffs.
    pub fn lock(&self) -> Result<File> {
        let root = self.root.display();
        let above = self.root.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
        ensure!(
            statfs(above).with_context(|| format!("looking at {}", above.display()))?.f_type == BPF_FS_MAGIC,
            "the pin directory {root} is not on a bpffs: mount one with `mount -t bpf bpf {}`, or name another with --pins",
            above.display()
        );
        fs::create_dir_all(self.current()).with_context(|| format!("making the pin directory {root}"))?;
        let directory = File::open(&self.root).with_context(|| format!("opening the pin directory {root}"))?;
        if flock(&directory, FlockOperation::NonBlockingLockExclusive).is_err() {
            let holder = holder(&directory).map_or_else(|| "another process".to_owned(), |pid| format!("pid {pid}"));
            bail!(
                "another agent ({holder}) holds the pins {root}: stop it first, or use another directory with --pins"
            );
        }
        self.remove_retired()?;
        match fs::remove_dir_all(self.staging()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).context("removing maps that an earlier start left unfinished")
            }
            _ => Ok(directory),
        }
    }

    /// The agent that holds the lock, as far as this process may know of it. Looking takes no lock, and so is in nobody's
    /// way.
    #[must_use]
    pub fn agent(&self) -> Option<u32> {
        holder(&File::open(&self.root).ok()?)
    }

    /// The directories of other versions of the layout, sorted.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn others(&self) -> Result<Vec<PathBuf>> {
        let current = self.current();
        let mut others: Vec<_> = self.layouts()?.into_iter().filter(|path| *path != current).collect();
        others.sort();
        Ok(others)
    }

    /// Of the directories of other versions that whose programs serve, or served last: it has the most links.
    ///
    /// # Errors
    /// When a directory cannot be read.
    pub fn predecessor(&self) -> Result<Option<PathBuf>> {
        let mut best = None;
        for path in self.others()? {
            let links = files_below(&path)?.iter().filter(|path| is_link(path)).count();
            best = best.max(Some((links, version(&path), path)));
        }
        Ok(best.map(|(.., path)| path))
    }

    /// Takes out of service what is left of other versions of the layout, once this one's programs run at their links: what
    /// links remain are detached, and their maps go, but for those that both versions have pinned.
    ///
    /// # Errors
    /// When a pin cannot be removed.
    pub fn retire_others(&self) -> Result<usize> {
        let mut retired = 0;
        for path in self.others()? {
            let paths = links_first(&path)?;
            retired += paths.len();
            paths.iter().filter(|path| is_link(path)).try_for_each(|path| remove_pin(path))?;
            // At once as a whole: half of it must never look like the maps of a version that serves.
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

    /// Removes every trace: links and filters first, so that no program runs on maps that are going.
    ///
    /// # Errors
    /// When a pin cannot be removed.
    pub fn remove(&self, _lock: &File) -> Result<Vec<String>> {
        let mut removed = Vec::new();
        removed.extend(clsact::remove(&self.root)?);
        for path in links_first(&self.root)? {
            remove_pin(&path)?;
            removed.push(path.display().to_string());
        }
        fs::remove_dir_all(&self.root).with_context(|| format!("removing {}", self.root.display()))?;
        Ok(removed)
    }

    /// Removes the links of these programs at the cgroup, so that they run no more; the others stay. A link that is not there
    /// need not be removed.
    ///
    /// # Errors
    /// When a pin cannot be removed.
    pub fn remove_links(&self, programs: &[&str], _lock: &File) -> Result<()> {
        let paths = programs.iter().map(|program| self.current().join(link_name(program)));
        paths.filter(|path| path.exists()).try_for_each(|path| remove_pin(&path))
    }
}

/// Name of a link's pin.
#[must_use]
pub fn link_name(program: &str) -> String {
    format!("link_{program}")
}

/// Whether a directory is named as that of a layout is.
fn is_layout(path: &Path) -> bool {
    version(path).is_some()
}

/// The version of the layout whose directory this is.
fn version(path: &Path) -> Option<u32> {
    path.file_name()?.to_str()?.strip_prefix('v')?.parse().ok()
}

/// The pins below a directory, links first, so that no program runs on maps that are going.
fn links_first(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut paths = files_below(directory)?;
    paths.sort_by_key(|path| (!is_link(path), path.clone()));
    Ok(paths)
}

/// Removes a pin. A link's program is out of service then.
///
/// # Errors
/// What the kernel says.
pub fn remove_pin(path: &Path) -> Result<()> {
    if is_link(path)
        && let Err(error) = bpf::open_pin(path).and_then(bpf::detach_link)
    {
        tracing::debug!(pin = %path.display(), %error, "not detached at once, but by the removal of its pin");
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

/// The process that holds the lock of a directory, from /proc/locks (proc(5)).
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

/// What a map must be like to be taken over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Layout {
    /// `enum bpf_map_type`
    pub map_type: u32,
    /// Octets.
    pub key_size: u32,
    /// Octets.
    pub value_size: u32,
    /// Most entries.
    pub max_entries: u32,
    /// Whether another size will do.
    pub size: Size,
    /// Of what stands in it, if its entries go over to another version of the layout: see [`super::likeness`].
    pub fingerprint: Option<u64>,
}

/// How the size of a map is meant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Size {
    /// As the user says.
    Exact,
    /// A larger one, which has grown, is as good.
    AtLeast,
    /// Programs alone write it, and what they wrote counts for more.
    Any,
}

/// Whether a pinned map is taken over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Found {
    /// It is, as it is.
    Adopt,
    /// It has another size than is wanted: a new one takes its place.
    Resize,
    /// There is none.
    Absent,
    /// There is none, but another version of the layout has the same: it is that one's too. See [`super::inherit`].
    Shared,
    /// There is none, but another version of the layout has such a one: a new one begins with its entries.
    Copied,
}

/// Compares the pinned maps with what this version expects (invariant I13: aya opens a pin without looking).
///
/// # Errors
/// When a pin is not one of ours.
pub fn inspect(directory: &Path, expected: &BTreeMap<String, Layout>) -> Result<BTreeMap<String, Found>> {
    let mut found = BTreeMap::new();
    for (name, want) in expected {
        let path = directory.join(name);
        let state = if path.exists() { compare(&path, want)? } else { Found::Absent };
        found.insert(name.clone(), state);
    }
    Ok(found)
}

/// Compares one pinned map with what is expected there.
///
/// # Errors
/// When it is not one of ours.
pub fn compare(path: &Path, want: &Layout) -> Result<Found> {
    let foreign = || {
        format!(
            "the pin {} is not a map of this Beeline: run `beeline cleanup` to remove what an other version left (that \
             stops the translation until the next start), or use another directory with --pins",
            path.display()
        )
    };
    let info = MapInfo::from_pin(path).with_context(foreign)?;
    let map_type = info.map_type().map_or(0, |map_type| map_type as u32);
    ensure!(
        (map_type, info.key_size(), info.value_size()) == (want.map_type, want.key_size, want.value_size),
        "{}; it has type {map_type}, key {} and value {} octets, and {}, {} and {} are expected",
        foreign(),
        info.key_size(),
        info.value_size(),
        want.map_type,
        want.key_size,
        want.value_size
    );
    let fits = match want.size {
        Size::Exact => info.max_entries() == want.max_entries,
        Size::AtLeast => info.max_entries() >= want.max_entries,
        Size::Any => true,
    };
    Ok(if fits { Found::Adopt } else { Found::Resize })
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
    fn links_are_told_by_their_names() {
        assert!(is_link(Path::new("/x").join(link_name("connect4")).as_path()));
        assert!(!is_link(Path::new("/x/SERVICES")));
    }
}
