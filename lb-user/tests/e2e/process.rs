//! Programs of the cluster: run to their end, or kept running with a log each.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// A program that runs until it is dropped, and is killed then.
pub struct Running {
    child: Child,
}

impl Running {
    /// Starts it; what it says goes to `log`, which is added to.
    pub fn start(command: &mut Command, log: &Path) -> Self {
        let output = File::options().create(true).append(true).open(log).expect("a log file");
        command.stdin(Stdio::null()).stdout(output.try_clone().unwrap()).stderr(output);
        let child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Self { child }
    }

    /// Its process id, as this process sees it.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _ended = self.child.wait();
    }
}

/// What a program says that ends well; `Err` is what it said otherwise.
pub fn try_run(command: &mut Command) -> Result<String, String> {
    let output = command.stdin(Stdio::null()).output().map_err(|error| format!("{command:?}: {error}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() {
        Ok(text(&output.stdout))
    } else {
        Err(format!("{command:?} ended with {}: {}{}", output.status, text(&output.stdout), text(&output.stderr)))
    }
}

/// The same for one that must end well.
#[track_caller]
pub fn run(program: &str, arguments: &[&str]) -> String {
    try_run(Command::new(program).args(arguments)).unwrap_or_else(|error| panic!("{error}"))
}

/// A program in a network namespace of the cluster.
pub fn within(namespace: &str, program: impl AsRef<Path>) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/run/netns/{namespace}")).arg(program.as_ref());
    command
}

/// Waits until something is so, for at most `seconds`; the last reason why it is not, otherwise.
#[track_caller]
pub fn until<T>(what: &str, seconds: u64, mut is_so: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    loop {
        match is_so() {
            Ok(value) => return value,
            Err(reason) if Instant::now() > deadline => panic!("not within {seconds} s: {what}: {reason}"),
            Err(_) => std::thread::sleep(Duration::from_millis(200)),
        }
    }
}

/// A program of the cluster's assets, which `cargo xtask e2e` names.
pub fn asset(name: &str) -> PathBuf {
    let dir = std::env::var_os("BEELINE_CLUSTER_ASSETS").expect("BEELINE_CLUSTER_ASSETS: run `cargo xtask e2e`");
    PathBuf::from(dir).join(name)
}
