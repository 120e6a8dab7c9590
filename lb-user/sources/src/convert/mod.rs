//! Conversion of API objects to `lb_core::objects`. It never fails: a wrong value is dropped and becomes a text, with
//! its cure, in the object's `problems`. Decisions that need a second object are left to `lb_core::model`.

mod address;
mod address_pool;
mod address_request;
mod annotations;
mod endpoints;
mod host_ports;
mod kinds;
mod pod_modes;
mod service;
mod slice;

use std::{collections::BTreeSet, fmt, net::IpAddr, num::NonZeroU16, sync::Arc, time::SystemTime};

use address::{addr, parse_ip};
pub(crate) use address_pool::address_pool;
pub use address_request::{ADDRESS_CONDITION, BalancerClass};
pub(crate) use address_request::{address_condition, address_request, ingress_addresses, is_address_annotation};
use endpoints::endpoints;
use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
pub use kinds::ApiObject;
use lb_common::Proto;
pub(crate) use pod_modes::{LABEL as POD_MODE_LABEL, NETNS};
use pod_modes::{namespace, pod};
use service::service;
use slice::endpoint_slice;

use super::api;
use lb_core::objects::{EndpointPort, Key, Node};

/// Label that the API server gives every Namespace.
pub(crate) const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

/// Label by which the controllers of Kubernetes mark slices of headless Services. kube-proxy does not watch them
/// (cmd/kube-proxy/app/server.go).
pub(crate) const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";

/// Converts a v1 Node.
fn node(object: &api::Node) -> Node {
    let meta = &object.metadata;
    Node {
        name: text(meta.name.as_deref()),
        zone: label(meta, "topology.kubernetes.io/zone").filter(|zone| !zone.is_empty()).map(Arc::from),
        internal_ips: internal_ips(object),
        leaving: is_leaving(object),
        attracts: attracts(object),
        ready: condition(object, "Ready") != Some("False"),
        labels: meta.labels.clone().unwrap_or_default(),
    }
}

/// Returns the ranges of a ServiceCIDR; texts that are no range are ignored, since the API server validates them.
pub(crate) fn service_cidr(object: &api::ServiceCIDR) -> Vec<IpNet> {
    let cidrs = object.spec.as_ref().map_or(&[][..], |spec| list(&spec.cidrs));
    cidrs.iter().filter_map(|cidr| cidr.parse().ok()).collect()
}

/// The taint that the cluster autoscaler sets before it removes a node (kube-proxy,
/// pkg/proxy/healthcheck/proxy_health.go).
const TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";

fn is_leaving(object: &api::Node) -> bool {
    let taints = object.spec.as_ref().map_or(&[][..], |spec| list(&spec.taints));
    object.metadata.deletion_timestamp.is_some() || taints.iter().any(|taint| taint.key == TO_BE_DELETED)
}

/// Label of nodes to which load balancers lead no clients (k8s.io/cloud-provider, controllers/service).
const EXCLUDED: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

fn attracts(object: &api::Node) -> bool {
    let is_cordoned = object.spec.as_ref().and_then(|spec| spec.unschedulable).unwrap_or(false);
    let has_network = condition(object, "NetworkUnavailable") != Some("True");
    !is_leaving(object) && !is_cordoned && !is_excluded(object) && has_network
}

/// The status of a condition of a Node: `True`, `False` or `Unknown`.
fn condition<'a>(object: &'a api::Node, type_: &str) -> Option<&'a str> {
    let conditions = object.status.as_ref().map_or(&[][..], |status| list(&status.conditions));
    conditions.iter().find(|condition| condition.type_ == type_).map(|condition| condition.status.as_str())
}

/// True if load balancers shall lead no clients to the node, whatever its state.
pub(crate) fn is_excluded(object: &api::Node) -> bool {
    label(&object.metadata, EXCLUDED).is_some()
}

/// Returns the time of the change for which endpoints were written. An unreadable time counts as none: it only feeds a
/// metric.
fn triggered(meta: &ObjectMeta) -> Option<SystemTime> {
    let text = meta.annotations.as_ref()?.get("endpoints.kubernetes.io/last-change-trigger-time")?;
    text.parse::<k8s_openapi::jiff::Timestamp>().ok().map(Into::into)
}

/// Lists the addresses of type InternalIP, which kubelet writes; texts that are no address are ignored.
pub(crate) fn internal_ips(object: &api::Node) -> Vec<IpAddr> {
    let addresses = object.status.as_ref().map_or(&[][..], |status| list(&status.addresses));
    addresses.iter().filter(|address| address.type_ == "InternalIP").filter_map(|a| parse_ip(&a.address)).collect()
}

/// Lists all addresses of a Node; names among them are ignored.
pub(crate) fn node_addresses(object: &api::Node) -> BTreeSet<IpAddr> {
    let addresses = object.status.as_ref().map_or(&[][..], |status| list(&status.addresses));
    addresses.iter().filter_map(|address| parse_ip(&address.address)).collect()
}

