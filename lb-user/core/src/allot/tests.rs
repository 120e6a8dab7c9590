//! Single rules by example, and the promises by random pools and Services.

use lb_common::Proto;
use proptest::prelude::*;

use super::*;
use crate::{label_selector::LabelSelector, port_ranges::PortSpan};

fn pool(name: &str, ranges: &[&str]) -> AddressPool {
    let ranges = ranges.iter().map(|range| range.parse().expect("a range")).collect();
    AddressPool { ranges, ..AddressPool::new(name) }
}

/// A list of one selector.
fn selectors(text: &str) -> Vec<LabelSelector> {
    vec![text.parse().expect("a selector")]
}

fn request(name: &str) -> AddressRequest {
    AddressRequest { ports: [(Proto::Tcp, one(80))].into(), ..AddressRequest::new(Key::new("default", name)) }
}

fn with_port(name: &str, port: u16, key: &str) -> AddressRequest {
    let sharing = Sharing { key: key.into(), namespaces: SharedWith::These(BTreeSet::new()) };
    AddressRequest { ports: [(Proto::Tcp, one(port))].into(), sharing: Some(sharing), ..request(name) }
}

fn one(port: u16) -> PortSpan {
    PortSpan { first: port, last: port }
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn dual(stack: Stack, name: &str) -> AddressRequest {
    AddressRequest { families: vec![Family::V4, Family::V6], stack, ..request(name) }
}

/// Describes the result: each Service with its addresses and the categories of its problems.
fn result(pools: &[AddressPool], requests: &[AddressRequest], cluster: &ClusterAddresses) -> Vec<String> {
    let allotments = allot(pools, requests, cluster);
    let line = |(key, allotment): (&Key, &Allotment)| {
        let mut parts = vec![key.name().to_owned()];
        parts.extend(allotment.addresses.iter().map(|(addr, _)| addr.to_string()));
        parts.extend(allotment.problems.iter().map(|problem| problem.reason().to_owned()));
        parts.join(" ")
    };
    allotments.services.iter().map(line).collect()
}

#[track_caller]
fn check(pools: &[AddressPool], requests: &[AddressRequest], expected: &[&str]) {
    assert_eq!(result(pools, requests, &ClusterAddresses::default()), expected);
}

#[test]
fn each_service_gets_the_lowest_free_address_the_oldest_first() {
    let pools = [pool("p", &["192.0.2.10-192.0.2.12"])];
    let old = AddressRequest { created: Some(1), ..request("z") };
    check(&pools, &[request("b"), request("a"), old], &["a 192.0.2.11", "b 192.0.2.12", "z 192.0.2.10"]);
    check(
        &pools,
        &[request("a"), request("b"), request("c"), request("d")],
        &["a 192.0.2.10", "b 192.0.2.11", "c 192.0.2.12", "d NoFreeAddress"],
    );
    check(&[], &[request("a")], &["a NoPool"]);
}

#[test]
fn an_address_is_kept_whatever_becomes_of_its_pool() {
    let held = |name: &str, addr: &str| AddressRequest { holds: vec![ip(addr)], ..request(name) };
    // An older Service without an address does not displace a younger Service.
    let old = AddressRequest { created: Some(1), ..request("old") };
    let pools = [pool("p", &["192.0.2.10-192.0.2.11"])];
    check(&pools, &[old, held("a", "192.0.2.10")], &["a 192.0.2.10", "old 192.0.2.11"]);
    check(&pools, &[held("a", "198.51.100.1")], &["a 198.51.100.1 CheckAddress"]);
    check(&[], &[held("a", "192.0.2.10")], &["a 192.0.2.10 CheckAddress"]);
    let closed = AddressPool { services: selectors("app=x"), ..pools[0].clone() };
    check(&[closed], &[held("a", "192.0.2.10")], &["a 192.0.2.10 CheckAddress"]);
    let on_request = AddressPool { offer: PoolOffer::OnRequest, ..pools[0].clone() };
    check(&[on_request], &[held("a", "192.0.2.10"), request("b")], &["a 192.0.2.10", "b NoPool"]);
    // The older one of two that exclude each other keeps it, and the other one gets a new one.
    check(&pools, &[held("a", "192.0.2.10"), held("b", "192.0.2.10")], &["a 192.0.2.10", "b 192.0.2.11"]);
    let lost = allot(&pools, &[held("a", "192.0.2.10"), held("b", "192.0.2.10")], &ClusterAddresses::default());
    let lost = &lost.services[&Key::new("default", "b")].lost;
    assert_eq!(*lost, [(ip("192.0.2.10"), Key::new("default", "a"), NotShared::NoConsent)]);
    // An address of a family that the Service has no longer is released.
    check(&pools, &[held("a", "2001:db8::1")], &["a 192.0.2.10"]);
}

#[test]
fn a_service_gets_the_address_that_it_asks_for_or_keeps_its_own() {
    let asks = |addr: &str| AddressRequest { addresses: vec![ip(addr)], ..request("b") };
    let holds = |addr: &str, request: AddressRequest| AddressRequest { holds: vec![ip(addr)], ..request };
    let pools = [
        pool("p", &["192.0.2.0/29"]),
        AddressPool { offer: PoolOffer::OnRequest, ..pool("q", &["198.51.100.0/29"]) },
        AddressPool { namespaces: selectors("team=x"), ..pool("r", &["203.0.113.0/29"]) },
    ];
    check(&pools, &[asks("192.0.2.4")], &["b 192.0.2.4"]);
    check(&pools, &[asks("198.51.100.4")], &["b 198.51.100.4"]);
    check(&pools, &[holds("192.0.2.1", asks("192.0.2.4"))], &["b 192.0.2.4"]);
    for (addr, reason) in [
        ("203.0.113.1", "AddressNotAvailable"),
        ("10.0.0.1", "AddressNotAvailable"),
        ("2001:db8::1", "InvalidRequest"),
        ("192.0.2.0", "AddressNotAvailable"),
        ("192.0.2.7", "AddressNotAvailable"),
    ] {
        check(&pools, &[asks(addr)], &[&format!("b {reason}")]);
        check(&pools, &[holds("192.0.2.2", asks(addr))], &[&format!("b 192.0.2.2 {reason}")]);
    }
    // An address of another Service is not given away, however old the request is.
    let old = AddressRequest { created: Some(1), ..asks("192.0.2.1") };
    check(&pools, &[holds("192.0.2.1", request("a")), old], &["a 192.0.2.1", "b AddressNotAvailable"]);
    // A Service that moves frees its address for another one.
    let moves = AddressRequest { addresses: vec![ip("198.51.100.1")], ..holds("192.0.2.4", request("z")) };
    check(&pools, &[moves, asks("192.0.2.4")], &["b 192.0.2.4", "z 198.51.100.1"]);
}

#[test]
fn a_service_gets_an_address_of_the_pool_that_it_asks_for() {
    let asks = |pool: &str| AddressRequest { pool: Some(pool.into()), ..request("a") };
    let pools = [
        pool("p", &["192.0.2.0/29"]),
        AddressPool { offer: PoolOffer::OnRequest, ..pool("q", &["198.51.100.1"]) },
        AddressPool { services: selectors("app=x"), ..pool("r", &["203.0.113.0/29"]) },
    ];
    check(&pools, &[asks("q")], &["a 198.51.100.1"]);
    check(&pools, &[AddressRequest { holds: vec![ip("192.0.2.1")], ..asks("q") }], &["a 198.51.100.1"]);
    check(&pools, &[AddressRequest { holds: vec![ip("192.0.2.1")], ..asks("p") }], &["a 192.0.2.1"]);
    check(&pools, &[asks("none")], &["a InvalidRequest"]);
    check(&pools, &[asks("r")], &["a AddressNotAvailable"]);
    check(&pools, &[AddressRequest { labels: [("app".into(), "x".into())].into(), ..asks("r") }], &["a 203.0.113.1"]);
    let contradicts = AddressRequest { addresses: vec![ip("192.0.2.1")], ..asks("q") };
    check(&pools, &[contradicts], &["a InvalidRequest"]);
    let unreadable = AddressRequest { problems: vec!["x".to_owned()], ..request("a") };
    check(&pools, std::slice::from_ref(&unreadable), &["a InvalidRequest"]);
    check(&pools, &[AddressRequest { holds: vec![ip("192.0.2.1")], ..unreadable }], &["a 192.0.2.1 InvalidRequest"]);
}

#[test]
fn pools_are_tried_by_priority_then_those_with_selectors_then_by_name() {
    let labelled = AddressRequest { labels: [("app".into(), "x".into())].into(), ..request("a") };
    let general = pool("a", &["192.0.2.1"]);
    let special = AddressPool { services: selectors("app=x"), ..pool("z", &["192.0.2.2"]) };
    let first = AddressPool { priority: Some(3), ..pool("y", &["192.0.2.3"]) };
    let gets = |pools: &[&AddressPool]| {
        let pools: Vec<_> = pools.iter().map(|pool| (*pool).clone()).collect();
        result(&pools, std::slice::from_ref(&labelled), &ClusterAddresses::default())
    };
    assert_eq!(gets(&[&general, &special]), ["a 192.0.2.2"]);
    assert_eq!(gets(&[&general, &special, &first]), ["a 192.0.2.3"]);
    assert_eq!(gets(&[&pool("b", &["192.0.2.4"]), &general]), ["a 192.0.2.1"]);
}

#[test]
fn a_dual_stack_service_gets_both_families_or_none_unless_it_only_prefers_both() {
    let both = [pool("p", &["192.0.2.1", "2001:db8::1"])];
    let four = [pool("p", &["192.0.2.1"])];
    check(&both, &[dual(Stack::All, "a")], &["a 192.0.2.1 2001:db8::1"]);
    check(&four, &[dual(Stack::All, "a"), request("b")], &["a NoFreeAddress NoPool", "b 192.0.2.1"]);
    check(&four, &[dual(Stack::Any, "a")], &["a 192.0.2.1"]);
    let six_taken = [pool("p", &["192.0.2.1-192.0.2.2", "2001:db8::1"])];
    let taken = AddressRequest { holds: vec![ip("2001:db8::1")], families: vec![Family::V6], ..request("t") };
    check(
        &six_taken,
        &[dual(Stack::All, "a"), dual(Stack::Any, "b"), taken],
        &["a NoFreeAddress NoFreeAddress", "b 192.0.2.1 NoFreeAddress", "t 2001:db8::1"],
    );
    // A Service that has one family keeps it while it waits for the other.
    let grown = AddressRequest { holds: vec![ip("192.0.2.1")], ..dual(Stack::All, "a") };
    check(&four, std::slice::from_ref(&grown), &["a 192.0.2.1 NoPool"]);
    check(&both, &[grown], &["a 192.0.2.1 2001:db8::1"]);
    // An address asked for in one family leaves the choice in the other.
    let asks = AddressRequest { addresses: vec![ip("2001:db8::1")], ..dual(Stack::All, "a") };
    check(&both, &[asks], &["a 2001:db8::1 192.0.2.1"]);
}

#[test]
fn an_address_is_shared_by_consent_where_ports_do_not_meet() {
    let pools = [pool("p", &["192.0.2.1-192.0.2.3"])];
    check(
        &pools,
        &[with_port("a", 80, "k"), with_port("b", 443, "k"), with_port("c", 443, "k"), with_port("d", 53, "other")],
        &["a 192.0.2.1", "b 192.0.2.1", "c 192.0.2.2", "d 192.0.2.3"],
    );
    let asks = |addr: &str, request: AddressRequest| AddressRequest { addresses: vec![ip(addr)], ..request };
    check(
        &pools,
        &[with_port("a", 80, "k"), asks("192.0.2.1", with_port("b", 80, "k"))],
        &["a 192.0.2.1", "b AddressNotAvailable"],
    );
    check(
        &pools,
        &[request("a"), asks("192.0.2.1", with_port("b", 443, "k"))],
        &["a 192.0.2.1", "b AddressNotAvailable"],
    );
    let udp = AddressRequest { ports: [(Proto::Udp, one(80))].into(), ..with_port("b", 80, "k") };
    check(&pools, &[with_port("a", 80, "k"), udp], &["a 192.0.2.1", "b 192.0.2.1"]);
}

#[test]
fn port_ranges_meet_where_one_port_is_in_both() {
    let pools = [pool("p", &["192.0.2.1-192.0.2.2"])];
    let ranged = |name: &str, first: u16, last: u16| {
        let ports = [(Proto::Tcp, PortSpan { first, last })].into();
        AddressRequest { ports, ..with_port(name, 1, "k") }
    };
    check(&pools, &[with_port("a", 80, "k"), ranged("b", 81, 90)], &["a 192.0.2.1", "b 192.0.2.1"]);
    check(&pools, &[with_port("a", 80, "k"), ranged("b", 70, 80)], &["a 192.0.2.1", "b 192.0.2.2"]);
    check(&pools, &[with_port("a", 80, "k"), ranged("b", 1, u16::MAX)], &["a 192.0.2.1", "b 192.0.2.2"]);
    check(&pools, &[ranged("a", 1, 100), ranged("b", 100, 200)], &["a 192.0.2.1", "b 192.0.2.2"]);
}

#[test]
fn services_of_two_namespaces_share_if_each_names_the_other() {
    let pools = [pool("p", &["192.0.2.1-192.0.2.3"])];
    let shares = |namespace: &str, port: u16, with: SharedWith| {
        let sharing = Some(Sharing { key: "k".into(), namespaces: with });
        AddressRequest { key: Key::new(namespace, namespace), sharing, ..with_port("", port, "k") }
    };
    let these = |names: &[&str]| SharedWith::These(names.iter().map(|name| Arc::from(*name)).collect());
    let together = &["a 192.0.2.1", "b 192.0.2.1"];
    let apart = &["a 192.0.2.1", "b 192.0.2.2"];
    check(&pools, &[shares("a", 1, these(&["b"])), shares("b", 2, these(&["a"]))], together);
    check(&pools, &[shares("a", 1, SharedWith::All), shares("b", 2, these(&["a"]))], together);
    check(&pools, &[shares("a", 1, SharedWith::All), shares("b", 2, these(&[]))], apart);
    check(&pools, &[shares("a", 1, these(&["c"])), shares("b", 2, SharedWith::All)], apart);
}

#[test]
fn services_with_local_policy_share_if_they_select_the_same_pods() {
    let pools = [pool("p", &["192.0.2.1-192.0.2.3"])];
    let local = |name: &str, port: u16, app: &str| {
        let selector = (!app.is_empty()).then(|| ("app".to_owned(), app.to_owned()));
        let attraction = Attraction::NodesOfPods(selector.into_iter().collect());
        AddressRequest { attraction, ..with_port(name, port, "k") }
    };
    check(&pools, &[local("a", 1, "x"), local("b", 2, "x")], &["a 192.0.2.1", "b 192.0.2.1"]);
    check(&pools, &[local("a", 1, "x"), local("b", 2, "y")], &["a 192.0.2.1", "b 192.0.2.2"]);
    check(&pools, &[local("a", 1, ""), local("b", 2, "")], &["a 192.0.2.1", "b 192.0.2.2"]);
    check(&pools, &[local("a", 1, "x"), with_port("b", 2, "k")], &["a 192.0.2.1", "b 192.0.2.2"]);
    // Both may change, one after the other, without losing the address.
    let holds = |request: AddressRequest| AddressRequest { holds: vec![ip("192.0.2.1")], ..request };
    check(
        &pools,
        &[holds(local("a", 1, "x")), holds(with_port("b", 2, "k"))],
        &["a 192.0.2.1 CheckAddress", "b 192.0.2.1 CheckAddress"],
    );
    // Consent may be withdrawn by the older Service.
    check(&pools, &[holds(request("a")), holds(with_port("b", 2, "k"))], &["a 192.0.2.1", "b 192.0.2.2"]);
}

#[test]
fn addresses_of_nodes_of_cluster_ips_of_other_pools_and_edges_of_prefixes_are_left_out() {
    let cluster = ClusterAddresses {
        nodes: [ip("192.0.2.1")].into(),
        service_ranges: ["192.0.2.2/32".parse().expect("a range")].into(),
        foreign: [(ip("192.0.2.3"), Key::new("other", "web"))].into(),
        ..ClusterAddresses::default()
    };
    let older = AddressPool { created: Some(1), ..pool("older", &["192.0.2.4-192.0.2.5"]) };
    let pools = [pool("p", &["192.0.2.0/29"]), AddressPool { offer: PoolOffer::OnRequest, ..older }];
    assert_eq!(result(&pools, &[request("a"), request("b")], &cluster), ["a 192.0.2.6", "b NoFreeAddress"]);
    let usage = &allot(&pools, &[request("a")], &cluster).pools["p"];
    // The address of the other controller counts as used.
    assert_eq!((usage.families.v4.used, usage.families.v4.free), (2, 0));
    let texts: Vec<_> = usage.problems.iter().map(ToString::to_string).collect();
    assert_eq!(
        texts,
        [
            "192.0.2.4-192.0.2.5 is in pool older too, which allots it; remove it from one",
            "it has addresses of the cluster IP range 192.0.2.2/32, which are not allotted; leave them out",
            "192.0.2.1 is an address of a node and is not allotted; leave it out",
        ]
    );
    for (addr, part) in [
        ("192.0.2.0", "network or broadcast address of 192.0.2.0/29; ask for another, or add 192.0.2.0 to the pool"),
        ("192.0.2.1", "an address of a node"),
        ("192.0.2.2", "in the cluster IP range 192.0.2.2/32"),
        ("192.0.2.3", "which Service other/web has: another controller gave it"),
    ] {
        let asks = AddressRequest { addresses: vec![ip(addr)], ..request("a") };
        let message = allot(&pools, &[asks], &cluster).services[&Key::new("default", "a")].message();
        assert!(message.contains(part), "{message}");
    }
    // Written on its own, an edge is an address as any other.
    check(&[pool("p", &["192.0.2.0/30", "192.0.2.0"])], &[request("a")], &["a 192.0.2.0"]);
    check(
        &[pool("p", &["2001:db8::/126"])],
        &[AddressRequest { families: vec![Family::V6], ..request("a") }],
        &["a 2001:db8::1"],
    );
    check(&[pool("p", &["192.0.2.0/31"])], &[request("a")], &["a 192.0.2.0"]);
    assert_eq!(allot(&[pool("p", &[])], &[], &cluster).pools["p"].problems, [PoolProblem::Empty]);
}

#[test]
fn a_service_without_an_address_is_told_why_each_pool_gives_none() {
    let pools = [
        pool("full", &["192.0.2.1"]),
        AddressPool { offer: PoolOffer::OnRequest, ..pool("asked", &["192.0.2.2"]) },
        AddressPool { namespaces: selectors("team=x"), ..pool("teams", &["192.0.2.3"]) },
        AddressPool { services: selectors("app=x"), ..pool("apps", &["192.0.2.4"]) },
        pool("six", &["2001:db8::1"]),
    ];
    let message = |pools: &[AddressPool], request: AddressRequest| {
        let older = AddressRequest { created: Some(1), ..super::tests::request("older") };
        allot(pools, &[older, request], &ClusterAddresses::default()).services[&Key::new("default", "a")].message()
    };
    assert_eq!(
        message(&pools, request("a")),
        "no pool gives it an IPv4 address: full has no free one (add addresses); the serviceSelectors of apps leave it \
         out; the namespaceSelectors of teams leave it out; asked gives on request only (ask by beeline.io/lb-pool: \
         asked); six has none of the family (add some)"
    );
    assert_eq!(message(&[], request("a")), "no pool gives it an IPv4 address, as there is none; make an AddressPool");
    let asks = |pool: &str| AddressRequest { pool: Some(pool.into()), ..request("a") };
    assert_eq!(
        message(&pools, asks("teams")),
        "the namespaceSelectors of pool teams leave this Service out; change them, or ask for another pool"
    );
    assert_eq!(message(&pools, asks("six")), "no pool gives it an IPv4 address: six has none of the family (add some)");
    let many: Vec<AddressPool> = (0..11).map(|at| pool(&format!("six{at}"), &["2001:db8::1"])).collect();
    assert!(message(&many, request("a")).ends_with("; and 3 more"));
}

#[test]
fn a_service_keeps_addresses_that_another_controller_writes() {
    let pools = [pool("p", &["192.0.2.0/29"])];
    let contest = Some(Contest { from: vec![ip("192.0.2.1")], to: Vec::new() });
    check(&pools, &[AddressRequest { contest: contest.clone(), ..request("a") }], &["a TwoControllers"]);
    let held = AddressRequest { holds: vec![ip("192.0.2.4")], contest, ..request("a") };
    let allotment = &allot(&pools, &[held], &ClusterAddresses::default()).services[&Key::new("default", "a")];
    assert_eq!(
        allotment.message(),
        "192.0.2.4 from pool p; another controller changes its addresses again and again, from 192.0.2.1 to none, and \
         keeps the last word for ten minutes; let one of the two serve it, by spec.loadBalancerClass"
    );
}

#[test]
fn the_message_names_each_address_with_its_pool_and_each_problem() {
    let pools = [pool("p", &["192.0.2.1", "2001:db8::1"])];
    let held = AddressRequest { holds: vec![ip("198.51.100.1")], ..dual(Stack::All, "a") };
    let allotment = &allot(&pools, &[held], &ClusterAddresses::default()).services[&Key::new("default", "a")];
    assert_eq!(
        (allotment.message().as_str(), allotment.reason()),
        (
            "198.51.100.1, 2001:db8::1 from pool p; it keeps 198.51.100.1, which is in no pool any more; add it to \
             one, or ask for another to move",
            "CheckAddress"
        )
    );
}

/// A small world, in which Services meet often.
fn worlds() -> impl Strategy<Value = (Vec<AddressPool>, Vec<AddressRequest>, ClusterAddresses)> {
    let address = (0_u8..12, any::<bool>()).prop_map(|(at, is_v4)| match is_v4 {
        true => IpAddr::from([192, 0, 2, at]),
        false => ip(&format!("2001:db8::{at:x}")),
    });
    let range = prop::sample::select(vec![
        "192.0.2.0/29",
        "192.0.2.4-192.0.2.9",
        "192.0.2.1",
        "2001:db8::/125",
        "2001:db8::3-2001:db8::a",
    ]);
    let pools = prop::collection::vec(
        (prop::sample::select(vec!["p", "q", "r"]), prop::collection::vec(range, 0..3), any::<bool>(), any::<bool>()),
        0..4,
    );
    let pools = pools.prop_map(|pools| {
        let make = |(at, (name, ranges, on_request, selects)): (usize, (&str, Vec<&str>, bool, bool))| AddressPool {
            created: (at % 2 == 0).then_some(7),
            offer: if on_request { PoolOffer::OnRequest } else { PoolOffer::Automatic },
            services: if selects { selectors("app=x") } else { Vec::new() },
            ..pool(name, &ranges)
        };
        let mut names = BTreeSet::new();
        pools.into_iter().filter(|pool| names.insert(pool.0)).enumerate().map(make).collect::<Vec<_>>()
    });
    let sharing = prop::option::of((prop::sample::select(vec!["k", "l"]), any::<bool>()));
    let wishes = (
        prop::collection::vec(address.clone(), 0..3),
        prop::option::weighted(0.2, prop::sample::select(vec!["p", "q", "none"])),
        prop::collection::vec(address.clone(), 0..3),
    );
    let shape = (0_u8..3, any::<bool>(), any::<bool>(), prop::option::of(0_i64..3), prop::bool::weighted(0.1));
    let service = (sharing, wishes, shape, prop::collection::btree_set(1_u16..5, 1..3), any::<bool>());
    let services = prop::collection::vec(service, 0..9).prop_map(|services| {
        let make = |(at, (sharing, (addresses, pool, holds), shape, ports, is_local))| {
            let at: usize = at;
            let (families, all, labelled, created, broken): (u8, bool, bool, Option<i64>, bool) = shape;
            let ports: BTreeSet<u16> = ports;
            let sharing: Option<(&str, bool)> = sharing;
            let pool: Option<&str> = pool;
            AddressRequest {
                key: Key::new(if at.is_multiple_of(3) { "one" } else { "two" }, &format!("s{at}")),
                created,
                families: match families {
                    0 => vec![Family::V4],
                    1 => vec![Family::V6],
                    _ => vec![Family::V6, Family::V4],
                },
                stack: if all { Stack::All } else { Stack::Any },
                addresses: if at.is_multiple_of(2) { addresses } else { Vec::new() },
                pool: pool.map(Arc::from),
                sharing: sharing.map(|(key, wide)| Sharing {
                    key: key.into(),
                    namespaces: if wide { SharedWith::All } else { SharedWith::These(BTreeSet::new()) },
                }),
                // Some are ranges, which begin with the port.
                ports: ports
                    .into_iter()
                    .map(|port| (Proto::Tcp, PortSpan { first: port, last: port + u16::from(all) }))
                    .collect(),
                attraction: if is_local {
                    Attraction::NodesOfPods([("app".to_owned(), "x".to_owned())].into())
                } else {
                    Attraction::EveryNode
                },
                labels: if labelled { [("app".to_owned(), "x".to_owned())].into() } else { Labels::new() },
                holds,
                contest: None,
                problems: if broken { vec!["broken".to_owned()] } else { Vec::new() },
            }
        };
        services.into_iter().enumerate().map(make).collect::<Vec<AddressRequest>>()
    });
    let cluster = (prop::collection::btree_set(address.clone(), 0..2), prop::option::weighted(0.3, address)).prop_map(
        |(nodes, foreign)| ClusterAddresses {
            nodes,
            foreign: foreign.into_iter().map(|addr| (addr, Key::new("other", "web"))).collect(),
            service_ranges: ["192.0.2.8/31".parse().expect("a range")].into(),
            ..ClusterAddresses::default()
        },
    );
    (pools, services, cluster)
}

fn find<'a>(requests: &'a [AddressRequest], key: &Key) -> &'a AddressRequest {
    requests.iter().find(|request| request.key == *key).expect("a request")
}

