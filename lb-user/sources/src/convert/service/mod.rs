//! Conversion of a v1 Service.

use std::{
    fmt,
    net::IpAddr,
    num::{NonZeroU16, NonZeroU32},
    sync::Arc,
};

use ipnet::IpNet;

use super::{
    address::{addr, is_standard_range, parse_ip, parse_range},
    address_request::{ALLOTTED, BalancerClass, address_condition},
    annotations, key, label, list, port, text,
};
use crate::api;
use lb_core::objects::{AddressReport, Exempt, Policy, RangePolicy, Selector, Service, ServicePort};

/// The API's default timeout.
const AFFINITY_SECONDS: NonZeroU32 = NonZeroU32::new(10_800).expect("it is not 0");
/// Longest timeout that the API accepts: a day.
const MAX_AFFINITY_SECONDS: u32 = 86_400;

/// Converts a v1 Service. `proxy_name` is the value of `--service-proxy-name`.
pub(super) fn service(object: &api::Service, proxy_name: Option<&str>) -> Service {
    let meta = &object.metadata;
    let default = api::ServiceSpec::default();
    let spec = object.spec.as_ref().unwrap_or(&default);
    let mut problems = Vec::new();

    let (cluster_place, cluster_ips) = cluster_ips(spec);
    let exempt = exempt(object, spec, &cluster_ips, proxy_name);
    let mut addrs = |place: &str, texts: &[&str]| {
        let mut converted = Vec::with_capacity(texts.len());
        for (i, text) in texts.iter().enumerate() {
            converted.extend(addr(&mut problems, format_args!("{place}[{i}]"), text));
        }
        converted
    };
    let cluster_ips = match exempt {
        None => addrs(cluster_place, &cluster_ips),
        Some(_) => Vec::new(),
    };
    let external_ips: Vec<&str> = list(&spec.external_ips).iter().map(String::as_str).collect();
    let external_ips = addrs("externalIPs", &external_ips);
    let ingress_ips = ingress_ips(object, &mut problems);

    let node_ports = node_ports(spec, &mut problems);
    let mut ports = Vec::with_capacity(list(&spec.ports).len());
    for (i, port_object) in list(&spec.ports).iter().enumerate() {
        if let Some((proto, port)) = port(&mut problems, format_args!("ports[{i}]"), port_object) {
            let node_port = node_port(port_object, format_args!("ports[{i}].nodePort"), node_ports, &mut problems);
            ports.push(ServicePort { name: text(port_object.name.as_deref()), proto, port, node_port, ranges: None });
        }
    }

    if exempt.is_none() {
        let ranges = annotations::port_ranges(meta, &mut problems);
        ports.extend(ranges.into_iter().filter_map(ServicePort::of_ranges));
    }

    let internal_policy = policy("internalTrafficPolicy", spec.internal_traffic_policy.as_deref(), &mut problems);
    let external_policy = policy("externalTrafficPolicy", spec.external_traffic_policy.as_deref(), &mut problems);
    let external_policy = if is_externally_accessible(spec) { external_policy } else { Policy::Cluster };
    let affinity_seconds = affinity_seconds(spec, &mut problems);
    let tuning = annotations::tuning(meta, &mut problems);
    let range_policy = tuning.as_deref().map(|tuning| tuning.range_policy).unwrap_or_default();
    let (source_ranges, source_ranges_unreadable) = source_ranges(spec, range_policy, &mut problems);
    let health_port = health_port(spec, external_policy, &mut problems);

    Service {
        key: key(meta),
        created: meta.creation_timestamp.as_ref().map(|time| time.0.as_second()),
        exempt,
        selector: if spec.selector.as_ref().is_some_and(|s| !s.is_empty()) { Selector::Some } else { Selector::None },
        cluster_ips,
        external_ips,
        ingress_ips,
        ports: ports.into(),
        internal_policy,
        external_policy,
        affinity_seconds,
        tuning,
        source_ranges,
        source_ranges_unreadable,
        health_port,
        pod: None,
        address_report: address_report(object),
        problems,
    }
}

/// Reads the condition that `beeline lb` writes; none on a Service that it does not serve.
fn address_report(object: &api::Service) -> Option<Arc<AddressReport>> {
    // The condition of a former type stays.
    BalancerClass::of(object)?;
    let condition = address_condition(object)?;
    let is_clean = condition.reason == ALLOTTED;
    Some(Arc::new(AddressReport { is_clean, message: condition.message.clone() }))
}

