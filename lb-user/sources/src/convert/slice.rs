//! Conversion of a discovery.k8s.io/v1 EndpointSlice.

use std::{net::IpAddr, sync::Arc};

use super::{Nameless, addr, annotations::EndpointTuning, endpoint_ports, key, label, list, triggered};
use crate::api;
use lb_core::objects::{Endpoint, EndpointGroup, EndpointSlice, Hints, Key, SliceManager};

/// Converts a discovery.k8s.io/v1 EndpointSlice.
pub(super) fn endpoint_slice(object: &api::EndpointSlice) -> EndpointSlice {
    let meta = &object.metadata;
    let key = key(meta);
    let mut problems = Vec::new();

    let service = label(meta, "kubernetes.io/service-name")
        .filter(|name| !name.is_empty())
        .map(|name| Key::new(key.namespace(), name));
    if service.is_none() {
        problems.push("label kubernetes.io/service-name: missing; set it to the name of the Service".to_owned());
    }
    let manager = match label(meta, "endpointslice.kubernetes.io/managed-by") {
        Some("endpointslice-controller.k8s.io") => SliceManager::Selecting,
        Some("endpointslicemirroring-controller.k8s.io") => SliceManager::Mirroring,
        _ => SliceManager::Other,
    };
    let group = match object.address_type.as_deref() {
        Some("IPv4") => group(object, "IPv4", IpAddr::is_ipv4, &mut problems),
        Some("IPv6") => group(object, "IPv6", IpAddr::is_ipv6, &mut problems),
        // Names instead of addresses: proxies ignore them (API documentation of the type).
        Some("FQDN") => EndpointGroup::default(),
        other => {
            let other = other.unwrap_or_default();
            problems.push(format!("addressType {other:?}: unknown, the slice is not served; write IPv4 or IPv6"));
            EndpointGroup::default()
        }
    };
    EndpointSlice { key, service, manager, group, triggered: triggered(meta), problems }
}

fn group(
    object: &api::EndpointSlice,
    family: &str,
    is_family: fn(&IpAddr) -> bool,
    problems: &mut Vec<String>,
) -> EndpointGroup {
    let ports = endpoint_ports(problems, format_args!("ports"), list(&object.ports), Nameless::Ignored);
    let tuning = EndpointTuning::read(&object.metadata, "an EndpointSlice", problems);
    let mut endpoints = Vec::with_capacity(list(&object.endpoints).len());
    for (i, endpoint_object) in list(&object.endpoints).iter().enumerate() {
        let Some(text) = list(&endpoint_object.addresses).first() else {
            problems.push(format!("endpoints[{i}].addresses: empty; give it an address or remove it"));
            continue;
        };
        let Some(addr) = addr(problems, format_args!("endpoints[{i}].addresses[0]"), text) else { continue };
        if !is_family(&addr) {
            problems.push(format!(
                "endpoints[{i}].addresses[0] {text:?}: not of addressType {family}; move it to a slice of its own"
            ));
            continue;
        }
        endpoints.push(endpoint(endpoint_object, addr, &tuning));
    }
    EndpointGroup { ports: ports.into(), endpoints }
}

