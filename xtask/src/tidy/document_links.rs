//! Documents are there, short enough for one sitting, and their links lead somewhere; each page of `docs/` is in the
//! summary.

use super::markdown::{anchors, links};
use super::tree::Tree;

/// The documents beside the code that have to be there.
const DOCUMENTS: [&str; 4] = ["README.md", "ARCHITECTURE.md", "CHANGELOG.md", "SECURITY.md"];
/// Everything else that is written for people.
const PAGES: &str = "docs/";
/// The table of contents that mdbook reads.
const SUMMARY: &str = "docs/SUMMARY.md";
/// Most lines of the README, as soon as there are pages to read on.
const README_LINES: usize = 200;
/// Most lines of a page.
const PAGE_LINES: usize = 400;

/// The documents and pages, with their texts.
pub(crate) fn documents(tree: &Tree) -> impl Iterator<Item = (&str, &str)> {
    let is_document = |path: &str| DOCUMENTS.contains(&path) || path.starts_with(PAGES) && path.ends_with(".md");
    tree.texts().filter(move |(path, _)| is_document(path))
}

/// Every breach of these rules.
pub(crate) fn breaches(tree: &Tree) -> Vec<String> {
    let missing = DOCUMENTS.iter().filter(|path| tree.text(path).is_none());
    let mut breaches: Vec<String> = missing.map(|path| format!("{path}: is missing")).collect();
    for (path, text) in documents(tree) {
        let dead = links(text).into_iter().filter(|(_, target)| !is_there(tree, path, target));
        breaches.extend(dead.map(|(line, target)| format!("{path}:{line}: the link {target} leads nowhere")));
        let lines = text.lines().count();
        if let Some(most) = length(tree, path).filter(|most| lines > *most) {
            breaches.push(format!("{path}: has {lines} lines, and {most} are the most: split it"));
        }
    }
    let summary = tree.text(SUMMARY);
    let listed: Vec<String> =
        links(summary.unwrap_or_default()).iter().map(|(_, target)| resolve(SUMMARY, target)).collect();
    let pages = tree.texts().map(|(path, _)| path).filter(|path| path.starts_with(PAGES) && path.ends_with(".md"));
    for page in pages.filter(|page| *page != SUMMARY && !listed.iter().any(|listed| listed == page)) {
        breaches.push(format!("{page}: is not in {SUMMARY}"));
    }
    breaches
}

fn length(tree: &Tree, path: &str) -> Option<usize> {
    match path {
        "README.md" => tree.text(SUMMARY).is_some().then_some(README_LINES),
        _ => path.starts_with(PAGES).then_some(PAGE_LINES),
    }
}

/// True if a link of a document leads to a file, and to a heading there if it names one.
fn is_there(tree: &Tree, from: &str, target: &str) -> bool {
    if target.contains("://") || target.starts_with("mailto:") {
        return true;
    }
    let (file, heading) = target.split_once('#').map_or((target, None), |(file, heading)| (file, Some(heading)));
    let path = if file.is_empty() { from.to_owned() } else { resolve(from, file) };
    let heading_is_there = |heading: &str| {
        let text = tree.text(&path).filter(|_| path.ends_with(".md"));
        text.is_none_or(|text| anchors(text).iter().any(|known| known == heading))
    };
    tree.has(&path) && heading.is_none_or(heading_is_there)
}

/// A link's path from the root of the checkout.
fn resolve(from: &str, target: &str) -> String {
    let folder = from.rsplit_once('/').map_or("", |(folder, _)| folder);
    let target = target.split('#').next().unwrap_or_default();
    let mut parts: Vec<&str> = folder.split('/').filter(|part| !part.is_empty()).collect();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &str)]) -> Tree {
        let there = DOCUMENTS.iter().filter(|path| !files.iter().any(|(of, _)| of == *path)).map(|path| (*path, ""));
        Tree::of(&[files, &there.collect::<Vec<_>>()].concat())
    }

    #[test]
    fn a_link_leads_somewhere() {
        let readme = "# How it works: 1\n\
                      [a](docs/a.md) [b](docs/a.md#x) [c](https://example.com/)\n[d](#how-it-works-1) \
                      [e](gone) [f](#gone) [g](docs/a.md#gone) [h](docs/) [i](Cargo.toml#L3)\n```\n[j](gone)\n```\n";
        let page = "## X\n[up](../README.md) [side](b.md) [gone](../docs/c.md)\n";
        let summary = "- [A](a.md)\n- [B](./b.md)\n";
        let files =
            [("README.md", readme), ("docs/a.md", page), ("docs/b.md", ""), (SUMMARY, summary), ("Cargo.toml", "")];
        let found = breaches(&tree(&files));
        assert_eq!(found.len(), 4, "{found:?}");
        assert!(found.iter().all(|breach| breach.contains("gone") || breach.contains("c.md")), "{found:?}");
    }

    #[test]
    fn documents_are_there_and_not_too_long() {
        assert_eq!(breaches(&Tree::default()).len(), DOCUMENTS.len());
        let long = "x\n".repeat(PAGE_LINES + 1);
        assert_eq!(breaches(&tree(&[("README.md", &long)])).len(), 0, "there is nowhere to read on");
        let summary = "[long](long.md)";
        let found = breaches(&tree(&[("README.md", &long), ("docs/long.md", &long), (SUMMARY, summary)]));
        assert_eq!(found.len(), 2, "{found:?}");
    }

    #[test]
    fn a_page_is_in_the_summary() {
        let found = breaches(&tree(&[("docs/a.md", ""), ("docs/b/c.md", ""), (SUMMARY, "[c](b/c.md#d)\n")]));
        assert_eq!(
            found,
            ["docs/SUMMARY.md:1: the link b/c.md#d leads nowhere", "docs/a.md: is not in docs/SUMMARY.md"]
        );
    }
}
