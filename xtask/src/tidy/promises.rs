//! The promise tables of ARCHITECTURE.md and SECURITY.md: each row names tests, and each test is there.

use super::tree::Tree;

/// The documents that promise something, and how their rows begin.
const PROMISES: [(&str, &[&str]); 2] =
    [("ARCHITECTURE.md", &["| I"]), ("SECURITY.md", &["| CVE-", "| cilium#", "| Cloudflare "])];
/// Where rows of promises may stand beside those.
const PAGES: &str = "docs/design/";

/// Every row without a test, and every test that is not there.
pub(crate) fn breaches(tree: &Tree) -> Vec<String> {
    let mut sources = String::new();
    for (_, text) in tree.texts().filter(|(path, _)| path.ends_with(".rs")) {
        sources += text;
    }
    // Each directory of scenarios is a test as well.
    let is_scenario = |name: &str| tree.files().any(|(path, _)| path.contains(&format!("/tests/scenarios/{name}/")));
    let is_test = |name: &str| is_named(&sources, name) || is_scenario(name);
    let mut breaches = Vec::new();
    for (path, beginnings) in PROMISES {
        let unshown = unshown(tree.text(path).unwrap_or_default(), beginnings, is_test);
        breaches.extend(unshown.iter().map(|breach| format!("{path}: {breach}")));
    }
    for (path, text) in tree.texts().filter(|(path, _)| path.starts_with(PAGES)) {
        for (_, beginnings) in PROMISES {
            breaches.extend(unshown(text, beginnings, is_test).iter().map(|breach| format!("{path}: {breach}")));
        }
    }
    breaches
}

/// Rows that promise something and show it by no test, or by a test that is not there. The last cell has the tests:
/// code of three words or more, or with a dash, is the name of a test.
fn unshown(document: &str, beginnings: &[&str], is_test: impl Fn(&str) -> bool) -> Vec<String> {
    let mut breaches = Vec::new();
    // A row of an invariant has its number; a word such as `Item` in a head has none.
    let is_row = |line: &str| {
        let rest = beginnings.iter().find_map(|beginning| Some((beginning, line.strip_prefix(beginning)?)));
        rest.is_some_and(|(beginning, rest)| {
            !beginning.ends_with('I') || rest.starts_with(|c: char| c.is_ascii_digit())
        })
    };
    for row in document.lines().filter(|line| is_row(line)) {
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

/// True if a source has a test of that name.
fn is_named(sources: &str, name: &str) -> bool {
    sources.contains(&format!("fn {name}(")) || sources.contains(&format!("\"{name}\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_promise_is_shown_by_a_test() {
        let document = "| Invariant | x | y |\n\
                        | I1 | `select` holds | `i1_it_holds`, `a_story_of_it`, `i1_it_is_gone` |\n\
                        `no_row_at_all`\n\
                        | I2 | `not_a_test_here` | `one-two-three`, `four-five-six` of `Local` |\n\
                        | I3 | x | `Local` |\n";
        let sources = "fn i1_it_holds() {}\n(\"a_story_of_it\", story),\n// i1_it_is_gone\n";
        let is_test = |name: &str| is_named(sources, name) || name == "one-two-three";
        assert_eq!(
            unshown(document, &["| I"], is_test),
            ["no test is called i1_it_is_gone", "no test is called four-five-six", "I3 is shown by no test"]
        );
    }

    #[test]
    fn a_directory_of_scenarios_is_a_test() {
        let tree = Tree::of(&[
            ("ARCHITECTURE.md", "| I1 | x | `one-two` |\n"),
            ("lb-user/tests/scenarios/one-two/1.yaml", ""),
            ("docs/design/promises.md", "| I2 | x | `three-four` |\n"),
        ]);
        assert_eq!(breaches(&tree), ["docs/design/promises.md: no test is called three-four"]);
    }
}
