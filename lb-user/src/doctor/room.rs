//! How much room the maps have left, and what was lost already for want of it.

use std::{collections::BTreeSet, path::Path};

use lb_common::Counter;

use super::Finding;
use lb_agent::metrics::kernel::{self, MapUsage};
use lb_core::op::Table;
use lb_dataplane::load::largest;

const CHECK: &str = "room";

/// So full, in hundredths, is close to full.
const CLOSE: u64 = 90;

/// The maps, and events of which their programs keep count; or why neither can be read.
pub(super) type Facts = Result<(Vec<MapUsage>, Vec<(Counter, u64)>), String>;

/// Reads the pins of a directory.
pub(super) fn read(directory: &Path) -> Facts {
    let kernel = kernel::read(directory, None, None).map_err(|error| format!("{error:#}"))?;
    Ok((kernel.maps, kernel.counters))
}

/// What it means when the sizes of some maps are `fixed` by a flag.
pub(super) fn evaluate(facts: &Facts, fixed: &BTreeSet<Table>) -> Vec<Finding> {
    let (maps, counters) = match facts {
        Ok(facts) => facts,
        Err(error) => {
            let what = format!("how full the maps are cannot be read: {error}");
            return vec![Finding::error(CHECK, what, "see what the check pins says")];
        }
    };
    let mut findings: Vec<_> = maps.iter().filter_map(|map| close(map, fixed)).collect();
    for (counter, count) in counters.iter().filter(|(_, count)| *count > 0) {
        let lost = match counter {
            Counter::TcpSocksFull => {
                "TCP sockets show their backend, and not the Service, as their peer: TCP_MORE was full"
            }
            Counter::StatsFull => "sockets are not counted: PORT_STATS or BACKEND_STATS was full",
            Counter::AffinityFull => "clients may not have been kept at their backend: AFFINITY was full",
            Counter::FlowsFull => "first packets of flows from outside were dropped: FLOWS was full",
            Counter::SnatExhausted => {
                "first packets of flows from outside were dropped: all source ports towards their backend were taken"
            }
            _ => continue,
        };
        let what = format!("{count} times since the maps were made: {lost}");
        findings.push(Finding::note(CHECK, what, "none while the node goes on like this; report it if it grows"));
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

fn close(map: &MapUsage, fixed: &BTreeSet<Table>) -> Option<Finding> {
    let share = share(map).filter(|share| *share >= CLOSE)?;
    let what = format!("the map {} is at {share} % of its {} entries", map.name, map.size);
    match Table::ALL.into_iter().find(|table| table.map_name() == map.name) {
        Some(table) if fixed.contains(&table) => Some(Finding::warning(
            CHECK,
            format!("{what}, and its size is fixed: a Service that needs more stays as it is"),
            format!(
                "give --map-size {}={}, or leave it out: then the map grows",
                table.flag_name().unwrap_or_default(),
                map.size.saturating_mul(4)
            ),
        )),
        // It grows by itself.
        Some(table) if map.size < largest(table) => None,
        Some(_) => Some(Finding::warning(
            CHECK,
            format!("{what}, and no map grows beyond that by itself"),
            "fix a larger size with --map-size, or share the Services out between proxies with --service-proxy-name",
        )),
        None => Some(Finding::warning(
            CHECK,
            format!("{what}: what does not fit is not counted, or not remembered"),
            "none by a flag; report it with what the node runs",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::{assert_told, brief};

    fn check(maps: &[(&str, Option<u64>, u32)], counters: &[(Counter, u64)], fixed: &[Table], expected: &[&str]) {
        let map = |(name, entries, size): &(&str, Option<u64>, u32)| MapUsage {
            name: (*name).to_owned(),
            entries: *entries,
            size: *size,
        };
        let facts = Ok((maps.iter().map(map).collect(), counters.to_vec()));
        assert_told(&evaluate(&facts, &fixed.iter().copied().collect()), expected);
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
            &["warning: the map SLOTS is at 100 % of its 4194304 entries, and no"],
        );
        check(&[("AFFINITY", Some(95), 100)], &[], &[], &["warning: the map AFFINITY is at 95 %"]);
    }

    #[test]
    fn what_was_lost_is_told() {
        check(
            &[],
            &[(Counter::StatsFull, 3), (Counter::AffinityFull, 0), (Counter::NoEndpoints, 9)],
            &[],
            &["note: 3 times since the maps were made: sockets are not counted"],
        );
        let unreadable = brief(&evaluate(&Err("x".to_owned()), &BTreeSet::new()));
        assert!(unreadable.iter().all(|told| told.starts_with("error: how full the maps are cannot be read: x")));
    }
}
