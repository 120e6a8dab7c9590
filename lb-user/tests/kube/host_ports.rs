//! Pods with hostPorts: watched only with the flag, and their conflicts as Events.

use lb_common::Proto;
use lb_core::{
    event::{Object, ObjectKind},
    objects::{HostPort, Key},
};
use lb_lab::api_server::ApiServer;
use lb_sources::kubernetes::KubernetesOptions;
use serde_json::Value;

use crate::{
    Source,
    agent::{KubeTestAgent, alone_on_this_node, until},
    bootstrap::is_skipped,
    deploy::{may, with_events},
    options, service,
};

/// A pod with the hostPort 8080.
fn pod(name: &str, node: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\n\
         spec: {{nodeName: {node}, containers: [{{name: c, image: i, \
         ports: [{{containerPort: 80, hostPort: 8080, hostIP: 0.0.0.0}}]}}]}}\n"
    )
}

/// Sets the status as kubelet does.
fn set_status(server: &ApiServer, name: &str, phase: &str, ip: &str) {
    let patch = format!(r#"--patch={{"status":{{"phase":"{phase}","podIPs":[{{"ip":"{ip}"}}]}}}}"#);
    server.kubectl(&["patch", &format!("pod/{name}"), "--subresource=status", "--type=merge", &patch]);
}

fn delete(server: &ApiServer, names: &[&str]) {
    for name in names {
        server.kubectl(&["delete", &format!("pod/{name}"), "--grace-period=0", "--force"]);
    }
}

pub(crate) fn all_pods_of_the_node_are_sent_for_host_ports_only(server: &mut ApiServer) {
    server.apply(&(pod("noted-here", "n1") + &pod("noted-elsewhere", "n2")));
    let mut without = Source::of(server);
    let mut with = Source::new(KubernetesOptions { host_ports: true, ..options(server) });
    with.until("the pod of this node", |source| source.has(ObjectKind::Pod, "noted-here"));
    set_status(server, "noted-here", "Running", "10.0.0.1");
    let known = |source: &Source| match source.known.get(&(ObjectKind::Pod, Key::new("default", "noted-here"))) {
        Some(Object::Pod(pod)) => Some(pod.clone()),
        _ => None,
    };
    with.until("its address", |source| known(source).is_some_and(|pod| pod.ips.len() == 1));
    let number = |number: u16| number.try_into().expect("not 0");
    let addr = Some([0, 0, 0, 0].into());
    let host_port = HostPort { addr, port: number(8080), container_port: number(80), proto: Proto::Tcp };
    let read = known(&with).expect("a pod");
    assert_eq!(
        (read.host_ports.as_slice(), read.host_port_problems.len(), read.terminating),
        (&[host_port][..], 0, false)
    );
    assert!(read.created.is_some());
    set_status(server, "noted-here", "Failed", "10.0.0.1");
    with.until("the deletion of a pod that has ended", |source| !source.has(ObjectKind::Pod, "noted-here"));
    assert!(!with.saw(ObjectKind::Pod, "noted-elsewhere"));
    // The other source goes on, and gets no pod.
    server.apply(&service("noted-later", ""));
    without.until("a later object", |source| source.has(ObjectKind::Service, "noted-later"));
    server.kubectl(&["delete", "service/noted-later"]);
    assert!(!without.seen.iter().any(|(kind, _)| *kind == ObjectKind::Pod), "{:?}", without.seen);
    delete(server, &["noted-here", "noted-elsewhere"]);
}

pub(crate) fn goes_over_to_the_next_pod(server: &mut ApiServer) {
    if is_skipped() {
        return;
    }
    let _alone = alone_on_this_node();
    let (overlay, kubeconfig) = with_events(server);
    until("the account may create Events", || may(server, "create", "events.events.k8s.io"));
    server.apply(&pod("noted-first", "n1"));
    set_status(server, "noted-first", "Running", "10.0.0.1");
    // Another second, by which the ages differ.
    std::thread::sleep(std::time::Duration::from_millis(1100));
    server.apply(&pod("noted-second", "n1"));
    set_status(server, "noted-second", "Running", "10.0.0.2");
    let agent = KubeTestAgent::start_with("n1", &kubeconfig, "host-ports: true\nevents: true\n");
    until("the first pod has the port", || agent.log().contains("changed service=default/pod/noted-first frontends=1"));
    let event = || {
        let list = server.kubectl(&["get", "events.events.k8s.io", "--output=json"]);
        let list: Value = serde_json::from_str(&list).expect("JSON");
        let items = list["items"].as_array().expect("a list").clone();
        items.into_iter().find(|event| event["regarding"]["name"] == "noted-second")
    };
    until("the second pod hears of it", || event().is_some());
    let event = event().expect("an Event");
    assert_eq!((&event["regarding"]["kind"], &event["reason"]), (&"Pod".into(), &"FrontendConflict".into()), "{event}");
    let note = event["note"].as_str().expect("a text");
    assert!(note.contains("8080/TCP (HostPort) belongs to the pod default/noted-first"), "{note}");
    let described = server.kubectl(&["describe", "pod", "noted-second"]);
    assert!(described.contains("FrontendConflict"), "{described}");
    // The first one ends, and its object stays.
    set_status(server, "noted-first", "Succeeded", "10.0.0.1");
    until("the second pod has the port", || {
        agent.log().contains("changed service=default/pod/noted-second frontends=1")
    });
    delete(server, &["noted-first", "noted-second"]);
    until("the port is free", || agent.log().contains("changed service=default/pod/noted-second frontends=0"));
    drop(agent);
    server.kubectl(&["delete", "events.events.k8s.io", "--all"]);
    server.kubectl(&["delete", "-k", overlay.to_str().expect("a path")]);
}
