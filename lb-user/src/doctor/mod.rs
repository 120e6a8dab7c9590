//! Checks of a node. Each file is a check: `read` gathers facts, and `evaluate` turns them into findings, purely, so
//! that tables can test it. No check changes anything, and none needs an agent.

mod announcing;
mod clock;
mod devices;
mod finding;
mod foreign;
mod hooks;
mod host_ports;
mod kernel;
mod kube_proxy;
mod link_probe;
mod maps;
pub(crate) mod netfilter;
mod pins;
mod probe;
pub(crate) mod process;
mod room;
mod source;
mod sysctls;

use std::{collections::BTreeSet, path::PathBuf, thread, time::Duration};

use anyhow::Result;

pub use finding::{Finding, Severity, worst};
pub use source::SourceAnswer;

use lb_core::{
    event::Event,
    model::Settings,
    op::Table,
    store::{Dump, Store as _},
};
use lb_dataplane::{devices::options::UplinkChoice, pins::Pins, store::BpfStore};

/// Comparisons of maps that differ beside a running agent, and the time between two: the agent may be writing.
const COMPARISONS: usize = 4;
const BETWEEN_COMPARISONS: Duration = Duration::from_millis(500);

/// Node to examine.
pub struct Subject {
    /// The pins.
    pub pins: Pins,
    /// Running agent that holds the pins.
    pub agent: Option<Agent>,
    /// Objects to compare the maps with; or why there are none.
    pub objects: Result<Objects>,
}

/// Running agent, with the flags that the checks need.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Agent {
    /// Process id.
    pub pid: u32,
    /// Value of `--cgroup`.
    pub cgroup: Option<PathBuf>,
    /// Maps with a size fixed by `--map-size`.
    pub fixed_sizes: BTreeSet<Table>,
    /// Value of `--devices`.
    pub devices: UplinkChoice,
}

/// Source of the objects, and the settings that interpret them.
pub struct Objects {
    /// Description of the source, for findings.
    pub text: String,
    /// Answer of the source.
    pub source: SourceAnswer,
    /// Settings from the flags.
    pub settings: Settings,
    /// Name of this node.
    pub node_name: String,
    /// Reads the objects that Services need.
    pub load: Box<dyn Fn() -> Result<Vec<Event>>>,
}

/// Runs all checks, and returns their findings in the order of the checks.
pub fn examine(subject: &Subject) -> Vec<Finding> {
    if !rustix::process::geteuid().is_root() {
        return vec![Finding::error("doctor", "not root: no check can run", "run as root")];
    }
    let Subject { pins, agent, objects } = subject;
    let current = pins.current();
    let dump = current.exists().then(|| BpfStore::open(&current).and_then(|store| store.dump()));
    let is_cluster = objects.as_ref().is_ok_and(|objects| matches!(objects.source, SourceAnswer::Servers(_)));

    let mut findings = kernel::evaluate(&kernel::read());
    let no_frontends = Dump::default();
    let frontends = dump.as_ref().and_then(|dump| dump.as_ref().ok()).unwrap_or(&no_frontends);
    findings.extend(sysctls::evaluate(&sysctls::read(), is_cluster, frontends));
    findings.extend(pins::evaluate(&pins::read(pins, agent.as_ref().map(|agent| agent.pid))));
    if current.exists() {
        let hooks = hooks::read(&current, agent.as_ref());
        findings.extend(hooks::evaluate(&hooks));
        findings.extend(foreign::evaluate(&foreign::read(&hooks)));
        let wanted = agent.as_ref().map(|agent| &agent.devices);
        findings.extend(devices::evaluate(&devices::read(&current, pins.root(), wanted)));
        if let Some(Ok(dump)) = &dump {
            findings.push(probe::evaluate(&probe::read(&current, dump, &hooks)));
            findings.extend(announcing::evaluate(&announcing::read(&current, dump)));
        }
    }
    match objects {
        Ok(objects) => findings.push(objects.source.evaluate(&objects.text)),
        Err(error) => findings.push(source::missing(error)),
    }
    match (&dump, objects) {
        (Some(Ok(_)), Ok(objects)) if objects.source.answers() => findings.extend(compare(subject, objects)),
        (Some(Err(error)), _) => findings.push(maps::unreadable(error)),
        _ => {}
    }
    if current.exists() {
        let fixed = agent.as_ref().map(|agent| agent.fixed_sizes.clone()).unwrap_or_default();
        findings.extend(room::evaluate(&room::read(&current), &fixed));
    }
    findings.extend(kube_proxy::evaluate(&kube_proxy::read()));
    if let Some(Ok(dump)) = &dump {
        let chains = netfilter::read();
        findings.extend(netfilter::evaluate(&chains, dump));
        findings.extend(host_ports::evaluate(&chains, dump));
    }
    let servers = objects.as_ref().ok().map(|objects| &objects.source);
    findings.extend(clock::evaluate(&clock::read(servers)));
    findings
}

/// Compares the maps with the objects; again if they differ beside an agent, which may be writing.
fn compare(subject: &Subject, objects: &Objects) -> Vec<Finding> {
    let agent = subject.agent.as_ref().map(|agent| agent.pid);
    let compare_once = || -> Result<maps::MapDifference> {
        // Objects first: what the agent writes meanwhile is from these objects or newer ones.
        let events = (objects.load)()?;
        let store = BpfStore::open(&subject.pins.current())?;
        let pinned = (store.dump()?, store.limits());
        let addresses = maps::addresses(&pinned.0, agent);
        maps::compare(&pinned, events, &objects.node_name, objects.settings.clone(), addresses)
    };
    let mut difference = compare_once();
    for _ in 1..COMPARISONS {
        if agent.is_none() || difference.as_ref().map_or(true, maps::MapDifference::is_none) {
            break;
        }
        thread::sleep(BETWEEN_COMPARISONS);
        difference = compare_once();
    }
    difference.map_or_else(|error| vec![maps::unreadable(&error)], |difference| maps::evaluate(&difference, agent))
}
