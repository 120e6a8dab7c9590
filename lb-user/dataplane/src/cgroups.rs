//! The directories of cgroups, and their ids.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

/// Limit of a walk over cgroups: more than a node has.
pub const MAX_CGROUPS: usize = 20_000;

/// Returns the id of a cgroup's directory, which is the inode number; `None` if it is gone.
#[must_use]
pub fn id(directory: &Path) -> Option<u64> {
    Some(fs::metadata(directory).ok()?.ino())
}

/// Finds the directory of a cgroup by its id, at `mount` or below.
#[must_use]
pub fn find(mount: &Path, wanted: u64) -> Option<PathBuf> {
    walk(mount).find(|path| id(path) == Some(wanted))
}

/// Walks a cgroup and its descendants, parents first.
pub fn walk(top: &Path) -> impl Iterator<Item = PathBuf> {
    let mut ahead = vec![top.to_owned()];
    let next = move || {
        let path = ahead.pop()?;
        let children = fs::read_dir(&path).into_iter().flatten().flatten();
        ahead.extend(
            children.filter(|child| child.file_type().is_ok_and(|kind| kind.is_dir())).map(|child| child.path()),
        );
        Some(path)
    };
    std::iter::from_fn(next).take(MAX_CGROUPS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroups_are_walked_from_the_top() {
        let top = tempfile::tempdir().expect("a directory");
        fs::create_dir_all(top.path().join("a/b")).expect("a directory");
        fs::write(top.path().join("a/file"), "").expect("a file");
        let found: Vec<_> = walk(top.path()).collect();
        assert_eq!(found, [top.path().to_owned(), top.path().join("a"), top.path().join("a/b")]);
        let id = id(&top.path().join("a/b")).expect("it is there");
        assert_eq!(find(top.path(), id), Some(top.path().join("a/b")));
    }
}
