//! Room in the maps: maps that are nearly full, and losses because a map was full.

use std::{collections::BTreeSet, path::Path};

use lb_common::Counter;

use super::Finding;
use lb_agent::metrics::kernel::{self, MapUsage};
use lb_core::op::Table;
use lb_dataplane::load::largest;

const CHECK: &str = "room";

/// Share of entries in use from which a map is nearly full (%).
const NEARLY_FULL: u64 = 90;

/// Sizes of the maps, and counters of the programs; or why they cannot be read.
pub(super) type RoomFacts = Result<(Vec<MapUsage>, Vec<(Counter, u64)>), String>;

/// Reads the maps pinned in a directory.
pub(super) fn read(directory: &Path) -> RoomFacts {
    let kernel = kernel::read(directory, None, None).map_err(|error| format!("{error:#}"))?;
    Ok((kernel.maps, kernel.counters))
}

/// Reports full maps and losses. `fixed` are the maps with a size set by `--map-size`.
pub(super) fn evaluate(facts: &RoomFacts, fixed: &BTreeSet<Table>) -> Vec<Finding> {
    let (maps, counters) = match facts {
        Ok(facts) => facts,
        Err(error) => {
            let what = format!("the room in the maps cannot be read: {error}");
            return vec![Finding::error(CHECK, what, "see the findings of the check pins")];
        }
    };
    let mut findings: Vec<_> = maps.iter().filter_map(|map| nearly_full(map, fixed)).collect();
    for (counter, count) in counters.iter().filter(|(_, count)| *count > 0) {
        let lost = match counter {
            Counter::TcpSocksFull => {
                "TCP sockets show their backend instead of the VIP as their peer: TCP_MORE was full"
            }
            Counter::StatsFull => "sockets are not counted: PORT_STATS or BACKEND_STATS was full",
            Counter::AffinityFull => "clients may have lost their affinity: AFFINITY was full",
            Counter::FlowsFull => "first packets of flows from outside were dropped: FLOWS was full",
            Counter::SnatExhausted => {
                "first packets of flows from outside were dropped: all source ports towards their backend were in use"
            }
            _ => continue,
        };
        let what = format!("{count} times since the maps were created: {lost}");
        findings.push(Finding::note(CHECK, what, "none if the count stays the same; report a bug if it grows"));
    }
    if findings.is_empty() {
        let fullest = maps.iter().filter_map(|map| Some((share(map)?, map))).max_by_key(|(share, _)| *share);
        let fullest =
            fullest.map_or_else(String::new, |(share, map)| format!(", the fullest, {}, is at {share} %", map.name));
        findings.push(Finding::ok(CHECK, format!("every map has room{fullest}")));
    }
    findings
}

fn share(map: &MapUsage) -> Option<u64> {
    (map.entries?.saturating_mul(100)).checked_div(u64::from(map.size))
}

fn nearly_full(map: &MapUsage, fixed: &BTreeSet<Table>) -> Option<Finding> {
    let share = share(map).filter(|share| *share >= NEARLY_FULL)?;
    let what = format!("the map {} is at {share} % of its {} entries", map.name, map.size);
    match Table::ALL.into_iter().find(|table| table.map_name() == map.name) {
        Some(table) if fixed.contains(&table) => Some(Finding::warning(
            CHECK,
            format!("{what}, and its size is fixed: a Service that needs more entries keeps its old version"),
            format!(
                "set --map-size {}={}, or remove the flag: then the map grows by itself",
                table.flag_name().unwrap_or_default(),
                map.size.saturating_mul(4)
            ),
        )),
        // The agent grows the map.
        Some(table) if map.size < largest(table) => None,
        Some(_) => Some(Finding::warning(
            CHECK,
            format!("{what}, and the agent does not grow it further"),
            "set a larger size with --map-size, or split the Services between proxies with --service-proxy-name",
        )),
        None if map.name == "FLOWS" => Some(Finding::warning(
            CHECK,
            format!("{what}: first packets of new flows from outside are dropped when it is full"),
            format!("set --map-size flows={}", map.size.saturating_mul(4)),
        )),
        None => Some(Finding::warning(
            CHECK,
            format!("{what}: further entries are not stored"),
            "no flag changes this size: report a bug, with the workload of the node",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::{assert_findings, brief};

    fn check(maps: &[(&str, Option<u64>, u32)], counters: &[(Counter, u64)], fixed: &[Table], expected: &[&str]) {
        let map = |(name, entries, size): &(&str, Option<u64>, u32)| MapUsage {
            name: (*name).to_owned(),
            entries: *entries,
            size: *size,
        };
        let facts = Ok((maps.iter().map(map).collect(), counters.to_vec()));
        assert_findings(&evaluate(&facts, &fixed.iter().copied().collect()), expected);
    }

    #[test]
    fn a_map_that_cannot_grow_must_have_room() {
        let slots = |entries| [("SLOTS", Some(entries), 100), ("COUNTERS", None, 8)];
        check(&slots(50), &[], &[Table::Slots], &["ok: every map has room, the fullest, SLOTS, is at 50 %"]);
        check(&slots(90), &[], &[], &["ok: every map has room"]);
        check(
            &slots(90),
            &[],
            &[Table::Slots],
            &["warning: the map SLOTS is at 90 % of its 100 entries, and its size is fixed"],
        );
        check(
            &[("SLOTS", Some(1 << 22), 1 << 22)],
            &[],
            &[],
            &["warning: the map SLOTS is at 100 % of its 4194304 entries, and the agent"],
        );
        check(&[("AFFINITY", Some(95), 100)], &[], &[], &["warning: the map AFFINITY is at 95 %"]);
        let full = "warning: the map FLOWS is at 95 % of its 100 entries: first packets of new flows from outside are";
        check(&[("FLOWS", Some(95), 100)], &[], &[], &[full]);
    }

    #[test]
    fn losses_are_reported() {
        check(
            &[],
            &[(Counter::StatsFull, 3), (Counter::AffinityFull, 0), (Counter::NoEndpoints, 9)],
            &[],
            &["note: 3 times since the maps were created: sockets are not counted"],
        );
        let unreadable = brief(&evaluate(&Err("x".to_owned()), &BTreeSet::new()));
        assert!(unreadable.iter().all(|found| found.starts_with("error: the room in the maps cannot be read: x")));
    }
}
