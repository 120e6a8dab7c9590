//! Frontends that a Service gets, and the settings that they share: policies, ranges, affinity (rules 1, 4 to 8).

use std::num::NonZeroU32;

use expect_test::{Expect, expect};
use lb_common::{Scheduler, ServiceFlags};

use super::*;
use crate::{
    model::ExternalIps,
    objects::{Drain, Exempt},
};

fn check(case: &Case, expected: &Expect) {
    let spec = case.spec();
    let mut text = String::new();
    for port in &spec.ports {
        text += &format!("{}:", port.key);
        port.frontends.iter().for_each(|(key, kind)| text += &format!(" {key}={}", kind.name()));
        text += "\n";
    }
    spec.warnings.iter().for_each(|warning| text += &format!("! {warning}\n"));
    expected.assert_eq(&text);
}

#[test]
fn rule_1_exempt_services_are_not_served() {
    for exempt in [Exempt::Headless, Exempt::ExternalName, Exempt::OtherProxy, Exempt::NoClusterIp] {
        let ports = [node_port("", 80, 30_080)].into();
        let case = Case::new(Service { exempt: Some(exempt), ports, ..service() }, &["1"]);
        assert!(case.spec().ports.is_empty() && case.explain().frontends.is_empty(), "{exempt:?}");
        assert_eq!(case.spec().warnings.len(), usize::from(exempt == Exempt::NoClusterIp));
    }
}

