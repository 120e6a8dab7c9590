//! Verb `tidy`: rules of the tree that no compiler checks, one in a file each, on every file that git knows or would
//! add.

mod cycles;
mod document_links;
mod import_paths;
mod layers;
mod markdown;
mod module_files;
mod promises;
mod reference_rows;
mod rust_source;
mod shown_commands;
mod source_files;
mod tree;
mod width;
mod words;

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use crate::{run, workspace};
use cycles::Modules;
use tree::Tree;

/// Arguments of `tidy`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Check words and widths alone, and of these files and folders alone
    #[arg(long, value_name = "PATH", num_args = 1..)]
    words: Vec<String>,
    /// Print which module uses which in the crates of this folder, level by level, with a place for each; and their
    /// cycles
    #[arg(long, value_name = "FOLDER", conflicts_with = "words")]
    imports: Option<String>,
}

/// Runs the verb.
pub(crate) fn main(args: &Args) -> Result<ExitCode> {
    let root = workspace::root();
    if !args.words.is_empty() {
        let below = args.words.iter().map(|path| from_root(&root, path)).collect::<Result<Vec<_>>>()?;
        return Ok(print(&words(&Tree::read(&root)?, |path| below.iter().any(|below| is_below(path, below)))));
    }
    if let Some(folder) = &args.imports {
        let folder = from_root(&root, folder)?;
        return Ok(print_imports(&Tree::read(&root)?, &folder));
    }
    run::step("tidy", check)?;
    Ok(ExitCode::SUCCESS)
}

/// Fails with every breach of a rule, one a line.
pub(crate) fn check() -> Result<()> {
    let tree = Tree::read(&workspace::root())?;
    let mut breaches: Vec<String> = tree.files().flat_map(|(path, text)| source_files::breaches(path, text)).collect();
    breaches.extend(words(&tree, |_| true));
    breaches.extend(crates(&tree).iter().flat_map(|sources| cycles::breaches(sources, tree.texts())));
    breaches.extend(layers::breaches(&tree)?);
    breaches.extend(module_files::breaches(&tree));
    breaches.extend(promises::breaches(&tree));
    breaches.extend(reference_rows::breaches(&tree));
    breaches.extend(document_links::breaches(&tree));
    breaches.extend(shown_commands::breaches(&tree));
    if breaches.is_empty() {
        return Ok(());
    }
    bail!("{} breaches of the tree's rules:\n{}", breaches.len(), breaches.join("\n"));
}

/// Breaches of the rules of words and widths in the files that are chosen.
fn words(tree: &Tree, is_chosen: impl Fn(&str) -> bool) -> Vec<String> {
    let of = |(path, text): (&str, &str)| [words::breaches(path, text), width::breaches(path, text)].concat();
    tree.texts().filter(|(path, _)| is_chosen(path)).flat_map(of).collect()
}

/// The folders of sources of all crates.
fn crates(tree: &Tree) -> Vec<String> {
    let manifests = tree.texts().filter_map(|(path, _)| path.strip_suffix("Cargo.toml"));
    manifests.map(|folder| format!("{folder}src/")).filter(|sources| tree.has(sources)).collect()
}

fn print(breaches: &[String]) -> ExitCode {
    breaches.iter().for_each(|breach| run::print(breach));
    if breaches.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn print_imports(tree: &Tree, folder: &str) -> ExitCode {
    let mut cycles = Vec::new();
    for sources in crates(tree).iter().filter(|sources| is_below(sources, folder)) {
        for (parent, edges) in Modules::read(sources, tree.texts()).levels() {
            run::print(&format!("{sources}{}", parent.join("/")));
            for ((from, to), place) in edges {
                run::print(&format!("    {from} -> {to} ({place})"));
            }
        }
        cycles.extend(cycles::breaches(sources, tree.texts()));
    }
    print(&cycles)
}

/// A path of the command line, from the root of the checkout.
fn from_root(root: &Path, path: &str) -> Result<String> {
    let absolute = std::path::absolute(path).with_context(|| format!("looking for {path}"))?;
    let below = absolute.strip_prefix(root).map(|path| path.to_string_lossy().into_owned());
    below.with_context(|| format!("{path} is not below {}", root.display()))
}

fn is_below(path: &str, folder: &str) -> bool {
    let folder = folder.trim_end_matches('/');
    folder.is_empty() || path.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_what_is_below_it() {
        assert!(is_below("a/b.rs", "a/") && is_below("a/b.rs", "") && is_below("a/b.rs", "a/b.rs"));
        assert!(!is_below("ab/c.rs", "a") && !is_below("a.rs", "a"));
    }

    #[test]
    fn this_tree_keeps_the_rules_of_documents() {
        let tree = Tree::read(&workspace::root()).unwrap();
        let breaches =
            [document_links::breaches(&tree), reference_rows::breaches(&tree), shown_commands::breaches(&tree)];
        assert_eq!(breaches.concat(), Vec::<String>::new());
    }
}
