//! Banned turns of phrase in comments and documents: sentences that begin with a riddle, and words that name no
//! subject.
//!
//! Looked at are comments and doc comments of Rust (a doc comment of clap is a help text), comments of YAML, TOML and
//! scripts, and the prose of Markdown, where headings and questions may begin as they like. Code between backticks is
//! passed by.

use super::markdown;
use super::rust_source::Source;

/// No sentence of a comment begins with one of these.
const BEGINNINGS: [&str; 9] = ["Who", "Whoever", "Whom", "Whose", "Whether", "What", "Which", "Why", "How"];

/// Words that stand for no subject, and the cure of each.
const BANNED: [(&str, &str); 7] = [
    ("nobody", "name the subject, or use the passive: \"is not read\""),
    ("somebody", "name the role: user, caller, operator, client"),
    ("anybody", "name the role: user, caller, operator, client"),
    ("whoever", "name the role: the caller, the reader, the client"),
    ("one that", "repeat the noun: \"a backend that drains\""),
    ("those that", "repeat the noun: \"backends that drain\""),
    ("of late", "say since when: \"since 6.12\", \"in the last pass\""),
];

/// A run of prose: its words and the line of each.
#[derive(Default)]
struct Paragraph {
    words: Vec<(usize, String)>,
}

/// Every banned turn in a file, with its line.
pub(crate) fn breaches(path: &str, text: &str) -> Vec<String> {
    let name = path.rsplit('/').next().unwrap_or(path);
    let extension = name.rsplit_once('.').map_or("", |(_, extension)| extension);
    let is_markdown = extension == "md";
    let paragraphs = match extension {
        "rs" => rust(text),
        "md" => prose(text),
        "yaml" | "yml" | "toml" | "sh" | "service" => hash_comments(text),
        _ if name == "Containerfile" || text.starts_with("#!") => hash_comments(text),
        _ => Vec::new(),
    };
    let mut breaches: Vec<(usize, String)> =
        paragraphs.iter().flat_map(|paragraph| paragraph.breaches(is_markdown)).collect();
    breaches.sort();
    breaches.into_iter().map(|(line, breach)| format!("{path}:{line}: {breach}")).collect()
}

impl Paragraph {
    fn add(&mut self, line: usize, text: &str) {
        self.words.extend(text.split_whitespace().map(|word| (line, word.to_owned())));
    }

    fn breaches(&self, may_ask: bool) -> Vec<(usize, String)> {
        let mut breaches = Vec::new();
        let mut begins = true;
        for (at, (line, word)) in self.words.iter().enumerate() {
            let bare = word.trim_start_matches(OPENING);
            let name = bare.trim_end_matches(|c: char| !c.is_alphanumeric());
            if begins && BEGINNINGS.contains(&name) && !(may_ask && self.is_question(at)) {
                breaches.push((*line, format!("a sentence begins with \"{name}\": begin with its noun or verb")));
            }
            begins = word.trim_end_matches(CLOSING).ends_with(['.', '!', '?']);
            for (banned, cure) in BANNED {
                if self.has(at, banned) {
                    breaches.push((*line, format!("\"{banned}\": {cure}")));
                }
            }
        }
        breaches
    }

    /// True if the sentence that begins here ends as a question.
    fn is_question(&self, at: usize) -> bool {
        let ends = self.words[at..].iter().map(|(_, word)| word.trim_end_matches(CLOSING));
        ends.filter(|word| word.ends_with(['.', '!', '?'])).map(|word| word.ends_with('?')).next().unwrap_or(false)
    }

    /// True if the words from here on are these.
    fn has(&self, at: usize, banned: &str) -> bool {
        let mut here = self.words[at..].iter();
        let mut words = banned.split(' ').peekable();
        while let Some(wanted) = words.next() {
            let Some((_, word)) = here.next() else { return false };
            let word = word.trim_start_matches(|c: char| !c.is_alphanumeric());
            let bare = word.trim_end_matches(|c: char| !c.is_alphanumeric());
            let bare = bare.split('\'').next().unwrap_or(bare);
            // A mark between the words parts them.
            let is_parted = words.peek().is_some() && bare.len() < word.len();
            if !bare.eq_ignore_ascii_case(wanted) || is_parted {
                return false;
            }
        }
        true
    }
}

