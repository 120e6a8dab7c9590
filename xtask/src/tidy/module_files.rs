//! Files of modules: a module with children is `folder/mod.rs`; no target borrows files of another by `#[path]`.

use super::tree::Tree;

/// Every breach of these rules.
pub(crate) fn breaches(tree: &Tree) -> Vec<String> {
    let mut breaches = Vec::new();
    for (path, text) in tree.texts().filter(|(path, _)| path.ends_with(".rs")) {
        let folder = path.trim_end_matches(".rs");
        // A target of Cargo names its modules itself.
        if path.contains("/src/") && tree.has(folder) {
            breaches.push(format!("{path}: stands beside {folder}/: name it {folder}/mod.rs"));
        }
        let lines = (1..).zip(text.lines());
        let borrowed =
            lines.filter(|(_, line)| line.trim_start().starts_with("#[path = \"..")).map(|(number, _)| number);
        breaches
            .extend(borrowed.map(|line| format!("{path}:{line}: borrows a file of elsewhere: share it in a crate")));
    }
    breaches
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_with_children_is_a_folder() {
        let tree = Tree::of(&[
            ("a/src/b.rs", ""),
            ("a/src/b/c.rs", ""),
            ("a/src/d/mod.rs", ""),
            ("a/src/d/e.rs", ""),
            ("a/tests/f.rs", "#[path = \"f/g.rs\"]\nmod g;\n    #[path = \"../src/b.rs\"]\nmod b;\n"),
            ("a/tests/f/g.rs", ""),
        ]);
        assert_eq!(
            breaches(&tree),
            [
                "a/src/b.rs: stands beside a/src/b/: name it a/src/b/mod.rs",
                "a/tests/f.rs:3: borrows a file of elsewhere: share it in a crate"
            ]
        );
    }
}
