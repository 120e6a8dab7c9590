//! The pins: complete, of this layout version, on the host's bpffs, and held by an agent.

use std::{collections::BTreeMap, path::PathBuf};

use super::Finding;
use lb_dataplane::{
    bpffs::{self, BpffsOwner},
    pins::Pins,
    upgrade::{
        pinned_maps::{self, MapOrigin},
        programs::{self, MapSizes, ProgramOptions},
    },
};

const CHECK: &str = "pins";

/// State of the pins.
#[derive(Clone, Debug)]
pub(super) struct PinFacts {
    root: PathBuf,
    /// True if the directory of this layout version exists.
    is_pinned: bool,
    agent: Option<u32>,
    /// Process of the file system of the pins.
    bpffs: BpffsOwner,
    /// Directories of other layout versions.
    other_versions: Vec<PathBuf>,
    /// State of each map; or why a pin is foreign.
    maps: Result<BTreeMap<String, MapOrigin>, String>,
}

/// Reads the pins. `agent` is the pid of the running agent.
pub(super) fn read(pins: &Pins, agent: Option<u32>) -> PinFacts {
    let expected = programs::layouts(&ProgramOptions::default(), &MapSizes::new());
    let maps = expected.and_then(|expected| pinned_maps::inspect(&pins.current(), &expected));
    PinFacts {
        root: pins.root().to_owned(),
        is_pinned: pins.current().exists(),
        agent,
        bpffs: bpffs::owner(pins.root()),
        other_versions: pins.others().unwrap_or_default(),
        maps: maps.map_err(|error| format!("{error:#}")),
    }
}

pub(super) fn evaluate(facts: &PinFacts) -> Vec<Finding> {
    let root = facts.root.display();
    let mut findings = Vec::new();
    for other in &facts.other_versions {
        let state = if facts.is_pinned {
            "it should have been removed when this version went into service"
        } else {
            "its programs still serve"
        };
        let what = format!("{} has another version of the maps: {state}", other.display());
        let cure = "start the agent of this version: it removes the other version once its own programs serve";
        findings.push(Finding::warning(CHECK, what, cure));
    }
    if !facts.is_pinned {
        let what = format!(
            "nothing is pinned at {root}: Beeline was never started on this node, or was removed by `beeline cleanup`"
        );
        findings.push(Finding::note(
            CHECK,
            what,
            "start it with `beeline run`, or set --pins if the pins are in another directory",
        ));
        return findings;
    }
    match facts.bpffs {
        BpffsOwner::Host => {}
        BpffsOwner::NoBpffs => findings.push(Finding::error(
            CHECK,
            format!("{root} is not on a bpffs: it cannot hold pins"),
            "`mount -t bpf bpf /sys/fs/bpf` on the host, or set --pins to a directory on a bpffs",
        )),
        BpffsOwner::Container => findings.push(Finding::warning(
            CHECK,
            format!(
                "the bpffs of {root} is not mounted on the host, but in another mount namespace only: when that \
                 namespace ends, with its container, programs and maps are lost, and Services are not served"
            ),
            "`mount -t bpf bpf /sys/fs/bpf` on the host, and mount that directory into the agent's container (a \
             hostPath, as in deploy/base); then start the agent again",
        )),
        BpffsOwner::Unknown => findings.push(Finding::note(
            CHECK,
            format!("the host's mounts cannot be seen from this pid namespace: the bpffs of {root} may be another one"),
            "run `beeline doctor` in the host's pid namespace (hostPID: true), or mount the host's bpffs with \
             mountPropagation: HostToContainer",
        )),
    }
    match &facts.maps {
        Err(error) => findings.push(Finding::error(
            CHECK,
            error.as_str(),
            "`beeline cleanup`, which ends the translation, then start the agent",
        )),
        Ok(maps) => {
            let missing: Vec<_> =
                maps.iter().filter(|(_, found)| **found == MapOrigin::New).map(|(name, _)| name.as_str()).collect();
            if !missing.is_empty() {
                findings.push(Finding::error(
                    CHECK,
                    format!("maps are not pinned at {root}: {}", missing.join(", ")),
                    "start the agent again: it creates missing maps and loads its programs over them",
                ));
            }
        }
    }
    match facts.agent {
        None => findings.push(Finding::warning(
            CHECK,
            "no agent runs: the kernel translates from the maps as they are, and changes of Services have no effect",
            "start it with `beeline run`, or see why its pod does not run",
        )),
        Some(pid) if findings.is_empty() => {
            let version = lb_common::LAYOUT_VERSION;
            findings.push(Finding::ok(CHECK, format!("maps v{version} at {root}, held by the agent (pid {pid})")));
        }
        Some(_) => {}
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::assert_findings;

    fn good() -> PinFacts {
        PinFacts {
            root: "/sys/fs/bpf/beeline".into(),
            is_pinned: true,
            agent: Some(7),
            bpffs: BpffsOwner::Host,
            other_versions: Vec::new(),
            maps: Ok(BTreeMap::from([
                ("SLOTS".to_owned(), MapOrigin::Resized),
                ("NAMES".to_owned(), MapOrigin::Adopted),
            ])),
        }
    }

    fn check(facts: &PinFacts, expected: &[&str]) {
        assert_findings(&evaluate(facts), expected);
    }

    #[test]
    fn pins_are_complete_and_on_the_hosts_bpffs() {
        check(&good(), &["ok: maps v"]);
        check(&PinFacts { is_pinned: false, ..good() }, &["note: nothing is pinned at /sys/fs/bpf/beeline"]);
        check(&PinFacts { agent: None, ..good() }, &["warning: no agent runs"]);
        check(
            &PinFacts { bpffs: BpffsOwner::Container, ..good() },
            &["warning: the bpffs of /sys/fs/bpf/beeline is not mounted"],
        );
        check(&PinFacts { bpffs: BpffsOwner::NoBpffs, ..good() }, &["error: /sys/fs/bpf/beeline is not on a bpffs"]);
        check(&PinFacts { bpffs: BpffsOwner::Unknown, ..good() }, &["note: the host's mounts cannot be seen"]);
        let maps = Ok(BTreeMap::from([("SLOTS".to_owned(), MapOrigin::New), ("NAMES".to_owned(), MapOrigin::Adopted)]));
        check(&PinFacts { maps, ..good() }, &["error: maps are not pinned at /sys/fs/bpf/beeline: SLOTS"]);
        check(&PinFacts { maps: Err("foreign".to_owned()), ..good() }, &["error: foreign"]);
    }

    #[test]
    fn other_layout_versions_are_named() {
        let other_versions = vec!["/x/v1".into()];
        check(
            &PinFacts { other_versions: other_versions.clone(), ..good() },
            &["warning: /x/v1 has another version of the maps: it should"],
        );
        let before = PinFacts { other_versions, is_pinned: false, ..good() };
        check(&before, &["warning: /x/v1 has another version of the maps: its programs", "note: nothing is pinned"]);
    }
}
