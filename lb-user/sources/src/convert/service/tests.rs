//! Tests of the conversion of a Service, and of its problems.

use super::*;
use crate::convert::tests::yaml;

fn read(text: &str) -> Service {
    service(&yaml(text), None)
}

#[test]
fn whole_service_is_read() {
    let service = read(
        "
metadata:
  namespace: ns
  name: a
  creationTimestamp: '1970-01-01T00:01:40Z'
  annotations: {beeline.io/scheduler: rr}
spec:
  type: LoadBalancer
  externalTrafficPolicy: Local
  sessionAffinity: ClientIP
  loadBalancerSourceRanges: ['203.0.113.0/24 ', ' fd00::/8']
  selector: {app: a}
  clusterIP: 10.96.0.1
  clusterIPs: [10.96.0.1, 'fd96::1']
  externalIPs: [192.0.2.1]
  internalTrafficPolicy: Local
  ports:
  - {name: http, port: 80, targetPort: web, nodePort: 30080}
  - {name: dns, port: 53, protocol: UDP}
  - {port: 9, protocol: SCTP}
status: {loadBalancer: {ingress: [{ip: 192.0.2.2}, {ip: 192.0.2.3, ipMode: VIP}]}}
",
    );
    expect_test::expect![[r#"
        Service {
            key: ns/a,
            created: Some(
                100,
            ),
            exempt: None,
            selector: Some,
            cluster_ips: [
                10.96.0.1,
                fd96::1,
            ],
            external_ips: [
                192.0.2.1,
            ],
            ingress_ips: [
                192.0.2.2,
                192.0.2.3,
            ],
            ports: [
                ServicePort {
                    name: "http",
                    proto: Tcp,
                    port: 80,
                    node_port: Some(
                        30080,
                    ),
                    ranges: None,
                },
                ServicePort {
                    name: "dns",
                    proto: Udp,
                    port: 53,
                    node_port: None,
                    ranges: None,
                },
                ServicePort {
                    name: "",
                    proto: Sctp,
                    port: 9,
                    node_port: None,
                    ranges: None,
                },
            ],
            internal_policy: Local,
            external_policy: Local,
            affinity_seconds: Some(
                10800,
            ),
            tuning: Some(
                Tuning {
                    scheduler: Some(
                        Rr,
                    ),
                    weights: [],
                    drain: Never,
                    only: None,
                    nodes: None,
                    range_policy: Allow,
                    preference: None,
                    tier_share: None,
                    slow_start: None,
                    max_connection_age: None,
                    probe: None,
                    redirect_from: None,
                    eject: None,
                    shares_affinity: false,
                    allows_udp_connect: false,
                },
            ),
            source_ranges: [
                203.0.113.0/24,
                fd00::/8,
            ],
            source_ranges_unreadable: false,
            health_port: None,
            pod: None,
            address_report: None,
            problems: [],
        }
    "#]]
    .assert_debug_eq(&service);
}

#[test]
fn a_service_that_is_not_served_has_its_reason() {
    let check = |text: &str, proxy_name: Option<&str>, expected: Option<Exempt>| {
        assert_eq!(service(&yaml(text), proxy_name).exempt, expected, "{text} {proxy_name:?}");
    };
    let named = "metadata: {labels: {service.kubernetes.io/service-proxy-name: x}}\nspec: {clusterIP: 10.96.0.1}";
    check("spec: {clusterIP: 10.96.0.1}", None, None);
    check("spec: {clusterIPs: ['fd96::1']}", None, None);
    check("spec: {clusterIP: None}", None, Some(Exempt::Headless));
    check("spec: {clusterIP: None, clusterIPs: [None]}", None, Some(Exempt::Headless));
    check("spec: {clusterIPs: [None]}", None, Some(Exempt::Headless));
    // The label is for slices: kube-proxy 1.37 reads it of no Service (cmd/kube-proxy/app/server.go).
    check("metadata: {labels: {service.kubernetes.io/headless: ''}}\nspec: {clusterIP: 10.96.0.1}", None, None);
    check("spec: {type: ExternalName, externalName: example.com}", None, Some(Exempt::ExternalName));
    check("spec: {type: ExternalName, clusterIP: 10.96.0.1}", None, Some(Exempt::ExternalName));
    check("spec: {clusterIP: ''}", None, Some(Exempt::NoClusterIp));
    check("spec: {clusterIP: '', clusterIPs: ['']}", None, Some(Exempt::NoClusterIp));
    check("spec: {}", None, Some(Exempt::NoClusterIp));
    check("metadata: {}", None, Some(Exempt::NoClusterIp));
    check(named, None, Some(Exempt::OtherProxy));
    check(named, Some("x"), None);
    check(named, Some("y"), Some(Exempt::OtherProxy));
    check("spec: {clusterIP: 10.96.0.1}", Some("x"), Some(Exempt::OtherProxy));
}

#[test]
fn the_external_policy_counts_only_where_kubernetes_knows_an_external_frontend() {
    let check = |spec: &str, expected: Policy| {
        let text = format!(
            "spec: {{clusterIP: 10.96.0.1, externalTrafficPolicy: Local, {spec}}}\n\
             status: {{loadBalancer: {{ingress: [{{ip: 192.0.2.1}}]}}}}"
        );
        assert_eq!(service(&yaml(&text), None).external_policy, expected, "{spec}");
    };
    check("type: LoadBalancer", Policy::Local);
    check("type: NodePort", Policy::Local);
    check("type: ClusterIP, externalIPs: [192.0.2.2]", Policy::Local);
    check("type: ClusterIP", Policy::Cluster);
    check("externalIPs: []", Policy::Cluster);
}

#[test]
fn an_empty_selector_counts_as_none() {
    let check = |text: &str, expected| assert_eq!(read(text).selector, expected, "{text}");
    check("spec: {selector: {app: a}}", Selector::Some);
    check("spec: {selector: {}}", Selector::None);
    check("spec: {selector: null}", Selector::None);
    check("spec: {}", Selector::None);
}

#[test]
fn a_wrong_part_is_dropped_with_a_problem() {
    let check = |spec: &str, expected: &[&str]| {
        let service = read(&format!("spec: {{clusterIP: 10.96.0.1, ports: [{{port: 80}}], {spec}}}"));
        assert_eq!(service.problems, expected, "{spec}");
        assert_eq!(service.exempt, None, "{spec}");
    };
    check("clusterIPs: [10.96.0.1, 10.96]", &["clusterIPs[1] \"10.96\": not an IP address; fix or remove it"]);
    check("externalIPs: [192.0.2.1, 10.0.0]", &["externalIPs[1] \"10.0.0\": not an IP address; fix or remove it"]);
    check(
        "internalTrafficPolicy: Node",
        &["internalTrafficPolicy \"Node\": unknown, Cluster is used; write Cluster or Local"],
    );
    check(
        "externalTrafficPolicy: local",
        &["externalTrafficPolicy \"local\": unknown, Cluster is used; write Cluster or Local"],
    );
    let service = read("spec: {clusterIP: 10.96.0, externalIPs: [x, 192.0.2.1], ports: [{port: 0}, {port: 80}]}");
    assert_eq!(
        service.problems,
        [
            "clusterIP[0] \"10.96.0\": not an IP address; fix or remove it",
            "externalIPs[0] \"x\": not an IP address; fix or remove it",
            "ports[0].port 0: not a port; use 1 to 65535",
        ]
    );
    assert!(service.cluster_ips.is_empty());
    assert_eq!(service.external_ips, ["192.0.2.1".parse::<IpAddr>().unwrap()]);
    assert_eq!(service.ports.len(), 1);
}

#[test]
fn node_ports_are_read_for_types_that_have_them() {
    let check = |spec: &str, expected: Option<u16>, problems: &[&str]| {
        let service = read(&format!("spec: {{{spec}}}"));
        let node_ports: Vec<_> = service.ports.iter().map(|port| port.node_port.map(NonZeroU16::get)).collect();
        assert_eq!(node_ports, [expected], "{spec}");
        assert_eq!(service.problems, problems, "{spec}");
    };
    check("type: NodePort, ports: [{port: 80, nodePort: 30080}]", Some(30080), &[]);
    check("type: LoadBalancer, ports: [{port: 80, nodePort: 65535}]", Some(65535), &[]);
    check("type: LoadBalancer, allocateLoadBalancerNodePorts: false, ports: [{port: 80, nodePort: 0}]", None, &[]);
    check("type: NodePort, ports: [{port: 80, nodePort: null}]", None, &[]);
    check("type: NodePort, ports: [{port: 80}]", None, &[]);
    check("type: ClusterIP, ports: [{port: 80, nodePort: 0}]", None, &[]);
    check("type: ExternalName, ports: [{port: 80, nodePort: 30080}]", None, &[]);
    for number in ["65536", "-1"] {
        check(
            &format!("type: NodePort, ports: [{{port: 80, nodePort: {number}}}]"),
            None,
            &[&format!("ports[0].nodePort {number}: not a port; use 1 to 65535")],
        );
    }
    let unserved = "ports[0].nodePort 30080: not served, since the type is ClusterIP; make it NodePort or \
                    LoadBalancer, or remove this";
    check("ports: [{port: 80, nodePort: 30080}]", None, &[unserved]);
    check("type: ClusterIP, ports: [{port: 80, nodePort: 30080}]", None, &[unserved]);
    check(
        "type: Nodeport, ports: [{port: 80, nodePort: 30080}]",
        None,
        &[
            "type \"Nodeport\": unknown, ClusterIP is used; write ClusterIP, NodePort, LoadBalancer or ExternalName",
            unserved,
        ],
    );
}

#[test]
fn affinity_has_the_timeout_of_the_service_or_the_default() {
    let check = |spec: &str, expected: Option<u32>, problems: &[&str]| {
        let service = read(&format!("spec: {{{spec}}}"));
        assert_eq!(service.affinity_seconds.map(NonZeroU32::get), expected, "{spec}");
        assert_eq!(service.problems, problems, "{spec}");
    };
    let seconds = |number: &str| {
        format!("sessionAffinity: ClientIP, sessionAffinityConfig: {{clientIP: {{timeoutSeconds: {number}}}}}")
    };
    check("", None, &[]);
    check("sessionAffinity: None", None, &[]);
    check("sessionAffinity: None, sessionAffinityConfig: {clientIP: {timeoutSeconds: 7}}", None, &[]);
    check("sessionAffinity: ClientIP", Some(10_800), &[]);
    check("sessionAffinity: ClientIP, sessionAffinityConfig: {}", Some(10_800), &[]);
    check("sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: null}", Some(10_800), &[]);
    check(&seconds("null"), Some(10_800), &[]);
    check(&seconds("1"), Some(1), &[]);
    check(&seconds("86400"), Some(86_400), &[]);
    for number in ["0", "-1", "86401", "4294967297"] {
        let problem = format!(
            "sessionAffinityConfig.clientIP.timeoutSeconds {number}: out of range, 10800 is used; use 1 to 86400"
        );
        check(&seconds(number), Some(10_800), &[&problem]);
    }
    check(
        "sessionAffinity: ClientIp",
        None,
        &["sessionAffinity \"ClientIp\": unknown, None is used; write None or ClientIP"],
    );
}

#[test]
fn source_ranges_are_networks() {
    let check = |ranges: &str, expected: &[&str], problems: &[&str]| {
        let service = read(&format!("spec: {{loadBalancerSourceRanges: {ranges}}}"));
        let got: Vec<String> = service.source_ranges.iter().map(ToString::to_string).collect();
        assert_eq!(got, expected, "{ranges}");
        assert_eq!(service.problems, problems, "{ranges}");
        assert_eq!(service.source_ranges_unreadable, expected.is_empty() && !problems.is_empty(), "{ranges}");
    };
    check("null", &[], &[]);
    check("[]", &[], &[]);
    check("[' 10.1.2.3/8 ', '::/0', 0.0.0.0/0]", &["10.0.0.0/8", "::/0", "0.0.0.0/0"], &[]);
    check(
        "[192.0.2.1, 'fd00::1', 10.0.0.0/33, '', '::ffff:10.0.0.0/104', 10.0.0.0/8]",
        &["10.0.0.0/8", "10.0.0.0/8"],
        &[
            "loadBalancerSourceRanges[0] \"192.0.2.1\": an address and not a range; write it as 192.0.2.1/32",
            "loadBalancerSourceRanges[1] \"fd00::1\": an address and not a range; write it as fd00::1/128",
            "loadBalancerSourceRanges[2] \"10.0.0.0/33\": not a CIDR; fix or remove it",
            "loadBalancerSourceRanges[3] \"\": not a CIDR; fix or remove it",
            "loadBalancerSourceRanges[4] \"::ffff:10.0.0.0/104\": not in standard form, read as 10.0.0.0/8; \
             write it as 10.0.0.0/8",
        ],
    );
    check(
        "[192.0.2.1]",
        &[],
        &[
            "loadBalancerSourceRanges[0] \"192.0.2.1\": an address and not a range; write it as 192.0.2.1/32",
            "loadBalancerSourceRanges: no range is readable, so that no client is let in; fix one",
        ],
    );
}

#[test]
fn health_check_node_port_needs_a_load_balancer_with_policy_local() {
    let check = |spec: &str, expected: Option<u16>, problems: &[&str]| {
        let service = read(&format!("spec: {{{spec}}}"));
        assert_eq!(service.health_port.map(std::num::NonZeroU16::get), expected, "{spec}");
        assert_eq!(service.problems, problems, "{spec}");
    };
    let (both, local) = ("type: LoadBalancer, externalTrafficPolicy: Local", "externalTrafficPolicy: Local");
    check(both, None, &[]);
    check(&format!("{both}, healthCheckNodePort: 0"), None, &[]);
    check(&format!("{both}, healthCheckNodePort: 30100"), Some(30_100), &[]);
    check(
        &format!("{both}, healthCheckNodePort: 65536"),
        None,
        &["healthCheckNodePort 65536: not a port; use 1 to 65535"],
    );
    for other in ["type: LoadBalancer", &format!("type: NodePort, {local}"), local] {
        check(
            &format!("{other}, healthCheckNodePort: 30100"),
            None,
            &["healthCheckNodePort 30100: not served, since it is for type LoadBalancer with externalTrafficPolicy \
               Local; make it so, or remove this"],
        );
    }
}

#[test]
fn load_balancer_addresses_are_read_in_mode_vip_only() {
    let check = |ingress: &str, ips: &[&str], problems: &[&str]| {
        let service = read(&format!("status: {{loadBalancer: {{ingress: [{ingress}]}}}}"));
        let got: Vec<String> = service.ingress_ips.iter().map(ToString::to_string).collect();
        assert_eq!(got, ips, "{ingress}");
        assert_eq!(service.problems, problems, "{ingress}");
    };
    check("{ip: 192.0.2.1}", &["192.0.2.1"], &[]);
    check("{ip: 192.0.2.1, ipMode: VIP, hostname: a.example}", &["192.0.2.1"], &[]);
    check("{ip: 192.0.2.1, ipMode: Proxy}, {ip: 'fd00::1'}", &["fd00::1"], &[]);
    check("{hostname: a.example}", &[], &[]);
    check("{ip: '', hostname: a.example, ipMode: Odd}", &[], &[]);
    check(
        "{ip: 192.0.2.1, ipMode: Odd}",
        &[],
        &["status.loadBalancer.ingress[0].ipMode \"Odd\": unknown, 192.0.2.1 is not served; write VIP or Proxy"],
    );
    check(
        "{ip: a.example}",
        &[],
        &["status.loadBalancer.ingress[0].ip \"a.example\": not an IP address; fix or remove it"],
    );
}

#[test]
fn addresses_and_ranges_of_older_api_servers_are_read_with_problems() {
    let service = read(
        "
spec:
  type: LoadBalancer
  clusterIPs: [10.096.000.091]
  ports: [{port: 80}]
  loadBalancerSourceRanges: ['203.0.113.005/32']
  externalIPs: ['198.051.100.092', '::ffff:198.51.100.93']
status: {loadBalancer: {ingress: [{ip: 198.051.100.091}]}}
",
    );
    let addrs = [&service.cluster_ips, &service.external_ips, &service.ingress_ips];
    let addrs: Vec<_> = addrs.into_iter().flatten().map(ToString::to_string).collect();
    assert_eq!(addrs, ["10.96.0.91", "198.51.100.92", "198.51.100.93", "198.51.100.91"]);
    assert_eq!(service.source_ranges, ["203.0.113.5/32".parse::<IpNet>().unwrap()]);
    assert!(!service.source_ranges_unreadable);
    assert_eq!(
        service.problems,
        [
            ("clusterIPs[0]", "10.096.000.091", "10.96.0.91"),
            ("externalIPs[0]", "198.051.100.092", "198.51.100.92"),
            ("externalIPs[1]", "::ffff:198.51.100.93", "198.51.100.93"),
            ("status.loadBalancer.ingress[0].ip", "198.051.100.091", "198.51.100.91"),
            ("loadBalancerSourceRanges[0]", "203.0.113.005/32", "203.0.113.5/32"),
        ]
        .map(|(place, text, read)| {
            format!("{place} {text:?}: not in standard form, read as {read}; write it as {read}")
        })
    );
}
