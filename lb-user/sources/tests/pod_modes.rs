//! Pods and Namespaces as YAML, and the mode that each pod of the node gets.

use lb_core::{
    event::{Event, ObjectKind},
    model::pod_modes::{PodModes, PodNetns, PodWithMode, pod_modes},
    world::World,
};
use lb_sources::yaml;

/// Returns the modes and problems of the node `here` by the objects of a text.
fn modes(text: &str) -> String {
    let objects = yaml::parse(text, None).expect("right objects");
    let mut world = World::new("here");
    for kind in ObjectKind::ALL {
        let of_kind = objects.iter().filter(|object| object.kind() == kind).cloned().collect();
        world.apply(Event::Replace(kind, of_kind));
    }
    let PodModes { pods, problems } = pod_modes(world.pods().expect("all kinds were listed"));
    let line = |pod: &PodWithMode| {
        let netns = match &pod.netns {
            PodNetns::OfCgroup(uid) => format!("uid {uid}"),
            PodNetns::At(path) => path.display().to_string(),
        };
        format!("{} {} by {} at {netns}", pod.key, pod.mode.name(), pod.by.name())
    };
    pods.iter().map(line).chain(problems).collect::<Vec<_>>().join("\n")
}

fn pod(name: &str, labels: &str, more: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\n\
         metadata: {{name: {name}, namespace: n, uid: u-{name}, labels: {{{labels}}}}}\n{more}\n"
    )
}

fn namespace(path: &str) -> String {
    format!("---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: n, labels: {{beeline.io/path: '{path}'}}}}\n")
}

#[track_caller]
fn check(text: &str, expected: &[&str]) {
    assert_eq!(modes(text), expected.join("\n"));
}

#[test]
fn a_pods_own_label_goes_before_that_of_its_namespace() {
    let pods = pod("a", "", "") + &pod("b", "beeline.io/path: packet", "") + &pod("c", "beeline.io/path: socket", "");
    check(&pods, &["n/b packet by pod at uid u-b"]);
    check(&(namespace("off") + &pods), &["n/a off by namespace at uid u-a", "n/b packet by pod at uid u-b"]);
    check(&(namespace("socket") + &pods), &["n/b packet by pod at uid u-b"]);
}

#[test]
fn an_unknown_mode_is_reported_and_counts_as_no_label() {
    let wrong =
        |of: &str| format!("{of}: label beeline.io/path \"on\": unknown and ignored; write socket, packet or off");
    let pods = pod("a", "beeline.io/path: 'on'", "");
    check(&pods, &[&wrong("Pod n/a")]);
    check(&(namespace("off") + &pods), &["n/a off by namespace at uid u-a", &wrong("Pod n/a")]);
    check(
        &(namespace("on") + &pod("b", "beeline.io/path: 'off'", "")),
        &["n/b off by pod at uid u-b", &wrong("Namespace n")],
    );
}

#[test]
fn pods_of_other_nodes_have_no_mode_here() {
    let label = "beeline.io/path: packet";
    let pods = pod("a", label, "spec: {nodeName: there}") + &pod("b", label, "spec: {nodeName: here}");
    check(&pods, &["n/b packet by pod at uid u-b"]);
}

#[test]
fn a_pod_in_the_nodes_network_or_without_a_netns_is_refused_with_the_cure() {
    let text = pod("a", "beeline.io/path: packet", "spec: {hostNetwork: true}")
        + "---\n{apiVersion: v1, kind: Pod, metadata: {name: b, labels: {beeline.io/path: 'off'}}}\n"
        + "---\n{apiVersion: v1, kind: Pod, metadata: {name: c, labels: {beeline.io/path: 'off'}, \
           annotations: {beeline.io/netns: /run/netns/c}}}\n";
    let modes = modes(&text);
    let [third, first, second] = modes.lines().collect::<Vec<_>>()[..] else { panic!("{modes}") };
    assert_eq!(third, "default/c off by pod at /run/netns/c");
    assert!(first.starts_with("Pod default/b: the mode off") && first.contains("metadata.uid"), "{first}");
    assert!(second.starts_with("Pod n/a: the mode packet") && second.contains("beeline.io/path: socket"), "{second}");
}
