//! Our programs at the hooks of a cgroup: all of them, at the cgroup that is meant, over the maps that are pinned.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use aya::{maps::MapInfo, programs::loaded_programs};
use aya_obj::generated::bpf_attach_type;

use super::{Agent, Finding};
use lb_dataplane::{
    attach::cgroup::HOOKS,
    environment::{self, ROOT_CGROUP},
    pins::link_name,
};
use lb_kernel::{bpf, bpf::CgroupLink};

const CHECK: &str = "cgroup";

/// More cgroups than a node has.
pub(super) const MOST_CGROUPS: usize = 20_000;

/// The links, and what they hold together.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    /// By hook, or why there is none.
    pub(super) links: BTreeMap<&'static str, Result<CgroupLink, String>>,
    /// The one cgroup of all of them, if it is one, and its directory if that is found.
    pub(super) served: Option<(u64, Option<PathBuf>)>,
    /// Where the hierarchy, or as much of it as is seen from here, is mounted.
    pub(super) mount: Option<PathBuf>,
    /// The cgroup that the agent was told to serve, and its id if it is there.
    wanted: Option<(PathBuf, Option<u64>)>,
    /// Programs over other maps than the pinned ones: hook and map.
    stale: Vec<(&'static str, String)>,
}

/// Asks the pinned links of `directory`.
pub(super) fn read(directory: &Path, agent: Option<&Agent>) -> Facts {
    let link = |hook| bpf::open_pin(&directory.join(link_name(hook))).and_then(bpf::cgroup_link);
    let links: BTreeMap<_, _> =
        HOOKS.into_iter().map(|hook| (hook, link(hook).map_err(|error| error.to_string()))).collect();
    let mut ids: Vec<_> = links.values().flatten().map(|link| link.cgroup).collect();
    ids.sort_unstable();
    ids.dedup();
    let mount = environment::find_cgroup2().unwrap_or_default();
    let served = match ids.as_slice() {
        [id] => Some((*id, mount.as_deref().and_then(|mount| find(mount, *id)))),
        _ => None,
    };
    let wanted = agent.and_then(|agent| agent.cgroup.clone()).map(|path| {
        let id = fs::metadata(&path).ok().map(|directory| directory.ino());
        (path, id)
    });
    let stale = stale(directory, &links);
    Facts { links, served, mount, wanted, stale }
}

/// Where the kernel knows a hook.
pub(super) fn attach_type(hook: &str) -> Option<bpf_attach_type> {
    Some(match hook {
        "sock_release" => bpf_attach_type::BPF_CGROUP_INET_SOCK_RELEASE,
        "getpeername4" => bpf_attach_type::BPF_CGROUP_INET4_GETPEERNAME,
        "getpeername6" => bpf_attach_type::BPF_CGROUP_INET6_GETPEERNAME,
        "recvmsg4" => bpf_attach_type::BPF_CGROUP_UDP4_RECVMSG,
        "recvmsg6" => bpf_attach_type::BPF_CGROUP_UDP6_RECVMSG,
        "connect4" => bpf_attach_type::BPF_CGROUP_INET4_CONNECT,
        "connect6" => bpf_attach_type::BPF_CGROUP_INET6_CONNECT,
        "sendmsg4" => bpf_attach_type::BPF_CGROUP_UDP4_SENDMSG,
        "sendmsg6" => bpf_attach_type::BPF_CGROUP_UDP6_SENDMSG,
        "bind4" => bpf_attach_type::BPF_CGROUP_INET4_BIND,
        "bind6" => bpf_attach_type::BPF_CGROUP_INET6_BIND,
        _ => return None,
    })
}

/// The directory of a cgroup, by its id.
fn find(mount: &Path, id: u64) -> Option<PathBuf> {
    walk(mount).find(|path| fs::metadata(path).is_ok_and(|directory| directory.ino() == id))
}

/// A cgroup and those below it, each before those below it.
pub(super) fn walk(top: &Path) -> impl Iterator<Item = PathBuf> {
    let mut ahead = vec![top.to_owned()];
    let next = move || {
        let path = ahead.pop()?;
        let children = fs::read_dir(&path).into_iter().flatten().flatten();
        ahead.extend(
            children.filter(|child| child.file_type().is_ok_and(|kind| kind.is_dir())).map(|child| child.path()),
        );
        Some(path)
    };
    std::iter::from_fn(next).take(MOST_CGROUPS)
}

/// Maps that are pinned by the name of one that a program uses, and are another one.
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

