//! A small emulated machine: boots a kernel with a root in memory, shows its console, and reads the result.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::tally::Tally;
use crate::{kernel_cache, run};

/// Init prints this and the kernel's release.
pub(crate) const RELEASE: &str = "BEELINE-VM-RELEASE ";
/// Init prints this and the exit code of the stories, last of all.
pub(crate) const EXIT: &str = "BEELINE-VM-EXIT ";

/// A machine that has not ended by then is switched off.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(5400);

/// The end of a machine.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// The kernel's release, empty if it never came so far.
    pub(crate) release: String,
    /// The count of the stories.
    pub(crate) tally: Tally,
    /// Features that this kernel lacks, by the stories' output.
    pub(crate) lacks: Vec<String>,
    /// Rows of the table of lb-user/tests/stories/verifier.rs.
    pub(crate) verified: Vec<String>,
    /// Exit code of the commands; nothing if they never ended.
    pub(crate) exit: Option<i32>,
}

impl Outcome {
    fn read(&mut self, line: &str) {
        if let Some(release) = line.strip_prefix(RELEASE) {
            release.clone_into(&mut self.release);
        } else if let Some(code) = line.strip_prefix(EXIT) {
            self.exit = code.trim().parse().ok();
        } else if let Some(row) = line.strip_prefix("VERIFIED ") {
            self.verified.push(row.to_owned());
        } else if let Some(lack) = line.strip_prefix("LACKS ") {
            if !self.lacks.iter().any(|known| known == lack) {
                self.lacks.push(lack.to_owned());
            }
        } else if let Some(tally) = Tally::parse(line) {
            self.tally += tally;
        }
    }
}

/// Boots, shows the console as it comes, and waits until the machine is off or its time is over.
pub(crate) fn boot(vmlinuz: &Path, initrd: &Path) -> Result<Outcome> {
    let (program, _) = kernel_cache::emulator();
    // The machine ends with the process that starts it.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", program]);
    let (console, cpu) = match std::env::consts::ARCH {
        "aarch64" => {
            command.args(["-machine", "virt"]);
            ("ttyAMA0", "max")
        }
        _ => ("ttyS0", "max,la57=off,erms=off,fsrm=off"),
    };
    // Emulated in software: a build machine's /dev/kvm may be there and not work. A panic reboots at once, and a reboot
    // ends the emulator. The processor's random numbers are trusted, or the first wait for them would be long.
    // Mitigations of speculation and page tables of five levels would cost a sixth of the time here; copies by `rep
    // movsb`, which are octet by octet here, a third.
    let append = format!("console={console} quiet panic=-1 random.trust_cpu=on mitigations=off");
    command
        .args(["-accel", "tcg,thread=multi", "-cpu", cpu, "-smp", "2", "-m", "2G", "-no-reboot", "-nodefaults"])
        .args(["-no-user-config", "-display", "none", "-serial", "stdio", "-append", &append])
        .arg("-kernel")
        .arg(vmlinuz)
        .arg("-initrd")
        .arg(initrd)
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("starting {program}"))?;
    let outcome = watch(&mut child);
    // The machine is over or overdue; either way it must not stay.
    drop(child.kill());
    child.wait().with_context(|| format!("waiting for {program}"))?;
    outcome
}

fn watch(child: &mut Child) -> Result<Outcome> {
    let stdout = child.stdout.take().context("a child without the stdout that we piped")?;
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
            if sender.send(printable(&String::from_utf8_lossy(&line))).is_err() {
                break;
            }
        }
    });
    Ok(follow(&lines, Instant::now() + TIMEOUT))
}

fn follow(lines: &Receiver<String>, deadline: Instant) -> Outcome {
    let mut outcome = Outcome::default();
    // Ends with the machine's output or with its time, whichever is first.
    while let Ok(line) = lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        outcome.read(&line);
        if !line.is_empty() {
            run::print(&format!("    | {line}"));
        }
    }
    outcome
}

/// A line of a serial console without escape sequences, carriage returns and bells.
fn printable(line: &str) -> String {
    let mut out = String::new();
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match c {
            // A sequence `ESC [ … letter`, or `ESC letter`.
            '\u{1b}' => {
                if chars.next() == Some('[') {
                    chars.by_ref().find(|c| ('@'..='~').contains(c));
                }
            }
            '\t' => out.push(c),
            c if c.is_control() => {}
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_console_is_stripped_to_its_text() {
        assert_eq!(printable("\u{1b}c\u{1b}[?7l\u{1b}[2J\u{1b}[0mtest a ... \u{1b}[32mok\u{1b}[0m\r"), "test a ... ok");
    }

    #[test]
    fn an_outcome_is_read_from_the_lines() {
        let mut outcome = Outcome::default();
        for line in [
            "BEELINE-VM-RELEASE 5.10.0",
            "LACKS tcx",
            "LACKS tcx",
            "VERIFIED 5.10 connect4 7",
            "test result: FAILED. 2 passed; 1 failed",
            "BEELINE-VM-EXIT 101",
        ] {
            outcome.read(line);
        }
        let tally = Tally { passed: 2, failed: 1, ignored: 0 };
        assert_eq!(
            outcome,
            Outcome {
                release: "5.10.0".into(),
                tally,
                lacks: vec!["tcx".into()],
                verified: vec!["5.10 connect4 7".into()],
                exit: Some(101),
            }
        );
    }

    #[test]
    fn a_machine_that_says_nothing_is_given_up() {
        let (_sender, lines) = channel();
        assert_eq!(follow(&lines, Instant::now()), Outcome::default());
    }
}
