//! Rows of load balancer addresses, each with the state of its announcement by this node.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use lb_common::Kind;
use lb_core::store::Dump;
use lb_dataplane::announced_addresses::AnnouncedState;
use serde::Serialize;

/// A load balancer address.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AddressRow {
    /// The address.
    pub address: IpAddr,
    /// True if this node answers for it on the link.
    pub announced_here: bool,
    /// Time for which the node may still answer (ms), renewed each 300 ms. `None` if it does not, and without a
    /// deadline, for an announcer that is alone.
    pub deadline_milliseconds: Option<u64>,
    /// Time since when it answers (s).
    pub since_seconds: Option<u64>,
    /// Services at the address; none once they have gone.
    pub services: Vec<String>,
}

/// Lists the load balancer addresses in the maps, and the addresses that the node announces at the time `now`
/// (CLOCK_BOOTTIME, ns).
#[must_use]
pub fn addresses(dump: &Dump, announced: &AnnouncedState, now: u64) -> Vec<AddressRow> {
    let mut services: BTreeMap<IpAddr, BTreeSet<String>> = BTreeMap::new();
    for (key, frontend) in dump.frontends.iter().filter(|(_, frontend)| frontend.kind == Kind::LoadBalancer as u8) {
        let names = services.entry(key.addr.to_ip()).or_default();
        names.extend(dump.names.get(&frontend.service).map(|port| port.service.to_string()));
    }
    for addr in announced.addresses.keys().filter(|addr| announced.since(addr, now).is_some()) {
        services.entry(*addr).or_default();
    }
    let row = |(address, services): (IpAddr, BTreeSet<String>)| {
        let since = announced.since(&address, now);
        let until = announced.deadline;
        AddressRow {
            address,
            announced_here: since.is_some(),
            deadline_milliseconds: since.filter(|_| until != u64::MAX).map(|_| (until - now) / 1_000_000),
            since_seconds: since.map(|since| now.saturating_sub(since) / 1_000_000_000),
            services: services.into_iter().collect(),
        }
    };
    services.into_iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_announced_here_until_its_deadline() {
        let addr = IpAddr::from([192, 0, 2, 7]);
        let announced = |deadline| AnnouncedState {
            deadline,
            addresses: BTreeMap::from([(addr, 3_000_000_000)]),
            ..AnnouncedState::default()
        };
        let row = |until, now| addresses(&Dump::default(), &announced(until), now).pop();
        let shown =
            |until, now| row(until, now).map(|row| (row.announced_here, row.deadline_milliseconds, row.since_seconds));
        assert_eq!(shown(6_400_000_000, 5_000_000_000), Some((true, Some(1400), Some(2))));
        assert_eq!(shown(u64::MAX, 5_000_000_000), Some((true, None, Some(2))), "an announcer that is alone");
        assert_eq!(shown(5_000_000_000, 5_000_000_000), None, "no Service has it, and the node answers no more");
    }
}
