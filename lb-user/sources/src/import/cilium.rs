//! Objects of Cilium: the pools of its LB IPAM (pkg/k8s/apis/cilium.io/v2/lbipam_types.go, operator/pkg/lbipam), and
//! advice about the objects by which it announces addresses.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{Notes, Pool, ranges};
use crate::convert::NAMESPACE_NAME;

/// In a selector of Services, the namespace of the Service.
const NAMESPACE: &str = "io.kubernetes.service.namespace";
/// In a selector of Services, the name of the Service.
const NAME: &str = "io.kubernetes.service.name";

/// `spec` of a CiliumLoadBalancerIPPool.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct PoolSpec {
    /// `cidrs` before Cilium 1.15.
    #[serde(alias = "cidrs")]
    blocks: Vec<Block>,
    disabled: Option<bool>,
    #[serde(rename = "allowFirstLastIPs")]
    allow_first_last_ips: Option<String>,
    service_selector: Option<Selector>,
    #[serde(flatten)]
    other: BTreeMap<String, Value>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Block {
    cidr: Option<String>,
    start: Option<String>,
    stop: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Selector {
    match_labels: Option<Map<String, Value>>,
    match_expressions: Option<Vec<Value>>,
    #[serde(flatten)]
    other: BTreeMap<String, Value>,
}

/// Converts a pool.
pub(super) fn pool(object: &Value, notes: &mut Notes<'_>) -> Pool {
    let spec: PoolSpec = notes.spec(object);
    notes.unknown("spec", &spec.other);
    let has_edges = spec.allow_first_last_ips.as_deref() != Some("No");
    let mut pool = Pool { is_on_request: spec.disabled == Some(true), ..Pool::default() };
    if pool.is_on_request {
        notes.note(
            "spec.disabled: becomes allotment OnRequest, so that a Service still gets an address by asking for it",
        );
    }
    pool.addresses.extend(spec.blocks.iter().map(|block| entry(block, has_edges)));
    if let Some(selector) = spec.service_selector {
        select(selector, &mut pool, notes);
    }
    pool
}

/// Writes a block. The parser of AddressPools tells what is wrong with one.
fn entry(block: &Block, has_edges: bool) -> String {
    let Some(cidr) = &block.cidr else {
        let start = block.start.as_deref().unwrap_or_default();
        return match &block.stop {
            Some(stop) if stop != start => format!("{start}-{stop}"),
            _ => start.to_owned(),
        };
    };
    let Ok(prefix) = cidr.parse::<IpNet>() else { return cidr.clone() };
    let (first, last) = (prefix.network(), prefix.broadcast());
    // Prefixes of one and of two addresses keep them.
    if has_edges || prefix.max_prefix_len() - prefix.prefix_len() < 2 {
        return ranges::range(first, last);
    }
    match (first, last) {
        (IpAddr::V4(first), IpAddr::V4(last)) => {
            ranges::range(IpAddr::from((first.to_bits() + 1).to_be_bytes()), (last.to_bits() - 1).to_be_bytes().into())
        }
        (IpAddr::V6(first), IpAddr::V6(last)) => {
            ranges::range(IpAddr::from((first.to_bits() + 1).to_be_bytes()), (last.to_bits() - 1).to_be_bytes().into())
        }
        _ => cidr.clone(),
    }
}

/// Divides a selector into that of the namespaces and that of the Services.
fn select(selector: Selector, pool: &mut Pool, notes: &mut Notes<'_>) {
    notes.unknown("spec.serviceSelector", &selector.other);
    let equal = selector.match_labels.into_iter().flatten();
    let equal = equal.map(|(key, value)| json!({"key": key, "operator": "In", "values": [value]}));
    let (mut of_namespaces, mut of_services) = (Vec::new(), Vec::new());
    for mut requirement in equal.chain(selector.match_expressions.into_iter().flatten()) {
        match requirement.get("key").and_then(Value::as_str) {
            Some(NAMESPACE) => {
                if let Some(key) = requirement.get_mut("key") {
                    *key = NAMESPACE_NAME.into();
                }
                of_namespaces.push(requirement);
            }
            Some(NAME) => {
                notes.error(format!(
                    "spec.serviceSelector: {NAME} becomes a label of that name, as AddressPools do not select by name; \
                     set it: kubectl label service NAME {NAME}=NAME"
                ));
                of_services.push(requirement);
            }
            _ => of_services.push(requirement),
        }
    }
    for (requirements, selectors) in
        [(of_namespaces, &mut pool.namespace_selectors), (of_services, &mut pool.service_selectors)]
    {
        if !requirements.is_empty() {
            selectors.push(json!({"matchExpressions": requirements}));
        }
    }
}

/// Advises about an object that is no pool.
pub(super) fn advise(kind: &str, notes: &mut Notes<'_>) {
    match kind {
        "CiliumL2AnnouncementPolicy" => notes.note(
            "`beeline run --announce` takes its place: one group of nodes announces all addresses, at all uplinks",
        ),
        "CiliumBGPPeeringPolicy"
        | "CiliumBGPClusterConfig"
        | "CiliumBGPPeerConfig"
        | "CiliumBGPAdvertisement"
        | "CiliumBGPNodeConfigOverride" => notes.note(
            "no counterpart as an object: run the agents with --lb-routes TABLE, and let BIRD or FRR on the nodes \
             announce that table (docs/operate/load-balancer-addresses.md, \"Announce by routes\")",
        ),
        // Objects that do not concern load balancer addresses.
        _ => {}
    }
}
