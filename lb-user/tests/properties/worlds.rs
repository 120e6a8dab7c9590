//! Small sets of objects: random ones, and pairs before and after a change.

use std::{net::IpAddr, num::NonZeroU32, ops::Range};

use ipnet::IpNet;
use lb_common::{Proto, Scheduler};
use lb_core::port_ranges::parse;
use lb_core::{
    event::{Event, Object, ObjectKind},
    objects::{
        Endpoint, EndpointGroup, EndpointPort, EndpointSlice, Endpoints, Key, Policy, Preference, Selector, Service,
        ServicePort, SliceManager, Tuning,
    },
};
use proptest::{collection::vec, prelude::*};

/// The agent's node.
pub const NODE: &str = "node-1";

/// All objects at one time.
pub type Objects = Vec<Object>;

/// Returns the lists of all kinds as events.
pub fn events(objects: &Objects) -> Vec<Event> {
    let of = |kind| objects.iter().filter(|object| object.kind() == kind).cloned().collect();
    ObjectKind::ALL.into_iter().map(|kind| Event::Replace(kind, of(kind))).collect()
}

/// Generates histories of a few Services that share addresses, backends and names.
pub fn states(length: Range<usize>) -> impl Strategy<Value = Vec<Objects>> {
    vec(vec(service(), 0..4), length).prop_map(|states| {
        states
            .into_iter()
            .map(|services| {
                services.into_iter().enumerate().flat_map(|(index, service)| service.objects(index)).collect()
            })
            .collect()
    })
}

/// A random Service and its endpoints.
#[derive(Clone, Debug)]
struct RandomService {
    absent: bool,
    renamed: bool,
    created: Option<i64>,
    vips: Vec<u8>,
    v6: bool,
    externals: Vec<u8>,
    ports: usize,
    policy: Policy,
    outside: ExternalOptions,
    maglev: bool,
    /// Port ranges of the Service: `beeline.io/ports`.
    port_ranges: &'static str,
    /// Preference of the Service, and the index of the Service whose clients it takes.
    near: (Preference, Option<usize>),
    by_hand: bool,
    endpoints: Vec<(u8, u8, bool)>,
    more: Vec<(u8, u8, bool)>,
}

/// Options for clients outside.
#[derive(Clone, Debug)]
struct ExternalOptions {
    policy: Policy,
    ingress: Option<u8>,
    node_port: bool,
    /// Prefix lengths of the source ranges.
    ranges: Vec<u8>,
}

fn outside() -> impl Strategy<Value = ExternalOptions> {
    let policy = prop_oneof![2 => Just(Policy::Cluster), 1 => Just(Policy::Local)];
    (policy, prop::option::of(1_u8..3), any::<bool>(), vec(prop_oneof![0_u8..4, 20_u8..24], 0..4))
        .prop_map(|(policy, ingress, node_port, ranges)| ExternalOptions { policy, ingress, node_port, ranges })
}

fn near() -> impl Strategy<Value = (Preference, Option<usize>)> {
    let preference = prop_oneof![3 => Just(Preference::None), 1 => Just(Preference::Local)];
    (preference, prop::option::weighted(0.3, 0_usize..4))
}

/// Generates port ranges that overlap those of other Services, and their single ports.
fn port_ranges() -> impl Strategy<Value = &'static str> {
    prop_oneof![
        3 => Just(""),
        1 => Just("70-90/tcp"),
        1 => Just("80-100/tcp+10"),
        1 => Just("50-60/udp, 85/tcp"),
        1 => Just("all/udp, 90-91/tcp-1"),
    ]
}

fn service() -> impl Strategy<Value = RandomService> {
    let endpoint = || (1_u8..9, 0_u8..5, any::<bool>());
    (
        (prop::bool::weighted(0.1), prop::option::of(1_i64..4), vec(1_u8..5, 1..2), prop::bool::weighted(0.2)),
        (vec(1_u8..3, 0..2), 1_usize..3, prop_oneof![3 => Just(Policy::Cluster), 1 => Just(Policy::Local)]),
        (prop::bool::weighted(0.2), vec(endpoint(), 0..7), vec(endpoint(), 0..3)),
        (outside(), prop::bool::weighted(0.2), prop::bool::weighted(0.3), near(), port_ranges()),
    )
        .prop_map(
            |(
                (absent, created, vips, v6),
                (externals, ports, policy),
                (by_hand, endpoints, more),
                (outside, maglev, renamed, near, port_ranges),
            )| RandomService {
                absent,
                renamed,
                created,
                vips,
                v6,
                externals,
                ports,
                policy,
                outside,
                maglev,
                port_ranges,
                near,
                by_hand,
                endpoints,
                more,
            },
        )
}

