//! Endpoints of API servers from the pinned maps: the slots of `default/kubernetes`, for a start while its VIP has no
//! answer.

use std::{collections::BTreeSet, net::SocketAddr, path::Path};

use lb_common::{List, Proto};
use lb_core::{op::Table, spec::PortKey};

use crate::store::BpfStore;

/// Returns the endpoints of `default/kubernetes` in the maps pinned in `pins`; none without pins.
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
    // A first start has no pins, and a start with another layout cannot read them.
    read().unwrap_or_else(|error| {
        tracing::debug!("the pinned maps have no API servers: {error:#}");
        BTreeSet::new()
    })
}

fn is_api(port: &PortKey) -> bool {
    let service = &port.service;
    (service.namespace(), service.name(), &*port.name, port.proto) == ("default", "kubernetes", "https", Proto::Tcp)
}
