//! The content of a dump, independent of ids and of the order of slots, and the check of its consistency.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::AddrPort;
use lb_common::{
    Addr, BackendFlags, FIRST_SCOPE, Frontend, FrontendKey, List, MaglevKey, SCOPE_SIZE, Scheduler, ServiceFlags,
};
use lb_core::{spec::PortKey, store::Dump};

/// The content of a service port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PortContent {
    /// Kind of each frontend.
    pub frontends: BTreeMap<FrontendKey, u8>,
    /// Backends of each list, sorted.
    pub lists: [Vec<AddrPort>; 2],
    pub flags: u32,
    /// Source ranges as prefix length and address, sorted.
    pub ranges: Vec<(u32, Addr)>,
    /// Backends of each Maglev table, by position.
    pub tables: [Option<Vec<AddrPort>>; 2],
}

/// The content of all service ports.
pub type Content = BTreeMap<PortKey, PortContent>;

/// Checks that a client meets one endpoint at all service ports that share affinity.
fn check_shared_affinity(dump: &Dump) {
    let shares = |id: &u32| dump.services[id].flags & ServiceFlags::SHARED_AFFINITY != 0;
    for id in dump.names.keys() {
        let backends = dump.backends.iter().filter(|(_, backend)| backend.service == *id).map(|(id, _)| id);
        let is_in_block = backends.chain([id]).all(|other| (*other >= FIRST_SCOPE) == shares(id));
        assert!(is_in_block, "{id} and its backends are in blocks if it shares affinity\n{dump:#}");
    }
    let mut scopes = BTreeMap::<_, BTreeSet<u32>>::new();
    let mut endpoints = BTreeMap::<_, BTreeSet<u32>>::new();
    for (id, name) in dump.names.iter().filter(|(id, _)| shares(id)) {
        let scope = (&name.service, name.family);
        scopes.entry(scope).or_default().insert(id / SCOPE_SIZE);
        let mut backends = BTreeMap::<Addr, BTreeSet<u32>>::new();
        for (_, slot) in dump.slots.iter().filter(|(key, _)| key.service == *id) {
            assert_eq!(slot.backend % SCOPE_SIZE, id % SCOPE_SIZE, "a backend out of its place\n{dump:#}");
            backends.entry(slot.addr).or_default().insert(slot.backend);
        }
        // One of two endpoints at one address shares affinity.
        for (addr, backends) in backends.into_iter().filter(|(_, backends)| backends.len() == 1) {
            endpoints.entry((scope, addr)).or_default().extend(backends.iter().map(|id| id / SCOPE_SIZE));
        }
    }
    for blocks in scopes.values().chain(endpoints.values()) {
        assert_eq!(blocks.len(), 1, "one block for service ports, or for backends at one address\n{dump:#}");
    }
    let all: BTreeSet<u32> = scopes.values().flatten().copied().collect();
    assert_eq!(all.len(), scopes.len(), "a block for each Service and family\n{dump:#}");
    let all: BTreeSet<u32> = endpoints.values().flatten().copied().collect();
    assert_eq!(all.len(), endpoints.len(), "a block for each Service and address\n{dump:#}");
}

/// Returns the content of a dump.
pub fn content(dump: &Dump) -> Content {
    let port = |id: u32| {
        let service = dump.services.get(&id).copied().unwrap_or_default();
        let all = dump.frontends.iter().chain(&dump.port_ranges);
        let own = all.filter(|(_, frontend)| frontend.service == id);
        let frontends = own.map(|(key, Frontend { kind, .. })| (*key, *kind)).collect();
        let lists = List::ALL.map(|list| {
            let slots = dump.slots.iter().filter(|(key, _)| key.service == id && key.list == list as u32);
            let mut backends: Vec<_> = slots.map(|(_, slot)| AddrPort { addr: slot.addr, port: slot.port }).collect();
            backends.sort_unstable();
            backends
        });
        let own = dump.source_ranges.iter().filter(|key| key.range.service == id);
        let ranges = own.map(|key| (key.prefix_len, key.range.addr)).collect();
        let tables = List::ALL.map(|list| {
            let table = dump.maglev.get(&MaglevKey { service: id, list: list as u32 })?;
            let target = |id| dump.backends.get(id).map(|backend| AddrPort { addr: backend.addr, port: backend.port });
            table.backends.iter().map(target).collect()
        });
        PortContent { frontends, lists, flags: service.flags, ranges, tables }
    };
    dump.names.iter().map(|(&id, key)| (key.clone(), port(id))).collect()
}

/// Panics if an entry names an unknown id, or if no entry refers to it.
pub fn check_consistent(dump: &Dump) {
    let names: BTreeSet<&PortKey> = dump.names.values().collect();
    assert_eq!(names.len(), dump.names.len(), "one id for each name\n{dump:#}");
    assert!(dump.names.keys().eq(dump.services.keys()), "each name has a service entry\n{dump:#}");
    check_shared_affinity(dump);
    for frontend in dump.frontends.values().chain(dump.port_ranges.values()) {
        assert!(dump.services.contains_key(&frontend.service), "a frontend names an unknown service port\n{dump:#}");
    }
    let lens = dump.services.values().map(|service| service.cluster_len as usize + service.local_len as usize);
    assert_eq!(
        lens.sum::<usize>(),
        dump.slots.len(),
        "the lengths of the lists differ from the number of slots\n{dump:#}"
    );
    for (key, slot) in &dump.slots {
        let list = List::ALL[key.list as usize];
        assert!(dump.services[&key.service].len(list) > key.index, "a slot beyond its list\n{dump:#}");
        let backend = dump.backends.get(&slot.backend).expect("a slot names a backend");
        assert_eq!((backend.service, backend.addr, backend.port), (key.service, slot.addr, slot.port), "\n{dump:#}");
    }
    for (id, service) in &dump.services {
        let is_bound = service.flags & ServiceFlags::SOURCE_RANGES != 0;
        let has_ranges = dump.source_ranges.iter().any(|key| key.range.service == *id);
        // The flag without a range admits no client: none of the ranges could be parsed.
        assert!(is_bound || !has_ranges, "service port {id} has source ranges and not their flag\n{dump:#}");
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
            let has_bit = backend.flags & BackendFlags::of(list) != 0;
            assert_eq!(has_bit, in_list(list), "backend {id}: its bit and the {list:?} list differ\n{dump:#}");
        }
    }
    assert!(named.iter().all(|id| dump.backends.contains_key(id)), "a slot names an unknown backend\n{dump:#}");
}
