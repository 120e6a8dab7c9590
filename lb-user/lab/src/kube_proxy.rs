//! The real kube-proxy, which Beeline is compared with.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::process::ChildProcess;

/// The mode of kube-proxy: the netfilter interface of its rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// iptables, the default.
    Iptables,
    /// nf_tables.
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

/// The program in one of its modes.
pub struct KubeProxy {
    program: PathBuf,
    mode: Mode,
}

/// The node that kube-proxy serves.
pub struct ServedNode<'a> {
    /// Name of its Node on the API server.
    pub node: &'a str,
    /// The cluster CIDR: packets of other sources are masqueraded.
    pub pods: &'a str,
    /// Credentials for the API server.
    pub kubeconfig: &'a Path,
    /// Directory of configuration and log.
    pub directory: &'a Path,
    /// Further lines of its configuration.
    pub options: &'a str,
}

impl KubeProxy {
    /// Finds it in `$KUBEBUILDER_ASSETS`.
    ///
    /// # Errors
    /// The reason why it cannot run: no program, or the mode's netfilter tool fails in this network namespace.
    pub fn find(mode: Mode) -> Result<Self, String> {
        let assets = std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from).unwrap_or_default();
        let program = assets.join("kube-proxy");
        if !program.is_file() {
            return Err(format!("there is no {}", program.display()));
        }
        let (tool, arguments, package) = match mode {
            Mode::Iptables => ("iptables", ["-w", "-S"].as_slice(), "iptables"),
            Mode::Nftables => ("nft", ["list", "ruleset"].as_slice(), "nftables"),
        };
        let output = Command::new(tool).args(arguments).output();
        let output = output.map_err(|error| format!("there is no {tool} ({error}); install the package {package}"))?;
        if !output.status.success() {
            return Err(format!("{tool} does not work here: {}", String::from_utf8_lossy(&output.stderr).trim()));
        }
        Ok(Self { program, mode })
    }

    /// Starts it in the network namespace of this thread.
    pub fn start(&self, served: &ServedNode<'_>) -> ChildProcess {
        let ServedNode { node, pods, kubeconfig, directory, options } = served;
        let config = directory.join(format!("kube-proxy-{node}.yaml"));
        let text = configuration(self.mode, node, pods, kubeconfig) + "bindAddress: 0.0.0.0\n" + options;
        fs::write(&config, text).expect("a file");
        let log = directory.join(format!("kube-proxy-{node}.log"));
        ChildProcess::start(Command::new(&self.program).arg("--config").arg(config), &log)
    }
}

/// Configuration of kube-proxy for a node, without conntrack limits of its own.
pub fn configuration(mode: Mode, node: &str, pods: &str, kubeconfig: &Path) -> String {
    format!(
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: {mode}\n\
         clientConnection: {{kubeconfig: {}}}\nhostnameOverride: {node}\nclusterCIDR: {pods}\n\
         conntrack: {{maxPerCore: 0}}\n",
        kubeconfig.display()
    )
}
