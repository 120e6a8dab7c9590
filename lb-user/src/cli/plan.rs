//! `beeline plan`: the map writes that a directory of YAML would cause, by the planner that the agent uses.

use std::{fmt::Write as _, path::PathBuf};

use anyhow::{Result, ensure};
use clap::Args;

use super::service_flags::Meaning;
use lb_agent::reconcile::Reconciler;
use lb_core::{
    store::{MemoryStore, Store as _},
    text::number,
};
use lb_dataplane::{pins::Pins, store::BpfStore};
use lb_sources::directory::{self, DirectoryState};

/// What is to be compared with the maps.
#[derive(Args)]
#[command(after_help = "Examples:
  beeline plan -f ./services                 what a change of the directory would do on this node
  beeline --pins /nowhere plan -f ./services what a first start would do")]
pub(super) struct Arguments {
    /// Directory of YAML, or one file.
    #[arg(short = 'f', long = "filename", value_name = "DIR")]
    directory: PathBuf,
    #[command(flatten)]
    meaning: Meaning,
}

pub(super) fn render(pins: &Pins, arguments: &Arguments) -> Result<String> {
    let mut good = DirectoryState::new(arguments.meaning.service_proxy_name.clone());
    let events = directory::load(&arguments.directory, &mut good)?;
    let problems: Vec<_> = good.problems().collect();
    ensure!(
        problems.is_empty(),
        "nothing is planned from a directory that cannot be read whole:\n{}",
        problems.join("\n")
    );
    let (store, basis) = if pins.current().exists() {
        let pinned = BpfStore::open(&pins.current())?;
        (MemoryStore::holding(pinned.dump()?, pinned.limits()), "the pinned maps")
    } else {
        (MemoryStore::default(), "empty maps, since nothing is pinned")
    };
    let mut reconciler = Reconciler::new(store, &arguments.meaning.node_name(), arguments.meaning.settings());
    reconciler.handle(events);
    let plan = reconciler.preview()?;
    let mut text = String::new();
    for op in &plan.ops {
        writeln!(text, "{op}")?;
    }
    for (service, warnings) in reconciler.warnings() {
        for warning in warnings {
            writeln!(text, "warning: {service}: {warning}")?;
        }
    }
    for refused in &plan.refused {
        writeln!(text, "refused: {refused}")?;
    }
    let (writes, services) = (number(plan.ops.len(), "write"), number(plan.changed.len(), "Service"));
    writeln!(text, "{writes} for {services}, against {basis}; nothing was done")?;
    Ok(text)
}
