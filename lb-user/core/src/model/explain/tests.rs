//! Explanations as text.

use std::{collections::BTreeSet, num::NonZeroU32, sync::Arc};

use expect_test::expect;
use lb_common::{Proto, Scheduler};

use super::*;
use crate::{
    event::{Event, Object},
    model::{
        claims::Claims, cross_namespace::CrossNamespaceIndex, frontends::request, redirects::RedirectIndex,
        slow_start::SlowStarts,
    },
    objects::{
        AddressReport, Endpoint, EndpointGroup, EndpointPort, EndpointSlice, Endpoints, Key, ServicePort, SliceManager,
        Tuning,
    },
    world::World,
};

fn addr(text: &str) -> std::net::IpAddr {
    text.parse().expect("an address")
}

fn explained(view: &View<'_>, others: &[&Service], node_ports: &[&str]) -> Explanation {
    explained_with(view, others, node_ports, &CrossNamespaceIndex::default())
}

fn explained_with(
    view: &View<'_>,
    others: &[&Service],
    node_ports: &[&str],
    cross_namespace: &CrossNamespaceIndex,
) -> Explanation {
    let mut claims = Claims::default();
    let request = |service| request(service, &Settings::default().external_ips, cross_namespace);
    for service in others.iter().chain([&view.service]) {
        let keys: Vec<_> = request(service).frontends.iter().map(|frontend| (frontend.key, frontend.kind)).collect();
        claims.set(&service.key, service.created, &keys);
    }
    let node_ports: BTreeSet<Addr> = node_ports.iter().map(|own| addr(own).into()).collect();
    let node = NodeContext { name: "here", zone: Some("z"), node_ports: &node_ports, own: &node_ports };
    let cluster = ClusterContext {
        claims: &claims,
        cross_namespace,
        redirects: &RedirectIndex::default(),
        maps: None,
        slow_starts: &SlowStarts::default(),
        world: &World::new("here"),
    };
    explain(view, request(view.service), node, &Settings::default(), cluster)
}

fn web(name: &str, created: i64, vip: &str) -> Service {
    let http = ServicePort {
        node_port: 30_080.try_into().ok(),
        ..ServicePort::new("http", Proto::Tcp, 80.try_into().expect("not 0"))
    };
    Service {
        created: Some(created),
        cluster_ips: vec![addr(vip)],
        external_ips: vec![addr("192.0.2.7"), addr("fd00::7")],
        ports: [http].into(),
        internal_policy: Policy::Local,
        ..Service::new(Key::new("default", name))
    }
}

fn slice(port: &str, endpoints: Vec<Endpoint>) -> Arc<EndpointSlice> {
    let port = EndpointPort { name: port.into(), proto: Proto::Tcp, port: 8080.try_into().expect("not 0") };
    Arc::new(EndpointSlice {
        key: Key::new("default", "web-1"),
        service: Some(Key::new("default", "web")),
        manager: SliceManager::Other,
        group: EndpointGroup { ports: [port].into(), endpoints },
        triggered: None,
        problems: Vec::new(),
    })
}

fn on(node: &str, at: &str) -> Endpoint {
    Endpoint { node: Some(node.into()), ..Endpoint::new(addr(at)) }
}

