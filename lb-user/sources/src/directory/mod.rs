//! Objects from a directory of Kubernetes YAML, read again when it changes. What cannot be read keeps its last good
//! state: a bad file that file's, a directory that has vanished all of it. What the text means is in `yaml`, how changes
//! are noticed in `watch`.

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

use super::yaml;
use lb_core::{
    event::{Event, Kind, Object},
    objects::Key,
};

/// What to read.
#[derive(Clone, Debug)]
pub struct Options {
    /// The directory, or a single file.
    pub path: PathBuf,
    /// `--service-proxy-name`.
    pub proxy_name: Option<String>,
}

/// Reads the directory, sends all kinds, then follows it: whenever its objects change, all kinds are sent
/// again. Returns if the directory is absent at the start, or once nobody receives any more.
pub async fn run(options: Options, tx: mpsc::Sender<Event>) -> anyhow::Result<()> {
    let path = std::path::absolute(&options.path).with_context(|| cure(&options.path))?;
    // Watching begins before reading, so that no change falls between.
    let mut watch = watch::Watch::new(&path);
    let mut good = LastGood::new(options.proxy_name);
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

/// What was last read from each file.
#[derive(Debug)]
pub struct LastGood {
    proxy_name: Option<String>,
    /// Whether all kinds were returned once.
    listed: bool,
    files: BTreeMap<PathBuf, File>,
    /// Directories that held them; what a watch must cover.
    directories: BTreeSet<PathBuf>,
    problems: BTreeSet<String>,
}

#[derive(Debug, Default)]
struct File {
    stamp: Option<Stamp>,
    objects: Vec<Object>,
    problem: Option<String>,
}

/// What changes when a file does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Stamp {
    inode: (u64, u64),
    size: u64,
    changed: (i64, i64),
}

impl Stamp {
    /// None for a file so fresh that a further write might leave the same time.
    fn of(meta: &fs::Metadata) -> Option<Self> {
        let settled = meta.modified().ok()?.elapsed().is_ok_and(|age| age > Duration::from_millis(100));
        settled.then(|| Self {
            inode: (meta.dev(), meta.ino()),
            size: meta.len(),
            changed: (meta.ctime(), meta.ctime_nsec()),
        })
    }
}

impl LastGood {
    /// Nothing read yet. `proxy_name` is the value of `--service-proxy-name`.
    #[must_use]
    pub fn new(proxy_name: Option<String>) -> Self {
        let (files, directories, problems) = Default::default();
        Self { proxy_name, listed: false, files, directories, problems }
    }

    /// What is wrong with the files at present, each with its cure. Problems of single objects stand in the objects.
    pub fn problems(&self) -> impl Iterator<Item = &str> {
        self.problems.iter().map(String::as_str)
    }
}

/// Reads the files under `path` and returns what has changed: nothing, or all kinds. The first call returns all
/// of them. Fails, changing nothing, if `path` itself cannot be read.
pub fn load(path: &Path, good: &mut LastGood) -> anyhow::Result<Vec<Event>> {
    let mut found = Found::default();
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
            Read::Same(file) => {
                files.insert(path, file);
            }
            Read::Changed(file) => {
                changed = true;
                files.insert(path, file);
            }
            Read::Gone => changed = true,
        }
    }
    changed |= !good.files.is_empty();
    good.files = files;
    good.listed = true;

    let (objects, duplicates) = merge(&good.files);
    let problems = good.files.values().filter_map(|file| file.problem.clone());
    let problems = problems.chain(found.problems).chain(duplicates).chain(strays(&objects));
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

/// What became of a file.
enum Read {
    /// Its objects are those of before.
    Same(File),
    /// Its objects are new.
    Changed(File),
    /// It does not exist.
    Gone,
}

