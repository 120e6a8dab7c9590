//! What stands in the maps, in the words of people: rows for `get`, made from a dump and the counts alone.

mod devices;
mod flows;
pub mod pod_modes;

use std::collections::BTreeMap;

use foldhash::{HashMap, HashMapExt as _};
use lb_common::{
    Backend, BackendFlags, Counter, FrontendKey, Kind, List, NEVER, Proto, Scheduler, Service, ServiceFlags, Slot,
    SlotKey,
};
use serde::Serialize;

pub use devices::{DeviceRow, devices};
pub use flows::{FlowFilter, FlowRow, flows};
pub use pod_modes::{PathRow, paths};

use lb_core::{spec::PortKey, store::Dump};
use lb_dataplane::stats::{
    Stats,
    counts::{GONE, PortCounts, by_port},
};

/// A service port.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceRow {
    /// Namespace of the Service.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Name of the port; empty for a single unnamed one.
    pub port: String,
    /// TCP, UDP or SCTP.
    pub protocol: &'static str,
    /// What clients dial.
    pub frontends: Vec<String>,
    /// Backends in the cluster list.
    pub backends: u32,
    /// Backends in the local list, where a policy uses it.
    pub local_backends: u32,
    /// Cluster or Local.
    pub internal_traffic_policy: &'static str,
    /// Cluster or Local.
    pub external_traffic_policy: &'static str,
    /// Whether only some sources may come to its load balancer addresses.
    pub source_ranges: bool,
    /// How a backend is chosen.
    pub scheduler: &'static str,
    /// For how long a client keeps its backend, in seconds; 0 without affinity.
    pub affinity_seconds: u32,
    /// When TCP sockets of a backend that has gone are ended, in seconds from then; none when they stay.
    pub drain_seconds: Option<u32>,
    /// What sockets did with it.
    #[serde(flatten)]
    pub counts: PortCounts,
    /// Id in the maps.
    pub id: u32,
}

/// A frontend.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FrontendRow {
    /// The address dialled.
    pub address: String,
    /// The port dialled; none of an address at which every other port is rejected.
    pub port: Option<u16>,
    /// TCP, UDP or SCTP; `any` without a port.
    pub protocol: &'static str,
    /// What created it.
    pub kind: &'static str,
    /// The service port that answers.
    pub service: String,
    /// Its id in the maps.
    pub service_id: u32,
}

/// A backend.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BackendRow {
    /// The service port.
    pub service: String,
    /// Where it listens; [`GONE`] when only sockets know it any more.
    pub address: String,
    /// Its port, as long as it is there.
    pub port: Option<u16>,
    /// `here` on this node, else `elsewhere`; as long as it is there.
    #[serde(rename = "where")]
    pub place: Option<&'static str>,
    /// How many places it has in each of its lists; 0 when no socket is given it any more.
    pub weight: u16,
    /// The lists that it stands in.
    pub lists: Vec<&'static str>,
    /// Sockets that have it now.
    pub open: u64,
    /// Times that it was given to a socket.
    pub connections: u64,
    /// Id in the maps.
    pub id: u32,
}

/// An event that the programs count.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CounterRow {
    /// Its name.
    pub counter: &'static str,
    /// How often it happened since the maps were made, on all CPUs.
    pub count: u64,
}

/// The name of a service port, or its id where the map has none.
#[must_use]
pub fn name_of(dump: &Dump, id: u32) -> String {
    dump.names.get(&id).map_or_else(|| format!("service#{id}"), PortKey::to_string)
}

/// How many backends the cluster and the local list of each service port have. A list is as long as their weights.
#[must_use]
pub fn list_sizes(dump: &Dump) -> HashMap<u32, [u32; 2]> {
    let mut sizes: HashMap<u32, [u32; 2]> = HashMap::with_capacity(dump.services.len());
    for backend in dump.backends.values() {
        let [cluster, local] = sizes.entry(backend.service).or_default();
        *cluster += u32::from(backend.flags & BackendFlags::CLUSTER != 0);
        *local += u32::from(backend.flags & BackendFlags::LOCAL != 0);
    }
    sizes
}

/// All service ports, by name.
#[must_use]
pub fn services(dump: &Dump, stats: &Stats) -> Vec<ServiceRow> {
    let mut rows: Vec<_> = dump.services.iter().collect();
    rows.sort_by_key(|(id, _)| (dump.names.get(id), **id));
    let mut frontends = BTreeMap::<u32, Vec<String>>::new();
    for (key, frontend) in dump.frontends.iter().filter(|(key, _)| **key != key.address()) {
        frontends.entry(frontend.service).or_default().push(address(key));
    }
    let (sizes, counts) = (list_sizes(dump), by_port(stats));
    let row = |(id, service): (&u32, &Service)| {
        let key = dump.names.get(id);
        let [backends, local_backends] = sizes.get(id).copied().unwrap_or_default();
        ServiceRow {
            namespace: key.map(|key| key.service.namespace().to_owned()).unwrap_or_default(),
            name: key.map_or_else(|| format!("service#{id}"), |key| key.service.name().to_owned()),
            port: key.map(|key| key.name.to_string()).unwrap_or_default(),
            protocol: key.map_or("?", |key| key.proto.name()),
            frontends: frontends.remove(id).unwrap_or_default(),
            backends,
            local_backends,
            internal_traffic_policy: policy(service.flags & ServiceFlags::INTERNAL_LOCAL),
            external_traffic_policy: policy(service.flags & ServiceFlags::EXTERNAL_LOCAL),
            source_ranges: service.flags & ServiceFlags::SOURCE_RANGES != 0,
            scheduler: Scheduler::from_number(service.scheduler).map_or("?", Scheduler::name),
            affinity_seconds: service.affinity_seconds,
            drain_seconds: (service.drain_seconds != NEVER).then_some(service.drain_seconds),
            counts: counts.get(id).copied().unwrap_or_default(),
            id: *id,
        }
    };
    rows.into_iter().map(row).collect()
}

