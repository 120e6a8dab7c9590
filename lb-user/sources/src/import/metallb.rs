//! Objects of MetalLB: its pools (api/v1beta1/ipaddresspool_types.go, internal/allocator/allocator.go), and advice
//! about the objects by which it announces addresses.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};

use super::{Notes, Pool, ranges};
use crate::convert::NAMESPACE_NAME;

/// Advice on everything that BGP needs.
const ROUTES: &str = "run the agents with --lb-routes TABLE, and let BIRD or FRR on the nodes announce that table \
                      (docs/operate/load-balancer-addresses.md, \"Announce by routes\")";

/// `spec` of an IPAddressPool, and of its predecessor AddressPool.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct PoolSpec {
    addresses: Vec<String>,
    auto_assign: Option<bool>,
    #[serde(rename = "avoidBuggyIPs")]
    avoid_buggy_ips: Option<bool>,
    service_allocation: Option<ServiceAllocation>,
    /// Protocol of an AddressPool: `layer2` or `bgp`.
    protocol: Option<String>,
    #[serde(flatten)]
    other: BTreeMap<String, Value>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ServiceAllocation {
    priority: Option<u32>,
    namespaces: Vec<String>,
    namespace_selectors: Vec<Value>,
    service_selectors: Vec<Value>,
    #[serde(flatten)]
    other: BTreeMap<String, Value>,
}

/// Converts a pool.
pub(super) fn pool(object: &Value, notes: &mut Notes<'_>) -> Pool {
    let spec: PoolSpec = notes.spec(object);
    notes.unknown("spec", &spec.other);
    if let Some(protocol) = &spec.protocol {
        notes.note(format!(
            "spec.protocol {protocol}: has no place in a pool; see L2Advertisement and BGPAdvertisement"
        ));
    }
    let mut pool = Pool { is_on_request: spec.auto_assign == Some(false), ..Pool::default() };
    for text in spec.addresses {
        // The parser of AddressPools tells what is wrong with a text.
        let Some((first, last)) = ranges::ends(&text) else {
            pool.addresses.push(text);
            continue;
        };
        let entries = match spec.avoid_buggy_ips {
            Some(true) => ranges::without_zero_and_255(first, last),
            _ => Some(vec![ranges::range(first, last)]),
        };
        pool.addresses.extend(entries.unwrap_or_else(|| {
            notes.error(format!(
                "spec.avoidBuggyIPs: {text} would take an entry for each block of 256 addresses, and a pool has 1024; \
                 the addresses that end in .0 and .255 are left in: write a smaller range"
            ));
            vec![ranges::range(first, last)]
        }));
    }
    if let Some(allocation) = spec.service_allocation {
        notes.unknown("spec.serviceAllocation", &allocation.other);
        // MetalLB gives the priority 0 to a pool without a priority.
        pool.priority = allocation.priority.filter(|priority| *priority != 0);
        if !allocation.namespaces.is_empty() {
            pool.namespace_selectors.push(json!({
                "matchExpressions": [{"key": NAMESPACE_NAME, "operator": "In", "values": allocation.namespaces}],
            }));
        }
        pool.namespace_selectors.extend(allocation.namespace_selectors);
        pool.service_selectors = allocation.service_selectors;
    }
    pool
}

/// `spec` of a BGPAdvertisement.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct BgpAdvertisementSpec {
    aggregation_length: Option<u8>,
    #[serde(rename = "aggregationLengthV6")]
    aggregation_length_v6: Option<u8>,
    local_pref: Option<u32>,
    communities: Vec<String>,
    #[serde(rename = "ipAddressPools")]
    pools: Vec<String>,
    #[serde(rename = "ipAddressPoolSelectors")]
    pool_selectors: Vec<Value>,
    node_selectors: Vec<Value>,
    service_selectors: Vec<Value>,
    peers: Vec<String>,
    #[serde(flatten)]
    other: BTreeMap<String, Value>,
}

/// `spec` of a BGPPeer.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct BgpPeerSpec {
    #[serde(rename = "myASN")]
    own_as: Option<u32>,
    #[serde(rename = "peerASN")]
    peer_as: Option<u32>,
    peer_address: Option<String>,
    #[serde(flatten)]
    other: BTreeMap<String, Value>,
}

/// `spec` of an L2Advertisement.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct L2AdvertisementSpec {
    #[serde(rename = "ipAddressPools")]
    pools: Vec<String>,
    #[serde(rename = "ipAddressPoolSelectors")]
    pool_selectors: Vec<Value>,
    node_selectors: Vec<Value>,
    interfaces: Vec<String>,
    #[serde(flatten)]
    other: BTreeMap<String, Value>,
}

/// Fields of a spec that are set, with their values, for an operator to write elsewhere. Passwords are only named.
fn set_fields(fields: &BTreeMap<String, Value>) -> String {
    let is_set = |value: &Value| match value {
        Value::Null | Value::Bool(false) => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(values) => !values.is_empty(),
        Value::Object(values) => !values.is_empty(),
        Value::Bool(true) | Value::Number(_) => true,
    };
    let field = |(name, value): (&String, &Value)| match value {
        _ if name == "password" => name.clone(),
        Value::String(text) => format!("{name} {text}"),
        value => format!("{name} {value}"),
    };
    fields.iter().filter(|(_, value)| is_set(value)).map(field).collect::<Vec<_>>().join(", ")
}