fn endpoint(object: &api::Endpoint, addr: IpAddr, tuning: &EndpointTuning) -> Endpoint {
    let conditions = object.conditions.unwrap_or_default();
    let names = |hints: &Option<Vec<api::Hint>>| list(hints).iter().map(|hint| Arc::from(&*hint.name)).collect();
    let hints =
        object.hints.as_ref().map(|hints| Hints { zones: names(&hints.for_zones), nodes: names(&hints.for_nodes) });
    Endpoint {
        addr,
        node: object.node_name.as_deref().filter(|node| !node.is_empty()).map(Arc::from),
        ready: conditions.ready.unwrap_or(true),
        serving: conditions.serving.unwrap_or(true),
        terminating: conditions.terminating.unwrap_or(false),
        weight: tuning.weight(addr),
        tier: tuning.tier,
        hints: hints.filter(|hints| *hints != Hints::default()).map(Box::new),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::convert::tests::yaml;

    const LABELS: &str = "metadata: {namespace: ns, name: a-1, labels: {kubernetes.io/service-name: a}}\n";

    fn read(rest: &str) -> EndpointSlice {
        endpoint_slice(&yaml(&format!("{LABELS}{rest}")))
    }

    #[test]
    fn whole_slice_is_read() {
        let slice = read(
            "
addressType: IPv4
ports: [{name: '', port: 8080}, {name: dns, port: 53, protocol: UDP}]
endpoints:
- addresses: [10.0.0.1, 10.0.0.2]
  nodeName: n1
  conditions: {ready: false, serving: true, terminating: true}
  hints: {forZones: [{name: z1}, {name: z2}], forNodes: [{name: n1}]}
",
        );
        expect_test::expect![[r#"
            EndpointSlice {
                key: ns/a-1,
                service: Some(
                    ns/a,
                ),
                manager: Other,
                group: EndpointGroup {
                    ports: [
                        EndpointPort {
                            name: "",
                            proto: Tcp,
                            port: 8080,
                        },
                        EndpointPort {
                            name: "dns",
                            proto: Udp,
                            port: 53,
                        },
                    ],
                    endpoints: [
                        Endpoint {
                            addr: 10.0.0.1,
                            node: Some(
                                "n1",
                            ),
                            ready: false,
                            serving: true,
                            terminating: true,
                            weight: 1,
                            tier: 0,
                            hints: Some(
                                Hints {
                                    zones: [
                                        "z1",
                                        "z2",
                                    ],
                                    nodes: [
                                        "n1",
                                    ],
                                },
                            ),
                        },
                    ],
                },
                triggered: None,
                problems: [],
            }
        "#]]
        .assert_debug_eq(&slice);
    }

    #[test]
    fn absent_conditions_mean_ready_and_serving_and_not_terminating() {
        let check = |conditions: &str, expected: (bool, bool, bool)| {
            let slice = read(&format!("addressType: IPv4\nendpoints: [{{addresses: [10.0.0.1]{conditions}}}]"));
            let endpoint = &slice.group.endpoints[0];
            assert_eq!((endpoint.ready, endpoint.serving, endpoint.terminating), expected, "{conditions}");
        };
        check("", (true, true, false));
        check(", conditions: null", (true, true, false));
        check(", conditions: {}", (true, true, false));
        check(", conditions: {ready: null, serving: null, terminating: null}", (true, true, false));
        check(", conditions: {ready: false}", (false, true, false));
        check(", conditions: {serving: false}", (true, false, false));
        check(", conditions: {terminating: true}", (true, true, true));
    }

    #[test]
    fn a_wrong_part_is_dropped_with_a_problem() {
        let check = |rest: &str, kept: (usize, usize), expected: &[&str]| {
            let slice = read(rest);
            assert_eq!((slice.group.ports.len(), slice.group.endpoints.len()), kept, "{rest}");
            assert_eq!(slice.problems, expected, "{rest}");
        };
        check("addressType: FQDN\nports: [{port: 0}]\nendpoints: [{addresses: [a.example]}]", (0, 0), &[]);
        check("addressType: IPv4\nports: null\nendpoints: null", (0, 0), &[]);
        check(
            "addressType: IPv5\nendpoints: [{addresses: [10.0.0.1]}]",
            (0, 0),
            &["addressType \"IPv5\": unknown, the slice is not served; write IPv4 or IPv6"],
        );
        check(
            "endpoints: [{addresses: [10.0.0.1]}]",
            (0, 0),
            &["addressType \"\": unknown, the slice is not served; write IPv4 or IPv6"],
        );
        check(
            "addressType: IPv4\nports: [{port: 80}, {name: a}, {name: b, port: 0}, {name: c, port: 1, protocol: X}, \
             {name: d, port: 1}]",
            (1, 0),
            &[
                "ports[0]: no name; give it the name of the Service port, \"\" if it has none",
                "ports[1].port: missing; give it a number from 1 to 65535",
                "ports[2].port 0: not a port; use 1 to 65535",
                "ports[3].protocol \"X\": unknown; use TCP, UDP or SCTP",
            ],
        );
        check(
            "addressType: IPv4\nendpoints: [{addresses: []}, {}, {addresses: [x]}, {addresses: ['fd00::1']}, \
             {addresses: ['::ffff:10.0.0.1']}, {addresses: [10.0.0.1]}]",
            (0, 2),
            &[
                "endpoints[0].addresses: empty; give it an address or remove it",
                "endpoints[1].addresses: empty; give it an address or remove it",
                "endpoints[2].addresses[0] \"x\": not an IP address; fix or remove it",
                "endpoints[3].addresses[0] \"fd00::1\": not of addressType IPv4; move it to a slice of its own",
                "endpoints[4].addresses[0] \"::ffff:10.0.0.1\": not in standard form, read as 10.0.0.1; write it \
                 as 10.0.0.1",
            ],
        );
        check(
            "addressType: IPv6\nendpoints: [{addresses: [10.0.0.1]}, {addresses: ['fd00::1']}]",
            (0, 1),
            &["endpoints[0].addresses[0] \"10.0.0.1\": not of addressType IPv6; move it to a slice of its own"],
        );
    }

    #[test]
    fn annotations_weigh_the_endpoints() {
        let slice = endpoint_slice(&yaml(
            "metadata: {name: s, labels: {kubernetes.io/service-name: a}, annotations: {beeline.io/weight: '0', \
             beeline.io/weights: '10.0.0.2=7', beeline.io/wieght: '1'}}\naddressType: IPv4\n\
             endpoints: [{addresses: [10.0.0.1]}, {addresses: [10.0.0.2]}]",
        ));
        let weights: Vec<u16> = slice.group.endpoints.iter().map(|endpoint| endpoint.weight).collect();
        assert_eq!(weights, [0, 7]);
        assert_eq!(
            slice.problems,
            ["annotation beeline.io/wieght: unknown on an EndpointSlice, which has beeline.io/weight, \
              beeline.io/weights, beeline.io/priority; fix its name or remove it"]
        );
    }

    #[test]
    fn slices_of_headless_services_are_left_alone() {
        let convert = |labels: &str| {
            let slice: api::EndpointSlice = yaml(&format!("{}addressType: IPv4", LABELS.replace("labels: {", labels)));
            crate::convert::ApiObject::convert(&slice, None).is_some()
        };
        assert!(convert("labels: {"));
        assert!(!convert("labels: {service.kubernetes.io/headless: '', "));
    }

    #[test]
    fn labels_name_the_service_and_the_manager() {
        let check = |labels: &str, service: Option<&str>, manager: SliceManager| {
            let slice = endpoint_slice(&yaml(&format!(
                "metadata: {{namespace: ns, name: s, labels: {{{labels}}}}}\naddressType: IPv4"
            )));
            assert_eq!(slice.service, service.map(|name| Key::new("ns", name)), "{labels}");
            assert_eq!(slice.manager, manager, "{labels}");
            assert_eq!(slice.problems.is_empty(), service.is_some(), "{labels}");
        };
        check("kubernetes.io/service-name: a", Some("a"), SliceManager::Other);
        check("kubernetes.io/service-name: ''", None, SliceManager::Other);
        check("", None, SliceManager::Other);
        check(
            "kubernetes.io/service-name: a, endpointslice.kubernetes.io/managed-by: endpointslice-controller.k8s.io",
            Some("a"),
            SliceManager::Selecting,
        );
        check(
            "kubernetes.io/service-name: a, \
             endpointslice.kubernetes.io/managed-by: endpointslicemirroring-controller.k8s.io",
            Some("a"),
            SliceManager::Mirroring,
        );
    }
}
