//! The environment of the demo: two network namespaces, a cgroup, a bpffs, the backends, the agent. A cleanup process
//! removes it, however the demo ends.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use lb_lab::LabNamespace;
use lb_lab::link::LinkSpec;
use lb_lab::machine::Machine;
use lb_lab::sandbox::cgroup2;

use super::cleanup::Resources;
use crate::setup;

/// Addresses of the node.
pub(super) const NODE: [&str; 3] = ["192.0.2.1/24", "10.0.0.254/24", "fd00::fe/64"];
/// Addresses of the backends.
pub(super) const BACKENDS: [&str; 9] = [
    "192.0.2.42/24",
    "10.0.0.1/24",
    "10.0.0.2/24",
    "10.0.0.3/24",
    "10.0.0.4/24",
    "10.0.0.5/24",
    "10.0.0.6/24",
    "fd00::5/64",
    "fd00::6/64",
];
/// HTTP servers: name and address.
const HTTP: [&str; 7] = [
    "outside=192.0.2.42:9376",
    "web-a=10.0.0.1:8080",
    "web-b=10.0.0.2:8080",
    "dual-a=10.0.0.5:8080",
    "dual-b=10.0.0.6:8080",
    "dual-a6=[fd00::5]:8080",
    "dual-b6=[fd00::6]:8080",
];
/// DNS servers: name and address.
const DNS: [&str; 2] = ["dns-a=10.0.0.3:5353", "dns-b=10.0.0.4:5353"];

/// Limit for steps that take milliseconds.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The environment. It ends with this value, or with the demo's process.
pub(super) struct Environment {
    resources: Resources,
    cleanup: Child,
    node: Machine,
    /// Kept for their stdin: they end when it closes.
    backends: Child,
    agent: Option<Child>,
    beeline: PathBuf,
}

impl Environment {
    /// Makes the environment.
    pub(super) fn make(beeline: PathBuf) -> Result<Self> {
        let name = format!("beeline-demo-{}", std::process::id());
        let resources = Resources {
            cgroup: cgroup2().context("looking for the cgroup2 hierarchy")?.join(&name),
            directory: std::env::temp_dir().join(&name),
        };
        ensure!(resources.left().is_empty(), "{:?} exists already: remove it first", resources.left());
        let mut cleanup = start_cleanup(&resources)?;
        match set_up(&resources) {
            Ok((node, backends)) => Ok(Self { resources, cleanup, node, backends, agent: None, beeline }),
            Err(error) => {
                drop(cleanup.stdin.take());
                drop(cleanup.wait());
                Err(error)
            }
        }
    }

    /// The directory of YAML.
    pub(super) fn yaml(&self) -> PathBuf {
        self.resources.directory.join("services")
    }

    /// The directory of all files.
    pub(super) fn directory(&self) -> &Path {
        &self.resources.directory
    }

    /// The cgroup that the agent serves.
    pub(super) fn cgroup(&self) -> &Path {
        self.node.cgroup()
    }

    /// The directory of pins.
    pub(super) fn pins(&self) -> PathBuf {
        self.node.pins()
    }

    /// A command that runs as a process of the node. Replaces the programs `beeline`, `xtask` and `bpftool` by their
    /// paths, and `$PINS`, `$DIR` and `$CGROUP` by theirs.
    pub(super) fn command(&self, words: &[&str]) -> Result<Command> {
        let mut command = self.node.process();
        let (program, arguments) = words.split_first().context("no command")?;
        match *program {
            "beeline" => command.arg(&self.beeline),
            "xtask" => command.arg(own_program()),
            "bpftool" => command.arg(setup::bpftool().context("bpftool was installed and cannot be found")?),
            other => command.arg(other),
        };
        let replace = |word: &&str| {
            let (pins, directory, cgroup) = (self.pins(), self.directory(), self.cgroup());
            word.replace("$PINS", &pins.to_string_lossy())
                .replace("$DIR", &directory.to_string_lossy())
                .replace("$CGROUP", &cgroup.to_string_lossy())
        };
        command.args(arguments.iter().map(replace));
        // Without proxies, NODE_NAME and RUST_LOG of the caller.
        let path = std::env::var("PATH").unwrap_or_default();
        command.env_clear().env("PATH", format!("{path}:/usr/sbin:/sbin")).stdin(Stdio::null());
        Ok(command)
    }

