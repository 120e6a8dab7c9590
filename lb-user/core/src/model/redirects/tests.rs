//! Redirected clients: lists, refusals, and the Services that are compiled again.

use std::collections::BTreeSet;

use lb_common::{List, Proto, ServiceFlags};

use super::*;
use crate::{
    event::{Event, Object, ObjectKind},
    model::{
        NodeContext, Settings, claims::Claims, compile, cross_namespace::CrossNamespaceIndex, explain::explain,
        fan_out, frontends::request, slow_start::SlowStarts,
    },
    objects::{
        Endpoint, EndpointGroup, EndpointPort, EndpointSlice, Probe, ProbeQuestion, ProbeVerdict, Selector,
        ServicePort, SliceManager, Tuning,
    },
};

const NODE: NodeContext<'static> =
    NodeContext { name: "here", zone: None, node_ports: &BTreeSet::new(), own: &BTreeSet::new() };

fn key(text: &str) -> Key {
    let (namespace, name) = text.split_once('/').expect("a namespace and a name");
    Key::new(namespace, name)
}

fn port(name: &str, proto: Proto) -> ServicePort {
    ServicePort::new(name, proto, 53.try_into().expect("not 0"))
}

/// `kube-system/dns` and Services that name it have the ports `udp` and `tcp`.
fn service(name: &str, created: i64, vip: u8, redirect_from: Option<&str>) -> Service {
    let tuning = Tuning { redirect_from: redirect_from.map(key), ..Tuning::default() };
    Service {
        created: Some(created),
        cluster_ips: vec![[10, 96, 0, vip].into()],
        ports: [port("udp", Proto::Udp), port("tcp", Proto::Tcp)].into(),
        tuning: (tuning != Tuning::default()).then(|| Box::new(tuning)),
        ..Service::new(key(name))
    }
}

/// The slice of a Service: endpoints 10.0.0.N as `N`, on this node with `local`, and their state.
fn slice(service: &str, endpoints: &str) -> EndpointSlice {
    let endpoint = |text: &str| {
        let mut words = text.split_whitespace();
        let last: u8 = words.next().and_then(|word| word.parse().ok()).expect("a number");
        let mut endpoint = Endpoint { node: Some("there".into()), ..Endpoint::new([10, 0, 0, last].into()) };
        for word in words {
            match word {
                "local" => endpoint.node = Some("here".into()),
                "draining" => (endpoint.ready, endpoint.terminating) = (false, true),
                "unready" => (endpoint.ready, endpoint.serving) = (false, false),
                "w=0" => endpoint.weight = 0,
                _ => panic!("{word}?"),
            }
        }
        endpoint
    };
    let port = |name: &str, proto| EndpointPort { name: name.into(), proto, port: 53.try_into().expect("not 0") };
    let endpoints = endpoints.split(';').map(str::trim).filter(|text| !text.is_empty()).map(endpoint).collect();
    EndpointSlice {
        key: key(service),
        service: Some(key(service)),
        manager: SliceManager::Selecting,
        group: EndpointGroup { ports: [port("udp", Proto::Udp), port("tcp", Proto::Tcp)].into(), endpoints },
        triggered: None,
        problems: Vec::new(),
    }
}

/// The objects, and the indexes over them as the agent keeps them.
struct Fixture {
    world: World,
    claims: Claims,
    cross_namespace: CrossNamespaceIndex,
    redirects: RedirectIndex,
    slow_starts: SlowStarts,
    settings: Settings,
}

impl Fixture {
    fn new(namespaces: &str) -> Self {
        let redirect_namespaces = namespaces.parse().expect("a list of namespaces");
        Self {
            world: World::new("here"),
            claims: Claims::default(),
            cross_namespace: CrossNamespaceIndex::default(),
            redirects: RedirectIndex::default(),
            slow_starts: SlowStarts::default(),
            settings: Settings { redirect_namespaces, ..Settings::default() },
        }
    }

