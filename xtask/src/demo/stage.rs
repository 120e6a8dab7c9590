//! Where the demo takes place: two network namespaces, a cgroup, a bpffs, the backends, the agent. A janitor removes all
//! of it, however the demo ends. What is shown there is elsewhere.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::janitor::Things;
use crate::{run, setup};

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
/// What answers over HTTP, by name.
const HTTP: [&str; 7] = [
    "outside=192.0.2.42:9376",
    "web-a=10.0.0.1:8080",
    "web-b=10.0.0.2:8080",
    "dual-a=10.0.0.5:8080",
    "dual-b=10.0.0.6:8080",
    "dual-a6=[fd00::5]:8080",
    "dual-b6=[fd00::6]:8080",
];
/// What answers over DNS, by name.
const DNS: [&str; 2] = ["dns-a=10.0.0.3:5353", "dns-b=10.0.0.4:5353"];

/// Longest wait for what takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);

/// The place, while it exists.
pub(super) struct Stage {
    things: Things,
    janitor: Child,
    /// Its namespaces are the node's.
    node: Child,
    /// Held for their stdin, whose end is theirs.
    backends: Child,
    agent: Option<Child>,
    beeline: PathBuf,
}

impl Stage {
    /// Makes it.
    pub(super) fn make(beeline: PathBuf) -> Result<Self> {
        let name = format!("beeline-demo-{}", std::process::id());
        let things = Things {
            namespaces: ["node", "backends"].iter().map(|part| format!("{name}-{part}")).collect(),
            cgroup: cgroup2()?.join(&name),
            directory: std::env::temp_dir().join(&name),
        };
        ensure!(things.left().is_empty(), "{:?} exists already: remove it first", things.left());
        let mut janitor = start_janitor(&things)?;
        match set_up(&things) {
            Ok((node, backends)) => Ok(Self { things, janitor, node, backends, agent: None, beeline }),
            Err(error) => {
                drop(janitor.stdin.take());
                drop(janitor.wait());
                Err(error)
            }
        }
    }

    /// The directory of YAML.
    pub(super) fn yaml(&self) -> PathBuf {
        self.things.directory.join("services")
    }

    /// Files that are neither YAML nor pins.
    pub(super) fn directory(&self) -> &Path {
        &self.things.directory
    }

    /// The cgroup that the agent serves.
    pub(super) fn cgroup(&self) -> PathBuf {
        self.things.cgroup.join("node")
    }

    /// Names of the namespaces: the node's, and the backends'.
    pub(super) fn namespaces(&self) -> &[String] {
        &self.things.namespaces
    }

    /// The pins' directory.
    pub(super) fn pins(&self) -> PathBuf {
        self.things.directory.join("bpffs/beeline")
    }

    /// A command that runs as a process of the node: in its namespaces, and in its cgroup from before its first socket.
    /// `beeline`, `xtask`, `bpftool` are found, and `$PINS`, `$DIR`, `$CGROUP` replaced.
    pub(super) fn command(&self, words: &[&str]) -> Result<Command> {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.node.id().to_string(), "--net", "--mount", "--", "sh", "-c"]);
        command.arg("echo $$ > \"$0/cgroup.procs\" && exec \"$@\"").arg(self.cgroup());
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
        // Proxies, NODE_NAME and RUST_LOG are for other days.
        let path = std::env::var("PATH").unwrap_or_default();
        command.env_clear().env("PATH", format!("{path}:/usr/sbin:/sbin")).stdin(Stdio::null());
        Ok(command)
    }

    /// Starts the agent and waits until it is in service; returns what it says then.
    pub(super) fn start_agent(&mut self, words: &[&str]) -> Result<String> {
        let path = self.things.directory.join("agent.log");
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
        in_service.context("the agent is in service and did not say so")
    }

    /// What the running or last agent logged.
    pub(super) fn agent_log(&self) -> String {
        fs::read_to_string(self.things.directory.join("agent.log")).unwrap_or_default()
    }

    /// The agent's process.
    pub(super) fn agent_pid(&self) -> Result<u32> {
        self.agent.as_ref().map(Child::id).context("no agent runs")
    }

    /// Waits for the agent's end.
    pub(super) fn wait_for_agent(&mut self) -> Result<ExitStatus> {
        self.agent.take().context("no agent runs")?.wait().context("waiting for the agent's end")
    }

    /// Removes everything, and fails if something is left.
    pub(super) fn close(mut self) -> Result<()> {
        if let Some(mut stdin) = self.janitor.stdin.take() {
            // Told so, it removes without words.
            stdin.write_all(b"done").context("telling the janitor")?;
        }
        let status = self.janitor.wait().context("waiting for the janitor")?;
        let left = self.things.left();
        ensure!(status.success() && left.is_empty(), "the janitor ended with {status}; left are {left:?}");
        Ok(())
    }
}

