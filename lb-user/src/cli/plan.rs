//! `beeline plan`: prints the map writes that a directory of YAML files would cause, from the agent's own planner.

use std::{fmt::Write as _, path::PathBuf};

use anyhow::{Result, ensure};
use clap::Args;

use super::service_flags::ServiceArgs;
use lb_agent::reconcile::Reconciler;
use lb_core::{
    store::{MemoryStore, Store as _},
    text::number,
};
use lb_dataplane::{balancer_addresses, pins::Pins, store::BpfStore};
use lb_sources::directory::{self, DirectoryState, RememberedAddresses};

/// Arguments of `beeline plan`.
#[derive(Args)]
#[command(after_help = "Examples:
  beeline plan -f ./services                   writes that a change of the directory would cause on this node
  beeline --pins /nowhere plan -f ./services   writes of a first start")]
pub(super) struct PlanArgs {
    /// Directory of YAML files, or one file.
    #[arg(short = 'f', long = "filename", value_name = "DIR")]
    directory: PathBuf,
    #[command(flatten)]
    service_args: ServiceArgs,
}

pub(super) fn render(pins: &Pins, arguments: &PlanArgs) -> Result<String> {
    let directory = pins.current();
    let remembered = RememberedAddresses::new(move || balancer_addresses::read(&directory));
    let mut good = DirectoryState::new(arguments.service_args.service_proxy_name.clone()).remembering(remembered);
    let events = directory::load(&arguments.directory, &mut good)?;
    let problems: Vec<_> = good.problems().collect();
    ensure!(problems.is_empty(), "the directory has errors; nothing is planned:\n{}", problems.join("\n"));
    let (store, basis) = if pins.current().exists() {
        let pinned = BpfStore::open(&pins.current())?;
        (MemoryStore::holding(pinned.dump()?, pinned.limits()), "the pinned maps")
    } else {
        (MemoryStore::default(), "empty maps, since nothing is pinned")
    };
    let mut reconciler = Reconciler::new(store, &arguments.service_args.node_name(), arguments.service_args.settings());
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
