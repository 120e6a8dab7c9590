//! Conversion of a v1 Endpoints object, as Kubernetes' mirroring controller reads it
//! (pkg/controller/endpointslicemirroring).

use std::sync::Arc;

use super::{HEADLESS_LABEL, Nameless, addr, annotations::EndpointTuning, endpoint_ports, key, label, list, triggered};
use crate::api;
use lb_core::objects::{Endpoint, EndpointGroup, Endpoints};

/// The controller's `--mirroring-max-endpoints-per-subset`.
const MAX_PER_SUBSET: usize = 1000;

/// Converts a v1 Endpoints object.
pub(super) fn endpoints(object: &api::Endpoints) -> Endpoints {
    let meta = &object.metadata;
    let annotated = |name: &str| meta.annotations.as_ref().is_some_and(|annotations| annotations.contains_key(name));
    let mirrorable = label(meta, "endpointslice.kubernetes.io/skip-mirror") != Some("true")
        && label(meta, "endpoints.kubernetes.io/managed-by") != Some("endpoint-controller")
        && !annotated("control-plane.alpha.kubernetes.io/leader")
        // The controller copies it to the slices that it makes, which proxies then leave alone.
        && label(meta, HEADLESS_LABEL).is_none();

    let mut problems = Vec::new();
    let tuning = EndpointTuning::read(meta, "an Endpoints object", &mut problems);
    let groups = list(&object.subsets).iter().enumerate();
    let groups = groups.map(|(i, subset)| group(subset, i, &tuning, &mut problems)).collect();
    Endpoints { key: key(meta), mirrorable, groups, triggered: triggered(meta), problems }
}

