//! The layers of user space: which crate may use which, what the pure core may not touch, and where `unsafe` may stand.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};

use super::import_paths::paths;
use super::rust_source::{Source, line_of, tokens};
use super::tree::Tree;
use crate::run;

/// The crates of user space, lowest layer first: name, folder, layer. A crate uses crates of lower layers only.
const CRATES: [(&str, &str, u8); 7] = [
    (COMMON, "lb-common/", 0),
    (CORE, "lb-user/core/", 1),
    (KERNEL, "lb-user/kernel/", 1),
    ("lb-sources", "lb-user/sources/", 2),
    ("lb-dataplane", "lb-user/dataplane/", 2),
    ("lb-agent", "lb-user/agent/", 3),
    ("lb-user", "lb-user/", 4),
];
/// Shared with the programs in the kernel.
const COMMON: &str = "lb-common";
/// Takes values and returns values.
const CORE: &str = "lb-core";
/// Talks to the kernel, and is the only crate of user space with `unsafe`.
const KERNEL: &str = "lb-kernel";
/// Shared by tests, benches and the demo. It may use all, and only `xtask` is built on it.
const LAB: &str = "lb-lab";
const LAB_USERS: [&str; 1] = ["xtask"];

/// Crates that the core does without, however deep in its tree: a runtime, the API, the kernel, files.
const NOT_IN_CORE: [&str; 9] = ["tokio", "kube", "k8s-openapi", "aya", "libc", "rustix", "hyper", "notify", "nix"];
/// Paths of the standard library that the core does not name; a last part that ends with `*` is a beginning.
const NOT_NAMED_IN_CORE: [&str; 9] = [
    "std::fs",
    "std::net::Tcp*",
    "std::net::Udp*",
    "std::os::fd",
    "std::process",
    "std::thread",
    "SystemTime::now",
    "Instant::now",
    "std::env",
];

/// Every breach of the layers.
pub(crate) fn breaches(tree: &Tree) -> Result<Vec<String>> {
    let mut breaches = directions(&direct_dependencies()?);
    let args = ["tree", "--locked", "--package", CORE, "--edges=normal", "--prefix=none", "--format={p}"];
    let listing = run::capture(run::cargo().args(args)).context("listing the dependencies of the core")?;
    breaches.extend(impure_dependencies(&listing));
    for (name, folder, _) in CRATES {
        for (path, text) in sources_of(tree, folder) {
            let found = match name {
                CORE => impurities(text),
                // Map layouts are `Pod` in the crate that the programs share.
                KERNEL | COMMON => Vec::new(),
                _ => unsafe_code(text),
            };
            breaches.extend(found.into_iter().map(|breach| format!("{path}:{breach}")));
        }
        let root = format!("{folder}src/lib.rs");
        if name == CORE && !tree.text(&root).is_some_and(forbids_unsafe) {
            breaches.push(format!("{root}: lacks #![forbid(unsafe_code)]"));
        }
    }
    Ok(breaches)
}

/// The sources of a crate that are not for tests alone.
fn sources_of<'a>(tree: &'a Tree, folder: &str) -> impl Iterator<Item = (&'a str, &'a str)> {
    let source = format!("{folder}src/");
    let is_source = move |path: &str| path.starts_with(&source) && path.ends_with(".rs") && !is_for_tests(path);
    tree.texts().filter(move |(path, _)| is_source(path))
}

/// Modules of tests are called so, or stand in a folder called so.
pub(crate) fn is_for_tests(path: &str) -> bool {
    path.split('/').any(|part| part == "tests" || part == "tests.rs")
}

/// Names of the packages of the workspace that each package is built on, tests aside.
fn direct_dependencies() -> Result<BTreeMap<String, BTreeSet<String>>> {
    let metadata = run::capture(run::cargo().args(["metadata", "--no-deps", "--format-version=1"]))?;
    let metadata: serde_json::Value = serde_json::from_str(&metadata).context("reading cargo's metadata")?;
    let packages = metadata["packages"].as_array().context("cargo tells no packages")?;
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let normal = |package: &serde_json::Value| {
        let all = package["dependencies"].as_array().into_iter().flatten();
        all.filter(|of| of["kind"].is_null()).map(|of| text(&of["name"])).collect()
    };
    Ok(packages.iter().map(|package| (text(&package["name"]), normal(package))).collect())
}

