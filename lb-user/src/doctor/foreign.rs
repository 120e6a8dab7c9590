//! Programs of others at our hooks, from the cgroup that is served downwards. The kernel runs those of a cgroup before those of
//! the cgroups above it, so what another one rewrites or refuses there comes before ours. A program that is attached below ours
//! does not keep ours from running whatever its flags, since a link counts as one that lets others run; that it does run is
//! looked at all the same.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    path::{Path, PathBuf},
};

use aya::programs::loaded_programs;

use super::{Finding, hooks, process};
use lb_dataplane::attach::cgroup::HOOKS;
use lb_kernel::{bpf, sock_diag::Process};

const CHECK: &str = "foreign";

/// So many are told one by one.
const MOST: usize = 10;

/// What runs beside our programs.
#[derive(Clone, Default, Debug)]
pub(super) struct Facts {
    cgroups: usize,
    /// Programs of others.
    found: Vec<Foreign>,
    /// Cgroups and hooks at which ours do not run, and who is there instead.
    overridden: Vec<(PathBuf, &'static str, Vec<u32>)>,
    programs: Programs,
}

/// Programs of others: what they are called, and who holds them.
#[derive(Clone, Default, Debug)]
pub(super) struct Programs {
    names: BTreeMap<u32, String>,
    holders: BTreeMap<u32, Process>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Foreign {
    /// The topmost cgroup at which it runs.
    cgroup: PathBuf,
    hook: &'static str,
    program: u32,
}

/// Asks at each cgroup what runs there.
pub(super) fn read(hooks: &hooks::Facts) -> Facts {
    let mut facts = Facts::default();
    let Some((_, Some(top))) = &hooks.served else { return facts };
    let mut above = BTreeMap::<PathBuf, BTreeSet<(&'static str, u32)>>::new();
    for cgroup in hooks::walk(top) {
        facts.cgroups += 1;
        let Ok(directory) = File::open(&cgroup) else { continue };
        let inherited = cgroup.parent().and_then(|parent| above.get(parent)).cloned().unwrap_or_default();
        let mut here = BTreeSet::new();
        for hook in HOOKS {
            let own = hooks.links.get(hook).and_then(|link| Some(link.as_ref().ok()?.program));
            let running = hooks::attach_type(hook).and_then(|kind| bpf::programs_at(&directory, kind).ok());
            let Some(running) = running else { continue };
            here.extend(running.iter().map(|program| (hook, *program)));
            let others: Vec<u32> = running.iter().copied().filter(|program| Some(*program) != own).collect();
            if own.is_some_and(|own| !running.contains(&own)) {
                facts.overridden.push((cgroup.clone(), hook, others));
            } else {
                let new = others.into_iter().filter(|program| !inherited.contains(&(hook, *program)));
                facts.found.extend(new.map(|program| Foreign { cgroup: cgroup.clone(), hook, program }));
            }
        }
        above.insert(cgroup, here);
    }
    let of_found = facts.found.iter().map(|foreign| foreign.program);
    let programs: Vec<u32> = of_found.chain(facts.overridden.iter().flat_map(|(.., others)| others.clone())).collect();
    facts.programs = Programs::read(&programs);
    facts
}

impl Programs {
    /// What the kernel and /proc tell of these.
    pub(super) fn read(programs: &[u32]) -> Self {
        if programs.is_empty() {
            return Self::default();
        }
        let all = loaded_programs().filter_map(Result::ok);
        let name = |info: &aya::programs::ProgramInfo| info.name_as_str().unwrap_or_default().to_owned();
        let names = all.filter(|info| programs.contains(&info.id())).map(|info| (info.id(), name(&info))).collect();
        Self { names, holders: process::holders(Path::new("/proc"), programs) }
    }

    /// A program in words.
    pub(super) fn who(&self, program: u32) -> String {
        let name = self.names.get(&program).filter(|name| !name.is_empty()).map_or("without a name", String::as_str);
        let holder = self.holders.get(&program).map_or_else(
            || "held by no process".to_owned(),
            |Process { pid, comm }| format!("held by {comm}, pid {pid}"),
        );
        format!("{name} (program {program}, {holder})")
    }
}

/// What it means.
pub(super) fn evaluate(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    if facts.cgroups == 0 {
        let what = "what others run at our hooks cannot be seen: the cgroup that is served is not found from here";
        let cure = "run it in the host's cgroup namespace, with the host's cgroup2 mount";
        findings.push(Finding::note(CHECK, what, cure));
    }
    for (cgroup, hook, others) in facts.overridden.iter().take(MOST) {
        let others: Vec<_> = others.iter().map(|program| facts.programs.who(*program)).collect();
        let others = if others.is_empty() { "nothing".to_owned() } else { others.join(", ") };
        findings.push(Finding::error(
            CHECK,
            format!(
                "at {hook} of {} ours does not run, but {others}: processes there reach no Service",
                cgroup.display()
            ),
            detach(cgroup, hook),
        ));
    }
    for foreign in facts.found.iter().take(MOST) {
        let Foreign { cgroup, hook, program } = foreign;
        let who = format!("{} runs at {hook} of {}", facts.programs.who(*program), cgroup.display());
        // These two decide about ports and count; addresses stay.
        findings.push(if hook.starts_with("bind") || *hook == "sock_release" {
            Finding::note(CHECK, format!("{who}, beside ours, which it does not touch"), "none is needed")
        } else {
            Finding::warning(
                CHECK,
                format!("{who}: what it rewrites or refuses comes before ours"),
                format!(
                    "if it balances load too, turn that off where it belongs (Cilium: socketLB, Calico: \
                     bpfConnectTimeLoadBalancing); else {}",
                    detach(cgroup, hook)
                ),
            )
        });
    }
    let left = (facts.overridden.len().max(MOST) - MOST) + (facts.found.len().max(MOST) - MOST);
    if left > 0 {
        let what = format!("there are {left} more programs of others like these");
        findings.push(Finding::note(CHECK, what, "`bpftool cgroup tree` lists all of them"));
    }
    if facts.cgroups >= hooks::MOST_CGROUPS {
        let what = format!("only the first {} cgroups were looked at", facts.cgroups);
        findings.push(Finding::note(CHECK, what, "`bpftool cgroup tree` looks at all of them"));
    }
    if findings.is_empty() {
        let cgroups = lb_core::text::number(facts.cgroups, "cgroup");
        findings.push(Finding::ok(CHECK, format!("no program of others is at our hooks, in {cgroups}")));
    }
    findings
}

fn detach(cgroup: &Path, hook: &str) -> String {
    // As bpftool calls the hooks.
    format!(
        "`bpftool cgroup show {0}`, and take it away with `bpftool cgroup detach {0} {hook} id ID`",
        cgroup.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::assert_told;

    fn foreign(hook: &'static str, program: u32) -> Foreign {
        Foreign { cgroup: "/cg/a".into(), hook, program }
    }

    fn facts(found: Vec<Foreign>) -> Facts {
        Facts {
            cgroups: 2,
            found,
            overridden: Vec::new(),
            programs: Programs {
                names: BTreeMap::from([(7, "cil_sock4".to_owned()), (8, String::new())]),
                holders: BTreeMap::from([(7, Process { pid: 9, comm: "cilium-agent".to_owned() })]),
            },
        }
    }

    fn check(facts: &Facts, expected: &[&str]) {
        assert_told(&evaluate(facts), expected);
    }

    #[test]
    fn programs_of_others_are_named_with_who_holds_them() {
        check(&facts(Vec::new()), &["ok: no program of others is at our hooks, in 2 cgroups"]);
        check(
            &facts(vec![foreign("connect4", 7), foreign("bind4", 8)]),
            &[
                "warning: cil_sock4 (program 7, held by cilium-agent, pid 9) runs at connect4 of /cg/a: what it rewrites",
                "note: without a name (program 8, held by no process) runs at bind4 of /cg/a, beside ours",
            ],
        );
        check(&Facts::default(), &["note: what others run at our hooks cannot be seen"]);
    }

    #[test]
    fn one_in_our_place_is_an_error() {
        let overridden = vec![("/cg/a".into(), "connect4", vec![7])];
        let told = evaluate(&Facts { overridden, ..facts(Vec::new()) });
        check(
            &Facts { overridden: vec![("/cg/a".into(), "connect4", vec![7])], ..facts(Vec::new()) },
            &["error: at connect4 of /cg/a ours does not run, but cil_sock4 (program 7"],
        );
        let cure = told.first().and_then(|finding| finding.cure.clone()).expect("a cure");
        assert!(cure.contains("bpftool cgroup detach /cg/a connect4"), "{cure}");
    }

    #[test]
    fn many_are_not_all_told() {
        let many = (0..13).map(|program| foreign("connect4", program)).collect();
        let told = evaluate(&facts(many));
        assert_eq!(told.len(), 11);
        assert!(told.last().is_some_and(|last| last.what.starts_with("there are 3 more")));
    }
}
