//! Nothing of Beeline is left on the node, and what is open goes on by kube-proxy's rules where those are there again.

use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::{
    flows::{
        Flows,
        netfilter::{Left, drain, forget, hand_over, leave},
    },
    kube_proxy,
    upgrade::pins::Pins,
};
use lb_core::text::number;
use lb_kernel::netfilter::temporary_tables::{self, KEEP_ALIVE_TABLE, NOTRACK_TABLE};

/// What begins a use of a Service, in the order of its removal: what only shows VIPs stays until the end.
const BEGINNERS: [&str; 6] = ["connect4", "connect6", "sendmsg4", "sendmsg6", "bind4", "bind6"];

/// Removes all of it, and says what it does. Flows of clients outside may end by themselves for as long as `patience` lasts;
/// those that are open then are handed to netfilter.
///
/// # Errors
/// When an agent runs, or a pin cannot be removed.
pub fn cleanup(pins: &Pins, patience: Duration, mut say: impl FnMut(String)) -> Result<()> {
    if !pins.root().exists() {
        say("nothing was pinned".to_owned());
        return release(say);
    }
    let lock = pins.lock()?;
    // Before sockets dial VIPs again: packets of a pod would get flows that may look to the backend like a connection that one
    // of its sockets has.
    let left = if pins.current().join("FLOWS").exists() {
        let flows = Flows::open(&pins.current())?;
        let told = leave(&pins.current(), &flows)?;
        Some((flows, told))
    } else {
        None
    };
    pins.remove_links(&BEGINNERS, &lock)?;
    if let Some((flows, told)) = left {
        let open = drain(&flows, patience)?;
        if open > 0 {
            say(ended(&flows, open));
        }
        if let Err(error) = forget(&told) {
            // It forgets by itself, in a day.
            say(format!("netfilter keeps what it was told of flows that are over: {error:#}"));
        }
    }
    let removed = pins.remove(&lock)?;
    for path in &removed {
        say(format!("removed {path}"));
    }
    say(format!("{} removed: the kernel translates nothing any more", number(removed.len(), "pin")));
    release(say)
}

/// Where kube-proxy has its rules again, these keep its connections alive.
fn release(mut say: impl FnMut(String)) -> Result<()> {
    // The other one is left where an earlier cleanup was killed.
    for table in [KEEP_ALIVE_TABLE, NOTRACK_TABLE] {
        if temporary_tables::remove(table).with_context(|| format!("removing the table {table} from netfilter"))? {
            say(format!("removed the table {table} from netfilter"));
        }
    }
    Ok(())
}

/// What becomes of the flows that are open, in words.
fn ended(flows: &Flows, open: usize) -> String {
    let open = number(open, "open flow");
    if kube_proxy::leftovers().is_ok_and(|leftovers| leftovers.is_empty()) {
        return format!("{open} of clients outside end: kube-proxy has no rules here that would go on with them");
    }
    let Left { handed_over, ended, why } = match hand_over(flows) {
        Ok(left) => left,
        // The node is to be left all the same.
        Err(error) => return format!("{open} of clients outside end, or some of them: {error:#}"),
    };
    let handed = format!("{} of clients outside handed to netfilter", number(handed_over, "open flow"));
    match why {
        Some(why) => format!("{handed}; {ended} more end: {why}"),
        None => handed,
    }
}
