//! The objects that the controller knows. The latest version of a Service counts: an answer to a write is often newer
//! than the watch.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use ipnet::IpNet;
use lb_core::{
    allot::{AddressPool, AddressRequest, Allotments, ClusterAddresses, Contest, allot},
    label_selector::Labels,
    objects::Key,
};
use lb_sources::{
    convert::BalancerClass,
    kubernetes::load_balancers::{AddressEvent, BalancerPool, BalancerService, Change},
};
use tokio::time::Instant;

/// Services that get addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Served {
    /// Services of `loadBalancerClass: beeline.io/lb`.
    OwnClass,
    /// Services of that class, and Services without a class.
    OwnClassAndNone,
}

/// The objects, each kind None before its first list.
#[derive(Debug, Default)]
pub(super) struct Known {
    pub(super) services: BTreeMap<Key, BalancerService>,
    pub(super) pools: BTreeMap<Key, BalancerPool>,
    nodes: BTreeMap<Key, BTreeSet<IpAddr>>,
    namespaces: BTreeMap<Key, Labels>,
    service_ranges: BTreeMap<Key, BTreeSet<IpNet>>,
    listed: [bool; 5],
    /// Addresses that each Service has if no other controller changes them.
    expected: BTreeMap<Key, Vec<IpAddr>>,
    contests: BTreeMap<Key, Contested>,
}

/// Changes of a Service's addresses by another controller.
#[derive(Debug)]
struct Contested {
    contest: Contest,
    times: u32,
    last: Instant,
}

/// Number of changes after which the other controller has the last word: it would go on for ever.
const MAX_CONTESTS: u32 = 3;
/// Time for which it has.
const CONTEST: Duration = Duration::from_secs(600);

impl Known {
    /// True once every kind was listed.
    pub(super) fn is_complete(&self) -> bool {
        self.listed.iter().all(|listed| *listed)
    }

    pub(super) fn apply(&mut self, event: AddressEvent) {
        let Self { services, pools, nodes, namespaces, service_ranges, listed, expected, contests } = self;
        let [of_services, of_pools, of_nodes, of_namespaces, of_ranges] = listed;
        match event {
            AddressEvent::Service(Change::Listed(list)) => {
                let old = std::mem::take(services);
                for (key, service) in list {
                    // A list may come from a cache that is behind.
                    let known = old.get(&key).filter(|known| is_newer(known, &service)).cloned();
                    if known.is_none() {
                        compare(expected, contests, &key, &service);
                    }
                    services.insert(key, known.unwrap_or(service));
                }
                expected.retain(|key, _| services.contains_key(key));
                contests.retain(|key, _| services.contains_key(key));
                *of_services = true;
            }
            AddressEvent::Service(Change::Set(key, service)) => {
                if services.get(&key).is_none_or(|known| !is_newer(known, &service)) {
                    compare(expected, contests, &key, &service);
                    services.insert(key, service);
                }
            }
            AddressEvent::Service(Change::Gone(key)) => {
                services.remove(&key);
                expected.remove(&key);
                contests.remove(&key);
            }
            AddressEvent::Pool(change) => set(pools, of_pools, change),
            AddressEvent::Node(change) => set(nodes, of_nodes, change),
            AddressEvent::Namespace(change) => set(namespaces, of_namespaces, change),
            AddressEvent::ServiceRanges(change) => set(service_ranges, of_ranges, change),
        }
    }

    /// Records the answer to a write. A Service that has gone meanwhile stays gone.
    pub(super) fn record(&mut self, key: &Key, written: BalancerService) {
        if let Some(known) = self.services.get_mut(key)
            && known.uid == written.uid
            && is_newer(&written, known)
        {
            self.expected.insert(key.clone(), written.request.holds.clone());
            *known = written;
        }
    }

    /// Records the addresses of Services that are right: a later change of them is another controller's.
    pub(super) fn expect(&mut self, allotments: &Allotments) {
        self.expected.retain(|key, _| allotments.services.contains_key(key));
        for (key, allotment) in &allotments.services {
            let Some(service) = self.services.get(key) else { continue };
            if service.request.holds.iter().eq(allotment.addresses.iter().map(|(addr, _)| addr)) {
                self.expected.insert(key.clone(), service.request.holds.clone());
            }
        }
    }

