//! Verb `tidy`: rules of the tree that no compiler checks, on every file that git knows or would add, and on what the
//! documents say of the code.

use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

use crate::{run, workspace};

/// A longer file has more than one job.
const LINES: usize = 600;
/// What an unfinished change leaves behind; in halves, so that this file does not break its own rule.
const UNFINISHED: [&str; 5] = [
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("todo", "!("),
    concat!("unimplemented", "!("),
    concat!("#[", "ignore"),
];

/// The words that stand beside the code. The first has the rows.
const DOCUMENTS: [&str; 4] = ["README.md", "ARCHITECTURE.md", "CHANGELOG.md", "SECURITY.md"];
/// Of these, those that name tests, and how their rows begin.
const PROMISES: [(&str, &[&str]); 2] =
    [(DOCUMENTS[1], &["| I"]), (DOCUMENTS[3], &["| CVE-", "| cilium#", "| Cloudflare "])];
/// Each directory in it is a test as well.
const SCENARIOS: &str = "lb-user/tests/scenarios";
/// The files whose names need a row in the first document, what those names are, and how they are found.
const NAMED: [(&str, &str, NamesOf); 7] = [
    ("lb-ebpf/src/maps.rs", "map", maps),
    ("lb-ebpf/src/packet/scratch.rs", "map", maps),
    ("lb-ebpf/src/log.rs", "map", maps),
    ("lb-common/src/layout/counters.rs", "counter", counters),
    ("lb-user/src/cli/run.rs", "flag", flags),
    ("lb-user/src/cli/meaning.rs", "flag", flags),
    ("lb-user/src/metrics/families.rs", "metric", metrics),
];

type NamesOf = fn(&str) -> Vec<String>;

/// Runs the verb.
pub(crate) fn main() -> Result<ExitCode> {
    run::step("tidy", check)?;
    Ok(ExitCode::SUCCESS)
}

/// Fails with every breach of a rule, one a line.
pub(crate) fn check() -> Result<()> {
    let root = workspace::root();
    let listing = ["ls-files", "-z", "--cached", "--others", "--exclude-standard"];
    let listing = run::capture(Command::new("git").arg("-C").arg(&root).args(listing))?;
    let mut breaches = Vec::new();
    let mut sources = String::new();
    for path in listing.split('\0').filter(|path| !path.is_empty()) {
        // A file that is deleted and not committed is still listed; a link's end is listed itself.
        let file = root.join(path);
        if file.is_symlink() || !file.is_file() {
            continue;
        }
        let bytes = std::fs::read(&file).with_context(|| format!("reading {path}"))?;
        breaches.extend(breaches_of(path, &bytes).into_iter().map(|breach| format!("{path}: {breach}")));
        if path.ends_with(".rs") {
            sources += &String::from_utf8_lossy(&bytes);
        }
    }
    breaches.extend(documents(&root)?);
    let is_test = |name: &str| is_named(&sources, name) || root.join(SCENARIOS).join(name).is_dir();
    for (path, beginnings) in PROMISES {
        let promises = std::fs::read_to_string(root.join(path)).unwrap_or_default();
        let unshown = unshown(&promises, beginnings, is_test);
        breaches.extend(unshown.iter().map(|breach| format!("{path}: {breach}")));
    }
    if breaches.is_empty() {
        return Ok(());
    }
    bail!("{} breaches of the tree's rules:\n{}", breaches.len(), breaches.join("\n"));
}

fn breaches_of(path: &str, bytes: &[u8]) -> Vec<String> {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return binary(path);
    };
    if text.contains('\0') {
        return binary(path);
    }
    let extension = Path::new(path).extension().and_then(|extension| extension.to_str());
    match extension {
        Some("rs") => rust(text),
        Some("toml") if path == "Cargo.toml" => dependencies(text),
        _ => Vec::new(),
    }
}

fn binary(path: &str) -> Vec<String> {
    let is_picture = [".png", ".gif", ".webp"].iter().any(|end| path.ends_with(end));
    if is_picture { Vec::new() } else { vec!["is binary: the tree holds sources only".to_owned()] }
}

