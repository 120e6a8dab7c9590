//! The real kube-proxy, with which Beeline is compared.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::started::Started;

/// What it makes its rules with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// Its older way, and the one it takes when it is told nothing.
    Iptables,
    /// The newer one.
    Nftables,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Iptables => "iptables",
            Self::Nftables => "nftables",
        })
    }
}

/// The program, in one of its modes.
pub struct KubeProxy {
    program: PathBuf,
    mode: Mode,
}

/// What one needs to know to serve a node.
pub struct Served<'a> {
    /// The node's name on the API server.
    pub node: &'a str,
    /// The pods' addresses; what comes from elsewhere is masqueraded.
    pub pods: &'a str,
    /// Credentials.
    pub kubeconfig: &'a Path,
    /// For the configuration and the log.
    pub directory: &'a Path,
}

impl KubeProxy {
    /// From $KUBEBUILDER_ASSETS, where it can work in this network namespace; why not, otherwise.
    pub fn find(mode: Mode) -> Result<Self, String> {
        let assets = std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from).unwrap_or_default();
        let program = assets.join("kube-proxy");
        if !program.is_file() {
            return Err(format!("there is no {}", program.display()));
        }
        let (tool, question, package) = match mode {
            Mode::Iptables => ("iptables", ["-w", "-S"].as_slice(), "iptables"),
            Mode::Nftables => ("nft", ["list", "ruleset"].as_slice(), "nftables"),
        };
        let answer = Command::new(tool).args(question).output();
        let answer = answer.map_err(|error| format!("there is no {tool} ({error}); install the package {package}"))?;
        if !answer.status.success() {
            return Err(format!("{tool} does not work here: {}", String::from_utf8_lossy(&answer.stderr).trim()));
        }
        Ok(Self { program, mode })
    }

    /// Starts it in the network namespace of this thread.
    pub fn start(&self, served: &Served<'_>) -> Started {
        let Served { node, pods, kubeconfig, directory } = served;
        let config = directory.join(format!("kube-proxy-{node}.yaml"));
        let text = format!(
            "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: {}\n\
             clientConnection: {{kubeconfig: {}}}\nhostnameOverride: {node}\nclusterCIDR: {pods}\n\
             conntrack: {{maxPerCore: 0}}\nbindAddress: 0.0.0.0\n",
            self.mode,
            kubeconfig.display()
        );
        fs::write(&config, text).expect("a file");
        let log = directory.join(format!("kube-proxy-{node}.log"));
        Started::new(Command::new(&self.program).arg("--config").arg(config), &log)
    }
}
