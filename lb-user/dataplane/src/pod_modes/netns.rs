//! Network namespaces of this node's pods, found by the cgroups of their processes or by the path of a mount.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use lb_core::model::pod_modes::PodNetns;
use lb_kernel::netns::NetNamespace;

/// A network namespace of a pod.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct PodNamespace {
    /// A file by which it can be opened.
    path: PathBuf,
    inode: u64,
    /// Cookie of the network namespace, the key of `POD_MODES`.
    pub(super) cookie: u64,
}

impl PodNamespace {
    /// True if the namespace still exists.
    fn exists(&self) -> bool {
        inode(&self.path).is_ok_and(|inode| inode == self.inode)
    }

    /// Opens the namespace, if it still exists.
    pub(super) fn open(&self) -> Option<NetNamespace> {
        NetNamespace::open(&self.path).ok().filter(|namespace| namespace.inode() == Some(self.inode))
    }
}

/// Result of the search for a pod.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum NetnsSearch {
    /// The pod's network namespaces: mostly one.
    Found(Vec<PodNamespace>),
    /// No process of the pod runs yet.
    NoProcess,
    /// The pod is in the node's network namespace.
    HostNetwork,
    /// The namespace cannot be used, with the reason.
    Failed(String),
}

impl NetnsSearch {
    /// True if the pod was found, and all of its namespaces still exist.
    pub(super) fn is_current(&self) -> bool {
        matches!(self, Self::Found(namespaces) if namespaces.iter().all(PodNamespace::exists))
    }
}

/// Finds the network namespaces of pods, in the order of `pods`.
pub(super) fn find<'a>(pods: impl Iterator<Item = &'a PodNetns> + Clone) -> io::Result<Vec<NetnsSearch>> {
    let uids: BTreeSet<&str> = pods
        .clone()
        .filter_map(|netns| if let PodNetns::OfCgroup(uid) = netns { Some(&**uid) } else { None })
        .collect();
    let by_uid = if uids.is_empty() { BTreeMap::new() } else { by_processes(&uids)? };
    let own = inode(Path::new("/proc/thread-self/ns/net"))?;
    let search = |netns: &PodNetns| match netns {
        PodNetns::OfCgroup(uid) => match by_uid.get(uid) {
            None => NetnsSearch::NoProcess,
            // A process of a pod may have entered the node's namespace, as `nsenter` does.
            Some(files) => identified(files.iter().filter(|(inode, _)| **inode != own)),
        },
        PodNetns::At(path) => match inode(path) {
            Ok(inode) if inode == own => NetnsSearch::HostNetwork,
            Ok(inode) => identified([(&inode, path)].into_iter()),
            Err(error) => NetnsSearch::Failed(format!("its network namespace {}: {error}", path.display())),
        },
    };
    Ok(pods.map(search).collect())
}

/// Opens namespaces, given by inode and path, and reads their cookies.
fn identified<'a>(files: impl Iterator<Item = (&'a u64, &'a PathBuf)>) -> NetnsSearch {
    let mut found = Vec::new();
    let mut is_any = false;
    for (&inode, path) in files {
        is_any = true;
        // The process may have ended since.
        let Some(namespace) = NetNamespace::open(path).ok().filter(|namespace| namespace.inode() == Some(inode)) else {
            continue;
        };
        match namespace.cookie() {
            Ok(cookie) => found.push(PodNamespace { path: path.clone(), inode, cookie }),
            Err(error) => return NetnsSearch::Failed(format!("{error:#}")),
        }
    }
    match (found.is_empty(), is_any) {
        (false, _) => NetnsSearch::Found(found),
        (true, true) => NetnsSearch::NoProcess,
        (true, false) => NetnsSearch::HostNetwork,
    }
}