    /// Applies an event, and returns the names of the Services that it affects besides the changed one.
    fn apply(&mut self, event: Event) -> String {
        self.world.apply(event);
        let keys = self.world.take_dirty();
        let external_ips = &self.settings.external_ips;
        fan_out::record(&mut self.claims, &self.world, &keys, external_ips, &self.cross_namespace);
        let affected = self.redirects.update(&self.world, &keys, &self.settings.redirect_namespaces);
        let others: BTreeSet<_> = affected.into_iter().filter(|key| !keys.contains(key)).collect();
        others.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    }

    fn put(&mut self, service: Service) -> String {
        self.apply(Event::Apply(Object::Service(service)))
    }

    fn endpoints(&mut self, service: &str, endpoints: &str) -> String {
        self.apply(Event::Apply(Object::EndpointSlice(slice(service, endpoints))))
    }

    fn delete(&mut self, service: &str) -> String {
        self.apply(Event::Delete(ObjectKind::Service, key(service)))
    }

    fn cluster(&self) -> ClusterContext<'_> {
        ClusterContext {
            claims: &self.claims,
            cross_namespace: &self.cross_namespace,
            redirects: &self.redirects,
            maps: None,
            slow_starts: &self.slow_starts,
            world: &self.world,
        }
    }

    /// The lists of the port `udp` that cluster IPs use, and that others use.
    fn lists(&self, service: &str) -> String {
        let view = self.world.view(&key(service)).expect("a Service");
        let request = request(view.service, &self.settings.external_ips, &self.cross_namespace);
        let spec = compile(&view, request, NODE, &self.settings, self.cluster());
        let port = spec.ports.iter().find(|port| &*port.key.name == "udp").expect("a port");
        let of = |list: List| {
            let members = port.backends.iter().filter(|member| member.is_in(list));
            members.map(|member| member.target.addr.octets[15].to_string()).collect::<Vec<_>>().join(" ")
        };
        let is_local = port.flags & ServiceFlags::INTERNAL_LOCAL != 0;
        assert_eq!(is_local, port.flags & ServiceFlags::REDIRECTED != 0);
        let kept = port.backends.iter().filter(|member| List::ALL.into_iter().all(|list| !member.is_in(list))).count();
        let (inside, outside) = (of(if is_local { List::Local } else { List::Cluster }), of(List::Cluster));
        format!("{inside} | {outside}{}", if kept == 0 { String::new() } else { format!(" | {kept} kept") })
    }

    fn warnings(&self, service: &str) -> String {
        let view = self.world.view(&key(service)).expect("a Service");
        let request = request(view.service, &self.settings.external_ips, &self.cross_namespace);
        let spec = compile(&view, request, NODE, &self.settings, self.cluster());
        spec.warnings.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    }

    /// The endpoints whose sockets the agent follows.
    fn redirect_targets(&self, service: &str) -> String {
        let view = self.world.view(&key(service)).expect("a Service");
        let request = request(view.service, &self.settings.external_ips, &self.cross_namespace);
        let spec = compile(&view, request, NODE, &self.settings, self.cluster());
        let all = spec.redirect_targets.iter().map(|target| target.addr.octets[15].to_string());
        all.collect::<Vec<_>>().join(" ")
    }

    fn explain(&self, service: &str) -> String {
        let view = self.world.view(&key(service)).expect("a Service");
        let request = request(view.service, &self.settings.external_ips, &self.cross_namespace);
        explain(&view, request, NODE, &self.settings, self.cluster()).to_string()
    }
}

const DNS: &str = "kube-system/dns";
const CACHE: &str = "kube-system/cache";

fn dns_and_cache() -> Fixture {
    let mut fixture = Fixture::new("none");
    fixture.put(service(DNS, 1, 10, None));
    fixture.endpoints(DNS, "1 local; 2");
    fixture.put(service(CACHE, 2, 20, Some(DNS)));
    fixture
}

