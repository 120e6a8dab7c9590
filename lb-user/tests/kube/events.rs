//! Events about Services: one for each problem of an object, by whichever node, and none without the right to create
//! them.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, TcpListener},
};

use serde_json::Value;

use crate::{
    agent::{KubeTestAgent, alone_on_this_node, until},
    bootstrap::is_skipped,
    deploy::{account, deploy, granted, may, with_events},
    node::KubeTestNode,
    service,
};
use lb_lab::{LabNamespace, api_server::ApiServer, link::LinkSpec};

/// Options that make agents send Events, and log the answers.
const FLAGS: &str = "events: true\nlog-level: info,lb_agent::events=debug\n";

/// Two Services that ask for one frontend; the second asks for an unknown scheduler too.
const SERVICES: &str = "---\napiVersion: v1\nkind: Service\nmetadata: {name: noted-a}\n\
    spec: {externalIPs: [192.0.2.7], ports: [{port: 80}]}\n\
    ---\napiVersion: v1\nkind: Service\nmetadata: {name: noted-b, annotations: {beeline.io/scheduler: best}}\n\
    spec: {externalIPs: [192.0.2.7], ports: [{port: 80}]}\n";

/// A problem of an object is one Event for all nodes; a problem of a node is one Event for each node.
pub(crate) fn a_problem_of_an_object_is_one_event_of_all_nodes(server: &mut ApiServer) {
    if is_skipped() {
        return;
    }
    let _alone = alone_on_this_node();
    let (overlay, kubeconfig) = with_events(server);
    let right = ("events.k8s.io".to_owned(), "events".to_owned());
    assert_eq!(
        granted(server).get(&right).map(Vec::as_slice),
        Some(&["create".to_owned()][..]),
        "create, and no other verb"
    );
    until("the account may create Events", || may(server, "create", "events.events.k8s.io"));
    for verb in ["get", "list", "watch", "update", "patch", "delete", "deletecollection"] {
        assert!(!may(server, verb, "events.events.k8s.io") && !may(server, verb, "events"), "{verb}");
    }
    server.apply(SERVICES);
    let [node_port, health_port] = [occupied(), occupied()];
    server.apply(&format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: noted-c}}\n\
         spec: {{type: LoadBalancer, externalTrafficPolicy: Local, \
         healthCheckNodePort: {}, ports: [{{port: 80, nodePort: {}}}]}}",
        port(&health_port),
        port(&node_port)
    ));
    // One after the other: the kernel needs a while to verify the programs of each.
    let agents = ["n1", "n2"].map(|node| {
        let agent = KubeTestAgent::start_with(node, &kubeconfig, FLAGS);
        until("the agent is in service", || agent.log().contains("in service"));
        agent
    });
    let is_answered = |agent: &KubeTestAgent, reason: &str| {
        let answers = ["Created", "Exists"].map(|outcome| format!("reason=\"{reason}\" outcome={outcome}"));
        agent.log().lines().any(|line| answers.iter().any(|answer| line.contains(answer)))
    };
    until("both have an answer about all problems", || {
        agents.iter().all(|agent| OF_OBJECTS.iter().chain(&OF_NODES).all(|reason| is_answered(agent, reason)))
    });
    let (of_nodes, of_objects): (Vec<_>, Vec<_>) =
        events(server).into_iter().partition(|event| event["regarding"]["name"] == "noted-c");
    assert_eq!(reasons(&of_objects), OF_OBJECTS, "{of_objects:#?}");
    // The health port of each family is a problem of its own. Both agents are on this machine: one has that of IPv6,
    // which the other one then finds taken.
    let told: BTreeSet<_> =
        of_nodes.iter().map(|event| (event["reportingInstance"].as_str(), event["reason"].as_str())).collect();
    let all = ["n1", "n2"].into_iter().flat_map(|node| OF_NODES.map(|reason| (Some(node), Some(reason))));
    assert_eq!(told, all.collect(), "{of_nodes:#?}");
    for event in &of_nodes {
        let node = event["reportingInstance"].as_str().expect("a node");
        let note = event["note"].as_str().expect("a text");
        assert!(note.starts_with(&format!("on node {node}: ")), "{event}");
    }
    for event in &of_objects {
        assert_eq!((&event["type"], &event["reportingController"]), (&"Warning".into(), &"beeline".into()), "{event}");
        assert!(["n1", "n2"].iter().any(|node| event["reportingInstance"] == *node), "{event}");
        assert_eq!(event["regarding"]["name"], "noted-b", "{event}");
    }
    let described = server.kubectl(&["describe", "service", "noted-b"]);
    for part in ["Warning", "FrontendConflict", "192.0.2.7:80/TCP", "default/noted-a", "InvalidValue", "best"] {
        assert!(described.contains(part), "{part}: {described}");
    }
    assert!(
        !server.kubectl(&["describe", "service", "noted-a"]).contains("FrontendConflict"),
        "the owner has no warning"
    );

    drop(agents);
    server.kubectl(&["delete", "service/noted-a", "service/noted-b", "service/noted-c"]);
    server.kubectl(&["delete", "events.events.k8s.io", "--all"]);
    server.kubectl(&["delete", "-k", overlay.to_str().expect("a path")]);
}

