//! Events about Services: one for each problem, however many nodes find it; and an agent that may not make them works
//! on.

use std::net::{Ipv4Addr, TcpListener};

use serde_json::Value;

use crate::{
    agent::{Agent, until},
    bootstrap::is_skipped,
    deploy::{account, deploy, granted, may},
    service,
};
use lb_lab::api_server::ApiServer;

/// What makes agents tell, and what shows that they have.
const FLAGS: &str = "events: true\nlog-level: info,lb_agent::events=debug\n";

/// Two Services that ask for one frontend, and one that asks for a scheduler which is not there.
const SERVICES: &str = "---\napiVersion: v1\nkind: Service\nmetadata: {name: told-a}\n\
    spec: {externalIPs: [192.0.2.7], ports: [{port: 80}]}\n\
    ---\napiVersion: v1\nkind: Service\nmetadata: {name: told-b, annotations: {beeline.io/scheduler: best}}\n\
    spec: {externalIPs: [192.0.2.7], ports: [{port: 80}]}\n";

/// A problem of the objects is one Event, whoever finds it; a problem of a node is one of each node.
pub(crate) fn problem_is_told_once_by_all_nodes(server: &mut ApiServer) {
    if is_skipped() {
        return;
    }
    let overlay = deploy().join("overlays/events");
    let overlay = overlay.to_str().expect("a path");
    server.kubectl(&["apply", "-k", overlay]);
    let kubeconfig = account(server);
    let right = ("events.k8s.io".to_owned(), "events".to_owned());
    assert_eq!(granted(server).get(&right).map(Vec::as_slice), Some(&["create".to_owned()][..]), "it may do no more");
    until("it may create", || may(server, "create", "events.events.k8s.io"));
    for verb in ["get", "list", "watch", "update", "patch", "delete", "deletecollection"] {
        assert!(!may(server, verb, "events.events.k8s.io") && !may(server, verb, "events"), "{verb}");
    }
    server.apply(SERVICES);
    let [node_port, health_port] = [held(), held()];
    server.apply(&format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: told-c}}\nspec: {{type: LoadBalancer, externalTrafficPolicy: Local, \
         healthCheckNodePort: {}, ports: [{{port: 80, nodePort: {}}}]}}",
        port(&health_port),
        port(&node_port)
    ));
    // One after the other, since the kernel takes its time with the programs of each.
    let agents = ["n1", "n2"].map(|node| {
        let agent = Agent::start_with(node, &kubeconfig, FLAGS);
        until("it serves", || agent.log().contains("in service"));
        agent
    });
    until("both have asked about all problems", || {
        let is_done = |line: &&str| line.contains("said=New") || line.contains("said=Known");
        agents.iter().all(|agent| agent.log().lines().filter(is_done).count() >= OF_OBJECTS.len() + OF_NODES.len())
    });
    let (of_nodes, of_objects): (Vec<_>, Vec<_>) =
        events(server).into_iter().partition(|event| event["regarding"]["name"] == "told-c");
    assert_eq!(reasons(&of_objects), OF_OBJECTS, "{of_objects:#?}");
    let twice: Vec<_> = OF_NODES.into_iter().flat_map(|reason| [reason; 2]).collect();
    assert_eq!(reasons(&of_nodes), twice, "{of_nodes:#?}");
    for event in &of_nodes {
        let node = event["reportingInstance"].as_str().expect("a node");
        let note = event["note"].as_str().expect("a text");
        assert!(note.starts_with(&format!("on node {node}: ")), "{event}");
    }
    for event in &of_objects {
        assert_eq!((&event["type"], &event["reportingController"]), (&"Warning".into(), &"beeline".into()), "{event}");
        assert!(["n1", "n2"].iter().any(|node| event["reportingInstance"] == *node), "{event}");
        assert_eq!(event["regarding"]["name"], "told-b", "{event}");
    }
    let described = server.kubectl(&["describe", "service", "told-b"]);
    for part in ["Warning", "FrontendConflict", "192.0.2.7:80/TCP", "default/told-a", "InvalidValue", "best"] {
        assert!(described.contains(part), "{part}: {described}");
    }
    assert!(!server.kubectl(&["describe", "service", "told-a"]).contains("FrontendConflict"), "the owner is well");

    drop(agents);
    server.kubectl(&["delete", "service/told-a", "service/told-b", "service/told-c"]);
    server.kubectl(&["delete", "events.events.k8s.io", "--all"]);
    server.kubectl(&["delete", "-k", overlay]);
}

/// Sorted.
const OF_OBJECTS: [&str; 2] = ["FrontendConflict", "InvalidValue"];
/// The same.
const OF_NODES: [&str; 2] = ["HealthCheckNodePortUnavailable", "NodePortInUse"];

fn reasons(events: &[Value]) -> Vec<&str> {
    let mut reasons: Vec<_> = events.iter().filter_map(|event| event["reason"].as_str()).collect();
    reasons.sort_unstable();
    reasons
}

/// A listener at a port that may be a NodePort.
fn held() -> TcpListener {
    let mut free = (30_000..32_768).filter_map(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok());
    free.next().expect("a free port")
}

fn port(listener: &TcpListener) -> u16 {
    listener.local_addr().expect("an address").port()
}

/// Those about the Services of this story. The API server makes some of its own, such as when it repairs what it has
/// allotted.
fn events(server: &ApiServer) -> Vec<Value> {
    let list = server.kubectl(&["get", "events.events.k8s.io", "--output=json"]);
    let list: Value = serde_json::from_str(&list).expect("JSON");
    let items = list["items"].as_array().expect("a list").iter();
    let ours = |event: &&Value| {
        let is_told = event["regarding"]["name"].as_str().is_some_and(|name| name.starts_with("told-"));
        if event["reportingController"] != "beeline" {
            println!("of another: {event}");
        }
        is_told && event["reportingController"] == "beeline"
    };
    items.filter(ours).cloned().collect()
}

/// With the rights of the base the agent serves, and says once what it lacks.
pub(crate) fn events_that_are_refused_stop_nothing(server: &mut ApiServer) {
    if is_skipped() {
        return;
    }
    server.kubectl(&["apply", "-k", deploy().to_str().expect("a path")]);
    let kubeconfig = account(server);
    until("it may list", || may(server, "list", "services"));
    assert!(!may(server, "create", "events.events.k8s.io"));
    server.apply(SERVICES);
    let agent = Agent::start_with("n1", &kubeconfig, FLAGS);
    let refused = "does not let this agent create events.events.k8s.io";
    until("it says so", || agent.log().contains(refused));
    server.apply(&service("told-after", ""));
    until("it learns of changes", || agent.log().contains("default/told-after"));
    assert_eq!(agent.health("/livez"), Some(200));
    let said = agent.log();
    assert_eq!(said.matches(refused).count(), 1, "{said}");
    assert!(said.contains("deploy/components/events") && said.contains("without --events"), "{said}");
    assert_eq!(said.matches("said=Refused").count(), 1, "it asks for one of two, and then rarely: {said}");
    let made = events(server);
    assert!(made.is_empty(), "{made:#?}");
    server.kubectl(&["delete", "service/told-a", "service/told-b", "service/told-after"]);
    server.kubectl(&["delete", "-k", deploy().to_str().expect("a path")]);
}
