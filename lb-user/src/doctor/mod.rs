//! What stands in the way of Services on this node, and its cure. Each check reads facts and judges them apart, so that what is
//! said of which facts is shown by tables; nothing is changed, and no agent is needed.

mod clock;
mod devices;
mod finding;
mod foreign;
mod hooks;
mod kernel;
mod kube_proxy;
mod maps;
mod pins;
mod probe;
pub(crate) mod process;
mod room;
mod source;
mod sysctls;

use std::{collections::BTreeSet, path::PathBuf, thread, time::Duration};

use anyhow::Result;

pub use finding::{Finding, Severity, worst};
pub use source::Source;

use lb_core::{event::Event, model::Settings, op::Table, store::Store as _};
use lb_dataplane::{devices::options::UplinkChoice, pins::Pins, store::BpfStore};

/// How often, and how far apart, maps are compared that a running agent may be about to mend.
const LOOKS: usize = 4;
const BETWEEN: Duration = Duration::from_millis(500);

/// What is looked at.
pub struct Subject {
    /// The pins.
    pub pins: Pins,
    /// The agent that holds them, if one runs.
    pub agent: Option<Agent>,
    /// The objects that the maps are compared with; or why there are none.
    pub objects: Result<Objects>,
}

/// A running agent, by its command line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Agent {
    /// Its process.
    pub pid: u32,
    /// The cgroup that it was told to serve.
    pub cgroup: Option<PathBuf>,
    /// The maps whose sizes were fixed.
    pub fixed: BTreeSet<Table>,
    /// Which network devices it was told to serve.
    pub devices: UplinkChoice,
}

/// Where the objects are, and as whom to see them.
pub struct Objects {
    /// Said in words.
    pub text: String,
    /// As it answers.
    pub source: Source,
    /// What flags say about the meaning of Services.
    pub settings: Settings,
    /// Name of this node.
    pub node_name: String,
    /// Reads the kinds that Services need.
    pub load: Box<dyn Fn() -> Result<Vec<Event>>>,
}

/// Everything that was found, in the order of the checks.
#[must_use]
pub fn examine(subject: &Subject) -> Vec<Finding> {
    if !rustix::process::geteuid().is_root() {
        return vec![Finding::error("doctor", "not root: nothing can be looked at", "run as root")];
    }
    let Subject { pins, agent, objects } = subject;
    let current = pins.current();
    let dump = current.exists().then(|| BpfStore::open(&current).and_then(|store| store.dump()));
    let is_cluster = objects.as_ref().is_ok_and(|objects| matches!(objects.source, Source::Servers(_)));

    let mut findings = kernel::evaluate(&kernel::read());
    findings.extend(sysctls::evaluate(&sysctls::read(), is_cluster));
    findings.extend(pins::evaluate(&pins::read(pins, agent.as_ref().map(|agent| agent.pid))));
    if current.exists() {
        let hooks = hooks::read(&current, agent.as_ref());
        findings.extend(hooks::evaluate(&hooks));
        findings.extend(foreign::evaluate(&foreign::read(&hooks)));
        let wanted = agent.as_ref().map(|agent| &agent.devices);
        findings.extend(devices::evaluate(&devices::read(&current, pins.root(), wanted)));
        if let Some(Ok(dump)) = &dump {
            findings.push(probe::evaluate(&probe::read(&current, dump, &hooks)));
        }
    }
    match objects {
        Ok(objects) => findings.push(objects.source.evaluate(&objects.text)),
        Err(error) => findings.push(source::missing(error)),
    }
    match (&dump, objects) {
        (Some(Ok(_)), Ok(objects)) if objects.source.answers() => findings.extend(compared(subject, objects)),
        (Some(Err(error)), _) => findings.push(maps::unreadable(error)),
        _ => {}
    }
    if current.exists() {
        let fixed = agent.as_ref().map(|agent| agent.fixed.clone()).unwrap_or_default();
        findings.extend(room::evaluate(&room::read(&current), &fixed));
    }
    findings.extend(kube_proxy::evaluate(&kube_proxy::read()));
    let servers = objects.as_ref().ok().map(|objects| &objects.source);
    findings.extend(clock::evaluate(&clock::read(servers)));
    findings
}

/// The maps beside the objects. What differs beside an agent is looked at again, since the agent needs a moment too.
fn compared(subject: &Subject, objects: &Objects) -> Vec<Finding> {
    let agent = subject.agent.as_ref().map(|agent| agent.pid);
    let look = || -> Result<maps::Difference> {
        // First the objects: what the agent does meanwhile, it does with these or newer ones.
        let events = (objects.load)()?;
        let store = BpfStore::open(&subject.pins.current())?;
        let pinned = (store.dump()?, store.limits());
        let addresses = maps::addresses(&pinned.0, agent);
        maps::compare(&pinned, events, &objects.node_name, objects.settings.clone(), addresses)
    };
    let mut difference = look();
    for _ in 1..LOOKS {
        if agent.is_none() || difference.as_ref().map_or(true, maps::Difference::is_none) {
            break;
        }
        thread::sleep(BETWEEN);
        difference = look();
    }
    difference.map_or_else(|error| vec![maps::unreadable(&error)], |difference| maps::evaluate(&difference, agent))
}
