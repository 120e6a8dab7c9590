//! Which path each pod of this node has chosen, by its own label or that of its Namespace, and what is wrong with that. Pure.

use std::{net::IpAddr, path::PathBuf, sync::Arc};

use lb_common::PodMode;

use crate::{objects::Key, world::Pods};

/// What pods have chosen.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Paths {
    /// The pods with another path than `socket`, by key.
    pub pods: Vec<Chosen>,
    /// What is wrong with objects, each with the object and the cure.
    pub problems: Vec<String>,
}

/// A pod that has chosen another path than `socket`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Chosen {
    /// Namespace and name.
    pub key: Key,
    /// What it has chosen.
    pub path: PodMode,
    /// Who said so.
    pub by: By,
    /// By which its network namespace is found.
    pub netns: Netns,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// Whether its containers have been started.
    pub started: bool,
}

/// Whose label it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum By {
    /// The pod's own.
    Pod,
    /// That of its Namespace.
    Namespace,
}

impl By {
    /// The kind of the object that has the label.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pod => "pod",
            Self::Namespace => "namespace",
        }
    }
}

/// How a pod's network namespace is found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Netns {
    /// By its processes, whose cgroup is named after this uid.
    OfCgroup(Arc<str>),
    /// It is mounted here.
    At(PathBuf),
}

/// The choices of all pods of this node. A pod's own label goes before that of its Namespace, and one with an unknown word is
/// as good as none.
#[must_use]
pub fn paths(objects: &Pods) -> Paths {
    let mut paths = Paths::default();
    for namespace in objects.namespaces() {
        let told = namespace.problems.iter().map(|problem| format!("Namespace {}: {problem}", namespace.name));
        paths.problems.extend(told);
    }
    for (pod, namespace) in objects.pods() {
        paths.problems.extend(pod.problems.iter().map(|problem| format!("Pod {}: {problem}", pod.key)));
        let of_namespace = namespace.and_then(|namespace| namespace.path);
        let own = pod.path.map(|path| (path, By::Pod));
        let Some((path, by)) = own.or(of_namespace.map(|path| (path, By::Namespace))) else { continue };
        if path == PodMode::Socket {
            continue;
        }
        let netns = match (&pod.netns, &pod.uid) {
            _ if pod.host_network => Err(HOST_NETWORK),
            (Some(at), _) => Ok(Netns::At(at.clone())),
            (None, Some(uid)) => Ok(Netns::OfCgroup(Arc::clone(uid))),
            (None, None) => Err(NOWHERE),
        };
        let (key, ips) = (pod.key.clone(), pod.ips.clone());
        match netns {
            Ok(netns) => paths.pods.push(Chosen { key, path, by, netns, ips, started: pod.started }),
            Err(why) => paths.problems.push(refusal(&key, path, why)),
        }
    }
    paths
}

/// Why nothing is done for a pod of the node's own network.
pub const HOST_NETWORK: &str = "it has the node's own network namespace, and all processes of the node with it; give the pod \
                                the label beeline.io/path: socket";
const NOWHERE: &str = "nothing says where it is; give it metadata.uid, by which its cgroup is named, or the annotation \
                       beeline.io/netns with the path of its network namespace";

/// That a pod keeps its path, with the reason and the cure.
#[must_use]
pub fn refusal(pod: &Key, path: PodMode, why: &str) -> String {
    format!("Pod {pod}: the path {} is not for it, and it keeps socket: {why}", path.name())
}
