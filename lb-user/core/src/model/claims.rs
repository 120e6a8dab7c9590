//! Which Service owns a frontend that several ask for (invariant I6): the one with more of a right to it, then the older
//! one, then the first by name.

use std::collections::BTreeSet;

use foldhash::HashMap;
use lb_common::{Addr, FrontendKey, Kind};

use crate::objects::Key;

/// By what right a Service asks for a frontend; the smaller one wins, whatever the ages. Otherwise whoever has an old
/// Service could write the cluster IP of a younger one into `spec.externalIPs`, and get its clients (CVE-2020-8554).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum Right {
    /// The API server allotted it: cluster IPs, NodePorts.
    Allotted,
    /// A controller wrote it into the status: addresses of load balancers.
    Assigned,
    /// Whoever may write the Service wrote it: external IPs.
    Claimed,
}

impl Right {
    /// That of a kind of frontend.
    #[must_use]
    pub const fn of(kind: Kind) -> Self {
        match kind {
            Kind::ClusterIp | Kind::Address | Kind::NodePort => Self::Allotted,
            Kind::LoadBalancer => Self::Assigned,
            Kind::ExternalIp => Self::Claimed,
        }
    }
}

/// A right and an age in one number, since there is one of these for each frontend: the smaller one wins.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Rank(i64);

impl Rank {
    /// Ages are seconds since 1970, which is in the middle, and have this many bits.
    const AGE_BITS: u32 = 60;

    fn new(right: Right, created: i64) -> Self {
        let middle = 1 << (Self::AGE_BITS - 1);
        Self((right as i64) << Self::AGE_BITS | (created.clamp(-middle, middle - 1) + middle))
    }

    const fn right(self) -> Right {
        match self.0 >> Self::AGE_BITS {
            0 => Right::Allotted,
            1 => Right::Assigned,
            _ => Right::Claimed,
        }
    }
}

/// A Service that asks for a frontend; the smaller one wins.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Claimant {
    rank: Rank,
    service: Key,
}

/// A frontend that a Service asks for: a [`FrontendKey`], which as it is has no place for the right.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Ask {
    addr: Addr,
    port: u16,
    proto: u8,
    right: Right,
}

impl Ask {
    const fn new((key, kind): (FrontendKey, Kind)) -> Self {
        Self { addr: key.addr, port: key.port, proto: key.proto, right: Right::of(kind) }
    }

    const fn key(&self) -> FrontendKey {
        FrontendKey { addr: self.addr, port: self.port, proto: self.proto, _pad: 0 }
    }
}

/// What each Service asks for.
#[derive(Default)]
pub struct Claims {
    owners: HashMap<FrontendKey, Claimant>,
    /// Those who ask for the same and lost; mostly empty.
    losers: HashMap<FrontendKey, BTreeSet<Claimant>>,
    of: HashMap<Key, Asked>,
}

struct Asked {
    created: i64,
    asks: Box<[Ask]>,
}

/// What a change of claims means for others.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Consequences {
    /// Frontends that have another owner now: all who ask for them are concerned, since they own more or less, or name
    /// the owner in a warning. Where many ask for one, naming those here at each step would cost their number squared.
    pub moved: Vec<FrontendKey>,
    /// Frontends that nobody asked for before, or nobody asks for now.
    pub frontends: Vec<FrontendKey>,
}

impl Claims {
    /// The Service that owns a frontend.
    #[must_use]
    pub fn owner(&self, key: &FrontendKey) -> Option<&Key> {
        self.owners.get(key).map(|claimant| &claimant.service)
    }

    /// By what right the owner of a frontend has it.
    #[must_use]
    pub fn right(&self, key: &FrontendKey) -> Option<Right> {
        self.owners.get(key).map(|claimant| claimant.rank.right())
    }

    /// The Services that ask for a frontend, the owner first.
    pub fn claimants(&self, key: &FrontendKey) -> impl Iterator<Item = &Key> {
        let losers = self.losers.get(key).into_iter().flatten();
        self.owners.get(key).into_iter().chain(losers).map(|claimant| &claimant.service)
    }

    /// Makes room for this many Services in all.
    pub fn reserve(&mut self, services: usize) {
        self.of.reserve(services.saturating_sub(self.of.len()));
        self.owners.reserve(services.saturating_sub(self.owners.len()));
    }

    /// Sets what a Service asks for: `keys`, sorted and each once. `created` is its age; none is the youngest.
    pub fn set(&mut self, service: &Key, created: Option<i64>, keys: &[(FrontendKey, Kind)]) -> Consequences {
        let mut consequences = Consequences::default();
        let created = created.unwrap_or(i64::MAX);
        let old = self.of.get(service);
        let is_same =
            |old: &Asked| old.created == created && old.asks.iter().copied().eq(keys.iter().copied().map(Ask::new));
        if old.map_or(keys.is_empty(), is_same) {
            return consequences;
        }
        let asks: Box<[Ask]> = keys.iter().copied().map(Ask::new).collect();
        if let Some(old) = self.of.remove(service) {
            let same_age = old.created == created;
            for ask in old.asks.iter().filter(|ask| !same_age || asks.binary_search(ask).is_err()) {
                let claimant = Claimant { rank: Rank::new(ask.right, old.created), service: service.clone() };
                self.remove(&ask.key(), &claimant, &mut consequences);
            }
        }
        if !asks.is_empty() {
            for ask in &asks {
                let claimant = Claimant { rank: Rank::new(ask.right, created), service: service.clone() };
                self.add(&ask.key(), &claimant, &mut consequences);
            }
            self.of.insert(service.clone(), Asked { created, asks });
        }
        consequences
    }

