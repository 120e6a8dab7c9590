//! The bill of materials, as CycloneDX 1.5: every crate of the agent and of its eBPF programs, and the toolchain's
//! libraries. It is the same for the same lock files and toolchain.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// The program that the bill is of.
pub(super) struct Program<'a> {
    pub(super) name: &'a str,
    pub(super) version: &'a str,
    pub(super) licence: &'a str,
    pub(super) binary: &'a [u8],
    /// RFC 3339.
    pub(super) created: &'a str,
}

/// A part of the program.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Part {
    pub(super) name: String,
    pub(super) version: String,
    pub(super) licence: String,
    /// In the terms of package URLs: `cargo` for crates.
    pub(super) kind: &'static str,
}

/// The crates in the output of `cargo tree --prefix none --format '{p}|{l}'`, each once.
pub(super) fn crates(tree: &str) -> Result<BTreeSet<Part>> {
    let part = |line: &str| {
        // The version is followed by a path, or by a mark of a repeated crate.
        let (package, licence) = line.trim_end_matches(" (*)").split_once('|')?;
        let mut words = package.split(' ');
        let (name, version) = (words.next()?.to_owned(), words.next()?.strip_prefix('v')?.to_owned());
        // Older manifests write `A/B` for `A OR B`.
        Some(Part { name, version, licence: licence.replace('/', " OR "), kind: "cargo" })
    };
    let lines = tree.lines().filter(|line| !line.is_empty());
    lines.map(|line| part(line).with_context(|| format!("`cargo tree` says {line:?}"))).collect()
}

/// The digests of a lock file's crates, by name and version.
pub(super) fn checksums(lock: &str) -> BTreeMap<(String, String), String> {
    let field = |package: &str, name: &str| {
        let line = package.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(" = \""));
        line.map(|value| value.trim_end_matches('"').to_owned())
    };
    let packages = lock.split("[[package]]").skip(1);
    let entry = |package| Some(((field(package, "name")?, field(package, "version")?), field(package, "checksum")?));
    packages.filter_map(entry).collect()
}

/// Renders the document.
pub(super) fn render(
    of: &Program<'_>,
    parts: &BTreeSet<Part>,
    checksums: &BTreeMap<(String, String), String>,
) -> Result<String> {
    let component = |part: &Part| {
        let Part { name, version, licence, kind } = part;
        let mut component = json!({
            "type": "library",
            "bom-ref": format!("pkg:{kind}/{name}@{version}"),
            "name": name,
            "version": version,
            "licenses": [{"expression": licence}],
            "purl": format!("pkg:{kind}/{name}@{version}"),
        });
        if let Some(sum) = checksums.get(&(name.clone(), version.clone())) {
            component["hashes"] = json!([{"alg": "SHA-256", "content": sum}]);
        }
        component
    };
    let digest: String = Sha256::digest(of.binary).iter().map(|octet| format!("{octet:02x}")).collect();
    let document = json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "timestamp": of.created,
            "component": {
                "type": "application",
                "name": of.name,
                "version": of.version,
                "licenses": [{"expression": of.licence}],
                "hashes": [{"alg": "SHA-256", "content": digest}],
            },
        },
        "components": parts.iter().map(component).collect::<Vec<Value>>(),
    });
    Ok(serde_json::to_string_pretty(&document).context("writing the bill of materials")? + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_and_a_lock_file_become_a_bill() {
        let tree =
            "own v0.1.0 (/x/own)|MIT\na v1.2.3|MIT/Apache-2.0\nb v0.1.0-rc.1+x|ISC\na v1.2.3|MIT/Apache-2.0 (*)\n\n";
        let parts = crates(tree).expect("a tree");
        let names: Vec<_> = parts.iter().map(|part| (&*part.name, &*part.version, &*part.licence)).collect();
        assert_eq!(names, [("a", "1.2.3", "MIT OR Apache-2.0"), ("b", "0.1.0-rc.1+x", "ISC"), ("own", "0.1.0", "MIT")]);
        assert!(crates("a 1.2.3|MIT").is_err() && crates("a v1.2.3").is_err());
        let lock = "version = 4\n[[package]]\nname = \"a\"\nversion = \"1.2.3\"\nchecksum = \"00ff\"\n\
                    dependencies = [\n \"b\",\n]\n\n\
                    [[package]]\nname = \"own\"\nversion = \"0.1.0\"\n";
        let sums = checksums(lock);
        assert_eq!(sums, [(("a".to_owned(), "1.2.3".to_owned()), "00ff".to_owned())].into());
        let of = Program { name: "p", version: "1", licence: "MIT", binary: b"", created: "1970-01-01T00:00:00Z" };
        let text = render(&of, &parts, &sums).expect("JSON");
        assert_eq!(text, render(&of, &parts, &sums).expect("JSON"));
        let document: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(document["components"][0]["purl"], "pkg:cargo/a@1.2.3");
        assert_eq!(document["components"][0]["hashes"][0]["content"], "00ff");
        assert!(document["components"][2].get("hashes").is_none(), "ours have none");
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(document["metadata"]["component"]["hashes"][0]["content"], empty);
    }
}
