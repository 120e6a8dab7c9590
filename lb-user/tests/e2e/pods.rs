//! Pods for the stories, all from one image with this program.

use std::{fs, path::PathBuf};

use lb_lab::ChildProcess;

use crate::{
    addresses::at,
    cluster::Cluster,
    load::{self, Count},
    process::{until, within},
};

/// The image, made by `cargo xtask e2e`.
pub const IMAGE: &str = concat!("docker.io/library/beeline-e2e:", env!("CARGO_PKG_VERSION"));

/// Requests of each pod: without them a busy CPU would starve it.
const REQUESTS: &str = "resources: {requests: {cpu: 50m}}";

/// A Deployment of servers on port 8080, and its Service.
pub struct Web<'a> {
    /// Name of both.
    pub name: &'a str,
    /// Number of pods.
    pub replicas: usize,
    /// The node of all pods; without it they spread over both.
    pub node: Option<&'a str>,
    /// Additional lines of the Service's spec, as in `type: NodePort`.
    pub service: &'a str,
    /// Additional fields of each port of the Service, as in `nodePort: 30080`.
    pub port: &'a str,
}

impl Web<'_> {
    /// Makes both and waits until all pods are ready.
    pub fn make(&self, cluster: &Cluster) {
        let Self { name, replicas, node, service, port } = self;
        let place = node.map_or_else(
            || {
                format!(
                    "topologySpreadConstraints: [{{maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: \
                     DoNotSchedule, labelSelector: {{matchLabels: {{app: {name}}}}}}}]"
                )
            },
            |node| format!("nodeSelector: {{kubernetes.io/hostname: {node}}}"),
        );
        cluster.apply(&format!(
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: {name}}}\nspec:\n  replicas: {replicas}\n  \
             selector: {{matchLabels: {{app: {name}}}}}\n  \
             strategy: {{rollingUpdate: {{maxUnavailable: 0, maxSurge: 1}}}}\n  \
             template:\n    metadata: {{labels: {{app: {name}}}}}\n    spec:\n      {place}\n      \
             tolerations: [{{key: node.kubernetes.io/unreachable, operator: Exists}}, \
             {{key: node.kubernetes.io/not-ready, operator: Exists}}]\n      \
             terminationGracePeriodSeconds: 10\n      containers:\n      - name: web\n        image: {IMAGE}\n        \
             args: [serve, '8080']\n        readinessProbe: {{tcpSocket: {{port: 8080}}, periodSeconds: 1}}\n        \
             lifecycle: {{preStop: {{sleep: {{seconds: 5}}}}}}\n        {REQUESTS}\n---\n\
             apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  selector: {{app: {name}}}\n  \
             ipFamilyPolicy: PreferDualStack\n  {service}\n  ports:\n  \
             - {{name: tcp, port: 80, targetPort: 8080, protocol: TCP, {port}}}\n  \
             - {{name: udp, port: 80, targetPort: 8080, protocol: UDP, {port}}}\n"
        ));
        cluster.until_rolled_out(&format!("deployment/{name}"), "default");
        if *replicas > 0 {
            self.until_it_has_endpoints(cluster);
        }
    }

    /// Waits for Kubernetes' own controller, which reads stale objects for a while after a time without API server.
    fn until_it_has_endpoints(&self, cluster: &Cluster) {
        let slices = format!("endpointslices --selector kubernetes.io/service-name={}", self.name);
        until("every EndpointSlice of the Service has endpoints", 180, || {
            let list = cluster.get(&slices);
            let items = list["items"].as_array().ok_or("no list")?;
            let has_endpoints =
                |slice: &serde_json::Value| slice["endpoints"].as_array().is_some_and(|all| !all.is_empty());
            if !items.is_empty() && items.iter().all(has_endpoints) { Ok(()) } else { Err(list.to_string()) }
        });
    }

    /// The Service's cluster IPs.
    pub fn vips(&self, cluster: &Cluster) -> Vec<String> {
        let service = cluster.get(&format!("service {}", self.name));
        let ips = service["spec"]["clusterIPs"].as_array().expect("cluster IPs");
        ips.iter().filter_map(|ip| ip.as_str().map(str::to_owned)).collect()
    }

    /// The first cluster IP with the Service's port.
    pub fn vip(&self, cluster: &Cluster) -> String {
        at(&self.vips(cluster)[0], 80)
    }

    /// Deletes both.
    pub fn remove(&self, cluster: &Cluster) {
        cluster.kubectl(&["delete", "deployment,service", self.name, "--wait=false"]);
    }
}

