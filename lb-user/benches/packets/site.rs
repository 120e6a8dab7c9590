//! A network with one proxy on its nodes, or with none, and the ways through it.

use std::{
    fmt, fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use lb_lab::{
    Namespace, Process,
    kube_proxy::{KubeProxy, Mode, Served},
    network::{Lan, Node, Options},
    relay,
};

use crate::{
    control::Control,
    objects,
    worker::{Client, Server},
};

/// The pods' addresses.
const PODS: &str = "10.244.0.0/16";
/// The flag of the agent that tells it on which links it looks at packets.
const DEVICES: &str = "--devices";

/// What the nodes run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum By {
    /// Nothing: clients dial the backend itself, and no netfilter looks on.
    Floor,
    /// kube-proxy.
    KubeProxy(Mode),
    /// The agent.
    Beeline,
    /// The agent with `--host-routing`.
    HostRouting,
}

impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Floor => f.write_str("floor"),
            Self::KubeProxy(mode) => write!(f, "kube-proxy {mode}"),
            Self::Beeline => f.write_str("Beeline"),
            Self::HostRouting => f.write_str("Beeline, host routing"),
        }
    }
}

/// Who asks whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// The client asks node1, where the backend is.
    Here,
    /// The client asks node1, and the backend is on node2: there and back by way of node1.
    There,
    /// A pod of node1 asks one of node2, by its own address.
    Pods,
    /// The client asks node1 itself, where nothing is forwarded: what both ends cost.
    Ends,
}

/// The network, while it exists.
pub struct Site {
    /// What its nodes run.
    pub proxy: By,
    pub lan: Lan,
    client: Client,
    pod: Client,
    here: Server,
    there: Server,
    node: Server,
    beeline: Option<Agents>,
    kube_proxies: Vec<Process>,
}

/// The agents of both nodes, and what they read.
struct Agents {
    directory: PathBuf,
    _processes: [Process; 2],
}

/// Why the agent cannot be measured, if it cannot.
pub fn beeline_lacks() -> Option<String> {
    let help = Command::new(beeline()).args(["run", "--help"]).output().expect("the beeline binary");
    let knows = String::from_utf8_lossy(&help.stdout).contains(DEVICES);
    (!knows).then(|| format!("`beeline run` has no {DEVICES}"))
}

fn beeline() -> &'static str {
    env!("CARGO_BIN_EXE_beeline")
}

impl Site {
    /// Makes one whose nodes run nothing.
    pub fn floor() -> Self {
        let site = Self::make(By::Floor);
        // What has the backend elsewhere goes by way of node1 here too, and its answers as well.
        let Lan { client, node1, node2, .. } = &site.lan;
        let (pod, via) = (objects::pod(node2).ip().to_string(), node1.host.v4.to_string());
        client.net.run(&["ip", "route", "add", &pod, "via", &via]);
        node2.host.net.run(&["ip", "route", "add", &client.v4.to_string(), "via", &via]);
        site
    }

    /// Makes one whose nodes run kube-proxy. They are children of `control`.
    pub fn kube_proxy(mode: Mode, control: &Control, directory: &Path) -> Result<Self, String> {
        let program = KubeProxy::find(mode)?;
        let directory = directory.join(mode.to_string());
        fs::create_dir(&directory).expect("a directory");
        let mut site = Self::make(By::KubeProxy(mode));
        for (node, host) in [("node1", &site.lan.node1.host), ("node2", &site.lan.node2.host)] {
            relay::relay(&host.net, control.api_port());
            let kubeconfig = control.kubeconfig();
            let served = Served { node, pods: PODS, kubeconfig: &kubeconfig, directory: &directory };
            site.kube_proxies.push(control.start_proxy(|| host.net.enter(|| program.start(&served))));
        }
        Ok(site)
    }

