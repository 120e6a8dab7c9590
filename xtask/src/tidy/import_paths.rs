//! The paths that Rust code names: `use` trees expanded, and paths within expressions and types.

use super::rust_source::tokens;

/// A path as written, one of a `use` tree included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Named {
    /// Segments of the path, without `self` and `as` names at the end; a glob ends with `*`.
    pub(crate) segments: Vec<String>,
    /// The name that a `use` brings into scope.
    pub(crate) alias: Option<String>,
    /// Offset of its first segment, or of the tree that it is part of.
    pub(crate) offset: usize,
}

/// Every path of two segments or more, and every path of a `use`.
pub(crate) fn paths(code: &str) -> Vec<Named> {
    let tokens = tokens(code);
    let mut found = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let (offset, token) = tokens[at];
        let is_after_path = at > 0 && matches!(tokens[at - 1].1, "::" | ".");
        if token == "use" && !is_after_path {
            at = tree(&tokens, at + 1, offset, &mut Vec::new(), &mut found);
        } else if token == "in" && at >= 2 && tokens[at - 1].1 == "(" && tokens[at - 2].1 == "pub" {
            // A visibility: it names no item.
            while at < tokens.len() && tokens[at].1 != ")" {
                at += 1;
            }
        } else if is_name(token) && !is_after_path && tokens.get(at + 1).is_some_and(|(_, next)| *next == "::") {
            let mut segments = vec![token.to_owned()];
            at += 1;
            while tokens.get(at).is_some_and(|(_, sign)| *sign == "::")
                && tokens.get(at + 1).is_some_and(|(_, name)| is_name(name))
            {
                segments.push(tokens[at + 1].1.to_owned());
                at += 2;
            }
            found.push(Named { segments, alias: None, offset });
        } else {
            at += 1;
        }
    }
    found
}

/// Reads one branch of a `use` tree; returns the place after it.
fn tree(
    tokens: &[(usize, &str)],
    mut at: usize,
    offset: usize,
    prefix: &mut Vec<String>,
    found: &mut Vec<Named>,
) -> usize {
    let depth = prefix.len();
    let mut alias = None;
    let mut is_group = false;
    while let Some((_, token)) = tokens.get(at) {
        match *token {
            "::" => at += 1,
            "{" => {
                is_group = true;
                at += 1;
                while tokens.get(at).is_some_and(|(_, token)| *token != "}") {
                    let before = at;
                    at = tree(tokens, at, offset, prefix, found);
                    at += usize::from(tokens.get(at).is_some_and(|(_, token)| *token == ","));
                    if at == before {
                        break;
                    }
                }
                at += 1;
                break;
            }
            "as" => {
                alias = tokens.get(at + 1).map(|(_, name)| (*name).to_owned());
                at += 2;
            }
            "*" => {
                prefix.push("*".to_owned());
                at += 1;
            }
            "$" => at += 1,
            name if is_name(name) => {
                prefix.push(name.to_owned());
                at += 1;
            }
            _ => break,
        }
    }
    if !is_group && prefix.len() > depth {
        let mut segments = prefix.clone();
        if segments.len() > 1 && segments.last().is_some_and(|last| last == "self") {
            segments.pop();
        }
        let alias = alias.or_else(|| segments.last().cloned());
        found.push(Named { segments, alias, offset });
    }
    prefix.truncate(depth);
    at
}

fn is_name(token: &str) -> bool {
    token.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(code: &str, expected: &[&str]) {
        let found = paths(code);
        let found: Vec<String> = found
            .iter()
            .map(|named| {
                let path = named.segments.join("::");
                let last = named.segments.last();
                match &named.alias {
                    Some(alias) if Some(alias) != last => format!("{path} as {alias}"),
                    _ => path,
                }
            })
            .collect();
        assert_eq!(found, expected, "{code}");
    }

    #[test]
    fn use_trees_are_expanded() {
        check("use crate::a;", &["crate::a"]);
        check(
            "pub use super::{a::{b, c as d}, e::{self, f}, g::*};",
            &["super::a::b", "super::a::c as d", "super::e", "super::e::f", "super::g::*"],
        );
        check("use {std::fs, crate::x};", &["std::fs", "crate::x"]);
        check("use a::{\n    b,\n    c,\n};\nfn f() {}", &["a::b", "a::c"]);
    }

    #[test]
    fn paths_in_code_are_found() {
        check("let x = crate::a::f(b::C { d: e }, |g| h.i());", &["crate::a::f", "b::C"]);
        check("fn f<T: super::Tr>() -> Vec::<crate::x::Y> {}", &["super::Tr", "Vec", "crate::x::Y"]);
        check("pub(in crate::a) fn f() { for x in crate::b::c() {} }", &["crate::b::c"]);
        check("$crate::a::b!(x)", &["crate::a::b"]);
    }
}