fn group(subset: &api::Subset, i: usize, tuning: &EndpointTuning, problems: &mut Vec<String>) -> EndpointGroup {
    let place = format!("subsets[{i}]");
    let ports = endpoint_ports(problems, format_args!("{place}.ports"), list(&subset.ports), Nameless::Unnamed);

    let (ready, not_ready) = (list(&subset.addresses), list(&subset.not_ready_addresses));
    let mut endpoints = Vec::with_capacity((ready.len() + not_ready.len()).min(MAX_PER_SUBSET));
    let mut beyond = 0;
    for (name, addresses, ready) in [("addresses", ready, true), ("notReadyAddresses", not_ready, false)] {
        for (j, address) in addresses.iter().enumerate() {
            // Like the controller, count only valid addresses.
            if endpoints.len() == MAX_PER_SUBSET {
                beyond += addresses.len() - j;
                break;
            }
            let Some(addr) = addr(problems, format_args!("{place}.{name}[{j}].ip"), &address.ip) else { continue };
            endpoints.push(Endpoint {
                addr,
                node: address.node_name.as_deref().filter(|node| !node.is_empty()).map(Arc::from),
                ready,
                // The controller writes only `ready`; an absent `serving` counts as true.
                serving: true,
                terminating: false,
                weight: tuning.weight(addr),
                tier: tuning.tier,
                hints: None,
            });
        }
    }
    if beyond > 0 {
        problems.push(format!(
            "{place}: {beyond} addresses beyond the first {MAX_PER_SUBSET} are not served; write EndpointSlices instead"
        ));
    }
    EndpointGroup { ports: ports.into(), endpoints }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::convert::tests::yaml;

    fn read(text: &str) -> Endpoints {
        endpoints(&yaml(text))
    }

    #[test]
    fn whole_object_is_read() {
        let endpoints = read(
            "
metadata: {namespace: ns, name: a}
subsets:
- addresses: [{ip: 192.0.2.42, nodeName: n1}]
  notReadyAddresses: [{ip: 'fd00::1'}]
  ports: [{port: 9376}]
- addresses: [{ip: 10.0.0.2}]
  ports: [{name: dns, port: 53, protocol: UDP}]
",
        );
        expect_test::expect![[r#"
            Endpoints {
                key: ns/a,
                mirrorable: true,
                groups: [
                    EndpointGroup {
                        ports: [
                            EndpointPort {
                                name: "",
                                proto: Tcp,
                                port: 9376,
                            },
                        ],
                        endpoints: [
                            Endpoint {
                                addr: 192.0.2.42,
                                node: Some(
                                    "n1",
                                ),
                                ready: true,
                                serving: true,
                                terminating: false,
                                weight: 1,
                                tier: 0,
                                hints: None,
                            },
                            Endpoint {
                                addr: fd00::1,
                                node: None,
                                ready: false,
                                serving: true,
                                terminating: false,
                                weight: 1,
                                tier: 0,
                                hints: None,
                            },
                        ],
                    },
                    EndpointGroup {
                        ports: [
                            EndpointPort {
                                name: "dns",
                                proto: Udp,
                                port: 53,
                            },
                        ],
                        endpoints: [
                            Endpoint {
                                addr: 10.0.0.2,
                                node: None,
                                ready: true,
                                serving: true,
                                terminating: false,
                                weight: 1,
                                tier: 0,
                                hints: None,
                            },
                        ],
                    },
                ],
                triggered: None,
                problems: [],
            }
        "#]]
        .assert_debug_eq(&endpoints);
    }

    #[test]
    fn rule_2_mirrorable_follows_the_mirroring_controller() {
        let check = |metadata: &str, expected: bool| {
            assert_eq!(read(&format!("metadata: {{{metadata}}}")).mirrorable, expected, "{metadata}");
        };
        check("", true);
        check("labels: {app: a}, annotations: {note: b}", true);
        check("labels: {endpointslice.kubernetes.io/skip-mirror: 'true'}", false);
        check("labels: {endpointslice.kubernetes.io/skip-mirror: 'false'}", true);
        check("labels: {endpoints.kubernetes.io/managed-by: endpoint-controller}", false);
        check("labels: {service.kubernetes.io/headless: ''}", false);
        check("labels: {endpoints.kubernetes.io/managed-by: me}", true);
        check("annotations: {control-plane.alpha.kubernetes.io/leader: ''}", false);
    }

    #[test]
    fn a_wrong_part_is_dropped_with_a_problem() {
        let endpoints = read(
            "subsets: [{addresses: [{ip: x}, {ip: 10.0.0.01}], notReadyAddresses: [{ip: y}], \
             ports: [{port: 0}, {name: a, port: 1}]}]",
        );
        assert_eq!(
            endpoints.problems,
            [
                "subsets[0].ports[0].port 0: not a port; use 1 to 65535",
                "subsets[0].addresses[0].ip \"x\": not an IP address; fix or remove it",
                "subsets[0].addresses[1].ip \"10.0.0.01\": not in standard form, read as 10.0.0.1; write it \
                 as 10.0.0.1",
                "subsets[0].notReadyAddresses[0].ip \"y\": not an IP address; fix or remove it",
            ]
        );
        assert_eq!((endpoints.groups[0].ports.len(), endpoints.groups[0].endpoints.len()), (1, 1));
    }

    #[test]
    fn annotations_weigh_the_endpoints_of_all_subsets() {
        let endpoints = read(
            "{metadata: {annotations: {beeline.io/weight: '2', beeline.io/weights: '10.0.0.2=0', \
             beeline.io/drain: ''}}, subsets: [{addresses: [{ip: 10.0.0.1}]}, {addresses: [{ip: 10.0.0.2}], \
             notReadyAddresses: [{ip: 10.0.0.3}]}]}",
        );
        let all = endpoints.groups.iter().flat_map(|group| &group.endpoints);
        assert_eq!(all.map(|endpoint| endpoint.weight).collect::<Vec<_>>(), [2, 0, 2]);
        assert_eq!(
            endpoints.problems,
            ["annotation beeline.io/drain: unknown on an Endpoints object, which has beeline.io/weight, \
              beeline.io/weights, beeline.io/priority; fix its name or remove it"]
        );
    }

    #[test]
    fn a_subset_is_cut_after_a_thousand_valid_addresses() {
        let address = |i: usize| api::Address { ip: format!("10.0.{}.{}", i / 250, i % 250 + 1), node_name: None };
        let bad = api::Address { ip: "x".to_owned(), node_name: None };
        let subset = api::Subset {
            addresses: Some(std::iter::once(bad).chain((0..998).map(address)).collect()),
            not_ready_addresses: Some((998..1005).map(address).collect()),
            ports: None,
        };
        let endpoints = endpoints(&api::Endpoints { subsets: Some(vec![subset]), ..Default::default() });
        assert_eq!(endpoints.groups[0].endpoints.len(), 1000);
        assert_eq!(endpoints.groups[0].endpoints.iter().filter(|endpoint| endpoint.ready).count(), 998);
        assert_eq!(
            endpoints.problems,
            [
                "subsets[0].addresses[0].ip \"x\": not an IP address; fix or remove it",
                "subsets[0]: 5 addresses beyond the first 1000 are not served; write EndpointSlices instead",
            ]
        );
    }
}
