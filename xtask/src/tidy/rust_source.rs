//! A scanner for Rust sources: tells code, comments and texts apart, and leaves test code out. It knows no grammar
//! beyond that.

/// A source, taken apart. Each part has the bytes of the source where it applies, and spaces elsewhere, so that offsets
/// and lines are those of the file.
pub(crate) struct Source {
    /// Code without comments, and without the contents of texts.
    pub(crate) code: String,
    /// Comments, one for each line.
    pub(crate) comments: Vec<Comment>,
    /// Byte ranges of raw texts, which no line break may change.
    pub(crate) raw: Vec<std::ops::Range<usize>>,
}

/// A comment, or one line of a longer one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Comment {
    /// Line of the file, from 1.
    pub(crate) line: usize,
    /// `//`, `///`, `//!` or `/*`.
    pub(crate) mark: &'static str,
    /// True if code stands before it on its line.
    pub(crate) is_trailing: bool,
    /// The text behind the mark.
    pub(crate) text: String,
}

impl Source {
    /// Takes a source apart. Broken sources give something broken and no error: the compiler reports those.
    pub(crate) fn scan(text: &str) -> Self {
        let bytes = text.as_bytes();
        let mut code: Vec<u8> = bytes.to_vec();
        let (mut comments, mut raw) = (Vec::new(), Vec::new());
        let mut at = 0;
        while at < bytes.len() {
            let rest = &text[at..];
            let end = if rest.starts_with("//") {
                let end = at + rest.find('\n').unwrap_or(rest.len());
                comments.push(comment(text, at, &text[at..end]));
                end
            } else if rest.starts_with("/*") {
                let end = at + block_length(rest);
                let inner = text[at..end].trim_start_matches("/*").trim_end_matches("*/");
                let first = text[..at].matches('\n').count() + 1;
                comments.extend((first..).zip(inner.lines()).map(|(line, text)| Comment {
                    line,
                    mark: "/*",
                    is_trailing: false,
                    text: text.trim_start_matches([' ', '*']).to_owned(),
                }));
                end
            } else if let Some(length) = raw_length(rest).filter(|_| !is_in_word(bytes, at)) {
                raw.push(at..at + length);
                at + length
            } else if rest.starts_with('"') {
                at + text_length(rest)
            } else if rest.starts_with('\'') {
                at + char_length(rest)
            } else {
                at + rest.chars().next().map_or(1, char::len_utf8)
            };
            let first = rest.as_bytes()[0];
            // Quotes stay, so that a text is still a token.
            let kept = match first {
                b'"' | b'\'' if end > at + 1 => 1,
                b'/' if end > at + 1 => 0,
                b'r' | b'b' | b'c' if end > at + 1 => 0,
                _ => end - at,
            };
            let blanked_end = if kept == 1 && end > at + 1 { end - 1 } else { end };
            for byte in &mut code[(at + kept).min(blanked_end)..blanked_end] {
                if *byte != b'\n' {
                    *byte = b' ';
                }
            }
            at = end;
        }
        Self { code: String::from_utf8_lossy(&code).into_owned(), comments, raw }
    }

    /// The code that is not for tests alone: items below `#[cfg(test)]` are blank.
    pub(crate) fn without_tests(&self) -> String {
        let mut code = self.code.clone().into_bytes();
        for (at, mark) in self.code.match_indices("#[cfg(test)]") {
            let end = at + mark.len() + item_length(&self.code[at + mark.len()..]);
            for byte in &mut code[at..end] {
                if *byte != b'\n' {
                    *byte = b' ';
                }
            }
        }
        String::from_utf8_lossy(&code).into_owned()
    }

    /// Names of the modules that are declared for tests alone.
    pub(crate) fn test_modules(&self) -> Vec<String> {
        let after = self.code.split("#[cfg(test)]").skip(1);
        let name = |text: &str| {
            let declaration = text.split_once(';')?.0;
            let name = declaration.rsplit_once("mod ")?.1.trim();
            is_word(name).then(|| name.to_owned())
        };
        after.filter_map(name).collect()
    }
}

/// The words and signs of code; `::` is one of them.
pub(crate) fn tokens(code: &str) -> Vec<(usize, &str)> {
    let bytes = code.as_bytes();
    let mut tokens = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let length = if is_word_byte(bytes[at]) {
            bytes[at..].iter().take_while(|byte| is_word_byte(**byte)).count()
        } else if code[at..].starts_with("::") {
            2
        } else {
            code[at..].chars().next().map_or(1, char::len_utf8)
        };
        let token = &code[at..at + length];
        if !token.trim().is_empty() {
            tokens.push((at, token));
        }
        at += length;
    }
    tokens
}

/// The line of an offset, from 1.
pub(crate) fn line_of(text: &str, offset: usize) -> usize {
    text.as_bytes()[..offset].iter().filter(|byte| **byte == b'\n').count() + 1
}

