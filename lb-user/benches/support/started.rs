//! A process that a bench looks at: it writes a log, and ends with its value.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// A process; killed when dropped.
pub struct Started {
    child: Child,
    log: PathBuf,
}

impl Started {
    /// Starts it, in the network namespace of this thread.
    pub fn new(command: &mut Command, log: &Path) -> Self {
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