/// Advises about an object that is no pool.
pub(super) fn advise(kind: &str, object: &Value, notes: &mut Notes<'_>) {
    match kind {
        "L2Advertisement" => advise_l2(&notes.spec(object), notes),
        "BGPAdvertisement" => advise_bgp(&notes.spec(object), notes),
        "BGPPeer" => {
            let spec: BgpPeerSpec = notes.spec(object);
            let number = |number: Option<u32>| number.map_or_else(|| "unknown".to_owned(), |number| number.to_string());
            notes.note(format!(
                "a neighbour in the configuration of BIRD or FRR: address {}, AS {}, own AS {}{}",
                spec.peer_address.as_deref().unwrap_or("unknown"),
                number(spec.peer_as),
                number(spec.own_as),
                also(&spec.other)
            ));
        }
        "BFDProfile" | "Community" => {
            let fields = also(&notes.spec(object));
            notes.note(format!("belongs in the configuration of BIRD or FRR{fields}"));
        }
        // MetalLB's own reports.
        "ServiceL2Status" | "ServiceBGPStatus" | "ConfigurationState" => {}
        _ => notes.error("a kind of MetalLB that this version does not know; see what it is for, and do that by hand"),
    }
}

/// The fields of a spec that are set, as the end of a note.
fn also(fields: &BTreeMap<String, Value>) -> String {
    match set_fields(fields).as_str() {
        "" => String::new(),
        fields => format!("; it sets {fields}"),
    }
}

fn advise_l2(spec: &L2AdvertisementSpec, notes: &mut Notes<'_>) {
    notes.note(
        "`beeline run --announce` takes its place: one group of nodes announces all pools, at all uplinks. Keep \
         MetalLB's speakers, with this object and its pools, until then",
    );
    notes.unknown("spec", &spec.other);
    if !spec.pools.is_empty() || !spec.pool_selectors.is_empty() {
        notes.note(
            "spec.ipAddressPools, spec.ipAddressPoolSelectors: the addresses of other pools are announced too; on a \
             link only hosts with a route to them ask for them",
        );
    }
    if !spec.node_selectors.is_empty() {
        notes.note(format!(
            "spec.nodeSelectors {}: give these nodes one label, and name it: --announce=LABEL",
            Value::from(spec.node_selectors.clone())
        ));
    }
    if !spec.interfaces.is_empty() {
        notes.note(format!(
            "spec.interfaces {}: the agent answers at all uplinks; --devices names them, for NodePorts as well",
            spec.interfaces.join(", ")
        ));
    }
}

fn advise_bgp(spec: &BgpAdvertisementSpec, notes: &mut Notes<'_>) {
    notes.note(format!("no counterpart as an object: {ROUTES}"));
    notes.unknown("spec", &spec.other);
    for (field, length, own) in
        [("aggregationLength", spec.aggregation_length, 32), ("aggregationLengthV6", spec.aggregation_length_v6, 128)]
    {
        if let Some(length) = length.filter(|length| *length != own) {
            notes.note(format!(
                "spec.{field} {length}: the table has a route for each address; announce the prefix instead, in BIRD \
                 by a static protocol, in FRR by `aggregate-address … summary-only`"
            ));
        }
    }
    if let Some(preference) = spec.local_pref {
        notes.note(format!(
            "spec.localPref: in BIRD `bgp_local_pref = {preference};` in the export filter, in FRR `set \
             local-preference {preference}` in a route-map"
        ));
    }
    if !spec.communities.is_empty() {
        notes.note(format!(
            "spec.communities {}: in BIRD `bgp_community.add(…)` in the export filter, in FRR `set community` in a \
             route-map",
            spec.communities.join(", ")
        ));
    }
    if !spec.peers.is_empty() {
        notes.note(format!("spec.peers {}: export the table to these neighbours alone", spec.peers.join(", ")));
    }
    if !spec.pools.is_empty() || !spec.pool_selectors.is_empty() {
        notes.note(
            "spec.ipAddressPools, spec.ipAddressPoolSelectors: the table has the addresses of all pools; filter \
                    by the prefixes of these where other pools must not be announced",
        );
    }
    if !spec.node_selectors.is_empty() {
        notes.note(
            "spec.nodeSelectors: run BIRD or FRR on these nodes alone, or give the others the label \
             node.kubernetes.io/exclude-from-external-load-balancers",
        );
    }
    if !spec.service_selectors.is_empty() {
        notes.note("spec.serviceSelectors: give these Services a pool of their own, and filter by its prefixes");
    }
}

/// Advises about the ConfigMap of MetalLB before 0.13.
pub(super) fn advise_config_map(object: &Value, notes: &mut Notes<'_>) {
    let config = object.pointer("/data/config").and_then(Value::as_str);
    if config.is_some_and(|text| text.contains("address-pools:")) {
        notes.error(
            "the configuration of MetalLB before 0.13, which is not read; write its pools by hand, or update MetalLB \
             first",
        );
    }
}