/// Dependencies that point sideways or upwards.
fn directions(dependencies: &BTreeMap<String, BTreeSet<String>>) -> Vec<String> {
    let layer = |name: &str| CRATES.iter().find(|(known, ..)| *known == name).map(|(_, _, layer)| *layer);
    let mut breaches = Vec::new();
    for (user, used) in dependencies {
        for used in used {
            if let (Some(above), Some(below)) = (layer(user), layer(used))
                && above <= below
            {
                breaches.push(format!("{user} depends on {used}, which is not of a lower layer"));
            }
            if used == LAB && !LAB_USERS.contains(&user.as_str()) {
                breaches.push(format!("{user} depends on {LAB}, which is for tests, benches and the demo"));
            }
        }
    }
    breaches
}

/// Unwanted crates in the tree of the core's dependencies.
fn impure_dependencies(listing: &str) -> Vec<String> {
    let names: BTreeSet<&str> = listing.lines().filter_map(|line| line.split(' ').next()).collect();
    let found = NOT_IN_CORE.into_iter().filter(|name| names.contains(name));
    found.map(|name| format!("{CORE} depends on {name}: the core takes values and returns values")).collect()
}

/// Unwanted names in the code of the core.
fn impurities(text: &str) -> Vec<String> {
    let code = Source::scan(text).without_tests();
    let mut breaches = Vec::new();
    for named in paths(&code) {
        let path = named.segments.join("::");
        let is_it = |unwanted: &&&str| match unwanted.strip_suffix('*') {
            Some(beginning) => path.starts_with(beginning),
            None if unwanted.starts_with("std::") => path == ***unwanted || path.starts_with(&format!("{unwanted}::")),
            None => path == ***unwanted || path.ends_with(&format!("::{unwanted}")),
        };
        if let Some(unwanted) = NOT_NAMED_IN_CORE.iter().find(is_it) {
            let line = line_of(&code, named.offset);
            breaches.push(format!("{line}: names {unwanted}: the core takes values and returns values"));
        }
    }
    breaches
}

fn unsafe_code(text: &str) -> Vec<String> {
    let code = Source::scan(text).without_tests();
    let found = tokens(&code).into_iter().filter(|(_, token)| *token == "unsafe");
    found.map(|(at, _)| format!("{}: has unsafe code, which is for {KERNEL} alone", line_of(&code, at))).collect()
}

fn forbids_unsafe(text: &str) -> bool {
    let code = Source::scan(text).code;
    let words: Vec<&str> = tokens(&code).into_iter().map(|(_, token)| token).collect();
    words.windows(6).any(|words| words == ["#", "!", "[", "forbid", "(", "unsafe_code"])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crates_use_lower_layers_only() {
        let dependencies = |pairs: &[(&str, &str)]| {
            let mut all: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
            for (user, used) in pairs {
                all.entry((*user).to_owned()).or_default().insert((*used).to_owned());
            }
            all
        };
        let good = dependencies(&[("lb-user", CORE), ("lb-agent", "lb-sources"), (CORE, COMMON), ("xtask", LAB)]);
        assert_eq!(directions(&good), Vec::<String>::new());
        let bad = dependencies(&[(CORE, KERNEL), ("lb-sources", "lb-agent"), ("lb-user", LAB)]);
        assert_eq!(directions(&bad).len(), 3);
    }

    #[test]
    fn the_core_has_no_edge_of_the_world() {
        let listing = "lb-core v0.1.0 (/x)\nserde v1.0.0\ntokio v1.0.0\nserde v1.0.0 (*)\n";
        assert_eq!(impure_dependencies(listing).len(), 1);
        let check = |text: &str, expected: &[&str]| {
            let found = impurities(text);
            let lines: Vec<&str> = found.iter().filter_map(|breach| breach.split(':').next()).collect();
            assert_eq!(lines, expected, "{text}");
        };
        check(
            "use std::net::{IpAddr, Ipv4Addr};\nuse std::time::{Duration, Instant};\n// std::fs\nfn f(now: Instant) {}",
            &[],
        );
        check("use std::{fmt, fs};\nfn f() { std::net::TcpStream::connect(); }", &["1", "2"]);
        check("\nlet a = Instant::now();\nlet b = std::time::SystemTime::now();", &["2", "3"]);
        check("#[cfg(test)]\nmod tests { use std::fs; }\nuse std::net::UdpSocket;", &["3"]);
    }

    #[test]
    fn unsafe_code_is_found() {
        assert_eq!(unsafe_code("#![deny(unsafe_code)]\n// unsafe\nfn f() { unsafe { g() } }").len(), 1);
        assert_eq!(unsafe_code("#[cfg(test)]\nfn f() { unsafe { g() } }\n").len(), 0);
        assert!(forbids_unsafe("//! x\n#![forbid(unsafe_code)]\n") && !forbids_unsafe("// #![forbid(unsafe_code)]\n"));
    }
}
