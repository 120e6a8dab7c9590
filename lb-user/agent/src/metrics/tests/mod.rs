//! Tests of the text of a scrape: its content, and its form.

use std::{
    collections::BTreeSet,
    time::{Duration, SystemTime},
};

use lb_common::{BackendStats, Counter, Proto};

use super::{
    kernel::{BackendUsage, MapUsage, ProgramUsage, TopBackends},
    *,
};
use crate::histogram::Histogram;
use lb_common::Family;
use lb_core::{
    announce::{Held, Time},
    objects::Key,
    spec::PortKey,
    world::Changes,
};
use lb_dataplane::stats::counts::PortCounts;

fn port(name: &str, family: Family) -> PortKey {
    PortKey { service: Key::new("default", name), name: "http".into(), proto: Proto::Tcp, family }
}

fn scrape() -> Scrape {
    let at = |millis| Some(SystemTime::UNIX_EPOCH + Duration::from_millis(millis));
    let mut status = Status {
        ready: true,
        passes: 3,
        failures: 1,
        writes: 12,
        refused: 1,
        warnings: 2,
        forbidden: [lb_core::event::ObjectKind::Node].into(),
        queued: at(2_500),
        updated: at(2_000),
        seen: Changes { services: 5, endpoints: 9 },
        done: Changes { services: 4, endpoints: 7 },
        durations: Histogram::new(vec![1, 2]),
        programming: Histogram::new(vec![0, 250]),
        ..Status::default()
    };
    for micros in [500, 1_500, 9_000] {
        status.durations.observe(Duration::from_micros(micros));
    }
    let counts = PortCounts {
        connections: 20,
        open: 3,
        refused: 5,
        no_endpoints: 4,
        no_local_endpoints: 1,
        moved: 6,
        killed: 7,
        failures: 5,
        ejections: 2,
    };
    let backend = |address: &str| BackendUsage {
        port: port("a", Family::V4),
        address: address.to_owned(),
        stats: BackendStats { open: 3, connections: 20, ..BackendStats::default() },
    };
    let held = Held { addresses: [[192, 0, 2, 7].into()].into(), until: Time::MAX };
    let announcing = AnnouncingState {
        held,
        members: 3,
        silent: vec!["n2".into()],
        lapses: 4,
        refused: 5,
        received: 70,
        unsigned: 6,
        unreadable: 7,
        lease_writes: 8,
        error: None,
    };
    Scrape {
        status,
        announcing: Some(announcing),
        probes: vec![(Probe::Healthz, 200, 1), (Probe::Healthz, 503, 2), (Probe::Livez, 200, 3)],
        endpoint_probes: Arc::new(lb_sources::probes::ProbeCounts {
            passed: 30.into(),
            failed: 4.into(),
            passing: 2.into(),
            failing: 1.into(),
            unknown: 0.into(),
        }),
        flows: FlowGcStatus {
            expired: 40,
            round: Duration::from_millis(2500),
            longest_step: Duration::from_micros(1500),
            ..FlowGcStatus::default()
        },
        kernel: Some(KernelMetrics {
            maps: vec![
                MapUsage { name: "COUNTERS".to_owned(), entries: None, size: 8 },
                MapUsage { name: "SLOTS".to_owned(), entries: Some(4), size: 16 },
            ],
            programs: vec![
                ProgramUsage { name: "connect4".to_owned(), id: 7, runs: Some((8, Duration::from_millis(1))) },
                ProgramUsage { name: "connect6".to_owned(), id: 9, runs: None },
            ],
            ejected: vec![(port("a", Family::V4), 1)],
            ports: vec![(port("a", Family::V4), counts), (port("\"\\\n", Family::V6), PortCounts::default())],
            backends: Some(TopBackends { shown: vec![backend("10.0.0.1:80"), backend("gone#4")], left_out: 2 }),
            counters: vec![(Counter::UdpMoved, 6)],
            without_local: [1, 2],
        }),
    }
}

#[test]
fn a_scrape_has_the_expected_text() {
    expect_test::expect_file!["scrape.txt"].assert_eq(&text(scrape()).expect("memory"));
}

#[test]
fn the_dashboard_and_the_alerts_name_metrics_that_announcers_have() {
    let known = families(&text(scrape()).expect("memory"));
    for text in [
        include_str!("../../../../../deploy/monitoring/dashboard.json"),
        include_str!("../../../../../deploy/monitoring/alerts.yaml"),
    ] {
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let used: BTreeSet<String> =
            words.filter(|word| word.starts_with("beeline_announce")).map(str::to_owned).collect();
        let unknown: Vec<_> = used.difference(&known).collect();
        assert!(used.len() > 1 && unknown.is_empty(), "{unknown:?}");
    }
}

#[test]
fn without_maps_a_scrape_has_the_other_metrics() {
    let full = families(&text(scrape()).expect("memory"));
    let without = families(&text(Scrape { kernel: None, ..scrape() }).expect("memory"));
    assert!(without.is_subset(&full) && without.contains("beeline_maps_readable"), "{without:?}");
    assert!(!without.contains("beeline_map_entries"));
}

/// Returns the names of the families in a scrape. Panics if the form is wrong: every family has one HELP and one TYPE,
/// then its samples, each once.
fn families(text: &str) -> BTreeSet<String> {
    let mut known = BTreeSet::new();
    let mut series = BTreeSet::new();
    let (mut family, mut kind) = (String::new(), String::new());
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, help) = help.split_once(' ').expect("a help");
            assert!(!help.is_empty() && known.insert(name.to_owned()), "{line}");
            let next = lines.next().and_then(|line| line.strip_prefix("# TYPE ")).expect("its type comes next");
            (family, kind) =
                next.split_once(' ').map(|(name, kind)| (name.to_owned(), kind.to_owned())).expect("a type");
            assert_eq!(family, name);
            assert!(["counter", "gauge", "histogram"].contains(&kind.as_str()), "{line}");
            continue;
        }
        let (sample, value) = line.rsplit_once(' ').expect("a value");
        assert!(value.parse::<f64>().is_ok_and(|value| value >= 0.0), "{line}");
        let name = sample.split('{').next().expect("a name");
        let suffixes: &[&str] = if kind == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
        assert!(
            suffixes.iter().any(|suffix| name.strip_prefix(family.as_str()) == Some(suffix)),
            "{line}: of {family}"
        );
        assert!(kind != "counter" || name.ends_with("_total"), "{line}");
        assert!(series.insert(sample.to_owned()), "{line}: twice");
    }
    known
}
