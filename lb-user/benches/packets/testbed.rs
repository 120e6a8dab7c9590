//! A network with one proxy on its nodes, or with none, and the routes through it.

use std::{
    fmt, fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use lb_lab::{
    ChildProcess, LabNamespace,
    kube_proxy::{KubeProxy, Mode, ServedNode},
    network::{LabNode, Lan, LanOptions},
    relay,
};

use crate::{
    control::Control,
    objects,
    worker::{ClientWorker, ServerWorker},
};

/// The cluster CIDR.
const PODS: &str = "10.244.0.0/16";
/// The flag of the agent for the devices of the packet path.
const DEVICES: &str = "--devices";

/// The proxy on the nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Contender {
    /// No proxy and no netfilter: clients dial the backend itself.
    Floor,
    /// kube-proxy.
    KubeProxy(Mode),
    /// The agent.
    Beeline,
    /// The agent with `--host-routing`.
    HostRouting,
}

impl fmt::Display for Contender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Floor => f.write_str("floor"),
            Self::KubeProxy(mode) => write!(f, "kube-proxy {mode}"),
            Self::Beeline => f.write_str("Beeline"),
            Self::HostRouting => f.write_str("Beeline, host routing"),
        }
    }
}

/// The route of packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum BenchRoute {
    /// From the client to a backend on node1, by node1.
    Local,
    /// From the client to a backend on node2 and back, by node1.
    Remote,
    /// From a pod of node1 to the address of a pod of node2.
    Pods,
    /// From the client to node1 itself, without forwarding: the cost of both ends.
    Ends,
}

/// A network with its proxies, clients and servers.
pub struct Testbed {
    /// The proxy on its nodes.
    pub proxy: Contender,
    pub lan: Lan,
    client: ClientWorker,
    pod: ClientWorker,
    local: ServerWorker,
    remote: ServerWorker,
    node: ServerWorker,
    beeline: Option<Agents>,
    kube_proxies: Vec<ChildProcess>,
}

/// The agents of both nodes, and the directory that they read.
struct Agents {
    directory: PathBuf,
    _processes: [ChildProcess; 2],
}

/// The reason why the agent cannot be measured, if there is one.
pub fn beeline_lacks() -> Option<String> {
    let help = Command::new(beeline()).args(["run", "--help"]).output().expect("the beeline binary");
    let knows = String::from_utf8_lossy(&help.stdout).contains(DEVICES);
    (!knows).then(|| format!("`beeline run` has no {DEVICES}"))
}

fn beeline() -> &'static str {
    env!("CARGO_BIN_EXE_beeline")
}

impl Testbed {
    /// Makes a testbed without proxies.
    pub fn floor() -> Self {
        let testbed = Self::make(Contender::Floor);
        // Packets to the backend on node2, and their answers, take the route by node1 here too.
        let Lan { client, node1, node2, .. } = &testbed.lan;
        let (pod, via) = (objects::pod(node2).ip().to_string(), node1.host.v4.to_string());
        client.net.run(&["ip", "route", "add", &pod, "via", &via]);
        node2.host.net.run(&["ip", "route", "add", &client.v4.to_string(), "via", &via]);
        testbed
    }

    /// Makes a testbed whose nodes run kube-proxy, in the cgroup of `control`.
    pub fn kube_proxy(mode: Mode, control: &Control, directory: &Path) -> Result<Self, String> {
        let program = KubeProxy::find(mode)?;
        let directory = directory.join(mode.to_string());
        fs::create_dir(&directory).expect("a directory");
        let mut testbed = Self::make(Contender::KubeProxy(mode));
        for (node, host) in [("node1", &testbed.lan.node1.host), ("node2", &testbed.lan.node2.host)] {
            relay::relay(&host.net, control.api_port());
            let kubeconfig = control.kubeconfig();
            let served = ServedNode { node, pods: PODS, kubeconfig: &kubeconfig, directory: &directory, options: "" };
            testbed.kube_proxies.push(control.start_proxy(|| host.net.enter(|| program.start(&served))));
        }
        Ok(testbed)
    }

