//! The node of a story: a network namespace with addresses on `lo`, a cgroup and a bpffs, entered by one process.

use std::{
    fs,
    io::Write as _,
    net::{IpAddr, UdpSocket},
    path::PathBuf,
    process::Command,
};

use lb_dataplane::pins::Pins;
use lb_lab::sandbox::Inside;

use crate::agent::{Agent, until};

/// True on an emulated machine, where everything takes ten times as long.
pub fn is_slow() -> bool {
    std::env::var_os("BEELINE_SLOW").is_some()
}

/// True on a machine that the runner booted for the stories, whose root cgroup is theirs.
pub fn is_own_machine() -> bool {
    std::env::var_os("BEELINE_OWN_MACHINE").is_some()
}

/// Returns what this machine lacks to run stories, if anything.
pub fn missing_requirement() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("not root".to_owned());
    }
    lb_dataplane::environment::cgroup2().err().map(|error| format!("{error:#}"))
}

/// The node that a story runs on.
pub struct StoryNode {
    /// Cgroup of this process, which the agent attaches to.
    pub cgroup: PathBuf,
    /// Directory of the pins, on the bpffs of this node.
    pub pins: PathBuf,
    /// Directory of YAML files that the agent reads.
    pub yaml: PathBuf,
    /// Directory for other files of the story.
    pub directory: PathBuf,
}

/// Addresses on `lo`: backends 1 to 4, a client (9), the example of the Kubernetes documentation, and one more host.
pub const ADDRESSES: [&str; 12] = [
    "10.0.0.1/32",
    "10.0.0.2/32",
    "10.0.0.3/32",
    "10.0.0.4/32",
    "10.0.0.9/32",
    "192.0.2.42/32",
    "fd00::1/128",
    "fd00::2/128",
    "fd00::3/128",
    "fd00::4/128",
    "fd00::9/128",
    "198.51.100.1/32",
];

impl StoryNode {
    /// Moves this process into the node. Call it before the process starts another thread.
    pub fn enter() -> Self {
        let inside = Inside::find().expect("the runner sets the environment");
        inside.join_cgroup();
        let bpffs = inside.enter();
        let Inside { cgroup, directory } = inside;
        let yaml = directory.join("yaml");
        fs::create_dir(&yaml).expect("a directory");
        for address in ADDRESSES {
            ip(&["addr", "add", address, "dev", "lo"]);
        }
        // The kernel marks a new IPv6 address usable only a moment later.
        for address in ADDRESSES.iter().filter_map(|address| address.split('/').next()?.parse::<IpAddr>().ok()) {
            until("the address is usable", || UdpSocket::bind((address, 0)).is_ok());
        }
        Self { cgroup, pins: bpffs.join("beeline"), yaml, directory }
    }

    /// Writes a file of the YAML directory atomically.
    pub fn write(&self, file: &str, text: &str) {
        let (target, staged) = (self.yaml.join(file), self.directory.join("staged"));
        fs::File::create(&staged).and_then(|mut f| f.write_all(text.as_bytes())).expect("a file");
        fs::rename(staged, target).expect("a rename");
    }

    /// Returns the directory of the pinned maps.
    pub fn maps(&self) -> PathBuf {
        Pins::at(self.pins.clone()).current()
    }

    /// Starts an agent with additional arguments and waits until it is in service.
    pub fn agent(&self, arguments: &[&str]) -> Agent {
        let agent = Agent::start(self, arguments);
        agent.wait_until_in_service();
        agent
    }
}

/// Runs the command `ip` in the network namespace of this thread.
pub fn ip(arguments: &[&str]) {
    let output = Command::new("ip").args(arguments).output().expect("the command ip");
    assert!(output.status.success(), "ip {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Returns the YAML of a Service and its hand-written Endpoints, which the agent reads without mirrored slices.
pub fn service(name: &str, vips: &[&str], protocol: &str, port: u16, backends: &[&str]) -> String {
    let mut subsets = String::new();
    for backend in backends {
        let address: std::net::SocketAddr = backend.parse().expect("an address and port");
        subsets += &format!(
            "- addresses: [{{ip: \"{}\"}}]\n  ports: [{{port: {}, protocol: {protocol}}}]\n",
            address.ip(),
            address.port()
        );
    }
    let subsets = if subsets.is_empty() { "subsets: []\n".to_owned() } else { format!("subsets:\n{subsets}") };
    let first = vips.first().expect("a VIP");
    let list = vips.iter().map(|vip| format!("\"{vip}\"")).collect::<Vec<_>>().join(", ");
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  clusterIP: \"{first}\"\n  \
         clusterIPs: [{list}]\n  ports: [{{port: {port}, protocol: {protocol}}}]\n---\n\
         apiVersion: v1\nkind: Endpoints\nmetadata: {{name: {name}}}\n{subsets}---\n"
    )
}

/// Adds annotations, as in `a: b, c: d`, to the first object of `yaml`.
pub fn annotated(yaml: &str, annotations: &str) -> String {
    yaml.replacen("}\nspec:\n", &format!(", annotations: {{{annotations}}}}}\nspec:\n"), 1)
}

/// Adds a line to the spec of the first object of `yaml`.
pub fn with_spec(yaml: &str, line: &str) -> String {
    yaml.replacen("spec:\n", &format!("spec:\n  {line}\n"), 1)
}