/// Makes a pod that stays, for queries of the stories. Its local ports include those of NodePorts.
pub fn client(cluster: &Cluster, name: &str, node: &str, is_on_host_network: bool) {
    let sysctls = if is_on_host_network { "" } else { "{name: net.ipv4.ip_local_port_range, value: '1024 65000'}" };
    cluster.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  hostNetwork: {is_on_host_network}\n  \
         securityContext: {{sysctls: [{sysctls}]}}\n  dnsPolicy: ClusterFirstWithHostNet\n  nodeName: {node}\n  \
         terminationGracePeriodSeconds: 1\n  \
         containers: [{{name: client, image: {IMAGE}, args: [pause], {REQUESTS}}}]\n"
    ));
    cluster.kubectl(&["wait", "--for=condition=Ready", &format!("pod/{name}"), "--timeout=120s"]);
}

/// Sends one query from a pod, and returns the answer.
pub fn ask(cluster: &Cluster, pod: &str, target: &str) -> Result<String, String> {
    cluster.try_kubectl(&["exec", pod, "--", "/e2e", "ask", target]).map(|answer| answer.trim_end().to_owned())
}

/// Sends one query from outside, and returns the answer.
pub fn ask_from_outside(target: &str) -> Result<String, String> {
    let own = std::env::current_exe().expect("this program");
    crate::process::try_run(within("outside", own).args(["ask", target])).map(|answer| answer.trim_end().to_owned())
}

/// Load from a pod. Its counts are read from a file, without the API server.
pub struct PodLoad<'a> {
    cluster: &'a Cluster,
    name: String,
    log: PathBuf,
}

impl<'a> PodLoad<'a> {
    /// Starts the pod on a node.
    pub fn start(cluster: &'a Cluster, name: &str, node: &str, targets: &[&str]) -> Self {
        let log = cluster.directory.join(node).join(format!("{name}.load"));
        let targets = targets.iter().map(|target| (*target).to_owned());
        let arguments = ["load".to_owned(), format!("--into=/logs/{name}.load")].into_iter().chain(targets);
        start_writer(cluster, name, node, &arguments.collect::<Vec<_>>());
        let load = Self { cluster, name: name.to_owned(), log };
        load.until_every_target_answered();
        load
    }

    fn until_every_target_answered(&self) {
        until("every target has answered", 60, || {
            let counts = self.counts();
            if !counts.is_empty() && counts.iter().all(|count| count.done > 0) {
                Ok(())
            } else {
                Err(format!("{counts:?}"))
            }
        });
    }

    /// Counts so far.
    pub fn counts(&self) -> Vec<Count> {
        load::parse(&fs::read_to_string(&self.log).unwrap_or_default()).unwrap_or_default()
    }
}

impl Drop for PodLoad<'_> {
    fn drop(&mut self) {
        remove_writer(self.cluster, &self.name);
    }
}

/// Starts a pod of this program with these arguments, which writes into `/logs`, the node's directory of the cluster.
pub fn start_writer(cluster: &Cluster, name: &str, node: &str, arguments: &[String]) {
    let dir = cluster.directory.join(node);
    cluster.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  \
         nodeName: {node}\n  restartPolicy: Never\n  tolerations: [{{operator: Exists}}]\n  \
         terminationGracePeriodSeconds: 0\n  containers:\n  - name: load\n    \
         image: {IMAGE}\n    {REQUESTS}\n    args: ['{}']\n    \
         volumeMounts: [{{name: logs, mountPath: /logs}}]\n  \
         volumes: [{{name: logs, hostPath: {{path: '{}'}}}}]\n",
        arguments.join("', '"),
        dir.display()
    ));
    cluster.kubectl(&["wait", "--for=condition=Ready", &format!("pod/{name}"), "--timeout=120s"]);
}

/// Removes a pod of [`start_writer`].
pub fn remove_writer(cluster: &Cluster, name: &str) {
    let _gone = cluster.try_kubectl(&["delete", "pod", name, "--force", "--grace-period=0", "--wait=false"]);
}

/// Load from outside the cluster.
pub struct OutsideLoad {
    log: PathBuf,
    _running: ChildProcess,
}

impl OutsideLoad {
    /// Starts the load, and waits until every target has answered.
    pub fn start(cluster: &Cluster, name: &str, targets: &[&str]) -> Self {
        let log = cluster.directory.join("log").join(format!("{name}.load"));
        let own = std::env::current_exe().expect("this program");
        let running = ChildProcess::start_appending(within("outside", own).arg("load").args(targets), &log);
        let load = Self { log, _running: running };
        until("every target has answered", 60, || {
            let counts = load.counts();
            if !counts.is_empty() && counts.iter().all(|count| count.done > 0) {
                Ok(())
            } else {
                Err(format!("{counts:?}"))
            }
        });
        load
    }

    /// Counts so far.
    pub fn counts(&self) -> Vec<Count> {
        load::parse(&fs::read_to_string(&self.log).unwrap_or_default()).unwrap_or_default()
    }
}

/// Prints counts, and asserts that every target was reached and never failed.
#[track_caller]
pub fn assert_none_failed(counts: &[Count]) {
    for count in counts {
        println!("   {count}");
    }
    assert!(!counts.is_empty() && counts.iter().all(|count| count.done > 0 && count.failed == 0), "{counts:?}");
}
