//! Lines are not too long: in Rust sources, and in comments of YAML. A line that cannot be broken is passed by.

use super::rust_source::Source;
use super::words::comment_of;

/// Most characters of a line of Rust, as rustfmt has it.
const RUST: usize = 120;
/// Most characters of a line of YAML with a comment.
const YAML: usize = 130;

/// Every line that is too long.
pub(crate) fn breaches(path: &str, text: &str) -> Vec<String> {
    let most = if path.ends_with(".rs") {
        RUST
    } else if path.ends_with(".yaml") || path.ends_with(".yml") {
        YAML
    } else {
        return Vec::new();
    };
    let raw = if most == RUST { Source::scan(text).raw } else { Vec::new() };
    let mut breaches = Vec::new();
    let mut start = 0;
    for (number, line) in (1..).zip(text.split('\n')) {
        let length = line.chars().count();
        let has_comment = most == RUST || comment_of(line).is_some();
        // Where the line is too long already, a raw text goes on.
        let end = start + line.char_indices().nth(most).map_or(line.len(), |(at, _)| at);
        let is_raw = raw.iter().any(|range| range.contains(&end));
        if length > most && has_comment && !is_raw && is_breakable(line) {
            breaches.push(format!("{path}:{number}: has {length} characters, and {most} are the most"));
        }
        start += line.len() + 1;
    }
    breaches
}

/// True if there is a space to break at, behind the mark of a comment or the quote of a text.
fn is_breakable(line: &str) -> bool {
    let line = line.trim_start();
    let line = ["/// ", "//! ", "// ", "# ", "\"", "["].iter().find_map(|mark| line.strip_prefix(mark)).unwrap_or(line);
    line.trim_end_matches([',', ';', ' ']).contains(' ')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(path: &str, text: &str, expected: &[&str]) {
        let found = breaches(path, text);
        let places: Vec<&str> = found.iter().filter_map(|breach| breach.split(": ").next()).collect();
        assert_eq!(places, expected, "{text}");
    }

    #[test]
    fn long_lines_of_rust_are_found() {
        let wide = |length: usize| format!("// {}", "é ".repeat(length).chars().take(length - 3).collect::<String>());
        check("a.rs", &format!("{}\n{}\n", wide(RUST), wide(RUST + 1)), &["a.rs:2"]);
        let word = "x".repeat(RUST);
        check("a.rs", &format!("/// {word}\n    \"{word}\",\nlet a = r\"\n a {word}\";\n"), &[]);
        check("a.rs", &format!("    \"a {word}\",\n"), &["a.rs:1"]);
    }

    #[test]
    fn long_comments_of_yaml_are_found() {
        let wide = "x ".repeat(YAML / 2);
        check("a.yaml", &format!("# {wide}\na: {wide}\na: b # {wide}\n"), &["a.yaml:1", "a.yaml:3"]);
        check("a.md", &wide, &[]);
    }
}
