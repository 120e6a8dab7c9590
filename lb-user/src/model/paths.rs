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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        event::{Event, Kind},
        sources::yaml,
        world::World,
    };

    /// The choices of a node `here` by the objects of a text.
    fn told(text: &str) -> String {
        let objects = yaml::parse(text, None).expect("right objects");
        let mut world = World::new("here");
        for kind in Kind::ALL {
            let of = objects.iter().filter(|object| object.kind() == kind).cloned().collect();
            world.apply(Event::Replace(kind, of));
        }
        let Paths { pods, problems } = paths(world.pods().expect("all kinds were listed"));
        let line = |pod: &Chosen| {
            let netns = match &pod.netns {
                Netns::OfCgroup(uid) => format!("uid {uid}"),
                Netns::At(path) => path.display().to_string(),
            };
            format!("{} {} by {} at {netns}", pod.key, pod.path.name(), pod.by.name())
        };
        pods.iter().map(line).chain(problems).collect::<Vec<_>>().join("\n")
    }

    fn pod(name: &str, labels: &str, more: &str) -> String {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: n, uid: u-{name}, labels: {{{labels}}}}}\n{more}\n"
        )
    }

    fn namespace(path: &str) -> String {
        format!("---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: n, labels: {{beeline.io/path: '{path}'}}}}\n")
    }

    #[track_caller]
    fn check(text: &str, expected: &[&str]) {
        assert_eq!(told(text), expected.join("\n"));
    }

    #[test]
    fn a_pods_own_label_goes_before_that_of_its_namespace() {
        let pods =
            pod("a", "", "") + &pod("b", "beeline.io/path: packet", "") + &pod("c", "beeline.io/path: socket", "");
        check(&pods, &["n/b packet by pod at uid u-b"]);
        check(&(namespace("off") + &pods), &["n/a off by namespace at uid u-a", "n/b packet by pod at uid u-b"]);
        check(&(namespace("socket") + &pods), &["n/b packet by pod at uid u-b"]);
    }

    #[test]
    fn an_unknown_word_is_named_and_as_good_as_none() {
        let wrong = |of: &str| {
            format!("{of}: label beeline.io/path \"on\": unknown, and passed over; write socket, packet or off")
        };
        let pods = pod("a", "beeline.io/path: 'on'", "");
        check(&pods, &[&wrong("Pod n/a")]);
        check(&(namespace("off") + &pods), &["n/a off by namespace at uid u-a", &wrong("Pod n/a")]);
        check(
            &(namespace("on") + &pod("b", "beeline.io/path: 'off'", "")),
            &["n/b off by pod at uid u-b", &wrong("Namespace n")],
        );
    }

    #[test]
    fn pods_of_other_nodes_are_not_looked_at() {
        let label = "beeline.io/path: packet";
        let pods = pod("a", label, "spec: {nodeName: there}") + &pod("b", label, "spec: {nodeName: here}");
        check(&pods, &["n/b packet by pod at uid u-b"]);
    }

    #[test]
    fn who_has_the_nodes_network_or_is_nowhere_is_refused_with_the_cure() {
        let text = pod("a", "beeline.io/path: packet", "spec: {hostNetwork: true}")
            + "---\n{apiVersion: v1, kind: Pod, metadata: {name: b, labels: {beeline.io/path: 'off'}}}\n"
            + "---\n{apiVersion: v1, kind: Pod, metadata: {name: c, labels: {beeline.io/path: 'off'}, \
               annotations: {beeline.io/netns: /run/netns/c}}}\n";
        let told = told(&text);
        let [third, first, second] = told.lines().collect::<Vec<_>>()[..] else { panic!("{told}") };
        assert_eq!(third, "default/c off by pod at /run/netns/c");
        assert!(first.starts_with("Pod default/b: the path off") && first.contains("metadata.uid"), "{first}");
        assert!(
            second.starts_with("Pod n/a: the path packet") && second.contains("beeline.io/path: socket"),
            "{second}"
        );
    }
}
