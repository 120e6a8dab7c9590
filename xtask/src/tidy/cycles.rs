//! Import cycles between the modules of a crate.
//!
//! The rule, at every level of the module tree: the children of a module, each with all that is below it, refer to one
//! another without a cycle. A file refers to the module that defines what its paths name; names that a module only
//! re-exports are followed to the child that has them. A module and what is below it are no cycle: a parent may
//! declare, use and re-export its children, and a child may use what its parent's own file defines (`super::Thing`).
//! Code for tests alone is left out.
//!
//! A cycle of files that leaves out parents' own files always shows: at the level where its files part, their folders
//! form one.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::import_paths::{Named, paths};
use super::rust_source::{Source, is_word, line_of, tokens};

/// A module by the names that lead to it; the crate's root has none.
type Path = Vec<String>;

/// Pairs of children of a module, the first of which refers to the second, and a place for each.
type Edges = BTreeMap<(String, String), String>;

/// The modules of one crate.
#[derive(Default)]
pub(crate) struct Modules {
    files: BTreeMap<Path, Vec<File>>,
}

struct File {
    /// As messages name it.
    path: String,
    code: String,
    uses: Vec<Named>,
}

/// Every cycle of a crate whose sources begin with `folder`, such as `lb-user/core/src/`.
pub(crate) fn breaches<'a>(folder: &str, files: impl Iterator<Item = (&'a str, &'a str)>) -> Vec<String> {
    Modules::read(folder, files).cycles().into_iter().map(|cycle| format!("{folder}: {cycle}")).collect()
}