impl RandomService {
    fn objects(&self, index: usize) -> Vec<Object> {
        let key = Key::new("default", &format!("s{index}"));
        let mut cluster_ips: Vec<IpAddr> = self.vips.iter().map(|&vip| [10, 96, 0, vip].into()).collect();
        if self.v6 {
            cluster_ips.push(format!("fd96::{}", index + 1).parse().expect("an address"));
        }
        let ExternalOptions { policy, ingress, node_port, ranges } = &self.outside;
        let mut ports = ports(self.ports);
        if *node_port {
            let number = 30_080 + u16::from(self.vips[0]);
            ports.iter_mut().for_each(|port| port.node_port = number.try_into().ok());
        }
        ports.extend(ranges_of(self.port_ranges));
        let range = |&len: &u8| format!("10.{len}.0.0/{len}").parse::<IpNet>().expect("a network").trunc();
        let scheduler = self.maglev.then_some(Scheduler::Mh);
        let (preference, target) = self.near;
        let redirect_from = target.map(|target| Key::new("default", &format!("s{target}")));
        // With and without a cluster IP of IPv6, so that a change of addresses changes the scope.
        let shares_affinity = self.v6 != self.by_hand;
        let tuning = Tuning { scheduler, preference, redirect_from, shares_affinity, ..Tuning::default() };
        let service = Service {
            created: self.created,
            selector: if self.by_hand { Selector::None } else { Selector::Some },
            cluster_ips,
            external_ips: self.externals.iter().map(|&last| [192, 0, 2, last].into()).collect(),
            ingress_ips: ingress.iter().map(|&last| [192, 0, 2, last].into()).collect(),
            ports: ports.into(),
            internal_policy: self.policy,
            external_policy: *policy,
            source_ranges: ranges.iter().map(range).collect(),
            affinity_seconds: NonZeroU32::new(60).filter(|_| self.v6 || self.maglev),
            tuning: (tuning != Tuning::default()).then(|| Box::new(tuning)),
            ..plain_service(key.clone())
        };
        let group = |drawn: &[(u8, u8, bool)], port| group(self.ports, port, drawn);
        let mut objects = Vec::new();
        if !self.absent {
            objects.push(Object::Service(service));
        }
        if self.by_hand {
            let groups = vec![group(&self.endpoints, 8080), group(&self.more, 8081)];
            objects.push(Object::Endpoints(Endpoints {
                key,
                mirrorable: true,
                groups,
                triggered: None,
                problems: Vec::new(),
            }));
        } else {
            objects.push(slice(&key, "x", group(&self.endpoints, 8080)));
            objects.push(slice(&key, "y", group(&self.more, 8080 + u16::from(self.v6))));
        }
        if self.renamed {
            objects.iter_mut().for_each(rename_ports);
        }
        objects
    }
}

/// Gives all ports of an object other names.
fn rename_ports(object: &mut Object) {
    let renamed = |name: &str| format!("{name}-renamed").into();
    let rename_group = |group: &mut EndpointGroup| {
        let ports: Vec<_> =
            group.ports.iter().map(|port| EndpointPort { name: renamed(&port.name), ..port.clone() }).collect();
        group.ports = ports.into();
    };
    match object {
        Object::Service(service) => {
            let ports: Vec<_> = service
                .ports
                .iter()
                .map(|port| match port.ranges {
                    // The agent names these.
                    Some(_) => port.clone(),
                    None => ServicePort { name: renamed(&port.name), ..port.clone() },
                })
                .collect();
            service.ports = ports.into();
        }
        Object::EndpointSlice(slice) => rename_group(&mut slice.group),
        Object::Endpoints(endpoints) => endpoints.groups.iter_mut().for_each(rename_group),
        _ => {}
    }
}

/// The same objects with other names of all ports.
fn with_ports_renamed(mut objects: Objects) -> Objects {
    objects.iter_mut().for_each(rename_ports);
    objects
}

fn plain_service(key: Key) -> Service {
    Service { ports: ports(1).into(), ..Service::new(key) }
}

