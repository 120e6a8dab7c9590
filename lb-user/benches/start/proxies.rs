//! The node, and the processes that the bench compares: agent and kube-proxy.

use std::{path::PathBuf, process::Command};

use lb_lab::{
    ChildProcess,
    kube_proxy::{KubeProxy, ServedNode},
};

/// The name of the node on the API server.
pub const NODE: &str = "here";

/// The environment of the agent.
pub struct BenchNode {
    /// The directory of pins.
    pub pins: PathBuf,
    /// The cgroup that the agent serves.
    pub cgroup: PathBuf,
    /// Files of the bench.
    pub directory: PathBuf,
    /// Credentials.
    pub kubeconfig: PathBuf,
}

impl BenchNode {
    /// Starts the agent.
    pub fn start(&self) -> ChildProcess {
        let mut command = self.beeline();
        command.args(["run", "--node-name", NODE, "--kubeconfig"]).arg(&self.kubeconfig);
        command.arg("--cgroup").arg(&self.cgroup);
        ChildProcess::start(&mut command, &self.directory.join("agent.log"))
    }

    /// Starts kube-proxy.
    pub fn start_kube_proxy(&self, kube_proxy: &KubeProxy) -> ChildProcess {
        let Self { kubeconfig, directory, .. } = self;
        kube_proxy.start(&ServedNode { node: NODE, pods: "10.0.0.0/16", kubeconfig, directory, options: "" })
    }

    /// Removes the datapath.
    pub fn clean_up(&self) {
        let output = self.beeline().arg("cleanup").output().expect("the beeline binary");
        assert!(output.status.success(), "cleanup: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Removes kube-proxy's rules.
    pub fn flush_rules() {
        let output = Command::new("nft").args(["flush", "ruleset"]).output().expect("the command nft");
        assert!(output.status.success(), "nft: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn beeline(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_beeline"));
        command.arg("--pins").arg(&self.pins);
        command
    }
}
