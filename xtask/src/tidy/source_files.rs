//! Rules of single files: a Rust file begins with its job, is not too long and has its examples in tests, nothing
//! unfinished is left, nothing is binary, and each shared dependency says what it is for.

use std::path::Path;

/// A longer file has more than one job.
const LINES: usize = 600;
/// Marks of an unfinished change; in halves, so that this file does not break its own rule.
const UNFINISHED: [&str; 5] = [
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("todo", "!("),
    concat!("unimplemented", "!("),
    concat!("#[", "ignore"),
];

/// Every breach in one file; a binary file has no text.
pub(crate) fn breaches(path: &str, text: Option<&str>) -> Vec<String> {
    let Some(text) = text else { return binary(path) };
    let extension = Path::new(path).extension().and_then(|extension| extension.to_str());
    let found = match extension {
        Some("rs") => rust(text),
        Some("toml") if path == "Cargo.toml" => dependencies(text),
        _ => Vec::new(),
    };
    found.into_iter().map(|breach| format!("{path}: {breach}")).collect()
}

fn binary(path: &str) -> Vec<String> {
    let is_picture = [".png", ".gif", ".webp"].iter().any(|end| path.ends_with(end));
    if is_picture { Vec::new() } else { vec![format!("{path}: is binary: the tree holds sources only")] }
}

fn rust(text: &str) -> Vec<String> {
    let mut breaches = Vec::new();
    // Attributes for the compiler, and the licence, may stand before the sentence.
    let mut head =
        text.lines().filter(|line| !line.starts_with("#![") && !line.starts_with("// SPDX-") && !line.is_empty());
    if !head.next().is_some_and(|line| line.starts_with("//! ")) {
        breaches.push("does not begin with `//!` and a sentence that says its one job".to_owned());
    }
    let lines = text.lines().count();
    if lines > LINES {
        breaches.push(format!("has {lines} lines, and {LINES} are the most: split it"));
    }
    for (number, line) in (1..).zip(text.lines()) {
        let found = UNFINISHED.iter().filter(|word| line.contains(**word));
        breaches.extend(found.map(|word| format!("line {number} has {word}: finish it, or open an issue")));
    }
    breaches.extend(examples(text));
    breaches
}

/// Code in doc comments: to compile it takes half a minute for all crates, so none has any.
fn examples(text: &str) -> Vec<String> {
    let mut is_open = false;
    let mut breaches = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim_start();
        let Some(fence) = ["///", "//!"].iter().find_map(|mark| line.strip_prefix(mark)?.trim().strip_prefix("```"))
        else {
            continue;
        };
        is_open = !is_open;
        if is_open && fence != "text" {
            breaches.push(format!(
                "line {number} has an example, which no check compiles: make it a test, or mark it `text`"
            ));
        }
    }
    breaches
}

/// Every shared dependency, or group of them, has a comment right above it that says what it is for.
fn dependencies(manifest: &str) -> Vec<String> {
    let section = manifest.lines().skip_while(|line| line.trim() != "[workspace.dependencies]").skip(1);
    let mut breaches = Vec::new();
    let mut is_explained = false;
    for line in section.take_while(|line| !line.starts_with('[')) {
        let name = line.split_once([' ', '=', '.']).map_or("", |(name, _)| name);
        if line.starts_with('#') {
            is_explained = true;
        } else if line.trim().is_empty() {
            is_explained = false;
        } else if !name.is_empty() && !is_explained && !line.contains("path = ") {
            breaches.push(format!("dependency {name} has no comment above that says what it is for"));
        }
    }
    breaches
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(path: &str, text: &str, expected: &[&str]) {
        let breaches = breaches(path, (!text.contains('\0')).then_some(text));
        assert_eq!(breaches.len(), expected.len(), "{breaches:?}");
        for (breach, part) in breaches.iter().zip(expected) {
            assert!(breach.contains(part), "{breach} is not about {part}");
        }
    }

    #[test]
    fn a_rust_file_begins_with_its_job() {
        check("a.rs", "//! Does one thing.\n", &[]);
        check("a.rs", "// SPDX-License-Identifier: MIT\n#![no_std]\n\n//! Does one thing.\n", &[]);
        check("a.rs", "use std::fs;\n//! Too late.\n", &["`//!`"]);
        check("a.rs", "", &["`//!`"]);
    }

    #[test]
    fn a_long_file_is_split() {
        let text = |lines: usize| "//! x\n".repeat(lines);
        check("a.rs", &text(LINES), &[]);
        check("a.rs", &text(LINES + 1), &["split"]);
    }

    #[test]
    fn nothing_unfinished_is_left() {
        for word in UNFINISHED {
            check("a.rs", &format!("//! x\n// {word}\n"), &["line 2"]);
        }
    }

    #[test]
    fn an_example_is_a_test() {
        let text = |mark: &str| format!("//! x\n\n/// ```{mark}\n/// a -> b\n/// ```\nfn f() {{}}\n");
        check("a.rs", &text("text"), &[]);
        check("a.rs", &text(""), &["line 3"]);
        check("a.rs", &text("no_run"), &["line 3"]);
    }

    #[test]
    fn only_pictures_may_be_binary() {
        check("docs/a.png", "\0", &[]);
        check("a.o", "\0", &["binary"]);
    }

    #[test]
    fn a_dependency_says_what_it_is_for() {
        let manifest =
            |body: &str| format!("[workspace]\n[workspace.dependencies]\n{body}[profile.release]\nlto = true\n");
        check("Cargo.toml", &manifest("own = { path = \"own\" }\n# Errors.\na = \"1\"\nb = \"1\"\n"), &[]);
        check("Cargo.toml", &manifest("# Errors.\na = \"1\"\n\nb.version = \"1\"\n"), &["dependency b"]);
        check("lb-x/Cargo.toml", &manifest("a = \"1\"\n"), &[]);
    }
}