#[test]
fn every_field_of_a_service_is_explained() {
    let service = Service {
        ingress_ips: vec![addr("192.0.2.8")],
        external_policy: Policy::Local,
        health_port: 30_100.try_into().ok(),
        affinity_seconds: NonZeroU32::new(10_800),
        source_ranges: vec!["198.51.100.0/24".parse().expect("a prefix")],
        address_report: Some(Arc::new(AddressReport {
            is_clean: false,
            message: "192.0.2.8; it keeps 192.0.2.8, which is in no pool any more; add it to one".to_owned(),
        })),
        tuning: Some(Box::new(Tuning {
            scheduler: Some(Scheduler::Wrr),
            drain: Drain::After(30),
            ..Tuning::default()
        })),
        ..web("web", 2, "10.96.0.1")
    };
    let older = Service {
        ports: [ServicePort::new("", Proto::Tcp, 80.try_into().expect("not 0"))].into(),
        ..web("old", 1, "10.96.0.2")
    };
    let slices = [slice(
        "http",
        vec![
            on("here", "10.0.0.1"),
            Endpoint { weight: 3, ..on("there", "10.0.0.2") },
            Endpoint { ready: false, serving: false, ..on("there", "10.0.0.3") },
        ],
    )];
    let view = View { service: &service, slices: &slices, endpoints: None };
    let explanation = explained(&view, &[&older], &["192.0.2.1"]);
    expect![[r"
        Service default/web
          type       ClusterIP, NodePort, LoadBalancer, ExternalIP
          internal   Local: cluster IPs lead to endpoints on this node only
          external   Local: clients outside are led to endpoints on this node only, which see their own address; callers on this node use the cluster list
          address    192.0.2.8; it keeps 192.0.2.8, which is in no pool any more; add it to one
          ranges     198.51.100.0/24: only these clients are served at load balancer addresses, callers on this node by the address that they send from; other frontends are not bound
          health     port 30100 answers 200 while an endpoint on this node is ready; now 1 of IPv4
          affinity   a client keeps its backend for 10800 s after its last connect
          scheduler  wrr, by annotation
          drain      TCP sockets end 30 s after their backend has gone
        frontends
          0.0.0.0:30080/TCP  NodePort      owned, answers at 192.0.2.1
          10.96.0.1:80/TCP   ClusterIP     owned
          192.0.2.8:80/TCP   LoadBalancer  owned
          fd00::7            ExternalIP    is not served, since the Service has no IPv6 cluster IP; add IPv6 to spec.ipFamilies
          192.0.2.7:80/TCP   ExternalIP    belongs to the Service default/old, which is older or, at equal age, first by name; use another address or port
        port http 80/TCP, IPv4: 2 in the cluster list, 1 in the local list, for cluster IPs and clients outside
          10.0.0.1:8080  here   used
          10.0.0.2:8080  there  used by callers on this node at external frontends, not by cluster IPs and clients outside: it is on another node; weight 3
          10.0.0.3:8080  there  not used: it is not ready
    "]].assert_eq(&explanation.to_string());
    let json = serde_json::to_value(&explanation).expect("it is JSON");
    assert_eq!(json["ports"][0]["endpoints"][1]["weight"], 3);
    assert_eq!(json["frontends"][3]["owned"], false);
}

#[test]
fn hand_written_endpoints_and_an_object_without_effect_are_explained() {
    let group = slice("other", vec![Endpoint::new(addr("10.0.0.9"))]).group.clone();
    let object = Endpoints {
        key: Key::new("default", "web"),
        mirrorable: true,
        groups: vec![group],
        triggered: None,
        problems: Vec::new(),
    };
    let by_hand = Service { selector: Selector::None, external_ips: Vec::new(), ..web("web", 1, "10.96.0.1") };
    let view = View { service: &by_hand, slices: &[], endpoints: Some(&object) };
    expect![[r#"
        Service default/web
          type       ClusterIP, NodePort
          selector   none: endpoints are written by hand
          internal   Local: cluster IPs lead to endpoints on this node only
          external   Cluster: clients outside are led to endpoints on any node; one on this node sees their own address, one elsewhere sees this node's
          scheduler  random, the default of this node
        frontends
          0.0.0.0:30080/TCP  NodePort   owned, but no IPv4 address of this node is known at which NodePorts answer
          10.96.0.1:80/TCP   ClusterIP  owned
        port http 80/TCP, IPv4: 0 in the cluster list, 0 in the local list, for cluster IPs
          10.0.0.9  -  not used: Endpoints default/web has no port "http" of TCP
        warnings
          no endpoint has a port "http" of TCP; they have "other" TCP; give them the same name
    "#]]
    .assert_eq(&explained(&view, &[], &[]).to_string());
    let selected = Service { selector: Selector::Some, ..by_hand.clone() };
    let view = View { service: &selected, ..view };
    expect![[r"
        Service default/web
          type       ClusterIP, NodePort
          internal   Local: cluster IPs lead to endpoints on this node only
          external   Cluster: clients outside are led to endpoints on any node; one on this node sees their own address, one elsewhere sees this node's
          scheduler  random, the default of this node
          no effect  Endpoints default/web does not count: the Service has a selector, and a controller writes its EndpointSlices
        frontends
          0.0.0.0:30080/TCP  NodePort   owned, answers at 192.0.2.1
          10.96.0.1:80/TCP   ClusterIP  owned
        port http 80/TCP, IPv4: 0 in the cluster list, 0 in the local list, for cluster IPs
          no object has an endpoint for it
    "]]
    .assert_eq(&explained(&view, &[], &["192.0.2.1"]).to_string());
}

#[test]
fn policies_for_clients_outside_are_explained() {
    let policy_lines = |service: Service, endpoints: Vec<Endpoint>| {
        let slices = [slice("http", endpoints)];
        let view = View { service: &service, slices: &slices, endpoints: None };
        let text = explained(&view, &[], &["192.0.2.1"]).to_string();
        let shown = |line: &&str| {
            ["external ", "ranges ", "health ", "port http", "10.0.0."]
                .iter()
                .any(|start| line.trim().starts_with(start))
        };
        text.lines().filter(shown).map(|line| format!("{line}\n")).collect::<String>()
    };
    let draining = || Endpoint { ready: false, terminating: true, ..on("here", "10.0.0.1") };
    let balanced = || Service {
        internal_policy: Policy::Cluster,
        external_policy: Policy::Local,
        ingress_ips: vec![addr("192.0.2.8")],
        health_port: 30_100.try_into().ok(),
        ..web("web", 1, "10.96.0.1")
    };
    let ranges = |count: u8| (0..count).map(|n| format!("198.51.{n}.0/24").parse().expect("a network")).collect();
    expect![[r"
          external   Local: clients outside are led to endpoints on this node only, which see their own address; callers on this node use the cluster list
          health     port 30100 answers 200 while an endpoint on this node is ready; now 0 of IPv4
        port http 80/TCP, IPv4: 1 in the cluster list, 1 in the local list, for clients outside
          10.0.0.1:8080  here   used by clients outside; it terminates, but no ready one is left; not by cluster IPs and callers on this node: it terminates, and others are ready
          10.0.0.2:8080  there  used by cluster IPs and callers on this node, not by clients outside: it is on another node
    "]].assert_eq(&policy_lines(balanced(), vec![draining(), on("there", "10.0.0.2")]));
    expect![[r"
          external   Local: clients outside are led to endpoints on this node only, which see their own address; callers on this node use the cluster list
          ranges     198.51.0.0/24, 198.51.1.0/24, 198.51.2.0/24, 198.51.3.0/24, 198.51.4.0/24 and 4 more: only these clients are served at load balancer addresses, callers on this node by the address that they send from; other frontends are not bound
          health     port 30100 answers 200 while an endpoint on this node is ready; now 1 of IPv4
        port http 80/TCP, IPv4: 1 in the cluster list, 1 in the local list, for clients outside
          10.0.0.1:8080  here  used
    "]].assert_eq(&policy_lines(Service { source_ranges: ranges(9), ..balanced() }, vec![on("here", "10.0.0.1")]));
    let open = Service { source_ranges: vec!["fd00::/8".parse().expect("a network")], ..balanced() };
    expect![[r"
          external   Local: clients outside are led to endpoints on this node only, which see their own address; callers on this node use the cluster list
          ranges     all IPv4 clients: only these clients are served at load balancer addresses, callers on this node by the address that they send from; other frontends are not bound
          health     port 30100 answers 200 while an endpoint on this node is ready; now 0 of IPv4
        port http 80/TCP, IPv4: 0 in the cluster list, 0 in the local list, for clients outside
    "]].assert_eq(&policy_lines(open, vec![]));
    let inside = Service {
        external_policy: Policy::Local,
        source_ranges: ranges(1),
        external_ips: Vec::new(),
        ports: [ServicePort::new("http", Proto::Tcp, 80.try_into().expect("not 0"))].into(),
        ..web("web", 1, "10.96.0.1")
    };
    expect![[r"
          external   Local: decides nothing, since it has no frontend for clients outside
          ranges     decide nothing, since it has no load balancer address
        port http 80/TCP, IPv4: 0 in the cluster list, 0 in the local list, for cluster IPs
    "]]
    .assert_eq(&policy_lines(inside, vec![]));
}

#[test]
fn a_service_that_is_not_served_is_explained() {
    let service = Service { exempt: Some(Exempt::Headless), ..web("web", 1, "10.96.0.1") };
    let view = View { service: &service, slices: &[], endpoints: None };
    expect![[r"
        Service default/web
          not served  it is headless: its DNS name leads to the endpoints themselves
    "]]
    .assert_eq(&explained(&view, &[], &[]).to_string());
}

#[test]
fn a_hand_written_endpoint_that_is_a_pod_of_another_namespace_is_reported() {
    let pods = Service { selector: Selector::Some, ..Service::new(Key::new("b", "pods")) };
    let group = || slice("http", vec![on("there", "10.0.0.1"), on("there", "10.0.0.2")]).group.clone();
    let of_pods = EndpointSlice {
        key: Key::new("b", "pods-1"),
        service: Some(pods.key.clone()),
        manager: SliceManager::Selecting,
        group: EndpointGroup { endpoints: vec![Endpoint::new(addr("10.0.0.1"))], ..group() },
        triggered: None,
        problems: Vec::new(),
    };
    let by_hand = Service {
        selector: Selector::None,
        external_ips: Vec::new(),
        internal_policy: Policy::Cluster,
        ..web("web", 1, "10.96.0.1")
    };
    let own = EndpointSlice { key: Key::new("default", "web-1"), group: group(), ..of_pods.clone() };
    let own = EndpointSlice { service: Some(by_hand.key.clone()), ..own };
    let mut world = World::new("here");
    for object in [
        Object::Service(by_hand.clone()),
        Object::Service(pods),
        Object::EndpointSlice(own),
        Object::EndpointSlice(of_pods),
    ] {
        world.apply(Event::Apply(object));
    }
    let mut index = CrossNamespaceIndex::default();
    let mut changed = world.take_dirty();
    changed.sort_unstable();
    assert_eq!(index.update(&world, &changed), std::slice::from_ref(&by_hand.key));
    let explanation = explained_with(&world.view(&by_hand.key).expect("it is there"), &[], &[], &index);
    let of = |at: usize| explanation.ports[0].endpoints[at].why.as_str();
    assert_eq!(of(0), "used; a pod of another namespace, that of the Service b/pods");
    assert_eq!(of(1), "used");
    assert_eq!(
        explanation.warnings.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["its endpoint 10.0.0.1:8080 is a pod of another namespace, that of the Service b/pods: who may write \
             endpoints here lets callers reach it that trust this namespace; let them use that Service itself, or \
             refuse such endpoints with --cross-namespace-endpoints=refuse"]
    );
}

#[test]
fn a_cluster_ip_of_the_node_is_named() {
    let service = web("web", 1, "10.96.0.1");
    let view = View { service: &service, slices: &[], endpoints: None };
    let state = |own: &[&str]| {
        explained(&view, &[], own).frontends.iter().find(|line| line.kind == "ClusterIP").map(|line| line.state.clone())
    };
    assert_eq!(state(&["192.0.2.1"]).as_deref(), Some("owned"));
    assert_eq!(
        state(&["10.96.0.1"]).as_deref(),
        Some("owned; an interface of this node has the address, so that a process that listens there goes first")
    );
}

#[test]
fn an_endpoint_whose_weight_rises_says_until_when() {
    let tuning = Tuning { slow_start: NonZeroU32::new(30), ..Tuning::default() };
    let service =
        Service { tuning: Some(Box::new(tuning)), internal_policy: Policy::Cluster, ..web("web", 1, "10.96.0.1") };
    let (claims, cross_namespace, redirects) =
        (Claims::default(), CrossNamespaceIndex::default(), RedirectIndex::default());
    let (world, node_ports) = (World::new("here"), BTreeSet::new());
    let node = NodeContext { name: "here", zone: None, node_ports: &node_ports, own: &node_ports };
    let mut slow_starts = SlowStarts::default();
    let both = vec![on("here", "10.0.0.1"), on("there", "10.0.0.2")];
    let mut text = String::new();
    for endpoints in [&both[..1], &both] {
        let slices = [slice("http", endpoints.to_vec())];
        let view = View { service: &service, slices: &slices, endpoints: None };
        for pass in 0..2 {
            let slow = &slow_starts;
            let cluster = ClusterContext {
                claims: &claims,
                cross_namespace: &cross_namespace,
                redirects: &redirects,
                maps: None,
                slow_starts: slow,
                world: &world,
            };
            let settings = Settings::default();
            let request = || request(&service, &settings.external_ips, &cross_namespace);
            text = explain(&view, request(), node, &settings, cluster).to_string();
            let spec = crate::model::compile(&view, request(), node, &settings, cluster);
            if pass == 0 {
                slow_starts.observe(&spec, NonZeroU32::new(30), None);
            }
        }
    }
    let lines: Vec<_> =
        text.lines().map(str::trim).filter(|line| line.contains("8080") || line.contains("slow start")).collect();
    assert_eq!(
        lines,
        [
            "slow start  the weight of an endpoint that gets ready rises for 30 s",
            "10.0.0.1:8080  here   used; weight 10",
            "10.0.0.2:8080  there  used; new: it has 1/10 of its weight, and all of it in 30 s",
        ]
    );
}