impl Drop for Stage {
    /// The janitor works when the demo fails too; here it is only waited for.
    fn drop(&mut self) {
        drop(self.janitor.stdin.take());
        drop(self.janitor.wait());
        // Killed by then; they are only collected.
        drop(self.node.wait());
        drop(self.backends.wait());
    }
}

/// Waits until something is so.
pub(super) fn until(what: &str, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    while !is_so()? {
        ensure!(start.elapsed() < PATIENCE, "not within {} s: {what}", PATIENCE.as_secs());
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// The running program, even if another build has replaced it.
fn own_program() -> String {
    format!("/proc/{}/exe", std::process::id())
}

fn cgroup2() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("reading the mounts")?;
    let find = |line: &str| {
        let (left, right) = line.split_once(" - ")?;
        right.starts_with("cgroup2 ").then(|| left.split(' ').nth(4).map(PathBuf::from))?
    };
    let found = mounts.lines().find_map(find);
    found.context("no cgroup2 is mounted: mount -t cgroup2 cgroup2 /sys/fs/cgroup, or another directory")
}

/// In a process group of its own, so that Ctrl-C does not reach it.
fn start_janitor(things: &Things) -> Result<Child> {
    let mut command = Command::new(own_program());
    command.args(["demo-part", "janitor"]).args(things.to_args());
    command.stdin(Stdio::piped()).stdout(Stdio::null()).process_group(0).current_dir("/");
    command.spawn().context("starting the janitor")
}

fn set_up(things: &Things) -> Result<(Child, Child)> {
    for directory in [&things.directory, &things.directory.join("bpffs"), &things.directory.join("services")] {
        fs::create_dir(directory).with_context(|| format!("making {}", directory.display()))?;
    }
    for cgroup in [&things.cgroup, &things.cgroup.join("node"), &things.cgroup.join("backends")] {
        fs::create_dir(cgroup).with_context(|| format!("making the cgroup {}", cgroup.display()))?;
    }
    let [node, backends] = things.namespaces.as_slice() else { bail!("not two namespaces") };
    ip(&format!("netns add {node}"))?;
    ip(&format!("netns add {backends}"))?;
    ip(&format!("-n {node} link add veth0 type veth peer name veth0 netns {backends}"))?;
    for (namespace, addresses) in [(node, NODE.as_slice()), (backends, BACKENDS.as_slice())] {
        ip(&format!("-n {namespace} link set lo up"))?;
        for address in addresses {
            // Without duplicate address detection an IPv6 address can be used at once.
            let nodad = if address.contains(':') { " nodad" } else { "" };
            ip(&format!("-n {namespace} address add {address} dev veth0{nodad}"))?;
        }
    }
    ip(&format!("-n {node} link set veth0 up"))?;
    ip(&format!("-n {backends} link set veth0 up"))?;
    let node = start_node(things, node)?;
    let backends = start_backends(things, backends)?;
    Ok((node, backends))
}

/// A process that does nothing but keep the node's namespaces: of networks, and of mounts, with a bpffs in it.
fn start_node(things: &Things, namespace: &str) -> Result<Child> {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/run/netns/{namespace}"));
    command.args(["unshare", "--mount", "--propagation", "private", "--", "sh", "-c"]);
    command.arg("echo $$ > \"$0/cgroup.procs\" && mount -t bpf bpf \"$1\" && echo ready && exec cat");
    command.arg(things.cgroup.join("node")).arg(things.directory.join("bpffs"));
    start(&mut command, "ready").context("making the node")
}

fn start_backends(things: &Things, namespace: &str) -> Result<Child> {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/run/netns/{namespace}"));
    command.args(["--", "sh", "-c", "echo $$ > \"$0/cgroup.procs\" && exec \"$@\""]);
    command.arg(things.cgroup.join("backends")).args([&own_program(), "demo-part", "serve"]);
    command.args(HTTP.iter().flat_map(|backend| ["--http", backend]));
    command.args(DNS.iter().flat_map(|backend| ["--dns", backend]));
    start(&mut command, "serving").context("starting the backends")
}

/// Starts a process that lives until its stdin ends, and waits until it says `word`.
fn start(command: &mut Command, word: &str) -> Result<Child> {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().context("a child without stdout")?).read_line(&mut line)?;
    ensure!(line.trim() == word, "it did not start");
    Ok(child)
}

fn ip(arguments: &str) -> Result<()> {
    run::capture(Command::new("ip").args(arguments.split(' '))).map(drop)
}
