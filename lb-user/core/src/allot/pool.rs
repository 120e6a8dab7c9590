//! Pools of addresses, and the addresses that each may allot: its own, without addresses of pools before it, of nodes
//! and of the Service ranges.

use std::{fmt, net::IpAddr, str::FromStr, sync::Arc};

use ipnet::IpNet;
use lb_common::Family;

use super::{
    ClusterAddresses,
    problem::{PoolProblem, Reserved, Selectors},
    request::AddressRequest,
    spans::{Spans, addr, family_of, number},
};
use crate::{
    label_selector::{LabelSelector, Labels},
    per_family::PerFamily,
};

/// A pool of addresses for Services of type LoadBalancer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AddressPool {
    /// Name of the pool.
    pub name: Arc<str>,
    /// `metadata.creationTimestamp` in seconds since 1970. Of pools that overlap, the older one has the addresses. None
    /// counts as younger than any time.
    pub created: Option<i64>,
    /// Addresses of the pool.
    pub ranges: Vec<AddressRange>,
    /// Services that may get an address of it without asking for it.
    pub offer: PoolOffer,
    /// Order of pools for a Service that names none; lower first, none last.
    pub priority: Option<u32>,
    /// Labels of the namespaces whose Services may have its addresses, one of these; none: all.
    pub namespaces: Vec<LabelSelector>,
    /// Labels of the Services that may have its addresses, one of these; none: all.
    pub services: Vec<LabelSelector>,
    /// Problems of the object, each with its cure.
    pub problems: Vec<String>,
}

/// Services that may get an address of a pool.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum PoolOffer {
    /// All Services that its selectors let in.
    #[default]
    Automatic,
    /// Services that name the pool or the address.
    OnRequest,
}

impl AddressPool {
    /// Makes a pool for all Services, without addresses.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self {
            name: name.into(),
            created: None,
            ranges: Vec::new(),
            offer: PoolOffer::default(),
            priority: None,
            namespaces: Vec::new(),
            services: Vec::new(),
            problems: Vec::new(),
        }
    }

    /// Returns the selectors that leave the Service out; none if it may have an address.
    pub(super) fn left_out_by(&self, request: &AddressRequest, cluster: &ClusterAddresses) -> Option<Selectors> {
        let one_matches =
            |selectors: &[LabelSelector], labels: &Labels| selectors.iter().any(|selector| selector.matches(labels));
        let has_namespace = self.namespaces.is_empty()
            || cluster
                .namespaces
                .get(request.key.namespace())
                .is_some_and(|labels| one_matches(&self.namespaces, labels));
        let has_labels = self.services.is_empty() || one_matches(&self.services, &request.labels);
        match (has_namespace, has_labels) {
            (false, _) => Some(Selectors::Namespaces),
            (true, false) => Some(Selectors::Services),
            (true, true) => None,
        }
    }
}

/// A range of addresses, as a pool writes it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AddressRange {
    first: IpAddr,
    last: IpAddr,
    /// The prefix, if it is written as one.
    prefix: Option<IpNet>,
}

/// Ranges without an address that a router would forward to a Service.
const UNUSABLE: [(&str, &str); 9] = [
    ("0.0.0.0/8", "addresses of \"this network\""),
    ("127.0.0.0/8", "loopback addresses"),
    ("169.254.0.0/16", "link-local addresses"),
    ("224.0.0.0/4", "multicast addresses"),
    ("240.0.0.0/4", "reserved addresses"),
    ("::/127", "the unspecified and the loopback address"),
    ("::ffff:0.0.0.0/96", "IPv4 addresses in the form of IPv6"),
    ("fe80::/10", "link-local addresses"),
    ("ff00::/8", "multicast addresses"),
];

impl AddressRange {
    /// Makes the range from `first` to `last`.
    ///
    /// # Errors
    /// The reason with its cure, if it is no range of usable addresses.
    pub fn new(first: IpAddr, last: IpAddr) -> Result<Self, String> {
        Self { first, last, prefix: None }.checked()
    }

