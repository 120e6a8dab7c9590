//! Which Service owns a frontend that several ask for (invariant I6): the older one, then the first by name.

use std::collections::BTreeSet;

use foldhash::HashMap;
use lb_common::FrontendKey;

use crate::objects::Key;

/// A Service that asks for a frontend; the smaller one wins.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Claimant {
    created: i64,
    service: Key,
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
    keys: Box<[FrontendKey]>,
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
    pub fn set(&mut self, service: &Key, created: Option<i64>, keys: &[FrontendKey]) -> Consequences {
        let mut consequences = Consequences::default();
        let created = created.unwrap_or(i64::MAX);
        let old = self.of.get(service);
        if old.map_or(keys.is_empty(), |old| old.created == created && *old.keys == *keys) {
            return consequences;
        }
        if let Some(old) = self.of.remove(service) {
            let claimant = Claimant { created: old.created, service: service.clone() };
            let same_age = old.created == created;
            for key in old.keys.iter().filter(|key| !same_age || keys.binary_search(key).is_err()) {
                self.remove(key, &claimant, &mut consequences);
            }
        }
        if !keys.is_empty() {
            let claimant = Claimant { created, service: service.clone() };
            keys.iter().for_each(|key| self.add(key, &claimant, &mut consequences));
            self.of.insert(service.clone(), Asked { created, keys: keys.into() });
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
            (vec![("a", None), ("b", Some(i64::MAX - 1))], "b"),
            (vec![("c", None), ("b", None), ("a", None)], "a"),
        ];
        for (asked, owner) in cases {
            let mut claims = Claims::default();
            for &(name, created) in &asked {
                claims.set(&service(name), created, &[key(80)]);
            }
            assert_eq!(claims.owner(&key(80)), Some(&service(owner)), "{asked:?}");
        }
    }

    #[test]
    fn i6_who_must_be_compiled_again_is_told() {
        let mut claims = Claims::default();
        let mut set = |name: &str, created, keys: &[FrontendKey]| {
            let Consequences { moved, frontends } = claims.set(&service(name), Some(created), keys);
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
