//! Rows of `get`, from a dump of the maps and the counts alone.

mod addresses;
mod devices;
mod flows;
pub(crate) mod pod_modes;

use std::collections::BTreeMap;

use foldhash::{HashMap, HashMapExt as _};
use lb_common::{
    Addr, Backend, BackendFlags, Counter, EjectStatsKey, Frontend, FrontendKey, Kind, List, NEVER, Proto, Scheduler,
    ServiceEntry, ServiceFlags, Slot, SlotKey,
};
use serde::Serialize;

pub use addresses::{AddressRow, addresses};
pub use devices::{DeviceRow, devices};
pub use flows::{FlowFilter, FlowRow, flows};
pub use pod_modes::{PodModeRow, pod_modes};

use lb_core::{
    port_ranges::{self, PortSpan},
    spec::PortKey,
    store::Dump,
};
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
    /// Name of the Service.
    pub name: String,
    /// Name of the port; empty if it has none.
    pub port: String,
    /// TCP, UDP or SCTP.
    pub protocol: &'static str,
    /// Addresses and ports that clients dial.
    pub frontends: Vec<String>,
    /// Backends in the cluster list.
    pub backends: u32,
    /// Backends in the local list, if a traffic policy uses it.
    pub local_backends: u32,
    /// Cluster or Local; PreferLocal while the cluster list has endpoints on this node only, which are preferred;
    /// Redirected while another Service takes the clients.
    pub internal_traffic_policy: &'static str,
    /// As `internal_traffic_policy`.
    pub external_traffic_policy: &'static str,
    /// True if `loadBalancerSourceRanges` restricts its load balancer addresses.
    pub source_ranges: bool,
    /// Name of the scheduler.
    pub scheduler: &'static str,
    /// Time-out of the affinity (s); 0 without affinity.
    pub affinity_seconds: u32,
    /// Time after which TCP sockets of a removed backend are ended (s). `None` if they stay.
    pub drain_seconds: Option<u32>,
    /// Counts of sockets.
    #[serde(flatten)]
    pub counts: PortCounts,
    /// Id in the maps.
    pub id: u32,
}

/// A frontend.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FrontendRow {
    /// Address that clients dial.
    pub address: String,
    /// Port that clients dial; the first one of a port range. `None`: the entry of a cluster IP, whose other ports are
    /// rejected.
    pub port: Option<u16>,
    /// Last port of a port range. `None` for a single port.
    pub last_port: Option<u16>,
    /// TCP, UDP or SCTP; `any` without a port.
    pub protocol: &'static str,
    /// Kind: ClusterIP, NodePort, ExternalIP, LoadBalancer, Address or ExternalAddress.
    pub kind: &'static str,
    /// Name of the service port.
    pub service: String,
    /// Id of the service port.
    pub service_id: u32,
}

/// A backend.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BackendRow {
    /// Name of the service port.
    pub service: String,
    /// Address; [`GONE`] if the backend was removed and sockets still hold it.
    pub address: String,
    /// Port. `None` if the backend was removed, and with an offset.
    pub port: Option<u16>,
    /// For port ranges: the number added to the port dialled, modulo 65,536.
    pub port_offset: Option<i16>,
    /// `here` on this node, otherwise `elsewhere`. `None` if the backend was removed.
    #[serde(rename = "where")]
    pub place: Option<&'static str>,
    /// Slots in each of its lists; 0 if new sockets do not get it.
    pub weight: u16,
    /// Lists with the backend: `cluster`, `local`.
    pub lists: Vec<&'static str>,
    /// Sockets that hold it now.
    pub open: u64,
    /// Number of times that a socket got it.
    pub connections: u64,
    /// Failed TCP handshakes that count for ejection.
    pub failures: u64,
    /// Clients of this node that do not get it, since their connects failed.
    pub ejected_by: usize,
    /// Seconds until the last of them tries it again; 0 if there is none.
    pub ejected_for_seconds: u64,
    /// Id in the maps.
    pub id: u32,
}

/// An event that the programs count.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CounterRow {
    /// Name of the counter.
    pub counter: &'static str,
    /// Events since the maps were created, on all CPUs.
    pub count: u64,
}

/// Returns the name of a service port, or its id if `NAMES` has no entry.
#[must_use]
pub fn name_of(dump: &Dump, id: u32) -> String {
    dump.names.get(&id).map_or_else(|| format!("service#{id}"), PortKey::to_string)
}

/// Counts the backends in the cluster list and the local list, by service port. The slots of a list are the sum of
/// their weights instead.
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

/// Lists all service ports, by name.
#[must_use]
pub fn services(dump: &Dump, stats: &Stats) -> Vec<ServiceRow> {
    let mut rows: Vec<_> = dump.services.iter().collect();
    rows.sort_by_key(|(id, _)| (dump.names.get(id), **id));
    let mut frontends = BTreeMap::<u32, Vec<String>>::new();
    for (key, frontend) in dump.frontends.iter().filter(|(key, _)| !key.is_address()) {
        frontends.entry(frontend.service).or_default().push(address(key));
    }
    for (addr, _, span, frontend) in ranges(dump) {
        let addr = if addr.is_v4() { addr.to_string() } else { format!("[{addr}]") };
        frontends.entry(frontend.service).or_default().push(format!("{addr}:{span}"));
    }
    let (sizes, counts) = (list_sizes(dump), by_port(stats));
    let row = |(id, service): (&u32, &ServiceEntry)| {
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
            internal_traffic_policy: internal_policy(service.flags),
            external_traffic_policy: policy(service.flags, ServiceFlags::EXTERNAL_LOCAL),
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

const fn internal_policy(flags: u32) -> &'static str {
    if flags & ServiceFlags::REDIRECTED != 0 { "Redirected" } else { policy(flags, ServiceFlags::INTERNAL_LOCAL) }
}

/// Names the policy whose bit of [`ServiceFlags`] is `local`.
const fn policy(flags: u32, local: u32) -> &'static str {
    if flags & local != 0 {
        "Local"
    } else if flags & ServiceFlags::PREFERS_LOCAL != 0 {
        "PreferLocal"
    } else {
        "Cluster"
    }
}