/// Reasons of the problems of objects, sorted.
const OF_OBJECTS: [&str; 2] = ["FrontendConflict", "InvalidValue"];
/// Reasons of the problems of nodes, sorted.
const OF_NODES: [&str; 2] = ["HealthCheckNodePortUnavailable", "NodePortInUse"];

fn reasons(events: &[Value]) -> Vec<&str> {
    let mut reasons: Vec<_> = events.iter().filter_map(|event| event["reason"].as_str()).collect();
    reasons.sort_unstable();
    reasons
}

/// Occupies a port in the range of NodePorts.
fn occupied() -> TcpListener {
    let mut free = (30_000..32_768).filter_map(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok());
    free.next().expect("a free port")
}

fn port(listener: &TcpListener) -> u16 {
    listener.local_addr().expect("an address").port()
}

/// Lists Beeline's Events about the Services of this story. The API server sends Events too, as when it repairs its
/// allocations.
fn events(server: &ApiServer) -> Vec<Value> {
    let list = server.kubectl(&["get", "events.events.k8s.io", "--output=json"]);
    let list: Value = serde_json::from_str(&list).expect("JSON");
    let items = list["items"].as_array().expect("a list").iter();
    let ours = |event: &&Value| {
        let is_of_story = event["regarding"]["name"].as_str().is_some_and(|name| name.starts_with("noted-"));
        if event["reportingController"] != "beeline" {
            println!("from another controller: {event}");
        }
        is_of_story && event["reportingController"] == "beeline"
    };
    items.filter(ours).cloned().collect()
}

/// A Service with a server at 192.0.2.51, and none at 192.0.2.52.
const EJECTING: &str = r#"---
apiVersion: v1
kind: Service
metadata: {name: noted-ejecting, annotations: {beeline.io/eject: 2 in 1h for 1h, beeline.io/scheduler: rr}}
spec: {clusterIP: 10.96.77.1, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: noted-ejecting-1, labels: {kubernetes.io/service-name: noted-ejecting}}
addressType: IPv4
ports: [{port: 8080}]
endpoints: [{addresses: [192.0.2.51]}, {addresses: [192.0.2.52]}]
"#;

