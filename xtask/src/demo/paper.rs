//! What the demo prints: headings, commands with their output, pictures and bars; and the count of what was claimed.

use std::io::IsTerminal;

use anyhow::{Result, ensure};

use crate::run;

/// Where the demo writes.
pub(super) struct Paper {
    has_colour: bool,
    claims: u32,
}

impl Paper {
    pub(super) fn new() -> Self {
        let is_wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { has_colour: is_wanted && std::io::stdout().is_terminal(), claims: 0 }
    }

    /// How many claims held.
    pub(super) fn claims(&self) -> u32 {
        self.claims
    }

    /// Begins a section.
    pub(super) fn heading(&self, text: &str) {
        run::print("");
        run::print(&self.in_colour("1;36", &format!("== {text}")));
    }

    /// A sentence, or several lines.
    pub(super) fn say(&self, text: &str) {
        text.lines().for_each(|line| run::print(format!("   {line}").trim_end()));
    }

    /// A command, as it could be typed.
    pub(super) fn command(&self, words: &[&str]) {
        let quote = |word: &&str| {
            let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=%$,@".contains(c);
            if word.chars().all(is_plain) { (*word).to_owned() } else { format!("'{word}'") }
        };
        let line = words.iter().map(quote).collect::<Vec<_>>().join(" ");
        run::print(&self.in_colour("1", &format!("   $ {line}")));
    }

    /// What a command printed.
    pub(super) fn output(&self, text: &str) {
        text.lines().for_each(|line| run::print(format!("     {line}").trim_end()));
    }

    /// Counts something that was shown or said, and fails if it is not so.
    pub(super) fn claim(&mut self, is_so: bool, what: &str) -> Result<()> {
        ensure!(is_so, "the demo claims something that is not so: {what}");
        self.claims += 1;
        Ok(())
    }

    fn in_colour(&self, code: &str, text: &str) -> String {
        if self.has_colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// An arrow from `client` by way of `vip` to each of `backends`.
pub(super) fn picture(client: &str, vip: &str, backends: &[String]) -> String {
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

/// A bar for `count` of `total`, as long as 40 characters for all of them.
pub(super) fn bar(name: &str, count: usize, total: usize) -> String {
    let len = (count * 40).checked_div(total).unwrap_or(0);
    format!("{name:<28} {count:>3} {}", "#".repeat(len))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_has_a_line_for_each_backend() {
        let draw =
            |backends: &[&str]| picture("curl", "v", &backends.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert!(draw(&["a"]).ends_with(" -----> a"));
        let two = draw(&["a", "b"]);
        let columns: Vec<_> = two.lines().map(|line| line.find('+')).collect();
        assert_eq!((columns.len(), columns[0]), (2, columns[1]));
        assert!(draw(&[]).ends_with("no backend"));
    }

    #[test]
    fn a_bar_is_as_long_as_its_share() {
        assert!(bar("a", 50, 100).ends_with(&format!(" 50 {}", "#".repeat(20))));
        assert!(bar("a", 0, 0).ends_with("0 "));
    }
}
