//! Child processes: run, capture or stream a process, with clean environments and announced steps. Knows no tool but
//! cargo.
//!
//! Steps print as they go. Within `in_block` the output of a thread is kept instead, so that steps can run beside each
//! other.

use std::cell::RefCell;
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::workspace;

thread_local! {
    /// The output of this thread, while it is in a block.
    static BLOCK: RefCell<Option<Vec<u8>>> = const { RefCell::new(None) };
}

/// Does `work` and returns its output as well: that of this thread's steps and of the processes that it waits for.
pub(crate) fn in_block<T>(work: impl FnOnce() -> T) -> (T, String) {
    BLOCK.with_borrow_mut(|block| *block = Some(Vec::new()));
    let result = work();
    let block = BLOCK.with_borrow_mut(Option::take).unwrap_or_default();
    (result, String::from_utf8_lossy(&block).into_owned())
}

/// Announces `what`, does it, and says how long it took.
pub(crate) fn step<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    note(&format!("==> {what}"));
    let start = Instant::now();
    let result = work();
    let seconds = start.elapsed().as_secs_f64();
    match &result {
        Ok(_) => note(&format!("    {what}: done in {seconds:.1} s")),
        Err(_) => note(&format!("    {what}: FAILED after {seconds:.1} s")),
    }
    result
}

/// Runs to the end and fails unless it succeeds. Its output goes to our stderr: stdout is for results.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = if is_in_block() {
        merged_lines(command, |_| ())?
    } else {
        command.stdin(Stdio::null()).stdout(std::io::stderr());
        command.status().with_context(|| format!("starting {}", show(command)))?
    };
    if !status.success() {
        bail!("{} ended with {status}", show(command));
    }
    Ok(())
}

/// Runs to the end and returns its stdout; its stderr is shown only when it fails.
pub(crate) fn capture(command: &mut Command) -> Result<String> {
    command.stdin(Stdio::null());
    let output = command.output().with_context(|| format!("starting {}", show(command)))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("{} ended with {}: {}", show(command), output.status, stderr.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs to the end, hands every line of stdout to `on_line` as it comes, and leaves stderr alone.
pub(crate) fn stream(command: &mut Command, mut on_line: impl FnMut(&str)) -> Result<ExitStatus> {
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("starting {}", show(command)))?;
    let stdout = child.stdout.take().context("a child without the stdout that we piped")?;
    for line in BufReader::new(stdout).split(b'\n') {
        let line = line.with_context(|| format!("reading from {}", show(command)))?;
        on_line(&String::from_utf8_lossy(&line));
    }
    child.wait().with_context(|| format!("waiting for {}", show(command)))
}

/// Runs to the end, with stdout and stderr as one output, which goes where notes go; every line is handed to `on_line`
/// as well.
pub(crate) fn merged_lines(command: &mut Command, mut on_line: impl FnMut(&str)) -> Result<ExitStatus> {
    let (reader, writer) = std::io::pipe().context("making a pipe")?;
    let again = writer.try_clone().context("making a pipe")?;
    command.stdin(Stdio::null()).stdout(writer).stderr(again);
    let child = command.spawn().with_context(|| format!("starting {}", show(command)));
    // The command's own ends of the pipe would keep it open.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = child?;
    for line in BufReader::new(reader).split(b'\n') {
        let line = line.with_context(|| format!("reading from {}", show(command)))?;
        let line = String::from_utf8_lossy(&line);
        note(&line);
        on_line(&line);
    }
    child.wait().with_context(|| format!("waiting for {}", show(command)))
}

/// The same command with less of a claim on the cores: for compilers beside tests that watch the clock.
pub(crate) fn gently(command: &Command) -> Command {
    let mut gentle = Command::new("nice");
    gentle.args(["-n", "10"]).arg(command.get_program()).args(command.get_args());
    if let Some(dir) = command.get_current_dir() {
        gentle.current_dir(dir);
    }
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => gentle.env(name, value),
            None => gentle.env_remove(name),
        };
    }
    gentle
}

/// Tells people something, on stderr.
pub(crate) fn note(line: &str) {
    if is_in_block() {
        add(line.as_bytes());
        add(b"\n");
    } else {
        eprintln!("{line}");
    }
}

/// Prints a line to stdout; a reader that has gone away is no error of ours.
pub(crate) fn print(line: &str) {
    let mut out = std::io::stdout().lock();
    drop(writeln!(out, "{line}"));
    drop(out.flush());
}

fn is_in_block() -> bool {
    BLOCK.with_borrow(Option::is_some)
}

fn add(bytes: &[u8]) {
    BLOCK.with_borrow_mut(|block| block.get_or_insert_default().extend(bytes));
}

