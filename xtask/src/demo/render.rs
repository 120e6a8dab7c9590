//! The output of the demo: headings, commands with their output, diagrams and bars; and the count of its checks.

use std::io::IsTerminal;

use anyhow::{Result, ensure};

use crate::run;

/// Writes to stdout, in colour on a terminal.
pub(super) struct Renderer {
    has_colour: bool,
    checks: u32,
}

impl Renderer {
    pub(super) fn new() -> Self {
        let is_wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { has_colour: is_wanted && std::io::stdout().is_terminal(), checks: 0 }
    }

    /// Number of checks that passed.
    pub(super) fn checks(&self) -> u32 {
        self.checks
    }

    /// Begins a section.
    pub(super) fn heading(&self, text: &str) {
        run::print("");
        run::print(&self.in_colour("1;36", &format!("== {text}")));
    }

    /// Prints lines of text.
    pub(super) fn text(&self, text: &str) {
        text.lines().for_each(|line| run::print(format!("   {line}").trim_end()));
    }

    /// Prints a command as a shell would take it.
    pub(super) fn command(&self, words: &[&str]) {
        let quote = |word: &&str| {
            let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=%$,@".contains(c);
            if word.chars().all(is_plain) { (*word).to_owned() } else { format!("'{word}'") }
        };
        let line = words.iter().map(quote).collect::<Vec<_>>().join(" ");
        run::print(&self.in_colour("1", &format!("   $ {line}")));
    }

    /// Prints the output of a command.
    pub(super) fn output(&self, text: &str) {
        text.lines().for_each(|line| run::print(format!("     {line}").trim_end()));
    }

    /// Counts a check, and fails unless it holds.
    pub(super) fn check(&mut self, holds: bool, what: &str) -> Result<()> {
        ensure!(holds, "check failed: {what}");
        self.checks += 1;
        Ok(())
    }

    fn in_colour(&self, code: &str, text: &str) -> String {
        if self.has_colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// Draws arrows from `client` through `vip` to each of `backends`.
pub(super) fn diagram(client: &str, vip: &str, backends: &[String]) -> String {
    let left = format!("{client:<4} --> {vip:<27} --");
    let indent = " ".repeat(left.len());
    match backends {
        [] => format!("{left}x  no backend"),
        [only] => format!("{left}---> {only}"),
        [first, others @ ..] => {
            let others = others.iter().map(|backend| format!("\n{indent}+--> {backend}"));
            format!("{left}+--> {first}{}", others.collect::<String>())
        }
    }
}

/// Draws a bar for `count` of `total`; all of them are 40 characters.
pub(super) fn bar(name: &str, count: usize, total: usize) -> String {
    let len = (count * 40).checked_div(total).unwrap_or(0);
    format!("{name:<28} {count:>3} {}", "#".repeat(len))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_diagram_has_a_line_for_each_backend() {
        let draw =
            |backends: &[&str]| diagram("curl", "v", &backends.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert!(draw(&["a"]).ends_with(" -----> a"));
        let two = draw(&["a", "b"]);
        let columns: Vec<_> = two.lines().map(|line| line.find('+')).collect();
        assert_eq!((columns.len(), columns[0]), (2, columns[1]));
        assert!(draw(&[]).ends_with("no backend"));
    }

    #[test]
    fn a_bar_is_proportional_to_its_share() {
        assert!(bar("a", 50, 100).ends_with(&format!(" 50 {}", "#".repeat(20))));
        assert!(bar("a", 0, 0).ends_with("0 "));
    }
}