fn rust(text: &str) -> Vec<String> {
    let mut breaches = Vec::new();
    // What the compiler wants on top, and the licence, may stand before the sentence.
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

/// The documents are there, lead nowhere in vain, and have a row for each thing that a user can name.
fn documents(root: &Path) -> Result<Vec<String>> {
    let mut breaches = Vec::new();
    for path in DOCUMENTS {
        let Ok(text) = std::fs::read_to_string(root.join(path)) else {
            breaches.push(format!("{path}: is missing"));
            continue;
        };
        let links = dead_links(&text, |file| root.join(file).exists());
        breaches.extend(links.iter().map(|link| format!("{path}: {link}")));
    }
    let rows = std::fs::read_to_string(root.join(DOCUMENTS[0])).unwrap_or_default();
    for (path, what, names_of) in NAMED {
        let source = std::fs::read_to_string(root.join(path)).with_context(|| format!("reading {path}"))?;
        let names = names_of(&source);
        if names.is_empty() {
            breaches.push(format!("{path}: no {what} is found in it; teach xtask's tidy where they are now"));
        }
        let missing = names.iter().filter(|name| !has_row(&rows, name));
        breaches.extend(missing.map(|name| format!("{}: no row for the {what} `{name}` of {path}", DOCUMENTS[0])));
    }
    Ok(breaches)
}

/// Whether a table has a row whose first cell begins with `name`, as code, alone or before a value.
fn has_row(document: &str, name: &str) -> bool {
    let cell = |line: &str| Some(line.strip_prefix("| `")?.split_once('`')?.0.to_owned());
    document.lines().filter_map(cell).any(|cell| cell.split(' ').next() == Some(name))
}

/// The statics below `#[btf_map]`.
fn maps(source: &str) -> Vec<String> {
    let after = source.split("#[btf_map]").skip(1);
    let name = |text: &str| Some(text.trim_start().strip_prefix("pub static ")?.split_once(':')?.0.to_owned());
    after.filter_map(name).collect()
}

/// What `Counter::name` returns.
fn counters(source: &str) -> Vec<String> {
    let body = source.split_once("impl Counter {").map_or("", |(_, rest)| rest);
    let body = body.split_once("\n}").map_or("", |(body, _)| body);
    let name = |line: &str| line.trim().strip_prefix("Self::")?.split('"').nth(1).map(str::to_owned);
    body.lines().filter_map(name).collect()
}

/// The fields of clap's `Arguments` that have a long form: its name is theirs.
fn flags(source: &str) -> Vec<String> {
    let body = source.split_once("#[derive(Args)]").and_then(|(_, rest)| rest.split_once(" {\n"));
    let body = body.map_or("", |(_, rest)| rest);
    let body = body.split_once("\n}").map_or("", |(body, _)| body);
    let name = |field: &str| {
        let (attribute, rest) = field.split_once(")]\n")?;
        let is_long = attribute.split([',', ' ', '(']).any(|word| word.trim() == "long");
        is_long.then_some(())?;
        let field = rest.trim_start().split_once(": ")?.0;
        Some(format!("--{}", field.rsplit(' ').next()?.replace('_', "-")))
    };
    body.split("#[arg(").skip(1).filter_map(name).collect()
}

/// Texts that are whole names of metrics.
fn metrics(source: &str) -> Vec<String> {
    let is_metric = |text: &&str| {
        let is_ours = text.starts_with("beeline_") || text.starts_with("kubeproxy_");
        is_ours && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    source.split('"').filter(is_metric).map(str::to_owned).collect()
}

/// Rows that promise something and show it by no test, or by one that is not there. The last cell has the tests: code of
/// three words or more, or with a dash, is the name of one.
fn unshown(document: &str, beginnings: &[&str], is_test: impl Fn(&str) -> bool) -> Vec<String> {
    let mut breaches = Vec::new();
    for row in document.lines().filter(|line| beginnings.iter().any(|beginning| line.starts_with(beginning))) {
        let cells: Vec<&str> = row.trim().trim_matches('|').split(" | ").map(str::trim).collect();
        let [first, .., last] = cells.as_slice() else { continue };
        let is_name =
            |name: &&str| !name.contains([' ', '/', ':']) && (name.matches('_').count() > 1 || name.contains('-'));
        let names = || last.split('`').skip(1).step_by(2).filter(is_name);
        if names().next().is_none() && !last.contains("property tests") {
            breaches.push(format!("{first} is shown by no test"));
        }
        breaches.extend(names().filter(|name| !is_test(name)).map(|name| format!("no test is called {name}")));
    }
    breaches
}

/// Whether a source has a test of that name.
fn is_named(sources: &str, name: &str) -> bool {
    sources.contains(&format!("fn {name}(")) || sources.contains(&format!("\"{name}\""))
}

/// Links to files that are not there, and to headings that this document does not have.
fn dead_links(document: &str, exists: impl Fn(&str) -> bool) -> Vec<String> {
    let prose: String = document.split("```").step_by(2).collect();
    let headings: Vec<String> = prose.lines().filter(|line| line.starts_with('#')).map(anchor).collect();
    let targets = prose.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target);
    let is_dead = |target: &&str| match target.split_once('#') {
        _ if target.contains("://") => false,
        Some(("", heading)) => !headings.iter().any(|known| known == heading),
        Some((file, _)) => !exists(file),
        None => !exists(target),
    };
    targets.filter(is_dead).map(|target| format!("the link {target} leads nowhere")).collect()
}

/// How a heading is linked to.
fn anchor(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = text.chars().filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(path: &str, text: &str, expected: &[&str]) {
        let breaches = breaches_of(path, text.as_bytes());
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
    fn only_pictures_may_be_binary() {
        check("docs/a.png", "\0", &[]);
        check("a.o", "\0", &["binary"]);
        assert_eq!(breaches_of("a.o", &[0xff]).len(), 1);
    }

    #[test]
    fn a_dependency_says_what_it_is_for() {
        let manifest =
            |body: &str| format!("[workspace]\n[workspace.dependencies]\n{body}[profile.release]\nlto = true\n");
        check("Cargo.toml", &manifest("own = { path = \"own\" }\n# Errors.\na = \"1\"\nb = \"1\"\n"), &[]);
        check("Cargo.toml", &manifest("# Errors.\na = \"1\"\n\nb.version = \"1\"\n"), &["dependency b"]);
        check("lb-x/Cargo.toml", &manifest("a = \"1\"\n"), &[]);
    }

    #[test]
    fn what_has_a_name_is_found() {
        let source = "/// A.\n#[btf_map]\npub static AB: HashMap<u32, u32, 1> = HashMap::new();\n\
                      /// No map.\npub static C: u8 = 0;\n#[btf_map]\n    pub static D_E: Array<u8, 1> = Array::new();\n";
        assert_eq!(maps(source), ["AB", "D_E"]);
        let source = "impl Kind {\n    Self::X => \"no\",\n}\nimpl Counter {\n    const ALL: [Self; 1] = [Self::A];\n\
                      \x20       Self::A => \"a_b\",\n}\nimpl More {\n    Self::B => \"no\",\n}\n";
        assert_eq!(counters(source), ["a_b"]);
        let source = "struct Other {\n    #[arg(long)]\n    no: u8,\n}\n#[derive(Args)]\npub(super) struct Arguments {\n    /// A.\n    #[arg(long)]\n\
                      \x20   pub(super) one_two: bool,\n    #[arg(\n        short,\n        long,\n        env = \"X\"\n    )]\n\
                      \x20   three: u8,\n    #[arg(value_name = \"F\")]\n    place: u8,\n}\n";
        assert_eq!(flags(source), ["--one-two", "--three"]);
        let source =
            "to.counter(\"beeline_a_total\", \"beeline_ is a prefix\")?;\nto.gauge(\n\"kubeproxy_b\",\n\"B\");";
        assert_eq!(metrics(source), ["beeline_a_total", "kubeproxy_b"]);
    }

    #[test]
    fn a_row_begins_with_the_name() {
        let document = "| Flag | What |\n|---|---|\n| `--a-b DIR` | `--c` |\n| `D` | |\n`E`\n";
        let found = ["--a-b", "D", "--a", "--c", "E"].map(|name| has_row(document, name));
        assert_eq!(found, [true, true, false, false, false]);
    }

    #[test]
    fn a_promise_is_shown_by_a_test() {
        let document = "| I1 | `select` holds | `i1_it_holds`, `a_story_of_it`, `i1_it_is_gone` |\n`no_row_at_all`\n\
                        | I2 | `not_a_test_here` | `one-two-three`, `four-five-six` of `Local` |\n| I3 | x | `Local` |\n";
        let sources = "fn i1_it_holds() {}\n(\"a_story_of_it\", story),\n// i1_it_is_gone\n";
        let is_test = |name: &str| is_named(sources, name) || name == "one-two-three";
        assert_eq!(
            unshown(document, &["| I"], is_test),
            ["no test is called i1_it_is_gone", "no test is called four-five-six", "I3 is shown by no test"]
        );
    }

    #[test]
    fn a_link_leads_somewhere() {
        let document = "# How it works: 1\n[a](there) [b](there#x) [c](https://example.com/) [d](#how-it-works-1)\n\
                        [e](gone) [f](#gone) [g](gone#x)\n```\n[h](gone)\n```\n";
        let dead = dead_links(document, |file| file == "there");
        assert_eq!(dead.len(), 3, "{dead:?}");
        assert!(dead.iter().all(|link| link.contains("gone")), "{dead:?}");
    }

    #[test]
    fn this_tree_has_its_documents_and_they_have_their_rows() {
        assert_eq!(documents(&workspace::root()).unwrap(), Vec::<String>::new());
    }
}
