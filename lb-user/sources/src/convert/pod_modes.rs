//! Conversion of Pods and Namespaces: their choice of a mode, by the label `beeline.io/path`. The hostPorts of a Pod
//! are in `host_ports`.
//!
//! The choice is a label and not an annotation, since the API selects by labels only: objects without it are not sent.

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use lb_common::PodMode;

use super::{address::parse_ip, annotations, host_ports::host_ports, key, label, list, text};
use crate::api;
use lb_core::objects::{Namespace, Pod};

/// Label of a Pod or a Namespace that chooses the mode.
pub const LABEL: &str = "beeline.io/path";
/// Annotation of a Pod in a file: the path of its network namespace.
pub const NETNS: &str = "beeline.io/netns";
/// Annotation with the uid that kubelet uses in the cgroup's name of a static pod, whose API object has another uid
/// (kubernetes, pkg/kubelet/config).
const CONFIG_HASH: &str = "kubernetes.io/config.hash";

/// Converts a v1 Pod; None for a pod that has ended, which opens no more sockets.
pub(super) fn pod(object: &api::Pod) -> Option<Pod> {
    let (meta, status) = (&object.metadata, object.status.as_ref());
    let phase = status.and_then(|status| status.phase.as_deref());
    if matches!(phase, Some("Succeeded" | "Failed")) {
        return None;
    }
    let mut problems = Vec::new();
    let mode = mode(meta, &mut problems);
    let known: &[&str] = if object.netns.is_some() { &[NETNS] } else { &[] };
    annotations::unknown(meta, "a Pod", known, &mut problems);
    let uid = annotations::get(meta, CONFIG_HASH).or(meta.uid.as_deref()).filter(|uid| !uid.is_empty());
    let spec = object.spec.as_ref();
    let (host_ports, host_port_problems) = spec.map(host_ports).unwrap_or_default();
    let ips = status.map_or(&[][..], |status| list(&status.pod_ips));
    Some(Pod {
        key: key(meta),
        uid: uid.map(Arc::from),
        created: meta.creation_timestamp.as_ref().map(|time| time.0.as_second()),
        terminating: meta.deletion_timestamp.is_some(),
        node: spec.and_then(|spec| spec.node_name.as_deref()).filter(|node| !node.is_empty()).map(Arc::from),
        host_network: spec.and_then(|spec| spec.host_network).unwrap_or(false),
        started: phase != Some("Pending"),
        // kubelet writes them; texts that are no address are ignored.
        ips: ips.iter().filter_map(|ip| parse_ip(&ip.ip)).collect(),
        host_ports,
        host_port_problems,
        mode,
        netns: object.netns.as_ref().map(Into::into),
        problems,
    })
}

/// Converts a v1 Namespace.
pub(super) fn namespace(object: &api::Namespace) -> Namespace {
    let mut problems = Vec::new();
    let mode = mode(&object.metadata, &mut problems);
    Namespace { name: text(object.metadata.name.as_deref()), mode, problems }
}

fn mode(meta: &ObjectMeta, problems: &mut Vec<String>) -> Option<PodMode> {
    let text = label(meta, LABEL)?;
    let mode = PodMode::from_name(text);
    if mode.is_none() {
        problems.push(format!("label {LABEL} {text:?}: unknown and ignored; write socket, packet or off"));
    }
    mode
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::convert::tests::yaml;

    #[track_caller]
    fn check(text: &str, expected: Option<(Option<PodMode>, &[&str])>) {
        let pod = pod(&yaml(text));
        let converted = pod.as_ref().map(|pod| (pod.mode, pod.problems.iter().map(String::as_str).collect::<Vec<_>>()));
        assert_eq!(converted, expected.map(|(path, problems)| (path, problems.to_vec())), "{text}");
    }

    #[test]
    fn the_label_chooses_the_mode_and_an_unknown_value_is_a_problem() {
        let with = |value: &str| format!("metadata: {{name: a, labels: {{beeline.io/path: {value}}}}}");
        check("metadata: {name: a}", Some((None, &[])));
        check(&with("socket"), Some((Some(PodMode::Socket), &[])));
        check(&with("packet"), Some((Some(PodMode::Packet), &[])));
        check(&with("'off'"), Some((Some(PodMode::Off), &[])));
        let unknown = "label beeline.io/path \"Packet\": unknown and ignored; write socket, packet or off";
        check(&with("Packet"), Some((None, &[unknown])));
        let converted = namespace(&yaml(&with("Packet")));
        assert_eq!(
            (&*converted.name, converted.mode, converted.problems.as_slice()),
            ("a", None, &[unknown.to_owned()][..])
        );
        assert_eq!(namespace(&yaml(&with("packet"))).mode, Some(PodMode::Packet));
    }

    #[test]
    fn an_annotation_does_not_choose_the_mode() {
        let Some(pod) = pod(&yaml("metadata: {name: a, annotations: {beeline.io/path: packet}}")) else {
            panic!("a pod")
        };
        assert_eq!((pod.mode, pod.problems.len()), (None, 1), "{pod:?}");
    }

    #[test]
    fn a_pod_that_has_ended_is_ignored() {
        for phase in ["Succeeded", "Failed"] {
            check(&format!("{{metadata: {{name: a}}, status: {{phase: {phase}}}}}"), None);
        }
        let started = |phase| pod(&yaml(&format!("{{metadata: {{name: a}}, status: {{{phase}}}}}"))).unwrap().started;
        assert_eq!(["phase: Pending", "phase: Running", ""].map(started), [false, true, true]);
    }

    #[test]
    fn uid_addresses_and_network_of_a_pod_are_read() {
        let text = "metadata: {name: a, namespace: b, uid: u-1}\n\
                    spec: {nodeName: n, hostNetwork: true}\n\
                    status: {phase: Running, podIPs: [{ip: 10.0.00.1}, {ip: x}, {ip: 'fd00::1'}]}";
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
