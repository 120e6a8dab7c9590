//! The network of a hand-over: node1, which is handed over, with a pod; node2 with remote backends; a client outside.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use lb_lab::{
    ChildProcess,
    api_server::ApiServer,
    kube_proxy::{KubeProxy, Mode, ServedNode},
    network::{Lan, LanOptions},
    relay,
};
use rustix::process::{Pid, Signal};

use crate::load::{self, BackendProcess};

/// Limit for a condition to become true.
const TIMEOUT: Duration = Duration::from_secs(30);

const VIP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
const VIP6: Ipv6Addr = Ipv6Addr::new(0xfd96, 0, 0, 0, 0, 0, 0, 10);
/// Port of the Services.
pub const PORT: u16 = 80;
/// NodePort of the Service with external policy Cluster.
pub const CLUSTER: u16 = 30080;
/// NodePort of the Service with external policy Local.
pub const LOCAL: u16 = 30081;

/// The network, with the API server of its Services.
pub struct Network<'a> {
    pub lan: Lan,
    api: &'a ApiServer,
    cgroup: &'a Path,
    directory: &'a Path,
    pins: PathBuf,
    _servers: Vec<BackendProcess>,
}

impl<'a> Network<'a> {
    pub fn make(api: &'a ApiServer, cgroup: &'a Path, directory: &'a Path, pins: &Path) -> Self {
        let lan = Lan::make(LanOptions::default());
        relay::relay(&lan.node1.host.net, api.port());
        // The client routes cluster IPs to the node, as some networks do.
        let [v4, v6] = [lan.node1.host.v4.to_string(), lan.node1.host.v6.to_string()];
        lan.client.net.run(&["ip", "route", "add", "10.96.0.0/16", "via", &v4]);
        lan.client.net.run(&["ip", "route", "add", "fd96::/108", "via", &v6]);
        let pods = [&lan.node1.pods[0], &lan.node2.pods[0]];
        let addresses = pods.map(|pod| (pod.v4, pod.v6));
        let servers = pods.map(|pod| BackendProcess::start(&pod.net, [pod.v4.into(), pod.v6.into()])).into();
        for name in ["pods", "agent"] {
            fs::create_dir(cgroup.join(name)).unwrap();
        }
        api.apply(&objects(addresses));
        let address = |ip: &str| format!("{{\"type\":\"InternalIP\",\"address\":\"{ip}\"}}");
        api.kubectl(&[
            "patch",
            "node",
            "node1",
            "--subresource=status",
            "-p",
            &format!("{{\"status\":{{\"addresses\":[{},{}]}}}}", address(&v4), address(&v6)),
        ]);
        Self { lan, api, cgroup, directory, pins: pins.to_owned(), _servers: servers }
    }

    /// The cgroup of the pods of node1.
    pub fn pods(&self) -> PathBuf {
        self.cgroup.join("pods")
    }

    /// The destinations of clients outside, and of pods.
    pub fn destinations(&self) -> [Vec<SocketAddr>; 2] {
        let node = &self.lan.node1.host;
        let families: [(IpAddr, IpAddr); 2] = [(node.v4.into(), VIP.into()), (node.v6.into(), VIP6.into())];
        let to = |ports: fn(IpAddr, IpAddr) -> Vec<(IpAddr, u16)>| {
            families.into_iter().flat_map(|(node, vip)| ports(node, vip)).map(SocketAddr::from).collect()
        };
        [
            to(|node, vip| vec![(node, CLUSTER), (node, LOCAL), (vip, PORT)]),
            to(|node, vip| vec![(vip, PORT), (node, CLUSTER)]),
        ]
    }

    pub fn start_kube_proxy(&self, mode: Mode) -> ChildProcess {
        let program = KubeProxy::find(mode).unwrap();
        let kubeconfig = self.api.kubeconfig();
        let served = ServedNode {
            node: "node1",
            pods: "10.244.0.0/16,fd44::/48",
            kubeconfig: &kubeconfig,
            directory: self.directory,
            options: "",
        };
        self.lan.node1.host.net.enter(|| program.start(&served))
    }

    pub fn start_agent(&self, flags: &[&str]) -> ChildProcess {
        let mut command = Command::new(env!("CARGO_BIN_EXE_beeline"));
        command
            .arg("--pins")
            .arg(&self.pins)
            .args(["run", "--node-name", "node1", "--kubeconfig"])
            .arg(self.api.kubeconfig());
        command.arg("--cgroup").arg(self.pods()).args(["--healthz-bind-address=", "--metrics-bind-address="]);
        command.args(flags);
        let log = self.directory.join("agent.log");
        let agent = self.lan.node1.host.net.enter(|| ChildProcess::start(&mut command, &log));
        agent.wait_until_in_service();
        let deadline = Instant::now() + TIMEOUT;
        while !agent.log().contains("devices of the packet path") {
            assert!(Instant::now() < deadline, "no device has the programs: {}", agent.log());
            thread::sleep(Duration::from_millis(20));
        }
        agent
    }

