//! Rates, rows, keys and cells from counts, without a kernel or a terminal.

use std::time::{Duration, Instant};

use expect_test::{Expect, expect};
use lb_common::{Backend, BackendFlags, BackendStats, List, NEVER, PortStats, Proto, ServiceEntry, Slot, SlotKey};
use ratatui::{
    Terminal,
    backend::TestBackend,
    crossterm::event::{KeyCode, KeyEvent, KeyModifiers},
};

use super::{
    draw, plain,
    report::{self, Report},
    sample::{Sample, Served},
    view::{Control, Page, Sort, View},
};
use lb_common::Family;
use lb_core::{objects::Key, spec::PortKey, store::Dump};
use lb_dataplane::stats::{Stats, UnsortedStats};

/// A sample of service ports `s0`, `s1`… with `backends` each. Every backend of `sN` has `connections` × N connections.
/// `s0` has no backends, and refuses.
fn sample(at: Instant, services: u32, backends: u32, connections: u64) -> Sample {
    let (dump, stats) = maps(services, backends, connections);
    sample_of(at, dump, stats)
}

fn maps(services: u32, backends: u32, connections: u64) -> (Dump, Stats) {
    let (mut dump, mut stats) = (Dump::default(), Stats::default());
    for service in 0..services {
        let id = service + 1;
        let count = if service == 0 { 0 } else { backends };
        let key = PortKey {
            service: Key::new("default", &format!("s{service}")),
            name: if service % 2 == 0 { "http".into() } else { "".into() },
            proto: if service == 1 { Proto::Udp } else { Proto::Tcp },
            family: if service == 2 { Family::V6 } else { Family::V4 },
        };
        dump.names.insert(id, key);
        let value =
            ServiceEntry { cluster_len: count, cluster_stride: 1, drain_seconds: NEVER, ..ServiceEntry::default() };
        dump.services.insert(id, value);
        let mut port = PortStats::default();
        for index in 0..count {
            let backend = service * backends + index + 1;
            let addr = std::net::IpAddr::from([10, 0, (backend >> 8) as u8, backend as u8]).into();
            let flags = if index == 0 { BackendFlags::CLUSTER | BackendFlags::ON_NODE } else { BackendFlags::CLUSTER };
            dump.backends.insert(backend, Backend { addr, port: 8080, flags, service: id });
            let slot = Slot { addr, port: 8080, weight: 1, backend };
            dump.slots.insert(SlotKey::new(id, List::Cluster, index), slot);
            let times = connections * u64::from(service);
            let counts = BackendStats { open: u64::from(index), connections: times, service: id, _pad: 0 };
            stats.backends.insert(backend, counts);
            port.connections += times;
        }
        if service == 0 {
            (port.no_endpoints, port.no_local_endpoints) = (connections, 2);
        }
        stats.ports.insert(id, port);
    }
    (dump, stats)
}

fn sample_of(at: Instant, dump: Dump, stats: Stats) -> Sample {
    let Stats { ports, backends, killed, .. } = stats;
    let counts = UnsortedStats {
        ports: ports.into_iter().collect(),
        backends: backends.into_iter().collect(),
        killed: killed.into_iter().collect(),
    };
    Sample::new(at, Some(4711), Served::new(dump).into(), counts)
}

/// The report of a second sample, two seconds after the first.
fn second_report(before: &Sample, mut now: Sample) -> Report {
    now.at = before.at + Duration::from_secs(2);
    report::report(Some(before), &now)
}

fn screen(report: &Report, backends: &[report::RatedBackend], view: &mut View, expected: &Expect) {
    let mut terminal = Terminal::new(TestBackend::new(100, 10)).expect("cells in memory");
    terminal.draw(|frame| draw::draw(frame, report, backends, view)).expect("cells in memory");
    let buffer = terminal.backend().buffer().clone();
    let mut text = String::new();
    for y in 0..buffer.area.height {
        let line: String = (0..buffer.area.width).map(|x| buffer[(x, y)].symbol()).collect();
        // The selected line has reversed colours.
        let selected = buffer[(0, y)].modifier.contains(ratatui::style::Modifier::REVERSED);
        text += format!("{}{line}", if selected { ">" } else { "|" }).trim_end();
        text.push('\n');
    }
    expected.assert_eq(&text);
}

