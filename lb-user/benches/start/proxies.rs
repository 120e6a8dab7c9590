//! The processes that are compared: the agent, and kube-proxy.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// This node's name on the API server.
pub const NODE: &str = "here";

/// Where the agent runs.
pub struct Node {
    /// The pins' directory.
    pub pins: PathBuf,
    /// The processes that are served.
    pub cgroup: PathBuf,
    /// Files of the bench.
    pub directory: PathBuf,
    /// Credentials.
    pub kubeconfig: PathBuf,
}

impl Node {
    /// Starts the agent.
    pub fn start(&self) -> Started {
        let mut command = self.beeline();
        command.args(["run", "--node-name", NODE, "--kubeconfig"]).arg(&self.kubeconfig);
        command.arg("--cgroup").arg(&self.cgroup);
        Started::new(&mut command, &self.directory.join("agent.log"))
    }

    /// Removes the datapath.
    pub fn clean_up(&self) {
        let output = self.beeline().arg("cleanup").output().expect("the beeline binary");
        assert!(output.status.success(), "cleanup: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn beeline(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_beeline"));
        command.arg("--pins").arg(&self.pins);
        command
    }
}

/// A process; killed when dropped.
pub struct Started {
    child: Child,
    log: PathBuf,
}

impl Started {
    fn new(command: &mut Command, log: &Path) -> Self {
        let output = File::create(log).expect("a log file");
        let command = command.stdin(Stdio::null()).stdout(output.try_clone().expect("a log file")).stderr(output);
        Self { child: command.spawn().expect("the program starts"), log: log.to_owned() }
    }

    /// What it has said.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).expect("the log file")
    }

    /// Waits until the agent has put its programs into service.
    pub fn wait_until_in_service(&self) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !self.log().contains("in service") {
            assert!(Instant::now() < deadline, "not in service: {}", self.log());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Megabytes that a field of its status tells.
    pub fn memory(&self, field: &str) -> f64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("the process runs");
        let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("the field is there");
        let kibibytes: f64 = line.split_whitespace().next().and_then(|word| word.parse().ok()).expect("a number");
        kibibytes * 1024.0 / 1e6
    }

    /// Of its log what is not about single Services, when it is asked for.
    pub fn account(&self) -> String {
        if std::env::var_os("BEELINE_BENCH_LOG").is_none() {
            return String::new();
        }
        let log = self.log();
        let lines = log.lines().filter(|line| !line.contains(" changed "));
        lines.fold(String::new(), |text, line| text + "\n    " + line)
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _ended = self.child.wait();
    }
}

/// kube-proxy in its mode nftables.
pub struct KubeProxy {
    program: PathBuf,
}

impl KubeProxy {
    /// From $KUBEBUILDER_ASSETS; why not, otherwise.
    pub fn find() -> Result<Self, String> {
        let assets = std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from).unwrap_or_default();
        let program = assets.join("kube-proxy");
        if !program.is_file() {
            return Err(format!("there is no {}", program.display()));
        }
        let nft = Command::new("nft").args(["list", "ruleset"]).output();
        let nft = nft.map_err(|error| format!("there is no nft ({error}); install the package nftables"))?;
        if !nft.status.success() {
            return Err(format!("nft does not work here: {}", String::from_utf8_lossy(&nft.stderr).trim()));
        }
        Ok(Self { program })
    }

    /// Starts it.
    pub fn start(&self, node: &Node) -> Started {
        let config = node.directory.join("kube-proxy.yaml");
        let text = format!(
            "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: nftables\n\
             clientConnection: {{kubeconfig: {}}}\nhostnameOverride: {NODE}\nclusterCIDR: 10.0.0.0/16\n\
             conntrack: {{maxPerCore: 0}}\nbindAddress: 0.0.0.0\n",
            node.kubeconfig.display()
        );
        fs::write(&config, text).expect("a file");
        let mut command = Command::new(&self.program);
        Started::new(command.arg("--config").arg(config), &node.directory.join("kube-proxy.log"))
    }

    /// Removes its rules.
    pub fn clean_up(&self) {
        let output = Command::new("nft").args(["flush", "ruleset"]).output().expect("the command nft");
        assert!(output.status.success(), "nft: {}", String::from_utf8_lossy(&output.stderr));
    }
}
