//! The maps compared with the objects: the plan from the maps to the objects, which is empty if they agree.

use anyhow::Result;

use super::{Finding, process};
use lb_agent::reconcile::Reconciler;
use lb_core::{
    event::{Event, NodeAddresses},
    model::Settings,
    plan::Change,
    store::{Dump, Limits, MemoryStore},
    text::number,
};
use lb_sources::addresses;

const CHECK: &str = "maps";

/// Services that are listed one by one.
const MAX_LISTED: usize = 10;

/// Difference between the maps and the objects.
#[derive(Clone, Default, Debug)]
pub(super) struct MapDifference {
    /// Number of Services among the objects.
    services: usize,
    /// Services that differ.
    changed: Vec<Change>,
    /// Number of writes that belong to no single Service: addresses of NodePorts, orphaned entries.
    other_writes: usize,
    /// Services that do not fit, with the map that is full.
    refused: Vec<String>,
    /// Warnings, each with its Service.
    warnings: Vec<String>,
}

impl MapDifference {
    /// True if the maps agree with the objects, apart from Services that do not fit.
    pub(super) const fn is_none(&self) -> bool {
        self.changed.is_empty() && self.other_writes == 0
    }
}

/// Returns the node's addresses as the agent sees them: from the interfaces, or from the maps if this process is in
/// another network namespace than the agent.
pub(super) fn addresses(dump: &Dump, agent: Option<u32>) -> Option<NodeAddresses> {
    let own = process::network_namespace("self");
    if agent.is_some_and(|pid| process::network_namespace(&pid.to_string()) != own) {
        return Some(dump.node_addrs.keys().map(|addr| addr.to_ip()).collect());
    }
    addresses::current().ok()
}

/// Plans the writes from the maps to the objects, with the agent's own planner.
pub(super) fn compare(
    (dump, limits): &(Dump, Limits),
    events: Vec<Event>,
    node_name: &str,
    settings: Settings,
    addresses: Option<NodeAddresses>,
) -> Result<MapDifference> {
    let mut reconciler = Reconciler::new(MemoryStore::holding(dump.clone(), *limits), node_name, settings);
    reconciler.handle(events);
    reconciler.handle(addresses.map(Event::NodeAddresses));
    let plan = reconciler.preview()?;
    let of_services: usize = plan.changed.iter().map(|change| change.writes).sum();
    let warnings = reconciler.warnings().iter();
    let warnings =
        warnings.flat_map(|(service, warnings)| warnings.iter().map(move |text| format!("{service}: {text}")));
    Ok(MapDifference {
        services: reconciler.world().services().count(),
        other_writes: plan.ops.len().saturating_sub(of_services),
        refused: plan.refused.iter().map(ToString::to_string).collect(),
        warnings: warnings.collect(),
        changed: plan.changed,
    })
}

/// Reports the difference. `agent` is the pid of the running agent.
pub(super) fn evaluate(difference: &MapDifference, agent: Option<u32>) -> Vec<Finding> {
    let cure = match agent {
        Some(pid) => format!(
            "the agent (pid {pid}) compares all maps every five minutes, and at once when it is started again; its log \
             has the reason why it does not write"
        ),
        None => "start the agent: it writes missing entries".to_owned(),
    };
    let mut findings = Vec::new();
    for Change { service, added, removed, writes, .. } in difference.changed.iter().take(MAX_LISTED) {
        let backends = match (added, removed) {
            (0, 0) => String::new(),
            (added, 0) => format!(", {} missing", number(*added, "backend")),
            (0, removed) => format!(", {} too many", number(*removed, "backend")),
            (added, removed) => format!(", {} missing and {removed} too many", number(*added, "backend")),
        };
        let what = format!("{service} differs from its objects by {}{backends}", number(*writes, "write"));
        findings.push(Finding::error(CHECK, what, format!("{cure}; `beeline explain {service}` lists the writes")));
    }
    if difference.changed.len() > MAX_LISTED {
        let what = format!("{} more Services differ from their objects", difference.changed.len() - MAX_LISTED);
        findings.push(Finding::error(CHECK, what, cure.as_str()));
    }
    if difference.other_writes > 0 {
        let what = format!(
            "the maps differ by {} that belong to no Service: addresses of NodePorts, or orphaned entries",
            number(difference.other_writes, "write")
        );
        findings.push(Finding::error(CHECK, what, cure));
    }
    for refused in &difference.refused {
        findings.push(Finding::error(
            CHECK,
            refused.as_str(),
            "raise --map-size, or remove the flag: then the map grows by itself",
        ));
    }
    if findings.is_empty() {
        let what = format!("the maps agree with the objects of {}", number(difference.services, "Service"));
        findings.push(Finding::ok(CHECK, what));
    }
    if let Some(first) = difference.warnings.first() {
        let what = format!("{} about Services, the first one: {first}", number(difference.warnings.len(), "warning"));
        findings.push(Finding::note(CHECK, what, "`beeline explain NAMESPACE/NAME` prints each with its cause"));
    }
    findings
}

/// Reports that the comparison failed.
pub(super) fn unreadable(error: &anyhow::Error) -> Finding {
    Finding::error(
        CHECK,
        format!("the maps could not be compared with the objects: {error:#}"),
        "see the findings of the checks pins and source",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::assert_findings;
    use lb_core::objects::Key;

    fn change(name: &str, added: usize, removed: usize) -> Change {
        Change { service: Key::new("a", name), frontends: 1, added, removed, writes: 3 }
    }

    fn check(difference: &MapDifference, expected: &[&str]) {
        assert_findings(&evaluate(difference, Some(7)), expected);
    }

    #[test]
    fn differences_are_reported_by_service() {
        let equal = MapDifference { services: 2, ..MapDifference::default() };
        check(&equal, &["ok: the maps agree with the objects of 2 Services"]);
        let changed = vec![change("b", 1, 0), change("c", 0, 2), change("d", 1, 1), change("e", 0, 0)];
        check(
            &MapDifference { changed, ..equal.clone() },
            &[
                "error: a/b differs from its objects by 3 writes, 1 backend missing",
                "error: a/c differs from its objects by 3 writes, 2 backends too many",
                "error: a/d differs from its objects by 3 writes, 1 backend missing and 1 too many",
                "error: a/e differs from its objects by 3 writes",
            ],
        );
        check(
            &MapDifference { other_writes: 2, ..equal.clone() },
            &["error: the maps differ by 2 writes that belong to no Service"],
        );
        check(&MapDifference { refused: vec!["the map SLOTS".to_owned()], ..equal.clone() }, &["error: the map SLOTS"]);
        let warnings = vec!["a/b: x".to_owned(), "a/c: y".to_owned()];
        check(&MapDifference { warnings, ..equal }, &["ok", "note: 2 warnings about Services, the first one: a/b: x"]);
    }

    #[test]
    fn only_the_first_ten_services_are_listed() {
        let changed = (0..12).map(|number| change(&format!("s{number}"), 0, 0)).collect();
        let findings = evaluate(&MapDifference { changed, ..MapDifference::default() }, None);
        assert_eq!(findings.len(), 11);
        assert!(findings.last().is_some_and(|last| last.what == "2 more Services differ from their objects"));
    }
}
