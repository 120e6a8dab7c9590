//! The reference has a row for each thing that a user can name: map, counter, flag, metric, annotation, errno, command.
//! Sources are found by their contents.

use super::layers::is_for_tests;
use super::shown_commands::subcommands;
use super::tree::Tree;

/// The pages with the rows.
const REFERENCE: &str = "docs/reference/";

/// Names of one kind, and how they are found.
struct Kind {
    what: &'static str,
    /// True for a file with such names, by its path and its text.
    is_source: fn(&str, &str) -> bool,
    names: fn(&str) -> Vec<String>,
}

const KINDS: [Kind; 7] = [
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
    // Flags of `beeline run`, which are settings of a node.
    Kind {
        what: "flag",
        is_source: |path, text| {
            let is_named = ["/cli/run.rs", "/cli/service_flags.rs"].iter().any(|end| path.ends_with(end));
            is_named && text.contains("#[derive(Args)]")
        },
        names: flags,
    },
    Kind {
        what: "metric",
        is_source: |path, text| path.contains("/metrics/families") && text.contains("\"beeline_"),
        names: metrics,
    },
    Kind {
        what: "annotation or label",
        is_source: |path, text| path.starts_with("lb-user/sources/src/convert/") && text.contains("\"beeline.io/"),
        names: annotations,
    },
    Kind { what: "errno", is_source: |path, _| path.ends_with("/errno.rs"), names: errnos },
    Kind {
        what: "command",
        is_source: |path, text| path.starts_with("lb-user/src/cli/") && text.contains("#[derive(Subcommand)]"),
        names: commands,
    },
];

/// Every name without a row, and every kind of which no name is found.
pub(crate) fn breaches(tree: &Tree) -> Vec<String> {
    let pages: Vec<&str> = tree
        .texts()
        .filter(|(path, _)| path.starts_with(REFERENCE) && path.ends_with(".md"))
        .map(|(_, text)| text)
        .collect();
    let mut breaches = Vec::new();
    for Kind { what, is_source, names } in KINDS {
        let sources =
            tree.texts().filter(|(path, text)| path.ends_with(".rs") && !is_for_tests(path) && is_source(path, text));
        let mut count = 0;
        for (path, text) in sources {
            let names = names(text);
            count += names.len();
            let missing = names.iter().filter(|name| !pages.iter().any(|page| has_row(page, name)));
            breaches.extend(missing.map(|name| format!("{REFERENCE}: no row for the {what} `{name}` of {path}")));
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
    let is_row = |cell: String| cell.strip_prefix(name).is_some_and(|value| value.is_empty() || value.starts_with(' '));
    document.lines().filter_map(cell).any(is_row)
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

/// Texts that are whole names of annotations or labels.
fn annotations(source: &str) -> Vec<String> {
    let code = source.split("#[cfg(test)]").next().unwrap_or(source);
    let texts = code.split('"').skip(1).step_by(2);
    let is_name = |name: &str| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-');
    texts.filter(|text| text.strip_prefix("beeline.io/").is_some_and(is_name)).map(str::to_owned).collect()
}

/// The constants.
fn errnos(source: &str) -> Vec<String> {
    let name = |line: &str| Some(line.strip_prefix("pub const ")?.split_once(": i32 =")?.0.to_owned());
    source.lines().filter_map(name).collect()
}

/// The subcommands, as a user types them.
fn commands(source: &str) -> Vec<String> {
    subcommands(source).into_iter().map(|name| format!("beeline {name}")).collect()
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
        let source = "const A: &str = \"beeline.io/a-b\";\n// \"beeline.io/\" and \"beeline.io/A\"\n\
                      #[cfg(test)]\nconst B: &str = \"beeline.io/b\";";
        assert_eq!(annotations(source), ["beeline.io/a-b"]);
        let source = "/// A.\npub const EA: i32 = 1;\npub const fn f(a: i32) {}\npub const EB: i32 = 2;\n";
        assert_eq!(errnos(source), ["EA", "EB"]);
        let source = "enum Other {\n    No,\n}\nenum Command {\n    /// A.\n    #[x]\n    One(Args),\n    TwoWords,\n\
                      \x20   Three {\n        /// B.\n        Field: u8,\n    },\n}\n";
        assert_eq!(commands(source), ["beeline one", "beeline two-words", "beeline three"]);
    }

    #[test]
    fn a_row_begins_with_the_name() {
        let document = "| Flag | What |\n|---|---|\n| `--a-b DIR` | `--c` |\n| `D` | |\n`E`\n| `f g H` | |\n";
        let found = ["--a-b", "D", "f g", "--a", "--c", "E", "g"].map(|name| has_row(document, name));
        assert_eq!(found, [true, true, true, false, false, false, false]);
    }

    #[test]
    fn names_without_a_row_are_found_wherever_the_sources_are() {
        let sources = [
            ("lb-ebpf/src/maps/flows.rs", "#[btf_map]\npub static AB: X = 1;"),
            ("lb-common/src/layout/counters.rs", "impl Counter {\n Self::A => \"a_b\",\n}"),
            ("lb-user/src/cli/run.rs", "#[derive(Args)]\nstruct Arguments {\n #[arg(long)]\n pub x: u8,\n}"),
            ("lb-user/agent/src/metrics/families.rs", "\"beeline_a\""),
            ("lb-user/agent/src/metrics/tests.rs", "\"beeline_b\""),
            ("lb-user/sources/src/convert/annotations/mod.rs", "\"beeline.io/a\""),
            ("lb-common/src/errno.rs", "pub const EA: i32 = 1;"),
            ("lb-user/src/cli/mod.rs", "#[derive(Subcommand)]\nenum Command {\n    Run(Args),\n}"),
        ];
        let rows = "| `AB` | |\n| `a_b` | |\n| `--x` | |\n| `beeline.io/a` | |\n| `EA` | |\n| `beeline run` | |\n";
        let page = |name, text| [(name, text)];
        let first = Tree::of(&[&sources[..], &page("docs/reference/a.md", rows)].concat());
        assert_eq!(
            breaches(&first),
            ["docs/reference/: no row for the metric `beeline_a` of lb-user/agent/src/metrics/families.rs"]
        );
        let second = page("docs/reference/b.md", "| `beeline_a` | |\n");
        let all = [&sources[..], &page("docs/reference/a.md", rows), &second].concat();
        assert_eq!(breaches(&Tree::of(&all)), Vec::<String>::new());
        assert_eq!(breaches(&Tree::of(&second)).len(), 7, "a kind without sources");
    }
}