    /// Returns the next time at which another controller has the last word no more.
    pub(super) fn end_of_contests(&self, now: Instant) -> Option<Instant> {
        let contests = self.contests.values().filter(|contested| contested.times >= MAX_CONTESTS);
        contests.map(|contested| contested.last + CONTEST).filter(|end| *end > now).min()
    }

    /// Allots addresses to the Services that are served.
    pub(super) fn allot(&self, served: Served, now: Instant) -> Allotments {
        let pools: Vec<AddressPool> = self.pools.values().map(|pool| pool.pool.clone()).collect();
        let mut cluster = ClusterAddresses {
            namespaces: self.namespaces.iter().map(|(key, labels)| (key.name().into(), labels.clone())).collect(),
            nodes: self.nodes.values().flatten().copied().collect(),
            service_ranges: self.service_ranges.values().flatten().copied().collect(),
            ..ClusterAddresses::default()
        };
        let mut requests: Vec<AddressRequest> = Vec::new();
        for (key, service) in &self.services {
            let is_served = match service.class {
                BalancerClass::Beeline => true,
                BalancerClass::Default => served == Served::OwnClassAndNone,
                BalancerClass::Other => false,
            };
            if is_served {
                let is_contested =
                    |contested: &&Contested| contested.times >= MAX_CONTESTS && now < contested.last + CONTEST;
                let contest = self.contests.get(key).filter(is_contested).map(|contested| contested.contest.clone());
                requests.push(AddressRequest { contest, ..service.request.clone() });
            } else {
                cluster.foreign.extend(service.request.holds.iter().map(|addr| (*addr, key.clone())));
            }
        }
        allot(&pools, &requests, &cluster)
    }
}

/// Counts a change of addresses that this controller has not made.
fn compare(
    expected: &mut BTreeMap<Key, Vec<IpAddr>>,
    contests: &mut BTreeMap<Key, Contested>,
    key: &Key,
    service: &BalancerService,
) {
    let Some(expected) = expected.get_mut(key) else { return };
    let to = service.request.holds.clone();
    if *expected == to {
        return;
    }
    let from = std::mem::replace(expected, to.clone());
    tracing::warn!(service = %key, ?from, ?to, "another controller has changed the addresses");
    let times = contests.get(key).map_or(0, |contested| contested.times);
    let contest = Contest { from, to };
    contests.insert(key.clone(), Contested { contest, times: times.saturating_add(1), last: Instant::now() });
}

/// True if `one` is a later version than `other`. Versions are numbers that grow (Kubernetes 1.35 promises that, and
/// etcd's revisions always did); versions of another kind count as equal.
fn is_newer(one: &BalancerService, other: &BalancerService) -> bool {
    let number = |service: &BalancerService| service.resource_version.parse::<u64>().ok();
    matches!((number(one), number(other)), (Some(one), Some(other)) if one > other)
}