/// Cargo of the toolchain that runs xtask, working on the workspace.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace::root());
    remove_env(&mut command, is_about_one_crate);
    command.env("CARGO_TARGET_DIR", workspace::target_dir());
    command
}

/// A program of a crate, with the environment that `cargo test` gives it.
pub(crate) fn program_of(package: &Path, program: &Path) -> Command {
    let mut command = Command::new(program);
    remove_env(&mut command, is_about_one_crate);
    command.current_dir(package).env("CARGO_MANIFEST_DIR", package);
    command.env("CARGO", std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.env("CARGO_TARGET_DIR", workspace::target_dir());
    command
}

/// A cargo that has nothing to do with the toolchain that runs xtask.
pub(crate) fn foreign_cargo(program: &Path) -> Command {
    let mut command = Command::new(program);
    remove_env(&mut command, |name| is_about_one_crate(name) || is_about_a_toolchain(name));
    command
}

/// The program `name` in PATH or, for those whose PATH lacks them, in one of the `others`.
pub(crate) fn find(name: &str, others: &[PathBuf]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).chain(others.iter().cloned()).map(|dir| dir.join(name)).find(|file| file.is_file())
}

fn show(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

fn remove_env(command: &mut Command, unwanted: impl Fn(&str) -> bool) {
    let names: Vec<OsString> = std::env::vars_os().map(|(name, _)| name).collect();
    for name in names.iter().filter(|name| name.to_str().is_some_and(&unwanted)) {
        command.env_remove(name);
    }
}

/// Variables of `cargo run` about xtask itself: build scripts of other crates must not see them.
fn is_about_one_crate(name: &str) -> bool {
    const NAMES: [&str; 6] =
        ["CARGO", "OUT_DIR", "CARGO_CRATE_NAME", "CARGO_BIN_NAME", "CARGO_PRIMARY_PACKAGE", "CARGO_MANIFEST_PATH"];
    NAMES.contains(&name) || name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_DIR")
}

/// Variables that choose or change a compiler: rustup's choice, wrappers, flags, its libraries, its target directory.
fn is_about_a_toolchain(name: &str) -> bool {
    const NAMES: [&str; 9] = [
        "CARGO_ENCODED_RUSTFLAGS",
        "CARGO_TARGET_DIR",
        "LD_LIBRARY_PATH",
        "RUSTC",
        "RUSTC_BOOTSTRAP",
        "RUSTDOC",
        "RUSTDOCFLAGS",
        "RUSTFLAGS",
        "RUSTUP_TOOLCHAIN",
    ];
    let prefixes = ["CARGO_BUILD_", "CARGO_PROFILE_", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER"];
    NAMES.contains(&name) || (prefixes.iter().any(|prefix| name.starts_with(prefix)) && name != "CARGO_BUILD_JOBS")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_foreign_cargo_keeps_the_users_registry_and_loses_the_toolchain() {
        let lost = |name: &str| is_about_one_crate(name) || is_about_a_toolchain(name);
        for name in ["CARGO", "RUSTC", "RUSTFLAGS", "RUSTUP_TOOLCHAIN", "CARGO_BUILD_TARGET", "CARGO_PKG_NAME"] {
            assert!(lost(name), "{name}");
        }
        for name in ["CARGO_HOME", "CARGO_NET_OFFLINE", "CARGO_REGISTRIES_X_TOKEN", "CARGO_BUILD_JOBS", "PATH"] {
            assert!(!lost(name), "{name}");
        }
    }

    #[test]
    fn a_stream_hands_over_lines_and_the_exit_code() {
        let mut lines = Vec::new();
        let status =
            stream(Command::new("sh").args(["-c", "echo a; echo b; exit 3"]), |line| lines.push(line.to_owned()));
        assert_eq!(status.unwrap().code(), Some(3));
        assert_eq!(lines, ["a", "b"]);
    }

    #[test]
    fn a_block_keeps_the_output_of_its_steps() {
        let (result, output) =
            in_block(|| step("x", || run(Command::new("sh").args(["-c", "echo a; echo b >&2; echo c; exit 1"]))));
        assert!(result.is_err());
        assert!(output.starts_with("==> x\na\nb\nc\n    x: FAILED after "), "{output}");
        assert!(!is_in_block());
    }

    #[test]
    fn a_gentle_command_is_the_same_command() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo $X:$HOME; pwd"]).env("X", "y z").env_remove("HOME").current_dir("/");
        assert_eq!(capture(&mut gently(&command)).unwrap(), "y z:\n/\n");
    }

    #[test]
    fn a_failure_names_the_command_and_what_it_said() {
        let error = capture(Command::new("sh").args(["-c", "echo no such luck >&2; exit 1"])).unwrap_err();
        assert!(error.to_string().contains("no such luck"), "{error}");
    }
}
