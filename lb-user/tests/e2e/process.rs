//! Programs that run to their end, and the paths of the cluster's programs.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// Runs a program and returns its standard output, or all of its output if it fails.
pub fn try_run(command: &mut Command) -> Result<String, String> {
    let output = command.stdin(Stdio::null()).output().map_err(|error| format!("{command:?}: {error}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() {
        Ok(text(&output.stdout))
    } else {
        Err(format!("{command:?} ended with {}: {}{}", output.status, text(&output.stdout), text(&output.stderr)))
    }
}

/// Runs a program that must succeed, and returns its standard output.
#[track_caller]
pub fn run(program: &str, arguments: &[&str]) -> String {
    try_run(Command::new(program).args(arguments)).unwrap_or_else(|error| panic!("{error}"))
}

/// A command in a network namespace of the cluster.
pub fn within(namespace: &str, program: impl AsRef<Path>) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/run/netns/{namespace}")).arg(program.as_ref());
    command
}

/// Waits until `is_so` succeeds, for at most `seconds`; panics with its last error.
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

/// The path of a program in the assets, whose directory `cargo xtask e2e` sets.
pub fn asset(name: &str) -> PathBuf {
    let dir = std::env::var_os("BEELINE_CLUSTER_ASSETS").expect("BEELINE_CLUSTER_ASSETS: run `cargo xtask e2e`");
    PathBuf::from(dir).join(name)
}
