//! The client of an event: a pod, by the path of its cgroup, or another process of the node.

use std::net::SocketAddr;

/// `metadata.uid` of a Pod.
pub type PodUid = String;

/// The client of an event.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum WatchClient {
    /// A process in a pod: its namespace and name.
    Pod(String, String),
    /// A process in a pod whose name is not known.
    UnknownPod(PodUid),
    /// Another process of the node.
    Node,
    /// A process whose cgroup was gone before it was looked for.
    Unknown,
    /// The sender of packets.
    Address(SocketAddr),
}

impl std::fmt::Display for WatchClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Pod(namespace, name) => write!(f, "{namespace}/{name}"),
            Self::UnknownPod(uid) => write!(f, "pod:{uid}"),
            Self::Node => f.write_str("node"),
            Self::Unknown => f.write_str("unknown"),
            Self::Address(address) => write!(f, "{address}"),
        }
    }
}

/// Returns the uid of the pod in the path of a cgroup, as the kubelet names it with either of its drivers: `podUID`
/// below `kubepods`, or `kubepods-burstable-podUID.slice`, where the uid has underscores
/// (pkg/kubelet/cm/pod_container_manager_linux.go).
#[must_use]
pub fn pod_uid(path: &str) -> Option<PodUid> {
    let mut is_below_kubepods = false;
    for part in path.split('/') {
        let name = part.strip_suffix(".slice").unwrap_or(part);
        let uid = if name.starts_with("kubepods") || name.starts_with("kubelet-kubepods") {
            is_below_kubepods = true;
            name.rsplit_once("-pod").map(|(_, uid)| uid)
        } else if is_below_kubepods {
            name.strip_prefix("pod")
        } else {
            None
        };
        if let Some(uid) = uid.filter(|uid| uid.len() >= 32) {
            return Some(uid.replace('_', "-"));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_uid_of_a_pod_is_in_the_path_of_its_cgroup() {
        const UID: &str = "0f3c9a2e-1b1d-4c55-9a2b-5c6f0a7d8e9f";
        let underscores = UID.replace('-', "_");
        for (path, uid) in [
            (format!("/kubepods/burstable/pod{UID}/abcdef"), Some(UID)),
            (format!("/kubepods/pod{UID}"), Some(UID)),
            (
                format!(
                    "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{underscores}.slice/cri-x.scope"
                ),
                Some(UID),
            ),
            (format!("/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{underscores}.slice/x"), Some(UID)),
            ("/kubepods/pod4ebf1e2bd2f0c0a1e9c2f7a1c8b3d4e5/x".to_owned(), Some("4ebf1e2bd2f0c0a1e9c2f7a1c8b3d4e5")),
            ("/system.slice/pod-helper.service".to_owned(), None),
            (format!("/user.slice/pod{UID}"), None),
            ("/kubepods/burstable".to_owned(), None),
            (String::new(), None),
        ] {
            assert_eq!(pod_uid(&path).as_deref(), uid, "{path}");
        }
    }
}
