//! API servers that the pinned maps remember: the endpoints of `default/kubernetes` as last written.

use std::{collections::BTreeSet, net::SocketAddr, path::Path};

use lb_common::{List, Proto};
use lb_core::{op::Table, spec::PortKey};

use crate::store::BpfStore;

/// Where the maps pinned in `pins` have endpoints of `default/kubernetes`, sorted; nowhere when there are no pins.
pub fn endpoints(pins: &Path) -> BTreeSet<SocketAddr> {
    let read = || -> anyhow::Result<BTreeSet<SocketAddr>> {
        let store = BpfStore::open(pins)?;
        let mut found = BTreeSet::new();
        for (id, _) in store.dump_of(&[Table::Names])?.names.iter().filter(|(_, name)| is_api(name)) {
            let slots = store.slots_of(*id)?;
            let cluster = slots.iter().filter(|(key, _)| key.list == List::Cluster as u32);
            found.extend(cluster.map(|(_, slot)| SocketAddr::new(slot.addr.to_ip(), slot.port)));
        }
        Ok(found)
    };
    // A first start has no pins, and a start in another layout none that it can read.
    read().unwrap_or_else(|error| {
        tracing::debug!("no API servers are remembered: {error:#}");
        BTreeSet::new()
    })
}

fn is_api(port: &PortKey) -> bool {
    let service = &port.service;
    (service.namespace(), service.name(), &*port.name, port.proto) == ("default", "kubernetes", "https", Proto::Tcp)
}