#[test]
fn cluster_ips_lead_to_the_ready_endpoints_on_this_node_and_otherwise_where_they_led() {
    let mut fixture = dns_and_cache();
    for (endpoints, expected) in [
        ("", "1 2 | 1 2"),
        ("7", "1 2 | 1 2"),
        ("7 local; 8", "7 | 1 2"),
        ("7 local; 8 local", "7 8 | 1 2"),
        ("7 local draining; 8 local", "8 | 1 2 | 1 kept"),
        ("7 local draining", "1 2 | 1 2 | 1 kept"),
        ("7 local unready", "1 2 | 1 2"),
        ("7 local w=0", "1 2 | 1 2 | 1 kept"),
        // An endpoint of both.
        ("1 local", "1 | 1 2"),
    ] {
        fixture.endpoints(CACHE, endpoints);
        assert_eq!(fixture.lists(DNS), expected, "{endpoints}");
        // The Service of the cache is served as before.
        assert_eq!(fixture.warnings(CACHE), "");
    }
    fixture.endpoints(CACHE, "7 local");
    fixture.delete(CACHE);
    assert_eq!(fixture.lists(DNS), "1 2 | 1 2");
}

#[test]
fn a_service_without_endpoints_of_its_own_is_redirected() {
    let mut fixture = dns_and_cache();
    fixture.endpoints(DNS, "");
    fixture.endpoints(CACHE, "7 local");
    assert_eq!(fixture.lists(DNS), "7 | ");
}

#[test]
fn ports_are_redirected_by_name_and_protocol() {
    let mut fixture = dns_and_cache();
    fixture.endpoints(CACHE, "7 local");
    for (ports, expected) in [
        (vec![port("udp", Proto::Udp)], "7 | 1 2"),
        (vec![port("udp", Proto::Tcp), port("tcp", Proto::Tcp)], "1 2 | 1 2"),
        (vec![port("other", Proto::Udp)], "1 2 | 1 2"),
    ] {
        fixture.put(Service { ports: ports.into(), ..service(CACHE, 2, 20, Some(DNS)) });
        assert_eq!(fixture.lists(DNS), expected);
    }
    assert_eq!(
        fixture.warnings(CACHE).lines().next(),
        Some(
            "annotation beeline.io/redirect-from: the clients of kube-system/dns are not redirected, since no port of \
             both has the same name and protocol; give its port the name and protocol that the port has there"
        )
    );
}

#[test]
fn a_service_of_another_namespace_needs_leave_and_both_are_warned() {
    for (namespaces, lists) in [("none", "1 2 | 1 2"), ("other", "1 2 | 1 2"), ("a,apps", "7 | 1 2")] {
        let mut fixture = Fixture::new(namespaces);
        fixture.put(service(DNS, 5, 10, None));
        fixture.endpoints(DNS, "1; 2");
        fixture.put(service("apps/thief", 1, 20, Some(DNS)));
        fixture.endpoints("apps/thief", "7 local");
        assert_eq!(fixture.lists(DNS), lists, "{namespaces}");
        let (mut of_dns, mut of_thief) = (String::new(), String::new());
        if lists != "7 | 1 2" {
            "its clients are asked for by beeline.io/redirect-from of apps/thief, of another namespace, and stay here; \
             to allow it, add apps to the flag --redirect-namespaces; otherwise remove the annotation there"
                .clone_into(&mut of_dns);
            "annotation beeline.io/redirect-from: the clients of kube-system/dns are not redirected, since that is a \
             Service of another namespace; let an administrator add its namespace to the flag --redirect-namespaces, \
             or move it to kube-system"
                .clone_into(&mut of_thief);
        }
        assert_eq!((fixture.warnings(DNS), fixture.warnings("apps/thief")), (of_dns, of_thief));
    }
    let mut fixture = dns_and_cache();
    for name in ["apps/thief", "b/thief", "b/other", "c/thief"] {
        fixture.put(service(name, 1, 30, Some(DNS)));
    }
    assert!(fixture.warnings(DNS).contains("to allow it, add apps, b and c to the flag"), "{}", fixture.warnings(DNS));
    (0..9).for_each(|n| drop(fixture.put(service(&format!("d{n}/thief"), 1, 40 + n, Some(DNS)))));
    let many = "to allow it, add apps, b, c, d0 and those of the others to the flag";
    assert!(fixture.warnings(DNS).contains(many), "{}", fixture.warnings(DNS));
    // Many cost one warning.
    let mut fixture = dns_and_cache();
    (0..9).for_each(|n| drop(fixture.put(service(&format!("apps/thief-{n}"), 1, 30 + n, Some(DNS)))));
    assert!(fixture.warnings(DNS).contains("apps/thief-4 and 4 more, of another namespace"));
    fixture.endpoints(CACHE, "7 local");
    assert_eq!(fixture.lists(DNS), "7 | 1 2");
}