const OPENING: [char; 6] = ['(', '"', '*', '_', '“', '\''];
const CLOSING: [char; 7] = [')', '"', '*', '_', '”', '\'', ']'];

/// The comments of a Rust source: neighbouring lines of one kind are one text.
fn rust(text: &str) -> Vec<Paragraph> {
    let comments = Source::scan(text).comments;
    let mut lines: Vec<(usize, String)> = Vec::new();
    let mut texts = Vec::new();
    let mut last: Option<(usize, &str)> = None;
    for comment in &comments {
        let follows = last == Some((comment.line.wrapping_sub(1), comment.mark)) && !comment.is_trailing;
        if !follows {
            texts.extend(paragraphs(&std::mem::take(&mut lines)));
        }
        lines.push((comment.line, comment.text.clone()));
        last = (!comment.is_trailing).then_some((comment.line, comment.mark));
    }
    texts.extend(paragraphs(&lines));
    texts
}

/// The comments of a file that begins them with `#`.
fn hash_comments(text: &str) -> Vec<Paragraph> {
    let mut lines: Vec<(usize, String)> = Vec::new();
    let mut texts = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        match comment_of(line) {
            Some((0, _)) if line.trim_start().starts_with("#!") => {}
            Some((code, comment)) => {
                if code > 0 {
                    texts.extend(paragraphs(&std::mem::take(&mut lines)));
                }
                lines.push((number, comment.to_owned()));
                if code > 0 {
                    texts.extend(paragraphs(&std::mem::take(&mut lines)));
                }
            }
            None => texts.extend(paragraphs(&std::mem::take(&mut lines))),
        }
    }
    texts.extend(paragraphs(&lines));
    texts
}

/// The comment of a line of YAML, and how many characters of content stand before it.
pub(crate) fn comment_of(line: &str) -> Option<(usize, &str)> {
    let mut quote: Option<char> = None;
    let mut before = ' ';
    for (at, c) in line.char_indices() {
        match quote {
            Some(open) if c == open => quote = None,
            Some(_) => {}
            // An apostrophe within a word quotes nothing.
            None if (c == '"' || c == '\'') && !before.is_alphanumeric() => quote = Some(c),
            None if c == '#' && before.is_whitespace() => return Some((line[..at].trim().len(), &line[at + 1..])),
            None => {}
        }
        before = c;
    }
    None
}

/// The prose of Markdown: paragraphs, points of lists, cells of tables. Headings are left out, those of tables as well.
fn prose(document: &str) -> Vec<Paragraph> {
    let lines = markdown::lines(document);
    let mut texts = Vec::new();
    let mut part: Vec<(usize, String)> = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let is_rule = |text: &str| text.contains("--") && text.chars().all(|c| ['|', '-', ':', ' '].contains(&c));
        let text = line.text.trim();
        let is_row = text.starts_with('|') && !line.is_code;
        let is_head = is_row && lines.get(at + 1).is_some_and(|next| is_rule(next.text.trim()));
        if line.is_code || text.starts_with('#') || is_row {
            texts.extend(paragraphs(&std::mem::take(&mut part)));
        }
        if is_row && !is_head && !is_rule(text) {
            let cells = text.trim_matches('|').split(" | ");
            // A cell without a full stop is a title.
            let sentences = cells.map(str::trim).filter(|cell| cell.ends_with(['.', '!']));
            texts.extend(sentences.flat_map(|cell| paragraphs(&[(line.number, without_quotes(cell))])));
        } else if !line.is_code && !text.starts_with('#') && !is_row {
            part.push((line.number, without_quotes(text.trim_start_matches("> "))));
        }
    }
    texts.extend(paragraphs(&part));
    texts
}

