//! The pins: whether they are ours and whole, of which version, on the host's bpffs, and who holds them.

use std::{collections::BTreeMap, path::PathBuf};

use super::Finding;
use lb_dataplane::{
    bpffs::{self, BpffsOwner},
    pins::Pins,
    upgrade::{
        pinned_maps::{self, MapOrigin},
        programs::{self, MapSizes},
    },
};

const CHECK: &str = "pins";

/// What is pinned, and where.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    root: PathBuf,
    /// Whether this version's directory is there.
    is_pinned: bool,
    agent: Option<u32>,
    /// Whose the file system of the pins is.
    bpffs: BpffsOwner,
    /// Directories of other versions.
    others: Vec<PathBuf>,
    /// By map, or what is foreign.
    maps: Result<BTreeMap<String, MapOrigin>, String>,
}

/// Looks at them.
pub(super) fn read(pins: &Pins, agent: Option<u32>) -> Facts {
    let expected = programs::layouts(&MapSizes::new(), &MapSizes::new());
    let maps = expected.and_then(|expected| pinned_maps::inspect(&pins.current(), &expected));
    Facts {
        root: pins.root().to_owned(),
        is_pinned: pins.current().exists(),
        agent,
        bpffs: bpffs::owner(pins.root()),
        others: pins.others().unwrap_or_default(),
        maps: maps.map_err(|error| format!("{error:#}")),
    }
}

/// What it means.
pub(super) fn evaluate(facts: &Facts) -> Vec<Finding> {
    let root = facts.root.display();
    let mut findings = Vec::new();
    for other in &facts.others {
        let what = format!("{} is of another version of the maps: {}", other.display(), {
            if facts.is_pinned {
                "it should have gone when this one went into service"
            } else {
                "its programs still serve"
            }
        });
        let cure = "start the agent of this version, which takes it out of service once its own programs serve";
        findings.push(Finding::warning(CHECK, what, cure));
    }
    if !facts.is_pinned {
        let what = format!("nothing is pinned at {root}: Beeline was never started on this node, or was cleaned up");
        findings.push(Finding::note(CHECK, what, "`beeline run` starts it; --pins names another directory"));
        return findings;
    }
    match facts.bpffs {
        BpffsOwner::Host => {}
        BpffsOwner::NoBpffs => findings.push(Finding::error(
            CHECK,
            format!("{root} is on no bpffs: nothing there is a pin"),
            "`mount -t bpf bpf /sys/fs/bpf` on the host, or name another directory with --pins",
        )),
        BpffsOwner::Container => findings.push(Finding::warning(
            CHECK,
            format!(
                "the bpffs of {root} is not mounted on the host, but in another mount namespace only: when that ends, a \
                 container's with it, programs and maps go, and Services end"
            ),
            "`mount -t bpf bpf /sys/fs/bpf` on the host, and give the agent's container that directory (a hostPath, as in \
             deploy/base); then start the agent again",
        )),
        BpffsOwner::Unknown => findings.push(Finding::note(
            CHECK,
            format!("whether the bpffs of {root} is the host's cannot be seen from this pid namespace"),
            "run it with the host's pid namespace (hostPID: true), or mount the host's with mountPropagation: HostToContainer",
        )),
    }
    match &facts.maps {
        Err(error) => findings.push(Finding::error(
            CHECK,
            error.as_str(),
            "`beeline cleanup`, which ends the translation, and start the agent anew",
        )),
        Ok(maps) => {
            let missing: Vec<_> =
                maps.iter().filter(|(_, found)| **found == MapOrigin::New).map(|(name, _)| name.as_str()).collect();
            if !missing.is_empty() {
                findings.push(Finding::error(
                    CHECK,
                    format!("maps are not pinned at {root}: {}", missing.join(", ")),
                    "start the agent again: it makes what is missing and loads its programs over it",
                ));
            }
        }
    }
    match facts.agent {
        None => findings.push(Finding::warning(
            CHECK,
            "no agent runs: the kernel goes on with what it wrote last, and follows no change of a Service",
            "start it: `beeline run`, or see why its pod does not run",
        )),
        Some(pid) if findings.is_empty() => {
            let version = lb_common::LAYOUT_VERSION;
            findings.push(Finding::ok(CHECK, format!("maps v{version} at {root}, kept by the agent (pid {pid})")));
        }
        Some(_) => {}
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::assert_told;

    fn good() -> Facts {
        Facts {
            root: "/sys/fs/bpf/beeline".into(),
            is_pinned: true,
            agent: Some(7),
            bpffs: BpffsOwner::Host,
            others: Vec::new(),
            maps: Ok(BTreeMap::from([
                ("SLOTS".to_owned(), MapOrigin::Resized),
                ("NAMES".to_owned(), MapOrigin::Adopted),
            ])),
        }
    }

    fn check(facts: &Facts, expected: &[&str]) {
        assert_told(&evaluate(facts), expected);
    }

    #[test]
    fn pins_are_ours_and_whole_and_the_hosts() {
        check(&good(), &["ok: maps v"]);
        check(&Facts { is_pinned: false, ..good() }, &["note: nothing is pinned at /sys/fs/bpf/beeline"]);
        check(&Facts { agent: None, ..good() }, &["warning: no agent runs"]);
        check(
            &Facts { bpffs: BpffsOwner::Container, ..good() },
            &["warning: the bpffs of /sys/fs/bpf/beeline is not mounted"],
        );
        check(&Facts { bpffs: BpffsOwner::NoBpffs, ..good() }, &["error: /sys/fs/bpf/beeline is on no bpffs"]);
        check(&Facts { bpffs: BpffsOwner::Unknown, ..good() }, &["note: whether the bpffs"]);
        let maps = Ok(BTreeMap::from([("SLOTS".to_owned(), MapOrigin::New), ("NAMES".to_owned(), MapOrigin::Adopted)]));
        check(&Facts { maps, ..good() }, &["error: maps are not pinned at /sys/fs/bpf/beeline: SLOTS"]);
        check(&Facts { maps: Err("foreign".to_owned()), ..good() }, &["error: foreign"]);
    }

    #[test]
    fn other_versions_are_named() {
        let others = vec!["/x/v1".into()];
        check(
            &Facts { others: others.clone(), ..good() },
            &["warning: /x/v1 is of another version of the maps: it should"],
        );
        let before = Facts { others, is_pinned: false, ..good() };
        check(&before, &["warning: /x/v1 is of another version of the maps: its programs", "note: nothing is pinned"]);
    }
}