/// Finds the network namespaces of the pods' processes: by uid of the pod, then by inode, with a path for each.
fn by_processes(uids: &BTreeSet<&str>) -> io::Result<BTreeMap<Arc<str>, BTreeMap<u64, PathBuf>>> {
    let mut found: BTreeMap<Arc<str>, BTreeMap<u64, PathBuf>> = BTreeMap::new();
    for process in fs::read_dir("/proc")?.flatten() {
        if !process.file_name().as_encoded_bytes().first().is_some_and(u8::is_ascii_digit) {
            continue;
        }
        // A process that has ended since has no cgroup file.
        let Ok(cgroups) = fs::read_to_string(process.path().join("cgroup")) else { continue };
        let Some(uid) = uids_of(&cgroups).find(|uid| uids.contains(uid.as_str())) else { continue };
        let path = process.path().join("ns/net");
        if let Ok(inode) = inode(&path) {
            found.entry(uid.into()).or_default().entry(inode).or_insert(path);
        }
    }
    Ok(found)
}

fn inode(path: &Path) -> io::Result<u64> {
    fs::metadata(path).map(|file| file.ino())
}

/// Parses possible uids of pods from the text of /proc/PID/cgroup: kubelet names a pod's cgroup `pod` and its uid, and
/// the systemd driver turns the uid's hyphens into underscores (kubernetes, pkg/kubelet/cm/cgroup_manager_linux.go).
fn uids_of(cgroups: &str) -> impl Iterator<Item = String> + '_ {
    let is_of_uid = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    cgroups.match_indices("pod").filter_map(move |(at, word)| {
        let rest = cgroups.get(at + word.len()..)?;
        let uid = rest.split(|c| !is_of_uid(c)).next()?;
        (!uid.is_empty()).then(|| uid.replace('_', "-"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, uid: &str, is_named: bool) {
        assert_eq!(uids_of(text).any(|other| other == uid), is_named, "{uid} in {text}");
    }

    #[test]
    fn a_pod_is_found_by_the_cgroup_of_its_processes() {
        let uid = "8c5a0d2c-4a8b-4a54-9c9e-1f0e2a9d7b31";
        let check = |text, is_named| check(text, uid, is_named);
        check("0::/kubepods/burstable/pod8c5a0d2c-4a8b-4a54-9c9e-1f0e2a9d7b31/3f9a\n", true);
        check(
            "0::/kubepods.slice/kubepods-besteffort.slice/\
             kubepods-besteffort-pod8c5a0d2c_4a8b_4a54_9c9e_1f0e2a9d7b31.slice/cri-containerd-3f9a.scope\n",
            true,
        );
        // Seen from within a cgroup namespace, and with cgroup v1.
        check("0::/../../pod8c5a0d2c-4a8b-4a54-9c9e-1f0e2a9d7b31/3f9a\n", true);
        check("4:memory:/kubepods/pod8c5a0d2c-4a8b-4a54-9c9e-1f0e2a9d7b31/3f9a\n0::/\n", true);
        check("0::/kubepods/burstable/pod8c5a0d2c-4a8b-4a54-9c9e-1f0e2a9d7b310/3f9a\n", false);
        check("0::/kubepods/burstable/8c5a0d2c-4a8b-4a54-9c9e-1f0e2a9d7b31\n", false);
        check("0::/machine.slice/libpod-3f9a.scope\n0::/pod\n", false);
    }

    #[test]
    fn this_process_is_in_the_nodes_namespace() {
        let own = fs::read_to_string("/proc/self/cgroup").expect("/proc");
        let pods = [
            PodNetns::At("/proc/self/ns/net".into()),
            PodNetns::At("/nowhere".into()),
            PodNetns::OfCgroup("none".into()),
        ];
        let [first, second, third] = find(pods.iter()).expect("/proc").try_into().expect("as many");
        assert_eq!((first, third), (NetnsSearch::HostNetwork, NetnsSearch::NoProcess), "{own}");
        assert!(matches!(second, NetnsSearch::Failed(why) if why.contains("/nowhere")));
    }
}