impl Modules {
    /// Reads the files of a crate; those for tests alone are left out.
    pub(crate) fn read<'a>(folder: &str, files: impl Iterator<Item = (&'a str, &'a str)>) -> Self {
        let mut modules = Self::default();
        let mut for_tests = BTreeSet::new();
        for (path, text) in files {
            let Some(module) = path.strip_prefix(folder).and_then(module_of) else { continue };
            let source = Source::scan(text);
            for name in source.test_modules() {
                for_tests.insert([module.clone(), vec![name]].concat());
            }
            let code = source.without_tests();
            let uses = paths(&code);
            modules.files.entry(module).or_default().push(File { path: path.to_owned(), code, uses });
        }
        modules.files.retain(|module, _| !(1..=module.len()).any(|length| for_tests.contains(&module[..length])));
        modules
    }

    /// Each cycle in a line, with the place of each reference.
    fn cycles(&self) -> Vec<String> {
        let mut found = Vec::new();
        for (parent, edges) in self.levels() {
            let mut seen = BTreeSet::new();
            let names: BTreeSet<&String> = edges.keys().map(|(from, _)| from).collect();
            let mut cycles: Vec<Vec<String>> = names.iter().filter_map(|name| shortest_cycle(&edges, name)).collect();
            cycles.sort_by_key(Vec::len);
            for cycle in cycles {
                if cycle.iter().any(|name| seen.contains(name)) {
                    continue;
                }
                let pairs = cycle.iter().zip(cycle.iter().cycle().skip(1));
                let places: Vec<&str> =
                    pairs.filter_map(|(from, to)| edges.get(&(from.clone(), to.clone())).map(String::as_str)).collect();
                let below = if parent.is_empty() { "the crate".to_owned() } else { parent.join("::") };
                let first = &cycle[0];
                found.push(format!(
                    "import cycle in {below}: {} -> {first} ({})",
                    cycle.join(" -> "),
                    places.join(", ")
                ));
                seen.extend(cycle);
            }
        }
        found
    }

    /// For each module with children: which child refers to which other, and where.
    pub(crate) fn levels(&self) -> BTreeMap<Path, Edges> {
        let mut levels: BTreeMap<Path, Edges> = BTreeMap::new();
        for (from, files) in &self.files {
            for file in files {
                for (to, offset) in self.targets(from, file) {
                    let common = from.iter().zip(&to).take_while(|(a, b)| a == b).count();
                    if let (Some(a), Some(b)) = (from.get(common), to.get(common)) {
                        let edges = levels.entry(from[..common].to_vec()).or_default();
                        let place = || format!("{}:{}", file.path, line_of(&file.code, offset));
                        edges.entry((a.clone(), b.clone())).or_insert_with(place);
                    }
                }
            }
        }
        levels
    }

    /// The modules that a file's paths lead to.
    fn targets(&self, module: &Path, file: &File) -> Vec<(Path, usize)> {
        let mut targets = Vec::new();
        for named in &file.uses {
            let Some(path) = self.absolute(module, &named.segments) else { continue };
            if path.last().is_some_and(|last| last == "*") {
                let base = path[..path.len() - 1].to_vec();
                if self.files.contains_key(&base) && module.starts_with(&base) {
                    // A glob brings all names of a parent: the code shows which of them it uses.
                    let words = tokens(&file.code).into_iter().filter(|(_, token)| is_word(token));
                    let reached =
                        words.map(|(at, word)| (self.resolve(&[base.clone(), vec![word.to_owned()]].concat()), at));
                    targets.extend(reached.filter(|(target, _)| target.len() > base.len()));
                }
                targets.push((self.resolve(&base), named.offset));
            } else {
                targets.push((self.resolve(&path), named.offset));
            }
        }
        targets
    }

    /// A path from the crate's root, if it is of this crate: by `crate`, `self` and `super`, or by the name of a child.
    fn absolute(&self, module: &Path, segments: &[String]) -> Option<Path> {
        let (first, rest) = segments.split_first()?;
        match first.as_str() {
            "crate" => Some(rest.to_vec()),
            "self" => Some([module.as_slice(), rest].concat()),
            "super" => {
                let ups = segments.iter().take_while(|segment| *segment == "super").count();
                let base = &module[..module.len().checked_sub(ups)?];
                Some([base, &segments[ups..]].concat())
            }
            _ => {
                let child = [module.as_slice(), std::slice::from_ref(first)].concat();
                self.files.contains_key(&child).then(|| [module.as_slice(), segments].concat())
            }
        }
    }

    /// The module that defines what a path names; re-exports are followed.
    fn resolve(&self, path: &[String]) -> Path {
        self.follow(path, 8).unwrap_or_default()
    }

    fn follow(&self, path: &[String], depth: usize) -> Option<Path> {
        let depth = depth.checked_sub(1)?;
        let length = (0..=path.len()).rev().find(|length| self.files.contains_key(&path[..*length])).unwrap_or(0);
        let module = path[..length].to_vec();
        let Some(name) = path.get(length) else { return Some(module) };
        for file in self.files.get(&module).into_iter().flatten() {
            if defines(&file.code, name) {
                return Some(module);
            }
            let imported = file.uses.iter().filter(|named| named.alias.is_some());
            for named in imported {
                let is_glob = named.segments.last().is_some_and(|last| last == "*");
                let Some(target) = self.absolute(&module, &named.segments) else { continue };
                if is_glob {
                    let base = &target[..target.len() - 1];
                    let reached = self.follow(&[base, &path[length..]].concat(), depth);
                    if base != module
                        && reached.as_ref().is_some_and(|reached| self.has(reached, &path[path.len() - 1]))
                    {
                        return reached;
                    }
                } else if named.alias.as_ref() == Some(name) && target != path {
                    return self.follow(&[&target, &path[length + 1..]].concat(), depth);
                }
            }
        }
        Some(module)
    }

    fn has(&self, module: &Path, name: &str) -> bool {
        self.files.get(module).into_iter().flatten().any(|file| defines(&file.code, name))
    }
}

/// True if code has an item of that name.
fn defines(code: &str, name: &str) -> bool {
    const KINDS: [&str; 9] = ["struct", "enum", "fn", "trait", "type", "const", "static", "union", "mod"];
    code.match_indices(name).any(|(at, _)| {
        let is_whole = !code[at + name.len()..].starts_with(|c: char| c.is_alphanumeric() || c == '_');
        let before = code[..at].trim_end();
        is_whole
            && before.len() < at
            && KINDS.iter().any(|kind| {
                before.strip_suffix(kind).is_some_and(|rest| !rest.ends_with(|c: char| c.is_alphanumeric() || c == '_'))
            })
    })
}

/// The module that a file below `src/` is; `main.rs` and `lib.rs` are both the root.
fn module_of(path: &str) -> Option<Path> {
    let stem = path.strip_suffix(".rs")?;
    let mut module: Path = stem.split('/').map(str::to_owned).collect();
    let last = module.last()?;
    if last == "mod" || (module.len() == 1 && (last == "lib" || last == "main")) {
        module.pop();
    }
    Some(module)
}