#[test]
fn rule_6_every_kind_of_frontend_is_served_in_the_families_of_the_service() {
    let ports = [node_port("web", 80, 30_080), port("more", 81)];
    let service = Service {
        ports: ports.into(),
        external_ips: vec![addr("192.0.2.7"), addr("198.51.100.7"), addr("fd00::7"), addr("127.0.0.1")],
        ingress_ips: vec![addr("192.0.2.8")],
        ..service()
    };
    let settings = Settings {
        external_ips: "192.0.2.0/24,fd00::/8,127.0.0.0/8".parse().expect("prefixes"),
        ..Settings::default()
    };
    let case = |service| Case { settings: settings.clone(), ..Case::new(service, &["1"]) };
    check(
        &case(service.clone()),
        &expect![[r#"
            default/a:more/TCP: 10.96.0.1:81/TCP=ClusterIP 192.0.2.7:81/TCP=ExternalIP 192.0.2.8:81/TCP=LoadBalancer
            default/a:web/TCP: 0.0.0.0:30080/TCP=NodePort 10.96.0.1 any port=Address 10.96.0.1:80/TCP=ClusterIP 192.0.2.7 any port=ExternalAddress 192.0.2.7:80/TCP=ExternalIP 192.0.2.8 any port=ExternalAddress 192.0.2.8:80/TCP=LoadBalancer
            ! spec.externalIPs: 198.51.100.7 is not served; the flag --external-ips does not allow it
            ! spec.externalIPs: fd00::7 is not served, since the Service has no IPv6 cluster IP; add IPv6 to spec.ipFamilies
            ! spec.externalIPs: 127.0.0.1 is a loopback address, which cannot be a frontend; remove it
            ! no endpoint has a port "web" of TCP; they have "" TCP; give them the same name
            ! no endpoint has a port "more" of TCP; they have "" TCP; give them the same name
        "#]],
    );
    let cluster_ips = vec![addr("10.96.0.1"), addr("fd96::1")];
    check(
        &case(Service { cluster_ips, ..service.clone() }),
        &expect![[r#"
            default/a:more/TCP: 10.96.0.1:81/TCP=ClusterIP 192.0.2.7:81/TCP=ExternalIP 192.0.2.8:81/TCP=LoadBalancer
            default/a:more/TCP6: [fd00::7]:81/TCP=ExternalIP [fd96::1]:81/TCP=ClusterIP
            default/a:web/TCP: 0.0.0.0:30080/TCP=NodePort 10.96.0.1 any port=Address 10.96.0.1:80/TCP=ClusterIP 192.0.2.7 any port=ExternalAddress 192.0.2.7:80/TCP=ExternalIP 192.0.2.8 any port=ExternalAddress 192.0.2.8:80/TCP=LoadBalancer
            default/a:web/TCP6: [::]:30080/TCP=NodePort fd00::7 any port=ExternalAddress [fd00::7]:80/TCP=ExternalIP fd96::1 any port=Address [fd96::1]:80/TCP=ClusterIP
            ! spec.externalIPs: 198.51.100.7 is not served; the flag --external-ips does not allow it
            ! spec.externalIPs: 127.0.0.1 is a loopback address, which cannot be a frontend; remove it
            ! no endpoint has a port "web" of TCP; they have "" TCP; give them the same name
            ! no endpoint has a port "more" of TCP; they have "" TCP; give them the same name
        "#]],
    );
    let cluster_ips = vec![addr("fd96::1")];
    check(
        &case(Service { cluster_ips, ..service }),
        &expect![[r#"
            default/a:more/TCP6: [fd00::7]:81/TCP=ExternalIP [fd96::1]:81/TCP=ClusterIP
            default/a:web/TCP6: [::]:30080/TCP=NodePort fd00::7 any port=ExternalAddress [fd00::7]:80/TCP=ExternalIP fd96::1 any port=Address [fd96::1]:80/TCP=ClusterIP
            ! status.loadBalancer.ingress: 192.0.2.8 is not served, since the Service has no IPv4 cluster IP; add IPv4 to spec.ipFamilies
            ! spec.externalIPs: 192.0.2.7 is not served, since the Service has no IPv4 cluster IP; add IPv4 to spec.ipFamilies
            ! spec.externalIPs: 198.51.100.7 is not served; the flag --external-ips does not allow it
            ! spec.externalIPs: 127.0.0.1 is a loopback address, which cannot be a frontend; remove it
            ! no endpoint has a port "web" of TCP; they have "" TCP; give them the same name
            ! no endpoint has a port "more" of TCP; they have "" TCP; give them the same name
        "#]],
    );
}

#[test]
fn rule_6_a_load_balancer_without_node_ports_has_none() {
    // As allocateLoadBalancerNodePorts: false leaves it.
    let case = Case::new(Service { ingress_ips: vec![addr("192.0.2.8")], ..service() }, &["1"]);
    check(
        &case,
        &expect![[r#"
            default/a/TCP: 10.96.0.1 any port=Address 10.96.0.1:80/TCP=ClusterIP 192.0.2.8 any port=ExternalAddress 192.0.2.8:80/TCP=LoadBalancer
        "#]],
    );
}

#[test]
fn rule_6_external_ips_may_be_switched_off() {
    let settings = Settings { external_ips: ExternalIps::None, ..Settings::default() };
    let service = Service { external_ips: vec![addr("192.0.2.7")], ..service() };
    check(
        &Case { settings, ..Case::new(service, &[]) },
        &expect![[r"
            default/a/TCP: 10.96.0.1 any port=Address 10.96.0.1:80/TCP=ClusterIP
            ! spec.externalIPs: 192.0.2.7 is not served; the flag --external-ips does not allow it
        "]],
    );
}

#[test]
fn rule_8_of_two_services_with_one_node_port_the_older_gets_it() {
    let ports: Arc<[ServicePort]> = [node_port("", 80, 30_080)].into();
    let exposed = |name, created, vip| {
        let cluster_ips = vec![addr(vip)];
        Service { created: Some(created), cluster_ips, ports: ports.clone(), ..named(name) }
    };
    let case = |own, other| {
        let others = vec![exposed("b", other, "10.96.0.2")];
        Case { others, ..Case::new(exposed("a", own, "10.96.0.1"), &[]) }
    };
    check(
        &case(2, 1),
        &expect![[r"
            default/a/TCP: 10.96.0.1 any port=Address 10.96.0.1:80/TCP=ClusterIP
            ! 0.0.0.0:30080/TCP (NodePort) belongs to the Service default/b, which is older or, at equal age, first by name; use another address or port
        "]],
    );
    check(
        &case(1, 2),
        &expect![[r"
            default/a/TCP: 0.0.0.0:30080/TCP=NodePort 10.96.0.1 any port=Address 10.96.0.1:80/TCP=ClusterIP
        "]],
    );
    // Among equal ages the first by name.
    check(
        &case(1, 1),
        &expect![[r"
            default/a/TCP: 0.0.0.0:30080/TCP=NodePort 10.96.0.1 any port=Address 10.96.0.1:80/TCP=ClusterIP
        "]],
    );
}

#[test]
fn rule_8_of_two_ports_with_one_frontend_the_first_gets_it() {
    let ports = [node_port("a", 80, 30_080), node_port("b", 80, 30_080), node_port("c", 81, 30_080)];
    check(
        &Case::new(Service { ports: ports.into(), ..service() }, &[]),
        &expect![[r#"
            default/a:a/TCP: 0.0.0.0:30080/TCP=NodePort 10.96.0.1 any port=Address 10.96.0.1:80/TCP=ClusterIP
            default/a:c/TCP: 10.96.0.1:81/TCP=ClusterIP
            ! 0.0.0.0:30080/TCP (NodePort) is asked for by the ports "b" and "a", and "a" gets it; remove one
            ! 0.0.0.0:30080/TCP (NodePort) is asked for by the ports "c" and "a", and "a" gets it; remove one
            ! 10.96.0.1:80/TCP (ClusterIP) is asked for by the ports "b" and "a", and "a" gets it; remove one
        "#]],
    );
}

#[test]
fn rule_4_a_policy_is_a_flag_and_the_external_one_needs_an_external_frontend() {
    use Policy::{Cluster, Local};
    const INTERNAL: u32 = ServiceFlags::INTERNAL_LOCAL;
    const EXTERNAL: u32 = ServiceFlags::EXTERNAL_LOCAL;
    let check = |service: Service, internal_policy, external_policy, flags: u32, lists: &str| {
        let case = Case::new(Service { internal_policy, external_policy, ..service }, &["1 local; 2"]);
        assert_eq!((case.spec().ports[0].flags, case.lists()), (flags, lists.to_owned()));
    };
    check(service(), Cluster, Cluster, 0, "cluster 1 2");
    check(service(), Cluster, Local, 0, "cluster 1 2");
    check(service(), Local, Local, INTERNAL, "cluster 1 2 local 1");
    let exposed = || Service { ports: [node_port("", 80, 30_080)].into(), ..service() };
    let balanced = || Service { ingress_ips: vec![addr("192.0.2.8")], ..service() };
    let claimed = || Service { external_ips: vec![addr("192.0.2.7")], ..service() };
    for outside in [exposed, balanced, claimed] {
        check(outside(), Cluster, Cluster, 0, "cluster 1 2");
        check(outside(), Local, Cluster, INTERNAL, "cluster 1 2 local 1");
        check(outside(), Cluster, Local, EXTERNAL, "cluster 1 2 local 1");
        check(outside(), Local, Local, INTERNAL | EXTERNAL, "cluster 1 2 local 1");
    }
}

#[test]
fn rule_4_each_family_and_port_has_a_local_list_of_its_own() {
    let ports = [node_port("", 80, 30_080), port("more", 81)].into();
    let service = Service { external_policy: Policy::Local, ports, ..dual_stack() };
    let flags: Vec<_> = Case::new(service, &[]).spec().ports.iter().map(|port| port.flags).collect();
    assert_eq!(flags, [2, 2, 0, 0], "a NodePort is one in both families, and the other port has none");
    let service = Service { external_policy: Policy::Local, ingress_ips: vec![addr("fd00::8")], ..dual_stack() };
    let flags: Vec<_> = Case::new(service, &[]).spec().ports.iter().map(|port| port.flags).collect();
    assert_eq!(flags, [0, ServiceFlags::EXTERNAL_LOCAL]);
}

#[test]
fn rule_1_a_warning_about_an_endpoint_without_node_name_names_the_policies() {
    use Policy::{Cluster, Local};
    let warned = |internal_policy, external_policy| {
        let ports = [node_port("", 80, 30_080)].into();
        let service = Service { internal_policy, external_policy, ports, ..service() };
        let warnings = Case::new(service, &["1 nodeless"]).warnings();
        warnings.iter().map(|warning| warning.split(',').next().unwrap_or_default().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(warned(Cluster, Cluster), [""; 0]);
    assert_eq!(warned(Local, Cluster), ["internalTrafficPolicy is Local"]);
    assert_eq!(warned(Cluster, Local), ["externalTrafficPolicy is Local"]);
    assert_eq!(warned(Local, Local), ["internalTrafficPolicy and externalTrafficPolicy are Local"]);
}

#[test]
fn rule_5_a_cluster_ip_itself_belongs_to_the_first_port_of_its_oldest_service() {
    check(
        &Case::new(Service { ports: [port("b", 81), port("a", 80)].into(), ..dual_stack() }, &[]),
        &expect![[r"
            default/a:a/TCP: 10.96.0.1:80/TCP=ClusterIP
            default/a:a/TCP6: [fd96::1]:80/TCP=ClusterIP
            default/a:b/TCP: 10.96.0.1 any port=Address 10.96.0.1:81/TCP=ClusterIP
            default/a:b/TCP6: fd96::1 any port=Address [fd96::1]:81/TCP=ClusterIP
        "]],
    );
    let others = vec![Service { created: Some(1), ports: [port("", 81)].into(), ..named("b") }];
    check(
        &Case { others, ..Case::new(service(), &[]) },
        &expect![[r"
        default/a/TCP: 10.96.0.1:80/TCP=ClusterIP
    "]],
    );
}

#[test]
fn rule_5_a_port_without_endpoints_still_answers() {
    assert_eq!(Case::new(service(), &[]).lists(), "none");
    assert_eq!(Case::new(policy(Policy::Local), &["1"]).lists(), "cluster 1");
}

#[test]
fn rule_6_source_ranges_restrict_load_balancer_addresses_in_each_family() {
    let check = |service: Service, ranges: &[&str], expected: &[&str], warnings: &[&str]| {
        let source_ranges = ranges.iter().map(|range| range.parse().expect("a network")).collect();
        let case = Case::new(Service { source_ranges, ..service }, &["1"]);
        let spec = case.spec();
        let text = |port: &crate::spec::PortSpec| {
            let nets: Vec<_> = port.ranges.iter().map(ToString::to_string).collect();
            let flag = if port.flags & ServiceFlags::SOURCE_RANGES == 0 { "all" } else { "only" };
            format!("{flag} {}", nets.join(" ")).trim().to_owned()
        };
        assert_eq!(spec.ports.iter().map(text).collect::<Vec<_>>(), expected, "{ranges:?}");
        assert_eq!(case.warnings(), warnings, "{ranges:?}");
    };
    let balanced = |ips: &[&str]| Service { ingress_ips: ips.iter().map(|ip| addr(ip)).collect(), ..service() };
    check(balanced(&["192.0.2.8"]), &[], &["all"], &[]);
    check(balanced(&["192.0.2.8"]), &["198.51.100.0/24", "10.0.0.0/8"], &["only 10.0.0.0/8 198.51.100.0/24"], &[]);
    check(balanced(&["192.0.2.8"]), &["198.51.100.0/24", "0.0.0.0/0"], &["all"], &[]);
    // Other frontends are not restricted.
    check(balanced(&[]), &["198.51.100.0/24"], &["all"], &[]);
    let other =
        Service { external_ips: vec![addr("192.0.2.7")], ports: [node_port("", 80, 30_080)].into(), ..service() };
    check(other, &["198.51.100.0/24"], &["all"], &[]);
    // As with kube-proxy, no range of a family restricts no client of it.
    let open = |family| {
        format!(
            "loadBalancerSourceRanges has no {family} range, so that all {family} clients are let in, as with \
             kube-proxy; add one"
        )
    };
    check(balanced(&["192.0.2.8"]), &["fd00::/8"], &["all"], &[&open("IPv4")]);
    let both = Service { cluster_ips: dual_stack().cluster_ips, ..balanced(&["192.0.2.8", "fd00::8"]) };
    check(both.clone(), &["fd00::/8"], &["all", "only fd00::/8"], &[&open("IPv4")]);
    check(both, &["fd00::/8", "10.0.0.0/8"], &["only 10.0.0.0/8", "only fd00::/8"], &[]);
    let too_many: Vec<_> = (0..1_030).map(|i| format!("10.{}.{}.0/24", i / 128, i % 128 * 2)).collect();
    let source_ranges = too_many.iter().map(|range| range.parse().expect("a network")).collect();
    let case = Case::new(Service { source_ranges, ..balanced(&["192.0.2.8"]) }, &["1"]);
    assert_eq!(case.spec().ports[0].ranges.len(), 1_024);
    assert_eq!(
        case.warnings(),
        ["loadBalancerSourceRanges has 1030 IPv4 ranges, of which 1024 count; the last 6 are not let in; write fewer \
             that are wider"]
    );
}

#[test]
fn rule_6_source_ranges_restrict_a_load_balancer_address_that_is_an_external_ip_too() {
    let service = Service {
        external_ips: vec![addr("192.0.2.8")],
        ingress_ips: vec![addr("192.0.2.8")],
        source_ranges: vec!["198.51.100.0/24".parse().expect("a network")],
        ..service()
    };
    let spec = Case::new(service, &["1"]).spec();
    assert_eq!(spec.ports[0].flags, ServiceFlags::SOURCE_RANGES);
    assert!(spec.ports[0].frontends.iter().any(|(_, kind)| *kind == lb_common::Kind::LoadBalancer));
}

#[test]
fn rule_6_the_health_check_port_counts_ready_endpoints_on_this_node() {
    let check = |service: Service, endpoints: &str, expected: Option<[Option<usize>; 2]>| {
        let health = Case::new(service, &[endpoints]).spec().health;
        assert_eq!(health.map(|health| [health.ready.v4, health.ready.v6]), expected, "{endpoints}");
    };
    // The load balancer may have an address already or not.
    let checked = || Service { health_port: 30_100.try_into().ok(), external_policy: Policy::Local, ..service() };
    check(service(), "1 local", None);
    check(checked(), "", Some([Some(0), None]));
    check(checked(), "1 local; 2 local; 3", Some([Some(2), None]));
    // The local list still has a serving-terminating endpoint.
    check(checked(), "1 local draining; 2", Some([Some(0), None]));
    check(checked(), "1 local unready; 2 local gone; 3 local w=0; 127.0.0.1 local; 4 nodeless", Some([Some(0), None]));
    check(Service { exempt: Some(Exempt::OtherProxy), ..checked() }, "1 local", None);
    let both = Service { cluster_ips: dual_stack().cluster_ips, ..checked() };
    check(both, "1 local; fd00::1 local; fd00::2 local", Some([Some(1), Some(2)]));
    // An endpoint at two ports counts once.
    let service = Service { ports: [port("a", 80), port("b", 81)].into(), ..checked() };
    let slices = groups(vec![group(&[("a", 8080), ("b", 8081)], "1 local")]);
    let spec = Case { slices, ..Case::new(service, &[]) }.spec();
    assert_eq!(spec.health.map(|health| health.ready.v4), Some(Some(1)));
}

#[test]
fn affinity_of_a_service_is_a_flag_of_its_ports_if_it_has_affinity() {
    let case = |seconds: u32, shares_affinity| {
        let service = tuned(Tuning { shares_affinity, ..Tuning::default() });
        let case = Case::new(Service { affinity_seconds: NonZeroU32::new(seconds), ..service }, &["1"]);
        (case.spec().ports[0].flags & ServiceFlags::SHARED_AFFINITY != 0, case.warnings())
    };
    assert_eq!(case(60, true), (true, vec![]));
    assert_eq!(case(60, false), (false, vec![]));
    let (is_set, warnings) = case(0, true);
    assert!(
        !is_set && warnings[0].ends_with("set sessionAffinity to ClientIP, or remove the annotation"),
        "{warnings:?}"
    );
    let many = |count: u16| {
        let service = tuned(Tuning { shares_affinity: true, ..Tuning::default() });
        let ports = (1..=count).map(|number| port(&format!("p{number}"), number)).collect();
        let case = Case::new(Service { affinity_seconds: NonZeroU32::new(60), ports, ..service }, &["1"]);
        (case.spec().ports[0].flags & ServiceFlags::SHARED_AFFINITY != 0, case.warnings().concat())
    };
    assert!(many(64).0);
    let (is_set, warning) = many(65);
    assert!(!is_set && warning.contains("64 ports can share affinity, and the Service has 65"), "{warning}");
}

#[test]
fn connects_of_udp_without_endpoints_are_allowed_by_a_flag_of_udp_ports() {
    let flags = |allows_udp_connect| {
        let dns = ServicePort { proto: Proto::Udp, ..port("dns", 53) };
        let service =
            Service { ports: [port("a", 80), dns].into(), ..tuned(Tuning { allows_udp_connect, ..Tuning::default() }) };
        let spec = Case::new(service, &[]).spec();
        spec.ports.iter().map(|port| port.flags & ServiceFlags::UDP_CONNECT != 0).collect::<Vec<_>>()
    };
    assert_eq!((flags(true), flags(false)), (vec![false, true], vec![false, false]));
}

#[test]
fn rule_7_affinity_and_annotations_apply_to_each_port() {
    let tuning = Tuning { scheduler: Some(Scheduler::Lc), drain: Drain::After(30), ..Tuning::default() };
    let ports = [port("a", 80), port("b", 81)].into();
    let affinity_seconds = NonZeroU32::new(10_800);
    let spec = Case::new(Service { ports, affinity_seconds, ..tuned(tuning) }, &[]).spec();
    let each: Vec<_> = spec.ports.iter().map(|port| (port.affinity_seconds, port.scheduler, port.drain)).collect();
    assert_eq!(each, [(10_800, Scheduler::Lc, Drain::After(30)); 2]);
    let plain = &Case::new(service(), &[]).spec().ports[0];
    assert_eq!((plain.affinity_seconds, plain.scheduler, plain.drain), (0, Scheduler::Random, Drain::Never));
}