/// Clients of the node eject an endpoint: one Event for one client, one more when there are several, and none again
/// over a restart of the agent.
pub(crate) fn an_ejected_endpoint_is_an_event_of_its_service(server: &mut ApiServer) {
    if is_skipped() {
        return;
    }
    let node = KubeTestNode::with_address("192.0.2.51/32");
    node.net().setup().address("lo", "192.0.2.52/32").apply();
    lb_lab::relay::relay(node.net(), server.port());
    let _server = node.listen((Ipv4Addr::new(192, 0, 2, 51), 8080).into());
    let pod = LabNamespace::new();
    node.net().setup().link("pod", &LinkSpec::veth_to(&pod, "eth0")).address("pod", "192.0.2.1/31").up("pod").apply();
    pod.setup().address("eth0", "192.0.2.0/31").up("eth0").ip("route add default via 192.0.2.1").apply();
    let (overlay, kubeconfig) = with_events(server);
    until("the account may create Events", || may(server, "create", "events.events.k8s.io"));
    server.apply(EJECTING);
    let mut agent = KubeTestAgent::start_on(&node, &kubeconfig, FLAGS);
    until("the agent is in service", || agent.log().contains("in service"));
    until("the Service is served", || agent.log().contains("default/noted-ejecting frontends=1"));

    // Sockets of the node's own network namespace, then of a pod.
    let connects =
        "for i in 1 2 3 4 5 6 7 8; do (: < /dev/tcp/10.96.77.1/80) 2> /dev/null && echo ok || echo failed; done";
    let connect = |of_pod: bool| {
        let mut command = node.process();
        if of_pod {
            command.args(["nsenter", &format!("--net={}", pod.path())]);
        }
        let output = command.args(["bash", "-c", connects]).output().expect("bash");
        String::from_utf8_lossy(&output.stdout).matches("failed").count()
    };
    let notes = || {
        let events = events(server);
        let ejections = events.iter().filter(|event| event["reason"] == "EndpointEjected");
        let mut notes: Vec<_> = ejections.map(|event| event["note"].as_str().expect("a text").to_owned()).collect();
        notes.sort_unstable();
        notes
    };
    assert_eq!(connect(false), 2, "it is ejected after two failures");
    until("an Event", || !notes().is_empty());
    let by_one = "on node n1: its endpoint 192.0.2.52:8080 is ejected by one client of the node";
    let told = notes();
    assert!(told.len() == 1 && told[0].starts_with(by_one), "{told:?}");
    assert_eq!(connect(true), 2, "the pod meets it for itself");
    until("an Event of several clients", || notes().len() == 2);
    let told = notes();
    println!("{told:#?}");
    assert!(told[1].starts_with("on node n1: its endpoint 192.0.2.52:8080 is ejected by several clients"), "{told:?}");
    let described = server.kubectl(&["describe", "service", "noted-ejecting"]);
    assert!(described.contains("EndpointEjected"), "{described}");

    // The next agent finds the ejections, and the API server has the Event.
    agent.terminate();
    drop(agent);
    let agent = KubeTestAgent::start_on(&node, &kubeconfig, FLAGS);
    until("it is told again", || agent.log().contains("is ejected by several clients"));
    until("the API server has it", || agent.log().contains("outcome=Exists"));
    assert_eq!([connect(false), connect(true)], [0, 0], "ejections outlive the agent");
    assert_eq!(notes(), told);
    drop(agent);
    server.kubectl(&["delete", "service/noted-ejecting", "endpointslice/noted-ejecting-1"]);
    server.kubectl(&["delete", "events.events.k8s.io", "--all"]);
    server.kubectl(&["delete", "-k", overlay.to_str().expect("a path")]);
}

/// Without the right to create Events the agent serves all the same, and logs once that it lacks it.
pub(crate) fn the_agent_serves_without_the_right_to_create_events(server: &mut ApiServer) {
    if is_skipped() {
        return;
    }
    let _alone = alone_on_this_node();
    server.kubectl(&["apply", "-k", deploy().to_str().expect("a path")]);
    let kubeconfig = account(server);
    until("the account may list Services", || may(server, "list", "services"));
    assert!(!may(server, "create", "events.events.k8s.io"));
    server.apply(SERVICES);
    let agent = KubeTestAgent::start_with("n1", &kubeconfig, FLAGS);
    let refused = "does not let this agent create events.events.k8s.io";
    until("the agent logs the missing right", || agent.log().contains(refused));
    server.apply(&service("noted-after", ""));
    until("a change arrives", || agent.log().contains("default/noted-after"));
    assert_eq!(agent.health("/livez"), Some(200));
    let log = agent.log();
    assert_eq!(log.matches(refused).count(), 1, "{log}");
    assert!(log.contains("deploy/components/events") && log.contains("without --events"), "{log}");
    assert_eq!(log.matches("outcome=Forbidden").count(), 1, "the agent tries one of two, and then rarely: {log}");
    let made = events(server);
    assert!(made.is_empty(), "{made:#?}");
    server.kubectl(&["delete", "service/noted-a", "service/noted-b", "service/noted-after"]);
    server.kubectl(&["delete", "-k", deploy().to_str().expect("a path")]);
}
