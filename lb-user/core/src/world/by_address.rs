//! Services by the addresses that their objects name: endpoints and external IPs. The first look-up builds the index,
//! since most clusters need none; each change costs as much as the object has addresses.

use std::sync::OnceLock;

use foldhash::{HashMap, HashSet};
use lb_common::Addr;
use smallvec::SmallVec;

use crate::objects::{EndpointGroup, Key, Service};

/// Services by address: a Service is listed once for each object and place that names the address.
#[derive(Default)]
pub(super) struct ByAddress(OnceLock<HashMap<Addr, SmallVec<[Key; 1]>>>);

impl ByAddress {
    /// Finds the Services that name one of these addresses, sorted. `all` lists every address with its Service.
    pub(super) fn find<'a>(&self, addrs: &HashSet<Addr>, all: impl Iterator<Item = (&'a Key, Addr)>) -> Vec<Key> {
        let index = self.0.get_or_init(|| {
            let mut index = HashMap::default();
            all.for_each(|(key, addr)| push(&mut index, key, addr));
            index
        });
        let mut found: Vec<Key> = addrs.iter().filter_map(|addr| index.get(addr)).flatten().cloned().collect();
        found.sort_unstable();
        found.dedup();
        found
    }

    /// Adds the addresses of a new object of a Service.
    pub(super) fn add(&mut self, key: &Key, addrs: impl Iterator<Item = Addr>) {
        if let Some(index) = self.0.get_mut() {
            addrs.for_each(|addr| push(index, key, addr));
        }
    }

    /// Removes the addresses of an object of a Service that is gone or replaced.
    pub(super) fn remove(&mut self, key: &Key, addrs: impl Iterator<Item = Addr>) {
        let Some(index) = self.0.get_mut() else { return };
        for addr in addrs {
            let Some(services) = index.get_mut(&addr) else { continue };
            if let Some(at) = services.iter().position(|service| service == key) {
                services.swap_remove(at);
            }
            if services.is_empty() {
                index.remove(&addr);
            }
        }
    }
}

fn push(index: &mut HashMap<Addr, SmallVec<[Key; 1]>>, key: &Key, addr: Addr) {
    index.entry(addr).or_default().push(key.clone());
}

/// Lists the addresses of endpoints.
pub(super) fn endpoints<'a>(groups: impl IntoIterator<Item = &'a EndpointGroup>) -> impl Iterator<Item = Addr> {
    groups.into_iter().flat_map(|group| &group.endpoints).map(|endpoint| endpoint.addr.into())
}

/// Lists the external IPs of a Service.
pub(super) fn external_ips(service: &Service) -> impl Iterator<Item = Addr> {
    service.external_ips.iter().map(|&addr| addr.into())
}
