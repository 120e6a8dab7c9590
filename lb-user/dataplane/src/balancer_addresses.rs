//! Load balancer addresses of Services from the pinned maps: a directory of files has no status that would keep them
//! over a restart.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::Path,
};

use lb_common::Kind;
use lb_core::{objects::Key, op::Table, store::Dump};

use crate::store::BpfStore;

/// Returns the addresses in the maps pinned in `pins`; none without pins.
pub fn read(pins: &Path) -> BTreeMap<Key, Vec<IpAddr>> {
    let dump = BpfStore::open(pins).and_then(|store| store.dump_of(&[Table::Names, Table::Frontends]));
    // A first start has no pins, and a start with another layout cannot read them.
    let dump = dump.unwrap_or_else(|error| {
        tracing::debug!("the pinned maps have no load balancer addresses: {error:#}");
        Dump::default()
    });
    by_service(&dump)
}

fn by_service(dump: &Dump) -> BTreeMap<Key, Vec<IpAddr>> {
    let mut addresses: BTreeMap<Key, BTreeSet<IpAddr>> = BTreeMap::new();
    for (key, frontend) in &dump.frontends {
        let is_balancer = frontend.kind == Kind::LoadBalancer as u8;
        if let Some(port) = dump.names.get(&frontend.service).filter(|_| is_balancer) {
            addresses.entry(port.service.clone()).or_default().insert(key.addr.to_ip());
        }
    }
    addresses.into_iter().map(|(service, addresses)| (service, addresses.into_iter().collect())).collect()
}
