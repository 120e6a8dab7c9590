//! The rules for Services, each as a table: a case is a Service, its endpoints in a few words, and the outcome.

mod endpoints;
mod frontends;
mod warnings;

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use lb_common::{Addr, List, Proto};

use super::{
    ClusterContext, NodeContext, Settings,
    claims::Claims,
    compile,
    cross_namespace::CrossNamespaceIndex,
    explain::{Explanation, explain},
    frontends::{FrontendRequest, request},
    redirects::RedirectIndex,
    slow_start::SlowStarts,
};
use crate::{
    objects::{
        Endpoint, EndpointGroup, EndpointPort, EndpointSlice, Endpoints, Key, Policy, Preference, Service, ServicePort,
        SliceManager, Tuning,
    },
    spec::{Member, ServiceSpec},
    world::{View, World},
};

/// Addresses of this node at which NodePorts answer.
const OWN: [&str; 2] = ["192.0.2.1", "fd00::1"];

fn addr(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn port(name: &str, port: u16) -> ServicePort {
    ServicePort::new(name, Proto::Tcp, port.try_into().expect("not 0"))
}

fn node_port(name: &str, number: u16, node: u16) -> ServicePort {
    ServicePort { node_port: node.try_into().ok(), ..port(name, number) }
}

/// `default/a` at 10.96.0.1:80.
fn service() -> Service {
    named("a")
}

fn named(name: &str) -> Service {
    Service {
        cluster_ips: vec![addr("10.96.0.1")],
        ports: [port("", 80)].into(),
        ..Service::new(Key::new("default", name))
    }
}

fn dual_stack() -> Service {
    Service { cluster_ips: vec![addr("10.96.0.1"), addr("fd96::1")], ..service() }
}

fn tuned(tuning: Tuning) -> Service {
    Service { tuning: Some(Box::new(tuning)), ..service() }
}

/// Parses an endpoint: an address, where a number N is 10.0.0.N, then words. By default it is on another node.
fn endpoint(text: &str) -> Endpoint {
    let mut words = text.split_whitespace();
    let at = words.next().expect("an address");
    let at = at.parse::<u8>().map_or_else(|_| addr(at), |last| Ipv4Addr::new(10, 0, 0, last).into());
    let mut endpoint = Endpoint { node: Some("there".into()), ..Endpoint::new(at) };
    for word in words {
        match word.split_once('=') {
            Some(("z", zone)) => endpoint.hints.get_or_insert_default().zones.push(zone.into()),
            Some(("n", node)) => endpoint.hints.get_or_insert_default().nodes.push(node.into()),
            Some(("p", tier)) => endpoint.tier = tier.parse().expect("a priority"),
            Some(("w", weight)) => endpoint.weight = weight.parse().expect("a weight"),
            _ if word == "local" => endpoint.node = Some("here".into()),
            _ if word == "nodeless" => endpoint.node = None,
            _ if word == "unready" => (endpoint.ready, endpoint.serving) = (false, false),
            _ if word == "starting" => endpoint.ready = false,
            _ if word == "draining" => (endpoint.ready, endpoint.terminating) = (false, true),
            _ if word == "gone" => (endpoint.ready, endpoint.serving, endpoint.terminating) = (false, false, true),
            // As the controller writes a terminating pod of a Service with publishNotReadyAddresses.
            _ if word == "published" => (endpoint.serving, endpoint.terminating) = (false, true),
            _ => panic!("{word}?"),
        }
    }
    endpoint
}

fn group(ports: &[(&str, u16)], endpoints: &str) -> EndpointGroup {
    let port = |&(name, port): &(&str, u16)| EndpointPort {
        name: name.into(),
        proto: Proto::Tcp,
        port: port.try_into().expect("not 0"),
    };
    let endpoints = endpoints.split(';').map(str::trim).filter(|text| !text.is_empty()).map(endpoint);
    EndpointGroup { ports: ports.iter().map(port).collect(), endpoints: endpoints.collect() }
}

/// Slices `a-1`, `a-2` and so on of the unnamed port 8080.
fn slices(endpoints: &[&str]) -> Vec<Arc<EndpointSlice>> {
    groups(endpoints.iter().map(|text| group(&[("", 8080)], text)).collect())
}

fn groups(groups: Vec<EndpointGroup>) -> Vec<Arc<EndpointSlice>> {
    let slice = |(group, number)| {
        Arc::new(EndpointSlice {
            key: Key::new("default", &format!("a-{number}")),
            service: Some(Key::new("default", "a")),
            manager: SliceManager::Other,
            group,
            triggered: None,
            problems: Vec::new(),
        })
    };
    groups.into_iter().zip(1..).map(slice).collect()
}

/// The input of a decision.
struct Case {
    service: Service,
    slices: Vec<Arc<EndpointSlice>>,
    endpoints: Option<Endpoints>,
    zone: Option<&'static str>,
    settings: Settings,
    others: Vec<Service>,
}

impl Case {
    fn new(service: Service, endpoints: &[&str]) -> Self {
        Self {
            service,
            slices: slices(endpoints),
            endpoints: None,
            zone: Some("z"),
            settings: Settings::default(),
            others: Vec::new(),
        }
    }

    fn request(&self, service: &Service) -> FrontendRequest {
        request(service, &self.settings.external_ips, &CrossNamespaceIndex::default())
    }

    fn with<T>(
        &self,
        run: impl FnOnce(&View<'_>, FrontendRequest, NodeContext<'_>, &Settings, ClusterContext<'_>) -> T,
    ) -> T {
        let mut claims = Claims::default();
        for service in self.others.iter().chain([&self.service]) {
            let request = self.request(service);
            let keys: Vec<_> = request.frontends.iter().map(|frontend| (frontend.key, frontend.kind)).collect();
            claims.set(&service.key, service.created, &keys);
        }
        let own: BTreeSet<Addr> = OWN.iter().map(|own| addr(own).into()).collect();
        let node = NodeContext { name: "here", zone: self.zone, node_ports: &own, own: &own };
        let view = View { service: &self.service, slices: &self.slices, endpoints: self.endpoints.as_ref() };
        let cluster = ClusterContext {
            claims: &claims,
            cross_namespace: &CrossNamespaceIndex::default(),
            redirects: &RedirectIndex::default(),
            maps: None,
            slow_starts: &SlowStarts::default(),
            world: &World::new("here"),
        };
        run(&view, self.request(&self.service), node, &self.settings, cluster)
    }

    fn spec(&self) -> ServiceSpec {
        self.with(compile)
    }

    /// The texts of the warnings.
    fn warnings(&self) -> Vec<String> {
        self.spec().warnings.iter().map(ToString::to_string).collect()
    }

    fn explain(&self) -> Explanation {
        self.with(explain)
    }

    /// The lists of each service port: the last part of each address, with its weight.
    fn lists(&self) -> String {
        let mut text = Vec::new();
        for port in self.spec().ports {
            let short = |member: &Member| {
                let at = member.target.addr.to_string();
                let last = at.rsplit(['.', ':']).next().unwrap_or_default().to_owned();
                if member.weight == 1 { last } else { format!("{last}*{}", member.weight) }
            };
            let of = |name, chosen: &dyn Fn(&Member) -> bool| {
                let members: Vec<_> = port.backends.iter().filter(|member| chosen(member)).map(short).collect();
                if members.is_empty() { String::new() } else { format!(" {name} {}", members.join(" ")) }
            };
            let no_list = |member: &Member| List::ALL.into_iter().all(|list| !member.is_in(list));
            let lists = [
                of("cluster", &|member| member.is_in(List::Cluster)),
                of("local", &|member| member.is_in(List::Local)),
                of("kept", &no_list),
            ];
            text.push(if lists.concat().is_empty() { "none".to_owned() } else { lists.concat().trim().to_owned() });
        }
        text.join("; ")
    }
}

/// A Service like `default/a` with a policy.
fn policy(internal_policy: Policy) -> Service {
    Service { internal_policy, ..service() }
}

/// Checks cases: endpoints, and the lists of each service port.
fn check(service: &Service, zone: Option<&'static str>, cases: &[(&str, &str)]) {
    for &(endpoints, expected) in cases {
        let case = Case { zone, ..Case::new(service.clone(), &[endpoints]) };
        assert_eq!(case.lists(), expected, "{endpoints}");
    }
}