    /// Runs `beeline` on the node. Returns its exit code and its output.
    pub fn beeline(&self, arguments: &[&str]) -> (i32, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_beeline"));
        command.arg("--pins").arg(&self.pins).args(arguments);
        let output = self.lan.node1.host.net.enter(|| command.output()).unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code().unwrap_or(-1), text(&output.stdout) + &text(&output.stderr))
    }

    /// Waits until all destinations of the client outside answer.
    pub fn until_served(&self) {
        let [outside, _] = self.destinations();
        for to in outside {
            self.until(&format!("{to} answers"), || {
                self.lan.client.net.enter(|| load::connect_once(to, Duration::from_secs(1))).is_ok()
            });
        }
    }

    /// Runs a command in the node's network namespace.
    pub fn run(&self, command: &[&str]) {
        self.lan.node1.host.net.run(command);
    }

    /// Returns the rules of kube-proxy in netfilter.
    pub fn kube_proxys_rules(&self) -> String {
        let rules = self.lan.node1.host.net.run(&["nft", "list", "ruleset"]);
        let own = |line: &&str| {
            let names = ["KUBE-SERVICES", "KUBE-SVC-", "KUBE-SEP-", "KUBE-EXT-", "KUBE-POSTROUTING", "kube-proxy"];
            names.iter().any(|name| line.contains(name))
        };
        rules.lines().filter(own).collect::<Vec<_>>().join("\n")
    }

    /// Waits until kube-proxy has written all rules, which then agree with Beeline's maps.
    pub fn until_rules_are_written(&self) {
        self.until("kube-proxy has written its rules", || {
            let (code, output) = self.beeline(&["handover", "--dry-run", "-o", "json"]);
            code == 0
                && output.contains("\"differences\": []")
                && output.contains("\"compared\": ")
                && !output.contains("\"compared\": 0")
        });
    }

    /// Asserts that `handover` reports an endpoint that Beeline lacks, and refuses.
    pub fn assert_difference_is_reported(&self) {
        let agent = self.agent();
        rustix::process::kill_process(agent, Signal::STOP).unwrap();
        self.api.apply(&format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n\
             metadata: {{name: none-1, labels: {{kubernetes.io/service-name: none}}}}\n\
             ports: [{{port: {}}}]\nendpoints: [{{addresses: [{}], nodeName: node2}}]\n",
            load::TARGET,
            self.lan.node2.pods[0].v4
        ));
        let expected = format!(
            "Beeline refuses clients on this node, and kube-proxy sends them to {}:",
            self.lan.node2.pods[0].v4
        );
        self.until("the difference is reported", || {
            let (code, output) = self.beeline(&["handover", "--dry-run"]);
            code == 1
                && output.contains("differs  default/none at ")
                && output.contains(&expected)
                && output.contains("clients would lose endpoints")
        });
        rustix::process::kill_process(agent, Signal::CONT).unwrap();
        self.until("rules and maps agree again", || self.beeline(&["handover", "--dry-run"]).0 == 0);
    }

    /// Finds the process of the agent.
    fn agent(&self) -> Pid {
        let pins = self.pins.display().to_string();
        let words = |pid: u32| fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let pids =
            fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let is_agent = |pid: &u32| words(*pid).contains(&pins) && words(*pid).contains("\0run\0");
        let pid = pids.into_iter().find(is_agent).expect("the agent runs");
        Pid::from_raw(i32::try_from(pid).unwrap()).unwrap()
    }

    fn until(&self, what: &str, is_so: impl Fn() -> bool) {
        let deadline = Instant::now() + TIMEOUT;
        while !is_so() {
            let logs = ["kube-proxy-node1.log", "agent.log"]
                .map(|name| fs::read_to_string(self.directory.join(name)).unwrap_or_default());
            assert!(Instant::now() < deadline, "not within {TIMEOUT:?}: {what}\n{}", logs.join("\n---\n"));
            thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Returns a Service with a backend on each node, another with external policy Local, both dual-stack, and a Service
/// without endpoints.
fn objects([local, remote]: [(Ipv4Addr, Ipv6Addr); 2]) -> String {
    let target = load::TARGET;
    let service = |name: &str, spec: &str| {
        format!("---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n")
    };
    let slice = |name: &str, family: &str, local: IpAddr, remote: IpAddr| {
        format!(
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: {family}\n\
             metadata: {{name: {name}-{}, labels: {{kubernetes.io/service-name: {name}}}}}\n\
             ports: [{{name: tcp, port: {target}}}, {{name: udp, port: {target}, protocol: UDP}}]\n\
             endpoints: [{{addresses: [\"{local}\"], nodeName: node1}}, \
             {{addresses: [\"{remote}\"], nodeName: node2}}]\n",
            family.to_lowercase()
        )
    };
    let slices = |name: &str| {
        slice(name, "IPv4", local.0.into(), remote.0.into()) + &slice(name, "IPv6", local.1.into(), remote.1.into())
    };
    let ports = |node_port: u16| {
        format!(
            "type: NodePort, ipFamilyPolicy: RequireDualStack, \
             ports: [{{name: tcp, port: {PORT}, targetPort: {target}, nodePort: {node_port}}}, \
             {{name: udp, protocol: UDP, port: {PORT}, targetPort: {target}, nodePort: {node_port}}}]"
        )
    };
    [
        "---\napiVersion: v1\nkind: Node\nmetadata: {name: node1}\n".to_owned(),
        service("any", &format!("clusterIP: {VIP}, clusterIPs: [{VIP}, \"{VIP6}\"], {}", ports(CLUSTER))),
        slices("any"),
        service("local", &format!("externalTrafficPolicy: Local, {}", ports(LOCAL))),
        slices("local"),
        service("none", "ports: [{port: 81}]"),
    ]
    .concat()
}