fn shortest_cycle(edges: &Edges, start: &str) -> Option<Vec<String>> {
    let mut came_from: BTreeMap<&str, &str> = BTreeMap::new();
    let mut queue = VecDeque::from([start]);
    while let Some(name) = queue.pop_front() {
        for (_, next) in edges.keys().filter(|(from, _)| from == name) {
            if next == start {
                let mut cycle = vec![name.to_owned()];
                let mut at = name;
                while at != start {
                    at = came_from.get(at)?;
                    cycle.push(at.to_owned());
                }
                cycle.reverse();
                return Some(cycle);
            }
            if !came_from.contains_key(next.as_str()) {
                came_from.insert(next, name);
                queue.push_back(next);
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks the cycles of a small crate, each without its places.
    fn check(files: &[(&str, &str)], expected: &[&str]) {
        let cycles = Modules::read("src/", files.iter().copied()).cycles();
        let cycles: Vec<&str> = cycles.iter().filter_map(|cycle| cycle.split(" (").next()).collect();
        assert_eq!(cycles, expected, "{files:?}");
    }

    #[test]
    fn one_way_is_no_cycle() {
        check(&[("src/a.rs", "use crate::b::B;"), ("src/b.rs", "use std::fs;")], &[]);
        check(&[("src/a.rs", "// use crate::b\nlet x = \"crate::b\";"), ("src/b.rs", "use crate::a;")], &[]);
    }

    #[test]
    fn siblings_that_use_each_other_are_a_cycle() {
        let cycles = Modules::read(
            "src/",
            [("src/a.rs", "\nuse crate::b;"), ("src/b.rs", "fn f() { super::a::g() }")].into_iter(),
        );
        assert_eq!(cycles.cycles(), ["import cycle in the crate: a -> b -> a (src/a.rs:2, src/b.rs:1)"]);
        check(
            &[("src/a.rs", "use crate::{b::B, c};"), ("src/b.rs", "use crate::c;"), ("src/c.rs", "use crate::a::A;")],
            &["import cycle in the crate: a -> c -> a"],
        );
    }

    #[test]
    fn folders_are_judged_with_what_is_below_them() {
        let files = [
            ("src/x/a.rs", "use crate::y::b;"),
            ("src/y/b.rs", ""),
            ("src/y/c.rs", "use crate::x::d;"),
            ("src/x/d.rs", ""),
        ];
        check(&files, &["import cycle in the crate: x -> y -> x"]);
        let inner = [("src/x/mod.rs", ""), ("src/x/a.rs", "use super::b::B;"), ("src/x/b.rs", "use crate::x::a;")];
        check(&inner, &["import cycle in x: a -> b -> a"]);
    }

    #[test]
    fn a_parent_and_its_child_are_no_cycle() {
        let files = [
            ("src/lib.rs", "mod x; pub use x::X;"),
            ("src/x/mod.rs", "mod a; pub use a::A; pub struct X(A);"),
            ("src/x/a.rs", "use super::X; use crate::Y;"),
        ];
        check(&files, &[]);
    }

    #[test]
    fn a_re_export_hides_no_cycle() {
        let hub = "pub mod a; pub mod b; pub use b::{B, self as bee}; use self::a::*;";
        let by_name =
            [("src/x/mod.rs", hub), ("src/x/a.rs", "use super::B; pub struct A;"), ("src/x/b.rs", "use super::A;")];
        check(&by_name, &["import cycle in x: a -> b -> a"]);
        let by_glob =
            [("src/x/mod.rs", hub), ("src/x/a.rs", "use super::*; fn f(_: B) {}"), ("src/x/b.rs", "use super::a;")];
        check(&by_glob, &["import cycle in x: a -> b -> a"]);
    }

    #[test]
    fn code_for_tests_may_go_round() {
        let files = [
            ("src/a.rs", "use crate::b;"),
            ("src/b.rs", "#[cfg(test)]\nmod tests { use crate::a; }\n#[cfg(test)]\nmod more;"),
            ("src/b/more.rs", "use crate::a;"),
        ];
        check(&files, &[]);
    }
}