    /// Makes a testbed whose nodes run the agent, with additional flags.
    pub fn beeline(proxy: Contender, flags: &[&str], cgroup: &Path, bpffs: &Path, directory: &Path) -> Self {
        let mut testbed = Self::make(proxy);
        let [cgroup, bpffs, directory] = [cgroup, bpffs, directory].map(|place| {
            let own = place.join(format!("{proxy:?}"));
            fs::create_dir(&own).expect("a directory");
            own
        });
        let yaml = directory.join("yaml");
        fs::create_dir(&yaml).expect("a directory");
        let start = |name: &str, net: &LabNamespace| {
            let cgroup = cgroup.join(name);
            fs::create_dir(&cgroup).expect("a cgroup");
            let mut command = Command::new(beeline());
            command.arg("--pins").arg(bpffs.join(name)).args(["run", "--node-name", name, DEVICES, "eth0"]).args(flags);
            command.arg("--directory").arg(&yaml).arg("--cgroup").arg(cgroup);
            let agent = net.enter(|| ChildProcess::start(&mut command, &directory.join(format!("{name}.log"))));
            agent.wait_until_in_service();
            agent
        };
        let agents = [start("node1", &testbed.lan.node1.host.net), start("node2", &testbed.lan.node2.host.net)];
        // Pods are processes of their node: the socket path serves them.
        testbed.pod.join(&cgroup.join("node1"));
        testbed.local.join(&cgroup.join("node1"));
        testbed.remote.join(&cgroup.join("node2"));
        testbed.beeline = Some(Agents { directory: yaml, _processes: agents });
        testbed
    }

    fn make(proxy: Contender) -> Self {
        let lan = Lan::make(LanOptions::default());
        // The default range is too small: netfilter keeps entries of closed connections for a while.
        lan.client.net.set("ipv4/ip_local_port_range", "2048 65000");
        let pod = |node: &LabNode| ServerWorker::start(&node.pods.first().expect("a pod").net, objects::pod(node));
        let (local, remote) = (pod(&lan.node1), pod(&lan.node2));
        let node = ServerWorker::start(&lan.node1.host.net, (lan.node1.host.v4, objects::TARGET).into());
        let clients = [&lan.client, lan.node1.pods.first().expect("a pod")].map(|host| ClientWorker::start(&host.net));
        let [client, pod] = clients;
        Self { proxy, lan, client, pod, local, remote, node, beeline: None, kube_proxies: Vec::new() }
    }

    /// Writes the Services for the agents, which have no API server.
    pub fn write_services(&self, services: u32) {
        if let Some(agents) = &self.beeline {
            objects::write(&agents.directory, &self.lan, services);
        }
    }

    /// Waits until both nodes serve the last of `services` Services.
    pub fn wait_for(&mut self, services: u32) {
        let deadline = Instant::now() + Duration::from_secs(240);
        let port = match self.proxy {
            Contender::Floor => return,
            Contender::KubeProxy(_) | Contender::Beeline | Contender::HostRouting => objects::node_port(services - 1),
        };
        for node in [self.lan.node1.host.v4, self.lan.node2.host.v4] {
            while !self.client.reaches((node, port).into(), self.local.address) {
                assert!(Instant::now() < deadline, "{}: NodePort {port} of {node} does not answer", self.proxy);
                thread::sleep(Duration::from_millis(100));
            }
        }
        for route in [BenchRoute::Local, BenchRoute::Remote, BenchRoute::Pods, BenchRoute::Ends] {
            let (client, to, server) = self.ends(route);
            assert!(client.reaches(to, server.address), "{to} does not lead to {}", server.address);
        }
    }

    /// The client of a route, the address that it dials, and the server.
    pub fn ends(&mut self, route: BenchRoute) -> (&mut ClientWorker, SocketAddr, &mut ServerWorker) {
        let node_port = |port| SocketAddr::from((self.lan.node1.host.v4, port));
        match (route, self.proxy) {
            (BenchRoute::Local, Contender::Floor) => (&mut self.client, self.local.address, &mut self.local),
            (BenchRoute::Remote, Contender::Floor) => (&mut self.client, self.remote.address, &mut self.remote),
            (BenchRoute::Local, _) => (&mut self.client, node_port(objects::LOCAL), &mut self.local),
            (BenchRoute::Remote, _) => (&mut self.client, node_port(objects::REMOTE), &mut self.remote),
            (BenchRoute::Pods, _) => (&mut self.pod, self.remote.address, &mut self.remote),
            (BenchRoute::Ends, _) => (&mut self.client, self.node.address, &mut self.node),
        }
    }

    /// True if netfilter tracks a connection on one of the nodes.
    pub fn has_conntrack(&self) -> bool {
        [&self.lan.node1.host.net, &self.lan.node2.host.net].into_iter().any(|net| {
            let count = net.enter(|| fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count"));
            // The file exists only with the module nf_conntrack.
            count.is_ok_and(|count| count.trim() != "0")
        })
    }
}
