//! Decides which Service owns a frontend that several request (invariant I6): the claim with precedence, then the older
//! Service, then the first by name.

use std::collections::BTreeSet;

use foldhash::HashMap;
use lb_common::{Addr, FrontendKey, Kind, Proto};

pub use super::claimant::Precedence;
use super::{
    claimant::{Claimant, Rank},
    range_claims::{ClaimedRange, RangeChanges, RangeClaims},
};
use crate::{objects::Key, port_ranges::PortSpan};

/// A frontend that a Service claims: a [`FrontendKey`] whose padding holds the precedence.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Claim {
    addr: Addr,
    port: u16,
    proto: u8,
    precedence: Precedence,
}

impl Claim {
    const fn new((key, kind): (FrontendKey, Kind)) -> Self {
        Self { addr: key.addr, port: key.port, proto: key.proto, precedence: Precedence::of(kind) }
    }

    const fn key(&self) -> FrontendKey {
        FrontendKey { addr: self.addr, port: self.port, proto: self.proto, block: 0 }
    }
}

/// The frontends that each Service claims.
#[derive(Default)]
pub struct Claims {
    owners: HashMap<FrontendKey, Claimant>,
    /// Claimants of a frontend besides its owner; mostly empty.
    losers: HashMap<FrontendKey, BTreeSet<Claimant>>,
    by_service: HashMap<Key, ServiceClaims>,
    /// Port ranges.
    ranges: RangeClaims,
}

struct ServiceClaims {
    created: i64,
    claims: Box<[Claim]>,
}

/// Frontends with another owner than before.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ClaimChanges {
    /// Frontends that moved from one Service to another. All their claimants are affected, since they own more or less,
    /// or name the owner in a warning. Where many claim one frontend, listing them here at each step would cost the
    /// square of their number.
    pub moved: Vec<FrontendKey>,
    /// Frontends that got their first claimant, or lost their last.
    pub appeared_or_gone: Vec<FrontendKey>,
    /// Services that own other ports of port ranges than before.
    pub services: Vec<Key>,
    /// Addresses at which port ranges have changed: single ports there may belong to others than before.
    pub range_addrs: Vec<Addr>,
}

/// A single port of an address, and its owner.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SinglePort<'a> {
    /// The protocol.
    pub proto: Proto,
    /// The port.
    pub port: u16,
    /// The Service that owns it.
    pub owner: &'a Key,
    /// The precedence of its claim.
    pub precedence: Precedence,
}

impl ClaimChanges {
    /// Adds later changes.
    pub fn append(&mut self, mut later: Self) {
        self.moved.append(&mut later.moved);
        self.appeared_or_gone.append(&mut later.appeared_or_gone);
        self.services.append(&mut later.services);
        self.range_addrs.append(&mut later.range_addrs);
    }
}

impl Claims {
    /// Returns the Service that owns a frontend.
    #[must_use]
    pub fn owner(&self, key: &FrontendKey) -> Option<&Key> {
        self.owners.get(key).map(|claimant| &claimant.service)
    }

    /// Returns the precedence of the owner's claim to a frontend.
    #[must_use]
    pub fn precedence(&self, key: &FrontendKey) -> Option<Precedence> {
        self.owners.get(key).map(|claimant| claimant.rank.precedence())
    }

    /// Lists the Services that claim a frontend, the owner first.
    pub fn claimants(&self, key: &FrontendKey) -> impl Iterator<Item = &Key> {
        let losers = self.losers.get(key).into_iter().flatten();
        self.owners.get(key).into_iter().chain(losers).map(|claimant| &claimant.service)
    }

    /// Makes room for this many Services in all.
    pub(crate) fn reserve(&mut self, services: usize) {
        self.by_service.reserve(services.saturating_sub(self.by_service.len()));
        self.owners.reserve(services.saturating_sub(self.owners.len()));
    }

    /// Sets the frontends that a Service claims: `keys`, sorted and each once. Without `created` it is the youngest.
    pub fn set(&mut self, service: &Key, created: Option<i64>, keys: &[(FrontendKey, Kind)]) -> ClaimChanges {
        let mut changes = ClaimChanges::default();
        let created = created.unwrap_or(i64::MAX);
        let is_same = |old: &ServiceClaims| {
            old.created == created && old.claims.iter().copied().eq(keys.iter().copied().map(Claim::new))
        };
        if self.by_service.get(service).map_or(keys.is_empty(), is_same) {
            return changes;
        }
        let claims: Box<[Claim]> = keys.iter().copied().map(Claim::new).collect();
        if let Some(old) = self.by_service.remove(service) {
            let same_age = old.created == created;
            for claim in old.claims.iter().filter(|claim| !same_age || claims.binary_search(claim).is_err()) {
                let claimant = Claimant { rank: Rank::new(claim.precedence, old.created), service: service.clone() };
                self.remove(&claim.key(), &claimant, &mut changes);
            }
        }
        if !claims.is_empty() {
            for claim in &claims {
                let claimant = Claimant { rank: Rank::new(claim.precedence, created), service: service.clone() };
                self.add(&claim.key(), &claimant, &mut changes);
            }
            self.by_service.insert(service.clone(), ServiceClaims { created, claims });
        }
        changes
    }