    fn checked(self) -> Result<Self, String> {
        let family = family_of(self.first);
        if family_of(self.last) != family {
            return Err("the ends have different families; write a range for each".to_owned());
        }
        if self.first > self.last {
            return Err(format!("the end is before the beginning; write {}-{}", self.last, self.first));
        }
        for (range, what) in UNUSABLE {
            let range: IpNet = range.parse().map_err(|_| range.to_owned())?;
            let is_family = family_of(range.addr()) == family;
            if is_family && range.network() <= self.last && range.broadcast() >= self.first {
                return Err(format!("it has {what} ({range}), which no Service can have; leave these out"));
            }
        }
        Ok(self)
    }

    /// The family of its addresses.
    #[must_use]
    pub const fn family(&self) -> Family {
        family_of(self.first)
    }

    /// The addresses of a prefix that hosts on the link of that prefix take for something else: network and broadcast
    /// address (IPv4), the anycast address of the routers (RFC 4291, 2.6.1). A range written with its ends has none.
    fn edges(&self) -> Vec<IpAddr> {
        match self.prefix {
            Some(prefix @ IpNet::V4(_)) if prefix.prefix_len() <= 30 => vec![prefix.network(), prefix.broadcast()],
            Some(prefix @ IpNet::V6(_)) if prefix.prefix_len() <= 126 => vec![prefix.network()],
            _ => Vec::new(),
        }
    }
}

impl FromStr for AddressRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WANT: &str = "write a prefix as in 192.0.2.0/24, a range as in 192.0.2.10-192.0.2.20, or an address";
        let address = |text: &str| text.trim().parse::<IpAddr>().map_err(|_| format!("no addresses; {WANT}"));
        if let Some((first, last)) = text.split_once('-') {
            return Self::new(address(first)?, address(last)?);
        }
        if !text.contains('/') {
            let single = address(text)?;
            return Self::new(single, single);
        }
        let prefix: IpNet = text.trim().parse().map_err(|_| format!("no addresses; {WANT}"))?;
        if prefix.trunc() != prefix {
            return Err(format!("bits behind the prefix are set; write {} for all of it", prefix.trunc()));
        }
        Self { first: prefix.network(), last: prefix.broadcast(), prefix: Some(prefix) }.checked()
    }
}

impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.prefix {
            Some(prefix) => write!(f, "{prefix}"),
            None if self.first == self.last => write!(f, "{}", self.first),
            None => write!(f, "{}-{}", self.first, self.last),
        }
    }
}

/// The addresses of a pool beside the other pools.
#[derive(Debug)]
pub(super) struct Territory<'a> {
    pub(super) pool: &'a AddressPool,
    /// Addresses of no pool before it.
    pub(super) whole: PerFamily<Spans>,
    /// Addresses of these that may be allotted.
    pub(super) allottable: PerFamily<Spans>,
    pub(super) problems: Vec<PoolProblem>,
}