#[test]
fn an_endpoint_that_leads_back_to_the_other_service_takes_no_clients() {
    let mut fixture = Fixture::new("none");
    // Endpoint 7 of the cache is an external IP of the other Service; endpoint 8 is none.
    fixture.put(Service { external_ips: vec![[10, 0, 0, 7].into()], ..service(DNS, 1, 10, None) });
    fixture.endpoints(DNS, "1 local; 2");
    fixture.put(service(CACHE, 2, 20, Some(DNS)));
    fixture.endpoints(CACHE, "7 local");
    assert_eq!(fixture.lists(DNS), "1 2 | 1 2");
    fixture.endpoints(CACHE, "7 local; 8 local");
    assert_eq!(fixture.lists(DNS), "8 | 1 2");
    assert_eq!(fixture.lists(CACHE), "7 8 | 7 8", "it is used by the cache itself");
}

#[test]
fn an_endpoint_that_fails_its_probe_takes_no_clients() {
    let mut fixture = dns_and_cache();
    fixture.endpoints(CACHE, "7 local; 8 local");
    let cache = service(CACHE, 2, 20, Some(DNS));
    let probe = Probe {
        question: ProbeQuestion::Tcp,
        every: 5.try_into().expect("not 0"),
        timeout: 1.try_into().expect("not 0"),
        fail: 3.try_into().expect("not 0"),
        pass: 1.try_into().expect("not 0"),
    };
    let tuning = cache.tuning.clone().map(|tuning| Box::new(Tuning { probe: Some(probe), ..*tuning }));
    fixture.put(Service { selector: Selector::None, tuning, ..cache });
    let mut fails = |last: u8| {
        let target = lb_common::AddrPort { addr: std::net::IpAddr::from([10, 0, 0, last]).into(), port: 53 };
        let verdict = Some(ProbeVerdict::Fails("connection refused".into()));
        let affected = fixture.apply(Event::Probed { service: key(CACHE), target, verdict });
        (affected, fixture.lists(DNS))
    };
    assert_eq!(fails(7), (DNS.to_owned(), "8 | 1 2".to_owned()));
    assert_eq!(fails(8), (DNS.to_owned(), "1 2 | 1 2".to_owned()));
}

#[test]
fn an_endpoint_that_has_closed_its_socket_takes_no_clients() {
    let mut fixture = dns_and_cache();
    fixture.endpoints(CACHE, "7 local; 8 local; 9; 6 local unready");
    let target = |last: &u8| lb_common::AddrPort { addr: std::net::IpAddr::from([10, 0, 0, *last]).into(), port: 53 };
    let mut close = |closed: &[u8]| {
        let affected = fixture.apply(Event::ClosedListeners(closed.iter().map(target).collect()));
        (affected, fixture.lists(DNS), fixture.redirect_targets(DNS))
    };
    let all = || "7 8".to_owned();
    assert_eq!(close(&[7]), (DNS.to_owned(), "8 | 1 2".to_owned(), all()));
    assert_eq!(close(&[7, 8]), (DNS.to_owned(), "1 2 | 1 2".to_owned(), all()));
    assert_eq!(close(&[7, 8]).0, "", "the same set affects no Service");
    assert_eq!(close(&[8]), (DNS.to_owned(), "7 | 1 2".to_owned(), all()));
    fixture.endpoints(CACHE, "7 local draining; 8 local");
    assert_eq!((fixture.lists(DNS), fixture.redirect_targets(DNS)), ("1 2 | 1 2 | 1 kept".to_owned(), all()));
    // The pod's sockets end with it.
    fixture.apply(Event::ClosedListeners([7, 8].iter().map(target).collect()));
    assert_eq!((fixture.lists(DNS), fixture.redirect_targets(DNS)), ("1 2 | 1 2".to_owned(), all()));
    // The endpoint takes clients only; the Service itself has readiness for it.
    assert_eq!(fixture.lists(CACHE), "8 | 8 | 1 kept");
    assert_eq!(fixture.redirect_targets(CACHE), "");
}

