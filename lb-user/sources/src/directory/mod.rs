//! Objects from a directory of Kubernetes YAML, read again when it changes. After a failure the last good state is
//! kept: that of a file for a bad file, all of it for a missing directory. `crate::yaml` parses the files, `watch`
//! notices changes, and `allot` gives Services addresses of pools, as a controller of a cluster does.

mod allot;
mod watch;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fs,
    io::ErrorKind,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;
use tokio::sync::mpsc;

use super::yaml::{self, FileContent};
use allot::Allotted;
pub use allot::RememberedAddresses;
use lb_core::{
    event::{Event, Object, ObjectKind},
    objects::Key,
};

/// Directory to read.
#[derive(Clone, Debug)]
pub struct DirectoryOptions {
    /// The directory, or a single file.
    pub path: PathBuf,
    /// `--service-proxy-name`.
    pub proxy_name: Option<String>,
    /// Load balancer addresses of an earlier run.
    pub remembered: RememberedAddresses,
}

/// Reads the directory and sends a `Replace` of each kind, and again whenever its objects change. Returns when the
/// receiver is dropped.
///
/// # Errors
/// When the directory cannot be read at the start.
pub async fn run(options: DirectoryOptions, tx: mpsc::Sender<Event>) -> anyhow::Result<()> {
    let path = std::path::absolute(&options.path).with_context(|| cure(&options.path))?;
    // Watch before reading, so that no change is missed in between.
    let mut watch = watch::Watch::new(&path);
    let mut good = DirectoryState::new(options.proxy_name).remembering(options.remembered);
    let mut reachable = true;
    loop {
        let directory = path.clone();
        let reading = tokio::task::spawn_blocking(move || (load(&directory, &mut good), good));
        let loaded;
        (loaded, good) = reading.await.context("read the directory")?;
        match loaded {
            Ok(events) => {
                if !reachable {
                    tracing::info!(path = %path.display(), "the directory is readable again");
                }
                reachable = true;
                for event in events {
                    if tx.send(event).await.is_err() {
                        return Ok(());
                    }
                }
            }
            Err(error) if !good.listed => return Err(error),
            Err(error) => {
                if reachable {
                    tracing::warn!("the objects last read are kept: {error:#}");
                }
                reachable = false;
            }
        }
        tokio::select! {
            () = watch.changed(&good.directories) => {}
            () = tx.closed() => return Ok(()),
        }
    }
}

/// The objects last read from each file.
#[derive(Debug)]
pub struct DirectoryState {
    proxy_name: Option<String>,
    /// True after all kinds were returned once.
    listed: bool,
    files: BTreeMap<PathBuf, File>,
    /// Directories of the files, for the watch.
    directories: BTreeSet<PathBuf>,
    problems: BTreeSet<String>,
    /// Load balancer addresses that Services have from pools.
    allotted: Allotted,
}

#[derive(Debug, Default)]
struct File {
    stamp: Option<Stamp>,
    content: FileContent,
    problem: Option<String>,
}

/// Metadata that changes whenever a file does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Stamp {
    inode: (u64, u64),
    size: u64,
    changed: (i64, i64),
}

impl Stamp {
    /// Returns the stamp; None for a file so new that another write might leave the same time.
    fn of(meta: &fs::Metadata) -> Option<Self> {
        let settled = meta.modified().ok()?.elapsed().is_ok_and(|age| age > Duration::from_millis(100));
        settled.then(|| Self {
            inode: (meta.dev(), meta.ino()),
            size: meta.len(),
            changed: (meta.ctime(), meta.ctime_nsec()),
        })
    }
}

impl DirectoryState {
    /// Creates the state before the first reading. `proxy_name` is the value of `--service-proxy-name`.
    #[must_use]
    pub fn new(proxy_name: Option<String>) -> Self {
        let (files, directories, problems, allotted) = Default::default();
        Self { proxy_name, listed: false, files, directories, problems, allotted }
    }

    /// Sets the load balancer addresses of an earlier run.
    #[must_use]
    pub fn remembering(mut self, remembered: RememberedAddresses) -> Self {
        self.allotted = Allotted::Remembered(remembered);
        self
    }

    /// Lists the present problems of the files, each with its cure. Problems of single objects are in the objects.
    pub fn problems(&self) -> impl Iterator<Item = &str> {
        self.problems.iter().map(String::as_str)
    }
}

/// Reads the files under `path`. Returns a `Replace` of each kind if any object has changed, and at the first call;
/// else nothing.
///
/// # Errors
/// When `path` itself cannot be read; the state stays unchanged.
pub fn load(path: &Path, good: &mut DirectoryState) -> anyhow::Result<Vec<Event>> {
    let mut found = FileList::default();
    if fs::metadata(path).with_context(|| cure(path))?.is_dir() {
        found.walk(path).with_context(|| cure(path))?;
    } else {
        found.files.insert(path.to_owned());
    }
    good.directories = found.directories;

    let proxy_name = good.proxy_name.as_deref();
    let mut files = BTreeMap::new();
    let mut changed = !good.listed;
    for path in found.files {
        let before = good.files.remove(&path);
        match read(&path, before, proxy_name) {
            FileChange::Same(file) => {
                files.insert(path, file);
            }
            FileChange::Changed(file) => {
                changed = true;
                files.insert(path, file);
            }
            FileChange::Gone => changed = true,
        }
    }
    changed |= !good.files.is_empty();
    good.files = files;
    good.listed = true;

    let (mut objects, duplicates) = merge(&good.files);
    let contents = good.files.values().map(|file| &file.content.addresses);
    let of_pools = good.allotted.update(contents, &mut objects);
    let problems = good.files.values().filter_map(|file| file.problem.clone());
    let problems = problems.chain(found.problems).chain(duplicates).chain(strays(&objects)).chain(of_pools);
    let problems: BTreeSet<String> = problems.collect();
    for problem in problems.difference(&good.problems) {
        tracing::warn!("{problem}");
    }
    good.problems = problems;

    if changed {
        Ok(objects.into_iter().map(|(kind, objects)| Event::Replace(kind, objects)).collect())
    } else {
        Ok(Vec::new())
    }
}

