//! Rows of hand-made maps and counts.

use lb_common::{BackendStats, EjectStats, PortStats};

use super::*;
use lb_common::Family;
use lb_core::objects::Key;

/// Service port 1, `a/b`, with backends: 1 on this node in both lists with weight 2, 2 in the cluster list, 3 in no
/// list.
fn maps() -> (Dump, Stats) {
    let mut dump = Dump::default();
    let key = PortKey { service: Key::new("a", "b"), name: "".into(), proto: Proto::Tcp, family: Family::V4 };
    dump.names.insert(1, key);
    let (scheduler, affinity_seconds, drain_seconds) = (Scheduler::Wrr as u32, 10800, NEVER);
    let service = ServiceEntry {
        cluster_len: 3,
        local_len: 2,
        scheduler,
        affinity_seconds,
        drain_seconds,
        ..ServiceEntry::default()
    };
    dump.services.insert(1, service);
    let addr = |last| std::net::IpAddr::from([10, 0, 0, last]).into();
    let all =
        [(1, BackendFlags::CLUSTER | BackendFlags::LOCAL | BackendFlags::ON_NODE), (2, BackendFlags::CLUSTER), (3, 0)];
    for (id, flags) in all {
        dump.backends.insert(u32::from(id), Backend { addr: addr(id), port: 80, flags, service: 1 });
    }
    let slots = [(List::Cluster, 0, 1, 2), (List::Cluster, 1, 1, 2), (List::Cluster, 2, 2, 1), (List::Local, 0, 1, 2)];
    for (list, index, id, weight) in slots {
        let slot = Slot { addr: addr(id), port: 80, weight, backend: u32::from(id) };
        dump.slots.insert(SlotKey::new(1, list, index), slot);
    }
    let mut stats = Stats::default();
    let port = PortStats { connections: 12, no_endpoints: 3, no_local_endpoints: 4, moved: 5, ..PortStats::default() };
    stats.ports.insert(1, port);
    for (id, open) in [(1, 2), (3, 1), (4, 6), (5, 0)] {
        stats.backends.insert(id, BackendStats { open, connections: open + 1, service: 1, _pad: 0 });
    }
    stats.killed.insert(1, 9);
    for (backend, failures) in [(0, 5), (7, 3)] {
        stats.ejected.insert(EjectStatsKey { service: 1, backend }, EjectStats { failures, ejections: 2 });
    }
    (dump, stats)
}

#[test]
fn a_service_port_has_the_sums_of_its_backends_removed_ones_included() {
    let (dump, stats) = maps();
    let rows = services(&dump, &stats);
    let [row] = rows.as_slice() else { panic!("one service port: {rows:?}") };
    // A weight of 2 is two slots, and one backend.
    assert_eq!((row.backends, row.local_backends), (2, 1));
    assert_eq!(
        row.counts,
        PortCounts {
            connections: 12,
            open: 9,
            refused: 7,
            no_endpoints: 3,
            no_local_endpoints: 4,
            moved: 5,
            killed: 9,
            failures: 5,
            ejections: 2,
        }
    );
    assert_eq!(row.counts.open, stats.open(1));
    assert_eq!((row.scheduler, row.affinity_seconds, row.drain_seconds), ("wrr", 10800, None));
}

#[test]
fn removed_backends_are_listed_while_sockets_hold_them() {
    let (mut dump, stats) = maps();
    let cells = |rows: Vec<BackendRow>| -> Vec<_> {
        let row = |row: BackendRow| (row.id, row.address, row.place, row.weight, row.lists.join(","), row.open);
        rows.into_iter().map(row).collect()
    };
    let rows = cells(backends(&dump, &stats));
    assert_eq!(
        rows,
        [
            (1, "10.0.0.1".to_owned(), Some("here"), 2, "cluster,local".to_owned(), 2),
            (2, "10.0.0.2".to_owned(), Some("elsewhere"), 1, "cluster".to_owned(), 0),
            (3, "10.0.0.3".to_owned(), Some("elsewhere"), 0, String::new(), 1),
            (4, GONE.to_owned(), None, 0, String::new(), 6),
        ]
    );
    assert_eq!(cells(backends_of(&dump, &dump.slots, &stats, 1)), rows);
    assert_eq!(cells(backends_of(&dump, &dump.slots, &stats, 2)), []);
    // The service port may have been removed too.
    dump = Dump::default();
    assert_eq!(backends(&dump, &stats).iter().map(|row| row.service.as_str()).collect::<Vec<_>>(), ["service#1"; 3]);
}

#[test]
fn a_policy_is_local_preferred_or_neither() {
    let policies = |flags| {
        let (mut dump, stats) = maps();
        dump.services.entry(1).or_default().flags = flags;
        let rows = services(&dump, &stats);
        (rows[0].internal_traffic_policy, rows[0].external_traffic_policy)
    };
    assert_eq!(policies(0), ("Cluster", "Cluster"));
    let redirected = ServiceFlags::REDIRECTED | ServiceFlags::INTERNAL_LOCAL;
    assert_eq!(policies(redirected), ("Redirected", "Cluster"));
    assert_eq!(policies(ServiceFlags::PREFERS_LOCAL), ("PreferLocal", "PreferLocal"));
    assert_eq!(policies(ServiceFlags::PREFERS_LOCAL | ServiceFlags::EXTERNAL_LOCAL), ("PreferLocal", "Local"));
}
