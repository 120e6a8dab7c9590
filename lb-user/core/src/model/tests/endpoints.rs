//! Endpoints: the members of each list, the backends that are kept, and their weights (rules 1, 3, 8 and 10).

use expect_test::{Expect, expect};
use lb_common::{BackendFlags, Scheduler};

use super::*;

#[test]
fn rule_1_endpoints_match_by_name_and_protocol_and_bring_their_own_number() {
    let service = Service { ports: [port("web", 80), port("more", 81)].into(), ..service() };
    let groups =
        groups(vec![group(&[("web", 8080)], "1"), group(&[("web", 8081), ("more", 9000)], "2"), group(&[], "3")]);
    let spec = Case { slices: groups, ..Case::new(service, &[]) }.spec();
    let targets = |index: usize| spec.ports[index].backends.iter().map(|b| b.target.to_string()).collect::<Vec<_>>();
    assert_eq!(spec.ports[0].key.to_string(), "default/a:more/TCP");
    assert_eq!(
        (targets(0), targets(1)),
        (vec!["10.0.0.2:9000".into()], vec!["10.0.0.1:8080".into(), "10.0.0.2:8081".into()])
    );
}

#[test]
fn rule_1_each_family_has_its_own_endpoints() {
    let both = ["1; fd00::8; 2 draining; fd00::9 local unready"];
    assert_eq!(Case::new(dual_stack(), &both).lists(), "cluster 1 kept 2; cluster 8");
    assert_eq!(Case::new(service(), &both).lists(), "cluster 1 kept 2");
    assert_eq!(Case::new(dual_stack(), &["1"]).lists(), "cluster 1; none");
    // A decision in one family is none in the other.
    assert_eq!(
        Case::new(dual_stack(), &["1 z=z; 2 z=y; fd00::8 z=z; fd00::9"]).lists(),
        "cluster 1 kept 2; cluster 8 9"
    );
}

/// Conditions of an endpoint, the best first. The last two are equally bad.
const CONDITIONS: [&str; 5] = ["", "starting", "draining", "unready", "gone"];

#[test]
fn rule_1_of_copies_of_one_endpoint_the_best_counts_in_every_order() {
    let nodes = ["local", "", "nodeless"];
    let copies: Vec<_> = (0..CONDITIONS.len()).flat_map(|rank| nodes.map(|node| (rank.min(3), rank, node))).collect();
    let text = |&(_, rank, node): &(usize, usize, &str)| format!("1 {} {node}", CONDITIONS[rank]);
    let lists = |slices: &[&str]| Case::new(policy(Policy::Local), slices).lists();
    for a in &copies {
        for b in &copies {
            for c in &copies {
                // The first of equals: `min_by_key` keeps it.
                let best = [a, b, c].into_iter().min_by_key(|(rank, _, node)| (*rank, *node != "local"));
                let expected = lists(&[&best.map(text).expect("a copy")]);
                let [a, b, c] = [a, b, c].map(text);
                assert_eq!(lists(&[&format!("{a}; {b}; {c}")]), expected, "one slice: {a}; {b}; {c}");
                assert_eq!(lists(&[&a, &b, &c]), expected, "slices: {a}; {b}; {c}");
            }
        }
    }
}

#[test]
fn rule_1_a_ghost_pod_does_not_hide_the_live_pod_with_its_address() {
    for (slices, expected) in [
        (&["1 gone; 1"][..], "cluster 1"),
        (&["1; 1 gone"], "cluster 1"),
        (&["1 gone local", "1"], "cluster 1"),
        (&["1 draining local; 1 unready; 1"], "cluster 1"),
        (&["1 unready local", "1 draining"], "cluster 1"),
        (&["1 draining; 1 starting"], "none"),
        (&["1 unready", "1 local; 2"], "cluster 1 2 local 1"),
    ] {
        assert_eq!(Case::new(policy(Policy::Local), slices).lists(), expected, "{slices:?}");
    }
}

#[test]
fn rule_1_published_endpoints_count_as_ready_and_never_fall_back() {
    check(
        &service(),
        None,
        &[
            ("1 published; 2", "cluster 1 2"),
            ("1 published", "cluster 1"),
            ("1 published; 2 draining", "cluster 1 kept 2"),
        ],
    );
}

