//! A program that runs with a log until its value is dropped.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// A process; killed when dropped, also by a panic.
pub struct ChildProcess {
    child: Child,
    log: PathBuf,
}

impl ChildProcess {
    /// Starts it in the network namespace of this thread. Its output replaces the content of `log`.
    pub fn start(command: &mut Command, log: &Path) -> Self {
        Self::start_with(command, log, File::create(log).expect("a log file"))
    }

    /// As [`ChildProcess::start`], but its output is appended to `log`.
    pub fn start_appending(command: &mut Command, log: &Path) -> Self {
        Self::start_with(command, log, File::options().create(true).append(true).open(log).expect("a log file"))
    }

    fn start_with(command: &mut Command, log: &Path, output: File) -> Self {
        let command = command.stdin(Stdio::null()).stdout(output.try_clone().expect("a log file")).stderr(output);
        let child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Self { child, log: log.to_owned() }
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// True until it ends by itself.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Log of the process so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).expect("the log file")
    }

    /// Waits until the agent logs that it is in service.
    pub fn wait_until_in_service(&self) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !self.log().contains("in service") {
            assert!(Instant::now() < deadline, "not in service: {}", self.log());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// A field of /proc/PID/status in megabytes, as in `VmRSS:`.
    pub fn memory(&self, field: &str) -> f64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("the process runs");
        let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("the field is there");
        let kibibytes: f64 = line.split_whitespace().next().and_then(|word| word.parse().ok()).expect("a number");
        kibibytes * 1024.0 / 1e6
    }

    /// The agent's log without the lines on single Services, if `BEELINE_BENCH_LOG` is set.
    pub fn account(&self) -> String {
        if std::env::var_os("BEELINE_BENCH_LOG").is_none() {
            return String::new();
        }
        let log = self.log();
        let lines = log.lines().filter(|line| !line.contains(" changed "));
        lines.fold(String::new(), |text, line| text + "\n    " + line)
    }
}

impl Drop for ChildProcess {
    fn drop(&mut self) {
        // Fails only if it has ended by itself.
        let _ended = self.child.kill();
        let _ended = self.child.wait();
    }
}
