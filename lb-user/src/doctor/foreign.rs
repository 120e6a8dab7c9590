//! Programs of others at Beeline's hooks, in the served cgroup and all below it. The kernel runs the programs of a
//! cgroup before those of its ancestors: a program below rewrites or refuses an address before Beeline sees it. It
//! cannot override Beeline's program, which is attached by a link (BPF_F_ALLOW_MULTI); the check looks nevertheless.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    path::{Path, PathBuf},
};

use aya::programs::loaded_programs;

use super::{Finding, hooks, process};
use lb_dataplane::{
    attach::cgroup::{HOOKS, attach_type},
    cgroups,
};
use lb_kernel::{bpf, process::Process};

const CHECK: &str = "foreign";

/// Findings that are listed one by one.
const MAX_LISTED: usize = 10;

/// Programs beside Beeline's at the cgroup hooks.
#[derive(Clone, Default, Debug)]
pub(super) struct ForeignFacts {
    /// Number of cgroups read.
    cgroups: usize,
    /// Programs of others, beside Beeline's.
    found: Vec<Foreign>,
    /// Cgroup and hook where Beeline's program does not run, and the ids of the programs that do.
    overridden: Vec<(PathBuf, &'static str, Vec<u32>)>,
    programs: Programs,
}

/// Names of programs and processes that hold them, by program id.
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

/// Reads the effective programs of each cgroup.
pub(super) fn read(hooks: &hooks::HookFacts) -> ForeignFacts {
    let mut facts = ForeignFacts::default();
    let Some((_, Some(top))) = &hooks.served else { return facts };
    let mut above = BTreeMap::<PathBuf, BTreeSet<(&'static str, u32)>>::new();
    for cgroup in cgroups::walk(top) {
        facts.cgroups += 1;
        let Ok(directory) = File::open(&cgroup) else { continue };
        let inherited = cgroup.parent().and_then(|parent| above.get(parent)).cloned().unwrap_or_default();
        let mut here = BTreeSet::new();
        for hook in HOOKS {
            let own = hooks.links.get(hook).and_then(|link| Some(link.as_ref().ok()?.program));
            let running = attach_type(hook).and_then(|kind| bpf::programs_at(&directory, kind).ok());
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
    /// Reads names from the kernel, and holders from /proc.
    pub(super) fn read(programs: &[u32]) -> Self {
        if programs.is_empty() {
            return Self::default();
        }
        let all = loaded_programs().filter_map(Result::ok);
        let name = |info: &aya::programs::ProgramInfo| info.name_as_str().unwrap_or_default().to_owned();
        let names = all.filter(|info| programs.contains(&info.id())).map(|info| (info.id(), name(&info))).collect();
        Self { names, holders: process::holders(Path::new("/proc"), programs) }
    }

    /// Describes a program: name, id and holder.
    pub(super) fn describe(&self, program: u32) -> String {
        let name =
            self.names.get(&program).filter(|name| !name.is_empty()).map_or("an unnamed program", String::as_str);
        let holder = self.holders.get(&program).map_or_else(
            || "held by no process".to_owned(),
            |Process { pid, comm }| format!("held by {comm}, pid {pid}"),
        );
        format!("{name} (id {program}, {holder})")
    }
}

pub(super) fn evaluate(facts: &ForeignFacts) -> Vec<Finding> {
    let mut findings = Vec::new();
    if facts.cgroups == 0 {
        let what = "programs of others cannot be listed: the served cgroup is not visible from here";
        let cure = "run `beeline doctor` in the host's cgroup namespace, with the host's cgroup2 mount";
        findings.push(Finding::note(CHECK, what, cure));
    }
    for (cgroup, hook, others) in facts.overridden.iter().take(MAX_LISTED) {
        let others: Vec<_> = others.iter().map(|program| facts.programs.describe(*program)).collect();
        let others = if others.is_empty() { "no program".to_owned() } else { others.join(", ") };
        findings.push(Finding::error(
            CHECK,
            format!(
                "at {hook} of {} Beeline's program does not run, but {others}: processes there reach no Service",
                cgroup.display()
            ),
            detach(cgroup, hook),
        ));
    }
    for foreign in facts.found.iter().take(MAX_LISTED) {
        let Foreign { cgroup, hook, program } = foreign;
        let program = format!("{} runs at {hook} of {}", facts.programs.describe(*program), cgroup.display());
        // Programs at bind and sock_release change no destination.
        findings.push(if hook.starts_with("bind") || *hook == "sock_release" {
            Finding::note(CHECK, format!("{program}, beside Beeline's, which it does not affect"), "none is needed")
        } else {
            Finding::warning(
                CHECK,
                format!("{program}: it rewrites or refuses addresses before Beeline sees them"),
                format!(
                    "if it balances load too, disable that in its own configuration (Cilium: socketLB, Calico: \
                     bpfConnectTimeLoadBalancing); otherwise {}",
                    detach(cgroup, hook)
                ),
            )
        });
    }
    let left = facts.overridden.len().saturating_sub(MAX_LISTED) + facts.found.len().saturating_sub(MAX_LISTED);
    if left > 0 {
        let what = format!("there are {left} more programs of others");
        findings.push(Finding::note(CHECK, what, "`bpftool cgroup tree` lists them all"));
    }
    if facts.cgroups >= cgroups::MAX_CGROUPS {
        let what = format!("only the first {} cgroups were read", facts.cgroups);
        findings.push(Finding::note(CHECK, what, "`bpftool cgroup tree` reads them all"));
    }
    if findings.is_empty() {
        let cgroups = lb_core::text::number(facts.cgroups, "cgroup");
        findings.push(Finding::ok(CHECK, format!("no program of others is at Beeline's hooks, in {cgroups}")));
    }
    findings
}

fn detach(cgroup: &Path, hook: &str) -> String {
    // HOOKS has bpftool's names of the hooks.
    format!("`bpftool cgroup show {0}`, and detach it with `bpftool cgroup detach {0} {hook} id ID`", cgroup.display())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::assert_findings;

    fn foreign(hook: &'static str, program: u32) -> Foreign {
        Foreign { cgroup: "/cg/a".into(), hook, program }
    }

    fn facts(found: Vec<Foreign>) -> ForeignFacts {
        ForeignFacts {
            cgroups: 2,
            found,
            overridden: Vec::new(),
            programs: Programs {
                names: BTreeMap::from([(7, "cil_sock4".to_owned()), (8, String::new())]),
                holders: BTreeMap::from([(7, Process { pid: 9, comm: "cilium-agent".to_owned() })]),
            },
        }
    }

    fn check(facts: &ForeignFacts, expected: &[&str]) {
        assert_findings(&evaluate(facts), expected);
    }

    #[test]
    fn programs_of_others_are_named_with_their_holders() {
        check(&facts(Vec::new()), &["ok: no program of others is at Beeline's hooks, in 2 cgroups"]);
        check(
            &facts(vec![foreign("connect4", 7), foreign("bind4", 8)]),
            &[
                "warning: cil_sock4 (id 7, held by cilium-agent, pid 9) runs at connect4 of /cg/a: it rewrites",
                "note: an unnamed program (id 8, held by no process) runs at bind4 of /cg/a, beside Beeline's",
            ],
        );
        check(&ForeignFacts::default(), &["note: programs of others cannot be listed"]);
    }

    #[test]
    fn a_program_that_overrides_ours_is_an_error() {
        let overridden = vec![("/cg/a".into(), "connect4", vec![7])];
        let findings = evaluate(&ForeignFacts { overridden, ..facts(Vec::new()) });
        check(
            &ForeignFacts { overridden: vec![("/cg/a".into(), "connect4", vec![7])], ..facts(Vec::new()) },
            &["error: at connect4 of /cg/a Beeline's program does not run, but cil_sock4 (id 7"],
        );
        let cure = findings.first().and_then(|finding| finding.cure.clone()).expect("a cure");
        assert!(cure.contains("bpftool cgroup detach /cg/a connect4"), "{cure}");
    }

    #[test]
    fn only_the_first_ten_programs_are_listed() {
        let many = (0..13).map(|program| foreign("connect4", program)).collect();
        let findings = evaluate(&facts(many));
        assert_eq!(findings.len(), 11);
        assert!(findings.last().is_some_and(|last| last.what.starts_with("there are 3 more")));
    }
}