#[test]
fn rule_1_unusable_addresses_are_never_backends() {
    let bad =
        ["127.0.0.1", "0.0.0.0", "169.254.1.1", "224.0.0.1", "255.255.255.255", "::1", "::", "fe80::1", "ff02::1"];
    for text in bad {
        let case = Case::new(dual_stack(), &[&format!("{text}; 1; fd00::8")]);
        assert_eq!(case.lists(), "cluster 1; cluster 8", "{text}");
        assert_eq!(case.warnings().len(), 1, "{text}: {:?}", case.warnings());
    }
}

#[test]
fn rule_1_an_endpoint_that_is_a_cluster_ip_or_a_node_port_is_never_a_backend() {
    let other = |cluster_ip: &str, ports: [ServicePort; 1]| Service {
        cluster_ips: vec![addr(cluster_ip)],
        ports: ports.into(),
        ..Service::new(Key::new("elsewhere", "b"))
    };
    let check = |other: Service, endpoints: &str, expected: &str, warning: &str| {
        let case = Case { others: vec![other], ..Case::new(dual_stack(), &[endpoints]) };
        assert_eq!(case.lists(), expected, "{endpoints}");
        let warnings = case.warnings().join("\n");
        assert!(warnings.contains(warning) && warnings.is_empty() == warning.is_empty(), "{warnings}");
    };
    let cluster_ip = || other("10.96.0.9", [port("", 8080)]);
    let refused = "10.96.0.9:8080 is not used: that is a frontend of the Service elsewhere/b";
    check(cluster_ip(), "1; 10.96.0.9", "cluster 1; none", refused);
    // The NodePort answers at this node's own addresses, in the families of its Service.
    let exposed = || other("10.96.0.9", [node_port("", 80, 8080)]);
    let refused = "192.0.2.1:8080 is not used: that is a NodePort of the Service elsewhere/b";
    check(exposed(), "192.0.2.1; 1", "cluster 1; none", refused);
    check(exposed(), "192.0.2.2; fd00::1", "cluster 2; cluster 1", "");
}

/// An API server may be reached at a virtual address that another Service carries too (calico#8151).
#[test]
fn rule_1_a_load_balancer_address_or_external_ip_of_another_service_is_a_backend() {
    let lists = |other: Service, own: Service| Case { others: vec![other], ..Case::new(own, &["1; 7"]) }.lists();
    for namespace in ["default", "elsewhere"] {
        let other = || Service {
            created: Some(1),
            cluster_ips: vec![addr("10.96.0.9")],
            ports: [port("", 8080)].into(),
            ..Service::new(Key::new(namespace, "b"))
        };
        let at_7 = || vec![addr("10.0.0.7")];
        assert_eq!(lists(Service { external_ips: at_7(), ..other() }, service()), "cluster 1 7", "{namespace}");
        assert_eq!(lists(Service { ingress_ips: at_7(), ..other() }, service()), "cluster 1 7", "{namespace}");
    }
    // The Service's own address would lead back to itself.
    let own = |service| lists(named("b"), Service { ports: [port("", 8080)].into(), ..service });
    assert_eq!(own(Service { external_ips: vec![addr("10.0.0.7")], ..service() }), "cluster 1");
    assert_eq!(own(Service { ingress_ips: vec![addr("10.0.0.7")], ..service() }), "cluster 1");
}

#[test]
fn a_port_that_is_not_served_leaves_its_frontend_to_others() {
    let lost = |other: Service| {
        let other = Service { created: Some(1), ..other };
        let spec = Case { others: vec![other], ..Case::new(Service { created: Some(2), ..service() }, &["1"]) }.spec();
        (spec.ports.is_empty(), spec.warnings.len())
    };
    let other = || Service { ports: service().ports, cluster_ips: service().cluster_ips, ..named("b") };
    let ports = |ports: &[ServicePort]| Service { ports: ports.into(), ..other() };
    assert_eq!(lost(other()), (true, 1), "the older one has it");
    let cases = [
        ("its name is too long", Service { key: Key::new("default", &"n".repeat(64)), ..other() }),
        ("its name is no name", Service { key: Key::new("default", "\u{e9}"), ..other() }),
        ("its namespace is none", Service { key: Key::new("a\0b", "c"), ..other() }),
        ("the port's name is too long", ports(&[port(&"n".repeat(64), 80)])),
        ("the port stands there twice", ports(&[port("", 81), port("", 80)])),
    ];
    for (case, other) in cases {
        assert_eq!(lost(other), (false, 0), "{case}");
    }
}

