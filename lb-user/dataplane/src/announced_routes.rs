//! Load balancer addresses as routes in a table of their own, for routing daemons on the node: a route for each address
//! whose traffic the node shall attract, and no other.

use std::{collections::BTreeSet, io::ErrorKind, net::IpAddr, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use lb_core::text::number;
use lb_kernel::netlink::{
    NetlinkSocket,
    announced::{self, AnnouncedRoute},
};
use rustix::io::Errno;
use tokio::{sync::watch, time::timeout};

/// Interval after which routes that another program has removed are added again.
const RECHECK: Duration = Duration::from_secs(30);

/// Keeps the routes of the table equal to the addresses, until the future is dropped. Without a table, removes the
/// routes of an earlier run. None, before the first pass, leaves the routes as they are.
///
/// # Errors
/// If netlink is not available.
pub async fn run(table: Option<u32>, mut wanted: watch::Receiver<Option<Arc<BTreeSet<IpAddr>>>>) -> Result<()> {
    let mut reported = BTreeSet::new();
    // An earlier run may have written to another table.
    let mut searched = None;
    loop {
        let addresses = wanted.borrow_and_update().clone();
        let desired: Option<BTreeSet<AnnouncedRoute>> = match table {
            None => Some(BTreeSet::new()),
            Some(table) => addresses
                .map(|addresses| addresses.iter().map(|address| AnnouncedRoute { table, address: *address }).collect()),
        };
        if let Some(desired) = desired {
            update(&desired, searched, &mut reported)?;
            searched = table;
        }
        if table.is_none() {
            // The routes of an earlier run are gone.
            return std::future::pending().await;
        }
        let changed = async {
            if wanted.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        // Time passes, or the addresses have changed.
        let _elapsed = timeout(RECHECK, changed).await;
    }
}

/// Removes all routes of Beeline.
///
/// # Errors
/// If netlink is not available.
pub(crate) fn remove_all() -> Result<usize> {
    let mut netlink = NetlinkSocket::open().context("opening a netlink socket")?;
    let routes = announced::list(&mut netlink, None).context("listing routes")?;
    for route in &routes {
        remove(&mut netlink, *route)?;
    }
    Ok(routes.len())
}

/// Makes the routes of a table, or of all tables, the desired ones. Removes routes before it adds others: the network
/// shall not lead clients to a node that does not serve them.
fn update(desired: &BTreeSet<AnnouncedRoute>, searched: Option<u32>, reported: &mut BTreeSet<IpAddr>) -> Result<()> {
    let mut netlink = NetlinkSocket::open().context("opening a netlink socket")?;
    let present = announced::list(&mut netlink, searched).context("listing routes")?;
    for route in present.difference(desired) {
        remove(&mut netlink, *route)?;
    }
    let (mut added, mut failed) = (0, BTreeSet::new());
    for route in desired.difference(&present) {
        match announced::add(&mut netlink, *route) {
            Ok(()) => added += 1,
            Err(error) => {
                failed.insert(route.address);
                if !reported.contains(&route.address) {
                    let cure = if error.kind() == ErrorKind::AlreadyExists {
                        "; another program has a route to it in this table: give Beeline a table of its own"
                    } else {
                        ""
                    };
                    let AnnouncedRoute { table, address } = route;
                    tracing::warn!(%address, table, "no route to announce: {error}{cure}");
                }
            }
        }
    }
    *reported = failed;
    let removed = present.difference(desired).count();
    if added + removed > 0 {
        tracing::info!(added, removed, "{} to announce", number(desired.len(), "route"));
    }
    Ok(())
}

fn remove(netlink: &mut NetlinkSocket, route: AnnouncedRoute) -> Result<()> {
    match announced::remove(netlink, route) {
        // Another program was faster.
        Err(error) if error.raw_os_error() == Some(Errno::SRCH.raw_os_error()) => Ok(()),
        result => result.with_context(|| format!("removing the route to {} in table {}", route.address, route.table)),
    }
}
