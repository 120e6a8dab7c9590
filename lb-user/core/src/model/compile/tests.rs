//! The compiler: matching of ports, and a warning for each bad value.

use std::{collections::BTreeSet, fmt::Write as _, net::IpAddr, sync::Arc};

use expect_test::{Expect, expect};
use lb_common::{List, Proto};

use super::*;
use crate::{
    model::{
        claims::Claims,
        cross_namespace::CrossNamespaceIndex,
        frontends::{ExternalIps, request},
        redirects::RedirectIndex,
        slow_start::SlowStarts,
    },
    objects::{
        Endpoint, EndpointGroup, EndpointPort, EndpointSlice, Endpoints, Key, Policy, Selector, Service, ServicePort,
        SliceManager,
    },
    world::World,
};

const NODE: NodeContext<'static> =
    NodeContext { name: "node-1", zone: None, node_ports: &BTreeSet::new(), own: &BTreeSet::new() };

fn addr(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn port(name: &str, port: u16) -> ServicePort {
    ServicePort::new(name, Proto::Tcp, port.try_into().expect("not 0"))
}

fn service() -> Service {
    Service {
        cluster_ips: vec![addr("10.96.0.1")],
        ports: [port("", 80)].into(),
        ..Service::new(Key::new("default", "a"))
    }
}

fn group(ports: &[(&str, u16)], addrs: &[&str]) -> EndpointGroup {
    let endpoint = |text: &&str| Endpoint::new(addr(text));
    let port = |&(name, port): &(&str, u16)| EndpointPort {
        name: name.into(),
        proto: Proto::Tcp,
        port: port.try_into().expect("not 0"),
    };
    EndpointGroup { ports: ports.iter().map(port).collect(), endpoints: addrs.iter().map(endpoint).collect() }
}

fn slice(group: EndpointGroup) -> EndpointSlice {
    let service = Some(Key::new("default", "a"));
    EndpointSlice {
        key: Key::new("default", "a-1"),
        service,
        manager: SliceManager::Other,
        group,
        triggered: None,
        problems: Vec::new(),
    }
}

fn check(service: &Service, slices: Vec<EndpointSlice>, endpoints: Option<&Endpoints>, expected: &Expect) {
    let slices: Vec<_> = slices.into_iter().map(Arc::new).collect();
    let view = View { service, slices: &slices, endpoints };
    let mut claims = Claims::default();
    let cross_namespace = CrossNamespaceIndex::default();
    let request = request(service, &ExternalIps::Any, &cross_namespace);
    let keys: Vec<_> = request.frontends.iter().map(|frontend| (frontend.key, frontend.kind)).collect();
    claims.set(&service.key, service.created, &keys);
    let cluster = ClusterContext {
        claims: &claims,
        cross_namespace: &cross_namespace,
        redirects: &RedirectIndex::default(),
        maps: None,
        slow_starts: &SlowStarts::default(),
        world: &World::new("here"),
    };
    let spec = compile(&view, request, NODE, &Settings::default(), cluster);
    let mut text = String::new();
    for port in &spec.ports {
        let list = |list| {
            let members = port.backends.iter().filter(|member| member.is_in(list));
            members.map(|member| format!(" {}", member.target)).collect::<String>()
        };
        let frontends: Vec<_> = port.frontends.iter().map(|(key, kind)| format!(" {key}={}", kind.name())).collect();
        writeln!(text, "{}:{} →{}", port.key, frontends.concat(), list(List::Cluster)).expect("a String");
        if port.flags != 0 {
            writeln!(text, "  local{}", list(List::Local)).expect("a String");
        }
    }
    spec.warnings.iter().for_each(|warning| writeln!(text, "! {warning}").expect("a String"));
    expected.assert_eq(&text);
}

#[test]
fn ports_match_by_name_and_bad_ones_cost_only_themselves() {
    let long = "x".repeat(64);
    let ports = vec![port("b", 81), port("a", 80), port("b", 82), port("c", 80), port(&long, 83)];
    check(
        &Service { ports: ports.into(), problems: vec!["something is odd".to_owned()], ..service() },
        vec![slice(group(&[("a", 8080), ("b", 8081), ("c", 8082)], &["10.0.0.2", "10.0.0.1", "fd00::1"]))],
        None,
        &expect![[r#"
            default/a:a/TCP: 10.96.0.1:80/TCP=ClusterIP → 10.0.0.1:8080 10.0.0.2:8080
            default/a:b/TCP: 10.96.0.1 any port=Address 10.96.0.1:81/TCP=ClusterIP → 10.0.0.1:8081 10.0.0.2:8081
            ! something is odd
            ! 10.96.0.1:80/TCP (ClusterIP) is asked for by the ports "c" and "a", and "a" gets it; remove one
            ! its endpoint [fd00::1]:8081 is not used, since the Service has IPv4 cluster IPs only; add IPv6 to spec.ipFamilies
            ! its endpoint [fd00::1]:8080 is not used, since the Service has IPv4 cluster IPs only; add IPv6 to spec.ipFamilies
            ! spec.ports: "b" stands there twice for TCP; the first counts, rename the other
            ! its endpoint [fd00::1]:8082 is not used, since the Service has IPv4 cluster IPs only; add IPv6 to spec.ipFamilies
            ! a port is not served: its name "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx" has more than 63 octets; choose a shorter one
        "#]],
    );
}

#[test]
fn a_service_whose_name_is_too_long_for_the_maps_is_not_served() {
    let key = Key::new("default", &"x".repeat(64));
    let service = Service { key, ..service() };
    check(
        &service,
        Vec::new(),
        None,
        &expect![[r#"
        ! it is not served: its name "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx" has more than 63 octets; choose a shorter one
    "#]],
    );
}

#[test]
fn rule_2_an_endpoints_object_counts_where_the_mirroring_controller_would_mirror_it() {
    let by_hand = Service { selector: Selector::None, ..service() };
    let own = Endpoints {
        key: Key::new("default", "a"),
        mirrorable: true,
        groups: vec![group(&[("", 9376)], &["192.0.2.42"])],
        triggered: None,
        problems: Vec::new(),
    };
    let foreign = || slice(group(&[("", 9376)], &["192.0.2.1"]));
    let own_only = expect![[r"
        default/a/TCP: 10.96.0.1 any port=Address 10.96.0.1:80/TCP=ClusterIP → 192.0.2.42:9376
    "]];
    let foreign_only = expect![[r"
        default/a/TCP: 10.96.0.1 any port=Address 10.96.0.1:80/TCP=ClusterIP → 192.0.2.1:9376
    "]];
    let both = expect![[r"
        default/a/TCP: 10.96.0.1 any port=Address 10.96.0.1:80/TCP=ClusterIP → 192.0.2.1:9376 192.0.2.42:9376
    "]];
    check(&by_hand, Vec::new(), Some(&own), &own_only);
    check(&by_hand, vec![foreign()], Some(&own), &both);
    check(&by_hand, vec![EndpointSlice { manager: SliceManager::Mirroring, ..foreign() }], Some(&own), &foreign_only);
    check(&by_hand, vec![foreign()], Some(&Endpoints { mirrorable: false, ..own.clone() }), &foreign_only);
    check(&service(), vec![foreign()], Some(&own), &foreign_only);
}

#[test]
fn many_endpoints_of_one_problem_are_one_warning() {
    let addrs: Vec<_> = (1..9).map(|n| format!("10.0.0.{n}")).collect();
    let addrs: Vec<_> = addrs.iter().map(String::as_str).collect();
    check(
        &Service { internal_policy: Policy::Local, ..service() },
        vec![slice(group(&[("", 80)], &addrs))],
        None,
        &expect![[r"
            default/a/TCP: 10.96.0.1 any port=Address 10.96.0.1:80/TCP=ClusterIP → 10.0.0.1:80 10.0.0.2:80 10.0.0.3:80 10.0.0.4:80 10.0.0.5:80 10.0.0.6:80 10.0.0.7:80 10.0.0.8:80
              local
            ! internalTrafficPolicy is Local, but its endpoint 10.0.0.1:80, 10.0.0.2:80, 10.0.0.3:80, 10.0.0.4:80, 10.0.0.5:80 and 3 more has no nodeName and so is local nowhere; set nodeName in its EndpointSlice
        "]],
    );
}