    fn add(&mut self, key: &FrontendKey, claimant: &Claimant, consequences: &mut Consequences) {
        let Some(owner) = self.owners.get_mut(key) else {
            self.owners.insert(*key, claimant.clone());
            consequences.frontends.push(*key);
            return;
        };
        if owner == claimant {
            return;
        }
        let losers = self.losers.entry(*key).or_default();
        if claimant < owner {
            losers.insert(std::mem::replace(owner, claimant.clone()));
            consequences.moved.push(*key);
        } else {
            losers.insert(claimant.clone());
        }
    }

    fn remove(&mut self, key: &FrontendKey, claimant: &Claimant, consequences: &mut Consequences) {
        let losers = self.losers.get_mut(key);
        if self.owners.get(key) == Some(claimant) {
            match losers.and_then(BTreeSet::pop_first) {
                Some(next) => {
                    self.owners.insert(*key, next);
                    consequences.moved.push(*key);
                }
                None => {
                    self.owners.remove(key);
                    consequences.frontends.push(*key);
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
    use lb_common::Proto;
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
        for (asked, owner) in cases {
            let mut claims = Claims::default();
            for &(name, created) in &asked {
                claims.set(&service(name), created, &[(key(80), Kind::ExternalIp)]);
            }
            assert_eq!(claims.owner(&key(80)), Some(&service(owner)), "{asked:?}");
        }
    }

    #[test]
    fn i6_what_was_allotted_goes_before_what_is_claimed_whatever_the_ages() {
        use Kind::{Address, ClusterIp, ExternalIp, LoadBalancer, NodePort};
        let young = Some(1_700_000_000);
        for (kind, before) in [
            (ClusterIp, [ExternalIp, LoadBalancer]),
            (Address, [ExternalIp, LoadBalancer]),
            (NodePort, [ExternalIp, LoadBalancer]),
            (LoadBalancer, [ExternalIp, ExternalIp]),
        ] {
            for claimed in before {
                let mut claims = Claims::default();
                claims.set(&service("old"), Some(1), &[(key(80), claimed)]);
                claims.set(&service("young"), young, &[(key(80), kind)]);
                assert_eq!(claims.owner(&key(80)), Some(&service("young")), "{kind:?} before {claimed:?}");
                assert_eq!(claims.right(&key(80)), Some(Right::of(kind)));
                // The same frontend by a lesser right.
                let consequences = claims.set(&service("young"), young, &[(key(80), claimed)]);
                assert_eq!(claims.owner(&key(80)), Some(&service("old")));
                assert_eq!(consequences.moved, [key(80)]);
                claims.set(&service("old"), Some(1), &[]);
                claims.set(&service("young"), young, &[]);
                assert!(claims.owners.is_empty() && claims.losers.is_empty() && claims.of.is_empty());
            }
        }
    }

    #[test]
    fn a_rank_tells_ages_of_any_size_apart_from_rights() {
        let ages = [i64::MIN, 0, 1_700_000_000, i64::MAX - 1, i64::MAX];
        for (right, next) in [(Right::Allotted, Right::Assigned), (Right::Assigned, Right::Claimed)] {
            for age in ages {
                assert_eq!(Rank::new(right, age).right(), right);
                assert!(ages.iter().all(|&other| Rank::new(right, age) < Rank::new(next, other)));
            }
        }
        for right in [Right::Allotted, Right::Claimed] {
            assert!(ages.map(|age| Rank::new(right, age)).is_sorted());
            assert!(Rank::new(right, -1) < Rank::new(right, 0) && Rank::new(right, 1) < Rank::new(right, 2));
        }
    }

    #[test]
    fn i6_who_must_be_compiled_again_is_told() {
        let mut claims = Claims::default();
        let mut set = |name: &str, created, keys: &[FrontendKey]| {
            let keys: Vec<_> = keys.iter().map(|&key| (key, Kind::ExternalIp)).collect();
            let Consequences { moved, frontends } = claims.set(&service(name), Some(created), &keys);
            let concerned = moved.iter().flat_map(|key| claims.claimants(key)).map(Key::name);
            let names: Vec<_> = concerned.filter(|other| *other != name).map(str::to_owned).collect();
            let ports: Vec<_> = frontends.iter().map(|key| key.port).collect();
            (names.join(" "), ports)
        };
        let expected = |services: &str, ports: &[u16]| (services.to_owned(), ports.to_vec());
        assert_eq!(set("b", 2, &[key(80), key(81)]), expected("", &[80, 81]));
        assert_eq!(set("b", 2, &[key(80), key(81)]), expected("", &[]), "nothing has changed");
        assert_eq!(set("c", 3, &[key(80)]), expected("", &[]), "a younger one loses and nobody else cares");
        assert_eq!(set("a", 1, &[key(80)]), expected("b c", &[]), "an older one wins");
        assert_eq!(set("a", 1, &[]), expected("b c", &[]), "the next one gets it back");
        assert_eq!(set("b", 4, &[key(80)]), expected("c", &[81]), "recreated: the youngest now");
        assert_eq!(set("c", 3, &[]), expected("b", &[]));
        assert_eq!(set("b", 4, &[]), expected("", &[80]));
        assert!(claims.owners.is_empty() && claims.losers.is_empty() && claims.of.is_empty());
    }
}