/// Returns the ports of the annotation `beeline.io/ports`; none of an empty one.
fn ranges_of(annotation: &str) -> Vec<ServicePort> {
    if annotation.is_empty() {
        return Vec::new();
    }
    let groups = parse(annotation).expect("an annotation");
    groups.into_iter().filter_map(ServicePort::of_ranges).collect()
}

/// Gives the first Service of a state port ranges.
fn with_ranges(mut objects: Objects, annotation: &str) -> Objects {
    for object in &mut objects {
        if let Object::Service(service) = object {
            service.ports = service.ports.iter().cloned().chain(ranges_of(annotation)).collect();
            break;
        }
    }
    objects
}

fn ports(count: usize) -> Vec<ServicePort> {
    let all = [("a", Proto::Tcp, 80), ("b", Proto::Udp, 53)];
    let port =
        |&(name, proto, port): &(&str, Proto, u16)| ServicePort::new(name, proto, port.try_into().expect("not 0"));
    all.iter().take(count).map(port).collect()
}

fn slice(service: &Key, suffix: &str, group: EndpointGroup) -> Object {
    Object::EndpointSlice(EndpointSlice {
        key: Key::new(service.namespace(), &format!("{}-{suffix}", service.name())),
        service: Some(service.clone()),
        manager: SliceManager::Selecting,
        group,
        triggered: None,
        problems: Vec::new(),
    })
}

/// Returns endpoints from (last octet, condition, is local). Every third is IPv6.
fn group(ports: usize, port: u16, drawn: &[(u8, u8, bool)]) -> EndpointGroup {
    let endpoint = |&(last, condition, here): &(u8, u8, bool)| {
        let addr = match last % 3 {
            0 => format!("fd00::{last}").parse().expect("an address"),
            _ => [10, 0, 0, last].into(),
        };
        Endpoint {
            node: Some(if here { NODE } else { "node-2" }.into()),
            // Some are not ready, and do not terminate.
            ready: condition < 3 && (last % 4, condition) != (0, 2),
            serving: condition < 4,
            terminating: condition >= 3,
            ..Endpoint::new(addr)
        }
    };
    EndpointGroup {
        ports: self::ports(ports)
            .into_iter()
            .map(|own| EndpointPort { name: own.name, proto: own.proto, port: port.try_into().expect("not 0") })
            .collect(),
        endpoints: drawn.iter().map(endpoint).collect(),
    }
}

/// Returns a Service with IPv4 backends by last octet, on other nodes and on this one.
fn simple(name: &str, created: i64, vips: &[u8], policy: Policy, remote: &[u8], local: &[u8]) -> Objects {
    let key = Key::new("default", name);
    let cluster_ips = vips.iter().map(|&vip| [10, 96, 0, vip].into()).collect();
    let service =
        Service { created: Some(created), cluster_ips, internal_policy: policy, ..plain_service(key.clone()) };
    let drawn: Vec<_> = remote.iter().map(|&n| (n, 0, false)).chain(local.iter().map(|&n| (n, 0, true))).collect();
    let mut group = group(1, 8080, &drawn);
    for (endpoint, &(last, ..)) in group.endpoints.iter_mut().zip(&drawn) {
        endpoint.addr = [10, 0, 0, last].into();
    }
    vec![Object::Service(service), slice(&key, "x", group)]
}

/// Returns the Service `a` with a load balancer's address and options for clients outside.
fn load_balancer(
    policy: Policy,
    remote: &[u8],
    local: &[u8],
    ranges: &[&str],
    scheduler: Option<Scheduler>,
) -> Objects {
    let mut state = simple("a", 5, &[1], Policy::Cluster, remote, local);
    for object in &mut state {
        if let Object::Service(service) = object {
            service.ingress_ips = vec![[192, 0, 2, 1].into()];
            service.external_policy = policy;
            service.source_ranges = ranges.iter().map(|range| range.parse().expect("a network")).collect();
            service.tuning =
                scheduler.map(|scheduler| Box::new(Tuning { scheduler: Some(scheduler), ..Tuning::default() }));
        }
    }
    state
}

/// Returns the Service `a`, which prefers endpoints on this node.
fn preferring(policy: Policy, remote: &[u8], local: &[u8]) -> Objects {
    let mut state = load_balancer(policy, remote, local, &[], None);
    for object in &mut state {
        if let Object::Service(service) = object {
            service.tuning = Some(Box::new(Tuning { preference: Preference::Local, ..Tuning::default() }));
        }
    }
    state
}

