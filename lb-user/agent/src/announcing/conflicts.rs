//! Reports hosts that claim an address which this node announces, in the log and as Events of its Services.

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use lb_core::{announce::Candidates, objects::Key, warning::Warning};
use lb_dataplane::announced_addresses::{self, AnnouncedState, boot_time_ns};
use tokio::{sync::watch, time::sleep};

use crate::events::{EventQueue, ProblemOrigin, Problems, Reporter};

/// Interval of looks.
const INTERVAL: Duration = Duration::from_secs(10);
/// Age of a claim at which its problem has ended, in ns.
const RECENT: u64 = 600_000_000_000;
/// Time after a move in which packets of the holder before may still arrive, in ns.
const MOVE: u64 = 1_000_000_000;
/// Claims that are reported at a time: a host with many link addresses must not use up the Events of the Service.
const MAX_CLAIMS: usize = 3;

/// Load balancer addresses of each Service.
pub(crate) type ServiceAddresses = Arc<BTreeMap<Key, Vec<(IpAddr, Candidates)>>>;

/// Reports conflicts, by the maps pinned in `pins`. Does not end.
///
/// # Errors
/// If a look panics.
pub(crate) async fn run(pins: PathBuf, services: watch::Receiver<ServiceAddresses>, events: EventQueue) -> Result<()> {
    let mut reporter = Reporter::new(ProblemOrigin::Announcing, events);
    loop {
        sleep(INTERVAL).await;
        let pins = pins.clone();
        let look = tokio::task::spawn_blocking(move || announced_addresses::read(&pins));
        match look.await.context("the look at conflicts")? {
            Ok(state) => {
                let services = services.borrow().clone();
                reporter.report(problems(&state, &services, boot_time_ns()));
            }
            // Before the first pass the maps are not in their place.
            Err(error) => tracing::debug!("conflicts of announced addresses are not known: {error:#}"),
        }
    }
}

/// Returns the conflicts of each Service at the time `now` (CLOCK_BOOTTIME, ns).
fn problems(state: &AnnouncedState, services: &ServiceAddresses, now: u64) -> Problems {
    let mut claims: BTreeMap<IpAddr, Vec<Warning>> = BTreeMap::new();
    for (key, entry) in &state.claims {
        let address = key.addr.to_ip();
        // Two uplinks of the node at one link hear each other.
        let is_own = state.links.values().any(|link| *link == key.link);
        let counts = |since: u64| !is_own && entry.last >= since + MOVE && now.saturating_sub(entry.last) < RECENT;
        if state.since(&address, now).is_some_and(counts) {
            claims.entry(address).or_default().push(Warning::AddressConflict { address, link: key.link });
        }
    }
    let mut problems = Problems::new();
    for (service, addresses) in services.iter().filter(|_| !claims.is_empty()) {
        let of_service = addresses.iter().filter_map(|(address, _)| claims.get(address)).flatten();
        let of_service: std::collections::BTreeSet<Warning> = of_service.take(MAX_CLAIMS).cloned().collect();
        if !of_service.is_empty() {
            problems.insert(service.clone(), of_service);
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_common::{Addr, ConflictEntry, ConflictKey, LinkAddr};

    const SECOND: u64 = 1_000_000_000;

    fn ip(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    const fn link(last: u8) -> LinkAddr {
        LinkAddr::new([2, 0, 0, 0, 0, last])
    }

    /// Returns the problems of the Services a at 192.0.2.7, b at 192.0.2.7 and 192.0.2.8, and c at 192.0.2.9, with a
    /// claim of an address by a link address. The node announces the first two addresses since 100 s, until 1,001 s; it
    /// is 1,000 s.
    fn check(address: u8, by: u8, at_second: u64, expected: &[&str]) {
        let key = ConflictKey { addr: Addr::from(ip(address)), link: link(by) };
        let entry = ConflictEntry { last: at_second * SECOND, count: 1, ifindex: 2, _pad: 0 };
        let state = AnnouncedState {
            deadline: 1001 * SECOND,
            addresses: [(ip(7), 100 * SECOND), (ip(8), 100 * SECOND)].into(),
            links: [(2, link(1)), (3, link(2))].into(),
            claims: vec![(key, entry)],
        };
        let of = |addresses: &[u8]| addresses.iter().map(|last| (ip(*last), Candidates::All)).collect::<Vec<_>>();
        let services = [("a", of(&[7])), ("b", of(&[7, 8])), ("c", of(&[9]))];
        let services = services.map(|(name, addresses)| (Key::new("default", name), addresses));
        let found = problems(&state, &Arc::new(services.into()), 1000 * SECOND);
        let found: Vec<String> = found
            .iter()
            .flat_map(|(service, warnings)| warnings.iter().map(move |warning| format!("{service}: {warning}")))
            .collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn a_claim_of_another_host_is_a_problem_of_the_services_at_the_address() {
        let text = "another host on the link, 02:00:00:00:00:09, claims 192.0.2.7, which the node announces: clients \
                    reach one or the other; find the host by its link address (the table of the switch, `ip neigh`), \
                    and take the address from it, or from the pool";
        check(7, 9, 900, &[&format!("default/a: {text}"), &format!("default/b: {text}")]);
        check(8, 9, 900, &[&format!("default/b: {}", text.replace("2.7", "2.8"))]);
    }

    #[test]
    fn claims_of_the_node_itself_of_a_move_or_of_long_ago_are_none() {
        check(7, 2, 900, &[]);
        check(7, 9, 100, &[]);
        check(7, 9, 399, &[]);
        check(9, 9, 900, &[]);
    }
}
