//! What a dump says, whatever its ids and the order of its slots; and whether it is whole.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::AddrPort;
use lb_common::{Addr, BackendFlags, Frontend, FrontendKey, List, MaglevKey, Scheduler, ServiceFlags};
use lb_core::{spec::PortKey, store::Dump};

/// A service port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Port {
    /// Key and kind.
    pub frontends: BTreeMap<FrontendKey, u8>,
    /// Sorted.
    pub lists: [Vec<AddrPort>; 2],
    pub flags: u32,
    /// Sorted.
    pub ranges: Vec<(u32, Addr)>,
    /// Whom the places of each table lead to.
    pub tables: [Option<Vec<AddrPort>>; 2],
}

/// All of them.
pub type Meaning = BTreeMap<PortKey, Port>;

pub fn meaning(dump: &Dump) -> Meaning {
    let port = |id: u32| {
        let service = dump.services.get(&id).copied().unwrap_or_default();
        let own = dump.frontends.iter().filter(|(_, frontend)| frontend.service == id);
        let frontends = own.map(|(key, Frontend { kind, .. })| (*key, *kind)).collect();
        let lists = List::ALL.map(|list| {
            let slots = dump.slots.iter().filter(|(key, _)| key.service == id && key.list == list as u32);
            let mut targets: Vec<_> = slots.map(|(_, slot)| AddrPort { addr: slot.addr, port: slot.port }).collect();
            targets.sort_unstable();
            targets
        });
        let own = dump.source_ranges.iter().filter(|key| key.range.service == id);
        let ranges = own.map(|key| (key.prefix_len, key.range.addr)).collect();
        let tables = List::ALL.map(|list| {
            let table = dump.maglev.get(&MaglevKey { service: id, list: list as u32 })?;
            let target = |id| dump.backends.get(id).map(|backend| AddrPort { addr: backend.addr, port: backend.port });
            table.backends.iter().map(target).collect()
        });
        Port { frontends, lists, flags: service.flags, ranges, tables }
    };
    dump.names.iter().map(|(&id, key)| (key.clone(), port(id))).collect()
}

/// Panics unless everything refers to something, and nothing is left over.
pub fn check_sound(dump: &Dump) {
    let names: BTreeSet<&PortKey> = dump.names.values().collect();
    assert_eq!(names.len(), dump.names.len(), "one id for each name\n{dump:#}");
    assert!(dump.names.keys().eq(dump.services.keys()), "names and services\n{dump:#}");
    for frontend in dump.frontends.values() {
        assert!(dump.services.contains_key(&frontend.service), "a frontend leads nowhere\n{dump:#}");
    }
    let lens = dump.services.values().map(|service| service.cluster_len as usize + service.local_len as usize);
    assert_eq!(lens.sum::<usize>(), dump.slots.len(), "as many slots as the lengths say\n{dump:#}");
    for (key, slot) in &dump.slots {
        let list = List::ALL[key.list as usize];
        assert!(dump.services[&key.service].len(list) > key.index, "a slot beyond its list\n{dump:#}");
        let backend = dump.backends.get(&slot.backend).expect("a slot names a backend");
        assert_eq!((backend.service, backend.addr, backend.port), (key.service, slot.addr, slot.port), "\n{dump:#}");
    }
    for (id, service) in &dump.services {
        let is_bound = service.flags & ServiceFlags::SOURCE_RANGES != 0;
        let has_ranges = dump.source_ranges.iter().any(|key| key.range.service == *id);
        // Without any range no client is let in: no range of the Service is readable.
        assert!(is_bound || !has_ranges, "service port {id} and its ranges\n{dump:#}");
        for list in List::ALL {
            let table = dump.maglev.get(&MaglevKey { service: *id, list: list as u32 });
            let expected = service.scheduler == Scheduler::Mh as u32 && service.len(list) > 0;
            assert_eq!(table.is_some(), expected, "the {list:?} table of {id}\n{dump:#}");
            for backend in table.iter().flat_map(|table| table.backends) {
                let backend = dump.backends.get(&backend).expect("a table names a backend");
                assert!(backend.service == *id && backend.flags & BackendFlags::of(list) != 0, "\n{dump:#}");
            }
        }
    }
    assert!(dump.source_ranges.iter().all(|key| dump.services.contains_key(&key.range.service)), "\n{dump:#}");
    assert!(dump.maglev.keys().all(|key| dump.services.contains_key(&key.service) && key.list < 2), "\n{dump:#}");
    let named: BTreeSet<u32> = dump.slots.values().map(|slot| slot.backend).collect();
    for (id, backend) in &dump.backends {
        let in_list = |list: List| dump.slots.iter().any(|(key, slot)| slot.backend == *id && key.list == list as u32);
        for list in List::ALL {
            let says = backend.flags & BackendFlags::of(list) != 0;
            assert_eq!(says, in_list(list), "backend {id} and the {list:?} list\n{dump:#}");
        }
    }
    assert!(named.iter().all(|id| dump.backends.contains_key(id)), "a backend that is not there\n{dump:#}");
}
