//! Pods and Namespaces: who has chosen which path to Services, by the label `beeline.io/path`.
//!
//! A label and no annotation, since selectors of the API work on labels only: what does not have it need not travel.

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use lb_common::PodMode;

use super::{annotations, key, label, list, text};
use crate::api;
use lb_core::objects::{Namespace, Pod};

/// The label of a Pod or a Namespace.
pub const LABEL: &str = "beeline.io/path";
/// The annotation of a Pod in a file that says where its network namespace is mounted.
pub const NETNS: &str = "beeline.io/netns";
/// By which kubelet names the cgroup of a static pod, whose object has a uid of its own (kubernetes, pkg/kubelet/config).
const CONFIG_HASH: &str = "kubernetes.io/config.hash";

/// From a v1 Pod; none of one that has ended, as it opens no socket any more.
#[must_use]
pub fn pod(wire: &api::Pod) -> Option<Pod> {
    let (meta, status) = (&wire.metadata, wire.status.as_ref());
    let phase = status.and_then(|status| status.phase.as_deref());
    if matches!(phase, Some("Succeeded" | "Failed")) {
        return None;
    }
    let mut problems = Vec::new();
    let path = path(meta, &mut problems);
    let known: &[&str] = if wire.netns.is_some() { &[NETNS] } else { &[] };
    annotations::unknown(meta, "a Pod", known, &mut problems);
    let uid = annotations::get(meta, CONFIG_HASH).or(meta.uid.as_deref()).filter(|uid| !uid.is_empty());
    let spec = wire.spec.as_ref();
    let ips = status.map_or(&[][..], |status| list(&status.pod_ips));
    Some(Pod {
        key: key(meta),
        uid: uid.map(Arc::from),
        node: spec.and_then(|spec| spec.node_name.as_deref()).filter(|node| !node.is_empty()).map(Arc::from),
        host_network: spec.and_then(|spec| spec.host_network).unwrap_or(false),
        started: phase != Some("Pending"),
        // kubelet writes them; what is no address is passed over.
        ips: ips.iter().filter_map(|ip| ip.ip.parse().ok()).collect(),
        path,
        netns: wire.netns.as_ref().map(Into::into),
        problems,
    })
}

/// From a v1 Namespace.
#[must_use]
pub fn namespace(wire: &api::Namespace) -> Namespace {
    let mut problems = Vec::new();
    let path = path(&wire.metadata, &mut problems);
    Namespace { name: text(wire.metadata.name.as_deref()), path, problems }
}

fn path(meta: &ObjectMeta, problems: &mut Vec<String>) -> Option<PodMode> {
    let text = label(meta, LABEL)?;
    let path = PodMode::from_name(text);
    if path.is_none() {
        problems.push(format!("label {LABEL} {text:?}: unknown, and passed over; write socket, packet or off"));
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::convert::tests::yaml;

    #[track_caller]
    fn check(text: &str, expected: Option<(Option<PodMode>, &[&str])>) {
        let pod = pod(&yaml(text));
        let told = pod.as_ref().map(|pod| (pod.path, pod.problems.iter().map(String::as_str).collect::<Vec<_>>()));
        assert_eq!(told, expected.map(|(path, problems)| (path, problems.to_vec())), "{text}");
    }

    #[test]
    fn a_pod_chooses_by_its_label_and_a_wrong_word_is_named() {
        let with = |value: &str| format!("metadata: {{name: a, labels: {{beeline.io/path: {value}}}}}");
        check("metadata: {name: a}", Some((None, &[])));
        check(&with("socket"), Some((Some(PodMode::Socket), &[])));
        check(&with("packet"), Some((Some(PodMode::Packet), &[])));
        check(&with("'off'"), Some((Some(PodMode::Off), &[])));
        let unknown = "label beeline.io/path \"Packet\": unknown, and passed over; write socket, packet or off";
        check(&with("Packet"), Some((None, &[unknown])));
        let told = namespace(&yaml(&with("Packet")));
        assert_eq!((&*told.name, told.path, told.problems.as_slice()), ("a", None, &[unknown.to_owned()][..]));
        assert_eq!(namespace(&yaml(&with("packet"))).path, Some(PodMode::Packet));
    }

    #[test]
    fn an_annotation_does_not_choose() {
        let Some(pod) = pod(&yaml("metadata: {name: a, annotations: {beeline.io/path: packet}}")) else {
            panic!("a pod")
        };
        assert_eq!((pod.path, pod.problems.len()), (None, 1), "{pod:?}");
    }

    #[test]
    fn one_that_has_ended_is_none() {
        for phase in ["Succeeded", "Failed"] {
            check(&format!("{{metadata: {{name: a}}, status: {{phase: {phase}}}}}"), None);
        }
        let started = |phase| pod(&yaml(&format!("{{metadata: {{name: a}}, status: {{{phase}}}}}"))).unwrap().started;
        assert_eq!(["phase: Pending", "phase: Running", ""].map(started), [false, true, true]);
    }

    #[test]
    fn what_finds_it_on_the_node_is_read() {
        let text = "metadata: {name: a, namespace: b, uid: u-1}\n\
                    spec: {nodeName: n, hostNetwork: true}\n\
                    status: {phase: Running, podIPs: [{ip: 10.0.0.1}, {ip: x}, {ip: 'fd00::1'}]}";
        let pod = pod(&yaml(text)).unwrap();
        assert_eq!(
            (pod.key.to_string().as_str(), pod.uid.as_deref(), pod.node.as_deref()),
            ("b/a", Some("u-1"), Some("n"))
        );
        assert!(pod.host_network && pod.started && pod.netns.is_none());
        assert_eq!(pod.ips, ["10.0.0.1".parse::<std::net::IpAddr>().unwrap(), "fd00::1".parse().unwrap()]);
        let of_static = "metadata: {name: a, uid: u-1, annotations: {kubernetes.io/config.hash: h}}";
        assert_eq!(super::pod(&yaml(of_static)).unwrap().uid.as_deref(), Some("h"));
    }
}
