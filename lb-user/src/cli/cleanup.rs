//! `beeline cleanup`: nothing of Beeline is left on the node. Where kube-proxy has its rules again, open connections go on.

use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Args;

use crate::{
    datapath::pins::Pins,
    flows::{
        Flows,
        netfilter::{Left, drain, hand_over, leave},
    },
    inspect::number,
    netfilter::{
        self,
        own::{self, KEEPER, UNTRACKER},
    },
};

/// What begins a use of a Service, in the order of its removal: what only shows VIPs stays until the end.
const BEGINNERS: [&str; 6] = ["connect4", "connect6", "sendmsg4", "sendmsg6", "bind4", "bind6"];

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
    let cure = || "want a time as in 30s or 5m".to_owned();
    let (number, factor) = if let Some(number) = text.strip_suffix('s') {
        (number, 1)
    } else if let Some(number) = text.strip_suffix('m') {
        (number, 60)
    } else {
        return Err(cure());
    };
    let number: u32 = number.parse().map_err(|_| cure())?;
    Ok(Duration::from_secs(u64::from(number) * factor))
}

pub(super) fn run(pins: &Pins, arguments: &Arguments) -> Result<()> {
    if !pins.root().exists() {
        println!("nothing was pinned");
        return release();
    }
    let lock = pins.lock()?;
    pins.remove_links(&BEGINNERS, &lock)?;
    if pins.current().join("FLOWS").exists() {
        leave(&pins.current())?;
        let flows = Flows::open(&pins.current())?;
        let open = drain(&flows, arguments.drain)?;
        if open > 0 {
            println!("{}", ended(&flows, open)?);
        }
    }
    let removed = pins.remove_locked(&lock)?;
    for path in &removed {
        println!("removed {path}");
    }
    println!("{} removed: the kernel translates nothing any more", number(removed.len(), "pin"));
    release()
}

/// Where kube-proxy has its rules again, these keep its connections alive.
fn release() -> Result<()> {
    // The other one is left where an earlier cleanup was killed.
    for table in [KEEPER, UNTRACKER] {
        if own::release(table).with_context(|| format!("removing the table {table} from netfilter"))? {
            println!("removed the table {table} from netfilter");
        }
    }
    Ok(())
}

/// What becomes of the flows that are open, in words.
fn ended(flows: &Flows, open: usize) -> Result<String> {
    let open = number(open, "open flow");
    if netfilter::leftovers().is_ok_and(|leftovers| leftovers.is_empty()) {
        return Ok(format!("{open} of clients outside end: kube-proxy has no rules here that would go on with them"));
    }
    let Left { handed_over, ended, why } = hand_over(flows)?;
    let handed = format!("{} of clients outside handed to netfilter", number(handed_over, "open flow"));
    Ok(match why {
        Some(why) => format!("{handed}; {ended} more end: {why}"),
        None => handed,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_parsed_or_say_what_they_want() {
        for (text, seconds) in [("0s", 0), ("30s", 30), ("5m", 300)] {
            assert_eq!(parse_time(text), Ok(Duration::from_secs(seconds)));
        }
        for bad in ["", "30", "s", "-1s", "1h", "1.5s"] {
            assert!(parse_time(bad).is_err(), "{bad}");
        }
    }
}