fn press(view: &mut View, report: &Report, keys: &[KeyCode]) -> Control {
    let mut control = Control::Continue;
    for key in keys {
        let shown = draw::ids(report, &[], view);
        control = view.key(KeyEvent::new(*key, KeyModifiers::NONE), &shown);
        view.follow_selection(&draw::ids(report, &[], view), 5);
    }
    control
}

#[test]
fn rates_are_measured_between_two_samples() {
    let now = Instant::now();
    let before = sample(now, 3, 2, 10);
    let report = second_report(&before, sample(now, 3, 2, 25));
    let rates = |name: &str| {
        let row = report.ports.iter().find(|row| row.service == name).expect("a row");
        let rates = row.rates.expect("rates");
        (rates.connections_per_second, rates.no_endpoints_per_second, rates.no_local_endpoints_per_second)
    };
    assert_eq!(rates("default/s0"), (0.0, 7.5, 0.0));
    assert_eq!(rates("default/s1"), (15.0, 0.0, 0.0));
    assert_eq!(rates("default/s2"), (30.0, 0.0, 0.0));
    let total = report.rates.expect("rates");
    assert_eq!((total.connections_per_second, total.refused_per_second), (45.0, 7.5));
    assert_eq!((report.services, report.backends, report.open, report.seconds), (3, 4, 2, Some(2.0)));
}

#[test]
fn the_first_report_has_no_rates() {
    let report = report::report(None, &sample(Instant::now(), 2, 2, 10));
    assert!(report.rates.is_none() && report.ports.iter().all(|row| row.rates.is_none()));
    assert_eq!(report.ports[1].cells()[2..5], ["-", "20", "1"]);
}

#[test]
fn new_maps_count_from_zero() {
    let now = Instant::now();
    let report = second_report(&sample(now, 2, 1, 1000), sample(now, 2, 1, 6));
    assert_eq!(report.ports[1].rate(), 3.0);
    // The id was that of another service port.
    let (mut dump, stats) = maps(2, 1, 4);
    dump.names.insert(2, PortKey { service: Key::new("a", "b"), ..dump.names[&2].clone() });
    let before = sample_of(now, dump, stats);
    assert_eq!(second_report(&before, sample(now, 2, 1, 6)).ports[1].rate(), 3.0);
    assert_eq!(second_report(&sample(now, 2, 1, 4), sample(now, 2, 1, 6)).ports[1].rate(), 1.0);
    // A new service port.
    assert_eq!(second_report(&sample(now, 1, 1, 4), sample(now, 2, 1, 6)).ports[1].rate(), 3.0);
}

#[test]
fn sockets_of_removed_backends_count_as_open() {
    let now = Instant::now();
    let (mut dump, mut stats) = maps(2, 2, 10);
    dump.backends.remove(&4);
    stats.backends.insert(99, BackendStats { open: 5, service: 77, ..BackendStats::default() });
    let (before, after) = (sample(now, 2, 2, 10), sample_of(now + Duration::from_secs(1), dump, stats));
    let report = report::report(Some(&before), &after);
    assert_eq!((report.open, report.ports[1].counts.open, report.ports[1].backends), (6, 1, 1));
    let backends = report::backends(Some(&before), &after, &after.served.dump.slots, 2);
    assert_eq!(backends.iter().map(report::RatedBackend::address).collect::<Vec<_>>(), ["10.0.0.3:8080", "gone"]);
}