fn set<T>(objects: &mut BTreeMap<Key, T>, listed: &mut bool, change: Change<T>) {
    match change {
        Change::Listed(list) => {
            *objects = list.into_iter().collect();
            *listed = true;
        }
        Change::Set(key, object) => drop(objects.insert(key, object)),
        Change::Gone(key) => drop(objects.remove(&key)),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    pub(in crate::balancer) fn service(name: &str, version: u64, last: &[u8]) -> (Key, BalancerService) {
        let key = Key::new("default", name);
        let holds = last.iter().map(|last| Ipv4Addr::new(192, 0, 2, *last).into()).collect();
        let service = BalancerService {
            class: BalancerClass::Beeline,
            request: AddressRequest { holds, ..AddressRequest::new(key.clone()) },
            resource_version: version.to_string(),
            uid: "u".to_owned(),
            condition: None,
        };
        (key, service)
    }

    fn set_service(known: &mut Known, name: &str, version: u64, last: &[u8]) {
        let (key, service) = service(name, version, last);
        known.apply(AddressEvent::Service(Change::Set(key, service)));
    }

    fn holds(known: &Known, name: &str) -> Option<usize> {
        known.services.get(&Key::new("default", name)).map(|service| service.request.holds.len())
    }

    #[test]
    fn an_older_version_does_not_replace_a_newer_one() {
        let mut known = Known::default();
        set_service(&mut known, "a", 5, &[]);
        let (key, written) = service("a", 7, &[1]);
        known.record(&key, written);
        assert_eq!(holds(&known, "a"), Some(1));
        set_service(&mut known, "a", 6, &[]);
        assert_eq!(holds(&known, "a"), Some(1), "the watch is behind the answer");
        known.apply(AddressEvent::Service(Change::Listed(vec![service("a", 6, &[]), service("b", 6, &[])])));
        assert_eq!((holds(&known, "a"), holds(&known, "b")), (Some(1), Some(0)), "a list may be behind too");
        set_service(&mut known, "a", 10, &[]);
        assert_eq!(holds(&known, "a"), Some(0), "10 is newer than 7");
    }

    #[test]
    fn an_answer_does_not_bring_a_service_back() {
        let mut known = Known::default();
        let (key, written) = service("a", 7, &[1]);
        known.record(&key, written.clone());
        assert_eq!(holds(&known, "a"), None);
        let (_, recreated) = service("a", 6, &[]);
        known.apply(AddressEvent::Service(Change::Set(
            key.clone(),
            BalancerService { uid: "v".to_owned(), ..recreated },
        )));
        known.record(&key, written);
        assert_eq!(holds(&known, "a"), Some(0), "another Service of the name");
    }

    #[test]
    fn classes_decide_which_services_get_addresses_and_addresses_of_others_are_taken() {
        let mut known = Known::default();
        let pool = BalancerPool {
            pool: AddressPool {
                ranges: vec!["192.0.2.1-192.0.2.9".parse().expect("a range")],
                ..AddressPool::new("p")
            },
            status: None,
        };
        known.apply(AddressEvent::Pool(Change::Set(Key::new("", "p"), pool)));
        for (name, class, last) in [
            ("own", BalancerClass::Beeline, &[][..]),
            ("default", BalancerClass::Default, &[]),
            ("other", BalancerClass::Other, &[1]),
        ] {
            let (key, service) = service(name, 1, last);
            known.apply(AddressEvent::Service(Change::Set(key, BalancerService { class, ..service })));
        }
        let names = |served| {
            let allotments = known.allot(served, Instant::now()).services;
            let line = |(key, allotment): (&Key, &lb_core::allot::Allotment)| {
                format!("{} {}", key.name(), allotment.addresses[0].0)
            };
            allotments.iter().map(line).collect::<Vec<_>>()
        };
        assert_eq!(names(Served::OwnClass), ["own 192.0.2.2"]);
        assert_eq!(names(Served::OwnClassAndNone), ["default 192.0.2.2", "own 192.0.2.3"]);
    }

    /// The condition of the only Service, as a pass at this moment would write it.
    fn reason(known: &mut Known) -> &'static str {
        let allotments = known.allot(Served::OwnClass, Instant::now());
        known.expect(&allotments);
        allotments.services[&Key::new("default", "a")].reason()
    }

    #[tokio::test(start_paused = true)]
    async fn another_controller_that_changes_addresses_again_and_again_has_the_last_word_for_a_while() {
        let mut known = Known::default();
        let pool = AddressPool { ranges: vec!["192.0.2.1".parse().expect("a range")], ..AddressPool::new("p") };
        known.apply(AddressEvent::Pool(Change::Set(Key::new("", "p"), BalancerPool { pool, status: None })));
        set_service(&mut known, "a", 1, &[]);
        let mut version = 2;
        let mut fight = |known: &mut Known| {
            let (key, written) = service("a", version, &[1]);
            known.record(&key, written);
            // The watch tells of the own write too.
            set_service(known, "a", version, &[1]);
            set_service(known, "a", version + 1, &[]);
            version += 2;
            reason(known)
        };
        assert_eq!([fight(&mut known), fight(&mut known)], ["Allotted"; 2]);
        assert_eq!(fight(&mut known), "TwoControllers");
        let end = known.end_of_contests(Instant::now()).expect("an end");
        tokio::time::advance(CONTEST - Duration::from_secs(1)).await;
        assert_eq!((reason(&mut known), Instant::now() < end), ("TwoControllers", true));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!((reason(&mut known), known.end_of_contests(Instant::now())), ("Allotted", None));
        assert_eq!(fight(&mut known), "TwoControllers", "once more suffices");
        known.apply(AddressEvent::Service(Change::Gone(Key::new("default", "a"))));
        set_service(&mut known, "a", 90, &[]);
        assert_eq!(reason(&mut known), "Allotted", "another Service of the name");
    }
}
