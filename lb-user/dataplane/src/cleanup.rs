//! Removal of Beeline from the node. Open flows are handed to netfilter where kube-proxy's rules exist again.

use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::{
    announced_routes,
    attach::clsact,
    flows::{
        Flows,
        netfilter::{HandOverReport, drain, hand_over, stop_new_flows, unregister},
    },
    kube_proxy,
    pins::Pins,
};
use lb_core::text::number;
use lb_kernel::netfilter::{
    masquerade::MASQUERADE_TABLE,
    temporary_tables::{self, KEEP_ALIVE_TABLE, NOTRACK_TABLE},
};

/// Programs that translate, in the order of removal. Programs that only restore VIPs stay until the end.
const TRANSLATING: [&str; 6] = ["connect4", "connect6", "sendmsg4", "sendmsg6", "bind4", "bind6"];

/// Removes programs, maps and netfilter tables of Beeline, and reports each step to `say`. Waits up to `timeout` for
/// flows of clients outside to end, then hands the open ones to netfilter.
///
/// # Errors
/// If an agent runs, or a pin cannot be removed.
pub fn cleanup(pins: &Pins, timeout: Duration, mut say: impl FnMut(String)) -> Result<()> {
    if !pins.root().exists() {
        say("nothing was pinned".to_owned());
        withdraw(&mut say)?;
        return release(say);
    }
    let lock = pins.lock()?;
    // The network leads clients to other nodes before this one stops to serve them.
    withdraw(&mut say)?;
    // Stop new flows before sockets dial VIPs again: a flow of a pod's packets may have the same tuple at the backend
    // as a connection of one of its sockets.
    let stopped = if pins.current().join("FLOWS").exists() {
        let flows = Flows::open(&pins.current())?;
        let registered = stop_new_flows(&pins.current(), &flows)?;
        Some((flows, registered))
    } else {
        None
    };
    pins.remove_links(&TRANSLATING, &lock)?;
    if let Some((flows, registered)) = stopped {
        let open = drain(&flows, timeout)?;
        if open > 0 {
            say(end_open_flows(&flows, open));
        }
        if let Err(error) = unregister(&registered) {
            // The entries time out after a day.
            say(format!("netfilter keeps entries of flows that are over: {error:#}"));
        }
    }
    // Filters before maps, so that no program runs on maps that are going.
    let mut removed = clsact::remove(pins.root())?;
    removed.extend(pins.remove(&lock)?);
    for path in &removed {
        say(format!("removed {path}"));
    }
    say(format!("{} removed: the kernel translates nothing any more", number(removed.len(), "pin")));
    release(say)
}

/// Removes the routes by which routing daemons announce load balancer addresses.
fn withdraw(say: &mut impl FnMut(String)) -> Result<()> {
    let removed = announced_routes::remove_all()?;
    if removed > 0 {
        say(format!("removed {} to announce", number(removed, "route")));
    }
    Ok(())
}

/// Removes our netfilter tables. Kube-proxy's rules, where they exist again, keep its connections alive.
fn release(mut say: impl FnMut(String)) -> Result<()> {
    // NOTRACK_TABLE remains only if an earlier cleanup was killed.
    for table in [MASQUERADE_TABLE, KEEP_ALIVE_TABLE, NOTRACK_TABLE] {
        if temporary_tables::remove(table).with_context(|| format!("removing the table {table} from netfilter"))? {
            say(format!("removed the table {table} from netfilter"));
        }
    }
    Ok(())
}

/// Hands the open flows to netfilter if kube-proxy has rules for them, and returns the outcome as a line of text.
fn end_open_flows(flows: &Flows, open: usize) -> String {
    let open = number(open, "open flow");
    if kube_proxy::leftovers().is_ok_and(|leftovers| leftovers.is_empty()) {
        return format!("{open} of clients outside end: kube-proxy has no rules here that would go on with them");
    }
    let HandOverReport { handed_over, ended, why } = match hand_over(flows) {
        Ok(report) => report,
        // Go on with the removal.
        Err(error) => return format!("{open} of clients outside end, or some of them: {error:#}"),
    };
    let handed = format!("{} of clients outside handed to netfilter", number(handed_over, "open flow"));
    match why {
        Some(why) => format!("{handed}; {ended} more end: {why}"),
        None => handed,
    }
}