#[test]
fn a_batch_is_a_table_or_an_object() {
    let now = Instant::now();
    let report = second_report(&sample(now, 3, 2, 10), sample(now, 3, 2, 25));
    expect![[r#"
        beeline: the agent runs, pid 4711
        3 Services, 3 service ports, 4 backends, 2 open sockets; 45.0 conn/s, 7.5 refused/s
        SERVICE     PORT       CONN/s  CONNECTIONS  OPEN  REFUSED/s  REFUSED  MOVED  KILLED  BACKENDS
        default/s2  http/TCP6    30.0          100     1        0.0        0      0       0         2
        default/s1  UDP          15.0           50     1        0.0        0      0       0         2
        default/s0  http/TCP      0.0            0     0        7.5       27      0       0         0
    "#]]
    .assert_eq(&plain(&report));
    let json = serde_json::to_value(&report).expect("JSON");
    assert_eq!(json["connectionsPerSecond"], 45.0);
    expect![[r#"
        {
          "backends": 0,
          "connections": 0,
          "connectionsPerSecond": 0.0,
          "ejections": 0,
          "failures": 0,
          "id": 1,
          "killed": 0,
          "moved": 0,
          "noEndpoints": 25,
          "noEndpointsPerSecond": 7.5,
          "noLocalEndpoints": 2,
          "noLocalEndpointsPerSecond": 0.0,
          "open": 0,
          "port": "http/TCP",
          "refused": 27,
          "refusedPerSecond": 7.5,
          "service": "default/s0"
        }"#]]
    .assert_eq(&serde_json::to_string_pretty(&json["ports"][0]).expect("JSON"));
}

#[test]
fn pages_on_the_screen() {
    let now = Instant::now();
    let before = sample(now, 9, 2, 10);
    let mut after = sample(now, 9, 2, 25);
    after.at = now + Duration::from_secs(2);
    let report = report::report(Some(&before), &after);
    let mut view = View::new();
    screen(
        &report,
        &[],
        &mut view,
        &expect![[r#"
            |beeline: the agent runs, pid 4711
            |9 Services, 9 service ports, 16 backends, 8 open sockets; 540.0 conn/s, 7.5 refused/s
            |Service ports by rate
            |SERVICE     PORT      CONN/s  CONNECTIONS  OPEN  REFUSED/s  REFUSED  MOVED  KILLED  BACKENDS
            >default/s8  http/TCP   120.0          400     1        0.0        0      0       0         2
            |default/s7  TCP        105.0          350     1        0.0        0      0       0         2
            |default/s6  http/TCP    90.0          300     1        0.0        0      0       0         2
            |default/s5  TCP         75.0          250     1        0.0        0      0       0         2
            |default/s4  http/TCP    60.0          200     1        0.0        0      0       0         2
            |q quit  Enter backends  r refusals  o order  / filter  h help
        "#]],
    );
    press(&mut view, &report, &[KeyCode::End]);
    screen(
        &report,
        &[],
        &mut view,
        &expect![[r#"
            |beeline: the agent runs, pid 4711
            |9 Services, 9 service ports, 16 backends, 8 open sockets; 540.0 conn/s, 7.5 refused/s
            |Service ports by rate
            |SERVICE     PORT       CONN/s  CONNECTIONS  OPEN  REFUSED/s  REFUSED  MOVED  KILLED  BACKENDS
            |default/s4  http/TCP     60.0          200     1        0.0        0      0       0         2
            |default/s3  TCP          45.0          150     1        0.0        0      0       0         2
            |default/s2  http/TCP6    30.0          100     1        0.0        0      0       0         2
            |default/s1  UDP          15.0           50     1        0.0        0      0       0         2
            >default/s0  http/TCP      0.0            0     0        7.5       27      0       0         0
            |q quit  Enter backends  r refusals  o order  / filter  h help
        "#]],
    );
    press(&mut view, &report, &[KeyCode::Char('r')]);
    screen(
        &report,
        &[],
        &mut view,
        &expect![[r#"
            |beeline: the agent runs, pid 4711
            |9 Services, 9 service ports, 16 backends, 8 open sockets; 540.0 conn/s, 7.5 refused/s
            |Refusals by cause
            |SERVICE     PORT      NO ENDPOINTS/s  NO ENDPOINTS  NO LOCAL/s  NO LOCAL
            >default/s0  http/TCP             7.5            25         0.0         2
            |
            |
            |
            |
            |q quit  Enter backends  / filter  Esc back  h help
        "#]],
    );
    press(&mut view, &report, &[KeyCode::Esc, KeyCode::Home, KeyCode::Enter]);
    let Page::Backends(id) = view.page else { panic!("the backends are open") };
    let backends = report::backends(Some(&before), &after, &after.served.dump.slots, id);
    screen(
        &report,
        &backends,
        &mut view,
        &expect![[r#"
            |beeline: the agent runs, pid 4711
            |9 Services, 9 service ports, 16 backends, 8 open sockets; 540.0 conn/s, 7.5 refused/s
            |Backends of default/s8 http/TCP by rate
            |BACKEND         WHERE      WEIGHT  CONN/s  CONNECTIONS  OPEN
            >10.0.0.17:8080  here            1    60.0          200     0
            |10.0.0.18:8080  elsewhere       1    60.0          200     1
            |
            |
            |
            |q quit  o order  / filter  Esc back  h help
        "#]],
    );
    press(&mut view, &report, &[KeyCode::Esc, KeyCode::Char('/'), KeyCode::Char('U'), KeyCode::Char('d')]);
    screen(
        &report,
        &[],
        &mut view,
        &expect![[r#"
            |beeline: the agent runs, pid 4711
            |9 Services, 9 service ports, 16 backends, 8 open sockets; 540.0 conn/s, 7.5 refused/s
            |Service ports by rate
            |SERVICE     PORT  CONN/s  CONNECTIONS  OPEN  REFUSED/s  REFUSED  MOVED  KILLED  BACKENDS
            >default/s1  UDP     15.0           50     1        0.0        0      0       0         2
            |
            |
            |
            |
            |/Ud_
        "#]],
    );
    press(&mut view, &report, &[KeyCode::Char('x')]);
    screen(
        &report,
        &[],
        &mut view,
        &expect![[r#"
            |beeline: the agent runs, pid 4711
            |9 Services, 9 service ports, 16 backends, 8 open sockets; 540.0 conn/s, 7.5 refused/s
            |Service ports by rate
            |no name contains the filter; Esc drops it
            |
            |
            |
            |
            |
            |/Udx_
        "#]],
    );
    press(&mut view, &report, &[KeyCode::Esc, KeyCode::Char('h')]);
    screen(
        &report::report(None, &Sample { agent: None, ..before }),
        &[],
        &mut view,
        &expect![[r#"
            |beeline: no agent runs; the kernel translates from the maps as they are
            |9 Services, 9 service ports, 16 backends, 8 open sockets; - conn/s, - refused/s
            |Keys and columns
            |  up, down, k, j     select a row; PgUp, PgDn, End; Home returns to the first row
            |  Enter, b           backends of the service port
            |  r                  refusals by cause, of all service ports
            |  o                  next order: rate, open, refused, name
            |  /                  show only names that contain a text; Enter keeps the filter, Esc drops it
            |  Esc                back
            |Esc back  q quit
        "#]],
    );
}

#[test]
fn keys_select_and_the_selection_follows_its_row() {
    let now = Instant::now();
    let before = sample(now, 9, 1, 10);
    let report = second_report(&before, sample(now, 9, 1, 20));
    let mut view = View::new();
    let selected = |view: &View, report: &Report| view.ports(&report.ports)[view.at].service.clone();
    press(&mut view, &report, &[]);
    assert_eq!(selected(&view, &report), "default/s8");
    press(&mut view, &report, &[KeyCode::Down, KeyCode::Down]);
    assert_eq!(selected(&view, &report), "default/s6");
    press(&mut view, &report, &[KeyCode::PageDown]);
    assert_eq!((selected(&view, &report).as_str(), view.at, view.first), ("default/s1", 7, 3));
    press(&mut view, &report, &[KeyCode::Char('o'), KeyCode::Char('o'), KeyCode::Char('o')]);
    assert_eq!((view.sort, selected(&view, &report).as_str(), view.at), (Sort::Name, "default/s1", 1));
    press(&mut view, &report, &[KeyCode::Up, KeyCode::Up]);
    assert_eq!(selected(&view, &report), "default/s0");
    assert_eq!(press(&mut view, &report, &[KeyCode::Esc, KeyCode::Tab]), Control::Continue);
    // While the filter is edited, letters are text. The filter of a page returns with it.
    assert_eq!(press(&mut view, &report, &[KeyCode::Char('/'), KeyCode::Char('q')]), Control::Continue);
    press(&mut view, &report, &[KeyCode::Backspace, KeyCode::Char('s'), KeyCode::Char('3'), KeyCode::Enter]);
    press(&mut view, &report, &[KeyCode::Char('b')]);
    assert_eq!((view.page, view.filter.as_str()), (Page::Backends(4), ""));
    press(&mut view, &report, &[KeyCode::Esc]);
    assert_eq!((view.page, view.filter.as_str()), (Page::Ports, "s3"));
    assert_eq!(press(&mut view, &report, &[KeyCode::Char('q')]), Control::Quit);
    assert_eq!(view.key(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL), &[]), Control::Quit);
}

#[test]
fn a_removed_row_leaves_the_selection_at_its_index() {
    let mut view = View::new();
    let down = KeyEvent::new(KeyCode::Down, KeyModifiers::NONE);
    view.follow_selection(&[7, 8, 9], 2);
    view.key(down, &[7, 8, 9]);
    view.follow_selection(&[8, 7, 9], 2);
    assert_eq!(view.at, 0);
    view.follow_selection(&[7, 9], 2);
    assert_eq!(view.at, 0);
    view.follow_selection(&[9, 7], 2);
    assert_eq!(view.at, 1, "the row that took the index is selected");
    view.follow_selection(&[], 2);
    assert_eq!((view.at, view.first), (0, 0));
    view.key(down, &[]);
    view.follow_selection(&[1, 2], 2);
    assert_eq!(view.at, 0);
}

#[test]
fn ten_thousand_services_cost_little() {
    let now = Instant::now();
    let (before, mut after) = (sample(now, 10_000, 10, 1), sample(now, 10_000, 10, 2));
    after.at = now + Duration::from_secs(1);
    let mut view = View::new();
    let mut terminal = Terminal::new(TestBackend::new(200, 50)).expect("cells in memory");
    let cpu = || {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        Duration::new(time.tv_sec.cast_unsigned(), u32::try_from(time.tv_nsec).expect("below a second"))
    };
    let start = cpu();
    let report = report::report(Some(&before), &after);
    let reported = cpu();
    terminal.draw(|frame| draw::draw(frame, &report, &[], &mut view)).expect("cells in memory");
    let drawn = cpu();
    let backends = report::backends(Some(&before), &after, &after.served.dump.slots, 5000);
    let listed = cpu();
    println!("report {:?}, frame {:?}, backends {:?}", reported - start, drawn - reported, listed - drawn);
    assert_eq!((report.ports.len(), backends.len()), (10_000, 10));
    // Ten times the usual time of a debug build on a busy machine.
    assert!(drawn - start < Duration::from_secs(2), "{:?}", drawn - start);
}

#[test]
fn delays_are_seconds() {
    assert_eq!(super::parse_delay("0.2"), Ok(Duration::from_millis(200)));
    assert_eq!(super::parse_delay("3"), Ok(Duration::from_secs(3)));
    for bad in ["", "x", "0", "-1", "0.001", "nan", "inf", "1e9"] {
        assert!(super::parse_delay(bad).is_err(), "{bad}");
    }
}
