//! The agent under test, as the binary that users run.

use std::{
    fs::File,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Output, Stdio},
    time::{Duration, Instant},
};

use lb_core::store::{Dump, Store as _};
use lb_dataplane::store::BpfStore;

use crate::node::{StoryNode, is_slow};

/// Waits until something is so: a limit that only a failure reaches, also on a machine that does other things. Under emulation
/// everything takes longer.
pub fn until(what: &str, is_so: impl FnMut() -> bool) {
    until_looking_each(Duration::from_millis(2), what, is_so);
}

/// The same, with another pause between two looks.
pub fn until_looking_each(pause: Duration, what: &str, mut is_so: impl FnMut() -> bool) {
    let limit = if is_slow() { 240 } else { 30 };
    let deadline = Instant::now() + Duration::from_secs(limit);
    while !is_so() {
        assert!(Instant::now() < deadline, "not so within {limit} s: {what}");
        std::thread::sleep(pause);
    }
}

/// The binary.
pub fn beeline() -> Command {
    Command::new(std::env::var_os("BEELINE_BIN").unwrap_or_else(|| env!("CARGO_BIN_EXE_beeline").into()))
}

/// That of a next version, whose maps have another layout, if `xtask` or somebody else has said where it is.
pub fn next_beeline() -> Option<Command> {
    std::env::var_os("BEELINE_NEXT_BIN").map(Command::new)
}

/// Runs a command of the command line on the node's pins.
pub fn run(node: &StoryNode, arguments: &[&str]) -> Output {
    let output = beeline().arg("--pins").arg(&node.pins).args(arguments).output().expect("the beeline binary");
    print!("{}", String::from_utf8_lossy(&output.stdout));
    eprint!("{}", String::from_utf8_lossy(&output.stderr));
    output
}

/// A running agent; killed when dropped.
pub struct Agent {
    child: Child,
    pins: PathBuf,
    log: PathBuf,
}

impl Agent {
    /// Starts it and does not wait.
    pub fn start(node: &StoryNode, arguments: &[&str]) -> Self {
        Self::start_as(beeline(), node, arguments)
    }

    /// Starts this binary, and does not wait.
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

    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).expect("the log file")
    }

    /// Waits for a line of the log.
    pub fn wait_for_log(&self, text: &str) {
        until(&format!("the log says {text:?}"), || self.log().contains(text));
    }

    /// Waits until its programs answer.
    pub fn wait_until_in_service(&self) {
        self.wait_for_log("in service");
    }

    /// What stands in the maps.
    pub fn dump(&self) -> Dump {
        BpfStore::open(&self.pins.join(format!("v{}", lb_common::LAYOUT_VERSION)))
            .and_then(|store| store.dump())
            .expect("the pinned maps")
    }

    /// Waits until the maps are so.
    pub fn wait_for(&self, what: &str, is_so: impl Fn(&Dump) -> bool) {
        until(what, || is_so(&self.dump()));
    }

    /// kill -9.
    pub fn kill(&mut self) {
        self.child.kill().expect("a running agent");
        self.child.wait().expect("a running agent");
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).expect("a running agent");
    }

    /// SIGTERM, and its end.
    pub fn terminate(&mut self) -> ExitStatus {
        self.signal(rustix::process::Signal::TERM);
        self.wait()
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        self.child.wait().expect("a running agent")
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _ended = self.child.wait();
        println!("--- the agent's log\n{}", self.log());
    }
}
