//! Allotment of addresses to Services of type LoadBalancer: from the pools, the requests of the Services and the
//! addresses that they have, the addresses that they shall have, and the reason where one gets none.
//!
//! A Service keeps an address as long as no older Service excludes it there: pools, selectors and requests decide about
//! new addresses only. Equal input in any order gives equal output, and an allotment over its own result changes
//! nothing.

mod pool;
mod problem;
mod request;
mod spans;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;
use lb_common::Family;

pub use self::{
    pool::{AddressPool, AddressRange, PoolOffer},
    problem::{AddressProblem, NotGiven, Obstacle, PoolProblem, Reserved, Selectors},
    request::{AddressRequest, Attraction, Contest, NotShared, SharedWith, Sharing, Stack},
};
use self::{
    pool::{Territory, divide},
    spans::{addr, family_of, number},
};
use crate::{label_selector::Labels, objects::Key, per_family::PerFamily};

/// Facts of the cluster that bear on addresses.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ClusterAddresses {
    /// Labels of the namespaces.
    pub namespaces: BTreeMap<Arc<str>, Labels>,
    /// Addresses of the nodes.
    pub nodes: BTreeSet<IpAddr>,
    /// Ranges of cluster IPs.
    pub service_ranges: BTreeSet<IpNet>,
    /// Addresses that other controllers gave to Services of theirs.
    pub foreign: BTreeMap<IpAddr, Key>,
}

/// The result for all Services and pools.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Allotments {
    /// By Service.
    pub services: BTreeMap<Key, Allotment>,
    /// By pool.
    pub pools: BTreeMap<Arc<str>, PoolUsage>,
}

/// The addresses of a Service.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Allotment {
    /// Addresses of the Service, present ones first, each with its pool; none for an address in no pool.
    pub addresses: Vec<(IpAddr, Option<Arc<str>>)>,
    /// Problems of its request.
    pub problems: Vec<AddressProblem>,
    /// Addresses that it loses to an older Service.
    pub lost: Vec<(IpAddr, Key, NotShared)>,
}

/// Counts of a pool's addresses.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PoolUsage {
    /// By family.
    pub families: PerFamily<FamilyUsage>,
    /// Problems of the pool.
    pub problems: Vec<PoolProblem>,
}

/// Counts of the addresses of one family; the highest number where there are more.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FamilyUsage {
    /// Addresses that Services have.
    pub used: u128,
    /// Addresses that may be allotted.
    pub free: u128,
}

impl Allotment {
    /// The reason for a condition: the first problem's, else `Allotted`.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        self.problems.first().map_or("Allotted", AddressProblem::reason)
    }

    /// The text for a condition, an Event and `explain`: the addresses with their pools, then the problems.
    #[must_use]
    pub fn message(&self) -> String {
        let addresses = self.addresses.iter().map(|(addr, pool)| match pool {
            Some(pool) => format!("{addr} from pool {}", pool.escape_debug()),
            None => addr.to_string(),
        });
        let mut parts = vec![addresses.collect::<Vec<_>>().join(", ")];
        parts.extend(self.problems.iter().map(ToString::to_string));
        parts.retain(|part| !part.is_empty());
        parts.join("; ")
    }
}

/// Allots addresses; see the description of the module. Names of pools and keys of requests are unique.
#[must_use]
pub fn allot(pools: &[AddressPool], requests: &[AddressRequest], cluster: &ClusterAddresses) -> Allotments {
    let mut requests: Vec<&AddressRequest> = requests.iter().collect();
    requests.sort_by_key(|request| (request.created.unwrap_or(i64::MAX), &request.key));
    let mut ledger = Ledger::new(divide(pools, cluster), requests, cluster);
    let lost = ledger.keep();
    let mut problems = ledger.round();
    // A Service that moves frees an address, for which an older one may wait.
    while ledger.has_changed {
        problems = ledger.round();
    }
    let mut services = BTreeMap::new();
    for (index, (mut problems, lost)) in problems.into_iter().zip(lost).enumerate() {
        let Some(request) = ledger.requests.get(index) else { continue };
        problems.extend(ledger.problems_of_kept(index));
        let addresses = ledger.of(index).iter().map(|addr| (*addr, ledger.pool_of(*addr))).collect();
        services.insert(request.key.clone(), Allotment { addresses, problems, lost });
    }
    Allotments { services, pools: ledger.usage() }
}