/// True if the external traffic policy counts (pkg/api/v1/service/util.go `ExternalPolicyLocal`). A Service of another
/// type may have load balancer addresses in its status, from older API servers.
fn is_externally_accessible(spec: &api::ServiceSpec) -> bool {
    matches!(spec.type_.as_deref(), Some("NodePort" | "LoadBalancer")) || !list(&spec.external_ips).is_empty()
}

/// Effect of the Service's type on its node ports.
#[derive(Clone, Copy, PartialEq, Eq)]
enum NodePorts {
    Served,
    /// Not served: the API allows no node ports for this type.
    NotOfType,
    /// Not served, as the whole Service is not.
    Irrelevant,
}

fn node_ports(spec: &api::ServiceSpec, problems: &mut Vec<String>) -> NodePorts {
    match spec.type_.as_deref() {
        Some("NodePort" | "LoadBalancer") => NodePorts::Served,
        Some("ExternalName") => NodePorts::Irrelevant,
        None | Some("" | "ClusterIP") => NodePorts::NotOfType,
        Some(other) => {
            problems.push(format!(
                "type {other:?}: unknown, ClusterIP is used; write ClusterIP, NodePort, LoadBalancer or ExternalName"
            ));
            NodePorts::NotOfType
        }
    }
}

/// Parses the node port in the field `place`. 0 is none: a load balancer with `allocateLoadBalancerNodePorts: false`.
fn node_port(
    object: &api::Port,
    place: fmt::Arguments<'_>,
    node_ports: NodePorts,
    problems: &mut Vec<String>,
) -> Option<NonZeroU16> {
    let number = object.node_port.filter(|&number| number != 0)?;
    let port = u16::try_from(number).ok().and_then(NonZeroU16::new);
    match node_ports {
        NodePorts::Served if port.is_none() => problems.push(format!("{place} {number}: not a port; use 1 to 65535")),
        NodePorts::NotOfType => problems.push(format!(
            "{place} {number}: not served, since the type is ClusterIP; make it NodePort or LoadBalancer, or remove \
             this"
        )),
        NodePorts::Served | NodePorts::Irrelevant => {}
    }
    port.filter(|_| node_ports == NodePorts::Served)
}

fn policy(name: &str, text: Option<&str>, problems: &mut Vec<String>) -> Policy {
    match text {
        None | Some("" | "Cluster") => Policy::Cluster,
        Some("Local") => Policy::Local,
        Some(other) => {
            problems.push(format!("{name} {other:?}: unknown, Cluster is used; write Cluster or Local"));
            Policy::Cluster
        }
    }
}

fn affinity_seconds(spec: &api::ServiceSpec, problems: &mut Vec<String>) -> Option<NonZeroU32> {
    match spec.session_affinity.as_deref() {
        None | Some("" | "None") => return None,
        Some("ClientIP") => {}
        Some(other) => {
            problems.push(format!("sessionAffinity {other:?}: unknown, None is used; write None or ClientIP"));
            return None;
        }
    }
    let number = spec.session_affinity_config.and_then(|config| config.client_ip?.timeout_seconds);
    let Some(number) = number else { return Some(AFFINITY_SECONDS) };
    let seconds = u32::try_from(number).ok().filter(|&seconds| seconds <= MAX_AFFINITY_SECONDS);
    let seconds = seconds.and_then(NonZeroU32::new);
    if seconds.is_none() {
        problems.push(format!(
            "sessionAffinityConfig.clientIP.timeoutSeconds {number}: out of range, {AFFINITY_SECONDS} is used; \
             use 1 to {MAX_AFFINITY_SECONDS}"
        ));
    }
    seconds.or(Some(AFFINITY_SECONDS))
}

