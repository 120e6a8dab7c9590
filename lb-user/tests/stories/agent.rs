//! The agent under test: the binary that users run.

use std::{
    fs::File,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Output, Stdio},
    time::{Duration, Instant},
};

use lb_core::store::{Dump, Store as _};
use lb_dataplane::store::BpfStore;

use crate::node::{StoryNode, is_slow};

/// Waits until a condition holds, at most [`limit`], which only a failure reaches, also on a busy machine.
pub fn until(what: &str, holds: impl FnMut() -> bool) {
    poll(Duration::from_millis(2), limit(), what, holds);
}

/// Waits as [`until`], at most `least` or the usual limit, whichever is longer.
pub fn until_within(least: Duration, what: &str, holds: impl FnMut() -> bool) {
    poll(Duration::from_millis(2), least.max(limit()), what, holds);
}

/// Waits as [`until`], with another pause between two checks.
pub fn until_polled_every(pause: Duration, what: &str, holds: impl FnMut() -> bool) {
    poll(pause, limit(), what, holds);
}

/// Time limit of a wait. Under emulation everything takes longer.
fn limit() -> Duration {
    Duration::from_secs(if is_slow() { 240 } else { 30 })
}

fn poll(pause: Duration, limit: Duration, what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !holds() {
        assert!(Instant::now() < deadline, "does not hold within {} s: {what}", limit.as_secs());
        std::thread::sleep(pause);
    }
}

/// Returns the command of the binary under test.
pub fn beeline() -> Command {
    Command::new(std::env::var_os("BEELINE_BIN").unwrap_or_else(|| env!("CARGO_BIN_EXE_beeline").into()))
}

/// Returns the command of a next version, whose maps have another layout, if `BEELINE_NEXT_BIN` names its binary.
pub fn next_beeline() -> Option<Command> {
    std::env::var_os("BEELINE_NEXT_BIN").map(Command::new)
}

/// Runs a subcommand of `beeline` on the pins of the node and prints its output.
pub fn run(node: &StoryNode, arguments: &[&str]) -> Output {
    let output = beeline().arg("--pins").arg(&node.pins).args(arguments).output().expect("the beeline binary");
    print!("{}", String::from_utf8_lossy(&output.stdout));
    eprint!("{}", String::from_utf8_lossy(&output.stderr));
    output
}

/// A running agent, killed when dropped.
pub struct Agent {
    child: Child,
    pins: PathBuf,
    log: PathBuf,
}

impl Agent {
    /// Starts an agent and does not wait for it.
    pub fn start(node: &StoryNode, arguments: &[&str]) -> Self {
        Self::start_as(beeline(), node, arguments)
    }

    /// Starts an agent from a binary and does not wait for it.
    pub fn start_as(mut command: Command, node: &StoryNode, arguments: &[&str]) -> Self {
        static STARTED: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = STARTED.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let log = node.directory.join(format!("agent{number}.log"));
        let output = File::create(&log).expect("a log file");
        command.arg("--pins").arg(&node.pins).args(["run", "--node-name", "here", "--directory"]).arg(&node.yaml);
        if !arguments.contains(&"--cgroup") {
            command.arg("--cgroup").arg(&node.cgroup);
        }
        let child = command
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("a log file"))
            .stderr(output)
            .spawn()
            .expect("the beeline binary");
        Self { child, pins: node.pins.clone(), log }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Returns the log so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).expect("the log file")
    }

    /// Waits until the log contains a text.
    pub fn wait_for_log(&self, text: &str) {
        until(&format!("the log says {text:?}"), || self.log().contains(text));
    }

    /// Waits until the programs serve, with the maps of the first pass.
    pub fn wait_until_in_service(&self) {
        self.wait_for_log("in service");
    }

    /// Returns the content of the pinned maps.
    pub fn dump(&self) -> Dump {
        BpfStore::open(&self.pins.join(format!("v{}", lb_common::LAYOUT_VERSION)))
            .and_then(|store| store.dump())
            .expect("the pinned maps")
    }

    /// Waits until the maps satisfy a condition.
    pub fn wait_for(&self, what: &str, holds: impl Fn(&Dump) -> bool) {
        until(what, || holds(&self.dump()));
    }

    /// Kills the agent with SIGKILL.
    pub fn kill(&mut self) {
        self.child.kill().expect("a running agent");
        self.child.wait().expect("a running agent");
    }

    /// Sends a signal to the agent.
    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).expect("a running agent");
    }

    /// Sends SIGTERM and waits for the exit.
    pub fn terminate(&mut self) -> ExitStatus {
        self.signal(rustix::process::Signal::TERM);
        self.wait()
    }

    /// Waits for the exit.
    pub fn wait(&mut self) -> ExitStatus {
        self.child.wait().expect("a running agent")
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _ended = self.child.wait();
        println!("--- the agent's log\n{}", self.log());
        if std::thread::panicking()
            && let Ok(counted) = beeline().arg("--pins").arg(&self.pins).args(["get", "counters"]).output()
        {
            // Packets and calls that the programs dropped or refused may tell why the story fails.
            let counted = String::from_utf8_lossy(&counted.stdout).into_owned();
            println!(
                "--- counters\n{}",
                counted.lines().filter(|line| !line.ends_with(" 0")).collect::<Vec<_>>().join("\n")
            );
        }
    }
}