#[test]
fn i8_ready_endpoints_first_then_serving_terminating_ones() {
    check(
        &service(),
        None,
        &[
            ("", "none"),
            ("1; 2 local", "cluster 1 2"),
            ("2; 1; 3 unready; 4 draining; 5 gone", "cluster 1 2 kept 4"),
            ("3 unready; 4 draining; 5 gone", "cluster 4"),
            ("3 unready; 4 draining; 6 draining local", "cluster 4 6"),
            ("3 unready; 5 gone", "none"),
        ],
    );
}

#[test]
fn i8_the_local_list_has_local_endpoints_only_and_falls_back_on_its_own() {
    check(
        &policy(Policy::Local),
        Some("z"),
        &[
            ("1 local; 2; 3 local unready; 4 nodeless", "cluster 1 2 4 local 1"),
            ("1 local draining; 2", "cluster 2 local 1"),
            ("1 local draining; 2 draining", "cluster 1 2 local 1"),
            ("1; 2 local unready", "cluster 1"),
            ("1; 2 local gone", "cluster 1"),
            ("1 draining; 2 local", "cluster 2 local 2 kept 1"),
            ("1 local; 2 local draining", "cluster 1 local 1 kept 2"),
            ("1 nodeless; 2 nodeless draining", "cluster 1 kept 2"),
            // Hints do not apply to the local list.
            ("1 z=z; 2 z=y local", "cluster 1 local 2"),
        ],
    );
}

#[test]
fn i8_hints_count_only_when_every_ready_endpoint_has_one() {
    let zoned = [
        ("1 z=z; 2 z=y", "cluster 1 kept 2"),
        ("1 z=z z=y; 2 z=y", "cluster 1 kept 2"),
        ("1 z=z; 2", "cluster 1 2"),
        ("1 z=z; 2 unready; 3 draining", "cluster 1 kept 3"),
        ("1 z=x; 2 z=y", "cluster 1 2"),
        ("1 z=z unready; 2 z=y", "cluster 2"),
        ("1 z=y draining; 2 z=y gone", "cluster 1"),
        // Endpoints of weight 0 are left out of account.
        ("1 z=z; 2 w=0", "cluster 1 kept 2"),
        ("1 z=z w=0; 2 z=y", "cluster 2 kept 1"),
    ];
    check(&service(), Some("z"), &zoned);
    check(&service(), None, &[("1 z=z; 2 z=y", "cluster 1 2")]);
}

#[test]
fn rule_3_node_hints_go_before_zone_hints() {
    let cases = [
        ("1 n=here z=z; 2 n=there z=z; 3 n=there z=y", "cluster 1 kept 2 3"),
        ("1 n=away z=z; 2 n=there z=z; 3 n=there z=y", "cluster 1 2 kept 3"),
        ("1 n=here; 2 n=there z=z", "cluster 1 kept 2"),
        ("1 n=here z=z; 2 z=y", "cluster 1 kept 2"),
        ("1 n=there; 2 n=away", "cluster 1 2"),
        ("1 n=here; 2 z=z", "cluster 1 2"),
    ];
    check(&service(), Some("z"), &cases);
}

#[test]
fn rule_3_a_hand_written_endpoint_that_switches_hints_off_is_named() {
    let warnings = |endpoints: &str| Case::new(service(), &[endpoints]).warnings().join("\n");
    let expected = "its endpoint 10.0.0.2:8080 has no hint, and so nobody's topology hints are followed; give it hints \
                    in its EndpointSlice";
    assert_eq!(warnings("1 z=z; 2 nodeless"), expected);
    for quiet in ["1 z=z; 2", "1; 2 nodeless", "1 z=z; 2 nodeless unready", "1 z=z; 2 nodeless z=y"] {
        assert_eq!(warnings(quiet), "", "{quiet}");
    }
}

#[test]
fn rule_8_backends_that_serve_are_kept_with_their_node() {
    let spec = Case::new(policy(Policy::Local), &["1 local; 2; 3 local draining; 4 unready; 5 w=0; 6 gone"]).spec();
    let flags: Vec<_> =
        spec.ports[0].backends.iter().map(|member| (member.target.addr.octets[15], member.flags)).collect();
    let (cluster, local, on_node) = (BackendFlags::CLUSTER, BackendFlags::LOCAL, BackendFlags::ON_NODE);
    assert_eq!(flags, [(1, cluster | local | on_node), (2, cluster), (3, on_node), (5, 0)]);
}

