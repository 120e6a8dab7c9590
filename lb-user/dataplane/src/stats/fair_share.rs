//! Room in `AFFINITY` by Service port: the clients of one Service must not cost those of others their affinity. Pure.

use std::cmp::Reverse;

use foldhash::HashMap;
use lb_common::{Affinity, AffinityKey};

/// Chooses the entries to remove, so that at most `target` stay. Service ports with few entries keep all of theirs: the
/// others are cut to one common number, and lose the clients that have been idle for longest.
pub(super) fn surplus(entries: &[(AffinityKey, Affinity)], target: usize) -> Vec<AffinityKey> {
    if entries.len() <= target {
        return Vec::new();
    }
    let mut by_port: HashMap<u32, Vec<(u64, AffinityKey)>> = HashMap::default();
    for (key, value) in entries {
        by_port.entry(key.service).or_default().push((value.used, *key));
    }
    let share = share(by_port.values().map(Vec::len).collect(), target);
    let mut surplus = Vec::new();
    for mut clients in by_port.into_values().filter(|clients| clients.len() > share) {
        clients.select_nth_unstable_by_key(share, |(used, _)| Reverse(*used));
        surplus.extend(clients.drain(share..).map(|(_, key)| key));
    }
    surplus
}

/// Returns the greatest number of entries for each service port, so that all have at most `target`.
fn share(mut counts: Vec<usize>, target: usize) -> usize {
    counts.sort_unstable();
    let mut room = target;
    let mut left = counts.len();
    for count in counts {
        if count * left > room {
            return room / left;
        }
        room -= count;
        left -= 1;
    }
    usize::MAX
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use lb_common::Addr;

    use super::*;

    /// Makes entries of service ports with these numbers of clients; a client was used at its number.
    fn entries(counts: &[u32]) -> Vec<(AffinityKey, Affinity)> {
        let of = |(service, count): (u32, &u32)| {
            let entry = move |n: u32| {
                let client = Addr::from_words([n, 0, 0, 0]);
                let key = AffinityKey { client, service, is_netns: 0 };
                (key, Affinity { used: n.into(), backend: 1, _pad: 0 })
            };
            (0..*count).map(entry).collect::<Vec<_>>()
        };
        (1..).zip(counts).flat_map(of).collect()
    }

    #[test]
    fn many_clients_of_one_service_port_cost_others_nothing() {
        let check = |counts: &[u32], target: usize, expected: &[u32]| {
            let all = entries(counts);
            let surplus = surplus(&all, target);
            let mut left: BTreeMap<u32, Vec<u64>> = (1..).zip(counts).map(|(service, _)| (service, vec![])).collect();
            for (key, value) in all.iter().filter(|(key, _)| !surplus.contains(key)) {
                left.entry(key.service).or_default().push(value.used);
            }
            assert_eq!(left.values().map(|used| used.len() as u32).collect::<Vec<_>>(), expected, "{counts:?}");
            for (used, count) in left.values().zip(counts) {
                let newest = u64::from(*count) - used.len() as u64;
                assert!(used.iter().all(|used| *used >= newest), "{counts:?}: clients idle for longest go first");
            }
        };
        check(&[], 10, &[]);
        check(&[3, 4], 10, &[3, 4]);
        check(&[100, 3, 4], 20, &[13, 3, 4]);
        check(&[100, 90, 5], 25, &[10, 10, 5]);
        check(&[100, 100, 100], 10, &[3, 3, 3]);
        check(&[5, 5], 1, &[0, 0]);
        check(&[700, 1], 600, &[599, 1]);
    }
}