/// Parts lines at empty ones, at points of lists and at headings, and blanks code.
fn paragraphs(lines: &[(usize, String)]) -> Vec<Paragraph> {
    // A span of code may go over a line's end.
    let joined = lines.iter().map(|(_, text)| text.as_str()).collect::<Vec<_>>().join("\n");
    let joined = without_fences(&joined);
    let joined = markdown::without_code(&joined);
    let numbers = lines.iter().map(|(number, _)| *number);
    let mut texts = vec![Paragraph::default()];
    for (number, text) in numbers.zip(joined.split('\n')) {
        let text = text.trim();
        let point = ["- ", "* ", "+ "].iter().find_map(|mark| text.strip_prefix(mark)).or_else(|| {
            let (number, rest) = text.split_once(". ")?;
            number.bytes().all(|byte| byte.is_ascii_digit()).then_some(rest)
        });
        if text.is_empty() || point.is_some() || text.starts_with("# ") {
            texts.push(Paragraph::default());
        }
        if !text.starts_with("# ")
            && let Some(paragraph) = texts.last_mut()
        {
            paragraph.add(number, point.unwrap_or(text));
        }
    }
    texts
}

/// A line of Markdown with quotations blanked: examples may be bad ones.
fn without_quotes(line: &str) -> String {
    let parts: Vec<&str> = line.split('"').collect();
    let blank = |(at, part): (usize, &&str)| {
        let is_quoted = at % 2 == 1 && at + 1 < parts.len();
        if is_quoted { "x".repeat(part.chars().count()) } else { (*part).to_owned() }
    };
    parts.iter().enumerate().map(blank).collect::<Vec<_>>().join("\"")
}

/// A text with its fenced blocks of code emptied; lines stay.
fn without_fences(text: &str) -> String {
    let kept: Vec<usize> = markdown::lines(text).iter().filter(|line| !line.is_code).map(|line| line.number).collect();
    let line = |(number, line): (usize, &str)| if kept.contains(&number) { line.to_owned() } else { String::new() };
    (1..).zip(text.split('\n')).map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(path: &str, text: &str, expected: &[(usize, &str)]) {
        let found = breaches(path, text);
        assert_eq!(found.len(), expected.len(), "{found:?}");
        for (breach, (line, part)) in found.iter().zip(expected) {
            assert!(
                breach.starts_with(&format!("{path}:{line}: ")) && breach.contains(part),
                "{breach}, not {line} {part}"
            );
        }
    }

    #[test]
    fn sentences_begin_with_their_subject() {
        check("a.rs", "//! Does it. What for\n//! is not said.\n", &[(1, "What")]);
        check("a.rs", "/// Which one.\n/// Why so.\n", &[(1, "Which"), (2, "Why")]);
        check("a.rs", "/// Tells\n/// whether it is; How it is. (Whose is it?)\n", &[(2, "Whose")]);
        check("a.rs", "let a = \"Who\"; // Who\n// goes\n// there. However, Whatever.\n", &[(1, "Who")]);
        check(
            "a.rs",
            "// It ends.\n//\n// - Whether so\n// - or not\n/// # How\n/// `What` is. How\n",
            &[(3, "Whether"), (6, "How")],
        );
        check("a.rs", "/// ```\n/// // What is code\n/// ```\nfn f() {}\n", &[]);
    }

    #[test]
    fn words_without_a_subject_are_found() {
        check(
            "a.rs",
            "// For nobody's sake.\n/// The one\n/// that drains; Of late.\n",
            &[(1, "nobody"), (2, "one that"), (3, "of late")],
        );
        check("a.rs", "// This one: that. `nobody` anyone, those, that.\nlet a = \"nobody\";\n", &[]);
    }

    #[test]
    fn yaml_and_other_comments_are_read() {
        check(
            "a.yaml",
            "# What a is.\na: \"# What\" # Whether so\nb: x#What\nc: it's # nobody\n",
            &[(1, "What"), (2, "Whether"), (4, "nobody")],
        );
        check("a.toml", "# Errors\n# whoever reads.\na = 1\n", &[(2, "whoever")]);
        check(".ci/run", "#!/usr/bin/env bash\n# What CI runs.\n", &[(2, "What")]);
        check("a.txt", "# What\n", &[]);
    }

    #[test]
    fn documents_may_ask() {
        let text = "# What it is\nHow does it work? It does. What it does.\n\n| What | How |\n|---|---|\n\
                    | What a | Whether so. |\n\
                    ```\n# What\n```\n- [How it works](a.md)\n- Who\n  goes\n";
        check("docs/a.md", text, &[(2, "What"), (6, "Whether"), (11, "Who")]);
        check("docs/a.md", "Not \"one that drains\", and not 5\" of late\n", &[(1, "of late")]);
    }
}