#[test]
fn the_older_of_two_takes_the_clients() {
    let mut fixture = dns_and_cache();
    fixture.endpoints(CACHE, "7 local");
    fixture.put(service("kube-system/second", 3, 30, Some(DNS)));
    fixture.endpoints("kube-system/second", "8 local");
    assert_eq!(fixture.lists(DNS), "7 | 1 2");
    let refused = "annotation beeline.io/redirect-from: the clients of kube-system/dns are not redirected, since they \
                   are led to kube-system/cache, which is older or, at equal age, first by name; remove one of the two \
                   annotations";
    assert_eq!(fixture.warnings("kube-system/second"), refused);
    fixture.put(service(CACHE, 4, 20, Some(DNS)));
    assert_eq!((fixture.lists(DNS), fixture.warnings("kube-system/second")), ("8 | 1 2".into(), String::new()));
}

#[test]
fn the_reason_for_no_redirect_is_named() {
    let mut fixture = dns_and_cache();
    fixture.endpoints(CACHE, "7 local");
    let mut check = |of: Service, dns: Option<Service>, expected: &str| {
        match dns {
            Some(dns) => drop(fixture.put(dns)),
            None => drop(fixture.delete(DNS)),
        }
        fixture.put(of);
        assert!(fixture.warnings(CACHE).contains(expected), "{expected}: {}", fixture.warnings(CACHE));
    };
    let (cache, dns) = (|| service(CACHE, 2, 20, Some(DNS)), || service(DNS, 1, 10, None));
    check(service(CACHE, 2, 20, Some(CACHE)), Some(dns()), "since that is this Service; name another Service");
    check(Service { exempt: Some(Exempt::Headless), ..cache() }, Some(dns()), "this Service is headless; give it a");
    check(cache(), None, "this node serves no such Service; write NAMESPACE/NAME of a Service with a cluster IP");
    check(cache(), Some(Service { exempt: Some(Exempt::Headless), ..dns() }), "this node serves no such Service");
    let local = Service { external_policy: Policy::Local, ..dns() };
    check(cache(), Some(local), "the externalTrafficPolicy of that Service is Local; set the externalTrafficPolicy");
    assert_eq!(fixture.lists(DNS), "1 2 | 1 2");
}

#[test]
fn a_redirect_goes_before_the_internal_policy_and_leaves_preferences_to_others() {
    let mut fixture = dns_and_cache();
    fixture.endpoints(CACHE, "7 local");
    let tuning = Tuning { preference: crate::objects::Preference::Local, ..Tuning::default() };
    fixture.put(Service { tuning: Some(Box::new(tuning)), ..service(DNS, 1, 10, None) });
    assert_eq!(fixture.lists(DNS), "7 | 1 | 1 kept");
    fixture.put(Service { internal_policy: Policy::Local, ..service(DNS, 1, 10, None) });
    assert_eq!(fixture.lists(DNS), "7 | 1 2");
}