/// Addresses and their Services, while they are allotted.
struct Ledger<'a> {
    territories: Vec<Territory<'a>>,
    /// Indexes of `territories`, in the order in which a Service without a wish tries them.
    order: Vec<usize>,
    /// For each territory, no address below is free.
    cursors: Vec<PerFamily<u128>>,
    /// The oldest first.
    requests: Vec<&'a AddressRequest>,
    cluster: &'a ClusterAddresses,
    /// Indexes of the Services that have an address.
    taken: BTreeMap<IpAddr, BTreeSet<usize>>,
    /// Addresses that Services with a sharing key have or had.
    by_key: BTreeMap<&'a str, BTreeSet<IpAddr>>,
    /// For each Service, its addresses.
    addresses: Vec<Vec<IpAddr>>,
    /// True if the last round gave or released an address.
    has_changed: bool,
}

impl<'a> Ledger<'a> {
    fn new(territories: Vec<Territory<'a>>, requests: Vec<&'a AddressRequest>, cluster: &'a ClusterAddresses) -> Self {
        let mut order: Vec<usize> = (0..territories.len()).collect();
        let rank = |pool: &'a AddressPool| {
            let is_general = pool.namespaces.is_empty() && pool.services.is_empty();
            (pool.priority.unwrap_or(u32::MAX), is_general, &pool.name)
        };
        order.sort_by_key(|&index| territories.get(index).map(|territory| rank(territory.pool)));
        Self {
            order,
            cursors: vec![PerFamily::default(); territories.len()],
            addresses: vec![Vec::new(); requests.len()],
            territories,
            requests,
            cluster,
            taken: BTreeMap::new(),
            by_key: BTreeMap::new(),
            has_changed: false,
        }
    }

    fn of(&self, index: usize) -> &[IpAddr] {
        self.addresses.get(index).map_or(&[], Vec::as_slice)
    }

    fn territory_of(&self, addr: IpAddr) -> Option<&Territory<'a>> {
        self.territories.iter().find(|territory| territory.has(addr))
    }

    fn pool_of(&self, addr: IpAddr) -> Option<Arc<str>> {
        self.territory_of(addr).map(|territory| territory.pool.name.clone())
    }

    fn give(&mut self, index: usize, addr: IpAddr) {
        self.taken.entry(addr).or_default().insert(index);
        if let Some(addresses) = self.addresses.get_mut(index) {
            addresses.push(addr);
        }
        if let Some(sharing) = self.requests.get(index).and_then(|request| request.sharing.as_ref()) {
            self.by_key.entry(&sharing.key).or_default().insert(addr);
        }
    }

    fn release(&mut self, index: usize, addr: IpAddr) {
        if let Some(addresses) = self.addresses.get_mut(index) {
            addresses.retain(|other| *other != addr);
        }
        if let Some(owners) = self.taken.get_mut(&addr) {
            owners.remove(&index);
            if owners.is_empty() {
                self.taken.remove(&addr);
            }
        }
        for cursor in &mut self.cursors {
            let cursor = &mut cursor[family_of(addr)];
            *cursor = (*cursor).min(number(addr));
        }
    }

    /// Returns the oldest other Service at an address that this one may not meet there.
    fn conflict(
        &self,
        index: usize,
        addr: IpAddr,
        rule: impl Fn(&AddressRequest, &AddressRequest) -> Option<NotShared>,
    ) -> Option<(Key, NotShared)> {
        let request = self.requests.get(index)?;
        let others = self.taken.get(&addr)?.iter().filter(|other| **other != index);
        others
            .filter_map(|other| self.requests.get(*other))
            .find_map(|other| rule(request, other).map(|why| (other.key.clone(), why)))
    }

    /// Gives every Service the addresses that it has, unless an older Service excludes it; returns the losses of each.
    fn keep(&mut self) -> Vec<Vec<(IpAddr, Key, NotShared)>> {
        let mut lost = vec![Vec::new(); self.requests.len()];
        for (index, lost) in lost.iter_mut().enumerate() {
            let Some(request) = self.requests.get(index).copied() else { continue };
            for &addr in &request.holds {
                if !request.families.contains(&family_of(addr)) || self.of(index).contains(&addr) {
                    continue;
                }
                match self.conflict(index, addr, AddressRequest::excludes) {
                    Some((other, why)) => lost.push((addr, other, why)),
                    None => self.give(index, addr),
                }
            }
        }
        lost
    }

    /// Goes through all requests once; returns the problems of each.
    fn round(&mut self) -> Vec<Vec<AddressProblem>> {
        self.has_changed = false;
        let rounds = 0..self.requests.len();
        rounds
            .map(|index| {
                let before = self.of(index).to_vec();
                let problems = self.serve(index);
                self.has_changed |= self.of(index) != before;
                problems
            })
            .collect()
    }

    /// Gives a Service the addresses that it lacks; returns the reasons for missing ones.
    fn serve(&mut self, index: usize) -> Vec<AddressProblem> {
        let Some(request) = self.requests.get(index).copied() else { return Vec::new() };
        let mut problems: Vec<_> = request.contest.iter().cloned().map(AddressProblem::Contested).collect();
        problems.extend(request.problems.iter().cloned().map(AddressProblem::Invalid));
        let named = match &request.pool {
            None => None,
            Some(name) => match self.territories.iter().position(|territory| territory.pool.name == *name) {
                Some(named) => Some(named),
                None => {
                    problems.push(AddressProblem::UnknownPool(name.clone()));
                    None
                }
            },
        };
        let before = self.of(index).to_vec();
        let asked: BTreeSet<IpAddr> = request.addresses.iter().copied().collect();
        let missing = asked.iter().filter(|addr| !before.contains(addr));
        problems.extend(missing.filter_map(|addr| self.denial(index, *addr, request.pool.as_ref())));
        // A request that cannot be met in full changes nothing.
        if !problems.is_empty() {
            return problems;
        }
        for &addr in asked.iter().filter(|addr| !before.contains(addr)) {
            self.give(index, addr);
        }
        let is_of_asked_family = |addr: &IpAddr| asked.iter().any(|other| family_of(*other) == family_of(*addr));
        for &addr in before.iter().filter(|addr| is_of_asked_family(addr) && !asked.contains(addr)) {
            self.release(index, addr);
        }
        for &family in &request.families {
            let own: Vec<IpAddr> = self.of(index).iter().copied().filter(|addr| family_of(*addr) == family).collect();
            let is_in_named = |addr: &IpAddr| {
                named.and_then(|named| self.territories.get(named)).is_none_or(|territory| territory.has(*addr))
            };
            let is_asked = asked.iter().any(|addr| family_of(*addr) == family);
            if is_asked || (!own.is_empty() && own.iter().all(is_in_named)) {
                continue;
            }
            match self.find(index, family, named) {
                Ok(addr) => {
                    self.give(index, addr);
                    own.into_iter().for_each(|old| self.release(index, old));
                }
                Err(problem) => problems.push(problem),
            }
        }
        if request.stack == Stack::Any && !self.of(index).is_empty() {
            problems.retain(|problem| !matches!(problem, AddressProblem::NoAddress(..)) || problem.is_full());
        }
        if request.stack == Stack::All && before.is_empty() {
            let lacks = |family: &&Family| !self.of(index).iter().any(|addr| family_of(*addr) == **family);
            if let (Some(&lacking), false) = (request.families.iter().find(lacks), self.of(index).is_empty()) {
                problems.push(AddressProblem::Incomplete(lacking));
                self.of(index).to_vec().into_iter().for_each(|addr| self.release(index, addr));
            }
        }
        problems
    }

    /// Returns the reason why a Service cannot get an address that it asks for; none if it can.
    fn denial(&self, index: usize, addr: IpAddr, asked: Option<&Arc<str>>) -> Option<AddressProblem> {
        let request = self.requests.get(index)?;
        if !request.families.contains(&family_of(addr)) {
            return Some(AddressProblem::OtherFamily(addr));
        }
        let Some(territory) = self.territory_of(addr) else { return Some(AddressProblem::NotInPools(addr)) };
        let pool = &territory.pool.name;
        if let Some(asked) = asked.filter(|asked| *asked != pool) {
            return Some(AddressProblem::OtherPool { addr, pool: pool.clone(), asked: asked.clone() });
        }
        if let Some(selectors) = territory.pool.left_out_by(request, self.cluster) {
            return Some(AddressProblem::NotAdmitted(pool.clone(), selectors));
        }
        if let Some(reserved) = territory.reserved(addr, self.cluster) {
            return Some(AddressProblem::Reserved(addr, reserved));
        }
        if let Some(other) = self.cluster.foreign.get(&addr) {
            return Some(AddressProblem::InUse(addr, other.clone(), Obstacle::Foreign));
        }
        let conflict = self.conflict(index, addr, AddressRequest::cannot_join);
        conflict.map(|(other, why)| AddressProblem::InUse(addr, other, Obstacle::NotShared(why)))
    }

    /// Finds an address of the family for a Service: in the pool that it names, else in the pools that give addresses
    /// unasked. An address of a Service with the same sharing key goes before a free one.
    fn find(&mut self, index: usize, family: Family, named: Option<usize>) -> Result<IpAddr, AddressProblem> {
        let Some(request) = self.requests.get(index).copied() else {
            return Err(AddressProblem::NoAddress(family, Vec::new()));
        };
        let (mut candidates, mut refusals) = (Vec::new(), Vec::new());
        let order = self.order.iter().copied().filter(|at| named.is_none_or(|named| named == *at));
        for (at, territory) in order.filter_map(|at| Some((at, self.territories.get(at)?))) {
            let name = &territory.pool.name;
            match territory.pool.left_out_by(request, self.cluster) {
                Some(selectors) if named.is_some() => return Err(AddressProblem::NotAdmitted(name.clone(), selectors)),
                Some(selectors) => refusals.push((name.clone(), NotGiven::LeftOut(selectors))),
                None if territory.whole[family].is_empty() => refusals.push((name.clone(), NotGiven::NoFamily)),
                None if named.is_none() && territory.pool.offer == PoolOffer::OnRequest => {
                    refusals.push((name.clone(), NotGiven::OnRequest));
                }
                None => candidates.push(at),
            }
        }
        if let Some(sharing) = &request.sharing {
            for &at in &candidates {
                let shared = self.by_key.get(&*sharing.key).into_iter().flatten().copied();
                let found =
                    shared.filter(|addr| family_of(*addr) == family).find(|addr| self.can_join(index, at, *addr));
                if let Some(addr) = found {
                    return Ok(addr);
                }
            }
        }
        let free = candidates.iter().find_map(|at| self.free(*at, family));
        free.ok_or_else(|| {
            let full = candidates.iter().filter_map(|at| self.territories.get(*at));
            let full = full.map(|territory| (territory.pool.name.clone(), NotGiven::Full));
            AddressProblem::NoAddress(family, full.chain(refusals).collect())
        })
    }

    /// True if the Service may have an address of this territory together with the Services that have it now.
    fn can_join(&self, index: usize, territory: usize, addr: IpAddr) -> bool {
        let is_allottable = self
            .territories
            .get(territory)
            .is_some_and(|territory| territory.allottable[family_of(addr)].contains(number(addr)));
        is_allottable
            && self.taken.contains_key(&addr)
            && !self.of(index).contains(&addr)
            && !self.cluster.foreign.contains_key(&addr)
            && self.conflict(index, addr, AddressRequest::cannot_join).is_none()
    }

    /// Returns the lowest free address of a territory.
    fn free(&mut self, territory: usize, family: Family) -> Option<IpAddr> {
        let spans = &self.territories.get(territory)?.allottable[family];
        let cursor = &mut self.cursors.get_mut(territory)?[family];
        loop {
            let at = spans.next(*cursor)?;
            let addr = addr(family, at);
            if !self.taken.contains_key(&addr) && !self.cluster.foreign.contains_key(&addr) {
                *cursor = at;
                return Some(addr);
            }
            *cursor = at.checked_add(1)?;
        }
    }

    /// Returns the problems of addresses that a Service has and would not get today.
    fn problems_of_kept(&self, index: usize) -> Vec<AddressProblem> {
        let Some(request) = self.requests.get(index) else { return Vec::new() };
        let mut problems = Vec::new();
        for &addr in self.of(index) {
            match self.territory_of(addr) {
                None => problems.push(AddressProblem::KeptOutsidePools(addr)),
                Some(territory) => {
                    if let Some(selectors) = territory.pool.left_out_by(request, self.cluster) {
                        problems.push(AddressProblem::KeptNotAdmitted(addr, territory.pool.name.clone(), selectors));
                    }
                    let reserved = territory.reserved(addr, self.cluster);
                    problems.extend(reserved.map(|reserved| AddressProblem::KeptReserved(addr, reserved)));
                }
            }
            if let Some(other) = self.cluster.foreign.get(&addr) {
                problems.push(AddressProblem::KeptShared(addr, other.clone(), Obstacle::Foreign));
            }
            if let Some((other, why)) = self.conflict(index, addr, AddressRequest::cannot_join) {
                problems.push(AddressProblem::KeptShared(addr, other, Obstacle::NotShared(why)));
            }
        }
        problems
    }

    fn usage(&self) -> BTreeMap<Arc<str>, PoolUsage> {
        let taken: BTreeSet<IpAddr> = self.taken.keys().chain(self.cluster.foreign.keys()).copied().collect();
        let mut pools: BTreeMap<Arc<str>, PoolUsage> = BTreeMap::new();
        for territory in &self.territories {
            let families =
                PerFamily::from_fn(|family| FamilyUsage { used: 0, free: territory.allottable[family].count() });
            let problems = territory.problems.clone();
            pools.insert(territory.pool.name.clone(), PoolUsage { families, problems });
        }
        for addr in taken {
            let Some(territory) = self.territory_of(addr) else { continue };
            let Some(usage) = pools.get_mut(&territory.pool.name) else { continue };
            let usage = &mut usage.families[family_of(addr)];
            usage.used += 1;
            if territory.allottable[family_of(addr)].contains(number(addr)) {
                usage.free = usage.free.saturating_sub(1);
            }
        }
        pools
    }
}

#[cfg(test)]
mod tests;