/// Lists the port ranges: address, protocol number, ports, and the entry of their blocks.
pub(crate) fn ranges(dump: &Dump) -> Vec<(Addr, u8, PortSpan, Frontend)> {
    port_ranges::joined(dump.port_ranges.iter().map(|(key, frontend)| (*key, *frontend)))
}

/// Lists all frontends, by address; then the port ranges.
#[must_use]
pub fn frontends(dump: &Dump) -> Vec<FrontendRow> {
    let protocol = |key: &FrontendKey| match Proto::from_number(key.proto.into()) {
        _ if key.is_address() => "any",
        proto => proto.map_or("?", Proto::name),
    };
    let row = |(key, frontend): (&FrontendKey, &Frontend)| FrontendRow {
        address: key.addr.to_string(),
        port: (!key.is_address()).then_some(key.port),
        last_port: None,
        protocol: protocol(key),
        kind: Kind::from_number(frontend.kind).map_or("?", Kind::name),
        service: name_of(dump, frontend.service),
        service_id: frontend.service,
    };
    let range = |(addr, proto, span, frontend): (Addr, u8, PortSpan, Frontend)| {
        let first = FrontendKey { addr, port: span.first, proto, block: 0 };
        FrontendRow { last_port: Some(span.last), ..row((&first, &frontend)) }
    };
    dump.frontends.iter().map(row).chain(ranges(dump).into_iter().map(range)).collect()
}

/// Lists all backends, by service port and address; after those of a service port, removed ones that sockets hold.
#[must_use]
pub fn backends(dump: &Dump, stats: &Stats) -> Vec<BackendRow> {
    backend_rows(dump, stats, dump.slots.values(), |_| true)
}

/// Lists the backends of one service port. `slots` must have its entries; `dump` needs none.
#[must_use]
pub fn backends_of(dump: &Dump, slots: &BTreeMap<SlotKey, Slot>, stats: &Stats, service: u32) -> Vec<BackendRow> {
    let range = SlotKey::new(service, List::Cluster, 0)..=SlotKey::new(service, List::Local, u32::MAX);
    backend_rows(dump, stats, slots.range(range).map(|(_, slot)| slot), |other| other == service)
}

const fn is_offset(backend: &Backend) -> bool {
    backend.flags & BackendFlags::OFFSET != 0
}

fn backend_rows<'a>(
    dump: &'a Dump,
    stats: &Stats,
    slots: impl Iterator<Item = &'a Slot>,
    is_wanted: impl Fn(u32) -> bool,
) -> Vec<BackendRow> {
    let weights: HashMap<u32, u16> = slots.map(|slot| (slot.backend, slot.weight)).collect();
    let known = dump.backends.iter().map(|(id, backend)| (backend.service, *id, Some(backend)));
    let gone = stats.backends.iter().filter(|(id, counts)| counts.open > 0 && !dump.backends.contains_key(id));
    let gone = gone.map(|(id, counts)| (counts.service, *id, None));
    let mut rows: Vec<(u32, u32, Option<&Backend>)> =
        known.chain(gone).filter(|(service, ..)| is_wanted(*service)).collect();
    rows.sort_by_key(|(service, id, backend)| {
        (dump.names.get(service), backend.is_none(), backend.map(|backend| (backend.addr, backend.port)), *id)
    });
    let row = |(service, id, backend): (u32, u32, Option<&Backend>)| {
        let counts = stats.backends.get(&id).copied().unwrap_or_default();
        let ejected = stats.ejected_backends.get(&id).copied().unwrap_or_default();
        BackendRow {
            service: name_of(dump, service),
            address: backend.map_or_else(|| GONE.to_owned(), |backend| backend.addr.to_string()),
            port: backend.filter(|backend| !is_offset(backend)).map(|backend| backend.port),
            port_offset: backend.filter(|backend| is_offset(backend)).map(|backend| backend.port.cast_signed()),
            place: backend.map(place),
            weight: weights.get(&id).copied().unwrap_or(0),
            lists: backend.map(lists).unwrap_or_default(),
            open: counts.open,
            connections: counts.connections,
            failures: stats.ejected.get(&EjectStatsKey { service, backend: id }).map_or(0, |stats| stats.failures),
            ejected_by: ejected.clients,
            ejected_for_seconds: ejected.seconds,
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

/// Lists the counters of the programs.
#[must_use]
pub fn counters(counts: &[(Counter, u64)]) -> Vec<CounterRow> {
    counts.iter().map(|(counter, count)| CounterRow { counter: counter.name(), count: *count }).collect()
}

/// Formats `address:port`, with brackets around IPv6.
#[must_use]
pub fn address(key: &FrontendKey) -> String {
    std::net::SocketAddr::new(key.addr.to_ip(), key.port).to_string()
}

#[cfg(test)]
mod tests;