/// Parses `loadBalancerSourceRanges`. The API allows white space around a range. An unreadable range lets in no client.
/// If no range is readable, no client is let in at all; kube-proxy would let in every client then. Nor is one if the
/// ranges keep clients out and one is unreadable: its clients are not known.
fn source_ranges(spec: &api::ServiceSpec, policy: RangePolicy, problems: &mut Vec<String>) -> (Vec<IpNet>, bool) {
    let texts = list(&spec.load_balancer_source_ranges);
    let mut ranges = Vec::with_capacity(texts.len());
    for (i, text) in texts.iter().map(|text| text.trim()).enumerate() {
        let mut problem = |cure: fmt::Arguments<'_>| {
            problems.push(format!("loadBalancerSourceRanges[{i}] {text:?}: {cure}"));
        };
        match (parse_range(text), parse_ip(text)) {
            (Some(range), _) => {
                if !is_standard_range(text, &range) {
                    problem(format_args!("not in standard form, read as {range}; write it as {range}"));
                }
                ranges.push(range);
            }
            (None, Some(addr)) => {
                problem(format_args!("an address and not a range; write it as {}", IpNet::from(addr)));
            }
            (None, None) => problem(format_args!("not a CIDR; fix or remove it")),
        }
    }
    let unreadable = match policy {
        RangePolicy::Allow => ranges.is_empty() && !texts.is_empty(),
        RangePolicy::Deny => ranges.len() < texts.len(),
    };
    if unreadable {
        let (which, cure) = match policy {
            RangePolicy::Allow => ("no range is readable", "fix one"),
            RangePolicy::Deny => ("a range that keeps clients out is unreadable", "fix it"),
        };
        problems.push(format!("loadBalancerSourceRanges: {which}, so that no client is let in; {cure}"));
    }
    (ranges, unreadable)
}

/// Parses `healthCheckNodePort`, at which a load balancer checks this Service's health. 0 is none.
fn health_port(spec: &api::ServiceSpec, policy: Policy, problems: &mut Vec<String>) -> Option<NonZeroU16> {
    let number = spec.health_check_node_port.filter(|&number| number != 0)?;
    if spec.type_.as_deref() != Some("LoadBalancer") || policy != Policy::Local {
        problems.push(format!(
            "healthCheckNodePort {number}: not served, since it is for type LoadBalancer with externalTrafficPolicy \
             Local; make it so, or remove this"
        ));
        return None;
    }
    let port = u16::try_from(number).ok().and_then(NonZeroU16::new);
    if port.is_none() {
        problems.push(format!("healthCheckNodePort {number}: not a port; use 1 to 65535"));
    }
    port
}

/// Returns the name of the field, `clusterIPs` or, without that list, `clusterIP`, and its texts. Empty texts count as
/// absent.
fn cluster_ips(spec: &api::ServiceSpec) -> (&'static str, Vec<&str>) {
    let many: Vec<&str> = list(&spec.cluster_ips).iter().map(String::as_str).filter(|ip| !ip.is_empty()).collect();
    if many.is_empty() {
        ("clusterIP", spec.cluster_ip.as_deref().filter(|ip| !ip.is_empty()).into_iter().collect())
    } else {
        ("clusterIPs", many)
    }
}

fn exempt(
    object: &api::Service,
    spec: &api::ServiceSpec,
    cluster_ips: &[&str],
    proxy_name: Option<&str>,
) -> Option<Exempt> {
    if label(&object.metadata, "service.kubernetes.io/service-proxy-name") != proxy_name {
        Some(Exempt::OtherProxy)
    } else if spec.type_.as_deref() == Some("ExternalName") {
        Some(Exempt::ExternalName)
    } else if spec.cluster_ip.as_deref() == Some("None") || cluster_ips.contains(&"None") {
        Some(Exempt::Headless)
    } else if cluster_ips.is_empty() {
        Some(Exempt::NoClusterIp)
    } else {
        None
    }
}

/// Parses the load balancer's addresses that reach the node unchanged (KEP-1860). Entries with a hostname only, or with
/// ipMode Proxy, are ignored.
fn ingress_ips(object: &api::Service, problems: &mut Vec<String>) -> Vec<IpAddr> {
    let ingress = object.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = ingress.map_or(&[][..], |balancer| list(&balancer.ingress));
    let mut converted = Vec::with_capacity(ingress.len());
    for (i, ingress) in ingress.iter().enumerate() {
        let Some(ip) = ingress.ip.as_deref().filter(|ip| !ip.is_empty()) else { continue };
        match ingress.ip_mode.as_deref() {
            None | Some("VIP") => {
                converted.extend(addr(problems, format_args!("status.loadBalancer.ingress[{i}].ip"), ip));
            }
            Some("Proxy") => {}
            Some(other) => problems.push(format!(
                "status.loadBalancer.ingress[{i}].ipMode {other:?}: unknown, {} is not served; write VIP or Proxy",
                ip.escape_debug()
            )),
        }
    }
    converted
}

#[cfg(test)]
mod tests;