fn cure(path: &Path) -> String {
    format!("{}: not readable; create the directory, or name another one", path.display())
}

/// Change of a file since the last reading.
enum FileChange {
    /// The objects are the same.
    Same(File),
    /// The objects differ.
    Changed(File),
    /// The file is gone.
    Gone,
}

fn read(path: &Path, before: Option<File>, proxy_name: Option<&str>) -> FileChange {
    let meta = fs::metadata(path);
    let stamp = meta.as_ref().ok().and_then(Stamp::of);
    let before = match before {
        Some(file) if stamp.is_some() && stamp == file.stamp => return FileChange::Same(file),
        before => before.unwrap_or_default(),
    };
    let kept = |problem: String, before: File| {
        let kept =
            if before.content == FileContent::default() { "" } else { "; the objects last read from it are kept" };
        FileChange::Same(File { stamp, problem: Some(format!("{}: {problem}{kept}", path.display())), ..before })
    };
    let text = match meta.and_then(|_| fs::read_to_string(path)) {
        // A symbolic link whose target is missing for the moment is not a removed file.
        Err(error) if error.kind() == ErrorKind::NotFound && fs::symlink_metadata(path).is_err() => {
            return FileChange::Gone;
        }
        Err(error) => return kept(format!("{error}; make it a readable UTF-8 file or remove it"), before),
        Ok(text) => text,
    };
    if text.is_empty() && before.content != FileContent::default() {
        // Most likely truncated by a writer that is about to write it.
        return kept("empty; remove the file to remove its objects".to_owned(), before);
    }
    match yaml::parse_all(&text, proxy_name) {
        Ok(content) if content == before.content => FileChange::Same(File { stamp, content, problem: None }),
        Ok(content) => FileChange::Changed(File { stamp, content, problem: None }),
        Err(error) => kept(error.to_string(), before),
    }
}

/// Merges the objects of all files by kind, in order. Of several objects of one name, the first counts.
fn merge(files: &BTreeMap<PathBuf, File>) -> (BTreeMap<ObjectKind, Vec<Object>>, Vec<String>) {
    let mut objects: BTreeMap<ObjectKind, Vec<Object>> =
        ObjectKind::ALL.into_iter().map(|kind| (kind, Vec::new())).collect();
    let mut owners: HashMap<(ObjectKind, Key), &Path> = HashMap::new();
    let mut duplicates = Vec::new();
    for (path, file) in files {
        for object in &file.content.objects {
            let (kind, key) = object.id();
            if let Some(owner) = owners.get(&(kind, key.clone())) {
                let (owner, path) = (owner.display(), path.display());
                duplicates.push(format!("{kind:?} {key} is in {owner} and in {path}: the first counts; remove one"));
                continue;
            }
            owners.insert((kind, key), path);
            objects.entry(kind).or_default().push(object.clone());
        }
    }
    (objects, duplicates)
}

/// Lists the problems of endpoints without a Service. In a cluster they may be for another use; in a directory a name
/// is wrong.
fn strays(objects: &BTreeMap<ObjectKind, Vec<Object>>) -> Vec<String> {
    let all = || objects.values().flatten();
    let services: HashSet<&Key> = all()
        .filter_map(|object| if let Object::Service(service) = object { Some(&service.key) } else { None })
        .collect();
    let stray = |object: &Object| match object {
        Object::EndpointSlice(slice) => match &slice.service {
            // The missing label is the slice's first problem, which no Service reports.
            None => Some(format!("EndpointSlice {}: {}", slice.key, slice.problems.first().map_or("", |text| text))),
            Some(service) if services.contains(service) => None,
            Some(service) => Some(format!(
                "EndpointSlice {}: there is no Service {service}; write it, or fix the label \
                 kubernetes.io/service-name",
                slice.key
            )),
        },
        Object::Endpoints(endpoints) if !services.contains(&endpoints.key) => {
            Some(format!("Endpoints {}: there is no Service of that name; write it, or fix the name", endpoints.key))
        }
        _ => None,
    };
    all().filter_map(stray).collect()
}

/// Files and directories found under the path.
#[derive(Default)]
struct FileList {
    files: BTreeSet<PathBuf>,
    directories: BTreeSet<PathBuf>,
    /// Real paths, against cycles of symbolic links.
    visited: BTreeSet<PathBuf>,
    problems: Vec<String>,
}

impl FileList {
    /// Adds `*.yaml`, `*.yml` and `*.json` under `directory`. Symbolic links are followed; hidden names are not: in a
    /// mounted ConfigMap they hold the versions of the files, to which the visible links point.
    fn walk(&mut self, directory: &Path) -> std::io::Result<()> {
        if !self.visited.insert(fs::canonicalize(directory)?) {
            return Ok(());
        }
        self.directories.insert(directory.to_owned());
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
            let extension = path.extension().and_then(|extension| extension.to_str());
            if hidden {
                continue;
            }
            if fs::metadata(&path).is_ok_and(|meta| meta.is_dir()) {
                if let Err(error) = self.walk(&path) {
                    self.problems.push(format!("{}: {error}; make it readable or remove it", path.display()));
                }
            } else if matches!(extension, Some("yaml" | "yml" | "json")) {
                self.files.insert(path);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
