//! Changes under load: of backends, of Beeline itself, and of the API server.

use std::{
    thread,
    time::{Duration, Instant},
};

use super::Story;
use crate::{
    addresses::{self, at},
    cluster::Cluster,
    install,
    load::Count,
    pods::{OutsideLoad, PodLoad, Web, ask, assert_none_failed, client},
    process::until,
};

pub const STORIES: &[Story] = &[
    ("a_rolling_update_of_backends_fails_no_connection", a_rolling_update_of_backends_fails_no_connection),
    ("a_rolling_update_of_beeline_fails_no_connection", a_rolling_update_of_beeline_fails_no_connection),
    ("a_minute_without_api_server_fails_no_connection", a_minute_without_api_server_fails_no_connection),
];

const WEB: Web<'_> =
    Web { name: "loaded", replicas: 4, node: None, service: "type: NodePort", port: "nodePort: 30090" };

/// Load on one Service by pods on both nodes and clients outside.
pub struct ServiceLoad<'a> {
    pods: Vec<PodLoad<'a>>,
    outside: OutsideLoad,
}

impl<'a> ServiceLoad<'a> {
    /// Starts the load with the kinds of targets of [`crate::load`], as in `tcp`.
    pub fn start(cluster: &'a Cluster, name: &str, kinds: &[&str]) -> Self {
        WEB.make(cluster);
        let vip = WEB.vip(cluster);
        let targets: Vec<String> = kinds.iter().map(|kind| format!("{kind}={vip}")).collect();
        let targets: Vec<&str> = targets.iter().map(String::as_str).collect();
        let on = |node: &str| PodLoad::start(cluster, &format!("{name}-{node}"), node, &targets);
        let pods = ["node1", "node2"].map(on).into();
        let nodes = [1, 2].map(|number| at(&addresses::node(number), 30090));
        let outside: Vec<String> =
            nodes.iter().flat_map(|node| kinds.iter().map(move |kind| format!("{kind}={node}"))).collect();
        let outside = OutsideLoad::start(cluster, name, &outside.iter().map(String::as_str).collect::<Vec<_>>());
        Self { pods, outside }
    }

    /// Returns the counts, after the time that pending failures need to show.
    pub fn counts(&self) -> Vec<Count> {
        thread::sleep(Duration::from_secs(7));
        self.pods.iter().flat_map(PodLoad::counts).chain(self.outside.counts()).collect()
    }
}

fn a_rolling_update_of_backends_fails_no_connection(cluster: &Cluster) {
    // Without long connections, which end with their server.
    let load = ServiceLoad::start(cluster, "rollout", &["tcp", "udp"]);
    let start = Instant::now();
    cluster.kubectl(&["rollout", "restart", "deployment/loaded"]);
    cluster.until_rolled_out("deployment/loaded", "default");
    // The last old pod serves until it has ended.
    until("the old pods are gone", 60, || {
        let pods = cluster.get("pods --selector app=loaded");
        let pods = pods["items"].as_array().map_or(0, Vec::len);
        if pods == WEB.replicas { Ok(()) } else { Err(format!("{pods} pods")) }
    });
    println!("   4 backends were replaced within {:.0} s", start.elapsed().as_secs_f64());
    assert_none_failed(&load.counts());
}

fn a_rolling_update_of_beeline_fails_no_connection(cluster: &Cluster) {
    let load = ServiceLoad::start(cluster, "upgrade", &["tcp", "udp", "long"]);
    let before = ["node1", "node2"].map(|node| install::agent_on(cluster, node));
    let start = Instant::now();
    cluster.kubectl(&["rollout", "restart", "daemonset/beeline", "--namespace=kube-system"]);
    cluster.until_rolled_out("daemonset/beeline", "kube-system");
    println!("   both agents were replaced within {:.0} s", start.elapsed().as_secs_f64());
    let after = ["node1", "node2"].map(|node| install::agent_on(cluster, node));
    assert!(before.iter().all(|pod| !after.contains(pod)), "{before:?} {after:?}");
    assert_none_failed(&load.counts());
}

fn a_minute_without_api_server_fails_no_connection(cluster: &Cluster) {
    client(cluster, "client-node1", "node1", false);
    let load = ServiceLoad::start(cluster, "outage", &["tcp", "udp", "long"]);
    cluster.control.stop_api_server();
    thread::sleep(Duration::from_secs(60));
    println!("   a minute without an API server:");
    assert_none_failed(&load.counts());
    cluster.control.start_api_server();
    // New changes arrive. The slice is written by hand, since controllers take a while to reconnect.
    let pods = cluster.get("pods --selector app=loaded");
    let backend = pods["items"][0]["status"]["podIP"].as_str().expect("an address").to_owned();
    let (vip, family) = (addresses::first("10.96.77.77", "fd96::7777"), addresses::first("IPv4", "IPv6"));
    let start = Instant::now();
    cluster.apply(&format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: late}}\n\
         spec: {{clusterIP: '{vip}', ports: [{{port: 80}}]}}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: late-1, labels: {{kubernetes.io/service-name: late}}}}\naddressType: {family}\n\
         endpoints: [{{addresses: ['{backend}']}}]\nports: [{{port: 8080}}]\n"
    ));
    until("a new Service answers", 60, || ask(cluster, "client-node1", &format!("tcp={}", at(vip, 80))));
    println!("   a Service made after its return answers after {:.1} s", start.elapsed().as_secs_f64());
    cluster.kubectl(&["delete", "service/late"]);
    cluster.kubectl(&["delete", "endpointslice/late-1", "--ignore-not-found"]);
}
