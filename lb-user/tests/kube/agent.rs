//! The agent as users run it, in a cgroup and a mount namespace of its own, against the API server of the stories.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use lb_lab::api_server::free_port;
use tempfile::TempDir;

use crate::{DEADLINE, node::KubeTestNode};

/// Waits until `is_so` returns true; panics after the deadline.
#[track_caller]
pub(crate) fn until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let began = Instant::now();
        if is_so() {
            return;
        }
        assert!(Instant::now() < deadline, "not within {DEADLINE:?}: {what}");
        // Many checks run kubectl, which would take the CPU from the agent and the API server.
        std::thread::sleep((began.elapsed() * 3).max(Duration::from_millis(20)));
    }
}

/// Lets one story at a time have agents in the network namespace of this process, where they attach to its devices.
pub(crate) fn alone_on_this_node() -> MutexGuard<'static, ()> {
    static NODE: Mutex<()> = Mutex::new(());
    NODE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A running agent, killed when dropped, with its cgroup.
pub(crate) struct KubeTestAgent {
    child: Child,
    health: u16,
    metrics: u16,
    /// The cgroup to remove, if it belongs to the agent alone.
    cgroup: Option<PathBuf>,
    directory: TempDir,
}

impl KubeTestAgent {
    /// The reason why no agent can run on this machine, if there is one.
    pub(crate) fn obstacle() -> Option<String> {
        if !rustix::process::geteuid().is_root() {
            return Some("an agent needs root".to_owned());
        }
        lb_dataplane::environment::cgroup2().err().map(|error| format!("{error:#}"))
    }

    /// Starts the agent of node n1 on this node, see [`alone_on_this_node`], and does not wait.
    pub(crate) fn start(kubeconfig: &Path) -> Self {
        Self::start_with("n1", kubeconfig, "")
    }

    /// As [`KubeTestAgent::start`], with the name of the node, and additional options as in its configuration file.
    pub(crate) fn start_with(node_name: &str, kubeconfig: &Path, flags: &str) -> Self {
        let root = lb_dataplane::environment::cgroup2().expect("checked by `obstacle`");
        let cgroup = root.join(format!("beeline-kube-{}-{node_name}", std::process::id()));
        fs::create_dir(&cgroup).expect("a cgroup");
        // The bpffs, with pins and links, ends with the mount namespace.
        let script = "mkdir bpffs && mount -t bpf bpf bpffs && \
                      exec \"$0\" --pins \"$PWD/bpffs/beeline\" run --config beeline.yaml";
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-ec", script, env!("CARGO_BIN_EXE_beeline")]);
        let mut agent = Self::launch(command, node_name, &cgroup, kubeconfig, flags);
        agent.cgroup = Some(cgroup);
        agent
    }

    /// Starts the agent on a node with the pins of earlier agents. Its ports cannot be reached from this namespace.
    pub(crate) fn start_on(node: &KubeTestNode, kubeconfig: &Path, flags: &str) -> Self {
        Self::start_at(node, "n1", kubeconfig, flags)
    }

    /// As [`KubeTestAgent::start_on`], with the name of the node, and as in a pod.
    pub(crate) fn start_at(node: &KubeTestNode, node_name: &str, kubeconfig: &Path, flags: &str) -> Self {
        let mut command = Self::on(node, Path::new(env!("CARGO_BIN_EXE_beeline")));
        command.env("KUBERNETES_SERVICE_HOST", "127.0.0.1");
        Self::launch(command, node_name, node.cgroup(), kubeconfig, flags)
    }

    /// Starts a program as the agent of a node, as a service of the host.
    pub(crate) fn start_service(
        program: &Path,
        node: &KubeTestNode,
        node_name: &str,
        kubeconfig: &Path,
        flags: &str,
    ) -> Self {
        let mut command = Self::on(node, program);
        command.env_remove("KUBERNETES_SERVICE_HOST");
        Self::launch(command, node_name, node.cgroup(), kubeconfig, flags)
    }

    fn on(node: &KubeTestNode, program: &Path) -> Command {
        let mut command = node.command("sh");
        let script = "exec \"$0\" --pins \"$1\" run --config \"$BEELINE_TEST_DIRECTORY/beeline.yaml\"";
        command.args(["-ec", script]).arg(program).arg(node.pins());
        command
    }

    /// Ends it as a service manager does.
    pub(crate) fn terminate(&mut self) {
        let pid = rustix::process::Pid::from_raw(self.child.id().cast_signed()).expect("a pid");
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("our own child");
        self.child.wait().expect("our own child");
    }

    fn launch(mut command: Command, node_name: &str, cgroup: &Path, kubeconfig: &Path, flags: &str) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let (health, metrics) = (free_port(), free_port());
        let config = format!(
            "kubeconfig: {}\ncgroup: {}\nnode-name: {node_name}\nhealthz-bind-address: 127.0.0.1:{health}\n\
             metrics-bind-address: 127.0.0.1:{metrics}\n{flags}",
            kubeconfig.display(),
            cgroup.display()
        );
        fs::write(directory.path().join("beeline.yaml"), config).expect("a file");
        let log = File::create(directory.path().join("log")).expect("a log");
        let child = command
            .current_dir(directory.path())
            .env("BEELINE_TEST_DIRECTORY", directory.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .spawn()
            .expect("a shell");
        Self { child, health, metrics, cgroup: None, directory }
    }

    /// Process id of the agent.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Log of the agent so far.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).expect("the log")
    }

    /// The status code of the health port; none before it listens.
    pub(crate) fn health(&self, path: &str) -> Option<u16> {
        http_get(self.health, path).map(|(code, _)| code)
    }

    /// The value of a metric without labels.
    pub(crate) fn metric(&self, name: &str) -> Option<f64> {
        let (_, text) = http_get(self.metrics, "/metrics")?;
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
    }
}

/// Status code and body of an answer; none before the port listens.
pub(crate) fn http_get(port: u16, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: node\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
}

impl Drop for KubeTestAgent {
    fn drop(&mut self) {
        // Fails only if the agent has ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = self.cgroup.as_ref().map(fs::remove_dir);
        println!("--- the agent's log\n{}", self.log());
    }
}