#[test]
fn services_whose_lists_or_warnings_depend_on_a_change_are_compiled_again() {
    let mut fixture = Fixture::new("none");
    let other = || service("apps/thief", 1, 40, Some(DNS));
    assert_eq!(fixture.put(service("kube-system/plain", 1, 9, None)), "");
    assert_eq!(fixture.put(service(CACHE, 2, 20, Some(DNS))), DNS);
    assert_eq!(fixture.put(service(DNS, 1, 10, None)), CACHE);
    assert_eq!(fixture.endpoints(CACHE, "7 local"), DNS);
    assert_eq!(fixture.endpoints("kube-system/plain", "7 local"), "");
    // A refused Service tells the Service that it names, once, and its endpoints do not matter.
    assert_eq!(fixture.put(other()), DNS);
    assert_eq!(fixture.endpoints("apps/thief", "7 local"), "");
    // The endpoints of a younger one do not matter either.
    assert_eq!(fixture.put(service("kube-system/second", 3, 30, Some(DNS))), DNS);
    assert_eq!(fixture.endpoints("kube-system/second", "8 local"), "");
    assert_eq!(fixture.delete(CACHE), "kube-system/dns kube-system/second");
    assert_eq!(fixture.endpoints("kube-system/second", "8"), DNS);
    // A name that changes affects both.
    assert_eq!(fixture.put(service("kube-system/second", 3, 30, Some("a/b"))), "a/b kube-system/dns");
    assert_eq!(fixture.put(service("kube-system/second", 3, 30, None)), "a/b");
    assert_eq!(fixture.delete("apps/thief"), DNS);
    assert!(fixture.redirects.by_source.is_empty() && fixture.redirects.by_target.is_empty());
}

#[test]
fn both_sides_are_explained() {
    let mut fixture = dns_and_cache();
    fixture.endpoints(CACHE, "1 local; 7 local; 8");
    fixture.put(Service { ports: [port("udp", Proto::Udp)].into(), ..service(DNS, 1, 10, None) });
    expect_test::expect![[r#"
        Service kube-system/dns
          type       ClusterIP
          internal   Cluster: cluster IPs lead to endpoints on any node
          scheduler  random, the default of this node
        frontends
          10.96.0.10:53/UDP  ClusterIP  owned
        port udp 53/UDP, IPv4: 2 in the cluster list, 2 in the local list, for cluster IPs
          cluster IPs lead to this node's endpoints of kube-system/cache, by its beeline.io/redirect-from
          10.0.0.1:53  here   used
          10.0.0.2:53  there  used by external frontends, not by cluster IPs: another Service takes their clients on this node
          10.0.0.7:53  here   used by cluster IPs, not by external frontends: it is of the Service that takes their clients
        Service kube-system/cache
          type       ClusterIP
          internal   Cluster: cluster IPs lead to endpoints on any node
          redirect   the cluster IPs of kube-system/dns lead to the endpoints on this node, while one is ready
          scheduler  random, the default of this node
        frontends
          10.96.0.20:53/TCP  ClusterIP  owned
          10.96.0.20:53/UDP  ClusterIP  owned
        port udp 53/UDP, IPv4: 3 in the cluster list
          10.0.0.1:53  here   used
          10.0.0.7:53  here   used
          10.0.0.8:53  there  used
        port tcp 53/TCP, IPv4: 3 in the cluster list
          10.0.0.1:53  here   used
          10.0.0.7:53  here   used
          10.0.0.8:53  there  used
    "#]].assert_eq(&(fixture.explain(DNS) + &fixture.explain(CACHE)));
}

#[test]
fn the_flag_takes_none_or_a_list_of_namespaces() {
    let allows = |text: &str, source: &str| {
        let namespaces: RedirectNamespaces = text.parse()?;
        Ok::<_, String>(namespaces.allow(&key(source), &key(DNS)))
    };
    assert_eq!(allows("none", "kube-system/a"), Ok(true));
    assert_eq!(allows("none", "apps/a"), Ok(false));
    assert_eq!(allows("dns, apps", "apps/a"), Ok(true));
    assert_eq!(allows("kube-system", "apps/a"), Ok(false), "the namespace of the Service that asks counts");
    for bad in ["", "a,", "*", "A", "a/b"] {
        assert!(allows(bad, "apps/a").is_err(), "{bad}");
    }
}