    /// Sets the port ranges that a Service claims. Without `created` it is the youngest.
    pub(crate) fn set_ranges(&mut self, service: &Key, created: Option<i64>, ranges: &[ClaimedRange]) -> ClaimChanges {
        let RangeChanges { mut services, addrs } = self.ranges.set(service, created.unwrap_or(i64::MAX), ranges);
        services.retain(|other| other != service);
        ClaimChanges { services, range_addrs: addrs, ..ClaimChanges::default() }
    }

    /// Returns the ports of port ranges at an address that a Service owns.
    #[must_use]
    pub(crate) fn owned_ranges(&self, addr: Addr, proto: Proto, service: &Key) -> &[PortSpan] {
        self.ranges.owned(addr, proto, service)
    }

    /// Returns the Service that owns a port as part of a port range, and the precedence of its claim.
    #[must_use]
    pub(crate) fn range_owner(&self, addr: Addr, proto: Proto, port: u16) -> Option<(&Key, Precedence)> {
        let Claimant { rank, service } = self.ranges.owner(addr, proto, port)?;
        Some((service, rank.precedence()))
    }

    /// Returns another Service whose port range has the single port that a Service claims, and goes before it, with the
    /// precedence of its claim. Without `created` the Service is the youngest.
    #[must_use]
    pub(crate) fn range_before(
        &self,
        (key, kind): (FrontendKey, Kind),
        service: &Key,
        created: Option<i64>,
    ) -> Option<(&Key, Precedence)> {
        if self.ranges.is_empty() || kind.is_address() {
            return None;
        }
        let owner = self.ranges.owner(key.addr, Proto::from_number(key.proto.into())?, key.port)?;
        let rank = Rank::new(Precedence::of(kind), created.unwrap_or(i64::MAX));
        let is_before = owner.service != *service && (owner.rank, &owner.service) < (rank, service);
        is_before.then(|| (&owner.service, owner.rank.precedence()))
    }

