//! Notices that a directory may have changed: by inotify, and by a poll for changes that inotify does not see (symbolic
//! links to elsewhere, network file systems, no watches left).

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use notify::{
    EventKind, RecommendedWatcher, RecursiveMode, Watcher as _,
    event::{AccessKind, AccessMode},
};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};

/// Interval of the poll.
const POLL: Duration = Duration::from_secs(2);
/// Time without a change after which a writer counts as done.
const QUIET: Duration = Duration::from_millis(50);
/// Longest wait for a writer.
const MAX_WAIT: Duration = Duration::from_millis(500);

/// A watch of a directory, its subdirectories, and its parent, in which it may be replaced.
pub(super) struct Watch {
    watcher: Option<RecommendedWatcher>,
    woken: mpsc::Receiver<()>,
    parent: Option<PathBuf>,
    root: PathBuf,
    /// Watched paths and their device and inode: a directory recreated under its old name needs a new watch.
    armed: BTreeMap<PathBuf, (u64, u64)>,
}

impl Watch {
    /// Watches the absolute path `root` from now on.
    pub(super) fn new(root: &Path) -> Self {
        let (wake, woken) = mpsc::channel(1);
        let under = root.to_owned();
        let handler = move |event: notify::Result<notify::Event>| {
            let relevant = event.is_ok_and(|event| {
                let read =
                    matches!(event.kind, EventKind::Access(kind) if kind != AccessKind::Close(AccessMode::Write));
                !read && (event.need_rescan() || event.paths.iter().any(|path| path.starts_with(&under)))
            });
            if relevant {
                // A full channel holds a wake-up already.
                let _ = wake.try_send(());
            }
        };
        let watcher = notify::recommended_watcher(handler)
            .inspect_err(|error| tracing::warn!(%error, every = ?POLL, "inotify refused, the directory is polled"))
            .ok();
        let parent = root.parent().map(Path::to_owned);
        let mut watch = Self { watcher, woken, parent, root: root.to_owned(), armed: BTreeMap::new() };
        watch.arm(&BTreeSet::new());
        watch
    }

    /// Returns when `directories`, which are those under the root, may have changed since they were read.
    pub(super) async fn changed(&mut self, directories: &BTreeSet<PathBuf>) {
        if self.arm(directories) {
            // Changes between reading and watching went unnoticed.
            return;
        }
        match timeout(POLL, self.woken.recv()).await {
            Ok(Some(())) => {}
            Ok(None) => return tokio::time::sleep(POLL).await,
            Err(_) => return,
        }
        let deadline = Instant::now() + MAX_WAIT;
        while Instant::now() < deadline && timeout(QUIET, self.woken.recv()).await.is_ok() {}
    }

    /// Updates the inotify watches. True if one is new.
    fn arm(&mut self, directories: &BTreeSet<PathBuf>) -> bool {
        let Some(watcher) = &mut self.watcher else { return false };
        let wanted: BTreeSet<&PathBuf> = directories.iter().chain(&self.parent).chain([&self.root]).collect();
        let wanted: BTreeMap<&PathBuf, (u64, u64)> = wanted
            .into_iter()
            .filter_map(|path| fs::metadata(path).ok().map(|meta| (path, (meta.dev(), meta.ino()))))
            .collect();
        self.armed.retain(|path, inode| {
            let keep = wanted.get(path) == Some(inode);
            if !keep {
                // Fails if the kernel removed the watch with the directory.
                let _ = watcher.unwatch(path);
            }
            keep
        });
        let mut new = false;
        for (path, inode) in wanted {
            if self.armed.contains_key(path) {
                continue;
            }
            match watcher.watch(path, RecursiveMode::NonRecursive) {
                Ok(()) => {
                    self.armed.insert(path.clone(), inode);
                    new = true;
                }
                // Gone again, or no watches left: the poll notices changes.
                Err(error) => tracing::debug!(%error, path = %path.display(), "not watched"),
            }
        }
        new
    }
}