/// Returns the Service `a`, and the Service `b`, which takes its clients by the endpoints on this node.
fn redirecting(remote: &[u8], taking: &[u8]) -> Objects {
    let mut state = simple("b", 9, &[9], Policy::Cluster, &[], taking);
    for object in &mut state {
        if let Object::Service(service) = object {
            let redirect_from = Some(Key::new("default", "a"));
            service.tuning = Some(Box::new(Tuning { redirect_from, ..Tuning::default() }));
        }
    }
    state.extend(load_balancer(Policy::Cluster, remote, &[], &[], None));
    state
}

/// Lists changes small enough to try every interleaving of a reader and the writer.
pub fn small_changes() -> Vec<(&'static str, Objects, Objects)> {
    use Policy::{Cluster, Local};
    let a = |policy, remote: &[u8], local: &[u8]| simple("a", 5, &[1], policy, remote, local);
    let with = |first: &Objects, second: Objects| first.iter().cloned().chain(second).collect::<Objects>();
    let b = |created, vips: &[u8], remote: &[u8]| simple("b", created, vips, Cluster, remote, &[]);
    let lb = |policy, remote: &[u8], local: &[u8]| load_balancer(policy, remote, local, &[], None);
    let ranged = |ranges: &[&str], remote: &[u8]| load_balancer(Cluster, remote, &[], ranges, None);
    let mh = |remote: &[u8]| load_balancer(Cluster, remote, &[], &[], Some(Scheduler::Mh));
    let (near, far) = ("10.21.0.0/21", "198.51.100.0/24");
    let local_inside = {
        let mut state = lb(Cluster, &[1], &[]);
        for object in &mut state {
            if let Object::Service(service) = object {
                service.internal_policy = Local;
                service.cluster_ips = vec![[10, 96, 0, 2].into()];
            }
        }
        state
    };
    vec![
        ("the external policy becomes Local", lb(Cluster, &[1], &[2]), lb(Local, &[1], &[2])),
        ("the external policy becomes Local without local endpoints", lb(Cluster, &[1], &[]), lb(Local, &[1], &[])),
        ("the external policy becomes Cluster", lb(Local, &[1], &[2]), lb(Cluster, &[1], &[2])),
        ("the local list changes for clients outside", lb(Local, &[1], &[2]), lb(Local, &[2], &[1])),
        (
            "the external policy becomes Local, the internal one Cluster, and a VIP comes",
            with(&local_inside, b(9, &[1], &[3])),
            { lb(Local, &[2], &[]) },
        ),
        (
            "a port range changes, and its endpoints",
            with_ranges(a(Cluster, &[1], &[]), "70-72/tcp"),
            with_ranges(a(Cluster, &[2], &[]), "71-74/tcp"),
        ),
        (
            "a port range has another offset",
            with_ranges(a(Cluster, &[1], &[]), "71-72/tcp"),
            with_ranges(a(Cluster, &[1], &[]), "71-72/tcp+1"),
        ),
        (
            "a single port leaves a port range",
            with_ranges(a(Cluster, &[1], &[]), "79-80/tcp"),
            with_ranges(a(Cluster, &[1], &[]), "79/tcp"),
        ),
        ("source ranges come", ranged(&[], &[1]), ranged(&[near], &[1])),
        ("source ranges go", ranged(&[near], &[1]), ranged(&[], &[1])),
        ("a source range widens", ranged(&[near], &[1]), ranged(&["10.0.0.0/8"], &[1])),
        ("a source range changes", ranged(&[near], &[1]), ranged(&[far], &[1])),
        ("source ranges come with the address", a(Cluster, &[1], &[]), ranged(&[near], &[1])),
        ("source ranges go with the address", ranged(&[near], &[1]), a(Cluster, &[1], &[])),
        ("source ranges come with the address, and the backends go", a(Cluster, &[1], &[]), ranged(&[near], &[])),
        ("source ranges go with the address, and the backends come", ranged(&[near], &[]), a(Cluster, &[1], &[])),
        ("a preferred endpoint gets ready", preferring(Cluster, &[1, 2], &[]), preferring(Cluster, &[1, 2], &[3])),
        ("the preferred endpoint goes", preferring(Cluster, &[1, 2], &[3]), preferring(Cluster, &[1, 2], &[])),
        ("a preferred endpoint goes under policy Local", preferring(Local, &[1], &[3]), preferring(Local, &[1], &[])),
        ("endpoints on this node become preferred", lb(Cluster, &[1, 2], &[3]), preferring(Cluster, &[1, 2], &[3])),
        ("an endpoint that takes clients gets ready", redirecting(&[1, 2], &[]), redirecting(&[1, 2], &[3])),
        ("the endpoint that takes clients goes", redirecting(&[1, 2], &[3]), redirecting(&[1, 2], &[])),
        ("the endpoint that takes clients is all there is", redirecting(&[], &[3]), redirecting(&[1], &[])),
        ("an endpoint of both takes clients", redirecting(&[1, 2], &[]), redirecting(&[1, 2], &[2])),
        ("the scheduler becomes mh", lb(Cluster, &[1, 2], &[]), mh(&[1, 2])),
        ("the scheduler becomes random", mh(&[1, 2]), lb(Cluster, &[1, 2], &[])),
        ("a backend of a Maglev table comes", mh(&[1]), mh(&[1, 2])),
        ("a backend of a Maglev table goes", mh(&[1, 2]), mh(&[1])),
        ("all backends of a Maglev table are replaced", mh(&[1, 2]), mh(&[3])),
        ("a backend comes", a(Cluster, &[1, 2], &[]), a(Cluster, &[1, 2, 3], &[])),
        ("the first backend goes", a(Cluster, &[1, 2, 3], &[]), a(Cluster, &[2, 3], &[])),
        ("the last backend goes", a(Cluster, &[1, 2, 3], &[]), a(Cluster, &[1, 2], &[])),
        ("all backends but the last go", a(Cluster, &[1, 2, 3], &[]), a(Cluster, &[3], &[])),
        ("a backend replaces another", a(Cluster, &[1, 2], &[]), a(Cluster, &[2, 4], &[])),
        ("all backends are replaced", a(Cluster, &[1, 2], &[]), a(Cluster, &[3, 4], &[])),
        ("fewer backends replace all", a(Cluster, &[1, 2, 3], &[]), a(Cluster, &[4], &[])),
        ("more backends replace all", a(Cluster, &[1], &[]), a(Cluster, &[4, 5], &[])),
        ("the internal policy becomes Local", a(Cluster, &[1], &[2]), a(Local, &[1], &[2])),
        ("the internal policy becomes Cluster", a(Local, &[1], &[2]), a(Cluster, &[1], &[2])),
        ("the local list changes", a(Local, &[1], &[2]), a(Local, &[2], &[1])),
        ("an older Service takes the VIP", a(Cluster, &[1], &[]), with(&a(Cluster, &[1], &[]), b(1, &[1], &[2]))),
        ("a port is renamed", a(Cluster, &[1, 2], &[]), with_ports_renamed(a(Cluster, &[1, 2], &[]))),
        (
            "a port is renamed, its backends change and source ranges come",
            ranged(&[], &[1, 2]),
            with_ports_renamed(ranged(&[near], &[2, 3])),
        ),
        ("a Service is renamed", a(Cluster, &[1, 2], &[]), b(9, &[1], &[1, 2])),
        ("a Service is renamed and loses its backends", a(Cluster, &[1, 2], &[]), b(9, &[1], &[])),
        ("a Service is renamed and gets backends", a(Cluster, &[], &[]), b(9, &[1], &[1])),
        ("the VIP goes to another Service", a(Cluster, &[1, 2], &[]), b(9, &[1], &[3])),
        (
            "a Service loses its backends and its VIP at once",
            with(&a(Cluster, &[1], &[]), b(9, &[1], &[2])),
            with(&simple("a", 12, &[1], Cluster, &[], &[]), b(9, &[1], &[2])),
        ),
        (
            "two Services exchange their VIPs",
            with(&simple("a", 5, &[1], Cluster, &[1], &[]), b(5, &[2], &[2])),
            with(&simple("a", 5, &[2], Cluster, &[3], &[]), b(5, &[1], &[2, 4])),
        ),
        (
            "two Services exchange their VIPs, and the backends move",
            with(&simple("a", 5, &[1], Cluster, &[1], &[]), b(5, &[2], &[])),
            with(&simple("a", 5, &[2], Cluster, &[], &[]), b(5, &[1], &[2])),
        ),
    ]
}
