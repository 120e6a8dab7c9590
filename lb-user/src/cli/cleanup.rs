//! `beeline cleanup`: removes Beeline from the node. Open connections continue if kube-proxy has its rules again.

use std::time::Duration;

use anyhow::Result;
use clap::Args;

use super::arguments;
use lb_dataplane::{cleanup::cleanup, pins::Pins};

/// Arguments of `beeline cleanup`.
#[derive(Args)]
#[command(
    after_help = "To give a node back to kube-proxy without breaking connections, start kube-proxy, wait for its rules
(`curl -s localhost:10256/healthz`), then run `beeline cleanup`. Sockets keep their connections in any case. Flows of
clients outside are handed to netfilter, which continues them with kube-proxy's rules; without these rules they end."
)]
pub(super) struct CleanupArgs {
    /// Time for flows of clients outside to end by themselves, such as 30s or 5m; kube-proxy already serves new flows.
    #[arg(long, value_name = "TIME", value_parser = arguments::time, default_value = "0s")]
    drain: Duration,
}

pub(super) fn run(pins: &Pins, arguments: &CleanupArgs) -> Result<()> {
    cleanup(pins, arguments.drain, |line| println!("{line}"))
}