/// Divides the addresses among the pools; the oldest comes first, then the first by name.
pub(super) fn divide<'a>(pools: &'a [AddressPool], cluster: &ClusterAddresses) -> Vec<Territory<'a>> {
    let mut pools: Vec<&AddressPool> = pools.iter().collect();
    pools.sort_by_key(|pool| (pool.created.unwrap_or(i64::MAX), &pool.name));
    let mut territories: Vec<Territory<'a>> = Vec::with_capacity(pools.len());
    for pool in pools {
        let mut own = PerFamily::<Spans>::default();
        for range in &pool.ranges {
            own[range.family()].add(number(range.first), number(range.last));
        }
        let mut problems: Vec<_> = pool.problems.iter().cloned().map(PoolProblem::Invalid).collect();
        let mut whole = own.clone();
        for before in &territories {
            for family in Family::ALL {
                if let Some((first, last)) = own[family].overlap(&before.whole[family]) {
                    let (first, last) = (addr(family, first), addr(family, last));
                    problems.push(PoolProblem::Overlap { with: before.pool.name.clone(), first, last });
                }
                whole[family].subtract(&before.whole[family]);
            }
        }
        let mut allottable = whole.clone();
        for edge in pool.ranges.iter().flat_map(AddressRange::edges) {
            // Another range of the pool may name the address on its own.
            let is_named = |range: &AddressRange| {
                range.prefix.is_none()
                    && range.family() == family_of(edge)
                    && (range.first..=range.last).contains(&edge)
            };
            if !pool.ranges.iter().any(is_named) {
                allottable[family_of(edge)].remove(number(edge), number(edge));
            }
        }
        for range in &cluster.service_ranges {
            let (family, first, last) = (family_of(range.addr()), number(range.network()), number(range.broadcast()));
            let mut span = Spans::default();
            span.add(first, last);
            if whole[family].overlap(&span).is_some() {
                problems.push(PoolProblem::ServiceRange(*range));
                allottable[family].remove(first, last);
            }
        }
        for node in &cluster.nodes {
            if whole[family_of(*node)].contains(number(*node)) {
                problems.push(PoolProblem::Node(*node));
                allottable[family_of(*node)].remove(number(*node), number(*node));
            }
        }
        if pool.problems.is_empty() && Family::ALL.iter().all(|family| own[*family].is_empty()) {
            problems.push(PoolProblem::Empty);
        }
        problems.sort();
        territories.push(Territory { pool, whole, allottable, problems });
    }
    territories
}

impl Territory<'_> {
    pub(super) fn has(&self, addr: IpAddr) -> bool {
        self.whole[family_of(addr)].contains(number(addr))
    }

    /// Returns the reason why the pool does not allot this address of its own; none if it may.
    pub(super) fn reserved(&self, addr: IpAddr, cluster: &ClusterAddresses) -> Option<Reserved> {
        if self.allottable[family_of(addr)].contains(number(addr)) {
            return None;
        }
        if cluster.nodes.contains(&addr) {
            return Some(Reserved::Node);
        }
        if let Some(range) = cluster.service_ranges.iter().find(|range| range.contains(&addr)) {
            return Some(Reserved::ServiceRange(*range));
        }
        let prefix = self.pool.ranges.iter().find(|range| range.edges().contains(&addr)).and_then(|range| range.prefix);
        prefix.map(Reserved::Edge)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_a_prefix_its_ends_or_an_address() {
        let check = |text: &str, expected: Result<(&str, &str), &str>| {
            let range = text.parse::<AddressRange>();
            match (range, expected) {
                (Ok(range), Ok((first, last))) => {
                    assert_eq!((range.first.to_string(), range.last.to_string()), (first.to_owned(), last.to_owned()));
                }
                (Err(problem), Err(part)) => assert!(problem.contains(part), "{text}: {problem}"),
                (range, expected) => panic!("{text}: {range:?}, not {expected:?}"),
            }
        };
        check("192.0.2.0/24", Ok(("192.0.2.0", "192.0.2.255")));
        check("192.0.2.7", Ok(("192.0.2.7", "192.0.2.7")));
        check("192.0.2.7/32", Ok(("192.0.2.7", "192.0.2.7")));
        check("192.0.2.10 - 192.0.2.20", Ok(("192.0.2.10", "192.0.2.20")));
        check("2001:db8::/120", Ok(("2001:db8::", "2001:db8::ff")));
        check("2001:db8::1-2001:db8::9", Ok(("2001:db8::1", "2001:db8::9")));
        check("192.0.2.7/24", Err("write 192.0.2.0/24"));
        check("192.0.2.20-192.0.2.10", Err("write 192.0.2.10-192.0.2.20"));
        check("192.0.2.1-2001:db8::1", Err("families"));
        check("192.0.2.0/33", Err("write a prefix"));
        check("web", Err("write a prefix"));
        check("", Err("write a prefix"));
        check("224.0.0.0/24", Err("multicast"));
        check("126.0.0.0-128.0.0.0", Err("loopback"));
        check("0.0.0.0/0", Err("this network"));
        check("::/0", Err("unspecified"));
        check("fe80::1", Err("link-local"));
        check("::ffff:192.0.2.1", Err("IPv4"));
    }
}
