//! Installs Beeline from `deploy/`, as the documentation says, and removes it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::{
    addresses,
    cluster::Cluster,
    process::{try_run, until},
};

/// The namespace of the agent's pods.
const NAMESPACE: &str = "kube-system";

/// An installation: a directory of `deploy/`, with components and flags of the agent.
#[derive(Clone, Copy)]
pub struct Installation {
    base: &'static str,
    components: &'static str,
    flags: &'static [&'static str],
    /// Flags of the controller of load balancer addresses.
    lb_flags: &'static [&'static str],
}

/// The default of `deploy/`.
pub const PLAIN: Installation = Installation { base: "deploy", components: "", flags: &[], lb_flags: &[] };
/// With other health and metrics ports, for nodes with kube-proxy.
pub const BESIDE_KUBE_PROXY: Installation = Installation { base: "deploy/overlays/beside-kube-proxy", ..PLAIN };
/// With kube-proxy's label.
pub const DROP_IN: Installation = Installation { components: "deploy/components/kube-proxy-labels", ..PLAIN };
/// With hostPorts of pods.
pub const HOST_PORTS: Installation = Installation { flags: &["--host-ports"], ..PLAIN };

/// With load balancer addresses, and announcers of them. For [`install_announced`].
const ANNOUNCED: Installation =
    Installation { components: "deploy/components/load-balancer, deploy/components/announce", ..PLAIN };
/// With load balancer addresses for Services without a class.
pub const ALLOTTING: Installation =
    Installation { components: "deploy/components/load-balancer", lb_flags: &["--default-class"], ..PLAIN };
/// With announcers too: nodes with a label. For [`install_announced`].
pub const ALLOTTING_AND_ANNOUNCED: Installation =
    Installation { flags: &["--announce=beeline.io/announcer"], lb_flags: ALLOTTING.lb_flags, ..ANNOUNCED };

/// Writes an overlay with the API server and, since nodes have a cgroup2 of their own, the cgroup.
fn overlay(cluster: &Cluster, installation: Installation) -> PathBuf {
    let Installation { base, components, flags, lb_flags } = installation;
    // Kustomize reads only files below its directory.
    let dir = cluster.directory.join("overlay");
    if !dir.exists() {
        fs::create_dir(&dir).expect("a directory");
        let deploy = std::env::var_os("BEELINE_DEPLOY").expect("`cargo xtask e2e` sets it");
        copy(Path::new(&deploy), &dir.join("deploy"));
    }
    let version = env!("CARGO_PKG_VERSION");
    let mut text = format!(
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\n\
         resources: [{base}]\ncomponents: [{components}]\n\
         images: [{{name: beeline, newTag: {version}}}]\n\
         patches:\n- target: {{kind: DaemonSet, name: beeline}}\n  patch: |\n"
    );
    let add =
        |flag: &str| format!("    - {{op: add, path: /spec/template/spec/containers/0/args/-, value: \"{flag}\"}}\n");
    let api_server = format!("--api-server=https://{}", addresses::at(addresses::control(), 6443));
    let own = [&api_server, "--cgroup=/sys/fs/cgroup/unified"];
    text.extend(own.into_iter().chain(flags.iter().copied()).map(add));
    if !lb_flags.is_empty() {
        text += "- target: {kind: Deployment, name: beeline-lb}\n  patch: |\n";
        text.extend(lb_flags.iter().copied().map(add));
    }
    fs::write(dir.join("kustomization.yaml"), text).expect("a file");
    dir
}

/// Runs `kubectl apply -k`, and waits until an agent is ready on each node.
pub fn install(cluster: &Cluster, installation: Installation) {
    let dir = overlay(cluster, installation);
    cluster.kubectl(&["apply", "--kustomize", &dir.display().to_string()]);
    cluster.until_rolled_out("daemonset/beeline", NAMESPACE);
}

/// Installs announcers with their key, and the controller of load balancer addresses.
pub fn install_announced(cluster: &Cluster) {
    install_announced_as(cluster, ANNOUNCED);
}

/// As [`install_announced`], as an installation with announcers says.
pub fn install_announced_as(cluster: &Cluster, installation: Installation) {
    cluster.apply(&format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: beeline-announce, namespace: {NAMESPACE}}}\n\
         stringData: {{key: 0123456789abcdef0123456789abcdef}}\n"
    ));
    install(cluster, installation);
    cluster.until_rolled_out("deployment/beeline-lb", NAMESPACE);
    cluster.kubectl(&["wait", "--for=condition=Established", "crd/addresspools.beeline.io"]);
}

/// Removes what [`install_announced`] has made beside the agents.
pub fn remove_announced(cluster: &Cluster) {
    cluster.kubectl(&["delete", "addresspools", "--all"]);
    let objects = ["deployment/beeline-lb", "secret/beeline-announce", "lease/beeline-announce", "lease/beeline-lb"];
    cluster.kubectl(&[&["delete", "--ignore-not-found", "--namespace", NAMESPACE], &objects[..]].concat());
    until("no controller is left", 60, || {
        let pods = cluster.try_kubectl(&["get", "pods", "--namespace", NAMESPACE, "--no-headers"])?;
        if pods.contains("beeline-lb-") { Err(pods) } else { Ok(()) }
    });
}

/// Deletes the DaemonSet, and cleans up each node.
pub fn remove(cluster: &Cluster) {
    delete(cluster);
    for node in &cluster.nodes {
        beeline_on_host(cluster, &node.name(), "cleanup").unwrap_or_else(|error| panic!("{error}"));
    }
}

/// Runs `kubectl delete -k`, and waits until no agent is left.
pub fn delete(cluster: &Cluster) {
    let dir = overlay(cluster, PLAIN);
    cluster.kubectl(&["delete", "--ignore-not-found", "--kustomize", &dir.display().to_string()]);
    until("no agent is left", 60, || {
        let pods = cluster.try_kubectl(&["get", "pods", "--namespace", NAMESPACE, "--no-headers"])?;
        if pods.contains("beeline-") { Err(pods) } else { Ok(()) }
    });
}

/// Finds the name of the agent's pod on a node.
pub fn agent_on(cluster: &Cluster, node: &str) -> String {
    let pods = cluster.get("pods --namespace kube-system --selector app.kubernetes.io/name=beeline");
    let pods = pods["items"].as_array().expect("a list");
    let is_there =
        |pod: &&serde_json::Value| pod["spec"]["nodeName"] == node && pod["metadata"]["deletionTimestamp"].is_null();
    let pod = pods.iter().find(is_there).unwrap_or_else(|| panic!("no agent on {node}"));
    pod["metadata"]["name"].as_str().expect("a name").to_owned()
}

/// Runs `beeline` in the agent's pod on a node.
pub fn beeline(cluster: &Cluster, node: &str, words: &str) -> Result<String, String> {
    let pod = agent_on(cluster, node);
    let words: Vec<&str> = words.split(' ').collect();
    cluster.try_kubectl(&[&["exec", "--namespace", NAMESPACE, &pod, "--", "beeline"], &words[..]].concat())
}

/// Runs `beeline` on the node itself, as an operator does.
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