#[test]
fn a_preference_leads_to_this_nodes_ready_endpoints_and_otherwise_to_the_cluster_list() {
    let preferring = || tuned(Tuning { preference: Preference::Local, ..Tuning::default() });
    let cases = [
        ("1 local; 2; 3 local", "cluster 1 3 kept 2"),
        ("1; 2", "cluster 1 2"),
        ("1 nodeless; 2", "cluster 1 2"),
        // Not ready, draining or weighing nothing: the others, with no gap.
        ("1 local unready; 2", "cluster 2"),
        ("1 local draining; 2", "cluster 2 kept 1"),
        ("1 local w=0; 2", "cluster 2 kept 1"),
        ("1 local draining; 2 draining", "cluster 1 2"),
        // Before hints, which decide otherwise.
        ("1 local z=x; 2 z=z", "cluster 1 kept 2"),
        ("1 local n=there; 2 n=here", "cluster 1 kept 2"),
        ("1 local unready; 2 z=z; 3 z=x", "cluster 2 kept 3"),
    ];
    check(&preferring(), Some("z"), &cases);
    // The families are independent of each other.
    let dual = Service { cluster_ips: dual_stack().cluster_ips, ..preferring() };
    check(&dual, None, &[("1 local; 2; fd00::3; fd00::4", "cluster 1 kept 2; cluster 3 4")]);
    // The policy Local drops where the preference falls back, and its list has no others.
    let local = Service { internal_policy: Policy::Local, ..preferring() };
    check(&local, None, &[("1 local; 2", "cluster 1 local 1 kept 2"), ("1; 2", "cluster 1 2")]);
    let warnings = |service: &Service| Case::new(service.clone(), &["1 local"]).warnings();
    assert_eq!(warnings(&preferring()), [""; 0]);
    assert_eq!(
        warnings(&local),
        ["annotation beeline.io/prefer-local has no effect at cluster IPs, since internalTrafficPolicy is Local: \
          calls fail while no endpoint is on the node; set internalTrafficPolicy to Cluster, or remove the annotation"]
    );
}

