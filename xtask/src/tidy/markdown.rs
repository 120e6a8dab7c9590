//! Markdown as the rules need it: prose and code blocks told apart, headings and their anchors, links.

/// A line of a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Line<'a> {
    /// From 1.
    pub(crate) number: usize,
    /// True in a fenced block of code.
    pub(crate) is_code: bool,
    /// The line itself.
    pub(crate) text: &'a str,
}

/// The lines of a document, without the fences of blocks of code.
pub(crate) fn lines(document: &str) -> Vec<Line<'_>> {
    let mut fence: Option<&str> = None;
    let mut lines = Vec::new();
    for (number, text) in (1..).zip(document.lines()) {
        let trimmed = text.trim_start();
        let mark = ["```", "~~~"].into_iter().find(|mark| trimmed.starts_with(mark));
        match (fence, mark) {
            (None, Some(mark)) => fence = Some(mark),
            (Some(open), Some(mark)) if open == mark => fence = None,
            _ => lines.push(Line { number, is_code: fence.is_some(), text }),
        }
    }
    lines
}

/// The anchors of a document: of its headings, and of its HTML.
pub(crate) fn anchors(document: &str) -> Vec<String> {
    let mut anchors: Vec<String> = Vec::new();
    for Line { text, .. } in lines(document).iter().filter(|line| !line.is_code) {
        if text.starts_with('#') {
            let anchor = anchor(text);
            let same = anchors.iter().filter(|known| **known == anchor).count();
            // GitHub and mdbook number the later ones of equal headings.
            anchors.push(if same == 0 { anchor } else { format!("{anchor}-{same}") });
        }
        for mark in ["id=\"", "name=\""] {
            anchors.extend(text.split(mark).skip(1).filter_map(|rest| rest.split('"').next()).map(str::to_owned));
        }
    }
    anchors
}

/// The targets of links and pictures, with the line of each.
pub(crate) fn links(document: &str) -> Vec<(usize, String)> {
    let mut links = Vec::new();
    for Line { number, text, .. } in lines(document).into_iter().filter(|line| !line.is_code) {
        let prose = without_code(text);
        let inline = prose.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target);
        let target =
            |text: &str| text.split_whitespace().next().unwrap_or_default().trim_matches(['<', '>']).to_owned();
        links.extend(inline.map(|text| (number, target(text))));
        if prose.starts_with('[')
            && let Some((_, definition)) = prose.split_once("]: ")
        {
            links.push((number, target(definition)));
        }
    }
    links
}

/// Prose with spans of code blanked, one `x` for each character.
pub(crate) fn without_code(text: &str) -> String {
    let mut parts = text.split('`').peekable();
    let mut prose = String::new();
    let mut is_code = false;
    while let Some(part) = parts.next() {
        // The last backtick without a partner opens nothing.
        if is_code && parts.peek().is_some() {
            prose += "x";
            prose.extend(part.chars().map(|_| 'x'));
            prose += "x";
        } else {
            prose += part;
        }
        is_code = !is_code;
    }
    prose
}

/// The anchor of a heading, as GitHub and mdbook make it.
fn anchor(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = text.chars().filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_is_told_from_prose() {
        let document = "a\n```sh\nb\n```\nc\n";
        let found: Vec<_> = lines(document).into_iter().map(|line| (line.number, line.is_code, line.text)).collect();
        assert_eq!(found, [(1, false, "a"), (3, true, "b"), (5, false, "c")]);
        assert_eq!(without_code("a `b c` d"), "a xxxxx d");
        assert_eq!(without_code("a ` d").trim(), "a  d");
    }

    #[test]
    fn headings_have_anchors() {
        let document = "# How it works: 1\n## `a-b` and c_d\n```\n# no\n```\n## Same\n## Same\n<a id=\"own\"></a>\n";
        assert_eq!(anchors(document), ["how-it-works-1", "a-b-and-c_d", "same", "same-1", "own"]);
    }

    #[test]
    fn links_are_found() {
        let document = "[a](b) and ![c](d \"title\")\n`[no](no)`\n[e]: f#g\n";
        let links = links(document);
        let links: Vec<_> = links.iter().map(|(line, target)| (*line, target.as_str())).collect();
        assert_eq!(links, [(1, "b"), (1, "d"), (3, "f#g")]);
    }
}
