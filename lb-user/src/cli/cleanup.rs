//! `beeline cleanup`: nothing of Beeline is left on the node. Where kube-proxy has its rules again, open connections go on.

use std::time::Duration;

use anyhow::Result;
use clap::Args;
use k8s_openapi::jiff::SignedDuration;

use lb_dataplane::{cleanup::cleanup, pins::Pins};

/// How it is done.
#[derive(Args)]
#[command(
    after_help = "To give a node back to kube-proxy without breaking connections, start kube-proxy first and wait for its
rules (`curl -s localhost:10256/healthz`), then run this. Sockets keep their connections in any case. Flows of clients outside are
handed to netfilter, which goes on with them by kube-proxy's rules; without such rules they end."
)]
pub(super) struct Arguments {
    /// Let flows of clients outside end by themselves for so long, as in 30s or 5m, while new ones are kube-proxy's already.
    #[arg(long, value_name = "TIME", value_parser = parse_time, default_value = "0s")]
    drain: Duration,
}

fn parse_time(text: &str) -> Result<Duration, String> {
    let time = text.parse::<SignedDuration>().ok().and_then(|time| time.try_into().ok());
    time.ok_or_else(|| "want a time as in 30s or 5m".to_owned())
}

pub(super) fn run(pins: &Pins, arguments: &Arguments) -> Result<()> {
    cleanup(pins, arguments.drain, |what| println!("{what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_parsed_or_say_what_they_want() {
        for (text, seconds) in [("0s", 0), ("30s", 30), ("5m", 300), ("1h 30m", 5400)] {
            assert_eq!(parse_time(text), Ok(Duration::from_secs(seconds)));
        }
        for bad in ["", "30", "s", "-1s", "soon"] {
            assert!(parse_time(bad).is_err(), "{bad}");
        }
    }
}