/// True if a text is one identifier.
pub(crate) fn is_word(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(is_word_byte)
}

fn is_word_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

fn is_in_word(bytes: &[u8], at: usize) -> bool {
    at > 0 && is_word_byte(bytes[at - 1])
}

fn comment(text: &str, at: usize, whole: &str) -> Comment {
    let mark = ["///", "//!"].into_iter().find(|mark| whole.starts_with(mark)).unwrap_or("//");
    let before = text[..at].rsplit('\n').next().unwrap_or_default();
    Comment {
        line: line_of(text, at),
        mark,
        is_trailing: !before.trim().is_empty(),
        text: whole[mark.len()..].trim_start_matches('/').to_owned(),
    }
}

fn block_length(rest: &str) -> usize {
    let mut depth = 0_usize;
    let mut at = 0;
    while at < rest.len() {
        let here = &rest.as_bytes()[at..];
        if here.starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if here.starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    rest.len()
}

/// Length of a raw text such as `r#"…"#` or `br"…"`, if one begins here.
fn raw_length(rest: &str) -> Option<usize> {
    let prefix = ["br", "cr", "r"].into_iter().find(|prefix| rest.starts_with(prefix))?;
    let after = &rest[prefix.len()..];
    let hashes = after.bytes().take_while(|byte| *byte == b'#').count();
    after[hashes..].strip_prefix('"')?;
    let close = format!("\"{}", "#".repeat(hashes));
    let start = prefix.len() + hashes + 1;
    Some(rest[start..].find(&close).map_or(rest.len(), |end| start + end + close.len()))
}

fn text_length(rest: &str) -> usize {
    let mut is_escaped = false;
    for (at, byte) in rest.bytes().enumerate().skip(1) {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = true,
            b'"' => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

/// Length of a character such as `'a'` or `'\u{1}'`; 1 for the quote of a lifetime or label.
fn char_length(rest: &str) -> usize {
    let mut chars = rest.char_indices().skip(1);
    match chars.next() {
        Some((_, '\\')) => rest[2..].find('\'').map_or(1, |end| {
            // `'\''` has its quote escaped.
            if end == 0 { rest[3..].find('\'').map_or(1, |end| end + 4) } else { end + 3 }
        }),
        Some(_) => match chars.next() {
            Some((at, '\'')) => at + 1,
            _ => 1,
        },
        None => 1,
    }
}

/// Length of the item at the beginning of code, attributes included.
fn item_length(code: &str) -> usize {
    let (mut braces, mut others) = (0_usize, 0_usize);
    let first = code.trim_start().trim_start_matches("pub ").split_whitespace().next().unwrap_or_default();
    let is_use = first == "use";
    let is_field = first.ends_with(':') || first.ends_with(',');
    for (at, byte) in code.bytes().enumerate() {
        match byte {
            b'(' | b'[' => others += 1,
            b')' | b']' => others = others.saturating_sub(1),
            b'{' => braces += 1,
            b'}' => {
                braces = braces.saturating_sub(1);
                if braces == 0 && others == 0 && !is_use {
                    return at + 1;
                }
            }
            b';' if braces == 0 && others == 0 => return at + 1,
            // A field or a variant ends so.
            b',' if is_field && braces == 0 && others == 0 => return at + 1,
            _ => {}
        }
    }
    code.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_is_told_from_comments_and_texts() {
        let text = "let a = \"// no {\"; // yes\nlet b = r#\"/* \" no */\"#; /* one\n * two */ let c: &'a u8 = '\"'; \
                    '\\''; b\n";
        let source = Source::scan(text);
        assert_eq!(source.code.len(), text.len());
        assert_eq!(source.code.split_whitespace().collect::<Vec<_>>().join(" "), {
            "let a = \" \"; let b = ; let c: &'a u8 = ' '; ' '; b"
        });
        let comments: Vec<_> = source.comments.iter().map(|c| (c.line, c.mark, c.text.trim())).collect();
        assert_eq!(comments, [(1, "//", "yes"), (2, "/*", "one"), (3, "/*", "two")]);
        assert_eq!(source.raw.len(), 1);
    }

    #[test]
    fn test_code_is_left_out() {
        let text = "use a::b;\n#[cfg(test)]\nuse c::{d, e};\n#[cfg(test)]\nmod f {\n fn g() {}\n}\n\
                    #[cfg(test)]\n#[path = \"x\"]\nmod h;\nfn i() {}\n";
        let source = Source::scan(text);
        assert_eq!(source.without_tests().split_whitespace().collect::<Vec<_>>().join(" "), "use a::b; fn i() {}");
        assert_eq!(source.test_modules(), ["h"]);
    }

    #[test]
    fn tokens_have_their_places() {
        assert_eq!(tokens("a::b {c}"), [(0, "a"), (1, "::"), (3, "b"), (5, "{"), (6, "c"), (7, "}")]);
        assert_eq!(line_of("a\nb\nc", 4), 3);
    }
}
