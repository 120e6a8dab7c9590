//! Installs Beeline from `deploy/`, as its README says, and takes it away again.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::{
    cluster::Cluster,
    network::CONTROL,
    process::{try_run, until},
};

/// Where the agent's pods are.
const NAMESPACE: &str = "kube-system";

/// What is installed: a directory of `deploy/`, and components for it.
#[derive(Clone, Copy)]
pub struct Variant {
    base: &'static str,
    components: &'static str,
}

/// As `deploy/` has it.
pub const PLAIN: Variant = Variant { base: "deploy", components: "" };
/// With ports of its own, for nodes that have kube-proxy.
pub const BESIDE_KUBE_PROXY: Variant = Variant { base: "deploy/overlays/beside-kube-proxy", components: "" };
/// In kube-proxy's place, to all who look for it.
pub const DROP_IN: Variant = Variant { base: "deploy", components: "deploy/components/kube-proxy-labels" };

/// An overlay that names the API server and, as nodes in containers need it, the cgroup.
fn overlay(cluster: &Cluster, variant: Variant) -> PathBuf {
    let Variant { base, components } = variant;
    // Kustomize takes only what is below the directory it is given.
    let dir = cluster.directory.join("overlay");
    if !dir.exists() {
        fs::create_dir(&dir).expect("a directory");
        let deploy = std::env::var_os("BEELINE_DEPLOY").expect("`cargo xtask e2e` sets it");
        copy(Path::new(&deploy), &dir.join("deploy"));
    }
    let text = format!(
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: [{base}]\ncomponents: [{components}]\n\
         patches:\n- target: {{kind: DaemonSet, name: beeline}}\n  patch: |\n\
         {0}--api-server=https://{CONTROL}:6443\"}}\n{0}--cgroup=/sys/fs/cgroup/unified\"}}\n",
        "    - {op: add, path: /spec/template/spec/containers/0/args/-, value: \""
    );
    fs::write(dir.join("kustomization.yaml"), text).expect("a file");
    dir
}

/// `kubectl apply -k`, and waits until an agent is ready on each node.
pub fn install(cluster: &Cluster, variant: Variant) {
    let dir = overlay(cluster, variant);
    cluster.kubectl(&["apply", "--kustomize", &dir.display().to_string()]);
    cluster.until_rolled_out("daemonset/beeline", NAMESPACE);
}

/// Takes the DaemonSet away, and from each node what it leaves there.
pub fn remove(cluster: &Cluster) {
    delete(cluster);
    for node in &cluster.nodes {
        beeline_on_host(cluster, &node.name(), "cleanup").unwrap_or_else(|error| panic!("{error}"));
    }
}

/// `kubectl delete -k`, and waits until no agent is left.
pub fn delete(cluster: &Cluster) {
    let dir = overlay(cluster, PLAIN);
    cluster.kubectl(&["delete", "--ignore-not-found", "--kustomize", &dir.display().to_string()]);
    until("no agent is left", 60, || {
        let pods = cluster.try_kubectl(&["get", "pods", "--namespace", NAMESPACE, "--no-headers"])?;
        if pods.contains("beeline-") { Err(pods) } else { Ok(()) }
    });
}

/// The name of the agent's pod on a node.
pub fn agent_on(cluster: &Cluster, node: &str) -> String {
    let pods = cluster.get("pods --namespace kube-system --selector app.kubernetes.io/name=beeline");
    let pods = pods["items"].as_array().expect("a list");
    let is_there =
        |pod: &&serde_json::Value| pod["spec"]["nodeName"] == node && pod["metadata"]["deletionTimestamp"].is_null();
    let pod = pods.iter().find(is_there).unwrap_or_else(|| panic!("no agent on {node}"));
    pod["metadata"]["name"].as_str().expect("a name").to_owned()
}

/// What the command line says in the agent's pod on a node.
pub fn beeline(cluster: &Cluster, node: &str, words: &str) -> Result<String, String> {
    let pod = agent_on(cluster, node);
    let words: Vec<&str> = words.split(' ').collect();
    cluster.try_kubectl(&[&["exec", "--namespace", NAMESPACE, &pod, "--", "beeline"], &words[..]].concat())
}

/// The same without any pod: the program itself on the node, as an operator runs it there.
pub fn beeline_on_host(cluster: &Cluster, node: &str, words: &str) -> Result<String, String> {
    let program = std::env::var("BEELINE_BIN").expect("`cargo xtask e2e` sets it");
    try_run(cluster.node(node).inside(&program).args(words.split(' ')))
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).expect("a directory");
    for entry in fs::read_dir(from).expect("deploy/").flatten() {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("a file");
        }
    }
}