/// Returns namespace and name of an object.
pub(crate) fn key(meta: &ObjectMeta) -> Key {
    Key::new(meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default())
}

fn text(text: Option<&str>) -> Arc<str> {
    Arc::from(text.unwrap_or_default())
}

fn label<'a>(meta: &'a ObjectMeta, name: &str) -> Option<&'a str> {
    meta.labels.as_ref()?.get(name).map(String::as_str)
}

/// Returns the list, or an empty one if it is absent or null.
fn list<T>(list: &Option<Vec<T>>) -> &[T] {
    list.as_deref().unwrap_or_default()
}

/// Parses protocol and number of the port in the field `place`, or adds a problem.
fn port(problems: &mut Vec<String>, place: fmt::Arguments<'_>, port: &api::Port) -> Option<(Proto, NonZeroU16)> {
    let proto = protocol(problems, place, port.protocol.as_deref())?;
    Some((proto, number(problems, format_args!("{place}.port"), port.port)?))
}

/// Parses the protocol of the port in the field `place`, or adds a problem.
fn protocol(problems: &mut Vec<String>, place: fmt::Arguments<'_>, protocol: Option<&str>) -> Option<Proto> {
    match protocol {
        None | Some("" | "TCP") => Some(Proto::Tcp),
        Some("UDP") => Some(Proto::Udp),
        Some("SCTP") => Some(Proto::Sctp),
        Some(other) => {
            problems.push(format!("{place}.protocol {other:?}: unknown; use TCP, UDP or SCTP"));
            None
        }
    }
}

/// Parses the port number in the field `place`, or adds a problem.
fn number(problems: &mut Vec<String>, place: fmt::Arguments<'_>, number: Option<i64>) -> Option<NonZeroU16> {
    let parsed = number.and_then(|number| u16::try_from(number).ok()).and_then(NonZeroU16::new);
    if parsed.is_none() {
        problems.push(match number {
            None => format!("{place}: missing; give it a number from 1 to 65535"),
            Some(number) => format!("{place} {number}: not a port; use 1 to 65535"),
        });
    }
    parsed
}

/// Treatment of a port without a name.
#[derive(Clone, Copy)]
enum Nameless {
    /// In a subset of Endpoints it is the unnamed port.
    Unnamed,
    /// In an EndpointSlice it is ignored, as kube-proxy does. The API server turns an absent name into an empty one.
    Ignored,
}

