//! Processes in /proc, with names that are safe to print.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

/// A process.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Process {
    /// Process id.
    pub pid: u32,
    /// Name: see [`comm`].
    pub comm: String,
}

/// Lists the directories of processes in `proc`, a mounted procfs.
#[must_use]
pub fn processes(proc: &Path) -> BTreeMap<u32, PathBuf> {
    entries(proc).filter_map(|path| Some((path.file_name()?.to_str()?.parse().ok()?, path))).collect()
}

/// Returns the name of a process, as `ps` shows it; `None` if it has ended. A process names itself as it likes:
/// control characters are escaped, so that a name writes no line of a log and no sequence to a terminal.
#[must_use]
pub fn comm(process: &Path) -> Option<String> {
    let name = fs::read(process.join("comm")).ok()?;
    let name = String::from_utf8_lossy(name.strip_suffix(b"\n").unwrap_or(&name));
    Some(name.chars().map(|c| if c.is_control() { c.escape_debug().to_string() } else { c.to_string() }).collect())
}

/// Lists the paths in a directory; none if it is gone.
pub fn entries(directory: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path())
}

/// True if /proc may have all processes of the machine: this process is in the host's pid namespace.
#[must_use]
pub fn sees_all() -> bool {
    /// `PROC_PID_INIT_INO` (include/linux/proc_ns.h).
    const FIRST: u64 = 0xefff_fffc;
    fs::metadata("/proc/self/ns/pid").is_ok_and(|namespace| namespace.ino() == FIRST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_process_is_escaped() {
        let process = tempfile::tempdir().expect("a directory");
        assert_eq!(comm(process.path()), None);
        for (written, name) in [
            (&b"kube-proxy\n"[..], "kube-proxy"),
            (b"it's \"a\" \xc3\xa4\n", "it's \"a\" \u{e4}"),
            (b"a\nERROR b\x1b[2J\n", r"a\nERROR b\u{1b}[2J"),
            (b"\xff\n", "\u{fffd}"),
        ] {
            fs::write(process.path().join("comm"), written).expect("a file");
            assert_eq!(comm(process.path()).as_deref(), Some(name));
        }
    }
}