#[test]
fn a_tier_narrows_the_cluster_list_before_hints_and_preferences() {
    let cases = [
        ("1; 2 p=1", "cluster 1 kept 2"),
        ("1 unready; 2 p=1", "cluster 2"),
        ("1; 2 unready; 3 p=1", "cluster 1 kept 3"),
        ("1; 2 unready; 3 unready; 4 p=1", "cluster 4 kept 1"),
        ("1 w=0; 2 p=1", "cluster 2 kept 1"),
        // Terminating endpoints count nowhere, and serve if no ready one is left.
        ("1; 2 draining; 3 draining; 4 p=1", "cluster 1 kept 2 3 4"),
        ("1 draining; 2 p=1 draining", "cluster 1 2"),
        // No tier has enough.
        ("1; 2 unready; 3 unready; 4 p=1; 5 p=1 unready; 6 p=1 unready", "cluster 1 4"),
        // Hints of the tier in use count.
        ("1 z=z; 2 z=x; 3 p=1", "cluster 1 kept 2 3"),
        ("1 unready; 2 p=1 z=z; 3 p=1 z=x", "cluster 2 kept 3"),
        ("1; fd00::2 p=1", "cluster 1; cluster 2"),
    ];
    check(
        &dual_stack(),
        Some("z"),
        &cases
            .map(|(of, expected)| {
                (of, if expected.contains(';') { expected.to_owned() } else { format!("{expected}; none") })
            })
            .each_ref()
            .map(|(of, expected)| (*of, expected.as_str())),
    );
    let preferring = tuned(Tuning { preference: Preference::Local, ..Tuning::default() });
    check(&preferring, None, &[("1; 2 local p=1", "cluster 1 kept 2"), ("1 local; 2; 3 p=1", "cluster 1 kept 2 3")]);
    let share = |share| tuned(Tuning { tier_share: std::num::NonZeroU8::new(share), ..Tuning::default() });
    check(&share(30), None, &[("1; 2 unready; 3 unready; 4 p=1", "cluster 1 kept 4")]);
    check(&share(100), None, &[("1; 2 unready; 3 p=1", "cluster 3 kept 1")]);
    // The local list has the endpoints of each tier.
    check(&policy(Policy::Local), None, &[("1 local; 2 local p=1", "cluster 1 local 1 2")]);
    reasons(
        &Case::new(service(), &["1; 2 unready; 3 p=1"]),
        &expect![[r#"
        priorities 0 is used, with 1 of 2 ready; priority 1 serves when fewer than 1 are
        10.0.0.1:8080: used
        10.0.0.2:8080: not used: it is not ready
        10.0.0.3:8080: not used: its priority is 1, and another one is used; sockets that have it keep it
    "#]],
    );
}

#[test]
fn the_flags_tell_that_one_tier_serves_even_the_best() {
    use lb_common::ServiceFlags;
    let cases = [
        ("1; 2", 0),
        ("1; 2 p=1", ServiceFlags::TIERED),
        ("1 unready; 2 p=1", ServiceFlags::TIERED | 1 << ServiceFlags::TIER_SHIFT),
        // All tiers.
        ("1 unready; 2 p=1 unready", 255 << ServiceFlags::TIER_SHIFT),
    ];
    for (endpoints, expected) in cases {
        assert_eq!(Case::new(service(), &[endpoints]).spec().ports[0].flags, expected, "{endpoints}");
    }
}

#[test]
fn rule_10_weights_count_with_schedulers_that_weigh() {
    let tuning = |scheduler, weights: &[(&str, u16)]| {
        let weights = weights.iter().map(|&(text, weight)| (addr(text), weight)).collect();
        tuned(Tuning { scheduler, weights, ..Tuning::default() })
    };
    let endpoints = "1 w=10; 2 w=20; 3 w=0; 4";
    for scheduler in Scheduler::ALL {
        let expected = if scheduler.weighs() { "cluster 1*10 2*20 4 kept 3" } else { "cluster 1 2 4 kept 3" };
        check(&tuning(Some(scheduler), &[]), None, &[(endpoints, expected)]);
        let settings = Settings { scheduler, ..Settings::default() };
        assert_eq!(Case { settings, ..Case::new(service(), &[endpoints]) }.lists(), expected, "{scheduler:?}");
    }
    // Weights of the Service go before weights of the slice.
    let by_service = tuning(None, &[("10.0.0.1", 0), ("10.0.0.3", 5), ("10.0.0.4", 10)]);
    check(&by_service, None, &[(endpoints, "cluster 2*4 3 4*2 kept 1"), ("1 draining; 3 unready", "kept 1")]);
    check(&service(), None, &[("1 w=0", "kept 1"), ("1 w=0; 2 draining", "cluster 2 kept 1")]);
}

#[test]
fn rule_10_dh_leads_to_one_backend_and_is_reported() {
    let warnings = |scheduler| {
        let case = Case::new(tuned(Tuning { scheduler: Some(scheduler), ..Tuning::default() }), &["1; 2"]);
        case.warnings().join("\n")
    };
    let expected = "the scheduler dh sends everybody who dials one address to one backend; use sh for one backend to \
                    each client, or random";
    assert_eq!((warnings(Scheduler::Dh), warnings(Scheduler::Sh)), (expected.to_owned(), String::new()));
}

/// Checks the hints and the reasons in an explanation.
fn reasons(case: &Case, expected: &Expect) {
    let mut text = String::new();
    for port in case.explain().ports {
        text += port.priority.map(|tiers| format!("priorities {tiers}\n")).unwrap_or_default().as_str();
        text += port.hints.map(|hints| format!("hints {hints}\n")).unwrap_or_default().as_str();
        for line in port.endpoints {
            text += &format!("{}: {}\n", line.endpoint, line.why);
        }
    }
    expected.assert_eq(&text);
}

#[test]
fn every_reason_is_explained_in_a_line() {
    let endpoints = ["1; 2 draining; 3 unready; 4 gone; 5 w=0; 127.0.0.1; fd00::8", "1; 10.96.0.1; 192.0.2.1"];
    let ports = [node_port("", 8080, 30_080), node_port("more", 81, 8080)];
    let mut case = Case::new(Service { ports: ports.clone().into(), ..service() }, &endpoints);
    case.slices.extend(groups(vec![group(&[("other", 1)], "6")]));
    reasons(
        &case,
        &expect![[r#"
            10.0.0.1:8080: used
            10.0.0.1:8080: not used: it stands in EndpointSlice default/a-1 as well, and that copy counts
            10.0.0.2:8080: not used: it terminates, and others are ready; sockets that have it keep it
            10.0.0.3:8080: not used: it is not ready
            10.0.0.4:8080: not used: it terminates and answers no more
            10.0.0.5:8080: not used: its weight is 0, which takes no new connections; sockets that have it keep it
            10.96.0.1:8080: not used: that is a frontend of the Service default/a
            127.0.0.1:8080: not used: that is a loopback address
            192.0.2.1:8080: not used: that is a NodePort of the Service default/a at this node
            [fd00::8]:8080: not used: the Service has IPv4 cluster IPs only
            10.0.0.6: not used: EndpointSlice default/a-1 has no unnamed port of TCP
            10.0.0.1: not used: EndpointSlice default/a-1 has no port "more" of TCP
            10.0.0.2: not used: EndpointSlice default/a-1 has no port "more" of TCP
            10.0.0.3: not used: EndpointSlice default/a-1 has no port "more" of TCP
            10.0.0.4: not used: EndpointSlice default/a-1 has no port "more" of TCP
            10.0.0.5: not used: EndpointSlice default/a-1 has no port "more" of TCP
            127.0.0.1: not used: EndpointSlice default/a-1 has no port "more" of TCP
            fd00::8: not used: EndpointSlice default/a-1 has no port "more" of TCP
            10.0.0.1: not used: EndpointSlice default/a-2 has no port "more" of TCP
            10.96.0.1: not used: EndpointSlice default/a-2 has no port "more" of TCP
            192.0.2.1: not used: EndpointSlice default/a-2 has no port "more" of TCP
            10.0.0.6: not used: EndpointSlice default/a-1 has no port "more" of TCP
        "#]],
    );
    let local = Service { ports: [ports[0].clone()].into(), ..policy(Policy::Local) };
    reasons(
        &Case::new(local.clone(), &["1; 2 local; 3 nodeless; 4 local draining; 5 local w=0"]),
        &expect![[r#"
            10.0.0.1:8080: used by external frontends, not by cluster IPs: it is on another node
            10.0.0.2:8080: used
            10.0.0.3:8080: used by external frontends, not by cluster IPs: it has no nodeName and so is local nowhere
            10.0.0.4:8080: not used: it terminates, and others are ready; sockets that have it keep it
            10.0.0.5:8080: not used: its weight is 0, which takes no new connections; sockets that have it keep it
        "#]],
    );
    reasons(
        &Case::new(local, &["1 draining; 2 local draining; 3 draining nodeless"]),
        &expect![[r"
            10.0.0.1:8080: used by external frontends; it terminates, but no ready one is left; not by cluster IPs: it is on another node
            10.0.0.2:8080: used; it terminates, but no ready one is left
            10.0.0.3:8080: used by external frontends; it terminates, but no ready one is left; not by cluster IPs: it has no nodeName and so is local nowhere
        "]],
    );
    reasons(
        &Case::new(service(), &["1 z=z; 2 z=x z=y"]),
        &expect![[r#"
            hints followed: those for zone z
            10.0.0.1:8080: used
            10.0.0.2:8080: not used: its hint is for zone x, y; sockets that have it keep it
        "#]],
    );
    reasons(
        &Case::new(policy(Policy::Local), &["1 n=here; 2 n=there local"]),
        &expect![[r#"
            hints followed: those for node here
            10.0.0.1:8080: used by external frontends, not by cluster IPs: it is on another node
            10.0.0.2:8080: used by cluster IPs, not by external frontends: its hint is for node there
        "#]],
    );
    reasons(
        &Case::new(service(), &["1 z=z; 2"]),
        &expect![[r#"
        hints ignored: 10.0.0.2:8080 has none
        10.0.0.1:8080: used
        10.0.0.2:8080: used
    "#]],
    );
    reasons(
        &Case::new(service(), &["1 z=x"]),
        &expect![[r#"
        hints ignored: none is for zone z or node here
        10.0.0.1:8080: used
    "#]],
    );
    reasons(
        &Case { zone: None, ..Case::new(service(), &["1 z=x"]) },
        &expect![[r#"
        hints ignored: node here has no label topology.kubernetes.io/zone
        10.0.0.1:8080: used
    "#]],
    );
    reasons(
        &Case::new(tuned(Tuning { preference: Preference::Local, ..Tuning::default() }), &["1 local z=x; 2 z=z"]),
        &expect![[r#"
            hints ignored: an endpoint on node here is ready, and preferred
            10.0.0.1:8080: used
            10.0.0.2:8080: not used: beeline.io/prefer-local is set, and an endpoint on this node is ready; sockets that have it keep it
        "#]],
    );
    reasons(
        &Case { zone: None, ..Case::new(service(), &["1 n=x"]) },
        &expect![[r#"
        hints ignored: none is for node here
        10.0.0.1:8080: used
    "#]],
    );
}