    /// Starts the agent, waits until it is in service, and returns the log line that says so.
    pub(super) fn start_agent(&mut self, words: &[&str]) -> Result<String> {
        let path = self.resources.directory.join("agent.log");
        let log = File::create(&path).context("making the agent's log")?;
        let mut command = self.command(words)?;
        self.agent = Some(command.stdout(Stdio::null()).stderr(log).spawn().context("starting the agent")?);
        let mut in_service = None;
        let waited = until("the agent is in service", || {
            let log = fs::read_to_string(&path).unwrap_or_default();
            in_service = log.lines().find(|line| line.contains("in service")).map(str::to_owned);
            Ok(in_service.is_some())
        });
        waited.with_context(|| format!("the agent's log:\n{}", self.agent_log()))?;
        in_service.context("no line of the agent's log says that it is in service")
    }

    /// The log of the current agent, or of the last one.
    pub(super) fn agent_log(&self) -> String {
        fs::read_to_string(self.resources.directory.join("agent.log")).unwrap_or_default()
    }

    /// The process id of the agent.
    pub(super) fn agent_pid(&self) -> Result<u32> {
        self.agent.as_ref().map(Child::id).context("no agent runs")
    }

    /// Waits until the agent ends.
    pub(super) fn wait_for_agent(&mut self) -> Result<ExitStatus> {
        self.agent.take().context("no agent runs")?.wait().context("waiting for the end of the agent")
    }

    /// Removes everything, and fails if something is left.
    pub(super) fn close(mut self) -> Result<()> {
        if let Some(mut stdin) = self.cleanup.stdin.take() {
            // Input means that the demo ran to its end.
            stdin.write_all(b"done").context("telling the cleanup process")?;
        }
        let status = self.cleanup.wait().context("waiting for the cleanup process")?;
        let left = self.resources.left();
        ensure!(status.success() && left.is_empty(), "the cleanup process ended with {status}; left are {left:?}");
        Ok(())
    }
}

impl Drop for Environment {
    /// Waits for the cleanup process, which works when the demo fails too, and for the backends, which it has killed.
    fn drop(&mut self) {
        drop(self.cleanup.stdin.take());
        drop(self.cleanup.wait());
        drop(self.backends.wait());
    }
}

/// Waits until `is_so` returns true.
pub(super) fn until(what: &str, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    while !is_so()? {
        ensure!(start.elapsed() < TIMEOUT, "not within {} s: {what}", TIMEOUT.as_secs());
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// The running program, even if another build has replaced its file.
fn own_program() -> String {
    format!("/proc/{}/exe", std::process::id())
}

/// Starts the cleanup process in a process group of its own, which Ctrl-C does not reach.
fn start_cleanup(resources: &Resources) -> Result<Child> {
    let mut command = Command::new(own_program());
    command.args(["demo-process", "cleanup"]).args(resources.to_args());
    command.stdin(Stdio::piped()).stdout(Stdio::null()).process_group(0).current_dir("/");
    command.spawn().context("starting the cleanup process")
}

fn set_up(resources: &Resources) -> Result<(Machine, Child)> {
    let Resources { cgroup, directory } = resources;
    for directory in [directory, &directory.join("services")] {
        fs::create_dir(directory).with_context(|| format!("making {}", directory.display()))?;
    }
    for cgroup in [cgroup, &cgroup.join("node"), &cgroup.join("backends")] {
        fs::create_dir(cgroup).with_context(|| format!("making the cgroup {}", cgroup.display()))?;
    }
    let (node, backends) = (LabNamespace::new(), LabNamespace::new());
    node.setup().up("lo").link("veth0", &LinkSpec::veth_to(&backends, "veth0")).apply();
    backends.setup().up("lo").up("veth0").apply();
    for (namespace, addresses) in [(&node, NODE.as_slice()), (&backends, BACKENDS.as_slice())] {
        addresses.iter().fold(namespace.setup(), |setup, address| setup.address("veth0", address)).apply();
    }
    let node = Machine::start(node, &cgroup.join("node"), directory);
    let backends = start_backends(&cgroup.join("backends"), &backends)?;
    Ok((node, backends))
}

/// Starts the backends, and waits until all of them listen.
fn start_backends(cgroup: &Path, namespace: &LabNamespace) -> Result<Child> {
    let mut command = Command::new("sh");
    command.args(["-c", "echo $$ > \"$0/cgroup.procs\" && exec \"$@\""]);
    command.arg(cgroup).args([&own_program(), "demo-process", "serve"]);
    command.args(HTTP.iter().flat_map(|backend| ["--http", backend]));
    command.args(DNS.iter().flat_map(|backend| ["--dns", backend]));
    let mut child = namespace.spawn(command.stdin(Stdio::piped()).stdout(Stdio::piped()));
    let mut line = String::new();
    let read = child.stdout.take().map(|stdout| BufReader::new(stdout).read_line(&mut line));
    if line.trim() != "serving" {
        drop((child.kill(), child.wait()));
        bail!("the backends did not start: {read:?}");
    }
    Ok(child)
}
