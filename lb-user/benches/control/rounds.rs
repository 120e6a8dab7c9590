//! The scenarios, each for a process of its own, and their figures.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use lb_agent::reconcile::{PassReport, Reconciler, StepDurations};
use lb_core::{event::Event, model::Settings, op::Table};
use lb_dataplane::{load::Loader, pins::Pins, store::BpfStore, upgrade::programs::MapSizes};

use crate::objects;

/// Changes of one endpoint, timed one by one.
const CHANGES: u32 = 200;
/// Endpoints of the Service of the scenario `list`.
const LONG_LIST: u32 = 1_000;

/// A scenario.
pub struct Scenario {
    /// Name on the command line.
    pub name: &'static str,
    /// Name in the table.
    pub title: &'static str,
    /// Runs it, with pins in this directory of a bpffs.
    pub run: fn(&Path) -> Vec<ControlFigure>,
}

/// All scenarios.
pub const SCENARIOS: [Scenario; 3] = [
    Scenario { name: "deep", title: "10,000 Services × 10 endpoints", run: |bpffs| deep(bpffs) },
    Scenario { name: "wide", title: "50,000 Services × 1 endpoint", run: |bpffs| wide(bpffs) },
    Scenario { name: "list", title: "a Service of 1,000 endpoints", run: |bpffs| list(bpffs) },
];

/// A figure of one round.
pub struct ControlFigure {
    /// Name of the figure.
    pub what: String,
    /// Aim of the figure.
    pub aim: String,
    /// Unit of the value.
    pub unit: String,
    /// Measured value.
    pub value: f64,
}

impl ControlFigure {
    fn new(what: &str, aim: &str, unit: &str, value: f64) -> Self {
        Self { what: what.to_owned(), aim: aim.to_owned(), unit: unit.to_owned(), value }
    }

    fn time(what: &str, aim: &str, time: Duration) -> Self {
        Self::new(what, aim, "ms", milliseconds(time))
    }

    /// Writes it for the first process.
    pub fn to_line(&self) -> String {
        let Self { what, aim, unit, value } = self;
        format!("{what}\t{aim}\t{unit}\t{value}")
    }

    /// Reads a line of [`ControlFigure::to_line`].
    pub fn from_line(line: &str) -> Self {
        let mut parts = line.split('\t');
        let mut part = || parts.next().expect("four parts").to_owned();
        let (what, aim, unit) = (part(), part(), part());
        Self { what, aim, unit, value: part().parse().expect("a number") }
    }
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// New maps, and an empty reconciler.
struct Bench {
    /// Keeps the maps.
    _datapath: Loader,
    pins: Pins,
    reconciler: Reconciler<BpfStore>,
}

impl Bench {
    fn new(bpffs: &Path) -> Self {
        let pins = Pins::at(bpffs.join("beeline"));
        let datapath = Loader::load(pins.clone(), MapSizes::new()).expect("the programs load");
        let reconciler = reconciler(datapath.store().expect("the maps"));
        Self { _datapath: datapath, pins, reconciler }
    }

    /// Handles events and runs a pass. Returns its time and its report.
    fn step(&mut self, events: Vec<Event>) -> (Duration, PassReport) {
        let start = Instant::now();
        self.reconciler.handle(events);
        let report = self.reconciler.pass();
        let took = start.elapsed();
        assert!(report.failure.is_none() && report.waiting.is_empty() && report.refused.is_empty(), "{report:?}");
        (took, report)
    }

