//! The mode of each pod of this node, by its own label or its Namespace's, and the problems with such labels.

use std::{net::IpAddr, path::PathBuf, sync::Arc};

use lb_common::PodMode;

use crate::{objects::Key, world::Pods};

/// Modes of the pods of this node.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PodModes {
    /// Pods in another mode than `socket`, by key.
    pub pods: Vec<PodWithMode>,
    /// Problems, each with its object and its cure.
    pub problems: Vec<String>,
}

/// A pod in another mode than `socket`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PodWithMode {
    /// Namespace and name.
    pub key: Key,
    /// Mode of the pod.
    pub mode: PodMode,
    /// Object that sets the mode.
    pub by: ModeSource,
    /// Location of its network namespace.
    pub netns: PodNetns,
    /// Addresses of the pod.
    pub ips: Vec<IpAddr>,
    /// True if its containers have been started.
    pub started: bool,
}

/// The object whose label sets the mode of a pod.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ModeSource {
    /// The pod itself.
    Pod,
    /// The pod's Namespace.
    Namespace,
}

impl ModeSource {
    /// Returns the kind of the object.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pod => "pod",
            Self::Namespace => "namespace",
        }
    }
}

/// Location of a pod's network namespace.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PodNetns {
    /// The namespace of its processes, whose cgroup is named after this uid.
    OfCgroup(Arc<str>),
    /// A mount at this path.
    At(PathBuf),
}

/// Decides the mode of each pod of this node. A pod's own label goes before its Namespace's; an unknown value counts as
/// no label.
#[must_use]
pub fn pod_modes(objects: &Pods) -> PodModes {
    let mut modes = PodModes::default();
    for namespace in objects.namespaces() {
        let problems = namespace.problems.iter().map(|problem| format!("Namespace {}: {problem}", namespace.name));
        modes.problems.extend(problems);
    }
    for (pod, namespace) in objects.pods() {
        modes.problems.extend(pod.problems.iter().map(|problem| format!("Pod {}: {problem}", pod.key)));
        let of_namespace = namespace.and_then(|namespace| namespace.mode);
        let own = pod.mode.map(|mode| (mode, ModeSource::Pod));
        let Some((mode, by)) = own.or(of_namespace.map(|mode| (mode, ModeSource::Namespace))) else { continue };
        if mode == PodMode::Socket {
            continue;
        }
        let netns = match (&pod.netns, &pod.uid) {
            _ if pod.host_network => Err(HOST_NETWORK),
            (Some(at), _) => Ok(PodNetns::At(at.clone())),
            (None, Some(uid)) => Ok(PodNetns::OfCgroup(Arc::clone(uid))),
            (None, None) => Err(NO_NETNS),
        };
        let (key, ips) = (pod.key.clone(), pod.ips.clone());
        match netns {
            Ok(netns) => modes.pods.push(PodWithMode { key, mode, by, netns, ips, started: pod.started }),
            Err(why) => modes.problems.push(refusal(&key, mode, why)),
        }
    }
    modes
}

/// The reason, with its cure, why a pod in the node's network has no mode of its own.
pub const HOST_NETWORK: &str = "it has the node's own network namespace, and all processes of the node with it; give \
                                the pod the label beeline.io/path: socket";
/// The reason, with its cure, why a pod whose network namespace cannot be found has no mode of its own.
const NO_NETNS: &str = "nothing says where it is; give it metadata.uid, by which its cgroup is named, or the \
                        annotation beeline.io/netns with the path of its network namespace";

/// Describes that a pod stays in mode `socket`, with the reason and the cure.
#[must_use]
pub fn refusal(pod: &Key, mode: PodMode, why: &str) -> String {
    format!("Pod {pod}: the mode {} is not for it, and it keeps socket: {why}", mode.name())
}