    /// Lists single ports of an address that other Services own, before each range that has them. Only of the first
    /// Services that claim ports there.
    pub(crate) fn singles_of_others<'a>(
        &'a self,
        addr: Addr,
        service: &'a Key,
    ) -> impl Iterator<Item = SinglePort<'a>> {
        const MAX_CLAIMANTS: usize = 64;
        let key = FrontendKey::new(addr, 0, Proto::Tcp);
        let mut others: BTreeSet<&Key> = BTreeSet::new();
        for key in [key.address(), key.external_address()] {
            others.extend(self.claimants(&key).take(MAX_CLAIMANTS).filter(|other| *other != service));
        }
        let claims = others.into_iter().filter_map(|other| self.by_service.get(other)).flat_map(|of| &of.claims);
        claims.filter(move |claim| claim.addr == addr).filter_map(move |claim| {
            let (owner, proto) = (self.owners.get(&claim.key())?, Proto::from_number(claim.proto.into())?);
            let is_before = self.ranges.owner(addr, proto, claim.port).is_none_or(|range| owner < range);
            let (port, precedence) = (claim.port, owner.rank.precedence());
            (is_before && owner.service != *service).then_some(SinglePort {
                proto,
                port,
                owner: &owner.service,
                precedence,
            })
        })
    }

    /// Lists the Services that claim port ranges at an address.
    pub fn range_claimants(&self, addr: Addr) -> impl Iterator<Item = &Key> {
        self.ranges.claimants(addr)
    }

    fn add(&mut self, key: &FrontendKey, claimant: &Claimant, changes: &mut ClaimChanges) {
        let Some(owner) = self.owners.get_mut(key) else {
            self.owners.insert(*key, claimant.clone());
            changes.appeared_or_gone.push(*key);
            return;
        };
        if owner == claimant {
            return;
        }
        let losers = self.losers.entry(*key).or_default();
        if claimant < owner {
            losers.insert(std::mem::replace(owner, claimant.clone()));
            changes.moved.push(*key);
        } else {
            losers.insert(claimant.clone());
        }
    }

    fn remove(&mut self, key: &FrontendKey, claimant: &Claimant, changes: &mut ClaimChanges) {
        let losers = self.losers.get_mut(key);
        if self.owners.get(key) == Some(claimant) {
            match losers.and_then(BTreeSet::pop_first) {
                Some(next) => {
                    self.owners.insert(*key, next);
                    changes.moved.push(*key);
                }
                None => {
                    self.owners.remove(key);
                    changes.appeared_or_gone.push(*key);
                }
            }
        } else if let Some(losers) = losers {
            losers.remove(claimant);
        }
        if self.losers.get(key).is_some_and(BTreeSet::is_empty) {
            self.losers.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn key(port: u16) -> FrontendKey {
        FrontendKey::new(Ipv4Addr::new(192, 0, 2, 1).into(), port, Proto::Tcp)
    }

    fn service(name: &str) -> Key {
        Key::new("default", name)
    }

    #[test]
    fn i6_the_older_service_owns_a_frontend_then_the_first_by_name() {
        let cases = [
            (vec![("a", Some(2)), ("b", Some(1))], "b"),
            (vec![("b", Some(1)), ("a", Some(2))], "b"),
            (vec![("b", Some(1)), ("a", Some(1))], "a"),
            (vec![("a", None), ("b", Some(253_402_300_799))], "b"),
            (vec![("c", None), ("b", None), ("a", None)], "a"),
        ];
        for (claimants, owner) in cases {
            let mut claims = Claims::default();
            for &(name, created) in &claimants {
                claims.set(&service(name), created, &[(key(80), Kind::ExternalIp)]);
            }
            assert_eq!(claims.owner(&key(80)), Some(&service(owner)), "{claimants:?}");
        }
    }

    #[test]
    fn i6_an_allotted_address_goes_before_a_claimed_one_whatever_the_ages() {
        use Kind::{Address, ClusterIp, ExternalIp, HostPort, LoadBalancer, NodePort};
        let young = Some(1_700_000_000);
        for (kind, before) in [
            (ClusterIp, [ExternalIp, LoadBalancer]),
            (Address, [ExternalIp, LoadBalancer]),
            (NodePort, [ExternalIp, LoadBalancer]),
            (LoadBalancer, [ExternalIp, HostPort]),
            (ExternalIp, [HostPort, HostPort]),
            (NodePort, [HostPort, HostPort]),
        ] {
            for claimed in before {
                let mut claims = Claims::default();
                claims.set(&service("old"), Some(1), &[(key(80), claimed)]);
                claims.set(&service("young"), young, &[(key(80), kind)]);
                assert_eq!(claims.owner(&key(80)), Some(&service("young")), "{kind:?} before {claimed:?}");
                assert_eq!(claims.precedence(&key(80)), Some(Precedence::of(kind)));
                // The same frontend with less precedence.
                let changes = claims.set(&service("young"), young, &[(key(80), claimed)]);
                assert_eq!(claims.owner(&key(80)), Some(&service("old")));
                assert_eq!(changes.moved, [key(80)]);
                claims.set(&service("old"), Some(1), &[]);
                claims.set(&service("young"), young, &[]);
                assert!(claims.owners.is_empty() && claims.losers.is_empty() && claims.by_service.is_empty());
            }
        }
    }

    #[test]
    fn i6_a_change_of_owner_is_reported() {
        let mut claims = Claims::default();
        let mut set = |name: &str, created, keys: &[FrontendKey]| {
            let keys: Vec<_> = keys.iter().map(|&key| (key, Kind::ExternalIp)).collect();
            let ClaimChanges { moved, appeared_or_gone, .. } = claims.set(&service(name), Some(created), &keys);
            let affected = moved.iter().flat_map(|key| claims.claimants(key)).map(Key::name);
            let names: Vec<_> = affected.filter(|other| *other != name).map(str::to_owned).collect();
            let ports: Vec<_> = appeared_or_gone.iter().map(|key| key.port).collect();
            (names.join(" "), ports)
        };
        let expected = |services: &str, ports: &[u16]| (services.to_owned(), ports.to_vec());
        assert_eq!(set("b", 2, &[key(80), key(81)]), expected("", &[80, 81]));
        assert_eq!(set("b", 2, &[key(80), key(81)]), expected("", &[]), "nothing has changed");
        assert_eq!(set("c", 3, &[key(80)]), expected("", &[]), "a younger one loses and no other is affected");
        assert_eq!(set("a", 1, &[key(80)]), expected("b c", &[]), "an older one wins");
        assert_eq!(set("a", 1, &[]), expected("b c", &[]), "the next one gets it back");
        assert_eq!(set("b", 4, &[key(80)]), expected("c", &[81]), "recreated: the youngest now");
        assert_eq!(set("c", 3, &[]), expected("b", &[]));
        assert_eq!(set("b", 4, &[]), expected("", &[80]));
        assert!(claims.owners.is_empty() && claims.losers.is_empty() && claims.by_service.is_empty());
    }
}
