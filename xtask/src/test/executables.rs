//! The test programs of the workspace: compiled by one cargo, and run one by one with the environment that cargo gives
//! them.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::build;
use crate::run;
use crate::tally::Tally;

/// Test programs that take minutes, most of them with waiting, longest first: they begin before all others.
const LONG: [&str; 3] = ["stories", "kube", "handover"];

/// Test programs that only compute, longest last.
const COMPUTING: [&str; 6] = ["lb_user", "xtask", "lb_sources", "lb_common", "lb_core", "properties"];

/// A test program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Executable {
    /// Package and target, as in `lb-user stories`.
    pub(crate) name: String,
    package: PathBuf,
    path: PathBuf,
}

/// Compiles all tests of the workspace; the programs in the order in which they begin.
pub(crate) fn compile() -> Result<Vec<Executable>> {
    let mut cargo = build::cargo();
    cargo.args(["test", "--workspace", "--no-run", "--message-format=json-render-diagnostics"]);
    let mut executables = find(&build::messages(&mut cargo)?)?;
    sort(&mut executables);
    Ok(executables)
}

/// Puts programs that wait before programs that compute, the longest of either at the ends.
fn sort(executables: &mut [Executable]) {
    let place = |executable: &Executable| {
        let is = |name: &&str| executable.name.split(' ').nth(1) == Some(*name);
        match (LONG.iter().position(is), COMPUTING.iter().position(is)) {
            (Some(place), _) => place,
            (None, None) => LONG.len(),
            (None, Some(place)) => LONG.len() + 1 + place,
        }
    };
    executables.sort_by_key(place);
}

/// The test programs among the messages of a cargo.
fn find(messages: &[Value]) -> Result<Vec<Executable>> {
    let tests = messages.iter().filter(|message| message["profile"]["test"] == true);
    let executable = |message: &Value| {
        let path = PathBuf::from(message["executable"].as_str()?);
        let package = Path::new(message["manifest_path"].as_str()?).parent()?.to_path_buf();
        let kind = message["target"]["kind"][0].as_str()?;
        let target = message["target"]["name"].as_str()?;
        let folder = package.file_name()?.to_string_lossy();
        let name = if kind == "test" { format!("{folder} {target}") } else { format!("{folder} {target} ({kind})") };
        Some(Executable { name, package, path })
    };
    let found: Vec<Executable> = tests.filter_map(executable).collect();
    if found.is_empty() {
        bail!("cargo has made no test program");
    }
    Ok(found)
}

impl Executable {
    /// The command that runs its tests.
    pub(crate) fn command(&self) -> Command {
        let command = run::program_of(&self.package, &self.path);
        if self.computes() { run::gently(&command) } else { command }
    }

    /// True if it only computes: it may run beside others that wait.
    pub(crate) fn computes(&self) -> bool {
        self.name.split(' ').nth(1).is_some_and(|name| COMPUTING.contains(&name))
    }
}

/// Runs tests and counts them; an error is a program that died without a count.
pub(crate) fn count(command: &mut Command, tally: &mut Tally) -> Result<()> {
    let status =
        run::merged_lines(command, |line| *tally += Tally::parse(line).unwrap_or_default()).context("running tests")?;
    if !status.success() {
        if tally.failed == 0 {
            *tally += Tally::FAIL;
        }
        bail!("ended with {status}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_programs_are_found_among_the_messages() {
        let message = |text: &str| serde_json::from_str(text).unwrap();
        let messages = [
            message(r#"{"reason":"compiler-artifact","profile":{"test":false},"executable":"/t/x"}"#),
            message(
                r#"{"reason":"compiler-artifact","profile":{"test":true},"manifest_path":"/w/a/Cargo.toml",
                    "target":{"kind":["test"],"name":"stories"},"executable":"/t/stories-1"}"#,
            ),
            message(
                r#"{"reason":"compiler-artifact","profile":{"test":true},"manifest_path":"/w/b/Cargo.toml",
                    "target":{"kind":["lib"],"name":"b"},"executable":"/t/b-1"}"#,
            ),
            message(r#"{"reason":"build-finished","success":true}"#),
        ];
        let found = find(&messages).unwrap();
        assert_eq!(found.iter().map(|of| of.name.as_str()).collect::<Vec<_>>(), ["a stories", "b b (lib)"]);
        assert_eq!(found[0].command().get_current_dir(), Some(Path::new("/w/a")));
        assert!(find(&messages[..1]).is_err());
    }

    #[test]
    fn programs_that_wait_come_before_those_that_compute() {
        let executable = |name: &str| Executable { name: name.to_owned(), package: "/w".into(), path: "/t".into() };
        let names = ["core lb_core (lib)", "lb-user properties", "lb-user kube", "lb-user packets", "lb-user stories"];
        let mut executables = names.map(executable);
        sort(&mut executables);
        let sorted = executables.each_ref().map(|of| of.name.as_str());
        let expected =
            ["lb-user stories", "lb-user kube", "lb-user packets", "core lb_core (lib)", "lb-user properties"];
        assert_eq!(sorted, expected);
        let programs = executables.each_ref().map(|of| of.command().get_program().to_owned());
        assert_eq!(programs, ["/t", "/t", "/t", "nice", "nice"]);
    }

    #[test]
    fn a_program_that_dies_without_a_count_has_failed() {
        let mut tally = Tally::default();
        let died = run::in_block(|| count(Command::new("sh").args(["-c", "exit 1"]), &mut tally)).0;
        assert!(died.is_err() && tally == Tally::FAIL);
        let mut tally = Tally::default();
        let line = "echo; echo 'test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured'";
        run::in_block(|| count(Command::new("sh").args(["-c", line]), &mut tally)).0.unwrap();
        assert_eq!(tally, Tally { passed: 3, failed: 0, ignored: 1 });
    }
}
