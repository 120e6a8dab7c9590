//! Beeline's programs at the cgroup hooks: all attached, at the right cgroup, over the pinned maps.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use aya::{maps::MapInfo, programs::loaded_programs};

use super::{Agent, Finding};
use lb_dataplane::{
    attach::cgroup::HOOKS,
    cgroups,
    environment::{self, ROOT_CGROUP},
    pins::link_name,
};
use lb_kernel::{bpf, bpf::CgroupLink};

const CHECK: &str = "cgroup";

/// Pinned links of the cgroup programs.
#[derive(Clone, Debug)]
pub(super) struct HookFacts {
    /// Links by hook; or why the link cannot be read.
    pub(super) links: BTreeMap<&'static str, Result<CgroupLink, String>>,
    /// Id of the cgroup that all links share, and its directory if that is visible. `None` if they differ.
    pub(super) served: Option<(u64, Option<PathBuf>)>,
    /// Mount point of cgroup2, with the part of the hierarchy that is visible from here.
    pub(super) mount: Option<PathBuf>,
    /// Directory of the agent's `--cgroup`, and its id if it exists.
    wanted: Option<(PathBuf, Option<u64>)>,
    /// Hooks whose program uses a map other than the pinned one, and the name of that map.
    stale: Vec<(&'static str, String)>,
}

/// Reads the pinned links of `directory`.
pub(super) fn read(directory: &Path, agent: Option<&Agent>) -> HookFacts {
    let link = |hook| bpf::open_pin(&directory.join(link_name(hook))).and_then(bpf::cgroup_link);
    let links: BTreeMap<_, _> =
        HOOKS.into_iter().map(|hook| (hook, link(hook).map_err(|error| error.to_string()))).collect();
    let mut ids: Vec<_> = links.values().flatten().map(|link| link.cgroup).collect();
    ids.sort_unstable();
    ids.dedup();
    let mount = environment::find_cgroup2().unwrap_or_default();
    let served = match ids.as_slice() {
        [id] => Some((*id, mount.as_deref().and_then(|mount| cgroups::find(mount, *id)))),
        _ => None,
    };
    let wanted = agent.and_then(|agent| agent.cgroup.clone()).map(|path| {
        let id = fs::metadata(&path).ok().map(|directory| directory.ino());
        (path, id)
    });
    let stale = stale(directory, &links);
    HookFacts { links, served, mount, wanted, stale }
}

/// Lists the maps that a program uses although another map is pinned under their name.
fn stale(directory: &Path, links: &BTreeMap<&'static str, Result<CgroupLink, String>>) -> Vec<(&'static str, String)> {
    let programs: BTreeMap<u32, &'static str> =
        links.iter().filter_map(|(hook, link)| Some((link.as_ref().ok()?.program, *hook))).collect();
    let mut stale = Vec::new();
    for program in loaded_programs().filter_map(Result::ok) {
        let Some(hook) = programs.get(&program.id()) else { continue };
        for id in program.map_ids().ok().flatten().unwrap_or_default() {
            let Ok(map) = MapInfo::from_id(id) else { continue };
            let name = map.name_as_str().unwrap_or_default();
            if MapInfo::from_pin(directory.join(name)).is_ok_and(|pinned| pinned.id() != id) {
                stale.push((*hook, name.to_owned()));
            }
        }
    }
    stale.sort();
    stale
}

pub(super) fn evaluate(facts: &HookFacts) -> Vec<Finding> {
    const RESTART: &str = "start the agent again: it attaches missing programs";
    let mut findings = Vec::new();
    let missing: Vec<_> = facts.links.iter().filter_map(|(hook, link)| Some((hook, link.as_ref().err()?))).collect();
    if let Some((_, error)) = missing.first() {
        let hooks: Vec<_> = missing.iter().map(|(hook, _)| **hook).collect();
        let what =
            format!("Beeline has no program at {} ({error}): sockets are not translated there", hooks.join(", "));
        findings.push(Finding::error(CHECK, what, RESTART));
    }
    if let Some((hook, map)) = facts.stale.first() {
        let more = facts.stale.len() - 1;
        let more = if more > 0 { format!(", and {more} more") } else { String::new() };
        findings.push(Finding::error(
            CHECK,
            format!(
                "the program at {hook} reads another map {map} than the pinned one{more}: it does not see the agent's \
                 writes"
            ),
            "start the agent again: it loads its programs over the pinned maps",
        ));
    }
    match (&facts.served, &facts.wanted) {
        (None, _) if missing.len() == facts.links.len() => {}
        (None, _) => findings.push(Finding::error(CHECK, "Beeline's programs are at several cgroups", RESTART)),
        (Some((ROOT_CGROUP, _)), None) if findings.is_empty() => {
            let what =
                format!("{} programs at the root of the cgroup hierarchy: every process is served", facts.links.len());
            findings.push(Finding::ok(CHECK, what));
        }
        (Some((ROOT_CGROUP, _)), _) => {}
        (Some((0, _)), _) => {
            findings.push(Finding::error(
                CHECK,
                "the cgroup of Beeline's programs was removed, and the programs with it",
                RESTART,
            ));
        }
        (Some((id, _)), Some((path, Some(wanted)))) if id == wanted => findings.push(Finding::note(
            CHECK,
            format!("only processes in {} are served (--cgroup)", path.display()),
            "without --cgroup every process of the node is served",
        )),
        (Some((id, path)), _) => {
            let place = path.as_ref().map_or_else(|| format!("a cgroup (id {id})"), |path| path.display().to_string());
            findings.push(Finding::error(
                CHECK,
                format!(
                    "Beeline's programs are at {place}, which is not the root of the hierarchy: processes outside of \
                     it reach no Service"
                ),
                "start the agent again in the host's cgroup namespace, with the host's cgroup2 mount; in kind and \
                 minikube give the node's container the host's cgroup namespace (--cgroupns=host), or set --cgroup to \
                 the cgroup of all pods",
            ));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::assert_findings;

    fn at(cgroup: u64) -> HookFacts {
        let link = || Ok(CgroupLink { program: 5, cgroup });
        HookFacts {
            links: HOOKS.into_iter().map(|hook| (hook, link())).collect(),
            served: Some((cgroup, Some("/cg/a".into()))),
            mount: Some("/cg".into()),
            wanted: None,
            stale: Vec::new(),
        }
    }

    fn check(facts: &HookFacts, expected: &[&str]) {
        assert_findings(&evaluate(facts), expected);
    }

    #[test]
    fn programs_are_at_the_configured_cgroup() {
        check(&at(1), &["ok: 11 programs at the root"]);
        check(&at(9), &["error: Beeline's programs are at /cg/a, which is not the root"]);
        let wanted = |id| Some(("/cg/a".into(), id));
        check(&HookFacts { wanted: wanted(Some(9)), ..at(9) }, &["note: only processes in /cg/a are served"]);
        check(&HookFacts { wanted: wanted(Some(8)), ..at(9) }, &["error: Beeline's programs are at /cg/a"]);
        check(
            &HookFacts { wanted: wanted(None), served: Some((0, None)), ..at(0) },
            &["error: the cgroup of Beeline's programs was removed"],
        );
        check(&HookFacts { served: None, ..at(9) }, &["error: Beeline's programs are at several cgroups"]);
    }

    #[test]
    fn every_hook_has_a_program_over_the_pinned_maps() {
        let mut facts = at(1);
        facts.links.insert("connect4", Err("gone".to_owned()));
        check(&facts, &["error: Beeline has no program at connect4 (gone)"]);
        let stale = vec![("connect4", "SLOTS".to_owned()), ("connect6", "SLOTS".to_owned())];
        check(&HookFacts { stale, ..at(1) }, &["error: the program at connect4 reads another map SLOTS"]);
        let none = HOOKS.into_iter().map(|hook| (hook, Err("gone".to_owned()))).collect();
        check(&HookFacts { links: none, served: None, ..at(1) }, &["error: Beeline has no program at bind4, bind6"]);
    }
}