    /// The first fill, with its time and memory.
    fn fill(&mut self, services: u32, endpoints: u32, aims: &Aims) -> Vec<ControlFigure> {
        let memory = Memory::now(&self.pins);
        let events = objects::cluster(services, endpoints);
        let (took, report) = self.step(events);
        let StepDurations { compile, plan, write } = report.durations;
        // The agent does this after a burst.
        drop(report.changed);
        lb_kernel::allocator::release();
        let more = Memory::now(&self.pins);
        let each = |bytes: usize, before: usize| bytes.saturating_sub(before) as f64 / f64::from(services);
        let user = each(more.process, memory.process);
        let kernel = each(more.maps, memory.maps);
        // Words of FRONTEND_BITS come on top.
        assert!(report.writes as u32 >= services * (4 + 2 * endpoints), "every Service was written: {}", report.writes);
        vec![
            ControlFigure::time("first fill", aims.fill, took),
            ControlFigure::new("first fill", aims.rate, "Services/s", f64::from(services) / took.as_secs_f64()),
            ControlFigure::time("of it handling the events", "", took.saturating_sub(compile + plan + write)),
            ControlFigure::time("of it compile", "", compile),
            ControlFigure::time("of it plan", "", plan),
            ControlFigure::time("of it map writes", "", write),
            ControlFigure::new("memory", aims.memory, "B/Service", user + kernel),
            ControlFigure::new("of it the process (objects included)", "", "B/Service", user),
            ControlFigure::new("of it the maps", "", "B/Service", kernel),
        ]
    }
}

fn reconciler(store: BpfStore) -> Reconciler<BpfStore> {
    Reconciler::new(store, "node-1", Settings::default())
}

struct Aims {
    fill: &'static str,
    rate: &'static str,
    memory: &'static str,
}

fn deep(bpffs: &Path) -> Vec<ControlFigure> {
    let (services, endpoints) = (10_000, 10);
    let mut bench = Bench::new(bpffs);
    let mut figures = bench.fill(services, endpoints, &Aims { fill: "< 1000 ms", rate: "", memory: "" });

    let mut times: Vec<Duration> = (0..CHANGES)
        .map(|change| {
            let service = change * (services / CHANGES);
            // A new endpoint replaces another.
            let numbers = objects::addresses(service, endpoints).skip(1).chain([services * endpoints + change]);
            let (took, report) = bench.step(vec![Event::Apply(objects::slice(service, numbers))]);
            assert!((1..=4).contains(&report.writes), "{report:?}");
            took
        })
        .collect();
    times.sort_unstable();
    let at = |index: usize| times.get(index).copied().unwrap_or_default();
    figures.push(ControlFigure::time(
        "one endpoint changed, event to map, median of 200",
        "< 10 ms",
        at(times.len() / 2),
    ));
    figures.push(ControlFigure::time(
        "one endpoint changed, event to map, worst of 200",
        "< 10 ms",
        at(times.len() - 1),
    ));

    let mut times: Vec<Duration> = (0..CHANGES)
        .map(|change| {
            let objects = objects::cross_namespace(change * endpoints);
            bench.step(objects.into_iter().map(Event::Apply).collect()).0
        })
        .skip(1)
        .collect();
    times.sort_unstable();
    figures.push(ControlFigure::time(
        "a tenant's slice names another pod of another namespace, event to map, median of 199",
        "",
        times.get(times.len() / 2).copied().unwrap_or_default(),
    ));

    bench.step(objects::cluster(services, endpoints));
    // A restart keeps only the maps.
    bench.reconciler = reconciler(bench._datapath.store().expect("the maps"));
    let (took, report) = bench.step(objects::cluster(services, endpoints));
    assert_eq!(report.writes, 0, "the maps were right");
    figures.push(ControlFigure::time("restart, until nothing is left to write", "", took));
    bench.reconciler.resync();
    let (took, report) = bench.step(Vec::new());
    assert_eq!(report.writes, 0, "the maps were right");
    figures.push(ControlFigure::time("resync", "", took));
    figures
}

fn wide(bpffs: &Path) -> Vec<ControlFigure> {
    let aims = Aims { fill: "", rate: "> 120,000", memory: "< 1500" };
    Bench::new(bpffs).fill(50_000, 1, &aims)
}

/// Invariant I14: writes are proportional to the change, not to the list.
fn list(bpffs: &Path) -> Vec<ControlFigure> {
    let mut bench = Bench::new(bpffs);
    bench.step(objects::cluster(1, LONG_LIST));
    let mut first = 0;
    let changed = [1, 10, 100].map(|changes| {
        first += changes;
        let (_, report) = bench.step(vec![Event::Apply(objects::slice(0, first..first + LONG_LIST))]);
        ControlFigure::new(
            &format!("{changes} replaced"),
            &format!("≤ {}", 3 * changes),
            "writes",
            report.writes as f64,
        )
    });
    changed.into()
}

/// Memory in use, in bytes.
struct Memory {
    /// Resident in this process.
    process: usize,
    /// The maps that the agent writes, by the kernel's count (`memlock` of their descriptors, Linux 6.4).
    maps: usize,
}

impl Memory {
    fn now(pins: &Pins) -> Self {
        let status = fs::read_to_string("/proc/self/status").expect("procfs");
        let maps = Table::ALL.into_iter().map(|table| memlock(&pins.staging().join(table.map_name()))).sum();
        Self { process: number(&status, "VmRSS:") * 1024, maps }
    }
}

fn memlock(pin: &Path) -> usize {
    use std::os::fd::AsRawFd as _;
    let map = lb_kernel::bpf::open_pin(pin).expect("the map's pin");
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", map.as_raw_fd())).expect("procfs");
    number(&info, "memlock:")
}

fn number(text: &str, field: &str) -> usize {
    let line = text.lines().find_map(|line| line.strip_prefix(field)).expect("the field is there");
    line.split_whitespace().next().and_then(|word| word.parse().ok()).expect("a number")
}
