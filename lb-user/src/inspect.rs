//! What stands in the maps, in the words of people: rows for `get`, made from a dump alone.

use lb_common::{Counter, FrontendKey, Kind, List, Proto, ServiceFlags, Slot};
use serde::Serialize;

use crate::{spec::PortKey, store::Dump};

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
    /// Length of the cluster list.
    pub backends: u32,
    /// Length of the local list, where a policy uses it.
    pub local_backends: u32,
    /// Cluster or Local.
    pub internal_traffic_policy: &'static str,
    /// Id in the maps.
    pub id: u32,
}

/// A frontend.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FrontendRow {
    /// The address dialled.
    pub address: String,
    /// The port dialled.
    pub port: u16,
    /// TCP, UDP or SCTP.
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
    /// Where it listens.
    pub address: String,
    /// Its port.
    pub port: u16,
    /// The lists that it stands in.
    pub lists: Vec<&'static str>,
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

/// All service ports, by name.
#[must_use]
pub fn services(dump: &Dump) -> Vec<ServiceRow> {
    let mut rows: Vec<_> = dump.services.iter().collect();
    rows.sort_by_key(|(id, _)| (dump.names.get(id), **id));
    let mut frontends = std::collections::BTreeMap::<u32, Vec<String>>::new();
    for (key, frontend) in &dump.frontends {
        frontends.entry(frontend.service).or_default().push(address(key));
    }
    let row = |(id, service): (&u32, &lb_common::Service)| {
        let key = dump.names.get(id);
        ServiceRow {
            namespace: key.map(|key| key.service.namespace().to_owned()).unwrap_or_default(),
            name: key.map_or_else(|| format!("service#{id}"), |key| key.service.name().to_owned()),
            port: key.map(|key| key.name.to_string()).unwrap_or_default(),
            protocol: key.map_or("?", |key| key.proto.name()),
            frontends: frontends.remove(id).unwrap_or_default(),
            backends: service.cluster_len,
            local_backends: service.local_len,
            internal_traffic_policy: if service.flags & ServiceFlags::INTERNAL_LOCAL == 0 {
                "Cluster"
            } else {
                "Local"
            },
            id: *id,
        }
    };
    rows.into_iter().map(row).collect()
}

/// All frontends, by address.
#[must_use]
pub fn frontends(dump: &Dump) -> Vec<FrontendRow> {
    let row = |(key, frontend): (&FrontendKey, &lb_common::Frontend)| FrontendRow {
        address: key.addr.to_string(),
        port: key.port,
        protocol: Proto::from_number(key.proto.into()).map_or("?", Proto::name),
        kind: Kind::from_number(frontend.kind).map_or("?", Kind::name),
        service: name_of(dump, frontend.service),
        service_id: frontend.service,
    };
    dump.frontends.iter().map(row).collect()
}

/// All backends, by service port and address.
#[must_use]
pub fn backends(dump: &Dump) -> Vec<BackendRow> {
    let mut lists = std::collections::BTreeMap::<u32, Vec<&'static str>>::new();
    for (key, Slot { backend, .. }) in &dump.slots {
        let name = if key.list == List::Cluster as u32 { "cluster" } else { "local" };
        lists.entry(*backend).or_default().push(name);
    }
    let mut rows: Vec<_> = dump.backends.iter().collect();
    rows.sort_by_key(|(_, backend)| (dump.names.get(&backend.service), backend.addr, backend.port));
    let row = |(id, backend): (&u32, &lb_common::Backend)| BackendRow {
        service: name_of(dump, backend.service),
        address: backend.addr.to_string(),
        port: backend.port,
        lists: lists.remove(id).unwrap_or_default(),
        id: *id,
    };
    rows.into_iter().map(row).collect()
}

/// Events that the programs count.
#[must_use]
pub fn counters(counts: &[(Counter, u64)]) -> Vec<CounterRow> {
    counts.iter().map(|(counter, count)| CounterRow { counter: counter.name(), count: *count }).collect()
}

/// A number of things.
#[must_use]
pub fn number(count: usize, one: &str) -> String {
    if count == 1 { format!("1 {one}") } else { format!("{count} {one}s") }
}

/// `address:port`, with brackets for IPv6.
#[must_use]
pub fn address(key: &FrontendKey) -> String {
    std::net::SocketAddr::new(key.addr.to_ip(), key.port).to_string()
}