/// What it means.
pub(super) fn evaluate(facts: &Facts) -> Vec<Finding> {
    const AGAIN: &str = "start the agent again: it attaches what is missing";
    let mut findings = Vec::new();
    let missing: Vec<_> = facts.links.iter().filter_map(|(hook, link)| Some((hook, link.as_ref().err()?))).collect();
    if let Some((_, error)) = missing.first() {
        let hooks: Vec<_> = missing.iter().map(|(hook, _)| **hook).collect();
        let what = format!("no program of ours is at {} ({error}): sockets are not translated there", hooks.join(", "));
        findings.push(Finding::error(CHECK, what, AGAIN));
    }
    if let Some((hook, map)) = facts.stale.first() {
        let more = facts.stale.len() - 1;
        let more = if more > 0 { format!(", and {more} more like it") } else { String::new() };
        findings.push(Finding::error(
            CHECK,
            format!("the program at {hook} reads another map {map} than the pinned one{more}: what the agent writes has no effect"),
            "start the agent again: it loads its programs over the pinned maps",
        ));
    }
    match (&facts.served, &facts.wanted) {
        (None, _) if missing.len() == facts.links.len() => {}
        (None, _) => findings.push(Finding::error(CHECK, "our programs are at several cgroups", AGAIN)),
        (Some((ROOT_CGROUP, _)), None) if findings.is_empty() => {
            let what =
                format!("{} programs at the root of the cgroup hierarchy: every process is served", facts.links.len());
            findings.push(Finding::ok(CHECK, what));
        }
        (Some((ROOT_CGROUP, _)), _) => {}
        (Some((0, _)), _) => {
            findings.push(Finding::error(CHECK, "the cgroup of our programs has gone, and they with it", AGAIN));
        }
        (Some((id, _)), Some((path, Some(wanted)))) if id == wanted => findings.push(Finding::note(
            CHECK,
            format!("only processes in {} are served, as --cgroup says", path.display()),
            "without --cgroup every process of the node is served",
        )),
        (Some((id, path)), _) => {
            let place = path.as_ref().map_or_else(|| format!("a cgroup (id {id})"), |path| path.display().to_string());
            findings.push(Finding::error(
                CHECK,
                format!("our programs are at {place}, which is not the root of the hierarchy: processes outside reach no Service"),
                "start the agent again in the host's cgroup namespace, with the host's cgroup2 mount; in kind and minikube give \
                 the node's container the host's one (--cgroupns=host), or name the cgroup of all pods with --cgroup",
            ));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::assert_told;

    fn at(cgroup: u64) -> Facts {
        let link = || Ok(CgroupLink { program: 5, cgroup });
        Facts {
            links: HOOKS.into_iter().map(|hook| (hook, link())).collect(),
            served: Some((cgroup, Some("/cg/a".into()))),
            mount: Some("/cg".into()),
            wanted: None,
            stale: Vec::new(),
        }
    }

    fn check(facts: &Facts, expected: &[&str]) {
        assert_told(&evaluate(facts), expected);
    }

    #[test]
    fn programs_are_at_the_cgroup_that_is_meant() {
        check(&at(1), &["ok: 11 programs at the root"]);
        check(&at(9), &["error: our programs are at /cg/a, which is not the root"]);
        let wanted = |id| Some(("/cg/a".into(), id));
        check(&Facts { wanted: wanted(Some(9)), ..at(9) }, &["note: only processes in /cg/a are served"]);
        check(&Facts { wanted: wanted(Some(8)), ..at(9) }, &["error: our programs are at /cg/a"]);
        check(
            &Facts { wanted: wanted(None), served: Some((0, None)), ..at(0) },
            &["error: the cgroup of our programs has gone"],
        );
        check(&Facts { served: None, ..at(9) }, &["error: our programs are at several cgroups"]);
    }

    #[test]
    fn programs_are_all_there_over_our_maps() {
        let mut facts = at(1);
        facts.links.insert("connect4", Err("gone".to_owned()));
        check(&facts, &["error: no program of ours is at connect4 (gone)"]);
        let stale = vec![("connect4", "SLOTS".to_owned()), ("connect6", "SLOTS".to_owned())];
        check(&Facts { stale, ..at(1) }, &["error: the program at connect4 reads another map SLOTS"]);
        let none = HOOKS.into_iter().map(|hook| (hook, Err("gone".to_owned()))).collect();
        check(&Facts { links: none, served: None, ..at(1) }, &["error: no program of ours is at bind4, bind6"]);
    }

    #[test]
    fn every_hook_is_known_to_the_kernel() {
        assert!(HOOKS.into_iter().all(|hook| attach_type(hook).is_some()));
    }

    #[test]
    fn cgroups_are_walked_from_the_top() {
        let top = tempfile::tempdir().expect("a directory");
        fs::create_dir_all(top.path().join("a/b")).expect("a directory");
        fs::write(top.path().join("a/file"), "").expect("a file");
        let found: Vec<_> = walk(top.path()).collect();
        assert_eq!(found, [top.path().to_owned(), top.path().join("a"), top.path().join("a/b")]);
        let id = fs::metadata(top.path().join("a/b")).expect("it is there").ino();
        assert_eq!(find(top.path(), id), Some(top.path().join("a/b")));
    }
}