    /// Makes one whose nodes run the agent, with these flags more.
    pub fn beeline(proxy: By, flags: &[&str], cgroup: &Path, bpffs: &Path, directory: &Path) -> Self {
        let mut site = Self::make(proxy);
        let [cgroup, bpffs, directory] = [cgroup, bpffs, directory].map(|place| {
            let own = place.join(format!("{proxy:?}"));
            fs::create_dir(&own).expect("a directory");
            own
        });
        let yaml = directory.join("yaml");
        fs::create_dir(&yaml).expect("a directory");
        let start = |name: &str, net: &Namespace| {
            let cgroup = cgroup.join(name);
            fs::create_dir(&cgroup).expect("a cgroup");
            let mut command = Command::new(beeline());
            command.arg("--pins").arg(bpffs.join(name)).args(["run", "--node-name", name, DEVICES, "eth0"]).args(flags);
            command.arg("--directory").arg(&yaml).arg("--cgroup").arg(cgroup);
            let agent = net.enter(|| Process::start(&mut command, &directory.join(format!("{name}.log"))));
            agent.wait_until_in_service();
            agent
        };
        let agents = [start("node1", &site.lan.node1.host.net), start("node2", &site.lan.node2.host.net)];
        // Pods are processes of their node, and the socket path serves them too.
        site.pod.join(&cgroup.join("node1"));
        site.here.join(&cgroup.join("node1"));
        site.there.join(&cgroup.join("node2"));
        site.beeline = Some(Agents { directory: yaml, _processes: agents });
        site
    }

    fn make(proxy: By) -> Self {
        let lan = Lan::make(Options::default());
        // So many connections are made that the usual range would be used up before netfilter forgets the first.
        lan.client.net.set("ipv4/ip_local_port_range", "2048 65000");
        let pod = |node: &Node| Server::start(&node.pods.first().expect("a pod").net, objects::pod(node));
        let (here, there) = (pod(&lan.node1), pod(&lan.node2));
        let node = Server::start(&lan.node1.host.net, (lan.node1.host.v4, objects::TARGET).into());
        let clients = [&lan.client, lan.node1.pods.first().expect("a pod")].map(|host| Client::start(&host.net));
        let [client, pod] = clients;
        Self { proxy, lan, client, pod, here, there, node, beeline: None, kube_proxies: Vec::new() }
    }

    /// Tells what has no API server to ask that there are so many Services.
    pub fn tell(&self, services: u32) {
        if let Some(agents) = &self.beeline {
            objects::write(&agents.directory, &self.lan, services);
        }
    }

    /// Waits until both nodes serve the last of so many Services.
    pub fn wait_for(&mut self, services: u32) {
        let deadline = Instant::now() + Duration::from_secs(240);
        let port = match self.proxy {
            By::Floor => return,
            By::KubeProxy(_) | By::Beeline | By::HostRouting => objects::node_port(services - 1),
        };
        for node in [self.lan.node1.host.v4, self.lan.node2.host.v4] {
            while !self.client.reaches((node, port).into(), self.here.address) {
                assert!(Instant::now() < deadline, "{}: NodePort {port} of {node} does not answer", self.proxy);
                thread::sleep(Duration::from_millis(100));
            }
        }
        for way in [Way::Here, Way::There, Way::Pods, Way::Ends] {
            let (client, to, server) = self.ends(way);
            assert!(client.reaches(to, server.address), "{to} does not lead to {}", server.address);
        }
    }

    /// Who asks on this way, what it dials, and who answers.
    pub fn ends(&mut self, way: Way) -> (&mut Client, SocketAddr, &mut Server) {
        let node_port = |port| SocketAddr::from((self.lan.node1.host.v4, port));
        match (way, self.proxy) {
            (Way::Here, By::Floor) => (&mut self.client, self.here.address, &mut self.here),
            (Way::There, By::Floor) => (&mut self.client, self.there.address, &mut self.there),
            (Way::Here, _) => (&mut self.client, node_port(objects::HERE), &mut self.here),
            (Way::There, _) => (&mut self.client, node_port(objects::THERE), &mut self.there),
            (Way::Pods, _) => (&mut self.pod, self.there.address, &mut self.there),
            (Way::Ends, _) => (&mut self.client, self.node.address, &mut self.node),
        }
    }

    /// Whether netfilter has followed a connection of the nodes.
    pub fn has_conntrack(&self) -> bool {
        [&self.lan.node1.host.net, &self.lan.node2.host.net].into_iter().any(|net| {
            let count = net.enter(|| fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count"));
            // Without the module there is no count.
            count.is_ok_and(|count| count.trim() != "0")
        })
    }
}