const fn policy(flag: u32) -> &'static str {
    if flag == 0 { "Cluster" } else { "Local" }
}

/// All frontends, by address.
#[must_use]
pub fn frontends(dump: &Dump) -> Vec<FrontendRow> {
    let protocol = |key: &FrontendKey| match Proto::from_number(key.proto.into()) {
        _ if *key == key.address() => "any",
        proto => proto.map_or("?", Proto::name),
    };
    let row = |(key, frontend): (&FrontendKey, &lb_common::Frontend)| FrontendRow {
        address: key.addr.to_string(),
        port: (*key != key.address()).then_some(key.port),
        protocol: protocol(key),
        kind: Kind::from_number(frontend.kind).map_or("?", Kind::name),
        service: name_of(dump, frontend.service),
        service_id: frontend.service,
    };
    dump.frontends.iter().map(row).collect()
}

/// All backends, by service port and address; then those of each that are gone, and that sockets still have.
#[must_use]
pub fn backends(dump: &Dump, stats: &Stats) -> Vec<BackendRow> {
    backend_rows(dump, stats, dump.slots.values(), |_| true)
}

/// Those of one service port, which has these slots.
#[must_use]
pub fn backends_of(dump: &Dump, slots: &BTreeMap<SlotKey, Slot>, stats: &Stats, service: u32) -> Vec<BackendRow> {
    let range = SlotKey::new(service, List::Cluster, 0)..=SlotKey::new(service, List::Local, u32::MAX);
    backend_rows(dump, stats, slots.range(range).map(|(_, slot)| slot), |other| other == service)
}

fn backend_rows<'a>(
    dump: &'a Dump,
    stats: &Stats,
    slots: impl Iterator<Item = &'a Slot>,
    is_wanted: impl Fn(u32) -> bool,
) -> Vec<BackendRow> {
    let weights: HashMap<u32, u16> = slots.map(|slot| (slot.backend, slot.weight)).collect();
    let known = dump.backends.iter().map(|(id, backend)| (backend.service, *id, Some(backend)));
    let gone = stats.backends.iter().filter(|(id, held)| held.open > 0 && !dump.backends.contains_key(id));
    let gone = gone.map(|(id, held)| (held.service, *id, None));
    let mut rows: Vec<(u32, u32, Option<&Backend>)> =
        known.chain(gone).filter(|(service, ..)| is_wanted(*service)).collect();
    rows.sort_by_key(|(service, id, backend)| {
        (dump.names.get(service), backend.is_none(), backend.map(|backend| (backend.addr, backend.port)), *id)
    });
    let row = |(service, id, backend): (u32, u32, Option<&Backend>)| {
        let held = stats.backends.get(&id).copied().unwrap_or_default();
        BackendRow {
            service: name_of(dump, service),
            address: backend.map_or_else(|| GONE.to_owned(), |backend| backend.addr.to_string()),
            port: backend.map(|backend| backend.port),
            place: backend.map(place),
            weight: weights.get(&id).copied().unwrap_or(0),
            lists: backend.map(lists).unwrap_or_default(),
            open: held.open,
            connections: held.connections,
            id,
        }
    };
    rows.into_iter().map(row).collect()
}

const fn place(backend: &Backend) -> &'static str {
    if backend.flags & BackendFlags::ON_NODE == 0 { "elsewhere" } else { "here" }
}

fn lists(backend: &Backend) -> Vec<&'static str> {
    let all = [(BackendFlags::CLUSTER, "cluster"), (BackendFlags::LOCAL, "local")];
    all.into_iter().filter(|(flag, _)| backend.flags & flag != 0).map(|(_, name)| name).collect()
}

/// Events that the programs count.
#[must_use]
pub fn counters(counts: &[(Counter, u64)]) -> Vec<CounterRow> {
    counts.iter().map(|(counter, count)| CounterRow { counter: counter.name(), count: *count }).collect()
}

/// `address:port`, with brackets for IPv6.
#[must_use]
pub fn address(key: &FrontendKey) -> String {
    std::net::SocketAddr::new(key.addr.to_ip(), key.port).to_string()
}

#[cfg(test)]
mod tests;
