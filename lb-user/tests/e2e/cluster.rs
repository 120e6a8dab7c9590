//! The cluster as the stories use it: kubectl and the nodes.

use std::{
    fs,
    io::Write as _,
    path::PathBuf,
    process::{Command, Stdio},
};

use serde_json::Value;

use crate::{
    addresses,
    control_plane::ControlPlane,
    network::{self, NODES},
    node::E2eNode,
    process::{asset, try_run, until},
    sandbox,
};

/// A running cluster.
pub struct Cluster {
    /// Control plane of the cluster.
    pub control: ControlPlane,
    /// Nodes of the cluster, node1 first.
    pub nodes: Vec<E2eNode>,
    /// Files of this run.
    pub directory: PathBuf,
}

impl Cluster {
    /// Starts the cluster and waits until the nodes are ready.
    pub fn start() -> Self {
        let directory = PathBuf::from(std::env::var_os(sandbox::DIRECTORY).expect("the runner sets it"));
        let cgroup = std::env::var(sandbox::CGROUP).expect("the runner sets it");
        network::make();
        fs::create_dir(directory.join("images")).expect("a directory");
        for image in ["beeline.tar", "e2e.tar"] {
            fs::copy(asset(image), directory.join("images").join(image)).expect("an image");
        }
        let control = ControlPlane::start(directory.clone());
        let mut cluster = Self { control, nodes: Vec::new(), directory };
        NODES.iter().for_each(|number| cluster.apply(&node(*number)));
        cluster.nodes = NODES.map(|number| E2eNode::start(number, &cluster.directory, &cgroup)).into();
        cluster.apply(&dns());
        cluster.until_nodes_are_ready();
        cluster
    }

    /// Waits until both nodes are ready.
    pub fn until_nodes_are_ready(&self) {
        until("both nodes are ready", 180, || {
            let nodes = self.try_kubectl(&["get", "nodes", "--no-headers"])?;
            let ready = nodes.lines().filter(|line| line.split_whitespace().nth(1) == Some("Ready")).count();
            if ready == self.nodes.len() { Ok(()) } else { Err(nodes) }
        });
    }

    /// Runs kubectl.
    pub fn try_kubectl(&self, arguments: &[&str]) -> Result<String, String> {
        try_run(Command::new(asset("kubectl")).arg("--kubeconfig").arg(self.control.kubeconfig()).args(arguments))
    }

    /// Runs kubectl; panics if it fails.
    #[track_caller]
    pub fn kubectl(&self, arguments: &[&str]) -> String {
        self.try_kubectl(arguments).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Reads an object, or a list of objects.
    #[track_caller]
    pub fn get(&self, words: &str) -> Value {
        let arguments: Vec<&str> = words.split(' ').collect();
        let text = self.kubectl(&[&["get", "--output=json"], &arguments[..]].concat());
        serde_json::from_str(&text).expect("JSON of kubectl")
    }

    /// Applies YAML.
    #[track_caller]
    pub fn apply(&self, yaml: &str) {
        let mut command = Command::new(asset("kubectl"));
        command.arg("--kubeconfig").arg(self.control.kubeconfig()).args(["apply", "--filename=-"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("kubectl");
        child.stdin.take().expect("a pipe").write_all(yaml.as_bytes()).expect("kubectl reads");
        assert!(child.wait().expect("kubectl").success(), "kubectl apply of:\n{yaml}");
    }

    /// Waits until the rollout of an object, as in `deployment/NAME`, is complete.
    #[track_caller]
    pub fn until_rolled_out(&self, object: &str, namespace: &str) {
        let result = self.try_kubectl(&["rollout", "status", object, "--namespace", namespace, "--timeout=180s"]);
        if let Err(error) = result {
            let pods = self.try_kubectl(&["get", "pods", "--all-namespaces", "--output=wide"]);
            let events = self.try_kubectl(&["get", "events", "--all-namespaces", "--sort-by=.lastTimestamp"]);
            panic!("{error}\n{}\n{}", pods.unwrap_or_default(), events.unwrap_or_default());
        }
    }

    /// Finds a node by its name.
    pub fn node(&self, name: &str) -> &E2eNode {
        self.nodes.iter().find(|node| node.name() == name).expect("a node of that name")
    }
}

/// A Node with the addresses of its pods, which the controller would give to nodes in the order of their start.
fn node(number: usize) -> String {
    let pods = addresses::pods(number);
    format!(
        "apiVersion: v1\nkind: Node\nmetadata: {{name: node{number}}}\n\
         spec: {{podCIDR: '{}', podCIDRs: ['{}']}}\n",
        pods[0],
        pods.join("', '")
    )
}

/// CoreDNS runs outside of the cluster: the Service of DNS has no selector, and Endpoints written by hand.
fn dns() -> String {
    format!(
        "\
apiVersion: v1
kind: Service
metadata: {{name: kube-dns, namespace: kube-system, labels: {{k8s-app: kube-dns}}}}
spec:
  clusterIP: '{}'
  ports: [{{name: dns, port: 53, protocol: UDP}}, {{name: dns-tcp, port: 53, protocol: TCP}}]
---
apiVersion: v1
kind: Endpoints
metadata: {{name: kube-dns, namespace: kube-system}}
subsets:
- addresses: [{{ip: '{}'}}]
  ports: [{{name: dns, port: 53, protocol: UDP}}, {{name: dns-tcp, port: 53, protocol: TCP}}]
",
        addresses::dns(),
        addresses::control()
    )
}