/// The requests after the allotments were written to the Services.
fn applied(requests: &[AddressRequest], allotments: &Allotments) -> Vec<AddressRequest> {
    let after = |request: &AddressRequest| {
        let holds = allotments.services[&request.key].addresses.iter().map(|(addr, _)| *addr).collect();
        AddressRequest { holds, ..request.clone() }
    };
    requests.iter().map(after).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn services_with_a_common_address_consent_and_have_no_common_port((pools, requests, cluster) in worlds()) {
        let allotments = allot(&pools, &requests, &cluster);
        let all: Vec<_> = allotments.services.iter().collect();
        for (at, (key, one)) in all.iter().enumerate() {
            for (other_key, other) in &all[at + 1..] {
                let common = one.addresses.iter().any(|addr| other.addresses.contains(addr));
                let excluded = find(&requests, key).excludes(find(&requests, other_key));
                prop_assert!(!common || excluded.is_none(), "{key} {other_key} {excluded:?} {allotments:?}");
            }
        }
    }

    #[test]
    fn an_address_is_kept_unless_its_service_asks_for_another_or_an_older_one_excludes_it(
        (pools, requests, cluster) in worlds()
    ) {
        let allotments = allot(&pools, &requests, &cluster);
        for request in &requests {
            let has: Vec<_> = allotments.services[&request.key].addresses.iter().map(|(addr, _)| *addr).collect();
            for held in &request.holds {
                let is_of_family = request.families.contains(&family_of(*held));
                let is_excluded = requests.iter().any(|other| {
                    let is_older = (other.created.unwrap_or(i64::MAX), &other.key)
                        < (request.created.unwrap_or(i64::MAX), &request.key);
                    is_older && other.holds.contains(held) && request.excludes(other).is_some()
                });
                // Then it has another one of the family instead, as it asked for.
                let asks = !request.addresses.is_empty() || request.pool.is_some();
                let is_other =
                    |addr: &IpAddr| family_of(*addr) == family_of(*held) && !request.holds.contains(addr);
                let has_other =
                    has.iter().any(is_other) || request.addresses.iter().any(|addr| has.contains(addr));
                prop_assert!(
                    has.contains(held) || !is_of_family || is_excluded
                        || (asks && has_other && request.problems.is_empty()),
                    "{} lost {held}: {allotments:?}", request.key
                );
            }
        }
    }

    #[test]
    fn a_new_address_is_of_a_pool_that_admits_the_service_and_of_no_node((pools, requests, cluster) in worlds()) {
        let allotments = allot(&pools, &requests, &cluster);
        for request in &requests {
            for (addr, name) in &allotments.services[&request.key].addresses {
                if request.holds.contains(addr) {
                    continue;
                }
                let name = name.as_ref().expect("a new address is of a pool");
                let admits = |pool: &AddressPool| {
                    pool.name == *name && pool.left_out_by(request, &cluster).is_none()
                        && (pool.offer == PoolOffer::Automatic || request.pool == Some(name.clone())
                            || request.addresses.contains(addr))
                };
                prop_assert!(pools.iter().any(admits), "{} {addr} {name}", request.key);
                prop_assert!(!cluster.nodes.contains(addr) && !cluster.foreign.contains_key(addr));
                prop_assert!(!cluster.service_ranges.iter().any(|range| range.contains(addr)));
            }
        }
    }

    #[test]
    fn a_service_that_needs_both_families_gets_both_or_none((pools, requests, cluster) in worlds()) {
        let allotments = allot(&pools, &requests, &cluster);
        for request in requests.iter().filter(|request| request.stack == Stack::All) {
            let allotment = &allotments.services[&request.key];
            // A Service that had an address before it needed the other family keeps it.
            let held = request.holds.iter().any(|addr| request.families.contains(&family_of(*addr)));
            let lost = !allotment.lost.is_empty();
            let has = |family: &&Family| allotment.addresses.iter().any(|(addr, _)| family_of(*addr) == **family);
            let families = request.families.iter().filter(has).count();
            prop_assert!(held || lost || families == 0 || families == request.families.len(), "{allotments:?}");
        }
    }

    #[test]
    fn an_allotment_over_its_own_result_changes_nothing((pools, requests, cluster) in worlds()) {
        let first = allot(&pools, &requests, &cluster);
        let second = allot(&pools, &applied(&requests, &first), &cluster);
        for (key, allotment) in &first.services {
            prop_assert_eq!(&allotment.addresses, &second.services[key].addresses);
            prop_assert_eq!(allotment.message(), second.services[key].message());
        }
        prop_assert_eq!(first.pools, second.pools);
    }

    #[test]
    fn the_order_of_the_input_does_not_count((pools, requests, cluster) in worlds(), by in 0_usize..9) {
        let (mut other_pools, mut other_requests) = (pools.clone(), requests.clone());
        other_pools.reverse();
        let by = by.min(other_requests.len());
        other_requests.rotate_left(by);
        prop_assert_eq!(allot(&pools, &requests, &cluster), allot(&other_pools, &other_requests, &cluster));
    }

    #[test]
    fn no_address_stays_free_for_which_a_service_waits((pools, requests, cluster) in worlds()) {
        let allotments = allot(&pools, &requests, &cluster);
        for (key, allotment) in &allotments.services {
            for problem in &allotment.problems {
                if let AddressProblem::NoAddress(family, pools) = problem {
                    let request = find(&requests, key);
                    // A Service that needs both families leaves one of the family that it could get.
                    let waits_for_both = request.families.len() > 1 && request.stack == Stack::All;
                    let full = pools.iter().filter(|(_, why)| *why == NotGiven::Full);
                    let free: u128 = full.map(|(pool, _)| allotments.pools[pool].families[*family].free).sum();
                    prop_assert!(waits_for_both || free == 0, "{key} {problem} {allotments:?}");
                }
            }
        }
    }
}
