//! Names for ids in records: of service ports from the pinned maps, of pods by the cgroup of the process.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use foldhash::{HashMap, HashMapExt as _};
use lb_common::Scheduler;

use crate::watch::{PodUid, PortName, WatchClient, pod_uid};
use lb_dataplane::{cgroups, environment, store::BpfStore};

/// Age of what was read of the maps after which it is read again: an id may go over to another Service.
const FRESH: Duration = Duration::from_secs(1);

/// A search for cgroups or pods waits for this multiple of the time that the last one took, so that it costs at most
/// 5 % of a CPU.
const PAUSE_FACTOR: u32 = 20;

/// Directories of the logs of the node's pods: of this mount namespace, and of the host's from a pod with `hostPID`.
const POD_LOGS: [&str; 2] = ["/var/log/pods", "/proc/1/root/var/log/pods"];

/// Names of service ports.
pub(super) struct Ports {
    directory: PathBuf,
    read: Instant,
    /// None until a name is looked for: a map that has grown is another map at the same place.
    store: Option<BpfStore>,
    fresh: HashMap<u32, Option<PortName>>,
    /// The last known names, for service ports that are gone.
    last: HashMap<u32, PortName>,
}

impl Ports {
    pub(super) fn new(directory: PathBuf) -> Self {
        Self { directory, read: Instant::now(), store: None, fresh: HashMap::new(), last: HashMap::new() }
    }

    /// Forgets what may have changed.
    pub(super) fn refresh(&mut self) {
        if self.read.elapsed() > FRESH {
            self.read = Instant::now();
            self.store = None;
            self.fresh.clear();
        }
    }

    /// Returns the name of a service port; `None` for id 0.
    pub(super) fn name(&mut self, id: u32) -> Option<PortName> {
        if id == 0 {
            return None;
        }
        if let Some(known) = self.fresh.get(&id) {
            return known.clone().or_else(|| self.last.get(&id).cloned()).or_else(|| Some(unknown(id)));
        }
        if self.store.is_none() {
            self.store = BpfStore::open(&self.directory).ok();
        }
        let found = self.store.as_ref().and_then(|store| {
            let (key, entry) = (store.name(id)?, store.service(id).ok().flatten());
            let scheduler = entry.and_then(|entry| Scheduler::from_number(entry.scheduler)).unwrap_or_default();
            Some(PortName {
                namespace: key.service.namespace().to_string(),
                service: key.service.name().to_string(),
                port: key.name.to_string(),
                scheduler: scheduler.name(),
            })
        });
        if let Some(name) = &found {
            self.last.insert(id, name.clone());
        }
        self.fresh.insert(id, found);
        self.name(id)
    }
}

fn unknown(id: u32) -> PortName {
    PortName { namespace: "?".to_owned(), service: format!("service#{id}"), port: String::new(), scheduler: "?" }
}

/// Names of the clients.
pub(super) struct Clients {
    /// Mount point of cgroup2.
    mount: Option<PathBuf>,
    cgroups: HashMap<u64, String>,
    pods: HashMap<PodUid, (String, String)>,
    cgroup_search: Search,
    pod_search: Search,
}

impl Clients {
    pub(super) fn new() -> Self {
        Self {
            mount: environment::find_cgroup2().ok().flatten(),
            cgroups: HashMap::new(),
            pods: HashMap::new(),
            cgroup_search: Search::default(),
            pod_search: Search::default(),
        }
    }

    /// Returns the path of a cgroup below the mount point; `None` if it is not found, or for id 0.
    pub(super) fn cgroup(&mut self, id: u64) -> Option<String> {
        if id == 0 {
            return None;
        }
        if let (None, Some(mount)) = (self.cgroups.get(&id), &self.mount)
            && self.cgroup_search.is_due()
        {
            let found = self.cgroup_search.run(|| {
                let all = cgroups::walk(mount).filter_map(|path| {
                    let below = path.strip_prefix(mount).unwrap_or(&path);
                    Some((cgroups::id(&path)?, format!("/{}", below.display())))
                });
                all.collect::<Vec<_>>()
            });
            self.cgroups.extend(found);
        }
        self.cgroups.get(&id).cloned()
    }

    /// Returns the client whose process is in the cgroup with this id and path.
    pub(super) fn client(&mut self, id: u64, cgroup: Option<&str>) -> WatchClient {
        let Some(uid) = cgroup.and_then(pod_uid) else {
            return if cgroup.is_none() && id != 0 { WatchClient::Unknown } else { WatchClient::Node };
        };
        if !self.pods.contains_key(&uid) && self.pod_search.is_due() {
            let found =
                self.pod_search.run(|| POD_LOGS.iter().flat_map(|logs| logged_pods(logs.as_ref())).collect::<Vec<_>>());
            self.pods.extend(found);
        }
        match self.pods.get(&uid) {
            Some((namespace, name)) => WatchClient::Pod(namespace.clone(), name.clone()),
            None => WatchClient::UnknownPod(uid),
        }
    }
}

/// A search that is repeated while something is not found.
#[derive(Default)]
struct Search {
    /// End and duration of the last one.
    last: Option<(Instant, Duration)>,
}

impl Search {
    fn is_due(&self) -> bool {
        self.last.is_none_or(|(at, took)| at.elapsed() > took * PAUSE_FACTOR)
    }

    fn run<T>(&mut self, search: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let found = search();
        self.last = Some((Instant::now(), start.elapsed()));
        found
    }
}

/// Lists the pods with logs in a directory, where the kubelet names them `NAMESPACE_NAME_UID`
/// (pkg/kubelet/kuberuntime/helpers.go, `BuildPodLogsDirectory`).
fn logged_pods(logs: &Path) -> impl Iterator<Item = (PodUid, (String, String))> {
    fs::read_dir(logs).into_iter().flatten().flatten().filter_map(|entry| {
        let name = entry.file_name();
        let mut parts = name.to_str()?.split('_');
        let (namespace, name, uid) = (parts.next()?, parts.next()?, parts.next()?);
        Some((uid.to_owned(), (namespace.to_owned(), name.to_owned())))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_are_named_by_the_directories_of_their_logs() {
        let logs = tempfile::tempdir().expect("a directory");
        for name in ["shop_cart-7d9f_0f3c9a2e", "odd"] {
            fs::create_dir(logs.path().join(name)).expect("a directory");
        }
        let found: Vec<_> = logged_pods(logs.path()).collect();
        assert_eq!(found, [("0f3c9a2e".to_owned(), ("shop".to_owned(), "cart-7d9f".to_owned()))]);
        assert_eq!(logged_pods(&logs.path().join("missing")).count(), 0);
    }
}
