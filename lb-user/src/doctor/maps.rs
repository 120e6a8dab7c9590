//! Whether the maps are what the objects say: the plan that would make them so, which is empty if they are.

use std::{collections::BTreeSet, net::IpAddr};

use anyhow::Result;

use super::{Finding, process};
use lb_agent::reconcile::Reconciler;
use lb_core::{
    event::Event,
    model::Settings,
    plan::Change,
    store::{Dump, Limits, MemoryStore},
    text::number,
};
use lb_sources::addresses;

const CHECK: &str = "maps";

/// So many Services are told one by one.
const MOST: usize = 10;

/// What the maps lack, or have too much.
#[derive(Clone, Default, Debug)]
pub(super) struct Difference {
    /// Services in the objects.
    services: usize,
    /// Services that differ.
    changed: Vec<Change>,
    /// Writes that concern no single Service: where NodePorts answer, and what belongs to nothing.
    others: usize,
    /// Services for which there is no room.
    refused: Vec<String>,
    /// Warnings about Services, each with its Service.
    warnings: Vec<String>,
}

impl Difference {
    /// Whether the maps are what the objects say, as far as there is room.
    pub(super) const fn is_none(&self) -> bool {
        self.changed.is_empty() && self.others == 0
    }
}

/// The addresses of the node as the agent knows them: those of the interfaces, or, where this process is in another network
/// namespace than the agent, those that stand in the maps.
pub(super) fn addresses(dump: &Dump, agent: Option<u32>) -> Option<BTreeSet<IpAddr>> {
    let own = process::network_namespace("self");
    if agent.is_some_and(|pid| process::network_namespace(&pid.to_string()) != own) {
        return Some(dump.node_addrs.keys().map(|addr| addr.to_ip()).collect());
    }
    addresses::current().ok()
}

/// By the planner that the agent uses.
pub(super) fn compare(
    (dump, limits): &(Dump, Limits),
    events: Vec<Event>,
    node_name: &str,
    settings: Settings,
    addresses: Option<BTreeSet<IpAddr>>,
) -> Result<Difference> {
    let mut reconciler = Reconciler::new(MemoryStore::holding(dump.clone(), *limits), node_name, settings);
    reconciler.handle(events);
    reconciler.handle(addresses.map(Event::NodeAddresses));
    let plan = reconciler.preview()?;
    let of_services: usize = plan.changed.iter().map(|change| change.writes).sum();
    let warnings = reconciler.warnings().iter();
    let warnings =
        warnings.flat_map(|(service, warnings)| warnings.iter().map(move |text| format!("{service}: {text}")));
    Ok(Difference {
        services: reconciler.world().services().count(),
        others: plan.ops.len().saturating_sub(of_services),
        refused: plan.refused.iter().map(ToString::to_string).collect(),
        warnings: warnings.collect(),
        changed: plan.changed,
    })
}

/// What it means beside an agent, or without one.
pub(super) fn evaluate(difference: &Difference, agent: Option<u32>) -> Vec<Finding> {
    let cure = match agent {
        Some(pid) => format!(
            "the agent (pid {pid}) compares everything every five minutes, and at once when it is started again; its log says \
             what keeps it from writing"
        ),
        None => "start the agent: it writes what is missing".to_owned(),
    };
    let mut findings = Vec::new();
    for Change { service, added, removed, writes, .. } in difference.changed.iter().take(MOST) {
        let backends = match (added, removed) {
            (0, 0) => String::new(),
            (added, 0) => format!(", {} missing", number(*added, "backend")),
            (0, removed) => format!(", {} too many", number(*removed, "backend")),
            (added, removed) => format!(", {} missing and {removed} too many", number(*added, "backend")),
        };
        let what = format!("{service} differs from its objects by {}{backends}", number(*writes, "write"));
        findings.push(Finding::error(CHECK, what, format!("{cure}; `beeline explain {service}` shows which")));
    }
    if difference.changed.len() > MOST {
        let what = format!("{} more Services differ from their objects", difference.changed.len() - MOST);
        findings.push(Finding::error(CHECK, what, cure.as_str()));
    }
    if difference.others > 0 {
        let what = format!(
            "{} more would make the maps right: where NodePorts answer, or entries that belong to no Service",
            number(difference.others, "write")
        );
        findings.push(Finding::error(CHECK, what, cure));
    }
    for refused in &difference.refused {
        findings.push(Finding::error(
            CHECK,
            refused.as_str(),
            "raise the flag that it names, or leave it out: then the map grows",
        ));
    }
    if findings.is_empty() {
        let what = format!("the maps are what the objects of {} say", number(difference.services, "Service"));
        findings.push(Finding::ok(CHECK, what));
    }
    if let Some(first) = difference.warnings.first() {
        let what = format!("{} about Services, the first one: {first}", number(difference.warnings.len(), "warning"));
        findings.push(Finding::note(CHECK, what, "`beeline explain NAMESPACE/NAME` tells each with its cause"));
    }
    findings
}

/// They could not be compared.
pub(super) fn unreadable(error: &anyhow::Error) -> Finding {
    Finding::error(
        CHECK,
        format!("the maps could not be compared with the objects: {error:#}"),
        "see the other findings",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::assert_told;
    use lb_core::objects::Key;

    fn change(name: &str, added: usize, removed: usize) -> Change {
        Change { service: Key::new("a", name), frontends: 1, added, removed, writes: 3 }
    }

    fn check(difference: &Difference, expected: &[&str]) {
        assert_told(&evaluate(difference, Some(7)), expected);
    }

    #[test]
    fn what_differs_is_told_by_service() {
        let equal = Difference { services: 2, ..Difference::default() };
        check(&equal, &["ok: the maps are what the objects of 2 Services say"]);
        let changed = vec![change("b", 1, 0), change("c", 0, 2), change("d", 1, 1), change("e", 0, 0)];
        check(
            &Difference { changed, ..equal.clone() },
            &[
                "error: a/b differs from its objects by 3 writes, 1 backend missing",
                "error: a/c differs from its objects by 3 writes, 2 backends too many",
                "error: a/d differs from its objects by 3 writes, 1 backend missing and 1 too many",
                "error: a/e differs from its objects by 3 writes",
            ],
        );
        check(&Difference { others: 2, ..equal.clone() }, &["error: 2 writes more would make the maps right"]);
        check(&Difference { refused: vec!["the map SLOTS".to_owned()], ..equal.clone() }, &["error: the map SLOTS"]);
        let warnings = vec!["a/b: x".to_owned(), "a/c: y".to_owned()];
        check(&Difference { warnings, ..equal }, &["ok", "note: 2 warnings about Services, the first one: a/b: x"]);
    }

    #[test]
    fn many_are_summed_up() {
        let changed = (0..12).map(|number| change(&format!("s{number}"), 0, 0)).collect();
        let told = evaluate(&Difference { changed, ..Difference::default() }, None);
        assert_eq!(told.len(), 11);
        assert!(told.last().is_some_and(|last| last.what == "2 more Services differ from their objects"));
    }
}