/// Converts the ports of an endpoint group; `place` is the field of the list.
fn endpoint_ports(
    problems: &mut Vec<String>,
    place: fmt::Arguments<'_>,
    ports: &[api::Port],
    nameless: Nameless,
) -> Vec<EndpointPort> {
    let mut converted = Vec::with_capacity(ports.len());
    for (i, object) in ports.iter().enumerate() {
        let name = match (object.name.as_deref(), nameless) {
            (Some(name), _) => name,
            (None, Nameless::Unnamed) => "",
            (None, Nameless::Ignored) => {
                problems
                    .push(format!("{place}[{i}]: no name; give it the name of the Service port, \"\" if it has none"));
                continue;
            }
        };
        if let Some((proto, port)) = port(problems, format_args!("{place}[{i}]"), object) {
            converted.push(EndpointPort { name: name.into(), proto, port });
        }
    }
    converted
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Decodes an API object from YAML.
    pub(super) fn yaml<T: serde::de::DeserializeOwned>(text: &str) -> T {
        serde_saphyr::from_str(text).unwrap()
    }

    #[test]
    fn zone_of_a_node_is_its_topology_label() {
        let check = |text: &str, zone: Option<&str>| {
            let node = node(&yaml(text));
            assert_eq!((&*node.name, node.zone.as_deref()), ("n", zone));
        };
        check("metadata: {name: n, labels: {topology.kubernetes.io/zone: z1}}", Some("z1"));
        check("metadata: {name: n, labels: {topology.kubernetes.io/zone: ''}}", None);
        check("metadata: {name: n, labels: {failure-domain.beta.kubernetes.io/zone: z1}}", None);
        check("metadata: {name: n}", None);
    }

    #[test]
    fn internal_addresses_of_a_node_are_read() {
        let check = |status: &str, expected: &[&str]| {
            let node = node(&yaml(&format!("metadata: {{name: n}}\nstatus: {status}")));
            let internal_ips: Vec<String> = node.internal_ips.iter().map(ToString::to_string).collect();
            assert_eq!(internal_ips, expected, "{status}");
        };
        check("null", &[]);
        check("{}", &[]);
        check("{addresses: null}", &[]);
        check(
            "{addresses: [{type: Hostname, address: n}, {type: ExternalIP, address: 192.0.2.1}, \
             {type: InternalIP, address: 'fd00::1'}, {type: InternalIP, address: 10.0.0.01}, \
             {type: InternalIP, address: n}]}",
            &["fd00::1", "10.0.0.1"],
        );
    }

    #[test]
    fn a_node_is_leaving_if_it_is_deleted_or_tainted_by_the_autoscaler() {
        let check = |text: &str, leaving: bool| assert_eq!(node(&yaml(text)).leaving, leaving, "{text}");
        check("metadata: {name: n}", false);
        check("{metadata: {name: n}, spec: null}", false);
        check("{metadata: {name: n}, spec: {taints: null}}", false);
        check(
            "{metadata: {name: n}, spec: {taints: [{key: node.kubernetes.io/unschedulable, effect: NoSchedule}]}}",
            false,
        );
        let taint = "{key: ToBeDeletedByClusterAutoscaler, value: '1700000000', effect: NoSchedule}";
        check(&format!("{{metadata: {{name: n}}, spec: {{taints: [{{key: a}}, {taint}]}}}}"), true);
        check("metadata: {name: n, deletionTimestamp: '2026-01-01T00:00:00Z'}", true);
    }

    #[test]
    fn a_node_attracts_no_clients_while_it_is_excluded_cordoned_or_leaving() {
        let check = |text: &str, expected: bool| assert_eq!(node(&yaml(text)).attracts, expected, "{text}");
        check("metadata: {name: n}", true);
        check("{metadata: {name: n}, spec: {unschedulable: false}}", true);
        check("{metadata: {name: n}, spec: {unschedulable: true}}", false);
        check("metadata: {name: n, labels: {node.kubernetes.io/exclude-from-external-load-balancers: ''}}", false);
        check("{metadata: {name: n}, spec: {taints: [{key: ToBeDeletedByClusterAutoscaler}]}}", false);
    }

    #[test]
    fn a_node_attracts_no_clients_without_a_network_and_is_ready_unless_its_kubelet_denies_it() {
        let check = |conditions: &str, attracts: bool, ready: bool| {
            let node = node(&yaml(&format!("{{metadata: {{name: n}}, status: {{conditions: {conditions}}}}}")));
            assert_eq!((node.attracts, node.ready), (attracts, ready), "{conditions}");
        };
        check("null", true, true);
        check("[]", true, true);
        check("[{type: NetworkUnavailable, status: 'False'}, {type: Ready, status: 'True'}]", true, true);
        check("[{type: NetworkUnavailable, status: 'True'}, {type: Ready, status: 'True'}]", false, true);
        check("[{type: Ready, status: 'False'}]", true, false);
        check("[{type: Ready, status: Unknown}]", true, true);
    }

    #[test]
    fn a_trigger_time_is_read_to_the_nanosecond_or_ignored() {
        let check = |text: &str, expected: Option<std::time::Duration>| {
            let name = "endpoints.kubernetes.io/last-change-trigger-time".to_owned();
            let meta = ObjectMeta { annotations: Some([(name, text.to_owned())].into()), ..ObjectMeta::default() };
            let expected = expected.map(|since| SystemTime::UNIX_EPOCH + since);
            assert_eq!(triggered(&meta), expected, "{text}");
        };
        check("1970-01-01T00:01:00Z", Some(std::time::Duration::from_secs(60)));
        check("1970-01-01T00:00:01.000000007Z", Some(std::time::Duration::new(1, 7)));
        check("yesterday", None);
        check("", None);
        assert_eq!(triggered(&ObjectMeta::default()), None);
    }

    #[test]
    fn port_has_a_known_protocol_and_a_number() {
        let check = |text: &str, expected: Result<(Proto, u16), &str>| {
            let mut problems = Vec::new();
            let converted = port(&mut problems, format_args!("ports[0]"), &yaml(text));
            let converted = converted.map(|(proto, number)| (proto, number.get())).ok_or(problems);
            assert_eq!(converted, expected.map_err(|problem| vec![problem.to_owned()]), "{text}");
        };
        check("{port: 80}", Ok((Proto::Tcp, 80)));
        check("{port: 80, protocol: TCP}", Ok((Proto::Tcp, 80)));
        check("{port: 53, protocol: UDP}", Ok((Proto::Udp, 53)));
        check("{port: 65535, protocol: SCTP}", Ok((Proto::Sctp, 65535)));
        check("{port: 80, protocol: tcp}", Err("ports[0].protocol \"tcp\": unknown; use TCP, UDP or SCTP"));
        check("{name: a}", Err("ports[0].port: missing; give it a number from 1 to 65535"));
        check("{port: 0}", Err("ports[0].port 0: not a port; use 1 to 65535"));
        check("{port: -1}", Err("ports[0].port -1: not a port; use 1 to 65535"));
        check("{port: 65536}", Err("ports[0].port 65536: not a port; use 1 to 65535"));
    }
}
