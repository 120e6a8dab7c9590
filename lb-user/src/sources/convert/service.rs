//! From a v1 Service.

use super::{addr, key, label, list, port, text};
use crate::{
    objects::{Exempt, Policy, Selector, Service, ServicePort},
    sources::wire,
};

/// From a v1 Service. `proxy_name` is the value of `--service-proxy-name`.
#[must_use]
pub fn service(wire: &wire::Service, proxy_name: Option<&str>) -> Service {
    let meta = &wire.metadata;
    let default = wire::ServiceSpec::default();
    let spec = wire.spec.as_ref().unwrap_or(&default);
    let mut problems = Vec::new();

    let (cluster_place, cluster_ips) = cluster_ips(spec);
    let exempt = exempt(wire, spec, &cluster_ips, proxy_name);
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
    let ingress_ips = ingress_ips(wire, &mut problems);

    let mut ports = Vec::with_capacity(list(&spec.ports).len());
    for (i, wire) in list(&spec.ports).iter().enumerate() {
        if let Some((proto, port)) = port(&mut problems, format_args!("ports[{i}]"), wire) {
            ports.push(ServicePort { name: text(wire.name.as_deref()), proto, port, node_port: None });
        }
    }

    let internal_policy = match spec.internal_traffic_policy.as_deref() {
        None | Some("" | "Cluster") => Policy::Cluster,
        Some("Local") => Policy::Local,
        Some(other) => {
            problems.push(format!("internalTrafficPolicy {other:?}: unknown, Cluster is used; write Cluster or Local"));
            Policy::Cluster
        }
    };

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
        external_policy: Policy::Cluster,
        affinity_seconds: None,
        tuning: None,
        source_ranges: Vec::new(),
        problems,
    }
}

/// `clusterIPs`, or `clusterIP` where the list is absent, and where it was found. The empty string counts as absent.
fn cluster_ips(spec: &wire::ServiceSpec) -> (&'static str, Vec<&str>) {
    let many: Vec<&str> = list(&spec.cluster_ips).iter().map(String::as_str).filter(|ip| !ip.is_empty()).collect();
    if many.is_empty() {
        ("clusterIP", spec.cluster_ip.as_deref().filter(|ip| !ip.is_empty()).into_iter().collect())
    } else {
        ("clusterIPs", many)
    }
}

fn exempt(
    wire: &wire::Service,
    spec: &wire::ServiceSpec,
    cluster_ips: &[&str],
    proxy_name: Option<&str>,
) -> Option<Exempt> {
    if label(&wire.metadata, "service.kubernetes.io/service-proxy-name") != proxy_name {
        Some(Exempt::OtherProxy)
    } else if spec.type_.as_deref() == Some("ExternalName") {
        Some(Exempt::ExternalName)
    } else if label(&wire.metadata, "service.kubernetes.io/headless").is_some()
        || spec.cluster_ip.as_deref() == Some("None")
        || cluster_ips.contains(&"None")
    {
        Some(Exempt::Headless)
    } else if cluster_ips.is_empty() {
        Some(Exempt::NoClusterIp)
    } else {
        None
    }
}

/// The load balancer's addresses that lead to the node unchanged (KEP-1860): one with a hostname alone, or with ipMode
/// Proxy, is passed over.
fn ingress_ips(wire: &wire::Service, problems: &mut Vec<String>) -> Vec<std::net::IpAddr> {
    let ingress = wire.status.as_ref().and_then(|status| status.load_balancer.as_ref());
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
                "status.loadBalancer.ingress[{i}].ipMode {other:?}: unknown, {ip} is not served; write VIP or Proxy"
            )),
        }
    }
    converted
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sources::convert::tests::yaml;

    fn read(text: &str) -> Service {
        service(&yaml(text), None)
    }

    #[test]
    fn whole_service_is_read() {
        let service = read(
            "
metadata: {namespace: ns, name: a, creationTimestamp: '1970-01-01T00:01:40Z'}
spec:
  type: LoadBalancer
  selector: {app: a}
  clusterIP: 10.96.0.1
  clusterIPs: [10.96.0.1, 'fd96::1']
  externalIPs: [192.0.2.1]
  internalTrafficPolicy: Local
  ports: [{name: http, port: 80, targetPort: web}, {name: dns, port: 53, protocol: UDP}, {port: 9, protocol: SCTP}]
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
                        node_port: None,
                    },
                    ServicePort {
                        name: "dns",
                        proto: Udp,
                        port: 53,
                        node_port: None,
                    },
                    ServicePort {
                        name: "",
                        proto: Sctp,
                        port: 9,
                        node_port: None,
                    },
                ],
                internal_policy: Local,
                external_policy: Cluster,
                affinity_seconds: None,
                tuning: None,
                source_ranges: [],
                problems: [],
            }
        "#]]
        .assert_debug_eq(&service);
    }

    #[test]
    fn service_that_is_not_ours_says_why() {
        let check = |text: &str, proxy_name: Option<&str>, expected: Option<Exempt>| {
            assert_eq!(service(&yaml(text), proxy_name).exempt, expected, "{text} {proxy_name:?}");
        };
        let named = "metadata: {labels: {service.kubernetes.io/service-proxy-name: x}}\nspec: {clusterIP: 10.96.0.1}";
        check("spec: {clusterIP: 10.96.0.1}", None, None);
        check("spec: {clusterIPs: ['fd96::1']}", None, None);
        check("spec: {clusterIP: None}", None, Some(Exempt::Headless));
        check("spec: {clusterIP: None, clusterIPs: [None]}", None, Some(Exempt::Headless));
        check("spec: {clusterIPs: [None]}", None, Some(Exempt::Headless));
        check(
            "metadata: {labels: {service.kubernetes.io/headless: ''}}\nspec: {clusterIP: 10.96.0.1}",
            None,
            Some(Exempt::Headless),
        );
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
    fn selector_counts_if_it_has_an_entry() {
        let check = |text: &str, expected| assert_eq!(read(text).selector, expected, "{text}");
        check("spec: {selector: {app: a}}", Selector::Some);
        check("spec: {selector: {}}", Selector::None);
        check("spec: {selector: null}", Selector::None);
        check("spec: {}", Selector::None);
    }

    #[test]
    fn bad_part_is_dropped_and_named() {
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
        assert_eq!(service.external_ips, ["192.0.2.1".parse::<std::net::IpAddr>().unwrap()]);
        assert_eq!(service.ports.len(), 1);
    }

    #[test]
    fn load_balancer_address_counts_in_vip_mode_only() {
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
}
