//! The reference has a row for each thing that a user can name: map, counter, flag, metric. Sources are found by their
//! contents.

use super::layers::is_for_tests;
use super::tree::Tree;

/// The pages with the rows.
const REFERENCE: &str = "docs/reference/";
/// The page with the rows as long as there is no reference.
const UNTIL_THEN: &str = "README.md";

/// Names of one kind, and how they are found.
struct Kind {
    what: &'static str,
    /// True for a file with such names, by its path and its text.
    is_source: fn(&str, &str) -> bool,
    names: fn(&str) -> Vec<String>,
}

const KINDS: [Kind; 4] = [
    Kind {
        what: "map",
        is_source: |path, text| path.starts_with("lb-ebpf/src/") && text.contains("#[btf_map]"),
        names: maps,
    },
    Kind {
        what: "counter",
        is_source: |path, text| path.starts_with("lb-common/src/") && text.contains("impl Counter {"),
        names: counters,
    },
    // Of `beeline run`, whose flags are settings of a node.
    Kind {
        what: "flag",
        is_source: |path, text| {
            let is_named =
                ["/cli/run.rs", "/cli/service_flags.rs", "/cli/meaning.rs"].iter().any(|end| path.ends_with(end));
            is_named && text.contains("#[derive(Args)]")
        },
        names: flags,
    },
    Kind {
        what: "metric",
        is_source: |path, text| path.contains("/metrics/families") && text.contains("\"beeline_"),
        names: metrics,
    },
];

/// Every name without a row, and every kind of which no name is found.
pub(crate) fn breaches(tree: &Tree) -> Vec<String> {
    let mut pages: Vec<&str> = tree
        .texts()
        .filter(|(path, _)| path.starts_with(REFERENCE) && path.ends_with(".md"))
        .map(|(_, text)| text)
        .collect();
    let place = if pages.is_empty() { UNTIL_THEN } else { REFERENCE };
    if pages.is_empty() {
        pages.extend(tree.text(UNTIL_THEN));
    }
    let mut breaches = Vec::new();
    for Kind { what, is_source, names } in KINDS {
        let sources =
            tree.texts().filter(|(path, text)| path.ends_with(".rs") && !is_for_tests(path) && is_source(path, text));
        let mut count = 0;
        for (path, text) in sources {
            let names = names(text);
            count += names.len();
            let missing = names.iter().filter(|name| !pages.iter().any(|page| has_row(page, name)));
            breaches.extend(missing.map(|name| format!("{place}: no row for the {what} `{name}` of {path}")));
        }
        if count == 0 {
            breaches.push(format!("no {what} is found in the sources; teach xtask's tidy where they are now"));
        }
    }
    breaches
}

/// True if a table has a row whose first cell begins with `name`, as code, alone or before a value.
fn has_row(document: &str, name: &str) -> bool {
    let cell = |line: &str| Some(line.strip_prefix("| `")?.split_once('`')?.0.to_owned());
    document.lines().filter_map(cell).any(|cell| cell.split(' ').next() == Some(name))
}

/// The statics below `#[btf_map]`.
fn maps(source: &str) -> Vec<String> {
    let after = source.split("#[btf_map]").skip(1);
    let name = |text: &str| Some(text.trim_start().split_once("static ")?.1.split_once(':')?.0.to_owned());
    after.filter_map(name).collect()
}

/// The texts that `Counter::name` returns.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found() {
        let source = "/// A.\n#[btf_map]\npub static AB: HashMap<u32, u32, 1> = HashMap::new();\n\
                      // No map.\npub static C: u8 = 0;\n#[btf_map]\n\
                      \x20   pub(crate) static D_E: Array<u8, 1> = Array::new();\n";
        assert_eq!(maps(source), ["AB", "D_E"]);
        let source = "impl Kind {\n    Self::X => \"no\",\n}\nimpl Counter {\n    const ALL: [Self; 1] = [];\n\
                      \x20       Self::A => \"a_b\",\n}\nimpl More {\n    Self::B => \"no\",\n}\n";
        assert_eq!(counters(source), ["a_b"]);
        let source = "struct Other {\n    #[arg(long)]\n    no: u8,\n}\n#[derive(Args)]\n\
                      pub(super) struct Arguments {\n    /// A.\n    #[arg(long)]\n    pub(super) one_two: bool,\n\
                      \x20   #[arg(\n        short,\n\
                      \x20       long,\n        env = \"X\"\n    )]\n    three: u8,\n    #[arg(value_name = \"F\")]\n\
                      \x20   place: u8,\n}\n";
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
    fn rows_stand_in_the_reference_wherever_the_sources_are() {
        let sources = [
            ("lb-ebpf/src/maps/flows.rs", "#[btf_map]\npub static AB: X = 1;"),
            ("lb-common/src/layout/counters.rs", "impl Counter {\n Self::A => \"a_b\",\n}"),
            ("lb-user/src/cli/run.rs", "#[derive(Args)]\nstruct Arguments {\n #[arg(long)]\n pub x: u8,\n}"),
            ("lb-user/agent/src/metrics/families.rs", "\"beeline_a\""),
            ("lb-user/agent/src/metrics/tests.rs", "\"beeline_b\""),
        ];
        let rows = "| `AB` | |\n| `a_b` | |\n| `--x` | |\n";
        let first = Tree::of(&[&sources[..], &[("README.md", rows)]].concat());
        assert_eq!(
            breaches(&first),
            ["README.md: no row for the metric `beeline_a` of lb-user/agent/src/metrics/families.rs"]
        );
        let reference =
            [("README.md", ""), ("docs/reference/a.md", rows), ("docs/reference/b.md", "| `beeline_a` | |\n")];
        assert_eq!(breaches(&Tree::of(&[&sources[..], &reference].concat())), Vec::<String>::new());
        assert_eq!(breaches(&Tree::of(&reference)).len(), 4);
    }
}
