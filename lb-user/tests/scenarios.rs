//! Scenarios: directories of Kubernetes YAML. Each step is a file with all objects of that moment, and beside it the
//! expected maps. Each scenario runs in three ways, which must agree: straight, with failing writes that are retried,
//! and with a restart of the agent between steps. A file `flags` in the directory sets flags of the agent.
//!
//! `UPDATE_EXPECT=1 cargo test -p lb-user --test scenarios` writes the expectations.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use expect_test::expect_file;
use lb_agent::reconcile::{PassReport, Reconciler};
use lb_core::{
    event::{Event, ObjectKind},
    model::Settings,
    op::Table,
    store::{Faults, Limits, MemoryStore},
};
use lb_sources::yaml;
use libtest_mimic::{Arguments, Failed, Trial};

const NODE: &str = "node-1";

fn main() -> ExitCode {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let trials = sorted(&root).into_iter().filter(|path| path.is_dir()).map(|directory| {
        let name = directory.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Trial::test(name, move || check(&directory))
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit_code()
}

fn check(directory: &Path) -> Result<(), Failed> {
    let mut scenario = Scenario::read(directory)?;
    let straight = scenario.run(Way::Straight)?;
    for (file, text) in &straight {
        expect_file![file].assert_eq(text);
    }
    for seed in 0..20 {
        scenario.check_agrees(Way::Faults(seed), &straight)?;
    }
    scenario.check_agrees(Way::Restarts, &straight)
}

/// The way in which a scenario runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    Straight,
    Faults(u64),
    Restarts,
}

struct Scenario {
    steps: Vec<PathBuf>,
    settings: Settings,
    limits: Limits,
}

impl Scenario {
    fn read(directory: &Path) -> Result<Self, Failed> {
        let yaml = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "yaml");
        let steps = sorted(directory).into_iter().filter(yaml).collect();
        let mut scenario = Self { steps, settings: Settings::default(), limits: Limits::DEFAULT };
        let flags = fs::read_to_string(directory.join("flags")).unwrap_or_default();
        let mut flags = flags.split_whitespace();
        while let Some(flag) = flags.next() {
            if flag == "--host-ports" {
                scenario.settings.host_ports = true;
                continue;
            }
            let value = flags.next().ok_or("a flag has a value")?;
            match flag {
                "--external-ips" => scenario.settings.external_ips = value.parse()?,
                "--redirect-namespaces" => scenario.settings.redirect_namespaces = value.parse()?,
                "--cross-namespace-endpoints" => scenario.settings.cross_namespace = value.parse()?,
                "--map-size" => scenario.set_size(value).ok_or("want MAP=ENTRIES")?,
                _ => return Err(format!("{flag}: no such flag").into()),
            }
        }
        Ok(scenario)
    }

    fn set_size(&mut self, text: &str) -> Option<()> {
        let (name, size) = text.split_once('=')?;
        let size = size.parse().ok()?;
        match Table::ALL.into_iter().find(|table| table.flag_name() == Some(name))? {
            Table::Frontends => self.limits.frontends = size,
            Table::PortRanges => self.limits.port_ranges = size,
            Table::Services | Table::Names => self.limits.services = size,
            Table::NodeAddrs => self.limits.node_addrs = size,
            Table::Slots => self.limits.slots = size,
            Table::Backends => self.limits.backends = size,
            Table::SourceRanges => self.limits.source_ranges = size,
            Table::Maglev => self.limits.maglev = size,
            Table::FrontendBits => return None,
        }
        Some(())
    }

    /// Runs all steps and returns, for each, the file of its expectation and the actual text.
    fn run(&mut self, way: Way) -> Result<Vec<(PathBuf, String)>, Failed> {
        let mut store = MemoryStore::new(self.limits);
        if let Way::Faults(seed) = way {
            store.faults = Faults::Percent { percent: 20, seed };
        }
        let mut reconciler = Reconciler::new(store, NODE, self.settings.clone());
        let mut texts = Vec::new();
        for step in &self.steps {
            if way == Way::Restarts {
                reconciler = Reconciler::new(reconciler.into_store(), NODE, self.settings.clone());
            }
            reconciler.handle(load_step(step)?);
            let report = settle(&mut reconciler)?;
            texts.push((step.with_extension("txt"), describe(&reconciler, &report)));
            // A further pass writes nothing.
            let again = settle(&mut reconciler)?;
            if again.writes > 0 || again.refused != report.refused {
                return Err(
                    format!("{way:?}: a pass without change wrote or refused something at {}", step.display()).into()
                );
            }
        }
        Ok(texts)
    }

    fn check_agrees(&mut self, way: Way, straight: &[(PathBuf, String)]) -> Result<(), Failed> {
        for ((file, expected), (_, actual)) in straight.iter().zip(self.run(way)?) {
            if *expected != actual {
                return Err(format!("{way:?} differs at {}:\n{actual}\nfrom\n{expected}", file.display()).into());
            }
        }
        Ok(())
    }
}

/// Runs passes until one succeeds.
fn settle(reconciler: &mut Reconciler<MemoryStore>) -> Result<PassReport, Failed> {
    for _ in 0..10_000 {
        let report = reconciler.pass();
        if !report.waiting.is_empty() {
            return Err(format!("not all kinds were listed: {:?} are missing", report.waiting).into());
        }
        if report.failure.is_none() {
            return Ok(report);
        }
    }
    Err("no pass succeeds".into())
}

fn describe(reconciler: &Reconciler<MemoryStore>, report: &PassReport) -> String {
    let mut text = reconciler.store().dump.to_string();
    if text.is_empty() {
        text.push_str("nothing\n");
    }
    for (service, warnings) in reconciler.warnings() {
        for warning in warnings {
            writeln!(text, "warning: {service}: {warning}").expect("a String takes everything");
        }
    }
    for refused in &report.refused {
        writeln!(text, "refused: {refused}").expect("a String takes everything");
    }
    text
}

/// Reads all objects of a file as events.
fn load_step(path: &Path) -> Result<Vec<Event>, Failed> {
    let objects = yaml::parse(&fs::read_to_string(path)?, None)?;
    let objects_of = |kind| objects.iter().filter(|object| object.kind() == kind).cloned().collect();
    Ok(ObjectKind::ALL.into_iter().map(|kind| Event::Replace(kind, objects_of(kind))).collect())
}

fn sorted(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut paths: Vec<_> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    paths
}
