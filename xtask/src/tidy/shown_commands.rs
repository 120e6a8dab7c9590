//! Commands that documents show exist: verbs of `cargo xtask`, subcommands of `beeline`.

use clap::CommandFactory;

use super::document_links::documents;
use super::layers::is_for_tests;
use super::markdown::lines;
use super::rust_source::{Source, tokens};
use super::tree::Tree;

/// Every command that does not exist.
pub(crate) fn breaches(tree: &Tree) -> Vec<String> {
    let verbs = crate::Cli::command().get_subcommands().map(|verb| verb.get_name().to_owned()).collect::<Vec<_>>();
    let is_cli = |path: &str| path.starts_with("lb-user/") && path.ends_with("cli/mod.rs") && !is_for_tests(path);
    let subcommands: Vec<String> =
        tree.texts().filter(|(path, _)| is_cli(path)).flat_map(|(_, text)| subcommands(text)).collect();
    let mut breaches = Vec::new();
    if subcommands.is_empty() {
        breaches
            .push("no subcommand of beeline is found in the sources; teach xtask's tidy where they are now".to_owned());
    }
    for (path, text) in documents(tree) {
        breaches.extend(unknown(text, &verbs, &subcommands).into_iter().map(|breach| format!("{path}:{breach}")));
    }
    breaches
}

/// Commands of a document that are neither of these verbs nor of these subcommands.
fn unknown(document: &str, verbs: &[String], subcommands: &[String]) -> Vec<String> {
    let mut breaches = Vec::new();
    for line in lines(document) {
        // In prose, a span of code is a command.
        let commands: Vec<&str> =
            if line.is_code { vec![line.text] } else { line.text.split('`').skip(1).step_by(2).collect() };
        for command in commands {
            let unknown = |name: &str, words: Vec<String>, known: &[String]| {
                let is_unknown = move |word: &String| word != "help" && !known.contains(word);
                let unknown = words.into_iter().filter(is_unknown);
                unknown.map(|word| format!("{}: there is no `{name} {word}`", line.number)).collect::<Vec<_>>()
            };
            breaches.extend(unknown("cargo xtask", after(command, &["cargo", "xtask"]), verbs));
            breaches.extend(unknown("beeline", after(command, &["beeline"]), subcommands));
        }
    }
    breaches
}

/// The first word behind a program, wherever the program is called in a line; flags and their values are passed by.
fn after(command: &str, program: &[&str]) -> Vec<String> {
    let words: Vec<&str> = command.split_whitespace().collect();
    let mut found = Vec::new();
    for at in 0..words.len() {
        let is_program = words[at..].len() > program.len()
            && words[at..].iter().zip(program).all(|(word, part)| {
                let name = word.trim_start_matches("$(").rsplit('/').next().unwrap_or_default();
                name == *part
            });
        // A word that names the program as an argument, such as that of `systemctl start beeline`, calls nothing.
        let begins = at == 0 || matches!(words[at - 1], "$" | "#" | "sudo" | "--" | "|" | "&&" | ";" | "exec" | "time");
        if is_program && (begins || words[at].starts_with("$(")) {
            let is_passed = |word: &&&str| word.starts_with(['-', '$', '/']);
            let next = words[at + program.len()..].iter().find(|word| !is_passed(word));
            let is_name = |word: &&&str| word.starts_with(|c: char| c.is_ascii_lowercase());
            let name = |word: &&str| word.trim_end_matches(|c: char| !c.is_ascii_lowercase()).to_owned();
            let is_plain = |word: &String| word.chars().all(|c| c.is_ascii_lowercase() || c == '-');
            found.extend(next.filter(is_name).map(name).filter(is_plain));
        }
    }
    found
}

/// The variants of clap's `Command`, as users write them.
pub(super) fn subcommands(source: &str) -> Vec<String> {
    let code = Source::scan(source).code;
    let Some((_, body)) = code.split_once("enum Command {") else { return Vec::new() };
    let mut depth = 0_usize;
    let mut is_next = true;
    let mut names = Vec::new();
    for (_, token) in tokens(body) {
        match token {
            "}" if depth == 0 => break,
            "{" | "(" | "[" => depth += 1,
            "}" | ")" | "]" => depth -= 1,
            "," if depth == 0 => is_next = true,
            name if depth == 0 && is_next && name.starts_with(|c: char| c.is_ascii_uppercase()) => {
                names.push(kebab(name));
                is_next = false;
            }
            _ => {}
        }
    }
    names
}

fn kebab(name: &str) -> String {
    let mut kebab = String::new();
    for c in name.chars() {
        if c.is_ascii_uppercase() && !kebab.is_empty() {
            kebab.push('-');
        }
        kebab.push(c.to_ascii_lowercase());
    }
    kebab
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subcommands_are_the_variants() {
        let source = "enum Other { No }\nenum Command {\n    /// Runs, Or not.\n\
                      \x20   Run(Box<run::Arguments>),\n    DryRun,\n\
                      \x20   Completions {\n        /// X.\n        shell: Shell,\n    },\n\
                      \x20   Get(get::Arguments),\n}\nenum More { No }\n";
        assert_eq!(subcommands(source), ["run", "dry-run", "completions", "get"]);
    }

    #[test]
    fn commands_exist() {
        let known = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let check = |document: &str, expected: &[&str]| {
            let found = unknown(document, &known(&["test", "build-ebpf"]), &known(&["run", "get", "trace"]));
            assert_eq!(found, expected, "{document}");
        };
        check("`cargo xtask test` and `cargo xtask rest`\n", &["1: there is no `cargo xtask rest`"]);
        check(
            "```\n$ beeline --pins $PINS trace tcp 1\n$ beeline --pins /x show\n```\n",
            &["3: there is no `beeline show`"],
        );
        check("```\ncargo xtask build-ebpf # x\ntarget/image/beeline go\n```\n", &["3: there is no `beeline go`"]);
        check(
            "```\nsystemctl enable --now beeline\nhelm install beeline deploy/chart\nx | beeline get services\n```\n",
            &[],
        );
        check("```\nkubectl exec $pod -- beeline \"$@\"\n```\n`beeline`, `cargo xtask VERB`\n", &[]);
    }
}