fn read(path: &Path, before: Option<File>, proxy_name: Option<&str>) -> Read {
    let meta = fs::metadata(path);
    let stamp = meta.as_ref().ok().and_then(Stamp::of);
    let before = match before {
        Some(file) if stamp.is_some() && stamp == file.stamp => return Read::Same(file),
        before => before.unwrap_or_default(),
    };
    let kept = |problem: String, before: File| {
        let kept = if before.objects.is_empty() { "" } else { "; the objects last read from it are kept" };
        Read::Same(File { stamp, problem: Some(format!("{}: {problem}{kept}", path.display())), ..before })
    };
    let text = match meta.and_then(|_| fs::read_to_string(path)) {
        // A link whose end is missing for the moment is not a removed file.
        Err(error) if error.kind() == ErrorKind::NotFound && fs::symlink_metadata(path).is_err() => return Read::Gone,
        Err(error) => return kept(format!("{error}; make it a readable UTF-8 file or remove it"), before),
        Ok(text) => text,
    };
    if text.is_empty() && !before.objects.is_empty() {
        // Most likely truncated by a writer that is about to fill it.
        return kept("empty; remove the file to remove its objects".to_owned(), before);
    }
    match yaml::parse(&text, proxy_name) {
        Ok(objects) if objects == before.objects => Read::Same(File { stamp, objects, problem: None }),
        Ok(objects) => Read::Changed(File { stamp, objects, problem: None }),
        Err(error) => kept(error.to_string(), before),
    }
}

/// The objects of all files by kind, in order. Of an object that stands more than once, the first counts.
fn merge(files: &BTreeMap<PathBuf, File>) -> (BTreeMap<Kind, Vec<Object>>, Vec<String>) {
    let mut objects: BTreeMap<Kind, Vec<Object>> = Kind::ALL.into_iter().map(|kind| (kind, Vec::new())).collect();
    let mut owners: HashMap<(Kind, Key), &Path> = HashMap::new();
    let mut duplicates = Vec::new();
    for (path, file) in files {
        for object in &file.objects {
            let (kind, key) = id(object);
            if let Some(owner) = owners.get(&(kind, key.clone())) {
                let (owner, path) = (owner.display(), path.display());
                duplicates
                    .push(format!("{kind:?} {key} stands in {owner} and in {path}: the first counts; remove one"));
                continue;
            }
            owners.insert((kind, key), path);
            objects.entry(kind).or_default().push(object.clone());
        }
    }
    (objects, duplicates)
}

/// The endpoints that belong to no Service. In a cluster others may use them; in a directory a name is wrong.
fn strays(objects: &BTreeMap<Kind, Vec<Object>>) -> Vec<String> {
    let all = || objects.values().flatten();
    let services: HashSet<&Key> = all()
        .filter_map(|object| if let Object::Service(service) = object { Some(&service.key) } else { None })
        .collect();
    let stray = |object: &Object| match object {
        Object::EndpointSlice(slice) => match &slice.service {
            // That the label is missing is its own first problem, which no Service tells.
            None => Some(format!("EndpointSlice {}: {}", slice.key, slice.problems.first().map_or("", |text| text))),
            Some(service) if services.contains(service) => None,
            Some(service) => Some(format!(
                "EndpointSlice {}: there is no Service {service}; write it, or fix the label kubernetes.io/service-name",
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

fn id(object: &Object) -> (Kind, Key) {
    match object {
        Object::Service(service) => (Kind::Service, service.key.clone()),
        Object::EndpointSlice(slice) => (Kind::EndpointSlice, slice.key.clone()),
        Object::Endpoints(endpoints) => (Kind::Endpoints, endpoints.key.clone()),
        Object::Node(node) => (Kind::Node, Key::new("", &node.name)),
        Object::Pod(pod) => (Kind::Pod, pod.key.clone()),
        Object::Namespace(namespace) => (Kind::Namespace, Key::new("", &namespace.name)),
    }
}

/// The files to read.
#[derive(Default)]
struct Found {
    files: BTreeSet<PathBuf>,
    directories: BTreeSet<PathBuf>,
    /// Real paths, against links that lead back.
    visited: BTreeSet<PathBuf>,
    problems: Vec<String>,
}

impl Found {
    /// Adds `*.yaml`, `*.yml` and `*.json` under `directory`. Links are followed; hidden names are not: in a mounted
    /// ConfigMap they hold the versions of the files, to which the visible links lead.
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
