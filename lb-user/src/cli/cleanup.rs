//! `beeline cleanup`: removes Beeline from the node. Open connections continue if kube-proxy has its rules again.

use std::time::Duration;

use anyhow::Result;
use clap::Args;
use k8s_openapi::jiff::SignedDuration;

use lb_dataplane::{cleanup::cleanup, pins::Pins};

/// CleanupArgs of `beeline cleanup`.
#[derive(Args)]
#[command(
    after_help = "To give a node back to kube-proxy without breaking connections, start kube-proxy, wait for its rules
(`curl -s localhost:10256/healthz`), then run `beeline cleanup`. Sockets keep their connections in any case. Flows of
clients outside are handed to netfilter, which continues them with kube-proxy's rules; without these rules they end."
)]
pub(super) struct CleanupArgs {
    /// Time for flows of clients outside to end by themselves, such as 30s or 5m; kube-proxy already serves new flows.
    #[arg(long, value_name = "TIME", value_parser = parse_time, default_value = "0s")]
    drain: Duration,
}

fn parse_time(text: &str) -> Result<Duration, String> {
    let time = text.parse::<SignedDuration>().ok().and_then(|time| time.try_into().ok());
    time.ok_or_else(|| "want a time such as 30s or 5m".to_owned())
}

pub(super) fn run(pins: &Pins, arguments: &CleanupArgs) -> Result<()> {
    cleanup(pins, arguments.drain, |line| println!("{line}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        for (text, seconds) in [("0s", 0), ("30s", 30), ("5m", 300), ("1h 30m", 5400)] {
            assert_eq!(parse_time(text), Ok(Duration::from_secs(seconds)));
        }
        for bad in ["", "30", "s", "-1s", "soon"] {
            assert!(parse_time(bad).is_err(), "{bad}");
        }
    }
}
