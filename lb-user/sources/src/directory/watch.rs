//! Says when a directory may have changed: by inotify, and now and then anyway, for what inotify does not see (links that
//! lead elsewhere, network file systems, no watches left).

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

/// Read anyway after this time.
const ANYWAY: Duration = Duration::from_secs(2);
/// A writer is done if nothing happens for this time …
const QUIET: Duration = Duration::from_millis(50);
/// … but read at last after this.
const AT_LAST: Duration = Duration::from_millis(500);

/// Watches a directory, what is under it, and its parent, in which it may be replaced.
pub(super) struct Watch {
    watcher: Option<RecommendedWatcher>,
    woken: mpsc::Receiver<()>,
    parent: Option<PathBuf>,
    root: PathBuf,
    /// What is watched, and as which inode: a directory made anew under its old name needs a new watch.
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
                // Full means that a wake-up waits already.
                let _ = wake.try_send(());
            }
        };
        let watcher = notify::recommended_watcher(handler)
            .inspect_err(|error| tracing::warn!(%error, every = ?ANYWAY, "inotify refused, the directory is polled"))
            .ok();
        let parent = root.parent().map(Path::to_owned);
        let mut watch = Self { watcher, woken, parent, root: root.to_owned(), armed: BTreeMap::new() };
        watch.arm(&BTreeSet::new());
        watch
    }

    /// Returns when `directories`, which were found under the root, may have changed since they were read.
    pub(super) async fn changed(&mut self, directories: &BTreeSet<PathBuf>) {
        if self.arm(directories) {
            // What happened between reading and watching went unseen.
            return;
        }
        match timeout(ANYWAY, self.woken.recv()).await {
            Ok(Some(())) => {}
            Ok(None) => return tokio::time::sleep(ANYWAY).await,
            Err(_) => return,
        }
        let at_last = Instant::now() + AT_LAST;
        while Instant::now() < at_last && timeout(QUIET, self.woken.recv()).await.is_ok() {}
    }

    /// Makes the watches what they should be. Whether one is new.
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
                // Fails if the kernel dropped it with the directory.
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
                // Gone again, or no watches left: it is read now and then anyway.
                Err(error) => tracing::debug!(%error, path = %path.display(), "not watched"),
            }
        }
        new
    }
}
